"""The noise of a seed against independent implementations, and what is said of engines not known."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from scipy import stats

from qdx.capture import noise
from qdx.capture.noise_names import ENGINES, check_engine, require_known
from qdx.capture.sampled import Sampler
from qdx.capture.seeded import margins
from qdx.errors import QdxError

CPU = torch.device("cpu")


def murmur3(data: bytes, seed: int = 0) -> int:
    """Murmur3 x86_32 of whole words, byte by byte as its author published it."""
    h = seed
    for (k,) in struct.iter_unpack("<I", data):
        k = k * 0xCC9E2D51 % 2**32
        k = (k << 15 | k >> 17) % 2**32
        h ^= k * 0x1B873593 % 2**32
        h = ((h << 13 | h >> 19) % 2**32 * 5 + 0xE6546B64) % 2**32
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def test_the_reference_here_gives_the_published_values_of_murmur3() -> None:
    assert murmur3(b"test") == 0xBA6BD213
    assert murmur3(b"test", 0x9747B28C) == 0x704B81DC
    assert murmur3(b"\x00\x00\x00\x00") == 0x2362F9DE


@pytest.mark.parametrize("seed", [0, 1, -5, 2**40 + 3, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("position", [0, 77, 2_000_000])
def test_the_bits_are_murmur3_of_seed_position_and_token(seed: int, position: int) -> None:
    ids = torch.cat([torch.arange(200), torch.arange(151_800, 151_936)])
    wanted = [murmur3(struct.pack("<qII", seed, position, token)) for token in ids.tolist()]
    assert noise.murmur_bits(seed, position, ids).tolist() == wanted


def test_a_uniform_number_is_the_nearest_float32_of_all_32_bits() -> None:
    bits = torch.cat(
        [torch.arange(1000), 2**32 - 1 - torch.arange(1000), torch.randint(0, 2**32, (100_000,))]
    )
    u = noise.uniform_of(bits)
    assert u.dtype == torch.float32 and float(u.min()) > 0
    exact = (bits.numpy().astype(np.float64) + 0.5) * 2.0**-32
    assert np.array_equal(u.numpy(), exact.astype(np.float32))


def test_the_noise_is_gumbels_and_as_far_from_the_exact_one_as_float32_makes_it() -> None:
    bits = torch.randint(0, 2**32, (200_000,), generator=torch.Generator().manual_seed(1))
    u = noise.uniform_of(bits)
    value = noise.gumbel_of(u).numpy()
    assert stats.kstest(value, "gumbel_r").pvalue > 1e-3
    exact = -np.log(-np.log1p(-u.numpy().astype(np.float64)))
    winning = u.numpy() < 0.9  # above, 1 - u has few bits left in the engine, and no token wins by it
    assert np.abs(value - exact)[winning].max() < 4e-6


def test_an_engines_float32_stays_within_the_tolerance() -> None:
    """vLLM's formula in float32, each operation rounded, against the one here."""
    u = noise.uniform_of(
        torch.randint(0, 2**32, (500_000,), generator=torch.Generator().manual_seed(2))
    ).numpy()
    f = np.float32
    polynomial = f(1 / 8)
    for n in range(7, 0, -1):
        polynomial = f(1.0 / n) + u * polynomial
    direct = -np.log(np.maximum(f(1) - u, f(2.0**-24)))
    engine = -np.log(np.where(u < f(0.25), u * polynomial, direct))
    assert engine.dtype == np.float32
    scaled = np.random.default_rng(3).normal(0, 20, len(u)).astype(np.float32)
    off = np.abs(
        (scaled + engine).astype(np.float64) - (scaled + noise.gumbel_of(torch.from_numpy(u)).numpy())
    )
    allowed = noise.tolerance(torch.from_numpy(scaled.astype(np.float64))).numpy()
    assert (off < allowed / 4).all() and off.max() > 1e-6  # it is needed, and leaves room for a card


def test_the_finalizer_is_the_published_split_mix_64() -> None:
    """Of the seed 1234567: the first two values of java.util.SplittableRandom and of its C version."""
    gamma = noise._signed(0x9E3779B97F4A7C15)
    state = 1234567 + torch.tensor([1, 2]) * gamma
    found = [value % 2**64 for value in noise.split_mix(state).tolist()]
    assert found == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize("seed", [0, 11, -5, 2**40 + 3])
