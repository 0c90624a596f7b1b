"""Count the known transcripts that tests need, and divide them into those that fit and those that test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

from qdx.errors import QdxError

FITTING = 8  # references from which a median and its absolute deviation are worth something


def _share_of_level(alpha: Fraction, claims: int, tests: int, judged: int) -> Fraction:
    if min(claims, tests, judged) < 1:
        raise QdxError(f"{claims} claims, {tests} tests and {judged} transcripts: each has to be 1 at least")
    return alpha / (claims * tests)


def fewest_calibration(
    alpha: Fraction, claims: int = 1, tests: int = 1, judged: int = 1, false: int | None = None
) -> int:
    """Count the calibration references, beside the fitting part, at which a rejection is possible.

    The least p of one transcript is 1/(n + 1), that of m > 1 is 2/C(m + n, m); it has to be α/(c · T) at
    most for the least of c claims with T listed tests each.

    Parameters
    ----------
    false : int, optional
        Find so many that score above all calibration, whatever the other judged ones score. Default: all.
    """
    share = _share_of_level(alpha, claims, tests, judged)
    k = judged if false is None else false
    if not 1 <= k <= judged:
        raise QdxError(f"{k} false transcripts of {judged}: there are 1 to {judged}")
    n = 1
    while _tail_p(judged, n, k) > share:
        n *= 2
    low = n // 2  # not enough, or 0
    while n - low > 1:
        middle = (low + n) // 2
        low, n = (low, middle) if _tail_p(judged, middle, k) <= share else (middle, n)
    return n


def _tail_p(judged: int, null: int, k: int) -> Fraction:
    """`p_values.pooled_p` at most, where k of the judged scores lie above all calibration's."""
    factor = 1 if judged == 1 else 2
    return factor * Fraction(math.comb(judged, k), math.comb(judged + null, k))


def fewest_false(alpha: Fraction, claims: int, tests: int, judged: int, null: int) -> int | None:
    """Count the false transcripts of m that are surely found when their scores lie above all calibration's.

    Returns
    -------
    int or None
        The least k with 2 · C(m, k)/C(m + n, k) ≤ α/(c · T), whatever the other m − k scores are; None when
        not even all m are enough.
    """
    share = _share_of_level(alpha, claims, tests, judged)
    return next((k for k in range(1, judged + 1) if _tail_p(judged, null, k) <= share), None)


def fitting_part(total: int) -> int:
    """Count the calibration references that fit centre and scale: max(8, ⌈total/5⌉).

    Under 8 values a median absolute deviation is off by a factor of two in one of ten sets, and a score of a
    bad scale costs power. A fifth keeps most references for the test, whose least p depends on their number,
    while the scale gets better with the set. The level is exact with any part.
    """
    return min(total, max(FITTING, math.ceil(total / 5)))


def calibration_total(null: int) -> int:
    """Count the calibration references of which `null` are left after the fit: the least such number.

    Examples
    --------
    >>> calibration_total(39), calibration_total(99)
    (49, 124)
    """
    total = null
    while total - fitting_part(total) < null:
        total += 1
    return total


def split(keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """Divide calibration references into those that fit centre and scale and those that test.

    The division is fixed before any value is seen: it goes by the SHA-256 of each reference's key (the hash
    of its token ids), not by its position or name, so that nobody chooses it.

    Parameters
    ----------
    keys : sequence of str

    Returns
    -------
    (fit, test)
        Indices in ascending order, `fitting_part` of them in the first list.
    """
    order = sorted(range(len(keys)), key=lambda i: (hashlib.sha256(keys[i].encode()).digest(), i))
    part = fitting_part(len(keys))
    return sorted(order[:part]), sorted(order[part:])
