"""Statistics of the verdict, against closed forms and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from qdx.verification import conformal, roc
from qdx.verification.judge import best, judge_scores
from qdx.verification.likelihood import (
    Calibration,
    energy,
    likelihood_p,
    log_likelihood,
    misfit,
    scales,
    ulp_floor,
)
from qdx.verification.profile import profile_p


def test_level_that_few_references_can_attain():
    assert conformal.attainable_level(19, 0.05) == 1 / 20
    assert conformal.attainable_level(18, 0.05) == 0
    assert conformal.attainable_level(59, 0.05) == 3 / 60
    assert [conformal.fewest_references(a) for a in (0.05, 0.01, 0.3)] == [19, 99, 3]


def test_answers_by_size_of_the_set():
    say = lambda p: str(conformal.answer(["a", "b", "c"], p, 0.05))  # noqa: E731
    assert say([0.2, 0.05, 0.01]) == "a"
    assert say([0.2, 0.06, 0.01]) == "one of a, b"
    assert say([0.01, 0.05, np.nan]) == "unknown"
    assert say([np.nan] * 3) == "not calibrated"


def test_floor_is_the_variance_of_rounding():
    generator = np.random.default_rng(0)
    values = generator.uniform(8, 16, (200, 500))
    error = energy(values - values.astype(np.float16))
    assert ulp_floor(values, "float16").mean() == pytest.approx(error.mean(), rel=0.02)
    assert ulp_floor(np.full((1, 4), 8.0), "bfloat16")[0] == (8 * 2.0**-7) ** 2 / 12
    assert 0 < ulp_floor(np.zeros((1, 4)), "float16")[0] < 1e-14


def calibration(honest_CNT, floor_CNT=None, components=8):
    """Honest pairs only: nobody else's replay was measured."""
    cross = np.full((len(honest_CNT), *honest_CNT.shape), np.nan)
    for c, rows in enumerate(honest_CNT):
        cross[c, c] = rows
    return Calibration(cross, np.full_like(honest_CNT, 1e-9) if floor_CNT is None else floor_CNT, components)


def test_log_likelihood_is_the_normal_density_up_to_its_constant():
    generator = np.random.default_rng(1)
    residual = generator.normal(0, 2, (5, 8))
    terms = misfit(energy(residual), np.zeros(5), np.array(4.0))
    expected = stats.norm(0, 2).logpdf(residual).sum() + 0.5 * residual.size * math.log(2 * math.pi)
    assert log_likelihood(terms, 8) == pytest.approx(expected)
    assert np.isnan(log_likelihood(np.array([np.nan]), 8))


def test_scale_is_shrunk_to_the_pooled_log_mean():
    mean = np.array([[1.0, 1.0, np.nan], [4.0, 4.0, 4.0], [np.nan] * 3])
    found = scales(mean, np.array([0.0, 0.0, 1.0]))
    pooled = math.log(4) / 2
    assert found[0] == pytest.approx(math.exp(pooled / 3))
    assert found[1] == pytest.approx(math.exp((3 * math.log(4) + pooled) / 4))
    assert np.isnan(found[2])
    exact = scales(np.zeros((1, 5)), np.array([1e-8]))
    assert exact[0] == pytest.approx(1e-8)


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (30, 0.1), (12, 0.25)])
def test_level_is_the_attainable_one_when_the_calibration_is_redrawn(n, alpha):
    generator = np.random.default_rng(n)
    trials, by_fit, by_profile = 1500, 0, 0
    for _ in range(trials):
        scale = generator.gamma(2, 1, (2, n + 1, 1))  # references differ
        drawn = scale * generator.chisquare(8, (2, n + 1, 6)) / 8
        known = calibration(drawn[:, :n])
        cross = np.stack([known.energy_CVNT[0, 0], drawn[1, :n] + drawn[0, :n]])  # of config 0's transcripts
        known.energy_CVNT[0] = cross
        judged = np.stack([drawn[0, n], drawn[1, n] + drawn[0, n]])
        by_fit += int(likelihood_p(drawn[:, n], np.full(6, 1e-9), known)[0] <= alpha)
        by_profile += int(profile_p(judged, np.full(6, 1e-9), known)[0] <= alpha)
    level = conformal.attainable_level(n, alpha)
    slack = 4 * math.sqrt(level * (1 - level) / trials)
    assert abs(by_fit / trials - level) < slack
    assert abs(by_profile / trials - level) < slack


