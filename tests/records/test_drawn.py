"""Sampled records through the command line: what the verifier's rows say of the drawn tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdx
from tests.records import FILES
from tests.records.test_verdicts import models  # noqa: F401
from tests.sweeping import checkpoints
from tests.sweeping import qdx as run_qdx


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("drawn")
    done = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={FILES / 'vllm_chat_sampled_token_id.jsonl'}",
        "quant=none,awq", "repeats=1", "backend.threads=1", "report.formats=[txt]", "hydra.sweep.dir=s",
        *checkpoints(models), cwd=folder,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    return folder / "s"


def test_the_numbers_of_drawn_tokens_are_those_of_the_full_rows(sweep: Path) -> None:
    with qdx.open(sweep) as tree:
        replay = tree["replay"].to_dataset().isel(repeat=0).load()
        print(replay)
        stated = None
    with qdx.open(sweep / "producers.nc") as made:
        stated = made["stated"].to_dataset().load()
    print(stated[["temperature","top_p","top_k","min_p","decoding"]].to_dataframe().to_string())
    print(replay["drawn_logprob"].values[:, 0])
    print(replay["drawn_place"].values[:, 0])
    raise AssertionError
