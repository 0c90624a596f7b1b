"""Every metric against a closed form and against an implementation that this project did not write."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import special, stats
from scipy.spatial import distance

import qdx.metrics
from qdx.errors import QdxError
from qdx.plugins import build, plugin_of

CONF = Path(__file__).parents[2] / "conf" / "metric"
FULL = ["l2", "max_abs", "rms_logit", "kl", "kl_reverse", "js", "total_variation", "rank", "margin"]
TOP = ["seed_l2", "top1", "topk_overlap"]
HIDDEN = ["projection", "toploc_exponent", "toploc_mantissa"]
INF = math.inf


def rows(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def normal_rows(seed, positions=7, vocab=311, scale=4.0):
    generator = torch.Generator().manual_seed(seed)
    z_PV = torch.randn(positions, vocab, dtype=torch.float64, generator=generator) * scale
    return z_PV, torch.log_softmax(z_PV, -1)


def near_rows(step, seed=3, positions=4, vocab=401):
    z_PV, p_PV = normal_rows(seed, positions, vocab)
    noise_PV = torch.randn(z_PV.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    return p_PV, torch.log_softmax(z_PV + step * noise_PV, -1)


def test_every_metric_is_registered_with_what_the_report_prints_and_has_its_yaml():
    assert (
        sorted(qdx.metrics.__all__)
        == sorted(path.stem for path in CONF.glob("*.yaml"))
        == sorted(FULL + TOP + HIDDEN)
    )
    for name in qdx.metrics.__all__:
        node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        assert list(node) == [name] and node[name]["_target_"] == f"qdx.metrics.{name}"
        metric = build(node[name])
        record = plugin_of(metric)
        assert (record.kind, record.name) == ("metric", name)
        assert record.meta["units"] in ("1", "nat") and record.meta["formula"]
        assert "\n" not in record.meta["formula"]
        assert record.meta["on"] == (
            "hidden"
            if name in HIDDEN
            else "top"
            if name in TOP
            else "logit"
            if name in ("rms_logit", "rank", "margin")
            else "logprob"
        )


# Closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (0.9, 0.1), (0.3, 0.3), (1e-9, 0.5)])
def test_two_bernoullis_have_their_closed_forms(a, b):
    p, q = rows([a, 1 - a]), rows([b, 1 - b])
    kl = a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
    reverse = b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a))
    m = (a + b) / 2
    entropy = lambda x: -x * math.log(x) - (1 - x) * math.log(1 - x)  # noqa: E731
    steps = [math.log(a) - math.log(b), math.log(1 - a) - math.log(1 - b)]
    for name, expected in {
        "kl": kl,
        "kl_reverse": reverse,
        "js": entropy(m) - (entropy(a) + entropy(b)) / 2,
        "total_variation": abs(a - b),
        "l2": math.hypot(*steps),
        "max_abs": max(map(abs, steps)),
        "rms_logit": abs(steps[0] - steps[1]) / 2,
    }.items():
        got = getattr(qdx.metrics, name)(p, q)
        assert got.shape == (1,) and got.dtype == torch.float64
        assert got.item() == pytest.approx(expected, rel=1e-12, abs=1e-15), name


def test_rank_and_margin_count_strictly_greater_logits_and_give_ties_to_the_lowest_id():
    a = torch.tensor([[5.0, 5.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[2.0, 9.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    assert qdx.metrics.rank(a, b).tolist() == [
        2.0,
        0.0,
    ]  # id 0 wins the tie: 9 and 3 lie above its 2, the other 2 does not
    assert qdx.metrics.margin(a, b).tolist() == [7.0, 0.0]
    assert qdx.metrics.rank(b, a).tolist() == [0.0, 3.0]
    assert qdx.metrics.margin(b, a).tolist() == [0.0, 3.0]


def ids(*lists):
    return torch.tensor(lists, dtype=torch.int64)


def test_seed_l2_takes_the_ids_that_both_first_fives_list_and_nothing_else():
    p_id = ids([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    q_id = ids([2, 1, 9, 8, 7, 6], [9, 8, 7, 11, 12, 1], [1, 2, 3, 4, 5, 6])
    p = torch.tensor([[-1.0, -2, -3, -4, -5, -6]] * 3, dtype=torch.float64)
    q = torch.tensor([[-1.5, -2.25, -3, -4, -5, -9]] * 3, dtype=torch.float64)
    got = qdx.metrics.seed_l2(p, q, p_id=p_id, q_id=q_id)
    assert got[0].item() == pytest.approx(math.hypot(-2 - -1.5, -1 - -2.25), rel=1e-15)
    assert got[1].isnan()  # 1 and 6 are shared, but only by the sixth place
    assert got[2].item() == pytest.approx(math.hypot(0.5, 0.25), rel=1e-15)


def test_top1_and_topk_overlap_look_at_ids_only():
    p_id, q_id = ids([3, 1, 2], [3, 1, 2], [3, 1, 2]), ids([3, 2, 9], [1, 3, 2], [7, 8, 9])
    zero = torch.zeros(3, 3, dtype=torch.float64)
    assert qdx.metrics.top1(zero, zero, p_id=p_id, q_id=q_id).tolist() == [0.0, 1.0, 1.0]
    overlap = qdx.metrics.topk_overlap(zero, zero, p_id=p_id, q_id=q_id, k=3)
    assert overlap.tolist() == pytest.approx([2 / 3, 1.0, 0.0])
    assert qdx.metrics.topk_overlap(zero, zero, p_id=p_id, q_id=q_id, k=2).tolist() == [0.5, 1.0, 0.0]


def test_asking_for_more_ids_than_were_kept_says_which_setting_to_change():
    p, p_id = torch.zeros(1, 4, dtype=torch.float64), ids([0, 1, 2, 3])
    with pytest.raises(QdxError, match=r"k=20, but 4 ids a row were kept: change it or capture\.k"):
        qdx.metrics.topk_overlap(p, p, p_id=p_id, q_id=p_id)
    with pytest.raises(QdxError, match=r"first 5 ids, but 4"):
        qdx.metrics.seed_l2(p, p, p_id=p_id, q_id=p_id)


# Independent implementations --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_full_metrics_agree_with_scipy_torch_and_numpy(scale):
    a_PV, p_PV = normal_rows(1, scale=scale)
    b_PV, q_PV = normal_rows(2, scale=scale)
    a, b, p, q = (x.numpy() for x in (a_PV, b_PV, p_PV, q_PV))
    best = a.argmax(-1)
    expected = {
        "kl": stats.entropy(np.exp(p), np.exp(q), axis=-1),
        "kl_reverse": special.rel_entr(np.exp(q), np.exp(p)).sum(-1),
        "js": distance.jensenshannon(np.exp(p), np.exp(q), axis=-1) ** 2,
        "total_variation": [distance.cityblock(x, y) / 2 for x, y in zip(np.exp(p), np.exp(q), strict=True)],
        "l2": [distance.euclidean(x, y) for x, y in zip(p, q, strict=True)],
        "max_abs": [distance.chebyshev(x, y) for x, y in zip(p, q, strict=True)],
        "rms_logit": np.std(a - b, axis=-1),
        "rank": [stats.rankdata(-row, method="min")[x] - 1 for row, x in zip(b, best, strict=True)],
        "margin": b.max(-1) - b[np.arange(len(b)), best],
    }
    for name, value in expected.items():
        rows_ = (a_PV, b_PV) if name in ("rms_logit", "rank", "margin") else (p_PV, q_PV)
        np.testing.assert_allclose(getattr(qdx.metrics, name)(*rows_), value, rtol=1e-11, err_msg=name)
    torch.testing.assert_close(
        qdx.metrics.kl(p_PV, q_PV),
        torch.nn.functional.kl_div(q_PV, p_PV, reduction="none", log_target=True).sum(-1),
        rtol=1e-11,
        atol=0.0,
    )
    torch.testing.assert_close(
        qdx.metrics.l2(p_PV, q_PV), torch.nn.functional.pairwise_distance(p_PV, q_PV, eps=0.0)
    )


def test_top_metrics_agree_with_python_sets_and_dictionaries():
    z_PV, p_PV = normal_rows(5, positions=40, vocab=30, scale=1.0)
    q_PV = torch.log_softmax(0.5 * z_PV + torch.roll(z_PV, 1, 0), -1)
    (p, p_id), (q, q_id) = p_PV.topk(20), q_PV.topk(20)
    seed, overlap, differs = [], [], []
    for i in range(40):
        first, other = (
            dict(zip(p_id[i].tolist(), p[i].tolist(), strict=True)),
            dict(zip(q_id[i].tolist(), q[i].tolist(), strict=True)),
        )
        shared = set(list(first)[:5]) & set(list(other)[:5])
        seed.append(math.sqrt(sum((first[x] - other[x]) ** 2 for x in shared)) if shared else math.nan)
        overlap.append(len(set(first) & set(other)) / 20)
        differs.append(float(next(iter(first)) != next(iter(other))))
    assert 0 < sum(map(math.isnan, seed)) < 40 and 0 < sum(differs) < 40  # both cases occur
    keywords = {"p_id": p_id, "q_id": q_id}
    np.testing.assert_allclose(qdx.metrics.seed_l2(p, q, **keywords), seed, rtol=1e-12)
    np.testing.assert_allclose(qdx.metrics.topk_overlap(p, q, **keywords), overlap, rtol=1e-15)
    np.testing.assert_allclose(qdx.metrics.top1(p, q, **keywords), differs)


# Numerical care ---------------------------------------------------------------------------------------------


def exact(name, p_V, q_V):
    """KL or JS of two rows with 60 digits, normalized to the last of them."""
    with localcontext() as context:
        context.prec = 60
        mass = [[Decimal(x).exp() for x in row.tolist()] for row in (p_V, q_V)]
        p, q = ([x / sum(row) for x in row] for row in mass)
        if name == "kl":
            return float(sum(x * (x / y).ln() for x, y in zip(p, q, strict=True)))
        halves = ((x, y, (x + y) / 2) for x, y in zip(p, q, strict=True))
        return float(sum(x * (x / m).ln() + y * (y / m).ln() for x, y, m in halves) / 2)


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("step", [1e-2, 1e-5, 1e-7])
def test_nearly_equal_rows_keep_their_digits(name, step):
    p_PV, q_PV = near_rows(step)
    got = getattr(qdx.metrics, name)(p_PV, q_PV)
    expected = [exact(name, p_V, q_V) for p_V, q_V in zip(p_PV, q_PV, strict=True)]
    # The textbook sum is off by 1e-16 absolutely: of a divergence near 1e-15 (step 1e-7) no digit is left.
    np.testing.assert_allclose(got, expected, rtol=max(1e-12, 1e-15 / step * 10))


def test_divergences_of_rows_one_ulp_apart_are_not_negative():
    _, p_PV = normal_rows(8, positions=200, vocab=50)
    q_PV = torch.nextafter(p_PV, torch.zeros_like(p_PV))
    for name in ("kl", "kl_reverse", "js", "total_variation"):
        got = getattr(qdx.metrics, name)(p_PV, q_PV)
        assert (got >= 0).all() and (got < 1e-13).all(), name


@pytest.mark.parametrize("gap", [650.0, 720.0, 5000.0])
def test_a_ratio_that_overflows_leaves_kl_and_js_exact(gap):
    p = torch.log_softmax(torch.tensor([[0.0, -gap, 1.0]], dtype=torch.float64), -1)
    q = torch.log_softmax(torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64), -1)
    for one, other in ((p, q), (q, p)):
        assert qdx.metrics.kl(one, other).item() == pytest.approx(exact("kl", one[0], other[0]), rel=1e-13)
        assert qdx.metrics.js(one, other).item() == pytest.approx(exact("js", one[0], other[0]), rel=1e-13)


def test_a_token_impossible_in_both_rows_counts_as_agreement():
    p, q = rows([0.5, 0.5, 0.0]), rows([0.25, 0.75, 0.0])
    for name in FULL:
        metric = getattr(qdx.metrics, name)
        if name == "rms_logit":  # a mean over the vocabulary, the third token included
            d = torch.tensor([p[0, 0] - q[0, 0], p[0, 1] - q[0, 1], 0.0], dtype=torch.float64)
            assert metric(p, q).item() == pytest.approx(d.std(correction=0).item())
        else:
            assert metric(p, q).item() == pytest.approx(metric(p[:, :2], q[:, :2]).item(), rel=1e-14), name


def test_a_token_impossible_in_one_row_only():
    p, q = rows([0.5, 0.5, 0.0], [0.2, 0.3, 0.5]), rows([0.25, 0.5, 0.25], [0.2, 0.3, 0.5])
    assert qdx.metrics.kl(p, q).tolist() == pytest.approx([0.5 * math.log(2), 0.0])
    assert qdx.metrics.kl_reverse(p, q).tolist() == [INF, 0.0]
    assert qdx.metrics.l2(p, q).tolist() == [INF, 0.0]
    assert qdx.metrics.max_abs(p, q).tolist() == [INF, 0.0]
    assert qdx.metrics.rms_logit(p, q).tolist() == [INF, 0.0]
    assert qdx.metrics.total_variation(p, q).tolist() == pytest.approx([0.25, 0.0])
    expected = distance.jensenshannon([0.5, 0.5, 0.0], [0.25, 0.5, 0.25]) ** 2
    assert qdx.metrics.js(p, q).tolist() == pytest.approx([expected, 0.0])


def test_disjoint_rows_reach_the_upper_bounds():
    p, q = rows([0.5, 0.5, 0.0, 0.0]), rows([0.0, 0.0, 0.1, 0.9])
    assert qdx.metrics.js(p, q).item() == pytest.approx(math.log(2), rel=1e-14)
    assert qdx.metrics.total_variation(p, q).item() == pytest.approx(1.0)
    assert qdx.metrics.kl(p, q).item() == INF
    assert qdx.metrics.rms_logit(p, q).item() == INF  # differences of both signs: their mean is not a number


# rank and margin compare, and no comparison with NaN gives NaN: the engine keeps such rows from all metrics.
@pytest.mark.parametrize("name", [name for name in FULL if name not in ("rank", "margin")])
def test_a_nan_logit_is_never_a_distance(name):
    p, q = rows([0.5, 0.5], [0.5, 0.5]), rows([0.25, 0.75], [0.25, 0.75])
    p[0, 1] = math.nan
    got = getattr(qdx.metrics, name)(p, q)
    assert got[0].isnan() and got[1].isfinite()


@pytest.mark.parametrize("name", FULL)
def test_the_arguments_are_left_as_they_were(name):
    p, q = rows([0.5, 0.5, 0.0], [0.1, 0.2, 0.7]), rows([0.25, 0.75, 0.0], [0.5, 0.25, 0.25])
    before = p.clone(), q.clone()
    getattr(qdx.metrics, name)(p, q)
    assert torch.equal(p, before[0]) and torch.equal(q, before[1])
