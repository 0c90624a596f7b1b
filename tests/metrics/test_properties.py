"""What must hold of a metric for any rows: symmetry, zero on itself, sign, triangle, order, coarsening."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qdx.metrics
from qdx.plugins import plugin_of

FULL = ["l2", "max_abs", "rms_logit", "kl", "kl_reverse", "js", "total_variation", "rank", "margin"]
TRIANGLE = {
    "l2": qdx.metrics.l2,
    "max_abs": qdx.metrics.max_abs,
    "rms_logit": qdx.metrics.rms_logit,
    "total_variation": qdx.metrics.total_variation,
    "√js": lambda p, q: qdx.metrics.js(p, q).sqrt(),
}


@st.composite
def logit_rows(draw, count):
    """`count` tensors (2, vocab) of float16-like logits; later rows may be a small step from the first."""
    vocab = draw(st.integers(2, 12))
    value = st.floats(-30, 30, width=16)
    first = draw(st.lists(value, min_size=2 * vocab, max_size=2 * vocab))
    found = [torch.tensor(first, dtype=torch.float64).reshape(2, vocab)]
    for _ in range(count - 1):
        other = torch.tensor(
            draw(st.lists(value, min_size=2 * vocab, max_size=2 * vocab)), dtype=torch.float64
        )
        scale = draw(st.sampled_from([1.0, 1e-3, 1e-9]))
        found.append(found[0] + scale * other.reshape(2, vocab) if scale < 1 else other.reshape(2, vocab))
    return found


def arguments(name, logits_PV):
    on = plugin_of(getattr(qdx.metrics, name)).meta["on"]
    return logits_PV if on == "logit" else torch.log_softmax(logits_PV, -1)


@given(logit_rows(2))
@settings(max_examples=150, deadline=None)
def test_full_metrics_keep_their_sign_their_zero_and_their_claimed_symmetry(tensors):
    for name in FULL:
        metric = getattr(qdx.metrics, name)
        p, q = (arguments(name, x) for x in tensors)
        value = metric(p, q)
        assert value.isfinite().all() and (value >= 0).all(), name
        assert metric(p, p.clone()).tolist() == [plugin_of(metric).meta["on_self"]] * 2, name
        if plugin_of(metric).meta["symmetric"]:
            torch.testing.assert_close(value, metric(q, p), rtol=1e-12, atol=1e-300)
    assert torch.equal(qdx.metrics.kl_reverse(p, q), qdx.metrics.kl(q, p))


@given(logit_rows(3))
@settings(max_examples=150, deadline=None)
def test_metrics_proper_obey_the_triangle(tensors):
    for name, metric in TRIANGLE.items():
        a, b, c = (arguments(name, x) if name == "rms_logit" else torch.log_softmax(x, -1) for x in tensors)
        detour = metric(a, b) + metric(b, c)
        assert (metric(a, c) <= detour + 1e-12 + 1e-9 * detour).all(), name


@given(logit_rows(2))
@settings(max_examples=150, deadline=None)
def test_divergences_keep_the_order_that_theory_gives_them(tensors):
    p, q = (torch.log_softmax(x, -1) for x in tensors)
    tv, js, kl = qdx.metrics.total_variation(p, q), qdx.metrics.js(p, q), qdx.metrics.kl(p, q)
    slack = 1e-12
    assert (tv <= 1 + slack).all() and (js <= math.log(2) + slack).all()
    assert (2 * tv.square() <= kl + slack).all()  # Pinsker
    assert (tv.square() / 2 <= js + slack).all() and (js <= math.log(2) * tv + slack).all()  # Lin 1991


@given(logit_rows(2), st.data())
@settings(max_examples=150, deadline=None)
def test_merging_tokens_lowers_every_f_divergence(tensors, data):
    p, q = (torch.log_softmax(x, -1) for x in tensors)
    cut = data.draw(st.integers(1, p.shape[-1]))
    merged = [torch.cat([x[:, : cut - 1], x[:, cut - 1 :].logsumexp(-1, keepdim=True)], -1) for x in (p, q)]
    for name in ("kl", "kl_reverse", "js", "total_variation"):
        metric = getattr(qdx.metrics, name)
        assert (metric(*merged) <= metric(p, q) * (1 + 1e-9) + 1e-13).all(), name


@given(st.permutations(range(25)), st.permutations(range(25)), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_top_metrics_are_symmetric_and_take_their_value_on_themselves(first, other, k):
    p_id, q_id = (torch.tensor([x[:20]]) for x in (first, other))
    p, q = (
        torch.log_softmax(-0.1 * torch.arange(20.0, dtype=torch.float64)[None] * step, -1) for step in (1, 2)
    )
    for metric, options in (
        (qdx.metrics.seed_l2, {}),
        (qdx.metrics.top1, {}),
        (qdx.metrics.topk_overlap, {"k": k}),
    ):
        there = metric(p, q, p_id=p_id, q_id=q_id, **options)
        back = metric(q, p, p_id=q_id, q_id=p_id, **options)
        torch.testing.assert_close(there, back, equal_nan=True)
        assert metric(p, p, p_id=p_id, q_id=p_id, **options).item() == plugin_of(metric).meta["on_self"]


@pytest.mark.parametrize("name", FULL)
def test_positions_do_not_mix(name):
    generator = torch.Generator().manual_seed(0)
    p, q = (arguments(name, torch.randn(5, 33, dtype=torch.float64, generator=generator)) for _ in range(2))
    metric = getattr(qdx.metrics, name)
    alone = torch.cat([metric(p[i : i + 1], q[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(metric(p, q), alone, rtol=1e-13, atol=0.0)
