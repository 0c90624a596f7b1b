"""Whatever is wrong with an input, one line says so: `scripts/fuzz.py` tries more than fits a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.kinds import MAKERS, Bases
from tests.fuzz.pool import Worker
from tests.fuzz.search import search

pytestmark = pytest.mark.slow

COUNT = {"sweep folder": 6, "report": 6, "command line": 3}  # the dear ones


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    running = Worker()
    yield running
    running.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_an_input_is_accepted_or_refused_in_one_line(kind: str, bases: Bases, worker: Worker) -> None:
    findings: list[str] = []
    count = COUNT.get(kind, 15)
    counts = search(
        kind, count, bases, worker, 1, lambda what, said, folder: findings.append(f"{what}: {said}")
    )
    assert not findings, findings[0]
    assert counts.total() >= count / 2 and counts["refused"] > 0


def test_whole_inputs_are_accepted(bases: Bases, worker: Worker, tmp_path: Path) -> None:
    for base in bases.pdfs:
        (tmp_path / "input.pdf").write_bytes(base)
        assert worker.ask("pdf", tmp_path) == ("accepted", "")
    for path in bases.runs:
        assert worker.ask("run.nc", path.parent) == worker.ask("run.nc rows", path.parent) == ("accepted", "")
    for path in bases.transcripts:
        (tmp_path / "received.nc").write_bytes(path.read_bytes())
        assert worker.ask("transcripts", tmp_path) == ("accepted", "")
    for form, path in bases.models.items():
        (tmp_path / form).mkdir()
        (tmp_path / form / "model").symlink_to(path)
        for kind in ("checkpoint", "model"):
            assert worker.ask(kind, tmp_path / form, {"format": form}) == ("accepted", "")
    assert worker.ask("sweep folder", bases.folder) == ("accepted", "")


def test_what_is_no_qdx_error_is_a_finding(worker: Worker, tmp_path: Path) -> None:
    outcome, said = worker.ask(
        "pdf", tmp_path, None
    )  # no such file: the reader is always given one that is there
    assert outcome == "refused" and "input.pdf" in said
    outcome, said = worker.ask("text", tmp_path, {"no_such_option": 1})
    assert outcome == "bug" and "TypeError" in said
