"""Split references into those that calibrate and those that are judged, by a hash and not by their order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdx.statistics import FEWEST_REFERENCES, Ints
from qdx.verification.calibration_size import fitting_part
from qdx.verification.p_values import level

FPR = 0.01  # of the strictest threshold, where there are references for it


@dataclass(frozen=True)
class Split:
    """Assign the references to their parts; none is in two of them.

    Attributes
    ----------
    fit : array of int
        Calibration references, by index, that fit centre and scale of the scores and make no threshold.
    honest : array of int
        The calibration's other references: the honest scores that thresholds are taken from.
    judged : array of int
        References of the judged transcripts.
    left_out : int
        References that are of one unit with another, which counts for all of it.
    """

    fit: Ints
    honest: Ints
    judged: Ints
    left_out: int

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


def split(keys: Sequence[str], unit_R: Ints, alpha: float) -> Split | None:
    """Split the judged references themselves: half of them calibrate.

    A greater half would buy narrower thresholds with wider rates. The calibration never has fewer than a
    threshold at level `alpha` takes, and not more than one at 1 % takes (or one at `alpha`, if that is more).

    Parameters
    ----------
    keys : sequence of str
        A hash of every reference's token ids.
    unit_R : array (reference,)
        The unit that each belongs to (`units.units_of`). One reference of a unit is used, so that what is
        counted is independent and no unit is in two parts.
    alpha : float

    Returns
    -------
    Split or None
        None under `fewest_to_split` units.

    Notes
    -----
    Units are sorted by the least SHA-256 of their references' keys, so that neither their order in the file
    nor their names, which a producer may choose, decides. Whoever chooses the prompts can compute the split
    beforehand: it measures error rates and is not a defence against a liar.
    """
    order, left_out = _order(keys, unit_R)
    needed = calibration_references(alpha)
    if len(order) < needed + FEWEST_REFERENCES:
        return None
    most = max(needed, calibration_references(FPR))
    count = min(max(len(order) // 2, needed), most)
    fit = fitting_part(count)
    return Split(order[:fit], order[fit:count], order[count:], left_out)


def beside(
    keys: Sequence[str], unit_R: Ints, known_keys: Sequence[str], known_unit_R: Ints, alpha: float
) -> Split | None:
    """Split a separate calibration into its two parts; every judged reference is judged.

    Parameters
    ----------
    keys, known_keys : sequence of str
        Of the judged references, and of the calibration's. What is in both does not calibrate.
    unit_R, known_unit_R : array (reference,)
        See `split`.

    Returns
    -------
    Split or None
        None where too few references calibrate for level `alpha`, or fewer than 8 are judged.
    """
    judged, left_out = _order(keys, unit_R)
    order, known_left_out = _order(known_keys, known_unit_R)
    both = {int(unit) for key, unit in zip(known_keys, known_unit_R, strict=True) if key in set(keys)}
    order = np.array([i for i in order if int(known_unit_R[i]) not in both], np.int64)
    if len(order) < calibration_references(alpha) or len(judged) < FEWEST_REFERENCES:
        return None
    fit = fitting_part(len(order))
    return Split(order[:fit], order[fit:], judged, left_out + known_left_out)


def units_of_all(units_DR: Ints) -> Ints:
    """Units of references over all producers: of one unit where they are for any producer.

    Parameters
    ----------
    units_DR : array (producer, reference)
    """
    joined = units_DR[0].copy()
    changed = True
    while changed:
        before = joined.copy()
        for unit_R in units_DR:
            for unit in np.unique(unit_R):
                members = unit_R == unit
                joined[np.isin(joined, joined[members])] = joined[members].min()
        changed = bool((joined != before).any())
    return np.asarray(joined, np.int64)


def _order(keys: Sequence[str], unit_R: Ints) -> tuple[Ints, int]:
    """One reference of every unit, sorted by hash; how many others there are."""
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    ranked = sorted(range(len(keys)), key=lambda i: (hashes[i], i))
    first: dict[int, int] = {}
    for i in ranked:
        first.setdefault(int(unit_R[i]), i)
    return np.array(list(first.values()), np.int64), len(keys) - len(first)
