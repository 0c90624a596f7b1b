"""What a row says of a token that was drawn from it: its probability after temperature and truncation.

A sampler divides the logits by the temperature, and keeps the most probable tokens: those of at least
``min_p`` times the greatest probability, of them the ``top_k`` most probable, of those the fewest whose
probabilities reach ``top_p``. That is vLLM's order (``vllm/v1/sample``: min-p, then top-k, then top-p of what
top-k left). So what is kept is always a head of the tokens in the order of (probability descending, id
ascending), and five numbers of a row say everything about the token that was drawn.

Other engines have another order: llama.cpp divides by the temperature last, transformers takes min-p last,
and SGLang's top-p is of all tokens and not of what top-k left. All of them keep a head of the same order, so
where a head may be longer or shorter for an honest producer, these count too (`drawn`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qdx.capture.plan import LEAST_TEMPERATURE
from qdx.errors import QdxError

_BLOCK = 1 << 22  # float64 values that are sorted at once, 32 MiB
# Nats by which an honest producer's logits may differ from the verifier's, where that moves an edge. Another
# kernel of one checkpoint differs by 0.01 to 0.05 in float16.
EDGE = 0.125


@dataclass(frozen=True)
class Sampler:
    """How a token was drawn, as its record states it.

    Attributes
    ----------
    temperature : float
        Above 0.
    top_k : int
        0 or −1: no limit.
    top_p : float
        Above 0, at most 1; 1: no limit.
    min_p : float
        From 0 to under 1; 0: no limit.

    Raises
    ------
    QdxError
        For a value outside these limits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, good, limit in (
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("top_k", self.top_k >= -1, "-1, 0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p < 1, "from 0 to under 1"),
        ):
            if not good:
                raise QdxError(f"{name}={getattr(self, name)}: must be {limit}")

    @property
    def truncates(self) -> bool:
        """Whether any token can be cut off."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def drawn(logits_PV: Tensor, targets_P: Tensor, sampler: Sampler, *, edge: float = 0.0) -> dict[str, Tensor]:
    """Compute what the rows say of the tokens that were drawn from them.

    Parameters
    ----------
    logits_PV : Tensor
        Finite logits, (position, vocab), in any floating type; computed in float64.
    targets_P : Tensor
        (position,) int64, the tokens that were drawn.
    sampler : Sampler
        By which all of them were drawn.
    edge : float
        In nats of a logit: how far the producer's honest logits may lie from these. It moves the edge of
        what is kept: a head is shorter or longer by the tokens that such a difference could move over it, or
        another engine's order of temperature and truncation. 0: the rows and vLLM's order are exact.

    Returns
    -------
    dict
        Each (position,), float64 but the last, on the device of the logits:

        - ``drawn_logprob``: log-probability of the token at the temperature, before any truncation, nat;
        - ``drawn_before``: probability, so, of all tokens that come before it in the order;
        - ``drawn_kept``: probability, so, of the tokens that truncation keeps: 1 where it cuts nothing;
        - ``drawn_kept_least``: the same of the shortest head within the edge;
        - ``drawn_entropy``: entropy of the truncated distribution, nat;
        - ``drawn_variance``: variance of its −log p, nat²;
        - ``drawn_place``: int8; 2: the token is kept, 1: an honest producer could have kept it, 0: neither.
    """
    found: list[dict[str, Tensor]] = []
    step = max(1, _BLOCK // logits_PV.shape[1])
    for start in range(0, len(logits_PV), step):
        block = slice(start, start + step)
        found.append(_of_block(logits_PV[block].to(torch.float64), targets_P[block], sampler, edge))
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _of_block(logits_PV: Tensor, targets_P: Tensor, sampler: Sampler, edge: float) -> dict[str, Tensor]:
    temperature = max(sampler.temperature, LEAST_TEMPERATURE)
    scaled_PV = logits_PV / temperature
    log_PV = scaled_PV - scaled_PV.logsumexp(1, keepdim=True)
    at_P1 = targets_P[:, None]
    own_P1 = log_PV.gather(1, at_P1)
    ids_V = torch.arange(log_PV.shape[1], device=log_PV.device)
    first_PV = (log_PV > own_P1) | ((log_PV == own_P1) & (ids_V < at_P1))
    mass_PV = log_PV.exp()
    before_P = (mass_PV * first_PV).sum(1)
    rank_P = first_PV.sum(1)
    if sampler.truncates:
        sorted_PV = log_PV.sort(dim=1, descending=True, stable=True).values
        total_PV = sorted_PV.exp().cumsum(1)
        count_P = _head(sorted_PV, total_PV, sampler, 0.0)
        least_P, most_P = count_P, count_P
        # At one temperature vLLM's order keeps the shortest head, and top-p of all tokens the longest.
        for by in dict.fromkeys((temperature, 1.0)) if edge else ():
            at_PV = sorted_PV * (temperature / by)
            at_PV = at_PV - at_PV.logsumexp(1, keepdim=True)
            sums_PV, moved = at_PV.exp().cumsum(1), 2 * edge / by  # both logits of a ratio may be off
            least_P = torch.minimum(least_P, _head(at_PV, sums_PV, sampler, -moved))
            most_P = torch.maximum(most_P, _head(at_PV, sums_PV, sampler, moved, of_all=True))
        kept_P, kept_least_P = (
            total_PV.gather(1, count_P1 - 1)[:, 0] for count_P1 in (count_P[:, None], least_P[:, None])
        )
        inside_PV = ids_V < count_P[:, None]
        log_PV, mass_PV = sorted_PV, sorted_PV.exp() * inside_PV
    else:
        count_P = most_P = torch.full_like(rank_P, log_PV.shape[1])
        kept_P = kept_least_P = torch.ones_like(before_P)
    shares_PV = mass_PV / kept_P[:, None]
    surprise_PV = torch.where(mass_PV > 0, kept_P.log()[:, None] - log_PV, 0.0)
    entropy_P = (shares_PV * surprise_PV).sum(1)
    return {
        "drawn_logprob": own_P1[:, 0],
        "drawn_before": before_P,
        "drawn_kept": kept_P,
        "drawn_kept_least": kept_least_P,
        "drawn_entropy": entropy_P,
        "drawn_variance": (shares_PV * (surprise_PV - entropy_P[:, None]) ** 2).sum(1),
        "drawn_place": (rank_P < count_P).to(torch.int8) + (rank_P < most_P).to(torch.int8),
    }


def head_counts(sorted_PV: Tensor, sampler: Sampler) -> Tensor:
    """Return how many tokens truncation keeps of rows of log-probabilities in falling order, (position,)."""
    return _head(sorted_PV, sorted_PV.exp().cumsum(1), sampler, 0.0)


def _head(
    sorted_PV: Tensor, total_PV: Tensor, sampler: Sampler, moved: float, *, of_all: bool = False
) -> Tensor:
    """Number of tokens that are kept when every log-ratio is `moved` in favour of the less probable ones.

    `of_all` takes top-p of all tokens, not of those that min-p and top-k left.
    """
    inside_PV = torch.ones_like(sorted_PV, dtype=torch.bool)
    if sampler.min_p > 0:
        inside_PV &= sorted_PV - sorted_PV[:, :1] + moved >= math.log(sampler.min_p)
    if 0 < sampler.top_k < sorted_PV.shape[1]:
        # Equal logits at the edge are all kept by vLLM and cut by others: they belong to the longest head.
        least_P1 = sorted_PV[:, sampler.top_k - 1 : sampler.top_k]
        if moved > 0:
            inside_PV &= sorted_PV + moved >= least_P1
        elif moved < 0:
            inside_PV &= sorted_PV + moved > least_P1
        else:
            inside_PV[:, sampler.top_k :] = False
    if sampler.top_p < 1:
        before_PV = _before(sorted_PV, total_PV, moved)
        if not of_all:
            last_P1 = (inside_PV.sum(1, keepdim=True) - 1).clamp(min=0)
            before_PV = before_PV / total_PV.gather(1, last_P1)
        before_PV = before_PV.clamp(0, 1)
        odds_PV = before_PV.log() - torch.log1p(-before_PV.clamp(max=1 - 1e-16))
        inside_PV &= odds_PV - moved < math.log(sampler.top_p) - math.log1p(-sampler.top_p)
    return inside_PV.sum(1).clamp(min=1)


def _before(sorted_PV: Tensor, total_PV: Tensor, moved: float) -> Tensor:
    """Probability of the tokens before each one, when noise reorders those that are `moved` apart or less.

    Above 0 only what is sure to come before counts, below 0 all that may.
    """
    own_PV = sorted_PV.exp()
    if moved == 0:
        return (total_PV - own_PV).clamp(min=0)
    rising_PV = -sorted_PV
    count_PV = torch.searchsorted(rising_PV, rising_PV - moved, right=moved < 0)
    sums_PV = torch.cat([torch.zeros_like(total_PV[:, :1]), total_PV], dim=1)
    before_PV = sums_PV.gather(1, count_PV)
    return before_PV if moved > 0 else (before_PV - own_PV).clamp(min=0)
