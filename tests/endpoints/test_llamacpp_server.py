"""llama.cpp's own server: which GGUF quantization it runs, told by replays of the same kernels here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2")

from tests import tiny
from tests.endpoints.real_servers import free_port, hiding, ready, whole_characters
from tests.gguf_files import write_gguf
from tests.programs import lacking
from tests.sweeping import qdx

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("llamacpp_server.py")
FORMS = ("q8_0", "q4_0")
PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "gguf.md").read_text()
OWN = ("hydra.sweep.dir=", "backend.base_url=", "prompts.path=", "model.checkpoint.")  # of this test


def of_page(sentence: str) -> list[str]:
    """Return the arguments of the page's command in which this stands, with the formats of this test."""
    commands = re.findall(r"^`?(python -m qdx [^\n]*?)`?$", PAGE, re.MULTILINE)
    (block,) = [one for one in commands if sentence in one]
    words = [word.replace("q4_k_m", "q4_0") for word in shlex.split(block)[3:]]
    return [word for word in words if not word.startswith(OWN)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in two formats, which answers in whole characters."""
    if find_spec("xllamacpp") is None:
        lacking("xllamacpp is not installed: pip install 'qdx[gguf]'")
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
    return [f"model.checkpoint.{form}='{file}'" for form, file in files.items()]


def ask(files: dict[str, Path], addresses: dict[str, str], folder: Path) -> dict[str, str]:
    """Ask every address the same by the page's command, and return what each is called as a producer."""
    asked = qdx(
        *of_page("backend=openai"), f"backend.base_url={','.join(addresses.values())}",
        "prompts.snippet_tokens=40", *chosen(files), f"hydra.sweep.dir={folder}", cwd=folder.parent,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    return {who: f"{address.split('/')[2].replace(':', '_')}+demo" for who, address in addresses.items()}


def judge(files: dict[str, Path], folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Replay answers by llama.cpp itself, and return what is said of each producer as a q8_0."""
    claims = ",".join(f"{name}: q8_0" for name in names)
    judged = qdx(
        *of_page("prompts=transcripts"), f"prompts.path={folder}", f"verify.claims={{{claims}}}", "repeats=1",
        "backend.threads=1", "metric=[l2]", *chosen(files), f"hydra.sweep.dir={folder}-judged",
        cwd=folder.parent,
    )  # fmt: skip
    assert judged.returncode in (0, 3, 4), judged.stdout + judged.stderr
    summary = json.loads((Path(f"{folder}-judged") / "summary.json").read_text())
    return {one["producer"]: one for one in summary["verdicts"]["claims"]}


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
        names = ask(files, addresses, tmp_path / "asked")
    by_name = judge(files, tmp_path / "asked", names.values())
    found = {who: by_name[name] for who, name in names.items()}
    said = {who: (one["verdict"], one["because"]) for who, one in found.items()}
    assert said["honest"][0] in ("not refuted", "undecided"), said["honest"]
    assert found["honest"]["answer"] == "q8_0" and found["other"]["answer"] == "q4_0"
    assert said["other"][0] == "refuted", said["other"]
    assert said["cooler"][0] == "refuted", said["cooler"]
    assert said["prompted"][0] == "undecided" and "hidden system prompt" in said["prompted"][1], said
    report = (tmp_path / "asked-judged" / "report.txt").read_text()
    assert "Providers side by side" in report and "llama.cpp, names no build" in " ".join(report.split())
    assert said["mixed"][0] == "refuted" and found["mixed"]["false_at_least"] >= 1, said["mixed"]
