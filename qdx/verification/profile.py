"""Score a transcript by its profile: how far it is from all replays, not from the claimed one's only.

The misfit to the claimed config alone cannot refute a noisy claim: a transcript of an exact config lies no
further from a noisy config's replay than that config's own transcripts do. But it lies nearer to the exact
config's replay than they do, and a stranger's distances to all configs fit no config's profile.

With x_v the logarithm of a transcript's mean energy against config v's replay, a profile for claim c is all
x_v and all x_c − x_v (v ≠ c), in which a reference's own scale cancels. Its score is the greatest robust
deviation (x − centre)/spread of an entry. x_c and x_c − x_v count with their sign, so that a transcript
nearer to the claimed config than usual is not a misfit; x_v counts both ways. Energies under the rounding
floor count as the floor, and a transcript that is under it against the claimed config fits in every entry:
its score is that of x_c alone.

Axes: V configs that replayed, N or M transcripts, R references.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qdx.statistics import Bools, Floats
from qdx.verification.likelihood import Calibration, row_mean

_LEAST_SPREAD = 1e-6  # of a logarithm of an energy; an exact config's profile has no spread at all
_DIGITS = 9  # equal transcripts tie, however their sums were rounded


def _entries(energy_VX: Floats, claim: int, floor: float) -> Floats:
    """Profiles over the first axis, whatever the others: x_c, then x_c − x_v, then x_v (v ≠ c)."""
    with np.errstate(invalid="ignore"):
        x = np.log(np.maximum(energy_VX, floor))
    others = np.delete(x, claim, 0)
    return np.asarray(np.concatenate([x[claim : claim + 1], x[claim] - others, others]))


def _greatest(deviation_EX: Floats, others: int, fitting_X: Bools) -> Floats:
    """Greatest deviation of each profile; what follows x_c and `others` differences counts both ways."""
    deviation_EX[1 + others :] = np.abs(deviation_EX[1 + others :])
    return np.asarray(_rounded(np.where(fitting_X, deviation_EX[0], deviation_EX.max(0))))


def _rounded(value: Floats) -> Floats:
    """Round to `_DIGITS` significant digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.floor(np.log10(np.abs(value)))
    step = 10.0 ** (np.where(np.isfinite(power), power, 0.0) - _DIGITS + 1)
    return np.asarray(np.round(value / step) * step)


@dataclass(frozen=True)
class Profile:
    """Centre and scale of a config's profiles, from references that are not used again.

    Attributes
    ----------
    claim : int
        c, index among the configs.
    used_V : array (config,)
        Configs whose replays enter; one that is missing for a fitted reference does not.
    centre_E, spread_E : array (entry,)
        Median and median absolute deviation: x_c, then x_c − x_v, then x_v for the used v ≠ c.
    floor : float
        Energies under it count as it: rounding alone makes so much.
    """

    claim: int
    used_V: Bools
    centre_E: Floats
    spread_E: Floats
    floor: float

    def score(self, energy_VM: Floats, factor: float = 0.0) -> Floats:
        """Score transcripts, judged ones and the calibration's testing part alike.

        Parameters
        ----------
        energy_VM : array (config, transcript)
            Mean energy of each transcript against each config's replay.
        factor : float
            By how many times an honest transcript's energy against the claim may be what is usual; 0: by
            none. x_c and x_c − x_v are lowered by its logarithm. x_v may move by what the triangle inequality
            allows: twice log(1 + the greatest such distance from c over the distance of c from v).

        Returns
        -------
        array (transcript,)
            Greater means a worse fit to the claim; in spreads. NaN where an energy that enters is missing.
        """
        energy = np.asarray(energy_VM, np.float64)[self.used_V]
        claim = int(self.used_V[: self.claim].sum())
        entry_EM = _entries(energy, claim, self.floor)
        apart_EM = entry_EM - self.centre_E[:, None]
        if factor:
            count = len(energy)
            apart_EM[:count] -= np.log(factor)
            moved_V = 2 * np.log1p(np.sqrt(factor * np.exp(self.centre_E[1:count])))[:, None]
            beyond = np.maximum(np.abs(apart_EM[count:]) - moved_V, 0)
            apart_EM[count:] = np.sign(apart_EM[count:]) * beyond
        deviation_EM = apart_EM / self.spread_E[:, None]
        score = _greatest(deviation_EM, len(energy) - 1, energy[claim] <= self.floor)
        return np.asarray(np.where(np.isfinite(energy).all(0), score, np.nan))


