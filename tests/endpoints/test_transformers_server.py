"""``transformers serve``: it gives text alone, and two formats are told apart by it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("httpx2")

from tests import tiny
from tests.endpoints.real_servers import free_port, ready, rounded, whole_characters
from tests.programs import lacking
from tests.sweeping import checkpoints, qdx

NEEDED = ("openai", "fastapi", "uvicorn", "accelerate")
pytestmark = pytest.mark.slow
PROMPTS = ["prompts=pydoc", "prompts.references=6", "prompts.snippet_tokens=40", "generate.tokens=12"]


@contextmanager
def transformers_server(folder: Path, log: Path) -> Iterator[str]:
    """Start the server in a folder; a request names a model below it, which is loaded then."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    more = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, **more}, cwd=folder
        )
    try:
        ready(f"http://127.0.0.1:{port}/v1", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_two_formats_behind_one_address_are_told_apart_by_greedy_text(tmp_path: Path) -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        lacking(f"{', '.join(missing)} not installed: pip install 'transformers[serving]'")
    models = tiny.build(tmp_path / "models")
    whole_characters(models["none"])
    rounded(tmp_path / "models", tmp_path / "cheap")
    with transformers_server(tmp_path, tmp_path / "server.log") as address:
        asked = qdx(
            "-m", "backend=openai", f"backend.base_url={address}", "backend.model=models/none,cheap",
            "backend.route=chat", "backend.concurrency=1", "quant=none", *PROMPTS, *checkpoints(models),
            "hydra.sweep.dir=asked", cwd=tmp_path,
        )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    servers = json.loads((tmp_path / "asked" / "summary.json").read_text())["servers"]
    assert all(one["with_logprobs"] == one["with_token_ids"] == 0 for one in servers.values())
    assert all(one["fingerprints"] == {"": 6} and one["answers"] == 6 for one in servers.values())
    judged = qdx(
        "-m", "prompts=transcripts", "prompts.path=asked", "quant=none", "repeats=1", "metric=[l2]",
        "model.dtype=float32", *checkpoints(models), "hydra.sweep.dir=judged", cwd=tmp_path,
    )  # fmt: skip
    assert judged.returncode == 4, judged.stderr  # text alone refutes nothing
    summary = json.loads((tmp_path / "judged" / "summary.json").read_text())
    greedy = []
    for one in summary["verdicts"]["claims"]:
        found = re.search(r"(\d+) of (\d+) tokens greedy", one["because"])
        assert found is not None and one["verdict"] == "undecided"
        greedy.append(int(found[1]) / int(found[2]))
    honest, other = sorted(greedy, reverse=True)
    assert honest >= 0.95 and other <= 0.7, greedy  # 60 and 25 of 60 when this was written
    assert "cheap" in summary["verdicts"]["claims"][greedy.index(other)]["producer"]
