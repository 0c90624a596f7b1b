"""Conformal p of a transcript's profile: how far it is from all replays, not the claimed one's only.

The misfit to the claimed config alone cannot refute a noisy claim: a transcript of an exact config lies no
further from a noisy config's replay than that config's own transcripts do. But it lies nearer to the exact
config's replay than they do, and a stranger's distances to all configs fit no config's profile.
"""

from __future__ import annotations

import numpy as np

from qdx.analysis.numerics import Floats
from qdx.analysis.verification.likelihood import Calibration, row_mean

_LEAST_SPREAD = 1e-6  # of a logarithm of an energy; an exact config's profile has no spread at all


def profile_p(energy_VT: Floats, floor_T: Floats, calibration: Calibration) -> Floats:
    """Conformal p of one transcript for every claim: (config,).

    With x_v the logarithm of a transcript's mean energy against config v's replay, a profile is all x_v
    and all x_c − x_v, in which a reference's own scale cancels. T = max |profile − median| / MAD over its
    entries, median and MAD (median absolute deviation) over the n + 1 transcripts, the n of the claimed
    config and the judged one. The n + 1 are treated alike, so their T are exchangeable under the claim if
    the transcripts are, and p = (1 + #{T₀ ≥ T})/(n + 1) has exactly its level (Vovk et al. 2005, section
    2.2).

    Parameters
    ----------
    energy_VT : array (config, token)
        Of the judged transcript against each config's replay.
    floor_T : array (token,)
        Energies under the mean floor of the n + 1 count as that: rounding alone makes so much.
    calibration : Calibration
        Without the judged reference.

    Returns
    -------
    array (config,)
        NaN for a claim without calibration references, and where the claimed config's replay is missing.
    """
    judged_V, own_floor = row_mean(energy_VT), row_mean(floor_T)
    floors_CN = row_mean(calibration.floor_CNT)
    known_CVN = row_mean(calibration.energy_CVNT)
    result = np.full(len(known_CVN), np.nan)
    for c, known_VN in enumerate(known_CVN):
        here = np.isfinite(known_VN[c])
        if not here.any() or not np.isfinite(judged_V[c]):
            continue
        all_VM = np.concatenate([known_VN[:, here], judged_V[:, None]], -1)
        floor = float(np.mean([*floors_CN[c, here], float(own_floor)]))
        x_VM = np.log(np.maximum(all_VM, floor))
        profiles = np.concatenate([x_VM, x_VM[c] - np.delete(x_VM, c, 0)])
        result[c] = _p(profiles[np.isfinite(profiles).all(-1)])
    return result


def _p(x_VM: Floats) -> float:
    """Rank of the last of M profiles by its greatest robust deviation."""
    deviation = np.abs(x_VM - np.median(x_VM, -1, keepdims=True))
    spread = np.median(deviation, -1, keepdims=True) + _LEAST_SPREAD
    score_M = (deviation / spread).max(0)
    slack = 1e-9 * max(1.0, float(score_M[-1]))  # equal transcripts tie, however their sums were rounded
    return float((score_M >= score_M[-1] - slack).mean())
