"""The recipe of docs/howto/verify.md for machines that differ, with its numbers, refutes a false claim."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import qdx as package
from tests.sweeping import checkpoints, qdx

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "verify.md"
SMALL = ["prompts.snippet_tokens=60", "generate.tokens=5", "metric=[l2]", "report.formats=[txt]"]


@pytest.mark.slow
def test_forty_calibration_references_refute_a_false_claim_of_four(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    known = re.search(r"prompts=pydoc prompts.references=(\d+)", PAGE.read_text())
    assert known and known.group(1) == "40"
    models = checkpoints(tiny_models)

    def run(*arguments: str) -> int:
        done = qdx("-m", *arguments, *models, "metric=[l2]", "report.formats=[txt]", cwd=tmp_path)
        assert done.returncode in (0, 3, 4), done.stdout + done.stderr
        return done.returncode

    # Another number of threads is another environment class, so that rows that differ refute nothing.
    there, here = ["backend.threads=2", "repeats=1", *SMALL], "backend.threads=1"
    run("quant=awq", *there, "hydra.sweep.dir=producer")
    run("quant=awq_marlin", "prompts=pydoc", "prompts.references=40", *there, "hydra.sweep.dir=trusted")
    marlin = ["prompts=transcripts", "quant=awq_marlin", here]
    assert run(*marlin, "prompts.path=trusted/sweep.nc", "hydra.sweep.dir=calibration") == 0
    claim = "verify.claims={awq: awq_marlin}"
    judged = [*marlin, "prompts.path=producer/sweep.nc", claim, "verify.calibration=calibration"]
    assert run(*judged, "hydra.sweep.dir=judged") == 3
    told = json.loads((tmp_path / "judged" / "summary.json").read_text())["verdicts"]["claims"][0]
    assert told["verdict"] == "refuted"
    assert told["p_adjusted"] <= 0.05
    assert "32 known transcripts" in told["tests"]["distances"]["against"]
    assert "environment classes" in told["tests"]["decode rows"]["against"]
    assert 1 <= told["false_at_least"] <= 4
    with package.open(tmp_path / "judged" / "sweep.nc") as tree:
        assert tree["provenance/repeat_processes"].values.tolist() == ["3"]