def fit_profile(energy_VN: Floats, claim: int, floor: float) -> Profile | None:
    """Fit centre and scale to the fitting part of a config's calibration (`calibration_size.split`).

    Parameters
    ----------
    energy_VN : array (config, reference)
        Mean energies (`likelihood.row_mean` over tokens) of the claimed config's known transcripts against
        every config's replay. A reference without the claimed config's replay is left out.
    claim : int
        c, index of the claimed config.
    floor : float
        Mean of `likelihood.ulp_floor` over the fitted references' rows; one number for all, so that
        transcripts without any difference tie.

    Returns
    -------
    Profile or None
        None when no reference was measured.
    """
    energy = np.asarray(energy_VN, np.float64)
    energy = energy[:, np.isfinite(energy[claim])]
    if not energy.shape[1]:
        return None
    used = np.asarray(np.isfinite(energy).all(-1))
    entry_EN = _entries(energy[used], int(used[:claim].sum()), floor)
    centre_E = np.median(entry_EN, -1)
    spread_E = np.median(np.abs(entry_EN - centre_E[:, None]), -1) + _LEAST_SPREAD
    return Profile(claim, used, centre_E, spread_E, floor)


def profile_fractions(energy_VT: Floats, floor_T: Floats, calibration: Calibration) -> list[Fraction | None]:
    """Conformal p of one transcript for every claim, without giving up references for the fit.

    Centre and spread are taken over the n + 1 transcripts, the n of the claimed config and the judged one.
    The n + 1 are treated alike, so their scores are exchangeable under the claim if the transcripts are, and
    p = (1 + #{T₀ ≥ T})/(n + 1) has exactly its level (Vovk et al. 2005, section 2.2). The p of several judged
    transcripts have no exact joint law; pool scores of `fit_profile` instead.

    Parameters
    ----------
    energy_VT : array (config, token)
        Of the judged transcript against each config's replay.
    floor_T : array (token,)
        Energies under the mean floor of the n + 1 count as that.
    calibration : Calibration
        Without the judged reference.

    Returns
    -------
    list (config,) of Fraction or None
        None for a claim without calibration references, and where the claimed config's replay is missing.
    """
    judged_V, own_floor = row_mean(energy_VT), float(row_mean(floor_T))
    floors_CN = row_mean(calibration.floor_CNT)
    known_CVN = row_mean(calibration.energy_CVNT)
    found: list[Fraction | None] = []
    for c, known_VN in enumerate(known_CVN):
        here = np.isfinite(known_VN[c])
        if not here.any() or not np.isfinite(judged_V[c]):
            found.append(None)
            continue
        floor = float(np.mean([*floors_CN[c, here], own_floor]))
        all_VM = np.concatenate([known_VN[:, here], judged_V[:, None]], -1)
        fit = fit_profile(all_VM, c, floor)
        assert fit is not None
        score_M = fit.score(all_VM)
        found.append(Fraction(int((score_M >= score_M[-1]).sum()), len(score_M)))
    return found


def profile_p(energy_VT: Floats, floor_T: Floats, calibration: Calibration) -> Floats:
    """`profile_fractions` as an array (config,), NaN for None."""
    fractions = profile_fractions(energy_VT, floor_T, calibration)
    return np.array([np.nan if p is None else float(p) for p in fractions])


def symmetric_scores(energy_RMM: Floats, energy_RMV: Floats, floor: float) -> Floats:
    """Score a producer and the verifier's own repeats of one claimed config by one rule.

    x_c of a member is the logarithm of its mean energy against the other members, x_v that against another
    config's replay. Every entry is centred on its median over the reference's members, since only members
    of one reference are compared. That median does not change when the members are permuted, so a
    permutation within a reference permutes its scores and does nothing else: `p_values.within_reference_p`
    is exact. All entries are logarithms of ratios and are compared as they are. A spread over all members
    would be as valid, but where the producer is false in every reference it is the false members' own, and
    hides them: in a simulation it found a far checkpoint with one repeat in 0 of 150 trials instead of 150.

    Two members lie equally far from their median, so that only x_c − x_v, which has a sign, can tell them
    apart: x_v is left out. Then nothing shows a stranger that lies further from every replay. Two repeats do.

    Parameters
    ----------
    energy_RMM : array (reference, member, member)
        Mean energies between members of the claimed config, member 0 the producer; symmetric, the diagonal
        is not looked at.
    energy_RMV : array (reference, member, other config)
        Mean energies of each member against each other config's replay. A config that is missing for a
        member of a complete reference does not enter. There may be none.
    floor : float
        See `Profile.floor`.

    Returns
    -------
    array (reference, member)
        In nats; greater means a worse fit. NaN in all members of a reference in which an energy between
        members is missing.
    """
    between = np.asarray(energy_RMM, np.float64)
    references, members = between.shape[:2]
    off = ~np.eye(members, dtype=bool)
    complete = np.isfinite(between[:, off]).all(-1)
    score = np.full((references, members), np.nan)
    if members < 2 or not complete.any():
        return score
    own_RM = np.where(off, between[complete], 0.0).sum(-1) / (members - 1)
    others = np.moveaxis(np.asarray(energy_RMV, np.float64)[complete], -1, 0)
    others = others[np.isfinite(others).all((-1, -2))]
    entry_ERM = _entries(np.concatenate([own_RM[None], others]), 0, floor)
    if members == 2:
        entry_ERM = entry_ERM[: len(others) + 1]
    centre = np.median(entry_ERM, -1, keepdims=True)
    score[complete] = _greatest(entry_ERM - centre, len(others), own_RM <= floor)
    return score
