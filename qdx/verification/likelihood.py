"""Score how likely each config makes a transcript's sketches; a noisy config does not lose by noise.

With r_t = sketch_t − sketch_t^c (k components, the producer's row minus config c's replay of it) the
sketches are taken as normal of variance s_c² a component: ℓ_c = −½ Σ_t (‖r_t‖²/s_c² + k ln s_c²).
Everything below works on *energies* e_t = ‖r_t‖²/k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError
from qdx.statistics import Floats

MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23}
SHRINKAGE = 1.0  # the pooled scale weighs as much as this many calibration references


def energy(residual: NDArray[np.floating]) -> Floats:
    """‖r‖²/k over the last axis (component); NaN where a row is missing."""
    wide = np.asarray(residual, np.float64)
    return np.asarray(np.einsum("...k,...k->...", wide, wide) / wide.shape[-1])


def ulp_floor(sketch: NDArray[np.floating], dtype: str) -> Floats:
    """ULP²/12 of the model's data type at a row's scale: variance of a component by rounding alone.

    Parameters
    ----------
    sketch : array (…, component)
        A component of a sketch is about √(vocab/k) logits wide (E sketch² = ‖z‖²/k), and so is the sum of
        the logits' rounding errors; ULP at the sketch's root mean square is therefore at the right scale.
    dtype : str
        float16, bfloat16 or float32.

    Returns
    -------
    array (…)
        Uniform rounding errors of one ULP have variance ULP²/12.
    """
    if dtype not in MANTISSA:
        raise QdxError(f"logits of dtype {dtype!r}: the likelihood knows {', '.join(MANTISSA)}")
    scale = np.sqrt(energy(sketch))
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(scale))
    ulp = np.where(scale > 0, np.exp2(np.maximum(exponent, -14.0) - MANTISSA[dtype]), np.nan)
    ulp = np.where(scale == 0, 2.0 ** (-14 - MANTISSA[dtype]), ulp)
    return np.asarray(ulp**2 / 12)


def row_mean(values_T: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN, without a warning, where all is."""
    measured = np.isfinite(values_T)
    count = measured.sum(-1)
    total = np.where(measured, values_T, 0.0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, total / count, np.nan))


@dataclass(frozen=True)
class Calibration:
    """Transcripts of known configs, made in the producer's environment class, replayed in the verifier's.

    Attributes
    ----------
    energy_CVNT : array (config, replaying config, reference, token)
        NaN for rows that are missing; a reference without rows does not count.
    floor_CNT : array (config, reference, token)
        See `ulp_floor`.
    components : int
        k.
    """

    energy_CVNT: Floats
    floor_CNT: Floats
    components: int

    @property
    def energy_CNT(self) -> Floats:
        """The honest pairs: a config's transcripts and its own replay of them, (config, reference, token)."""
        return np.stack([rows_VNT[c] for c, rows_VNT in enumerate(self.energy_CVNT)])

    def without(self, reference: int) -> Calibration:
        """The same without one reference."""
        keep = np.arange(self.floor_CNT.shape[1]) != reference
        return Calibration(self.energy_CVNT[:, :, keep], self.floor_CNT[:, keep], self.components)

    def only(self, references: NDArray[np.int64]) -> Calibration:
        """The same with these references alone, by index."""
        return Calibration(self.energy_CVNT[:, :, references], self.floor_CNT[:, references], self.components)

    def means(self) -> Calibration:
        """The same with one token a reference, their mean: all that profiles and scales use, in less time."""
        return Calibration(
            row_mean(self.energy_CVNT)[..., None], row_mean(self.floor_CNT)[..., None], self.components
        )

    @property
    def references_C(self) -> NDArray[np.int64]:
        """Calibration references of each config."""
        return np.asarray(np.isfinite(self.energy_CNT).any(-1).sum(-1), np.int64)


