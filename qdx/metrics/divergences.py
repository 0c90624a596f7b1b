"""f-divergences of two distributions, in forms whose rounding error vanishes with the divergence itself.

Kernels of one checkpoint may differ by 1e-3 in a logit and so by 1e-7 in a divergence: the textbook sums
cancel terms of size 1 and would leave nine digits of it. The forms for such rows add terms that do not
cancel. Rows that are further apart than `_FAR` lose nothing by the textbook's sum, in a quarter of the time.

All take the probabilities as ``p_prob`` and ``q_prob`` from whoever has them; without, they compute them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qdx.metrics._rows import difference, dot
from qdx.plugins import register

_TINY = torch.finfo(torch.float64).tiny
# Above this divergence the textbook's sum, off by a few 1e-15 absolutely, has twelve digits or more.
_FAR = 1e-2
_NEAR = 0.04  # mean of (ln p − ln q)² over a sample of about `_SAMPLE` tokens
_SAMPLE = 1024
_LARGEST_TANH = 16.0  # of |ln p − ln q|: up to here 1 − tanh² of its half keeps nine digits
_BELOW_ONE = 1.0 - torch.finfo(torch.float64).eps
_LARGEST_RATIO = 600.0  # exp(709) is float64's largest power, and exp(−708) its last normal one


def _by_nearness(far: Callable[..., Tensor], near: Callable[..., Tensor], *rows_PV: Tensor) -> Tensor:
    """Let `near` do the rows under `_FAR`, and those whose textbook sum (`far`) is not a number."""
    p_PV, q_PV = rows_PV[:2]
    step = max(1, p_PV.shape[-1] // _SAMPLE)  # a look at a few tokens saves most near rows the textbook sum
    near_P = (p_PV[:, ::step] - q_PV[:, ::step]).square().mean(-1) < _NEAR
    if near_P.all():
        return near(*rows_PV)
    value_P = far(*rows_PV)
    near_P |= ~((value_P > _FAR) & value_P.isfinite())
    if near_P.any():
        value_P[near_P] = near(*(row_PV[near_P] for row_PV in rows_PV))
    return value_P


@register(
    "metric",
    "kl",
    symmetric=False,
    needs=("prob",),
    units="nat",
    on_self=0.0,
    formula="Σ_v p_v (ln p_v − ln q_v)",
)
def kl(p: Tensor, q: Tensor, *, p_prob: Tensor | None = None, q_prob: Tensor | None = None) -> Tensor:
    """Kullback–Leibler divergence KL(config‖config_b).

    Of near rows computed as Σ p (e^r − 1 − r) with r = ln q − ln p, which adds Σ q − Σ p = 0 to the textbook
    sum and makes every term non-negative: the relative error is about 1e-16/|r| and not 1e-16/KL, and
    rounding of the rows' normalization cancels in first order.

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
    Where the sum of p (ln p − ln q) comes out above 0.01 it is taken as it is.

    Source: S. Kullback and R. A. Leibler, "On information and sufficiency", 1951; the form with non-negative
    terms is I. Csiszár's I-divergence of unnormalized measures, 1991.
    """
    p_PV = p.exp() if p_prob is None else p_prob
    return _by_nearness(_kl_far, _kl_near, p, q, p_PV)


def _kl_far(p_PV: Tensor, q_PV: Tensor, mass_PV: Tensor) -> Tensor:
    return dot(mass_PV, p_PV - q_PV)


def _kl_near(p_PV: Tensor, q_PV: Tensor, mass_PV: Tensor) -> Tensor:
    ratio_PV = difference(q_PV, p_PV)
    extreme_P = ratio_PV.amax(-1) > _LARGEST_RATIO
    divergence_P = dot(torch.expm1(ratio_PV).sub_(ratio_PV), mass_PV)
    # A token that one row all but excludes: 0 · ∞ above. Rare, so only those rows are done again.
    extreme_P |= ~divergence_P.isfinite()
    if extreme_P.any():
        divergence_P[extreme_P] = _kl_any(p_PV[extreme_P], q_PV[extreme_P])
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
    "metric",
    "kl_reverse",
    symmetric=False,
    needs=("prob",),
    units="nat",
    on_self=0.0,
    formula="Σ_v q_v (ln q_v − ln p_v)",
)
def kl_reverse(p: Tensor, q: Tensor, *, p_prob: Tensor | None = None, q_prob: Tensor | None = None) -> Tensor:
    """Kullback–Leibler divergence the other way, KL(config_b‖config): `kl` with its arguments exchanged."""
    return kl(q, p, p_prob=q_prob)


@register(
    "metric",
    "js",
    needs=("prob",),
    units="nat",
    on_self=0.0,
    formula="½ Σ_v (p_v ln(p_v/m_v) + q_v ln(q_v/m_v)), m = (p + q)/2",
)
def js(p: Tensor, q: Tensor, *, p_prob: Tensor | None = None, q_prob: Tensor | None = None) -> Tensor:
    """Jensen–Shannon divergence (not its square root, which is the metric).

    Of near rows computed as ½ Σ (p + q) (x tanh x − ln cosh x) with x = (ln p − ln q)/2: every term is
    non-negative and exact to a few roundings, however small.

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
    With t = tanh x = (p − q)/(p + q), p = (p + q)(1 + t)/2 and ln cosh x = −½ ln(1 − t²). Where the entropy
    of the mean minus the mean entropy comes out above 0.01 it is taken as it is.

    Source: J. Lin, "Divergence measures based on the Shannon entropy", 1991.
    """
    p_PV = p.exp() if p_prob is None else p_prob
    q_PV = q.exp() if q_prob is None else q_prob
    return _by_nearness(_js_far, _js_near, p, q, p_PV, q_PV)


def _js_far(p_PV: Tensor, q_PV: Tensor, p_mass_PV: Tensor, q_mass_PV: Tensor) -> Tensor:
    sum_PV = p_mass_PV + q_mass_PV
    value_P = dot(p_PV, p_mass_PV) + dot(q_PV, q_mass_PV) + math.log(2) * sum_PV.sum(-1)
    value_P -= dot(sum_PV, sum_PV.clamp_min(_TINY).log_())
    return value_P.mul_(0.5)


def _js_near(p_PV: Tensor, q_PV: Tensor, p_mass_PV: Tensor, q_mass_PV: Tensor) -> Tensor:
    x_PV = difference(p_PV, q_PV)
    extreme_P = ~((x_PV.amax(-1) <= _LARGEST_TANH) & (x_PV.amin(-1) >= -_LARGEST_TANH))
    x_PV *= 0.5
    t_PV = torch.tanh(x_PV)
    x_PV *= t_PV
    x_PV.add_(torch.log1p(t_PV.square_().neg_()), alpha=0.5)
    divergence_P = dot(x_PV, p_mass_PV + q_mass_PV).mul_(0.5)
    if extreme_P.any():
        divergence_P[extreme_P] = _js_any(p_mass_PV[extreme_P], q_mass_PV[extreme_P])
    return divergence_P.clamp_min_(0.0)  # a divergence: below 0 is rounding alone


def _js_any(p_PV: Tensor, q_PV: Tensor) -> Tensor:
    """Return the divergence of probabilities as ½ Σ (p ln(1 + t) + q ln(1 − t)), whatever their ratio."""
    t_PV = (p_PV - q_PV).div_((p_PV + q_PV).clamp_min_(_TINY))
    # Short of ±1 the logarithm stays finite; its weight is then under 1e-15 of the other term's.
    t_PV.clamp_(-_BELOW_ONE, _BELOW_ONE)
    total_P = torch.log1p(t_PV).mul_(p_PV).sum(-1)
    total_P += torch.log1p(t_PV.neg_()).mul_(q_PV).sum(-1)
    return total_P.mul_(0.5)


@register("metric", "total_variation", needs=("prob",), on_self=0.0, formula="½ Σ_v |p_v − q_v|")
def total_variation(
    p: Tensor, q: Tensor, *, p_prob: Tensor | None = None, q_prob: Tensor | None = None
) -> Tensor:
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
    p_PV = p.exp() if p_prob is None else p_prob
    q_PV = q.exp() if q_prob is None else q_prob
    return (p_PV - q_PV).abs_().sum(-1).mul_(0.5)
