"""Listed log-probabilities that vLLM printed, through the command line, with records for a calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.verification import verify
from tests.records import FILES
from tests.records.test_verdicts import models as models
from tests.sweeping import checkpoints
from tests.sweeping import qdx as run_qdx

pytestmark = pytest.mark.slow
CLAIMS = {"honest": "none", "other": "none"}


def both(path: Path) -> Path:
    """vLLM's answers of the checkpoint and of another one's weights, as those of two providers."""
    lines = []
    for name, label in (("vllm_topk_answers.jsonl", "honest"), ("vllm_topk_awq.jsonl", "other")):
        for line in (FILES / name).read_text().splitlines():
            value = json.loads(line)
            value["response"]["model"] = label
            value["custom_id"] = f"{label}-{value['custom_id']}"
            lines.append(json.dumps(value))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    """A sweep of 44 known answers, and one of eight of each provider, which uses it."""
    folder = tmp_path_factory.mktemp("listed")
    common = ["backend.threads=1", "report.formats=[txt]", *checkpoints(models)]
    known = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={FILES / 'vllm_topk_known.jsonl'}", "quant=none,awq",
        "repeats=1", "verify.claims={tiny: none}", "hydra.sweep.dir=known", *common, cwd=folder,
    )  # fmt: skip
    assert known.returncode == 4, known.stdout + known.stderr
    claims = ", ".join(f"{who}: {what}" for who, what in CLAIMS.items())
    done = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={both(folder / 'both.jsonl')}", "quant=none,awq",
        "repeats=3", "repeat_scope=process", f"verify.claims={{{claims}}}", "verify.calibration=known",
        "hydra.sweep.dir=s", *common, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    return folder


def judged(folder: Path, claims: dict[str, str]) -> xr.Dataset:
    trees = [qdx.open(folder / which / "producers.nc") for which in ("s", "known")]
    sweeps = [qdx.open(folder / which / "sweep.nc") for which in ("s", "known")]
    try:
        known = (trees[1], sweeps[1])
        return verify(trees[0], sweeps[0], claims=claims, calibration=known).result.load()
    finally:
        for tree in (*trees, *sweeps):
            tree.close()


def test_lists_of_vllm_are_told_from_those_of_other_weights_by_distances(folder: Path) -> None:
    result = judged(folder, CLAIMS)
    verdict = dict(zip(result["producer"].values, result["verdict"].values, strict=True))
    assert verdict == {"honest": "not refuted", "other": "refuted"}, result["because"].values
    p = result["test_p"].sel(test="distances")
    assert p.sel(producer="other") < 1e-4 < 0.05 < p.sel(producer="honest")
    null = str(result["test_null"].sel(producer="honest", test="distances").values)
    assert "listed log-probabilities (the 5 greatest and the emitted one, 6 decimals)" in null
    assert "first 6 tokens" in null and "not covered: any other" in null
    assert "distances" in str(result["concerns"].sel(producer="honest").values)
    likelihood = result["log_likelihood"].sel(producer="honest", config="none")
    assert np.isfinite(likelihood).sum() == 8, "the known answers give every transcript a likelihood"


def test_a_sweep_says_how_many_lists_are_equal_here_and_what_they_were_held_against(folder: Path) -> None:
    result = judged(folder, CLAIMS)
    assert int(result["listed"].sel(config="none").sum()) == 2 * 8 * 6
    assert int(result["listed_equal"].sum()) == 0, "float32 of vLLM beside float16 of a kernel's model"
    report = (folder / "s" / "report.txt").read_text()
    assert "p distances" in report and "listed log-probabilities" in report


def test_a_format_that_nothing_calibrates_is_not_refuted_by_it(folder: Path) -> None:
    """A provider that claims int4 may mean awq, of which nothing is known here."""
    result = judged(folder, {"honest": "int4", "other": "int4"})
    assert set(result["verdict"].values) == {"undecided"} and set(result["claim"].values) == {"int4"}
