"""What tests with real servers share: a free port, a wait for an answer, a stand-in that hides something."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from qdx.models import awq

START_S = 240


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ready(address: str, log: Path) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        try:
            urllib.request.urlopen(f"{address}/models", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@contextmanager
def hiding(change: Any) -> Iterator[str]:
    """Stand before servers and hide something: `change` is given a request's number and body, and gives
    the server that answers and the body that it gets."""
    count = iter(range(10**6))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = next(count)
            address, body = change(number, body)
            request = urllib.request.Request(
                address + self.path.removeprefix("/v1"),
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=120) as answer:
                data = answer.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def rounded(folder: Path, target: Path) -> Path:
    """Write a dense checkpoint with the weights that the AWQ one holds: a cheaper format behind a name."""
    shutil.copytree(folder / "none", target)
    stored = load_file(target / "model.safetensors")
    packed = load_file(folder / "awq" / "model.safetensors")
    for name in [key.removesuffix(".qweight") for key in packed if key.endswith(".qweight")]:
        parts = {kind: packed[f"{name}.{kind}"] for kind in ("qweight", "qzeros", "scales")}
        stored[f"{name}.weight"] = awq.unpack(parts, 128).dequantize().T.contiguous()
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    return target


def whole_characters(checkpoint: Path) -> None:
    """Take from a tiny model the tokens that are parts of characters: random weights answer in halves."""
    vocab = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    state = load_file(checkpoint / "model.safetensors")
    for name, number in vocab.items():
        if not name.removeprefix("Ġ").isascii():
            state["lm_head.weight"][number] = 0
    save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