def scales(mean_CN: Floats, floor_C: Floats) -> Floats:
    """s_c²: mean energy over references, at least the floor, shrunk to the pooled log-mean; (config,).

    ln s̃² = (n ln s² + n₀ m)/(n + n₀) with m the mean of ln s² over configs and n₀ = `SHRINKAGE`: a
    config with few references borrows from the others. NaN for a config without references.
    """
    count_C = np.isfinite(mean_CN).sum(-1)
    log_C = np.log(np.maximum(row_mean(mean_CN), floor_C))
    pooled = row_mean(log_C)
    return np.asarray(np.exp((count_C * log_C + SHRINKAGE * pooled) / (count_C + SHRINKAGE)))


def misfit(energy_T: Floats, floor_T: Floats, scale: Floats) -> Floats:
    """e_t/s² + ln s² with s² at least the row's floor; −2/k times a token's log-likelihood.

    Arrays broadcast; the result has the last axis token.
    """
    variance = np.maximum(scale, floor_T)
    return np.asarray(energy_T / variance + np.log(variance))


def token_misfits(energy_CT: Floats, floor_T: Floats, calibration: Calibration) -> Floats:
    """`misfit` of one transcript for every claim, scales from the calibration: (config, token)."""
    mean_CN = row_mean(calibration.energy_CNT)
    floor_C = row_mean(row_mean(calibration.floor_CNT))
    return misfit(energy_CT, floor_T, scales(mean_CN, floor_C)[:, None])


def log_likelihood(misfit_CT: Floats, components: int) -> Floats:
    """ℓ_c = −½ k Σ_t misfit over the rows that were measured; NaN where none was."""
    measured = np.isfinite(misfit_CT)
    total = np.where(measured, misfit_CT, 0.0).sum(-1)
    return np.asarray(np.where(measured.any(-1), -0.5 * components * total, np.nan))


def likelihood_p(energy_CT: Floats, floor_T: Floats, calibration: Calibration) -> Floats:
    """Conformal p of one transcript for every claim, T = mean misfit of its tokens: (config,).

    Each of the n + 1 transcripts (calibration and judged) is scored by scales of the n others, the judged
    one counting as the claimed config's in the turns of the calibration. That makes the scores exchangeable
    under the claim, so the level is exact; scaling the calibration by itself alone would not be.

    No verdict uses it: ``benchmarks/calibration.py`` compares it with `profile.profile_p`, which they use.

    Parameters
    ----------
    energy_CT : array (config, token)
        Of the judged transcript against each config's replay.
    floor_T : array (token,)
    calibration : Calibration
        Without the judged reference.

    Returns
    -------
    array (config,)
        NaN for a config without calibration references.
    """
    mean_CN = row_mean(calibration.energy_CNT)
    floors_CN = row_mean(calibration.floor_CNT)
    floor_C = row_mean(floors_CN)
    own_C, own_floor = row_mean(energy_CT), float(row_mean(floor_T))
    logs_C = np.log(np.maximum(row_mean(mean_CN), floor_C))
    energy_CNT = calibration.energy_CNT
    result = np.full(len(mean_CN), np.nan)
    for c, mean_N in enumerate(mean_CN):
        here = np.isfinite(mean_N)
        n = int(here.sum())
        if not n or not np.isfinite(own_C[c]):
            continue
        means = np.append(mean_N[here], own_C[c])
        floors = np.append(floors_CN[c, here], own_floor)
        # Scales without each of the n + 1 in turn.
        logs = np.log(np.maximum((means.sum() - means) / n, (floors.sum() - floors) / n))
        others = np.delete(logs_C, c)
        others = others[np.isfinite(others)]
        pooled = (logs + others.sum()) / (len(others) + 1)
        scale = np.exp((n * logs + SHRINKAGE * pooled) / (n + SHRINKAGE))
        energies = np.concatenate([energy_CNT[c, here], energy_CT[None, c]])
        rows = np.concatenate([calibration.floor_CNT[c, here], floor_T[None]])
        scores = row_mean(misfit(energies, rows, scale[:, None]))
        # Equal transcripts (an exact config's) must tie whatever the order their sums were rounded in.
        slack = 1e-9 * max(1.0, abs(float(scores[-1])))
        result[c] = (1 + int((scores[:-1] >= scores[-1] - slack).sum())) / (n + 1)
    return result
