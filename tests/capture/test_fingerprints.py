"""row_hash against an implementation in Python's own integers, and what must and must not collide."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdx.capture import fingerprints, row_hash

M = 2**64 - 1
TYPES = {
    torch.float16: (16, torch.int16),
    torch.bfloat16: (16, torch.int16),
    torch.float32: (32, torch.int32),
}


def splitmix64(i: int) -> int:
    """Output i of the generator started at 0, as its authors publish it."""
    z = (i + 1) * 0x9E3779B97F4A7C15 & M
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & M
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & M
    return z ^ (z >> 31)


def hash_of(bits: list[int]) -> int:
    return sum((splitmix64(i) | 1) * value for i, value in enumerate([len(bits), *bits])) & M


def from_bits(bits: list[int], dtype: torch.dtype) -> torch.Tensor:
    width, integer = TYPES[dtype]
    signed = [b - (1 << width) if b >> (width - 1) else b for b in bits]
    return torch.tensor([signed], dtype=integer).view(dtype)


def unsigned(hashes: torch.Tensor) -> list[int]:
    return [h & M for h in hashes.tolist()]


def test_splitmix64_is_the_published_generator() -> None:
    # the first outputs for seed 0, from the reference C code (prng.di.unimi.it/splitmix64.c)
    assert [splitmix64(i) for i in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("module", [fingerprints], ids=lambda m: m.__name__)
def test_the_vectors_of_the_docstrings_hold(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted >= 2 and found.failed == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bit_pattern_hashes_as_python_integers_do(data) -> None:
    dtype = data.draw(st.sampled_from(list(TYPES)))
    bits = data.draw(st.lists(st.integers(0, 2 ** TYPES[dtype][0] - 1), min_size=1, max_size=70))
    assert unsigned(row_hash(from_bits(bits, dtype))) == [hash_of(bits)]


def test_a_long_row_and_many_rows_hash_as_python_integers_do() -> None:
    rows_PV = (torch.randn(23, 50_001, generator=torch.Generator().manual_seed(1)) * 3).half()
    bits_PV = rows_PV.numpy().view(np.uint16)
    expected = [hash_of(bits_PV[p].tolist()) for p in (0, 20, 22)]  # row 20 begins a block
    hashes = unsigned(row_hash(rows_PV))
    assert [hashes[p] for p in (0, 20, 22)] == expected
    assert unsigned(row_hash(rows_PV[5:6])) == [hashes[5]]  # alone as among others
    assert unsigned(row_hash(rows_PV.T.contiguous().T)) == hashes  # whatever the memory layout


@pytest.mark.parametrize("dtype", TYPES)
def test_one_flipped_bit_anywhere_changes_the_hash(dtype) -> None:
    width, integer = TYPES[dtype]
    row = torch.randn(1, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    flips = []
    for column in range(40):
        for bit in range(width):
            other = row.clone()
            other.view(integer)[0, column] ^= torch.tensor(1 << bit if bit < width - 1 else -(1 << bit)).to(
                integer
            )
            flips.append(other)
    hashes = unsigned(row_hash(torch.cat([row, *flips])))
    assert len(set(hashes)) == 40 * width + 1


def test_order_sign_of_zero_and_length_count() -> None:
    def h(values: list[float]) -> int:
        return unsigned(row_hash(torch.tensor([values], dtype=torch.float16)))[0]

    assert h([1.0, 2.0]) != h([2.0, 1.0])
    assert h([0.0, 1.0]) != h([-0.0, 1.0])
    assert h([1.0]) != h([1.0, 0.0])


@pytest.mark.parametrize(
    "rows", [torch.zeros(3), torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.int16)]
)
def test_what_cannot_be_hashed_is_refused(rows) -> None:
    with pytest.raises(ValueError, match="row_hash takes"):
        row_hash(rows)
