"""Name a config by distance, when one number a transcript is all that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdx.statistics import Floats
from qdx.verification.judge import best
from qdx.verification.likelihood import Calibration, token_misfits


@dataclass(frozen=True)
class Named:
    """The config that each transcript is named to be.

    Attributes
    ----------
    likeliest_DR : array (producer, reference)
        Index of the config of the greatest likelihood; −1: a tie, or nothing was measured.
    nearest_DR : array (producer, reference)
        Index of the config of the least distance.
    log_likelihood_DCR : array (producer, config, reference)
        Up to a constant.
    """

    likeliest_DR: NDArray[np.int64]
    nearest_DR: NDArray[np.int64]
    log_likelihood_DCR: Floats


def name_by_distance(distance_DCR: Floats, producers: Sequence[str], configs: Sequence[str]) -> Named:
    """Name each transcript's config by likelihood and by least distance, leaving its own reference out.

    The distance is taken as one component of a normal residual, of the claimed config's variance: a noisy
    config may be far off and still be the likeliest (see `likelihood`). The variances come from the
    producers' own labels at the other references. So this shows how well labels that are true are told
    apart, and is not a verdict.

    Parameters
    ----------
    distance_DCR : array (producer, config, reference)
        NaN where not measured.
    producers, configs : sequence of str
        The calibration of a config are the transcripts of the producer of its name.
    """
    positive = distance_DCR[distance_DCR > 0]
    floor = float(positive.min()) ** 2 if positive.size else 1.0
    energy_DCR = distance_DCR**2
    references = energy_DCR.shape[-1]
    known = np.full((len(configs), len(configs), references, 1), np.nan)
    for c, label in enumerate(configs):
        if label in producers:
            known[c, ..., 0] = energy_DCR[list(producers).index(label)]
    calibration = Calibration(known, np.full((len(configs), references, 1), floor), 1)
    log_likelihood = np.full(distance_DCR.shape, np.nan)
    for r in range(references):
        others = calibration.without(r)
        for d in range(len(producers)):
            misfit_CT = token_misfits(energy_DCR[d, :, r, None], np.full(1, floor), others)
            log_likelihood[d, :, r] = -0.5 * misfit_CT[:, 0]
    return Named(best(log_likelihood), best(-distance_DCR), log_likelihood)
