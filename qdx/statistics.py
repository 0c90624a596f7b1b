"""The statistics of the report as functions of plain arrays; nothing here knows of files or labels.

Capital letters suffix the axes: C configs, R references, P positions, T output tokens, D repeats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

FEWEST_REFERENCES = 8  # under this no interval is given: a bootstrap of so few values is far too narrow


def mismatch_bound(reruns: int, level: float = 0.95) -> float:
    """Return the upper confidence bound of the mismatch rate when none of `reruns` mismatched.

    Exact for independent reruns, also when their rates differ (then of their mean, by the inequality of
    arithmetic and geometric means). NaN when there was no rerun.

    Notes
    -----
    Solves ``(1 - rate) ** reruns = 1 - level`` (Clopper & Pearson 1934, zero successes).
    """
    return float("nan") if reruns < 1 else 1.0 - (1.0 - level) ** (1.0 / reruns)


def masked_mean(values: Floats, mask: Bools, axis: int = -1) -> tuple[Floats, Ints]:
    """Mean over `axis` of the finite values under `mask`, and how many they were; NaN where none was."""
    used = mask & np.isfinite(values)
    count = used.sum(axis)
    total = np.where(used, values, 0.0).sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan), count.astype(np.int64)


def mean_of_references(values: Floats, axis: int = -1) -> tuple[Floats, Ints]:
    """Mean over references, each of equal weight whatever its length, and how many were measured."""
    return masked_mean(values, np.ones(values.shape, bool), axis)


def median_of_references(values: Floats, axis: int = -1) -> Floats:
    """Median of the finite values along `axis`; NaN, without a warning, where there are none."""
    finite = np.isfinite(values)
    filled = np.where(finite.any(axis, keepdims=True), values, 0.0)
    median = np.nanmedian(np.where(np.isfinite(filled), filled, np.nan), axis=axis)
    return np.where(finite.any(axis), median, np.nan)


def bootstrap_interval(
    values_R: Floats, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over references.

    Parameters
    ----------
    values_R : array (references,)
        One number for each reference; NaN (not measured) is left out.

    Returns
    -------
    (low, high)
        NaN, NaN under `FEWEST_REFERENCES` measured references.

    Notes
    -----
    Efron (1979). References are the resampled unit, never positions or repeats: those are not independent.
    """
    measured_R = np.isfinite(values_R)
    total_R = np.where(measured_R, values_R, 0.0)
    return ratio_interval(total_R, measured_R.astype(np.int64), tails(level), draws, seed)


def tails(level: float) -> tuple[float, float]:
    """Quantiles between which the middle `level` of a distribution lies."""
    return (1 - level) / 2, (1 + level) / 2


def ratio_interval(
    total_R: Floats | Ints,
    count_R: Ints,
    ends: tuple[float, float] = (0.025, 0.975),
    draws: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval over references of sum of totals / sum of counts.

    Parameters
    ----------
    total_R, count_R : array (references,)
        Sum over what was counted of a reference, and how much that was. A reference with nothing is left out.
    ends : (float, float)
        Quantiles of the redrawn values.

    Returns
    -------
    (low, high)
        NaN, NaN under `FEWEST_REFERENCES` references.
    """
    total, count = total_R[count_R > 0], count_R[count_R > 0]
    if len(total) < FEWEST_REFERENCES:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(total), (draws, len(total)))
    low, high = np.quantile(total[drawn].sum(-1) / count[drawn].sum(-1), ends)
    return float(low), float(high)


def first_difference(a_T: Ints, b_T: Ints) -> Ints:
    """Index of the first token in which two outputs differ, over the last axis; -1 where they are equal.

    Tokens of -1 were not produced; from the first of them on nothing is compared.
    """
    compared = np.logical_and.accumulate((a_T >= 0) & (b_T >= 0), axis=-1)
    differ = compared & (a_T != b_T)
    return np.where(differ.any(-1), differ.argmax(-1), -1).astype(np.int64)


def compared_tokens(a_T: Ints, b_T: Ints) -> Bools:
    """Tell at which output indices both configs have a token."""
    return (a_T >= 0) & (b_T >= 0)


def rows_before_split(
    captured_a: Bools, captured_b: Bools, position_P: Ints, length: int, first_difference: int
) -> Bools:
    """Rows that two free generations of one reference can be compared at.

    `position` L (= `length`) predicts output token 0, L + d the token of index d. With first difference d
    the rows up to and including L + d saw the same tokens; without one all did.
    """
    both = captured_a & captured_b
    return both if first_difference < 0 else both & (position_P <= length + first_difference)


def signal_to_noise(
    distance_R: Floats, noise_a: float, noise_b: float, *, bit_equal: bool
) -> tuple[float, bool]:
    """Median over references of distance / root mean square of the two noise floors.

    Parameters
    ----------
    bit_equal : bool
        Whether the repeats of both configs are bit-equal. A floor of 0 does not say so: a metric that looks
        at the likeliest token alone is 0 between rows that differ.

    Returns
    -------
    (ratio, exact)
        ``exact`` when both floors are 0 and the repeats bit-equal: then any distance is signal. The ratio is
        NaN where both floors are 0, and where a floor or every distance was not measured.
    """
    if not (np.isfinite(noise_a) and np.isfinite(noise_b) and np.isfinite(distance_R).any()):
        return float("nan"), False
    if noise_a == 0 and noise_b == 0:
        return float("nan"), bit_equal
    scale = np.sqrt((noise_a**2 + noise_b**2) / 2)
    return float(median_of_references(distance_R / scale)), False


def group_equal(equal_CC: Bools, repeats_C: Bools) -> list[list[int]]:
    """Equivalence classes of configs.

    Parameters
    ----------
    equal_CC : array (configs, configs)
        Whether every row that two configs share has equal hashes (False where they share none).
    repeats_C : array (configs,)
        False for a config whose own repeats differ: equality to it is chance, so it is a class by itself.

    Returns
    -------
    list of list of int
        In the order of the first member. A config joins a class only when it equals all of its members.
    """
    classes: list[list[int]] = []
    for config, repeats in enumerate(repeats_C):
        home = (
            next((c for c in classes if repeats_C[c[0]] and all(equal_CC[config, m] for m in c)), None)
            if repeats
            else None
        )
        if home is None:
            classes.append([config])
        else:
            home.append(config)
    return classes


class Joined:
    """Members that are joined in pairs, and the groups that these make.

    Parameters
    ----------
    count : int
        Of members, which are numbered from 0.

    Examples
    --------
    >>> joined = Joined(4)
    >>> joined.join(3, 1)
    >>> joined.numbers.tolist()
    [0, 1, 2, 1]
    """

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def join(self, i: int, j: int) -> None:
        """Make one group of the groups of two members."""
        a, b = sorted((self._root(i), self._root(j)))
        self._parent[b] = a

    @property
    def numbers(self) -> Ints:
        """Group of every member; groups are numbered from 0 by their first member."""
        roots = [self._root(i) for i in range(len(self._parent))]
        number = {r: n for n, r in enumerate(dict.fromkeys(roots))}
        return np.array([number[r] for r in roots], np.int64)

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i
