"""The sketch: its matrix by an independent implementation, blocks, and what it preserves."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from qdx.capture import Sketcher
from qdx.capture.fingerprints import signs

M = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & M
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & M
    return z ^ (z >> 31)


def sign(seed: int, row: int, column: int) -> int:
    return -1 if mix(mix(mix(seed + GOLDEN & M) + row * GOLDEN & M) + column * GOLDEN & M) >> 63 else 1


def rows(count: int, vocab: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.randn(count, vocab, generator=torch.Generator().manual_seed(3)) * 3).to(dtype)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_signs_are_the_hash_of_seed_row_and_column(seed) -> None:
    sign_KV = signs(40_000, 3, seed, torch.device("cpu"))
    for row in range(3):
        for column in (0, 1, 2, 77, 32_767, 32_768, 39_999):
            assert int(sign_KV[row, column]) == sign(seed, row, column)


def test_published_vector_of_signs() -> None:
    sign_KV = signs(64, 64, 0, torch.device("cpu"))
    packed = [sum(1 << v for v in range(64) if sign_KV[c, v] > 0) for c in range(3)]
    assert packed == [sum(1 << v for v in range(64) if sign(0, c, v) > 0) for c in range(3)]
    assert [f"{p:016x}" for p in packed] == ["075300957227e7df", "e5da0fa32136734a", "c891d235c13420ea"]


def test_signs_are_balanced_and_rows_unlike() -> None:
    sign_KV = signs(49_152, 64, 0, torch.device("cpu")).to(torch.float64)
    correlation_KK = (sign_KV @ sign_KV.T / 49_152).fill_diagonal_(0)
    assert sign_KV.mean(1).abs().max() < 5 / 49_152**0.5
    assert correlation_KK.abs().max() < 5 / 49_152**0.5


def test_a_sketch_is_the_exact_value_rounded() -> None:
    vocab = 5_001
    row = rows(1, vocab)
    exact_V = [Fraction(float(z)) for z in row[0]]
    mean = sum(exact_V) / vocab
    expected = [
        sum(sign(0, c, v) * (z - mean) for v, z in enumerate(exact_V)) / Fraction(2) for c in range(4)
    ]
    sketch = Sketcher(vocab, components=4)(row)[0]
    assert sketch.dtype == torch.float32
    assert sketch.tolist() == [float(np.float32(float(value))) for value in expected]


def test_blocks_threads_and_neighbours_change_no_bit(monkeypatch) -> None:
    rows_PV = rows(37, 20_000)
    sketcher = Sketcher(20_000)
    whole = sketcher(rows_PV)
    one_by_one = torch.cat([sketcher(rows_PV[p : p + 1]) for p in range(37)])
    monkeypatch.setattr("qdx.capture.fingerprints._COLUMNS", 777)
    other_blocks = sketcher(rows_PV)
    assert torch.equal(whole, one_by_one)
    assert torch.equal(whole, other_blocks)


def test_a_constant_added_to_all_logits_is_invisible() -> None:
    rows_PV = rows(4, 1_000, torch.float32)
    shifted = Sketcher(1_000)(rows_PV + 5.0)
    torch.testing.assert_close(shifted, Sketcher(1_000)(rows_PV), rtol=0, atol=1e-4)


def test_distances_are_preserved_in_expectation() -> None:
    vocab, k = 3_000, 64
    a, b = rows(2, vocab, torch.float32).double()
    centred = (a - a.mean()) - (b - b.mean())
    true = float(centred @ centred)
    estimates = torch.tensor(
        [
            float(torch.diff(Sketcher(vocab, k, seed)(torch.stack([a, b])).double(), dim=0).square().sum())
            for seed in range(60)
        ]
    )
    spread = (2 / k) ** 0.5  # of one estimate, relative
    assert abs(float(estimates.mean()) / true - 1) < 4 * spread / 60**0.5
    assert 0.6 * spread < float(estimates.std()) / true < 1.5 * spread


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="10"):
        Sketcher(10)(torch.zeros(1, 11))
