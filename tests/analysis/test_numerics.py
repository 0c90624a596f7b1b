"""The statistics, against closed forms and independent implementations."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qdx import kernel_names, statistics


@pytest.mark.parametrize("reruns", [1, 2, 8, 100, 10_000])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_mismatch_bound_is_clopper_pearsons_for_no_mismatch(reruns, level):
    exact = stats.binomtest(0, reruns, alternative="less").proportion_ci(level, method="exact")
    assert statistics.mismatch_bound(reruns, level) == pytest.approx(exact.high, rel=1e-12)
    assert (1 - statistics.mismatch_bound(reruns, level)) ** reruns == pytest.approx(1 - level)


@pytest.mark.parametrize(
    ("requested", "observed", "other"),
    [
        ("marlin", "marlin", False),
        ("marlin", "model:marlin", False),
        ("marlin", "machete", True),
        ("any", "machete", False),
        ("", "machete", False),
    ],
)
def test_any_asks_for_no_kernel_and_a_model_is_of_its_kernel(requested, observed, other):
    assert kernel_names.another_kernel(requested, observed) is other


def test_no_rerun_bounds_nothing():
    assert math.isnan(statistics.mismatch_bound(0))


def test_a_masked_mean_counts_what_it_used_and_never_averages_nan():
    values = np.array([[1.0, 3.0, np.nan, 100.0], [np.nan] * 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, count = statistics.masked_mean(values, np.array([True, True, True, False]))
    assert mean[0] == 2.0 and np.isnan(mean[1])
    assert count.tolist() == [2, 0]


def test_a_median_of_references_leaves_out_what_was_not_measured_without_a_warning():
    values = np.array([[1.0, np.nan, 5.0, 9.0], [np.nan] * 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        median = statistics.median_of_references(values)
    assert median[0] == 5.0 and np.isnan(median[1])


def test_the_bootstrap_interval_agrees_with_scipys():
    values = np.random.default_rng(1).lognormal(size=12)
    low, high = statistics.bootstrap_interval(values, draws=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="percentile", confidence_level=0.95, rng=2
    ).confidence_interval
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.02 * width)
    assert high == pytest.approx(theirs.high, abs=0.02 * width)


def test_the_bootstrap_interval_has_the_exact_quantiles_where_they_can_be_enumerated():
    # Eight references, seven 0 and one 1: the resampled mean is Binomial(8, 1/8) / 8.
    low, high = statistics.bootstrap_interval(np.array([0.0] * 7 + [1.0]), draws=20_000)
    exact = stats.binom(8, 1 / 8)
    assert (low, high) == (exact.ppf(0.025) / 8, exact.ppf(0.975) / 8)


def test_no_interval_under_eight_measured_references():
    seven = np.arange(7.0)
    assert np.isnan(statistics.bootstrap_interval(seven)).all()
    assert np.isnan(statistics.bootstrap_interval(np.append(seven, np.nan))).all()
    assert np.isfinite(statistics.bootstrap_interval(np.append(seven, 7.0))).all()


def test_the_bootstrap_is_reproducible():
    values = np.arange(9.0)
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)


tokens = st.lists(st.integers(-1, 2), min_size=1, max_size=8)


@given(tokens, tokens)
def test_the_first_difference_is_what_a_loop_finds(a, b):
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    expected = -1
    for i in range(size):
        if a[i] < 0 or b[i] < 0:
            break
        if a[i] != b[i]:
            expected = i
            break
    assert statistics.first_difference(np.array(a), np.array(b)) == expected


@settings(max_examples=30)
@given(st.integers(-1, 6), st.integers(1, 30))
def test_rows_before_a_split_have_consumed_equal_tokens(split, length):
    position = np.arange(length + 1, length + 7)  # the row at position L + j has consumed tokens 0 … j − 1
    everything = np.ones(len(position), bool)
    rows = statistics.rows_before_split(everything, everything, position, length, split)
    for p, kept in zip(position, rows, strict=True):
        consumed = range(p - length)
        assert kept == (split < 0 or split not in consumed)


def test_signal_to_noise_is_the_median_ratio():
    distance = np.array([2.0, 10.0, 4.0, np.nan])
    ratio, exact = statistics.signal_to_noise(distance, 1.0, 7.0, bit_equal=False)
    assert ratio == pytest.approx(4.0 / math.sqrt((1 + 49) / 2)) and not exact


def test_two_configs_that_differ_by_their_noise_alone_have_a_ratio_of_one():
    # n_a = 0 and n_b = √2 σ (two noisy runs), and the pair differs by σ (one noisy run).
    sigma = 0.3
    ratio, _ = statistics.signal_to_noise(np.full(4, sigma), 0.0, math.sqrt(2) * sigma, bit_equal=False)
    assert ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("distance", "floors", "bit_equal", "exact"),
    [
        ([1.0], (0.0, 0.0), True, True),
        ([1.0], (0.0, 0.0), False, False),
        ([1.0], (math.nan, 0.0), True, False),
        ([math.nan], (0.0, 0.0), True, False),
    ],
)
def test_where_there_is_no_ratio_it_is_nan(distance, floors, bit_equal, exact):
    ratio, said = statistics.signal_to_noise(np.array(distance), *floors, bit_equal=bit_equal)
    assert math.isnan(ratio) and said is exact


def test_a_config_that_does_not_repeat_is_a_class_by_itself():
    everything = np.ones((3, 3), bool)
    assert statistics.group_equal(everything, np.array([True, True, True])) == [[0, 1, 2]]
    assert statistics.group_equal(everything, np.array([True, False, True])) == [[0, 2], [1]]


def test_a_class_needs_all_members_equal():
    equal = np.eye(3, dtype=bool)
    equal[0, 1] = equal[1, 0] = equal[1, 2] = equal[2, 1] = True  # 0 = 1 = 2, but 0 ≠ 2
    assert statistics.group_equal(equal, np.ones(3, bool)) == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (("awq", "awq_gemm"), ("awq", "marlin"), "same format, other kernel"),
        (("awq", "marlin"), ("gptq", "model:marlin"), "other format, same kernel"),
        (("awq", "awq_gemm"), ("gptq", "exllama"), "other format, other kernel"),
        (("none", "dense"), ("gptq", "exllama"), "vs dense"),
        (("none", "dense"), ("none", "model:dense"), "same format, same kernel"),
    ],
)
def test_pair_types(a, b, expected):
    assert kernel_names.pair_type(a[0], b[0], a[1], b[1]) == expected
    assert kernel_names.pair_type(b[0], a[0], b[1], a[1]) == expected
