"""Triton attention as a card computes it: near the exact value, in the order of its machine code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qdx.errors import QdxError
from qdx.kernels import rotary
from qdx.kernels.triton_attention import Batch, attention, divide, exp, join

HEADS, KV_HEADS = 6, 2


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def exactly(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    group = q.shape[1] // keys.shape[1]
    wide = [part.double().repeat_interleave(group, 1) for part in (keys, values)]
    score = torch.einsum("thd,khd->htk", q.double(), wide[0]) / 8
    position = torch.arange(len(keys) - len(q), len(keys))
    score = score.masked_fill(torch.arange(len(keys))[None] > position[:, None], -torch.inf)
    return torch.einsum("htk,khd->thd", score.softmax(-1), wide[1])


@pytest.mark.parametrize(
    ("queries", "keys", "segments"),
    [(9, 9, False), (33, 70, False), (1, 45, True), (1, 300, True), (7, 20, True)],
)
def test_attention_is_near_the_exact_value(queries: int, keys: int, segments: bool) -> None:
    batch = Batch((queries,))
    assert batch.in_segments(HEADS, KV_HEADS) == segments
    q, k, v = drawn(queries, HEADS, 64), drawn(keys, KV_HEADS, 64, seed=1), drawn(keys, KV_HEADS, 64, seed=2)
    out = attention(q, [k], [v], batch, 0.125)
    # one rounding of the output and of each probability, to 11 bits
    assert (out.double() - exactly(q, k, v)).abs().max() < 2.0**-9


def test_sequences_do_not_see_each_other() -> None:
    q, k, v = drawn(10, HEADS, 64), drawn(30, KV_HEADS, 64, seed=1), drawn(30, KV_HEADS, 64, seed=2)
    together = attention(q, [k[:12], k[12:]], [v[:12], v[12:]], Batch((1, 9)), 0.125)
    assert torch.equal(together[1:], attention(q[1:], [k[12:]], [v[12:]], Batch((9,)), 0.125))


def test_two_ways_through_the_keys_differ_in_last_bits_alone() -> None:
    q, k, v = drawn(1, HEADS, 64), drawn(200, KV_HEADS, 64, seed=1), drawn(200, KV_HEADS, 64, seed=2)
    cut = attention(q, [k], [v], Batch((1,)), 0.125)
    whole = attention(q, [k], [v], Batch((1,), most_sequences=0), 0.125)
    assert not torch.equal(cut, whole)
    assert (cut.float() - whole.float()).abs().max() < 2.0**-9


@pytest.mark.parametrize(
    ("queries", "most", "cut"),
    [
        ((1,), 64, True),
        ((8,), 64, True),
        ((9,), 64, False),
        ((1,) * 64, 64, True),  # two heads of keys: 64 thread blocks fill the card
        ((1,) * 65, 128, False),
        ((6,) * 11, 64, False),  # 66 tokens, memory for 64
        ((6,) * 10, 64, True),
        ((6,) * 33, 512, False),  # two thread blocks each
        ((1, 1, 1), 2, False),
    ],
)
def test_when_keys_are_cut(queries: tuple[int, ...], most: int, cut: bool) -> None:
    assert Batch(queries, most).in_segments(HEADS, KV_HEADS) == cut


def test_joining_divides_the_halves_of_a_head_by_sums_of_two_orders() -> None:
    numbers = np.random.default_rng(1)
    maximum = numbers.standard_normal((50, 16), np.float32)
    total = 1 + numbers.random((50, 16), np.float32)
    same = np.repeat(numbers.standard_normal((50, 16, 1), np.float32), 64, axis=2)
    joined = join(maximum, total, same)
    assert (joined[:, :32] == joined[:, :1]).all() and (joined[:, 32:] == joined[:, 32:33]).all()
    assert (joined[:, 0] != joined[:, 32]).any()
    exact = np.exp(maximum - maximum.max(1, keepdims=True), dtype=np.float64)
    wanted = (exact * same[..., 0]).sum(1) / (exact * total).sum(1)
    assert np.abs(joined[:, 0] - wanted).max() < 1e-5


def test_segments_without_a_key_count_for_nothing() -> None:
    maximum = np.full((1, 16), -np.inf, np.float32)
    maximum[0, 3] = 2
    total, weighted = np.ones((1, 16), np.float32), np.full((1, 16, 64), 7, np.float32)
    weighted[0, 3] = 5
    assert (join(maximum, total, weighted) == 5).all()
    assert (join(np.full_like(maximum, -np.inf), total, weighted) == 0).all()


def test_exp_and_division_are_the_cards_approximations() -> None:
    x = np.linspace(-80, 5, 4001, dtype=np.float32)
    assert np.abs(exp(x) / np.exp(x.astype(np.float64)) - 1).max() < 2e-5
    assert exp(np.array([-np.inf, 0], np.float32)).tolist() == [0, 1]
    a, b = np.float32([3, 1e30, 1e-30]), np.float32([7, 2.0**127, 2.0**-130])
    assert np.abs(divide(a, b) / (a.astype(np.float64) / b) - 1).max() < 3e-7


def test_what_is_not_known_bit_for_bit_is_refused() -> None:
    wide = torch.zeros(1, 2, 128, dtype=torch.float16)
    with pytest.raises(QdxError, match="heads of 64, got float16 with heads of 128"):
        attention(wide, [wide], [wide], Batch((1,)), 0.125)
    with pytest.raises(QdxError, match="got bfloat16"):
        attention(wide[..., :64].bfloat16(), [wide], [wide], Batch((1,)), 0.125)


def test_cosines_and_sines_are_within_two_units_of_the_exact_ones() -> None:
    x = (np.random.default_rng(0).random(20000) * 100_000).astype(np.float32)
    for own, exact in (
        (rotary.cosf(x), np.cos(x.astype(np.float64))),
        (rotary.sinf(x), np.sin(x.astype(np.float64))),
    ):
        assert (np.abs(own - exact) <= 2 * np.spacing(np.abs(exact).astype(np.float32))).mean() > 0.9999
        assert np.abs(own - exact).max() < 2.0**-22
    with pytest.raises(QdxError, match="known up to 105615"):
        rotary.cosf(np.array([2e5], np.float32))


def test_the_rotary_table_is_rounded_once() -> None:
    table = rotary.table(100_000.0, 64, np.array([0, 1, 500]), torch.float16)
    assert table.shape == (3, 64) and table.dtype == torch.float16
    assert table[0].tolist() == [1.0] * 32 + [0.0] * 32
    assert (
        table[1, 0] == torch.tensor(np.cos(1.0)).half() and table[2, 32] == torch.tensor(np.sin(500.0)).half()
    )