def test_numbers_of_the_first_runner_are_those_of_torchs_generator(seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = [int(torch.randint(0, 2**31, (1,), generator=generator)) for _ in range(6)]
    found = noise.twister_gumbel(seed, torch.tensor([40, 45]), 40, 300, CPU)
    for row, number in zip(found, (numbers[0], numbers[5]), strict=True):
        assert torch.equal(row, noise.split_mix_gumbel(number, 300, CPU))


def test_the_noise_of_the_first_runner_is_gumbels() -> None:
    value = noise.twister_gumbel(5, torch.arange(20), 0, 2000, CPU)
    assert stats.kstest(value.ravel().numpy(), "gumbel_r").pvalue > 1e-3


def test_the_second_runner_counts_the_position_of_the_input_token() -> None:
    ids = torch.arange(50)
    found = noise.murmur_gumbel(9, torch.tensor([12, 13]), 12, 50, CPU)
    for row, position in zip(found, (11, 12), strict=True):
        assert torch.equal(row, noise.gumbel_of(noise.uniform_of(noise.murmur_bits(9, position, ids))))


def test_noise_that_is_not_known_is_refused_in_one_line_that_says_which_is() -> None:
    with pytest.raises(QdxError) as error:
        require_known("vllm-0.31.0-v2")
    assert "\n" not in str(error.value) and all(name in str(error.value) for name in ENGINES)
    assert set(ENGINES) == set(noise.MAKERS)


@pytest.mark.parametrize(
    ("fingerprint", "good"),
    [("", True), ("vllm-0.33.0-ab12cd34", True), ("vllm-0.33.0-tp2-ab12cd34", True), ("vllm-0.33.0", True),
     ("vllm-0.32.0-ab12cd34", False), ("vllm-0.33.01-x", False), ("fp_123", False)],
)  # fmt: skip
def test_a_fingerprint_of_another_engine_is_refused(fingerprint: str, good: bool) -> None:
    if good:
        check_engine("vllm-0.33.0-v2", fingerprint)
        return
    with pytest.raises(QdxError, match=r"vllm-0\.33\.0"):
        check_engine("vllm-0.33.0-v2", fingerprint)


@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(0.7, 0, 0.8), Sampler(1.3, 7), Sampler(1.0, 0, 1.0, 0.2)], ids=str
)
def test_a_margin_is_what_a_token_lacks_of_the_one_that_the_noise_chooses(sampler: Sampler) -> None:
    numbers = np.random.default_rng(4)
    rows = numbers.normal(0, 2, (30, 40)).astype(np.float32)
    rows[0] = np.round(rows[0])  # ties at the edge
    added = numbers.gumbel(size=rows.shape)
    p = np.exp((rows / np.float32(sampler.temperature)).astype(np.float64))
    for i, row in enumerate(rows):
        scaled = (row / np.float32(sampler.temperature)).astype(np.float64)
        order = np.argsort(-scaled, kind="stable")
        kept = order[scaled[order] >= scaled.max() + math.log(sampler.min_p)] if sampler.min_p else order
        kept = kept[: sampler.top_k] if sampler.top_k else kept
        before = p[i][kept].cumsum() - p[i][kept]
        kept = kept[before < sampler.top_p * p[i][kept].sum()] if sampler.top_p < 1 else kept
        best = (scaled + added[i])[kept].max()
        wanted = np.maximum(best - (scaled + added[i]), 0)
        outside = np.setdiff1d(order, kept)
        wanted[outside] = np.maximum(wanted[outside], scaled[kept].min() - scaled[outside])
        found = margins(
            torch.from_numpy(np.tile(row, (40, 1))), torch.arange(40), sampler,
            torch.from_numpy(np.tile(added[i], (40, 1))),
        ).numpy()  # fmt: skip
        assert np.allclose(found, wanted * sampler.temperature, atol=2e-4)
        assert found[kept[(scaled + added[i])[kept].argmax()]] == 0
        assert (found == 0).sum() == 1 or i == 0
