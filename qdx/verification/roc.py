"""Measure how well a score tells false claims from honest ones, and no more than the references allow.

A *positive* is a false claim (config d made the transcript, c was claimed); higher scores mean a worse
fit to the claim. Thresholds come from other references than those whose rates they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from qdx.statistics import FEWEST_REFERENCES, Floats, Ints, ratio_interval
from qdx.verification import p_values

TPR = 0.99
FEWEST_ERRORS = 5  # a bootstrap of fewer errors hardly varies: its interval is too narrow, or a point


@cache
def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """`p_values.clopper_pearson`, 95 %; NaN, NaN of nothing."""
    return p_values.clopper_pearson(k, n) if n else (math.nan, math.nan)


def auc(honest_N: Floats, false_M: Floats) -> float:
    """P(false > honest) + ½ P(equal): area under the ROC curve (Mann, Whitney 1947)."""
    honest, false = np.sort(honest_N[np.isfinite(honest_N)]), false_M[np.isfinite(false_M)]
    if not len(honest) or not len(false):
        return math.nan
    below = np.searchsorted(honest, false, "left")
    equal = np.searchsorted(honest, false, "right") - below
    return float((below + equal / 2).mean() / len(honest))


def rates(honest_N: Floats, false_M: Floats, points: int) -> Floats:
    """The ROC curve on a grid: true positive rate at false positive rates 0, 1/points, …, 1, (points + 1,).

    NaN when either is empty.
    """
    honest, false = np.sort(honest_N[np.isfinite(honest_N)])[::-1], false_M[np.isfinite(false_M)]
    if not len(honest) or not len(false):
        return np.full(points + 1, np.nan)
    allowed = [math.floor(len(honest) * i / points + 1e-9) for i in range(points + 1)]
    return np.array([1.0 if k == len(honest) else (false > honest[k]).mean() for k in allowed])


def bootstrap(
    statistic: Callable[[Floats, Floats], float],
    honest_R: Floats,
    false_R: Floats,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Expanded percentile bootstrap over references, honest and false of a reference drawn together.

    NaN, NaN under `qdx.statistics.FEWEST_REFERENCES`, and where the statistic itself is NaN.
    """
    both = np.isfinite(honest_R) & np.isfinite(false_R)
    honest, false = honest_R[both], false_R[both]
    if len(honest) < FEWEST_REFERENCES or math.isnan(statistic(honest, false)):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(honest), (draws, len(honest)))
    values = [statistic(honest[rows], false[rows]) for rows in drawn]
    low, high = np.quantile(values, _expanded(len(honest), level))
    return float(low), float(high)


def _expanded(count: int, level: float = 0.95) -> tuple[float, float]:
    """Quantiles of a percentile bootstrap of so few values: wider, as a t interval is than a normal one.

    T. Hesterberg, "What teachers should know about the bootstrap" (The American Statistician 69, 2015).
    """
    from scipy.stats import norm, t

    tail = float(norm.cdf(math.sqrt(count / (count - 1)) * t.ppf((1 - level) / 2, count - 1)))
    return tail, 1 - tail


def auc_interval(honest_R: Floats, false_R: Floats, draws: int = 1000) -> tuple[float, float]:
    """Interval of `auc`, 95 %, from scores of the same references; NaN, NaN under 8 of them.

    A bootstrap over references where at least `FEWEST_ERRORS` honest and as many false scores lie among those
    of the other kind. With fewer it would draw (nearly) the same area every time and collapse. Then an exact
    interval: the references make ⌊R/2⌋ couples, each of an honest score of one and a false score of another,
    which are independent; P(false > honest) has Clopper and Pearson's interval (a tie is counted for the
    lower end as an error, for the upper as none).
    """
    both = np.isfinite(honest_R) & np.isfinite(false_R)
    honest, false = honest_R[both], false_R[both]
    if len(honest) < FEWEST_REFERENCES:
        return math.nan, math.nan
    among = int((honest >= false.min()).sum()), int((false <= honest.max()).sum())
    apart = int((honest <= false.max()).sum()), int((false >= honest.min()).sum())
    if min(*among, *apart) >= FEWEST_ERRORS:
        return bootstrap(auc, honest, false, draws=draws)
    couples = len(honest) // 2
    mine, theirs = honest[:couples], false[couples : 2 * couples]
    return (
        clopper_pearson(int((theirs > mine).sum()), couples)[0],
        clopper_pearson(int((theirs >= mine).sum()), couples)[1],
    )


