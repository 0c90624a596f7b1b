"""Tests that need no likelihood: equal hashes, and the margin of the tokens alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdx.analysis.numerics import Bools, mismatch_bound

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Repeating:
    """Whether a config's repeats are bit-equal.

    Attributes
    ----------
    reruns : int
        References rerun, in all repeats after the first.
    equal : int
        Those whose every compared row has the first repeat's hash.
    """

    reruns: int
    equal: int

    @property
    def bit_equal(self) -> bool:
        """Rerun at least once, and equal every time."""
        return 0 < self.reruns == self.equal

    @property
    def error(self) -> float:
        """95 % upper bound of the rate at which an honest rerun mismatches; NaN unless `bit_equal`."""
        return mismatch_bound(self.reruns) if self.bit_equal else float("nan")


def pooled(parts: Sequence[Repeating]) -> Repeating:
    """Reruns of one config on several transcripts, counted together."""
    return Repeating(sum(part.reruns for part in parts), sum(part.equal for part in parts))


def equality_p(differ: int, judged: int, reruns: int) -> float:
    """P-value of `differ` of `judged` references that mismatch while none of `reruns` did.

    If the claim is true, a judged reference is one more rerun of it: given that k of R + n mismatch, all k
    fall among the R judged with probability C(R, k)/C(R + n, k) (Fisher's exact test, 1922), whatever the
    mismatch rate is. 1 when none differs; NaN when nothing was judged.
    """
    if not judged:
        return math.nan
    return math.comb(judged, differ) / math.comb(judged + reruns, differ)


def repeating(hash_QRP: Hashes, compared_QRP: Bools) -> Repeating:
    """Compare repeats with the first.

    Parameters
    ----------
    hash_QRP : array (repeat, reference, position)
    compared_QRP : array (repeat, reference, position)
        Rows of a repeat that can be compared with the first repeat's; entry 0 is not looked at.
    """
    here = compared_QRP[1:]
    equal = ((hash_QRP[1:] == hash_QRP[:1]) | ~here).all(-1)
    rerun = here.any(-1)
    return Repeating(int(rerun.sum()), int((rerun & equal).sum()))


def why_not_exact(producer: tuple[str, ...], verifier: tuple[str, ...], claimed: Repeating) -> str:
    """Say why equal hashes prove nothing here, or differing ones do not refute; "" when they do.

    Rows of honest runs are equal only where the environment class (compute capability, SM count, engine,
    its version, batch) is one and the claimed config repeats bit by bit in it. Whether it does is measured
    here: a producer who could state it might lie to escape the test.
    """
    if producer != verifier:
        return "other environment class"
    if not claimed.reruns:
        return "the verifier ran once"
    return "" if claimed.bit_equal else "the config does not repeat here"
