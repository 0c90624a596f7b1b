"""f-divergences of two distributions, in forms whose rounding error vanishes with the divergence itself.

Kernels of one checkpoint may differ by 1e-3 in a logit and so by 1e-7 in a divergence: the textbook sums
cancel terms of size 1 and would leave nine digits of it. The forms here add terms that do not cancel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdx.metrics._rows import difference
from qdx.plugins import register

_TINY = torch.finfo(torch.float64).tiny
_BELOW_ONE = 1.0 - torch.finfo(torch.float64).eps
_LARGEST_RATIO = 600.0  # exp(709) is float64's largest power, and exp(−708) its last normal one


@register("metric", "kl", symmetric=False, units="nat", on_self=0.0, formula="Σ_v p_v (ln p_v − ln q_v)")
def kl(p: Tensor, q: Tensor) -> Tensor:
    """Kullback–Leibler divergence KL(config‖config_b).

    Computed as Σ p (e^r − 1 − r) with r = ln q − ln p, which adds Σ q − Σ p = 0 to the textbook sum and makes
    every term non-negative: the relative error is about 1e-16/|r| and not 1e-16/KL, and rounding of the rows'
    normalization cancels in first order.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Natural log-probabilities; each row sums to 1.

    Returns
    -------
    Tensor, float64 (position,)
        Nats. Infinite where q makes a token impossible that p does not.

    Notes
    -----
    Source: S. Kullback and R. A. Leibler, "On information and sufficiency", 1951; the form with non-negative
    terms is I. Csiszár's I-divergence of unnormalized measures, 1991.
    """
    ratio_PV = difference(q, p)
    extreme_P = ratio_PV.amax(-1) > _LARGEST_RATIO
    divergence_P = torch.expm1(ratio_PV).sub_(ratio_PV).mul_(p.exp()).sum(-1)
    # A token that one row all but excludes: 0 · ∞ above. Rare, so only those rows are done again.
    extreme_P |= ~divergence_P.isfinite()
    if extreme_P.any():
        divergence_P[extreme_P] = _kl_any(p[extreme_P], q[extreme_P])
    return divergence_P.clamp_min_(0.0)  # each exact term is ≥ 0, so a negative sum is rounding alone


def _kl_any(p_PV: Tensor, q_PV: Tensor) -> Tensor:
    """Return KL(p‖q) for rows in which a ratio overflows or a probability is 0."""
    ratio_PV = difference(q_PV, p_PV)
    mass_PV, other_PV = p_PV.exp(), q_PV.exp()
    term_PV = torch.where(
        ratio_PV < 1.0,
        mass_PV * (torch.expm1(ratio_PV) - ratio_PV),
        other_PV - mass_PV - mass_PV * ratio_PV,
    )
    term_PV = torch.where(p_PV == -math.inf, other_PV, term_PV)
    term_PV = torch.where((q_PV == -math.inf) & (p_PV > -math.inf), math.inf, term_PV)
    return term_PV.sum(-1)


@register(
    "metric", "kl_reverse", symmetric=False, units="nat", on_self=0.0, formula="Σ_v q_v (ln q_v − ln p_v)"
)
def kl_reverse(p: Tensor, q: Tensor) -> Tensor:
    """Kullback–Leibler divergence the other way, KL(config_b‖config): `kl` with its arguments exchanged."""
    return kl(q, p)


@register(
    "metric",
    "js",
    units="nat",
    on_self=0.0,
    formula="½ Σ_v (p_v ln(p_v/m_v) + q_v ln(q_v/m_v)), m = (p + q)/2",
)
def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence (not its square root, which is the metric).

    Computed as ½ Σ (p ln(1 + t) + q ln(1 − t)) with t = (p − q)/(p + q). The derivative of a term in t is 0:
    the rounding of t enters in second order only.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Natural log-probabilities.

    Returns
    -------
    Tensor, float64 (position,)
        Nats, 0…ln 2.

    Notes
    -----
    Source: J. Lin, "Divergence measures based on the Shannon entropy", 1991.
    """
    p_PV, q_PV = p.exp(), q.exp()
    t_PV = (p_PV - q_PV).div_((p_PV + q_PV).clamp_min_(_TINY))
    # Short of ±1 the logarithm stays finite; its weight is then under 1e-15 of the other term's.
    t_PV.clamp_(-_BELOW_ONE, _BELOW_ONE)
    total_P = torch.log1p(t_PV).mul_(p_PV).sum(-1)
    total_P += torch.log1p(t_PV.neg_()).mul_(q_PV).sum(-1)
    return total_P.mul_(0.5).clamp_min_(0.0)  # a divergence: below 0 is rounding alone


@register("metric", "total_variation", on_self=0.0, formula="½ Σ_v |p_v − q_v|")
def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation distance: the largest difference that the two distributions give any set of tokens.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Natural log-probabilities.

    Returns
    -------
    Tensor, float64 (position,)
        0…1.
    """
    return p.exp().sub_(q.exp()).abs_().sum(-1).mul_(0.5)
