"""By how much a drawn token falls short of the one that the request's seed would have drawn from a row.

With the engine's noise G recomputed (`qdx.capture.noise`), an engine whose logits are these emits the token
whose z + T·G is greatest among those that truncation keeps. The margin of another token is the difference,
as in Token-DiFR (Karvonen et al. 2025), in nats of the logits: 0 for the token itself. Another kernel's
logits are a little different, so that an honest token may have a small margin; another format's or model's
are further off, and a third of its tokens have one. How small is small, known transcripts say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.capture.noise import tolerance
from qdx.capture.plan import LEAST_TEMPERATURE
from qdx.capture.sampled import Sampler, head_counts

_BLOCK = 1 << 22  # float64 values that are worked on at once, 32 MiB


def margins(logits_PV: Tensor, targets_P: Tensor, sampler: Sampler, noise_PV: Tensor) -> Tensor:
    """Compute the margins of drawn tokens after the engine's noise.

    Parameters
    ----------
    logits_PV : Tensor
        Finite logits, (position, vocab), in any floating type.
    targets_P : Tensor
        (position,) int64, the tokens that were drawn.
    sampler : Sampler
    noise_PV : Tensor
        (position, vocab) float64, Gumbel noise of the temperature-divided logits.

    Returns
    -------
    Tensor
        (position,) float64, at least 0, in nats of the logits. 0 where the token is the greatest, or within
        what float32 arithmetic of the engine may have decided otherwise (`qdx.capture.noise.tolerance`). A
        token that truncation cuts off has at least the margin by which its logit misses the edge.
    """
    step = max(1, _BLOCK // logits_PV.shape[1])
    parts = []
    for start in range(0, len(logits_PV), step):
        block = slice(start, start + step)
        parts.append(_of_block(logits_PV[block], targets_P[block], sampler, noise_PV[block]))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def _of_block(logits_PV: Tensor, targets_P: Tensor, sampler: Sampler, noise_PV: Tensor) -> Tensor:
    temperature = max(sampler.temperature, LEAST_TEMPERATURE)
    # Division in float32, as the engine divides; what follows is exact beside it.
    scaled_PV = (logits_PV.to(torch.float32) / temperature).to(torch.float64)
    drawn_PV = scaled_PV + noise_PV
    at_P1 = targets_P[:, None]
    own_P1 = drawn_PV.gather(1, at_P1)
    short_P = torch.zeros_like(own_P1[:, 0])
    if sampler.truncates:
        ordered_PV, order_PV = scaled_PV.sort(dim=1, descending=True, stable=True)
        inside_PV = (
            torch.arange(ordered_PV.shape[1], device=ordered_PV.device)
            < head_counts(ordered_PV - ordered_PV.logsumexp(1, keepdim=True), sampler)[:, None]
        )
        edge_P1 = torch.where(inside_PV, ordered_PV, torch.inf).amin(1, keepdim=True)
        kept_PV = torch.zeros_like(inside_PV).scatter(1, order_PV, inside_PV)
        drawn_PV = torch.where(kept_PV, drawn_PV, -torch.inf)
        short_P = (edge_P1 - scaled_PV.gather(1, at_P1))[:, 0].clamp(min=0)
    best_P1, winner_P1 = drawn_PV.max(1, keepdim=True)
    margin_P = torch.maximum((best_P1 - own_P1)[:, 0], short_P)
    either_P1 = torch.maximum(scaled_PV.gather(1, at_P1).abs(), scaled_PV.gather(1, winner_P1).abs())
    return torch.where(margin_P <= tolerance(either_P1)[:, 0], 0.0, margin_P * temperature)
