"""Calculate what the exact tests find before anything was measured: counts in, probabilities out.

A transcript *stands out* when its score lies above all calibration's, or above all repeats' of its reference.
How many tokens that takes is measured, not calculated (the section *Which of N*). All probabilities here are
exact, and those of tests with two statistics are lower bounds, since one statistic is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from qdx.verification.calibration_size import fewest_false
from qdx.verification.p_values import binomial_tail, fisher_equality_p, sums_reaching


def pooled_power(false: int, judged: int, null: int, share: Fraction) -> Fraction:
    """Probability at least that `pooled_p` ≤ `share` with so many false transcripts, all standing out.

    The tail count needs k above all n of calibration. What the false ones lack of k, honest ones may give by
    chance: i of m − d lie above all n with probability C(m − d, i)/C(m − d + n, i).

    Parameters
    ----------
    false, judged, null : int
        d of the m judged transcripts stand out; n calibration references test.
    share : Fraction
        α/(c · T).
    """
    k = fewest_false(share, 1, 1, judged, null)
    if k is None:
        return Fraction(0)
    honest, lacking = judged - false, max(0, k - false)
    return Fraction(math.comb(honest, lacking), math.comb(honest + null, lacking))


def within_power(false: int, references: int, members: int, share: Fraction) -> Fraction:
    """Probability at least that `within_reference_p` ≤ `share`: the greater of its two statistics' powers.

    Parameters
    ----------
    false, references : int
        The producer stands out in d of R references and is one of the repeats in the others.
    members : int
        The producer and the verifier's repeats.
    share : Fraction
        α/(c · T).
    """
    part = share if members == 2 else share / 2
    honest = references - false
    least = next((k for k in range(references + 1) if binomial_tail(references, k, members) <= part), None)
    by_count = Fraction(0)
    if least is not None:
        by_count = binomial_tail(honest, max(0, least - false), members)
    low, high = 0, references * (members - 1) + 1  # the least sum of ranks that rejects lies in (low, high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _rank_tail(references, members, middle) <= part else (middle, high)
    by_rank = _rank_tail(honest, members, max(0, high - false * (members - 1)))
    return max(by_count, by_rank)


def _rank_tail(references: int, members: int, least: int) -> Fraction:
    """P(sum ≥ least) of so many ranks that are uniform on 0 … members − 1."""
    if not references:
        return Fraction(int(least <= 0))
    ranks = np.tile(np.arange(members), (references, 1))
    return Fraction(sums_reaching(ranks, least), members**references)


def equality_power(false: int, judged: int, reruns: int, share: Fraction) -> Fraction:
    """1 where `fisher_equality_p` ≤ `share` when so many differ in a row and no rerun does, else 0."""
    p = fisher_equality_p(false, judged, reruns)
    return Fraction(int(p is not None and p <= share))


def fewest_found(
    power: Callable[[int], Fraction], most: int, wanted: Fraction = Fraction(19, 20)
) -> int | None:
    """The least number of false transcripts, of `most`, that are found with the wanted probability.

    Parameters
    ----------
    power : callable
        Of the number of false ones; it must not fall as that grows.

    Returns
    -------
    int or None
        None when not even all of them are found so.
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= wanted else (middle, high)
    return high if high <= most else None


def level_spread(judged: int, null: int, share: Fraction, coverage: float = 0.95) -> tuple[float, float]:
    """Give the interval of the tail count's level over calibration sets of n, of which the mean is `share`.

    Whoever draws one set keeps it for all producers. The chance q that an honest score lies above all n of
    this set is Beta(1, n), and with it an honest producer of m transcripts is refuted with P(Bin(m, q) ≥ k).

    Returns
    -------
    (low, high)
        Central interval; (0, 0) when nothing can be refuted.
    """
    k = fewest_false(share, 1, 1, judged, null)
    if k is None:
        return 0.0, 0.0
    tail = (1 - coverage) / 2
    ends = []
    for chance in (tail, 1 - tail):
        q = 1 - (1 - chance) ** (1 / null)
        ends.append(sum(math.comb(judged, i) * q**i * (1 - q) ** (judged - i) for i in range(k, judged + 1)))
    return ends[0], ends[1]
