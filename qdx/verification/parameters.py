"""Sampling parameters as hypotheses: "the temperature is 0.7, not 1.0 as stated".

The claim is that tokens were drawn from a config's rows with the stated parameters. Against it stands a fixed
list of others (`qdx.capture.densities.ALTERNATIVES`), averaged with equal weights: an e-value, as against
other configs. In the same way each temperature of the list is a claim, and those that are not refuted are a
confidence set: whatever the true temperature is, it is left out with probability alpha at most (Robbins 1970;
Howard, Ramdas, McAuliffe, Sekhon 2021).

Without truncation log p(token) is concave in β = 1/temperature, since logsumexp is convex, and stays so
through sums, averages and maxima of E. So log E is convex in β where the allowance for kernels is constant or
linear in β. It is the greater of the two: constant above temperature 1, linear below. Hence E is computed
with each, everywhere, and each counts on its own side of 1. What E is between two temperatures of the list is
then at least what the lines through its neighbours say, and the set is an interval of *all* temperatures.
With truncation it is a set of the listed temperatures alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdx.capture.densities import ALTERNATIVES, TEMPERATURES, described
from qdx.statistics import Floats
from qdx.verification.e_values import Bound, Weighed, against
from qdx.verification.sampled import GROWTH, Shown

_STEPS = 64  # places in each gap between two temperatures at which a bound of log E is looked at


@dataclass(frozen=True)
class Hypotheses:
    """Hold what one config's rows say of one producer's drawn tokens under other parameters.

    Attributes
    ----------
    other_RTA : array (reference, token, alternative)
        Log-probability under each of `ALTERNATIVES`, nat; NaN where there is no row.
    most_RTK : array (reference, token, temperature)
        Log of the most that an honest producer at each of `TEMPERATURES` gives the token, nat.
    """

    other_RTA: Floats
    most_RTK: Floats


@dataclass(frozen=True)
class _Told:
    """An alternative whose densities are known."""

    values: Floats

    def log_density(self, share: float) -> Floats:
        """See `qdx.capture.densities.Drawn.log_density`; its share is that of the capture."""
        return self.values


@dataclass(frozen=True)
class _Most:
    """A claim whose greatest probabilities are known."""

    logprob: Floats
    allowed: float

    def log_bound(self, share: float) -> Floats:
        """See `qdx.capture.densities.Drawn.log_bound`."""
        return np.asarray(self.logprob + self.allowed)


@dataclass(frozen=True)
class Fit:
    """Hold the sampling parameters that a producer's tokens fit.

    Attributes
    ----------
    weighed : Weighed
        The stated parameters against the others; the weights are those of `ALTERNATIVES`.
    best : str
        The alternative with most weight, in words.
    low, high : float
        Ends of the confidence set of the temperature; NaN where no temperature of 0.1 to 2 fits, or the
        answers state several.
    every : bool
        Whether the set holds for all temperatures between its ends, and not for the listed ones alone.
    """

    weighed: Weighed
    best: str
    low: float
    high: float
    every: bool


def fit(
    claim: Bound,
    tokens: Hypotheses,
    groups: Sequence[int],
    alpha: float,
    shown: Shown,
    *,
    truncates: bool,
    interval: bool = True,
) -> Fit:
    """Weigh the stated parameters against others, and bound the temperature.

    Parameters
    ----------
    claim : Bound
        The stated parameters, with what is allowed for other kernels.
    tokens : Hypotheses
        Of the claimed config.
    groups : sequence of int
        Group of every answer: one seed or one cached answer is one unit; −1: it counts for nothing.
    alpha : float
        The set leaves the true temperature out with at most this probability.
    shown : Shown
    truncates : bool
        Whether any answer states top-k, top-p or min-p.
    interval : bool
        Whether all answers state one temperature, so that there is one to be bounded.

    Returns
    -------
    Fit
    """
    others = [_Told(tokens.other_RTA[..., a]) for a in range(len(ALTERNATIVES))]
    weighed = against(claim, others, groups, alpha, open_A=shown.open_R, lost=shown.lost)
    best = described(ALTERNATIVES[int(np.argmax(weighed.weights))])
    low = high = math.nan
    if interval:
        allowed_SK = np.array([np.ones(len(TEMPERATURES)), 1 / np.array(TEMPERATURES)]) * GROWTH
        log_e_SK = np.zeros(allowed_SK.shape)
        for s, k in np.ndindex(*allowed_SK.shape):
            log_e_SK[s, k] = against(
                _Most(tokens.most_RTK[..., k], float(allowed_SK[s, k])),
                others[: len(TEMPERATURES)],
                groups,
                alpha,
                open_A=shown.open_R,
                lost=shown.lost,
            ).log_e
        low, high = confidence_set(log_e_SK, alpha, every=not truncates)
    return Fit(weighed, best, low, high, not truncates)


def confidence_set(log_e_SK: Floats, alpha: float, *, every: bool) -> tuple[float, float]:
    """Return the ends of the temperatures that are not refuted.

    Parameters
    ----------
    log_e_SK : ndarray
        Log of the e-value against each of `TEMPERATURES`, nat: with the allowance that counts from
        temperature 1 upwards, then with the one that counts from 1 downwards.
    alpha : float
    every : bool
        Whether temperatures between the listed ones count too, by the convexity of log E in 1/temperature.
        Otherwise the ends are listed temperatures.

    Returns
    -------
    low, high : float
        NaN, NaN where all are refuted. An end of the list that is not refuted is not a bound: 0 or infinity.

    Examples
    --------
    >>> e = np.array([40.0] * 6 + [9.0, 0.0, 0.0, 2.0] + [30.0] * 6)
    >>> confidence_set(np.array([e, e]), 0.05, every=False)
    (0.8, 1.0)
    """
    limit = -math.log(alpha)
    beta_K = 1 / np.array(TEMPERATURES)
    fits_K = np.where(beta_K <= 1, log_e_SK[0], log_e_SK[1]) < limit
    found = [np.array(TEMPERATURES)[fits_K]]
    if every:
        for log_e_K, side in zip(log_e_SK, (beta_K <= 1, beta_K >= 1), strict=True):
            between = _between(beta_K[::-1], log_e_K[::-1], limit)
            ends = beta_K[side]
            found.append(1 / between[(between >= ends.min()) & (between <= ends.max())])
    kept_N = np.concatenate(found)
    if not len(kept_N):
        return math.nan, math.nan
    low, high = float(kept_N.min()), float(kept_N.max())
    return 0.0 if fits_K[0] else low, math.inf if fits_K[-1] else high


def _between(x_N: Floats, y_N: Floats, limit: float) -> Floats:
    """Places between rising x, at most a step from each other, where a convex y may be below the limit.

    In a gap a convex function lies above the line through the two points left of it, extended, and above that
    through the two points right of it. Each place stands for the step on either side of it.
    """
    kept = []
    for i in range(len(x_N) - 1):
        x = np.linspace(x_N[i], x_N[i + 1], _STEPS + 1)
        least = np.full(len(x), -np.inf)
        if i:
            least = y_N[i] + (x - x_N[i]) * (y_N[i] - y_N[i - 1]) / (x_N[i] - x_N[i - 1])
        if i + 2 < len(x_N):
            slope = (y_N[i + 2] - y_N[i + 1]) / (x_N[i + 2] - x_N[i + 1])
            least = np.maximum(least, y_N[i + 1] + (x - x_N[i + 1]) * slope)
        below = least < limit
        # A step in which one end is below may cross the limit anywhere in it.
        below = below | np.r_[below[1:], False] | np.r_[False, below[:-1]]
        kept.append(x[below])
    return np.concatenate(kept) if kept else np.empty(0)
