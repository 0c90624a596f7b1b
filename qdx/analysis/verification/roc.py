"""How well a score tells a false claim from an honest one, with no more said than the references allow.

A *positive* is a false claim (config d made the transcript, c was claimed); higher scores mean a worse
fit to the claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qdx.analysis.numerics import FEWEST_REFERENCES, Floats

FPR, TPR = 0.01, 0.99


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate (E. B. Wilson 1927); NaN, NaN without trials."""
    if not trials:
        return math.nan, math.nan
    z = _normal_quantile((1 + level) / 2)
    rate, square = successes / trials, z * z / trials
    middle = (rate + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def _normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def auc(honest_N: Floats, false_M: Floats) -> float:
    """P(false > honest) + ½ P(equal): area under the ROC curve (Mann, Whitney 1947)."""
    honest, false = np.sort(honest_N[np.isfinite(honest_N)]), false_M[np.isfinite(false_M)]
    if not len(honest) or not len(false):
        return math.nan
    below = np.searchsorted(honest, false, "left")
    equal = np.searchsorted(honest, false, "right") - below
    return float((below + equal / 2).mean() / len(honest))


def curve(honest_N: Floats, false_M: Floats) -> tuple[Floats, Floats]:
    """The ROC curve: false and true positive rates at every threshold, both from 0 to 1."""
    honest, false = honest_N[np.isfinite(honest_N)], false_M[np.isfinite(false_M)]
    thresholds = np.unique(np.concatenate([honest, false]))[::-1]
    fpr = [(honest >= t).mean() for t in thresholds] if len(honest) and len(false) else []
    tpr = [(false >= t).mean() for t in thresholds] if fpr else []
    return np.array([0.0, *fpr]), np.array([0.0, *tpr])


def rates(honest_N: Floats, false_M: Floats, points: int) -> Floats:
    """The ROC curve on a grid: true positive rate at false positive rates 0, 1/points, …, 1, (points + 1,).

    NaN when either is empty.
    """
    honest, false = np.sort(honest_N[np.isfinite(honest_N)])[::-1], false_M[np.isfinite(false_M)]
    if not len(honest) or not len(false):
        return np.full(points + 1, np.nan)
    allowed = [math.floor(len(honest) * i / points + 1e-9) for i in range(points + 1)]
    return np.array([1.0 if k == len(honest) else (false > honest[k]).mean() for k in allowed])


def tpr_at(honest_N: Floats, false_M: Floats, fpr: float = FPR) -> float:
    """Share of false claims above a threshold that at most ``fpr`` of the honest ones exceed.

    NaN under 1/fpr honest references (100 for 1 %): no threshold of fewer has that rate.
    """
    honest, false = honest_N[np.isfinite(honest_N)], false_M[np.isfinite(false_M)]
    if len(honest) * fpr < 1 - 1e-9 or not len(false):
        return math.nan
    allowed = math.floor(len(honest) * fpr + 1e-9)
    threshold = np.sort(honest)[::-1][allowed]
    return float((false > threshold).mean())


def bootstrap(
    statistic: Callable[[Floats, Floats], float],
    honest_R: Floats,
    false_R: Floats,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap over references, honest and false of a reference drawn together.

    NaN, NaN under `qdx.analysis.numerics.FEWEST_REFERENCES`, and where the statistic itself is NaN.
    """
    both = np.isfinite(honest_R) & np.isfinite(false_R)
    honest, false = honest_R[both], false_R[both]
    if len(honest) < FEWEST_REFERENCES or math.isnan(statistic(honest, false)):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(honest), (draws, len(honest)))
    values = [statistic(honest[rows], false[rows]) for rows in drawn]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Tokens:
    """Tokens needed.

    Attributes
    ----------
    curve_T : array (tokens,)
        TPR at the false positive rate by the first t tokens, t from 1; NaN with too few references.
    low_T, high_T : array (tokens,)
        Its bootstrap interval over references, 95 %; NaN under 8.
    needed : int
        Smallest t from which the criterion always holds; −1 when it does not hold at the end (nothing is
        extrapolated) or could not be measured.
    low, high : int
        Bootstrap interval of `needed`; −1: no interval (under 8 references), or, for `high`, beyond what
        was measured.
    """

    curve_T: Floats
    low_T: Floats
    high_T: Floats
    needed: int
    low: int
    high: int


def running_mean(values_RT: Floats) -> Floats:
    """Mean of the first t tokens that were measured, for every t from 1, along the last axis."""
    measured = np.isfinite(values_RT)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(measured, values_RT, 0.0).cumsum(-1) / measured.cumsum(-1))


def tokens_needed(
    honest_RT: Floats,
    false_RT: Floats,
    *,
    fpr: float = FPR,
    tpr: float = TPR,
    draws: int = 200,
    seed: int = 0,
) -> Tokens:
    """Smallest number of tokens from which the true positive rate is always at least `tpr` at `fpr`.

    Parameters
    ----------
    honest_RT, false_RT : array (reference, tokens)
        A transcript's score by its first t tokens, t from 1. Only references that have all are used.
    """
    whole = np.isfinite(honest_RT).all(-1) & np.isfinite(false_RT).all(-1)
    honest, false = honest_RT[whole], false_RT[whole]
    tpr_T = _rates(honest, false, fpr)
    needed = _from_which(tpr_T, tpr)
    low = high = -1
    low_T, high_T = np.full_like(tpr_T, np.nan), np.full_like(tpr_T, np.nan)
    if len(honest) >= FEWEST_REFERENCES and np.isfinite(tpr_T).any():
        generator = np.random.default_rng(seed)
        beyond = honest.shape[-1] + 1
        drawn = []
        for _ in range(draws):
            rows = generator.integers(0, len(honest), len(honest))
            drawn.append(_rates(honest[rows], false[rows], fpr))
        found = [_from_which(rate_T, tpr) for rate_T in drawn]
        low_T, high_T = np.quantile(drawn, [0.025, 0.975], axis=0)
        ends = np.quantile([beyond if t < 0 else t for t in found], [0.025, 0.975], method="nearest")
        low, high = (-1 if end == beyond else int(end) for end in ends)
    return Tokens(tpr_T, low_T, high_T, needed, low, high)


def _rates(honest_RT: Floats, false_RT: Floats, fpr: float) -> Floats:
    count, tokens = honest_RT.shape
    if count * fpr < 1 - 1e-9:
        return np.full(tokens, np.nan)
    threshold_T = np.sort(honest_RT, 0)[::-1][math.floor(count * fpr + 1e-9)]
    return np.asarray((false_RT > threshold_T).mean(0))


def _from_which(rate_T: Floats, least: float) -> int:
    holds = rate_T >= least
    if not len(holds) or not holds[-1]:
        return -1
    fails = np.flatnonzero(~holds)
    return int(fails[-1]) + 2 if len(fails) else 1
