"""Count how often a config's repeats are bit-equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdx.statistics import Bools

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Repeating:
    """Say whether a config's repeats are bit-equal.

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


def pooled(parts: Sequence[Repeating]) -> Repeating:
    """Reruns of one config on several transcripts, counted together."""
    return Repeating(sum(part.reruns for part in parts), sum(part.equal for part in parts))


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
