"""Rows of which only the greatest logits were kept, made comparable: shared ids and a bucket for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# The rest is 1 minus what was kept. Under this the rounding of the kept (about 1e-15) would show in the third
# digit of its logarithm; a smaller rest counts as this much.
LEAST_TAIL = 2.0**-40
_COMPARISONS = 2**24  # ids compared at once, bytes


def shared(p_id_PR: Tensor, q_id_PR: Tensor) -> Tensor:
    """Return for every id of p its rank in q, (position, rank) int64; −1 where q does not list it.

    Ids of −1 stand for none.
    """
    step = max(1, _COMPARISONS // max(1, p_id_PR.shape[-1] ** 2))
    found = []
    for start in range(0, len(p_id_PR), step):
        p_id, q_id = p_id_PR[start : start + step], q_id_PR[start : start + step]
        same = (p_id[:, :, None] == q_id[:, None, :]) & (p_id >= 0)[:, :, None]
        found.append(torch.where(same.any(-1), same.to(torch.uint8).argmax(-1), -1))
    return torch.cat(found) if found else torch.empty_like(p_id_PR)


def coarsen(p_PR: Tensor, q_PR: Tensor, rank_in_q_PR: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows of the shared ids and their rest, grouped by the number of shared ids.

    Merging tokens lowers every f-divergence (data processing inequality): KL, Jensen–Shannon and total
    variation of coarsened rows are lower bounds of the true ones. Norms of log-probabilities have fewer terms
    and bound nothing.

    Parameters
    ----------
    p_PR, q_PR : Tensor, float64 (position, rank)
        Natural log-probabilities of the greatest logits.
    rank_in_q_PR : Tensor, int64 (position, rank)
        See `shared`.

    Yields
    ------
    index : Tensor, int64 (group,)
        Positions of the group. One that shares nothing is in none: a bucket of everything says nothing.
    p, q : Tensor, float64 (group, shared + 1)
        Log-probabilities in p's order, the rest last.
    """
    is_shared_PR = rank_in_q_PR >= 0
    count_P = is_shared_PR.sum(-1)
    for count in count_P.unique().tolist():
        if count == 0:
            continue
        index = (count_P == count).nonzero().squeeze(-1)
        kept = is_shared_PR[index]
        p = p_PR[index][kept].reshape(-1, count)
        q = q_PR[index].gather(-1, rank_in_q_PR[index].clamp_min(0))[kept].reshape(-1, count)
        yield index, with_tail(p), with_tail(q)


def with_tail(p_PS: Tensor) -> Tensor:
    """Append ln(1 − Σ e^p) to log-probabilities: (position, shared) → (position, shared + 1)."""
    kept_P = p_PS.logsumexp(-1, keepdim=True)
    # 1 − e^x for x ≤ 0 without cancellation (Mächler 2012, "Accurately computing log(1 − exp(−|a|))").
    rest_P = torch.where(kept_P > -math.log(2), torch.log(-torch.expm1(kept_P)), torch.log1p(-kept_P.exp()))
    return torch.cat([p_PS, rest_P.nan_to_num(nan=-math.inf).clamp_min(math.log(LEAST_TAIL))], -1)
