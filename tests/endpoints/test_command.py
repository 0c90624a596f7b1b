"""``backend=openai`` through the command line: what a sweep leaves, says, resumes and refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2")

from tests.endpoints.server import recorded, send, serving
from tests.sweeping import checkpoints, qdx

PROMPTS = ["prompts.references=2", "prompts.snippet_tokens=60", "generate.tokens=12"]


PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "ask.md").read_text()


def of_page(sentence: str) -> list[str]:
    """Return the arguments of the page's command in which this stands."""
    (block,) = [one for one in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if sentence in one]
    words = shlex.split(block)
    return [word for word in words[3:] if not word.startswith(("hydra.sweep.dir=", "backend.base_url="))]


def ask(address: str, tiny: dict[str, Path], folder: Path, *more: str) -> Any:
    """Run the how-to's command with a server of this machine, a small model and few prompts."""
    of = "two.example.org" if "," in address else "api.example.org"
    return qdx(
        *of_page(of),
        f"backend.base_url={address}",
        *PROMPTS,
        *checkpoints(tiny),
        f"hydra.sweep.dir={folder}",
        *more,
        cwd=folder.parent,
    )


@pytest.mark.slow
def test_two_servers_are_asked_and_compared(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    def longer(handler: Any, number: int, body: Any) -> bool:
        answer = recorded("completions")
        usage = dict(answer["usage"], prompt_tokens=len(body["prompt"]) + 9)
        send(handler, 200, dict(answer, usage=usage, system_fingerprint=f"\x1b[2Jfp {number}"))
        return True

    with serving() as (one, _), serving(longer) as (other, _):
        ended = ask(f"{one},{other}", tiny_models, tmp_path / "asked", "report.formats=[txt,html,md]")
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "asked"
    lines = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and len({line["provider"] for line in lines}) == 2
    assert len({line["custom_id"] for line in lines}) == 4
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["kind"] == "servers"
    found = {one["base_url"]: one for one in summary["servers"].values()}
    assert found[one]["answers"] == found[other]["answers"] == 2
    assert found[one]["prompt_tokens_more"] == [0, 0] and found[other]["prompt_tokens_more"] == [9, 9]
    assert len(found[other]["fingerprints"]) == 2
    for name in ("report.txt", "report.html", "report.md"):
        page = (folder / name).read_text()
        assert "\x1b" not in page and "9 prompt tokens more than" in " ".join(page.split())
        assert one in page and other in page
    assert "prompts=transcripts" in ended.stdout and "nothing was observed" in " ".join(ended.stdout.split())

    # What the next command replays: every server is a producer.
    replayed = qdx(
        "-m", "prompts=transcripts", f"prompts.path={folder}", "repeats=1", "quant=none", "prompts.records=1",
        "prompts.draw_seed=1", *checkpoints(tiny_models), "hydra.sweep.dir=replayed", cwd=tmp_path,
    )  # fmt: skip
    assert replayed.returncode == 4, replayed.stderr  # undecided: no claim was made
    assert (tmp_path / "replayed" / "sweep.nc").is_file()


@pytest.mark.slow
def test_a_sweep_that_failed_is_resumed_and_its_key_is_nowhere(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-nobody-may-see-this"
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def refuses(handler: Any, number: int, body: Any) -> bool:
        if number < 1:
            return False
        send(handler, 401, {"error": {"message": f"bad key {key}"}})
        return True

    state: dict[str, Any] = {"fault": refuses}
    with serving(lambda *a: state["fault"](*a) if state["fault"] else False) as (address, asked):
        ended = ask(address, tiny_models, tmp_path / "asked", "backend.concurrency=1")
        assert ended.returncode == 1
        assert "1 of 2 answers" in ended.stderr and "401" in ended.stderr
        state["fault"] = None
        again = ask(address, tiny_models, tmp_path / "asked", "backend.concurrency=1")
        assert again.returncode == 0, again.stderr
    assert len(asked.bodies) == 3
    assert {headers["Authorization"] for headers in asked.headers} == {f"Bearer {key}"}
    said = ended.stdout + ended.stderr + again.stdout + again.stderr
    assert key not in said
    for path in (tmp_path / "asked").rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path
    redone = qdx(os.fspath(tmp_path / "asked"), cwd=tmp_path, module="qdx.report")
    assert redone.returncode == 0 and "2 of 2 answers" in redone.stdout


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["backend=openai,transformers", "backend.model=demo", "+backend.base_url=http://127.0.0.1:9/v1"],
            "",
        ),
        (["backend=openai", "backend.model=demo"], "backend.base_url is not set"),
        (["backend=openai", "backend.base_url=http://127.0.0.1:9/v1"], "backend.model is not set"),
        (["backend=openai", "backend.base_url=127.0.0.1", "backend.model=demo"], "must be an address"),
        (
            ["backend=openai", "backend.base_url=http://127.0.0.1:9/v1", "backend.model=demo", "backend.n=3"],
            "backend.n",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything(
    tmp_path: Path, tiny_models: dict[str, Path], overrides: list[str], said: str
) -> None:
    prompts = [] if "prompts=transcripts" in overrides else PROMPTS
    ended = qdx(
        "-m", *overrides, *prompts, "quant=none", *checkpoints(tiny_models), "hydra.sweep.dir=x", cwd=tmp_path
    )
    assert ended.returncode == 2 and said in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "x" / "none" / "responses.jsonl").exists()


@pytest.mark.slow
def test_a_server_that_is_not_there(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    ended = ask("http://127.0.0.1:9/v1", tiny_models, tmp_path / "asked", "backend.retries=0")
    assert ended.returncode == 1
    assert "0 of 2 answers" in ended.stderr and "ConnectError" in ended.stderr
    assert "No server has answered yet" in ended.stdout
