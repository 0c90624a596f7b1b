"""Metrics of the most likely tokens alone, as a log-probability interface returns them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.plugins import register

_SEED_IDS = 5  # the original experiment asked its engine for five


@register(
    "metric",
    "seed_l2",
    on="top",
    units="nat",
    on_self=0.0,
    nan_when="no id is among the first five of both",
    formula="√ Σ_v (ln p_v − ln q_v)², v in both first five",
)
def seed_l2(p: Tensor, q: Tensor, *, p_id: Tensor, q_id: Tensor) -> Tensor:
    """L2 over the ids that the first five of both config and config_b list (the original's).

    For comparison with the original experiment's figures only. It is symmetric. The original's own matrices
    are not everywhere: some of its rows list a sixth id, which counts where it is among the first five of the
    row compared with; `qdx.legacy` computes those from its files. It sums over one to five numbers, others at
    every position: values are not on one scale, and a pair that shares fewer ids seems nearer.

    Parameters
    ----------
    p, q : Tensor, float64 (position, rank)
        Natural log-probabilities, greatest first.
    p_id, q_id : Tensor, int64 (position, rank)
        Their token ids.

    Returns
    -------
    Tensor, float64 (position,)
        Nats; NaN where the lists share no id.

    Raises
    ------
    QdxError
        When fewer than five ids are kept.
    """
    same_PRR = _same(p_id, q_id, _SEED_IDS, "seed_l2 takes the first 5 ids")
    d_PRR = p[:, :_SEED_IDS, None] - q[:, None, :_SEED_IDS]
    distance_P = torch.where(same_PRR, d_PRR.square(), 0.0).sum((-1, -2)).sqrt_()
    return distance_P.masked_fill_(~same_PRR.any(-1).any(-1), math.nan)


@register("metric", "top1", on="top", on_self=0.0, formula="1 where argmax_v p_v ≠ argmax_v q_v, else 0")
def top1(p: Tensor, q: Tensor, *, p_id: Tensor, q_id: Tensor) -> Tensor:
    """1 where the most likely token differs, else 0; its mean is the rate of disagreement.

    Parameters
    ----------
    p, q : Tensor, float64 (position, rank)
        Natural log-probabilities, greatest first (they are not looked at).
    p_id, q_id : Tensor, int64 (position, rank)
        Their token ids; of equal logits the lowest id comes first.

    Returns
    -------
    Tensor, float64 (position,)
        0 or 1.
    """
    return (p_id[:, 0] != q_id[:, 0]).to(p.dtype)


@register(
    "metric",
    "topk_overlap",
    on="top",
    on_self=1.0,
    higher_means="more alike",
    formula="|first k of p ∩ first k of q| / k",
)
def topk_overlap(p: Tensor, q: Tensor, *, p_id: Tensor, q_id: Tensor, k: int = 20) -> Tensor:
    """Share of common ids among the first k.

    Parameters
    ----------
    p, q : Tensor, float64 (position, rank)
        Natural log-probabilities, greatest first (they are not looked at).
    p_id, q_id : Tensor, int64 (position, rank)
        Their token ids.
    k : int
        How many ids of each row count.

    Returns
    -------
    Tensor, float64 (position,)
        0…1; 1 where the first k are the same tokens in whatever order.

    Raises
    ------
    QdxError
        When k is not in 1…rank.
    """
    return _same(p_id, q_id, k, f"metric.topk_overlap.k={k}").any(-1).sum(-1).to(p.dtype).div_(k)


def _same(p_id_PR: Tensor, q_id_PR: Tensor, count: int, who: str) -> Tensor:
    """Return which of the first `count` ids of each are the same, (position, count, count)."""
    kept = p_id_PR.shape[-1]
    if not 1 <= count <= kept:
        raise QdxError(f"{who}, but {kept} ids a row were kept: change it or capture.k (1 ≤ ids ≤ capture.k)")
    p_id_PR, q_id_PR = p_id_PR[:, :count], q_id_PR[:, :count]
    return p_id_PR[:, :, None] == q_id_PR[:, None, :]