def sum_interval(hits_R: Ints, of_R: Ints, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """Interval of a share that is summed over pairs, 95 %; references are what is drawn.

    A bootstrap over references where at least `FEWEST_ERRORS` of them have a miss and as many a hit.
    Otherwise the exact interval of two shares that enclose it: of references without a miss (lower end), and
    of references with a hit (upper end), by Clopper and Pearson.

    Parameters
    ----------
    hits_R, of_R : array of int (reference,)
        Hits among how many; a reference of which nothing was judged does not count.
    """
    used = of_R > 0
    hits, of = hits_R[used], of_R[used]
    if len(of) < FEWEST_REFERENCES:
        return math.nan, math.nan
    whole, some = int((hits == of).sum()), int((hits > 0).sum())
    if min(len(of) - whole, some) < FEWEST_ERRORS:
        return clopper_pearson(whole, len(of))[0], clopper_pearson(some, len(of))[1]
    return ratio_interval(hits, of, _expanded(len(of)), draws, seed)


def running_mean(values_RT: Floats) -> Floats:
    """Mean of the first t values that were measured, for every t from 1, along the last axis."""
    measured = np.isfinite(values_RT)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(measured, values_RT, 0.0).cumsum(-1) / measured.cumsum(-1))


@dataclass(frozen=True)
class Found:
    """False claims found above a threshold, by the first t rows (or tokens) of a transcript, t from 1.

    Attributes
    ----------
    share_T, low_T, high_T : array (rows,)
        Share of the judged references' false claims above the threshold, with Clopper and Pearson's interval
        at 95 %; NaN where no threshold has the level.
    needed, low, high : int
        The least t from which on the share, the upper and the lower end are always at least `TPR`; −1: not
        by the rows that there are. Nothing is extrapolated.
    """

    share_T: Floats
    low_T: Floats
    high_T: Floats
    needed: int
    low: int
    high: int


def found(honest_NT: Floats, false_RT: Floats, fpr: float, tpr: float = TPR) -> Found:
    """Count the false claims above the threshold of other references' honest scores, for every t.

    Parameters
    ----------
    honest_NT : array (calibration reference, rows)
        An honest transcript's score by its first t rows; greater means a worse fit.
    false_RT : array (judged reference, rows)
        The same of false claims, on references that are not among the N.
    fpr, tpr : float
        Level of the threshold; share of false claims that is asked for.
    """
    count_T = np.zeros(false_RT.shape[-1], np.int64)
    of_T = count_T.copy()
    for t in range(len(of_T)):
        limit, rank = p_values.threshold(honest_NT[:, t], p_values.level(fpr))
        if rank:
            scores = false_RT[:, t][np.isfinite(false_RT[:, t])]
            of_T[t], count_T[t] = len(scores), int((scores > limit).sum())
    ends = np.array([clopper_pearson(int(k), int(n)) for k, n in zip(count_T, of_T, strict=True)])
    ends = ends.reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        share_T = np.where(of_T > 0, count_T / np.maximum(of_T, 1), np.nan)
    needed, low, high = (from_which(values, tpr) for values in (share_T, ends[:, 1], ends[:, 0]))
    return Found(share_T, ends[:, 0], ends[:, 1], needed, low, high)


def from_which(share_T: Floats, least: float) -> int:
    """The smallest t, from 1, from which on a share is always at least `least`; −1: not at the end."""
    holds = share_T >= least
    if not len(holds) or not holds[-1]:
        return -1
    fails = np.flatnonzero(~holds)
    return int(fails[-1]) + 2 if len(fails) else 1
