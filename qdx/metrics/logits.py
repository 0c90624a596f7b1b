"""Metrics of the logits themselves, before any normalization."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdx.metrics._rows import difference
from qdx.plugins import register


@register(
    "metric", "rms_logit", on="logit", units="nat", on_self=0.0, formula="√ mean_v ((a_v − ā) − (b_v − b̄))²"
)
def rms_logit(p: Tensor, q: Tensor) -> Tensor:
    """Root mean square difference of the logits, each row centred on its mean.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Logits; a constant added to a row changes nothing.

    Returns
    -------
    Tensor, float64 (position,)
        Logits, ≥ 0. Infinite where a token is impossible in one row only.
    """
    d_PV = difference(p, q)
    infinite_P = d_PV.amax(-1).isinf() | d_PV.amin(-1).isinf()
    d_PV -= d_PV.mean(-1, keepdim=True)
    rms_P = torch.linalg.vector_norm(d_PV, dim=-1).div_(math.sqrt(d_PV.shape[-1]))
    return torch.where(infinite_P, math.inf, rms_P)


@register(
    "metric",
    "rank",
    on="logit",
    symmetric=False,
    on_self=0.0,
    coarse=False,
    formula="#{v : b_v > b_x}, x = argmax_v a_v",
)
def rank(p: Tensor, q: Tensor) -> Tensor:
    """Rank that config_b gives to config's most likely token: how many of its logits are strictly greater.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Logits. The lowest id wins a tie for config's most likely token.

    Returns
    -------
    Tensor, float64 (position,)
        0, 1, 2, …
    """
    return (q > _at_best_of(p, q)).sum(-1).to(q.dtype)


@register(
    "metric",
    "margin",
    on="logit",
    symmetric=False,
    units="nat",
    on_self=0.0,
    coarse=False,
    formula="max_v b_v − b_x, x = argmax_v a_v",
)
def margin(p: Tensor, q: Tensor) -> Tensor:
    """Gap of config's most likely token under the greatest logit of config_b.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Logits. The lowest id wins a tie for config's most likely token.

    Returns
    -------
    Tensor, float64 (position,)
        Logits, ≥ 0; 0 where both agree.

    Notes
    -----
    Token-DiFR's score at temperature 0.
    """
    return q.amax(-1) - _at_best_of(p, q).squeeze(-1)


def _at_best_of(p_PV: Tensor, q_PV: Tensor) -> Tensor:
    """Return q at p's greatest element, (position, 1); of several the first, as `torch.argmax` documents."""
    return q_PV.gather(-1, p_PV.argmax(-1, keepdim=True))
