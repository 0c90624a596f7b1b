"""Split references into those that calibrate and those that are judged, by a hash and not by their order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdx.analysis.numerics import FEWEST_REFERENCES, Ints
from qdx.analysis.verification.p_values import fitting_part, level

FPR = 0.01  # of the strictest threshold, where there are references for it


@dataclass(frozen=True)
class Split:
    """Which references do what; none is in two parts.

    Attributes
    ----------
    fit : array of int
        Calibration references, by index, that fit centre and scale of the scores and make no threshold.
    honest : array of int
        The calibration's other references: the honest scores that thresholds are taken from.
    judged : array of int
        References of the judged transcripts.
    repeated : int
        References left out because their token ids are those of another one, which counts for both.
    """

    fit: Ints
    honest: Ints
    judged: Ints
    repeated: int

    @property
    def calibration(self) -> Ints:
        """All references that calibrate: those that fit, then the others."""
        return np.concatenate([self.fit, self.honest])


def threshold_references(alpha: float) -> int:
    """The least n with ⌊α(n + 1)⌋ ≥ 1: a threshold at level α takes as many honest scores.

    >>> threshold_references(0.05), threshold_references(0.01)
    (19, 99)
    """
    return math.ceil(1 / level(alpha)) - 1


def calibration_references(alpha: float) -> int:
    """References of a calibration from which a threshold at level α is left after the fit.

    >>> calibration_references(0.05), calibration_references(0.01)
    (27, 124)
    """
    needed = threshold_references(alpha)
    count = needed
    while count - fitting_part(count) < needed:
        count += 1
    return count


def fewest_to_split(alpha: float) -> int:
    """References from which on a split is made: a calibration at level α, and 8 that are judged."""
    return calibration_references(alpha) + FEWEST_REFERENCES


def split(keys: Sequence[str], alpha: float) -> Split | None:
    """Split the judged references themselves: half of them calibrate.

    A greater half would buy narrower thresholds with wider rates. The calibration never has fewer than a
    threshold at level `alpha` takes, and not more than one at 1 % takes (or one at `alpha`, if that is more).

    Parameters
    ----------
    keys : sequence of str
        A hash of every reference's token ids.
    alpha : float

    Returns
    -------
    Split or None
        None under `fewest_to_split` different references.

    Notes
    -----
    References are sorted by SHA-256 of their key, so that neither their order in the file nor their names,
    which a producer may choose, decides. Whoever chooses the prompts can compute the split beforehand: it
    measures error rates and is no defence against a liar.
    """
    order, repeated = _order(keys)
    needed = calibration_references(alpha)
    if len(order) < needed + FEWEST_REFERENCES:
        return None
    most = max(needed, calibration_references(FPR))
    count = min(max(len(order) // 2, needed), most)
    fit = fitting_part(count)
    return Split(order[:fit], order[fit:count], order[count:], repeated)


def beside(keys: Sequence[str], known_keys: Sequence[str], alpha: float) -> Split | None:
    """Split a separate calibration into its two parts; every judged reference is judged.

    Parameters
    ----------
    keys, known_keys : sequence of str
        Of the judged references, and of the calibration's. What is in both does not calibrate.

    Returns
    -------
    Split or None
        None where too few references calibrate for level `alpha`, or fewer than 8 are judged.
    """
    judged, repeated = _order(keys)
    order, known_repeated = _order(known_keys)
    order = np.array([i for i in order if known_keys[i] not in set(keys)], np.int64)
    if len(order) < calibration_references(alpha) or len(judged) < FEWEST_REFERENCES:
        return None
    fit = fitting_part(len(order))
    return Split(order[:fit], order[fit:], judged, repeated + known_repeated)


def _order(keys: Sequence[str]) -> tuple[Ints, int]:
    """The first reference of every key, sorted by the keys' hashes; how many others there are."""
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    ranked = sorted(first, key=lambda key: hashlib.sha256(key.encode()).digest())
    return np.array([first[key] for key in ranked], np.int64), len(keys) - len(first)
