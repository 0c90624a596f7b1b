"""A server on this machine that repeats what vLLM's answered, and has the faults that a test asks for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# vLLM 0.32.0 wrote these: requests of each kind, with the statuses and bodies that its server gave.
RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vllm_0_32_answers.json").read_text())[
    "answers"
]


def recorded(path: str, status: int = 200, field: str = "") -> dict[str, Any]:
    """Return what vLLM answered to a request of that kind; of errors the one about `field`."""
    return next(
        one["response"]
        for one in RECORDED
        if one["path"] == path and one["status"] == status and (not field or field in one["request"])
    )


def answer_to(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return vLLM's recorded answer, of the recorded prompt where it is this one."""
    own = [one for one in RECORDED if one["path"] == path and one["status"] == 200]
    same = [one for one in own if one["request"].get("prompt") == body.get("prompt")]
    return dict((same or own)[0]["response"])


class Asked:
    """What reached the server.

    Attributes
    ----------
    bodies : list of dict
        Of every POST, in the order in which they came.
    headers : list of dict
    at_once : int
        The most requests that were open together.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.open = 0
        self.lock = threading.Lock()


Fault = Callable[[BaseHTTPRequestHandler, int, dict[str, Any]], bool]


@contextmanager
def serving(fault: Fault | None = None, seconds: float = 0.0) -> Iterator[tuple[str, Asked]]:
    """Serve on loopback until the block is left.

    Parameters
    ----------
    fault : callable, optional
        Is called with the handler, the number of the request from 0, and its body; True: it has answered.
    seconds : float
        That every answer takes.

    Yields
    ------
    address, asked
    """
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            send(self, 200, recorded("models"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with asked.lock:
                number = len(asked.bodies)
                asked.bodies.append(body)
                asked.headers.append(dict(self.headers.items()))
                asked.open += 1
                asked.at_once = max(asked.at_once, asked.open)
            try:
                time.sleep(seconds)
                if fault is None or not fault(self, number, body):
                    send(self, 200, answer_to(self.path.removeprefix("/v1/"), body))
            finally:
                with asked.lock:
                    asked.open -= 1

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: dict[str, Any] | bytes, **headers: str) -> None:
    """Answer with a status, a body and headers."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
