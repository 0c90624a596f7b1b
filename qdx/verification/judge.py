"""Judge *Which of N* reference by reference, with calibration from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdx.statistics import Floats, Ints
from qdx.verification.conformal import Answer, answer
from qdx.verification.likelihood import (
    Calibration,
    log_likelihood,
    row_mean,
    token_misfits,
)
from qdx.verification.p_values import conformal_p
from qdx.verification.profile import profile_p


@dataclass(frozen=True)
class Judged:
    """Every transcript against every claim.

    Attributes
    ----------
    p_DCR : array (producer, config, reference)
        Conformal p; NaN where the config has no calibration.
    log_likelihood_DCR : array (producer, config, reference)
    misfit_DCRT : array (producer, config, reference, token)
    references_CR : array (config, reference)
        Calibration references that p was made with.
    """

    p_DCR: Floats
    log_likelihood_DCR: Floats
    misfit_DCRT: Floats
    references_CR: NDArray[np.int64]


def judge(
    energy_DCRT: Floats, floor_DRT: Floats, calibration: Calibration, same_reference_R: Sequence[int]
) -> Judged:
    """Judge transcripts by calibration that never includes their own reference.

    Parameters
    ----------
    energy_DCRT : array (producer, config, reference, token)
        ‖r‖²/k of producer d's rows and config c's replay of them.
    floor_DRT : array (producer, reference, token)
        See `likelihood.ulp_floor`.
    calibration : Calibration
    same_reference_R : sequence of int
        Where each judged reference is among the calibration's; −1: it is not there.
    """
    producers, configs, references, tokens = energy_DCRT.shape
    p_DCR = np.full((producers, configs, references), np.nan)
    loglik = p_DCR.copy()
    misfits = np.full((producers, configs, references, tokens), np.nan)
    counts = np.zeros((configs, references), np.int64)
    calibration = calibration.means()
    mean_DCR1, floor_DR1 = row_mean(energy_DCRT)[..., None], row_mean(floor_DRT)[..., None]
    for r, same in enumerate(same_reference_R):
        others = calibration if same < 0 else calibration.without(same)
        counts[:, r] = others.references_C
        for d in range(producers):
            misfits[d, :, r] = token_misfits(energy_DCRT[d, :, r], floor_DRT[d, r], others)
            p_DCR[d, :, r] = profile_p(mean_DCR1[d, :, r], floor_DR1[d, r], others)
            loglik[d, :, r] = log_likelihood(misfits[d, :, r], calibration.components)
    return Judged(p_DCR, loglik, misfits, counts)


def equal_rows_fit(p_DCR: Floats, equal_DCR: Ints, expected_DCR: Ints) -> Floats:
    """p, but 1 where every row that the verifier has is bit-equal to the producer's: always in the set.

    Such a transcript cannot be nearer to the config, whatever distances other prompts gave, and greater p
    can only make a set greater. Without calibration of the config (p is NaN) it is in the set all the same.
    """
    return np.where((expected_DCR > 0) & (equal_DCR == expected_DCR), 1.0, p_DCR)


def judge_scores(score_DCR: Floats, null_CN: Floats, same_reference_R: Sequence[int]) -> Floats:
    """Conformal p of one score a transcript (a distance, a margin) against honest pairs of other references.

    Parameters
    ----------
    score_DCR : array (producer, config, reference)
        Greater means a worse fit.
    null_CN : array (config, calibration reference)
        Scores of honest pairs; NaN where there is none.
    same_reference_R : sequence of int
        Where each judged reference is among the calibration's; −1: it is not there.

    Returns
    -------
    array (producer, config, reference)
        NaN where the config has no calibration, or the score was not measured.
    """
    p = np.full(score_DCR.shape, np.nan)
    for d, c, r in np.ndindex(*score_DCR.shape):
        same = same_reference_R[r]
        null = null_CN[c] if same < 0 else np.delete(null_CN[c], same)
        found = conformal_p(float(score_DCR[d, c, r]), null)
        p[d, c, r] = np.nan if found is None else float(found)
    return p


def best(score_DCR: Floats) -> NDArray[np.int64]:
    """Config of the greatest score, (producer, reference); −1: a tie, or nothing measured."""
    filled = np.where(np.isfinite(score_DCR), score_DCR, -np.inf)
    top = filled.max(1)
    alone = (filled == top[:, None]).sum(1) == 1
    return np.where(np.isfinite(top) & alone, filled.argmax(1), -1).astype(np.int64)


OTHER_ANSWERS = ("one of", "unknown", "not calibrated")


def answers(labels: Sequence[str], p_DCR: Floats, alpha: float) -> list[list[Answer]]:
    """`conformal.answer` of every transcript: producers, each with its references."""
    producers, _, references = p_DCR.shape
    return [[answer(labels, p_DCR[d, :, r], alpha) for r in range(references)] for d in range(producers)]


def confusion(labels: Sequence[str], judged: Sequence[Sequence[Answer]]) -> NDArray[np.int64]:
    """Counts (producer, answer) with answers `labels` and then `OTHER_ANSWERS`."""
    names = [*labels, *OTHER_ANSWERS]
    counts = np.zeros((len(judged), len(names)), np.int64)
    for d, row in enumerate(judged):
        for one in row:
            counts[d, names.index(one.members[0] if one.kind == "verdict" else one.kind)] += 1
    return counts