def test_a_config_that_repeats_exactly_has_p_1_for_itself():
    known, floor_T = calibration(np.zeros((1, 20, 5)), np.full((1, 20, 5), 1e-8)), np.full(5, 1e-8)
    for test in (likelihood_p, profile_p):
        assert test(np.zeros((1, 5)), floor_T, known)[0] == 1
        assert test(np.full((1, 5), 1e-3), floor_T, known)[0] == 1 / 21


def test_profile_refutes_a_noisy_claim_that_the_fit_alone_cannot():
    generator = np.random.default_rng(5)
    honest = (
        generator.chisquare(8, (30, 6)) * 4.5 / 8
    )  # of the noisy config's transcripts, to its own replay …
    cross = generator.chisquare(8, (30, 6)) * 4.25 / 8  # … and to an exact config's
    energy_CVNT = np.full((2, 2, 30, 6), np.nan)
    energy_CVNT[0] = honest, cross
    known = Calibration(energy_CVNT, np.full((2, 30, 6), 1e-9), 8)
    exact_VT = np.stack([np.full(6, 4.25), np.zeros(6)])
    assert likelihood_p(exact_VT, np.full(6, 1e-9), known)[0] > 0.3
    assert profile_p(exact_VT, np.full(6, 1e-9), known)[0] == 1 / 31
    assert np.isnan(profile_p(exact_VT, np.full(6, 1e-9), known)[1])  # the exact one has no calibration


def test_profile_p_by_hand():
    known = np.log(np.array([[2.0, 3.0, 4.0, 5.0], [7.0, 7.0, 1.0, 7.5]]))
    judged = np.log(np.array([6.0, 6.5]))
    energy_CVNT = np.full((2, 2, 4, 1), np.nan)
    energy_CVNT[0] = np.exp(known)[..., None]
    p = profile_p(
        np.exp(judged)[:, None], np.zeros(1) + 1e-12, Calibration(energy_CVNT, np.full((2, 4, 1), 1e-12), 8)
    )
    rows = [[*known[v], judged[v]] for v in range(2)]
    rows.append([x - y for x, y in zip(*rows, strict=True)])
    scores = [-math.inf] * 5
    for row, both_ways in zip(rows, (False, True, False), strict=True):
        middle = sorted(row)[2]
        spread = sorted(abs(x - middle) for x in row)[2]
        deviations = [(x - middle) / spread for x in row]
        scores = [max(s, abs(d) if both_ways else d) for s, d in zip(scores, deviations, strict=True)]
    assert p[0] == sum(s >= scores[4] - 1e-6 for s in scores) / 5
    assert p[0] not in (1 / 5, 1.0)


def test_auc_against_scipy_and_the_curve():
    generator = np.random.default_rng(3)
    honest, false = generator.integers(0, 9, 40).astype(float), generator.integers(3, 12, 50).astype(float)
    expected = stats.mannwhitneyu(false, honest).statistic / (40 * 50)
    assert roc.auc(honest, false) == pytest.approx(expected)
    assert math.isnan(roc.auc(np.array([]), false))
    assert roc.rates(np.arange(4.0), np.array([-1.0, 1.5, 2.5, 9.0]), 4).tolist() == [
        0.25,
        0.5,
        0.75,
        0.75,
        1.0,
    ]


def test_bootstrap_covers_the_true_area():
    generator = np.random.default_rng(4)
    truth, held = stats.norm.cdf(1 / math.sqrt(2)), 0
    for _ in range(150):
        honest = generator.normal(0, 1, 60)
        low, high = roc.bootstrap(roc.auc, honest, generator.normal(1, 1, 60), draws=200)
        held += low <= truth <= high
    assert held / 150 > 0.88


def test_the_judged_reference_is_not_in_its_own_null():
    score = np.array([[[1.0, 2.0, 3.0]]])
    p = judge_scores(score, score[0], range(3))
    assert p[0, 0].tolist() == [1.0, 2 / 3, 1 / 3]
    assert judge_scores(score, score[0], [-1] * 3)[0, 0].tolist() == [1.0, 3 / 4, 2 / 4]


def test_ties_and_gaps_name_nobody():
    score = np.array([[[1.0, 2.0, np.nan], [1.0, 1.0, np.nan]]])
    assert best(score)[0].tolist() == [-1, 0, -1]
