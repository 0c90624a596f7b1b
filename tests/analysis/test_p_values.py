"""Exact p-values: closed forms, scipy, every permutation counted, and level and power by simulation."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from fractions import Fraction as F

import numpy as np
import pytest
from scipy import stats

from qdx.errors import QdxError
from qdx.verification import calibration_size as size
from qdx.verification import p_values as pv
from tests.analysis.noise import LAWS, draw

ALPHA = F(1, 20)


def above(level: float, trials: int) -> float:
    """The greatest share of rejections that a test of this level shows but once in 1,000 runs."""
    return float(stats.binom.ppf(0.999, trials, level)) / trials


# Levels and single transcripts


def test_a_level_is_what_its_user_wrote_and_not_the_binary_number_beside_it():
    assert pv.level(0.05) == pv.level("0.05") == pv.level(F(1, 20)) == F(1, 20)
    assert F(1, 20) <= pv.level(0.05) and F(0.05) != F(1, 20)
    wrong = [n for n in range(1, 100) if pv.conformal_p(1.0, np.zeros(20 * n - 1)) > pv.level(0.05) / n]
    assert not wrong


@pytest.mark.parametrize("alpha", [0, 1, -0.1, "2", "five", math.nan, math.inf])
def test_a_level_outside_0_and_1_is_refused(alpha):
    with pytest.raises(QdxError, match="between 0 and 1"):
        pv.level(alpha)


def test_conformal_p_counts_ties_against_the_claim_and_leaves_out_what_was_not_measured():
    null = np.array([1.0, 2.0, 3.0, np.nan])
    assert [pv.conformal_p(s, null) for s in (0.5, 2.0, 3.5)] == [1, F(3, 4), F(1, 4)]
    assert pv.conformal_p(np.nan, null) is None
    assert pv.conformal_p(1.0, np.array([np.nan])) is None


# Pooled tests


def of_every_choice(values: tuple[float, ...], m: int, test: Callable) -> list[F]:
    """p of every way to call m of the values judged and the others calibration."""
    every = []
    for chosen in itertools.combinations(range(len(values)), m):
        judged = np.array([values[i] for i in chosen])
        every.append(test(judged, np.array([v for i, v in enumerate(values) if i not in chosen])))
    return every


@pytest.mark.parametrize("test", [pv.tail_count_p, pv.rank_sum_p, pv.pooled_p])
@pytest.mark.parametrize(
    "values",
    [
        (1, 2, 3, 4, 5, 6, 7, 8, 9),
        (0, 0, 0, 0, 1, 1, 2, 3, 3),
        (0, 0, 0, 0, 0, 0, 0, 0, 7),
        (1, 1, 1, 1, 1, 1, 1, 1, 1),
        (0, 1, 1, 2, 2, 2, 3, 3, 3),
    ],
)
@pytest.mark.parametrize("m", [1, 2, 4, 7])
def test_no_level_is_exceeded_over_all_permutations(test, values, m):
    every = of_every_choice(values, m, test)
    for p in set(every):
        assert F(sum(q <= p for q in every), len(every)) <= p


def test_tail_count_is_the_chance_that_the_greatest_are_all_judged():
    null = np.arange(39.0)
    for k in range(6):
        judged = np.r_[np.full(k, 50.0), np.zeros(20 - k)]
        expected = stats.hypergeom(59, k, 20).pmf(k)  # k marked scores, 20 drawn as judged
        assert float(pv.tail_count_p(judged, null)) == pytest.approx(expected, rel=1e-12)
    assert pv.tail_count_p(np.array([38.0]), null) == 1, "a tie is not above"


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (5, 3), (20, 39), (39, 20), (20, 99)])
def test_rank_sum_agrees_with_scipys_exact_mann_whitney(sizes):
    generator = np.random.default_rng(sum(sizes))
    for shift in (-1.0, 0.0, 0.5, 3.0):
        judged, null = generator.normal(shift, 1, sizes[0]), generator.normal(0, 1, sizes[1])
        expected = stats.mannwhitneyu(judged, null, alternative="greater", method="exact").pvalue
        assert float(pv.rank_sum_p(judged, null)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sizes", [(2, 6), (4, 4), (6, 3)])
def test_rank_sum_with_ties_counts_every_choice(sizes):
    generator = np.random.default_rng(3)
    for _ in range(20):
        pooled = generator.integers(0, 4, sum(sizes)).astype(float)
        rank = stats.rankdata(pooled)
        sums = [sum(rank[list(c)]) for c in itertools.combinations(range(len(rank)), sizes[0])]
        observed = rank[: sizes[0]].sum()
        expected = F(sum(s >= observed - 1e-9 for s in sums), len(sums))
        assert pv.rank_sum_p(pooled[: sizes[0]], pooled[sizes[0] :]) == expected


def test_a_large_rank_sum_is_drawn_repeatably_fast_and_near_the_normal_law():
    generator = np.random.default_rng(0)
    judged, null = generator.normal(0.25, 1, 100), generator.normal(0, 1, 400)
    started = time.process_time()
    p = pv.rank_sum_p(judged, null)
    assert time.process_time() - started < 1
    assert p.denominator <= 1 + pv.DRAWS and p == pv.rank_sum_p(judged, null)
    assert len({pv.rank_sum_p(judged, null, seed) for seed in range(5)}) > 1
    expected = stats.mannwhitneyu(judged, null, alternative="greater").pvalue
    assert float(p) == pytest.approx(expected, abs=4 * math.sqrt(expected / pv.DRAWS))
    assert pv.rank_sum_p(judged + 9, null) == F(1, 1 + pv.DRAWS), "never 0"


def test_one_transcript_has_its_conformal_p_and_nothing_to_pool():
    null = np.array([1.0, 2.0, 2.0, 3.0])
    for score in (0.0, 2.0, 2.5, 4.0):
        assert pv.pooled_p(np.array([score]), null) == pv.conformal_p(score, null)


@pytest.mark.parametrize("test", [pv.tail_count_p, pv.rank_sum_p, pv.pooled_p])
def test_nothing_measured_is_no_p(test):
    some, none = np.array([1.0, 2.0]), np.array([np.nan, np.nan])
    assert test(none, some) is None and test(some, none) is None and test(some, np.array([])) is None
    assert test(np.r_[some, np.nan], np.r_[some, np.nan]) == test(some, some)


@pytest.mark.parametrize("law", LAWS)
def test_the_pooled_test_holds_its_level_and_finds_5_false_of_20_with_39_of_calibration(law):
    generator, trials = np.random.default_rng(5), 600
    honest = false = 0
    for _ in range(trials):
        judged, null = draw(law, generator, (20,)), draw(law, generator, (39,))
        honest += pv.pooled_p(judged, null) <= ALPHA
        judged[:5] = null.max() + 1 + generator.random(5)  # above all: separable
        false += pv.pooled_p(judged, null) <= ALPHA
    assert honest / trials <= above(0.05, trials)
    assert false == trials
    if law == "normal":
        assert honest / trials > 0.02, "a test that never rejects would pass too"


@pytest.mark.parametrize("law", ["normal", "heavy-tailed"])
def test_the_rank_sum_finds_many_that_differ_a_little_and_the_old_rule_nothing(law):
    generator = np.random.default_rng(6)
    found = old = 0
    for _ in range(200):
        judged, null = draw(law, generator, (20,)) + 1.5, draw(law, generator, (39,))
        found += pv.pooled_p(judged, null) <= ALPHA
        old += min(1.0, 2 * np.mean([float(pv.conformal_p(s, null)) for s in judged])) <= 0.05
    assert found >= 190 if law == "normal" else found >= 90
    assert old <= 20


# The false share


def closed_testing(judged: np.ndarray, null: np.ndarray, alpha: F) -> int:
    """The bound by its definition: all judged minus the largest subset that is not rejected."""
    sizes = [
        len(chosen)
        for size in range(1, len(judged) + 1)
        for chosen in itertools.combinations(range(len(judged)), size)
        if pv.pooled_p(judged[list(chosen)], null) > alpha
    ]
    return len(judged) - max(sizes, default=0)


def test_the_bound_is_that_of_closed_testing_over_all_subsets():
    generator = np.random.default_rng(7)
    bounds = set()
    for _ in range(40):
        judged = generator.normal(generator.integers(0, 4), 1, 6)
        null = generator.normal(0, 1, 12)
        bound = pv.false_share(judged, null, F(1, 10))
        assert bound == closed_testing(judged, null, F(1, 10))
        bounds.add(bound)
    assert len(bounds) >= 4, "the cases have to differ"


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("false", [0, 2, 5, 18])
def test_the_false_share_is_not_overstated(law, false):
    generator, trials = np.random.default_rng(8), 200
    over, bounds = 0, []
    for _ in range(trials):
        judged, null = draw(law, generator, (20,)), draw(law, generator, (39,))
        judged[:false] += 6.0
        bounds.append(pv.false_share(judged, null, ALPHA))
        over += bounds[-1] > false
    assert over / trials <= above(0.05, trials)
    if law == "normal" and false >= 5:
        assert np.median(bounds) >= false - 3, "and it is worth something"


def test_ties_of_judged_scores_do_not_make_the_bound_too_great():
    # With midranks, {1, 3, 3} has p = 1/7 beside four calibration scores of 2 and {1, 3, 4} has p = 11/35:
    # the smaller scores would be easier to reject.
    null = np.full(4, 2.0)
    judged = np.array([1.0, 3.0, 3.0, 4.0])
    assert pv.rank_sum_p(judged[:3], null) < pv.rank_sum_p(judged[[0, 1, 3]], null)
    for alpha in (F(1, 7), F(1, 5), F(1, 4), F(3, 10)):
        assert pv.false_share(judged, null, alpha) <= closed_testing(judged, null, alpha)


def test_the_share_is_0_where_the_pooled_test_does_not_reject_and_fast_where_it_does():
    assert pv.false_share(np.array([]), np.arange(9.0), ALPHA) == 0
    assert pv.false_share(np.arange(9.0), np.array([]), ALPHA) == 0
    generator = np.random.default_rng(9)
    null = generator.normal(0, 1, 400)
    judged = np.r_[generator.normal(0, 1, 50), generator.normal(9, 1, 50)]
    started = time.process_time()
    assert 45 <= pv.false_share(judged, null, ALPHA) <= 51
    assert time.process_time() - started < 3


# Own repeats


def within_by_enumeration(score_RM: np.ndarray) -> F:
    """p over all M^R places that the producer can take."""
    places = list(itertools.product(range(score_RM.shape[1]), repeat=len(score_RM)))
    rank = np.array([stats.rankdata(row) for row in score_RM])
    top = np.array([(row == row.max()) & ((row == row.max()).sum() == 1) for row in score_RM])

    def both(place: tuple[int, ...]) -> tuple[int, float]:
        return sum(t[i] for t, i in zip(top, place, strict=True)), sum(
            r[i] for r, i in zip(rank, place, strict=True)
        )

    seen, every = both((0,) * len(score_RM)), [both(place) for place in places]
    parts = [F(sum(e[k] >= seen[k] - 1e-9 for e in every), len(every)) for k in (0, 1)]
    return parts[1] if score_RM.shape[1] == 2 else min(F(1), 2 * min(parts))


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("values", [3, 1000])
def test_within_reference_p_counts_every_permutation_with_and_without_ties(members, values):
    generator = np.random.default_rng(members + values)
    for _ in range(15):
        score = generator.integers(0, values, (5, members)).astype(float)
        score[0, 0] += 2
        assert pv.within_reference_p(score) == within_by_enumeration(score)


def test_no_level_is_exceeded_over_all_places_of_the_producer():
    generator = np.random.default_rng(11)
    for values in (2, 4, 1000):
        score = generator.integers(0, values, (6, 3)).astype(float)
        every = []
        for place in itertools.product(range(3), repeat=6):
            turned = np.array([np.roll(row, -i) for row, i in zip(score, place, strict=True)])
            every.append(pv.within_reference_p(turned))
        for p in set(every):
            assert F(sum(q <= p for q in every), len(every)) <= p


def test_a_reference_that_was_not_measured_is_left_out_and_counted():
    score = np.array([[3.0, 1.0, 2.0], [np.nan, 1.0, 2.0], [9.0, 1.0, 2.0]])
    assert pv.complete_references(score) == 2
    assert pv.within_reference_p(score) == pv.within_reference_p(score[[0, 2]]) == F(2, 9)
    assert pv.within_reference_p(score[1:2]) is None
    assert pv.within_reference_p(score[:, :1]) is None, "without a repeat"
    assert pv.within_reference_p(np.ones((8, 3))) == 1, "bit-equal everywhere"


def within_closed_testing(score_RM: np.ndarray, alpha: F) -> int:
    sizes = [
        size
        for size in range(1, len(score_RM) + 1)
        for chosen in itertools.combinations(range(len(score_RM)), size)
        if pv.within_reference_p(score_RM[list(chosen)]) > alpha
    ]
    return len(score_RM) - max(sizes, default=0)


def test_the_bound_of_false_references_is_that_of_closed_testing():
    generator = np.random.default_rng(12)
    bounds = set()
    for _ in range(40):
        score = generator.random((8, 3))
        score[: generator.integers(0, 9), 0] += 1
        bound = pv.within_reference_false_share(score, F(1, 10))
        assert bound == within_closed_testing(score, F(1, 10))
        score = np.round(score * 3)  # and with ties it is not greater
        assert pv.within_reference_false_share(score, F(1, 10)) <= within_closed_testing(score, F(1, 10))
        bounds.add(bound)
    assert len(bounds) >= 4


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("false", [0, 6, 12, 24])
def test_own_repeats_hold_their_level_and_the_false_share_is_not_overstated(law, false):
    generator, trials = np.random.default_rng(13), 400
    rejected = over = 0
    for _ in range(trials):
        score = draw(law, generator, (24, 4)) + 3 * generator.standard_normal((24, 1))  # a reference's own
        score[:false, 0] += 100.0
        rejected += pv.within_reference_p(score) <= ALPHA
        over += pv.within_reference_false_share(score, ALPHA) > false
    assert over / trials <= above(0.05, trials)
    if not false:
        assert rejected / trials <= above(0.05, trials)
    elif false >= 12:
        assert rejected / trials >= (0.95 if law != "discrete" else 0.9)


# Equality, lists of tests and of claims


def test_fishers_p_is_the_hypergeometric_chance():
    for judged, reruns in ((4, 8), (24, 48), (1, 2)):
        for differ in range(judged + 1):
            expected = stats.hypergeom(judged + reruns, differ, judged).pmf(differ)
            assert float(pv.fisher_equality_p(differ, judged, reruns)) == pytest.approx(expected)
    assert pv.fisher_equality_p(0, 0, 5) is None
    assert pv.fisher_equality_p(3, 4, 0) == 1, "without reruns nothing is refuted"
    with pytest.raises(ValueError, match="5 of 4"):
        pv.fisher_equality_p(5, 4, 9)


@pytest.mark.parametrize("rate", [0.01, 0.07, 0.25])
def test_fishers_test_holds_its_level_whatever_the_rate_of_differing_is(rate):
    generator, trials = np.random.default_rng(14), 20_000
    judged, reruns = generator.binomial(16, rate, trials), generator.binomial(32, rate, trials)
    p_K = [pv.fisher_equality_p(k, 16, 32) for k in range(17)]
    rejected = sum(p_K[k] <= ALPHA for k in judged[reruns == 0])
    assert rejected / trials <= above(0.05, trials)


def test_a_listed_test_without_a_value_counts_in_the_list():
    assert pv.bonferroni([F(1, 100), None, F(1, 2)]) == F(3, 100)
    assert pv.bonferroni([F(1, 2), F(3, 4)]) == 1
    assert pv.bonferroni([None, None]) is None and pv.bonferroni([]) is None


def test_holm_by_hand_and_a_claim_without_a_value_counts():
    assert pv.holm([F(1, 100), F(4, 100), F(3, 100)]) == [F(3, 100), F(6, 100), F(6, 100)]
    assert pv.holm([F(1, 100), None]) == [F(2, 100), None]
    assert pv.holm([F(9, 10), F(8, 10)]) == [1, 1]
    assert pv.holm([]) == []


def test_holms_family_error_is_at_most_the_level():
    generator, trials = np.random.default_rng(15), 4000
    wrong = 0
    for _ in range(trials):
        p = [F(int(k), 1000) for k in generator.integers(1, 1001, 5)]
        p[0] = F(1, 10_000)  # a false claim beside four honest ones
        wrong += any(q <= ALPHA for q in pv.holm(p)[1:])
    assert 0.02 < wrong / trials <= above(0.05, trials)


# Thresholds and rates


def test_a_threshold_is_exceeded_by_new_honest_scores_as_often_as_its_beta_law_says():
    generator = np.random.default_rng(16)
    for n, alpha, j in ((99, F(1, 100), 1), (19, F(1, 20), 1), (100, F(1, 20), 5)):
        rates = []
        for _ in range(2000):
            value, got = pv.threshold(generator.random(n), alpha)
            assert got == j
            rates.append(1 - value)  # uniform scores: the chance that a new one is greater
        low, high = pv.false_alarm_spread(n, j)
        assert np.mean(rates) == pytest.approx(j / (n + 1), rel=0.1)
        assert np.mean((rates > np.array(low)) & (rates < np.array(high))) == pytest.approx(0.95, abs=0.02)


def test_a_level_that_so_few_scores_cannot_have_is_never_exceeded():
    assert pv.threshold(np.arange(98.0), F(1, 100)) == (math.inf, 0)
    assert pv.false_alarm_spread(98, 0) == (0.0, 0.0)
    assert pv.threshold(np.array([np.nan] * 3), ALPHA) == (math.inf, 0)
    # 0.05 · 20 is 1 and not a little less
    assert pv.threshold(np.arange(19.0), pv.level(0.05)) == (18.0, 1)


def test_single_sets_of_19_give_0_to_18_per_cent_of_false_alarms():
    low, high = pv.false_alarm_spread(19, 1)
    assert (low, high) == pytest.approx((0.00133, 0.1765), abs=1e-4)


@pytest.mark.parametrize("k,n", [(0, 10), (10, 10), (3, 17), (95, 100)])
def test_clopper_pearson_is_scipys(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="exact")
    assert pv.clopper_pearson(k, n) == pytest.approx((expected.low, expected.high))


def test_a_rate_of_nothing_is_anything():
    assert pv.clopper_pearson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="4 of 3"):
        pv.clopper_pearson(4, 3)


def test_299_of_299_show_99_per_cent_with_one_side_and_368_with_both():
    assert pv.clopper_pearson(299, 299, 0.90)[0] >= 0.99 > pv.clopper_pearson(298, 298, 0.90)[0]
    assert pv.clopper_pearson(368, 368)[0] >= 0.99 > pv.clopper_pearson(366, 366)[0]


def test_the_bound_of_drawn_rows():
    assert pv.share_bound(58) == pytest.approx(1 - 0.05 ** (1 / 58))
    assert (1 - pv.share_bound(20)) ** 20 == pytest.approx(0.05)
    assert pv.share_bound(0) == 1


# Counts before anybody runs anything


def test_counts_of_calibration_are_the_least_that_can_reject():
    assert size.fewest_calibration(ALPHA) == 19
    assert [size.fewest_calibration(ALPHA, c, t) for c, t in ((2, 1), (2, 3))] == [39, 119]
    for judged, claims, tests in ((2, 1, 1), (4, 3, 2), (20, 1, 1), (20, 4, 5)):
        n = size.fewest_calibration(ALPHA, claims, tests, judged)
        assert pv.pooled_p(np.ones(judged), np.zeros(n)) <= ALPHA / (claims * tests)
        if n > 1:
            assert pv.pooled_p(np.ones(judged), np.zeros(n - 1)) > ALPHA / (claims * tests)
    with pytest.raises(QdxError, match="0 claims"):
        size.fewest_calibration(ALPHA, 0)


@pytest.mark.parametrize("claims,null,least", [(1, 39, 4), (1, 99, 3), (3, 39, 5)])
def test_the_fewest_false_of_20_that_are_found(claims, null, least):
    assert size.fewest_false(ALPHA, claims, 1, 20, null) == least
    for k, found in ((least, True), (least - 1, False)):
        judged = np.r_[np.full(k, 9.0), np.full(20 - k, -9.0)]  # the others fit better than calibration
        assert (pv.pooled_p(judged, np.zeros(null)) <= ALPHA / claims) == found


def test_too_little_calibration_finds_nothing():
    assert size.fewest_false(ALPHA, 1, 1, 1, 18) is None
    assert size.fewest_false(ALPHA, 1, 1, 1, 19) == 1
    assert size.fewest_false(ALPHA, 100, 5, 3, 5) is None


def test_the_fitting_part_is_fixed_by_keys_and_not_by_order():
    keys = [f"{i:064x}" for i in range(49)]
    fit, test = size.split(keys)
    assert (len(fit), len(test)) == (10, 39)
    assert sorted(fit + test) == list(range(49))
    turned = keys[::-1]
    assert {turned[i] for i in size.split(turned)[0]} == {keys[i] for i in fit}
    assert fit != list(range(10))
    assert [size.fitting_part(n) for n in (3, 8, 40, 41, 100)] == [3, 8, 8, 9, 20]
    assert size.split([]) == ([], [])


# The leading run


def test_the_leading_run_has_its_level_over_all_places_and_finds_a_few_far_out():
    generator = np.random.default_rng(21)
    for values in (3, 1000):
        score = generator.integers(0, values, (5, 3)).astype(float)
        every = []
        for place in itertools.product(range(3), repeat=5):
            turned = np.array([np.roll(row, -i) for row, i in zip(score, place, strict=True)])
            every.append((pv.leading_run_p(turned), pv.own_repeats_p(turned)))
        for column in zip(*every, strict=True):
            for p in set(column):
                assert F(sum(q <= p for q in column), len(column)) <= p
    score = generator.random((40, 4))
    score[:5, 0] += 10
    assert pv.leading_run_p(score) <= F(1, 4**5)
    assert pv.own_repeats_p(score) <= F(3, 4**5) < pv.within_reference_p(score)
    assert 1 <= pv.own_repeats_false_share(score, F(1, 20)) <= 5
    assert pv.own_repeats_p(np.ones((8, 3))) == 1
    assert pv.own_repeats_p(score[:, :1]) is None


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("false", [0, 5])
def test_own_repeats_with_the_run_hold_their_level_and_share(law, false):
    generator, trials = np.random.default_rng(22), 300
    rejected = over = 0
    for _ in range(trials):
        score = draw(law, generator, (24, 4))
        score[:false, 0] += 1e6
        rejected += pv.own_repeats_p(score) <= ALPHA
        over += pv.own_repeats_false_share(score, ALPHA) > false
    assert over / trials <= above(0.05, trials)
    assert rejected / trials <= above(0.05, trials) if not false else rejected == trials
