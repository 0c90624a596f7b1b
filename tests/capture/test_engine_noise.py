"""What vLLM 0.33.0's second model runner drew on a GPU, by the noise that is computed here.

`tests/records/seeded/README.md` says how the file was recorded: the engine's own kernels were called with
chosen seeds and positions, and its sampler's input and output were kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdx.capture import noise
from qdx.capture.noise_names import ENGINES
from qdx.capture.sampled import Sampler
from qdx.capture.seeded import margins

FILE = Path(__file__).parents[1] / "records" / "seeded" / "gpu" / "noise.npz"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recorded() -> Iterator[Any]:
    with np.load(FILE) as data:
        yield data


def bits_of(data: Any) -> torch.Tensor:
    ids = torch.from_numpy(data["noise_id"].astype(np.int64))
    pairs = zip(data["noise_seed"].tolist(), data["noise_position"].tolist(), strict=True)
    return torch.stack([noise.murmur_bits(seed, position, ids) for seed, position in pairs])


def test_the_file_says_which_engine_and_runner_wrote_it(recorded: Any) -> None:
    stated = json.loads(str(recorded["stated"]))
    assert f"vllm-{stated['vllm']}" == ENGINES["vllm-0.33.0-v2"]
    assert stated["runner"].startswith("vllm.v1.worker.gpu.model_runner.")
    assert stated["gpu"]


def test_bits_and_uniform_numbers_are_the_engines_own(recorded: Any) -> None:
    bits = bits_of(recorded)
    assert bits.shape == (8, 2048)
    assert np.array_equal(bits.numpy(), recorded["noise_hash"].astype(np.int64))
    assert np.array_equal(noise.uniform_of(bits).numpy(), recorded["noise_uniform"])


def test_the_engines_noise_is_within_the_tolerance_and_not_equal(recorded: Any) -> None:
    here = noise.gumbel_of(noise.uniform_of(bits_of(recorded))).numpy()
    off = np.abs(here - recorded["noise_value"].astype(np.float64))
    assert 0 < off.max() < float(noise.tolerance(torch.zeros(1, dtype=torch.float64)))


def test_flat_rows_give_the_tokens_that_the_engines_kernel_drew(recorded: Any) -> None:
    tokens = recorded["pure_token"]
    ids = torch.arange(len(tokens))
    for seed, at, token in list(
        zip(recorded["pure_seed"].tolist(), recorded["pure_position"].tolist(), tokens.tolist(), strict=True)
    )[:600]:
        here = noise.gumbel_of(noise.uniform_of(noise.murmur_bits(seed, at, ids)))
        assert float(here.max() - here[token]) <= float(noise.tolerance(torch.zeros(1, dtype=torch.float64)))


def test_every_token_of_the_engine_is_the_one_that_its_row_and_its_seed_make(recorded: Any) -> None:
    """With and without truncation: margins are 0, and they are not by another position's noise."""
    rows = torch.from_numpy(recorded["row"])
    samplers = dict(zip(recorded["answer_seed"].tolist(), recorded["answer_sampler"].tolist(), strict=True))
    right, shifted = [], []
    for i in range(len(rows)):
        seed, at = int(recorded["row_seed"][i]), int(recorded["row_position"][i])
        temperature, top_k, top_p, min_p = samplers[seed]
        sampler = Sampler(temperature, int(top_k), top_p, min_p)
        token = torch.tensor([int(recorded["row_token"][i])])
        for found, position in ((right, at + 1), (shifted, at + 2)):
            added = noise.murmur_gumbel(seed, torch.tensor([position]), 0, rows.shape[1], CPU)
            found.append(float(margins(rows[i : i + 1], token, sampler, added)))
    assert len(right) > 500 and max(right) == 0
    assert np.mean(np.array(shifted) == 0) < 0.6
