"""Fingerprints of hidden states against their definitions, computed another way."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from qdx.errors import QdxError
from qdx.metrics import projection, toploc_exponent, toploc_mantissa


def states(seed, step=0.0, positions=6, hidden=300):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(positions, hidden, dtype=torch.float64, generator=generator)
    return p, p + step * torch.randn(p.shape, dtype=torch.float64, generator=generator)


def parts(value):
    """Sign with exponent, and mantissa, of a number as a bfloat16: by division, not by bits."""
    rounded = torch.tensor(value, dtype=torch.float32).to(torch.bfloat16).item()
    fraction, exponent = math.frexp(abs(rounded))  # 0.5 ≤ fraction < 1
    return (math.copysign(1, rounded), exponent), round((2 * fraction - 1) * 128)


def toploc(p, q, k):
    """Exponent mismatches and the mantissa errors of one row, in plain Python."""

    def first(row):
        rounded = torch.tensor(row).to(torch.bfloat16).abs().tolist()
        return sorted(range(len(row)), key=lambda i: (-rounded[i], i))[:k]

    proof = {i: parts(p[i]) for i in first(p)}
    mismatches, errors = 0, []
    for i in first(q):
        head, mantissa = parts(q[i])
        if i in proof and proof[i][0] == head:
            errors.append(abs(proof[i][1] - mantissa))
        else:
            mismatches += 1
    return mismatches, errors


@pytest.mark.parametrize("step", [1e-3, 0.05, 1.0])
def test_toploc_statistics_are_those_of_plain_python(step):
    p, q = states(1, step)
    expected = [toploc(a, b, 40) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    assert toploc_exponent(p, q, topk=40).tolist() == [m for m, _ in expected]
    assert any(m for m, _ in expected) or step == 1e-3
    torch.testing.assert_close(
        toploc_mantissa(p, q, topk=40), torch.tensor([statistics.mean(e) for _, e in expected]).double()
    )
    assert toploc_mantissa(p, q, topk=40, median=True).tolist() == [statistics.median(e) for _, e in expected]


def test_equal_states_have_no_mismatch_and_opposite_ones_no_match():
    p, _ = states(2)
    assert toploc_exponent(p, p).tolist() == toploc_mantissa(p, p).tolist() == [0.0] * 6
    assert toploc_exponent(p, -p).tolist() == [128.0] * 6
    assert toploc_mantissa(p, -p).isnan().all()


@pytest.mark.parametrize("topk", [0, 301])
def test_more_elements_than_there_are_cannot_be_compared(topk):
    p, q = states(3)
    for metric in (toploc_exponent, toploc_mantissa):
        with pytest.raises(QdxError, match=f"topk={topk}: a hidden state has 300 elements"):
            metric(p, q, topk=topk)


def test_a_projection_is_linear_and_its_square_the_distance_on_average():
    p, q = states(4, 0.1)
    value = projection(p, q)
    torch.testing.assert_close(projection(p, p + 3 * (q - p)), 3 * value)
    unit = torch.zeros(1, 300, dtype=torch.float64)
    unit[0, 7] = 2.0
    # Every entry of R is ±1/√k: a step along an axis keeps its length exactly.
    assert projection(unit, 0 * unit, components=5).item() == pytest.approx(2.0)
    squares = torch.stack([projection(p, q, components=64, seed=seed).square() for seed in range(200)])
    true = (p - q).square().sum(-1)
    # Var of ‖xR‖² is at most 2‖x‖⁴/k: the mean of 200 · 64 lies within 5 standard errors.
    assert ((squares.mean(0) / true - 1).abs() < 5 * math.sqrt(2 / (200 * 64))).all()


def test_a_projection_without_components_is_refused():
    p, q = states(5)
    with pytest.raises(QdxError, match=r"projection\.components=0: must be at least 1"):
        projection(p, q, components=0)
