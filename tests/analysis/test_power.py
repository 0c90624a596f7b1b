"""Powers that are calculated before anything is measured: against trials of the tests themselves."""

from __future__ import annotations

from fractions import Fraction as F

import numpy as np
import pytest

from qdx.verification import calibration_size as size
from qdx.verification import p_values as pv
from qdx.verification.power import (
    equality_power,
    fewest_found,
    level_spread,
    pooled_power,
    within_power,
)

SHARE = F(1, 40)


@pytest.mark.parametrize("false,judged,null", [(3, 20, 39), (4, 20, 39), (2, 20, 99), (1, 4, 19), (1, 1, 39)])
def test_the_tail_count_refutes_as_often_as_is_said_and_the_pooled_test_not_less(false, judged, null):
    generator, trials = np.random.default_rng(0), 4000
    tail = pooled = 0
    for i in range(trials):
        known = generator.random(null)
        scores = np.r_[2 + np.arange(false), generator.random(judged - false)]
        p = pv.tail_count_p(scores, known)
        tail += (p if judged == 1 else 2 * p) <= SHARE
        pooled += i < 400 and pv.pooled_p(scores, known) <= SHARE
    expected = float(pooled_power(false, judged, null, SHARE))
    error = 4 * np.sqrt(max(expected * (1 - expected), 1e-3) / trials)
    assert tail / trials == pytest.approx(expected, abs=error)
    assert pooled / 400 >= expected - 10 * error


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("false", [0, 6, 10, 14])
def test_own_repeats_refute_not_less_often_than_is_said(members, false):
    generator, trials, references = np.random.default_rng(1), 1500, 20
    found = 0
    for _ in range(trials):
        score = generator.random((references, members))
        score[:false, 0] += 1
        found += pv.within_reference_p(score) <= SHARE
    expected = float(within_power(false, references, members, SHARE))
    error = 4 * np.sqrt(max(expected * (1 - expected), 1e-3) / trials)
    assert found / trials >= expected - error
    assert found / trials <= expected + error + 0.15, "and it is not far below"
    if not false:
        assert expected <= SHARE


def test_unequal_rows_are_found_for_sure_or_not_at_all():
    assert [equality_power(k, 20, 40, F(1, 20)) for k in (2, 3, 20)] == [0, 1, 1]
    assert equality_power(20, 20, 0, F(1, 20)) == 0, "without reruns nothing is refuted"


@pytest.mark.parametrize("judged,null", [(20, 39), (20, 2), (3, 5), (1, 12), (1, 19)])
def test_the_fewest_that_are_found_are_the_first_with_the_wanted_power(judged, null):
    power = [pooled_power(d, judged, null, F(1, 20)) for d in range(judged + 1)]
    assert power == sorted(power)
    expected = next((d for d in range(1, judged + 1) if power[d] >= F(19, 20)), None)
    assert fewest_found(lambda d: power[d], judged) == expected
    assert fewest_found(lambda d: F(1), judged) == 1


@pytest.mark.parametrize("judged,null,share", [(1, 39, F(1, 20)), (20, 39, F(1, 20)), (20, 99, F(1, 100))])
def test_the_level_of_single_calibration_sets_lies_in_its_interval(judged, null, share):
    generator, sets = np.random.default_rng(2), 4000
    k = size.fewest_false(share, 1, 1, judged, null)
    q = 1 - generator.random((sets, null)).max(-1)  # of each set: the chance to lie above all of it
    alarms = generator.binomial(judged, q[:, None], (sets, 400)) >= k
    level = alarms.mean(-1)
    low, high = level_spread(judged, null, share)
    exceeding = float((level > high + 4 * np.sqrt(high / 400)).mean()), float((level < low / 2 - 0.01).mean())
    assert exceeding[0] < 0.025 and exceeding[1] < 0.025
    assert 0.005 < (level > high).mean() < 0.06, "the interval is not too wide"
    assert level.mean() <= float(share)


def test_too_little_calibration_never_refutes():
    assert level_spread(1, 18, F(1, 20)) == (0.0, 0.0)
    assert pooled_power(1, 1, 18, F(1, 20)) == 0
