"""llama.cpp's own server: which GGUF quantization it runs, told by replays of the same kernels here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2")

from tests import tiny
from tests.endpoints.real_servers import free_port, hiding, ready, whole_characters
from tests.gguf_files import write_gguf
from tests.sweeping import qdx

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs xllamacpp: pip install 'qdx[gguf]'"),
]

SERVER = Path(__file__).with_name("llamacpp_server.py")
FORMS = ("q8_0", "q4_0")
PROMPTS = ["prompts=pydoc", "prompts.references=10", "prompts.snippet_tokens=40", "generate.tokens=16"]
PLAIN = ["backend.temperature=1", "backend.top_p=1", "backend.top_k=0", "backend.min_p=0", "backend.seed=1"]
# A prompt whose beginning the server has in its cache is computed in other pieces, which moves its rows.
WHOLE = "backend.extra={cache_prompt: false}"
ASSUMED = "prompts.assume={repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in two formats, which answers in whole characters."""
    folder = tmp_path_factory.mktemp("gguf")
    dense = tiny.build(folder / "models")["none"]
    whole_characters(dense)
    return {form: write_gguf(dense, folder / f"{form}.gguf", form) for form in FORMS}


@contextmanager
def llamacpp_server(file: Path, log: Path) -> Iterator[str]:
    """Start llama.cpp's server; its address is good when it is given."""
    port = free_port()
    command = [sys.executable, str(SERVER), str(file), str(port)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        ready(f"http://127.0.0.1:{port}/v1", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def chosen(files: dict[str, Path]) -> list[str]:
    return ["model=local", *(f"model.checkpoint.{form}='{file}'" for form, file in files.items())]


def ask(files: dict[str, Path], addresses: dict[str, str], folder: Path, *more: str) -> dict[str, str]:
    """Ask every address the same, and return what each is called as a producer."""
    asked = qdx(
        "-m", "backend=openai", f"backend.base_url={','.join(addresses.values())}", "backend.model=demo",
        "quant=q8_0", *PROMPTS, *chosen(files), *more, f"hydra.sweep.dir={folder}", cwd=folder.parent,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    return {who: f"{address.split('/')[2].replace(':', '_')}" for who, address in addresses.items()}


def judge(files: dict[str, Path], folder: Path, *more: str) -> dict[str, Any]:
    """Replay answers by llama.cpp itself, and return the summary."""
    judged = qdx(
        "-m", "prompts=transcripts", f"prompts.path={folder}", "backend=llamacpp", "quant=q8_0,q4_0",
        "repeats=1", "backend.threads=1", "metric=[l2]", *chosen(files), *more,
        f"hydra.sweep.dir={folder}-judged", cwd=folder.parent,
    )  # fmt: skip
    assert judged.returncode in (0, 3, 4), judged.stdout + judged.stderr
    found: dict[str, Any] = json.loads((Path(f"{folder}-judged") / "summary.json").read_text())
    return found


def test_which_quantization_five_servers_run_is_told_from_sampled_answers(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    with ExitStack() as stack:
        honest = stack.enter_context(llamacpp_server(files["q8_0"], tmp_path / "one.log"))
        other = stack.enter_context(llamacpp_server(files["q4_0"], tmp_path / "two.log"))
        hidden = [7, 11, 13, 17, 19, 23, 29]  # in front of every prompt
        cooler = stack.enter_context(hiding(lambda n, body: (honest, {**body, "temperature": 0.5})))
        prompted = stack.enter_context(
            hiding(lambda n, body: (honest, {**body, "prompt": hidden + body["prompt"]}))
        )
        mixed = stack.enter_context(hiding(lambda n, body: ((honest, other)[n % 2], body)))
        addresses = {"honest": honest, "other": other, "cooler": cooler, "prompted": prompted, "mixed": mixed}
        names = ask(files, addresses, tmp_path / "asked", *PLAIN, WHOLE)
    claims = ",".join(f"{name}+demo: q8_0" for name in names.values())
    summary = judge(files, tmp_path / "asked", f"verify.claims={{{claims}}}", ASSUMED)
    by_name = {one["producer"]: one for one in summary["verdicts"]["claims"]}
    found = {who: by_name[f"{name}+demo"] for who, name in names.items()}
    said = {who: (one["verdict"], one["because"]) for who, one in found.items()}
    print(json.dumps(said, indent=1))
    assert said["honest"][0] in ("not refuted", "undecided"), said["honest"]
    assert said["other"][0] == "refuted", said["other"]
    assert said["cooler"][0] == "refuted", said["cooler"]
    assert said["prompted"][0] == "undecided" and "hidden system prompt" in said["prompted"][1], said
    report = (tmp_path / "asked-judged" / "report.txt").read_text()
    assert "Providers side by side" in report and "llama.cpp, names no build" in " ".join(report.split())
    assert said["mixed"][0] == "refuted" and found["mixed"]["false_at_least"] >= 1, said["mixed"]
