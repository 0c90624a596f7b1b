"""The example scripts run on a real sweep; examples/check_plugin.sh checks the example distribution."""

from __future__ import annotations

import importlib
import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from qdx.dataset import merge
from qdx.distances.measure import compute
from qdx.errors import QdxError
from qdx.plugins import build
from tests.helpers import write_sweep

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A sweep of two configs, measured."""
    folder = tmp_path_factory.mktemp("examples")
    first = write_sweep(folder / "a", ["awq", "gptq"])
    merge(first, first / "sweep.nc")
    compute(first, first / "sweep.nc", {"l2": build({"_target_": "qdx.metrics.l2"})})
    return [first]


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_load_and_plot_writes_a_whole_svg(
    sweeps: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("load_and_plot.py", monkeypatch, sweeps[0], "--against", "awq", "--to", tmp_path / "d.svg")
    root = ET.parse(tmp_path / "d.svg").getroot()
    words = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"awq", "gptq", "mean l2 from awq"} <= words
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert float(next(line for line in printed.splitlines() if "gptq" in line).split()[1]) > 1


def test_custom_analysis_prints_a_line_a_pair(
    sweeps: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("custom_analysis.py", monkeypatch, sweeps[0])
    last = capsys.readouterr().out.splitlines()[-1]
    *pair, value = last.split()
    assert pair == ["awq", "~", "gptq"] and -1 <= float(value) <= 1


@pytest.mark.parametrize(("references", "nearest"), [(9, 8), (0, 1)])
def test_the_example_source_gives_as_many_references_as_asked_or_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch, references: int, nearest: int
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "qdx-example-plugin" / "src"))
    source = importlib.import_module("qdx_example_plugin.prompts").Capitals
    assert len(source(references=8).countries) == 8
    message = (
        f"prompts.references={references}: capitals has 1 to 8 questions: set prompts.references={nearest}"
    )
    with pytest.raises(QdxError, match=message):
        source(references=references)
