"""Norms of the difference of two rows of log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.metrics._rows import difference
from qdx.plugins import register


@register("metric", "l2", units="nat", on_self=0.0, formula="√ Σ_v (ln p_v − ln q_v)²")
def l2(p: Tensor, q: Tensor) -> Tensor:
    """Euclidean distance of the log-probabilities over the whole vocabulary.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Natural log-probabilities.

    Returns
    -------
    Tensor, float64 (position,)
        Nats, ≥ 0. Of the difference itself: √(‖p‖² + ‖q‖² − 2 p·q) would cancel its digits on near rows.
    """
    norm_P = torch.linalg.vector_norm(p - q, dim=-1)
    # Only a token that is impossible in both rows, or NaN, makes it NaN.
    return torch.linalg.vector_norm(difference(p, q), dim=-1) if norm_P.isnan().any() else norm_P


@register("metric", "max_abs", units="nat", on_self=0.0, formula="max_v |ln p_v − ln q_v|")
def max_abs(p: Tensor, q: Tensor) -> Tensor:
    """Greatest difference of a log-probability.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Natural log-probabilities.

    Returns
    -------
    Tensor, float64 (position,)
        Nats, ≥ 0.
    """
    return difference(p, q).abs_().amax(-1)
