"""Compute a drawn token's probability from its row, after temperature and truncation.

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
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qdx.capture.densities import ALTERNATIVES, TEMPERATURES, Drawn
from qdx.capture.plan import LEAST_TEMPERATURE
from qdx.errors import QdxError

_BLOCK = 1 << 22  # float64 values that are sorted at once, 32 MiB
# Nats by which an honest producer's logits may differ from the verifier's, where that moves an edge. Another
# kernel of one checkpoint differs by 0.01 to 0.05 in float16.
EDGE = 0.125


@dataclass(frozen=True)
class Sampler:
    """Describe how a token was drawn, as its record states it.

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
        """Return whether any token can be cut off."""
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
    return _in_blocks(lambda rows, at: _of_block(rows, at, sampler, edge), logits_PV, targets_P)


def hypotheses(
    logits_PV: Tensor, targets_P: Tensor, sampler: Sampler, *, edge: float = 0.0
) -> dict[str, Tensor]:
    """Compute what other sampling parameters than the stated ones give the tokens that were drawn.

    Parameters
    ----------
    logits_PV, targets_P, sampler, edge
        See `drawn`.

    Returns
    -------
    dict
        float64, on the device of the logits, see `qdx.capture.densities.Drawn`:

        - ``drawn_other``: (position, alternative), log-probability of the token under each of
          `qdx.capture.densities.ALTERNATIVES`, as `Drawn.log_density` has it, nat;
        - ``drawn_most``: (position, temperature), the log of the most that an honest producer at each of
          `qdx.capture.densities.TEMPERATURES`, with the stated truncation, gives the token, nat.
    """
    return _in_blocks(lambda rows, at: _hypotheses_of_block(rows, at, sampler, edge), logits_PV, targets_P)


def _in_blocks(
    work: Callable[[Tensor, Tensor], dict[str, Tensor]], logits_PV: Tensor, targets_P: Tensor
) -> dict[str, Tensor]:
    found: list[dict[str, Tensor]] = []
    step = max(1, _BLOCK // logits_PV.shape[1])
    for start in range(0, len(logits_PV), step):
        block = slice(start, start + step)
        found.append(work(logits_PV[block].to(torch.float64), targets_P[block]))
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _of_block(logits_PV: Tensor, targets_P: Tensor, sampler: Sampler, edge: float) -> dict[str, Tensor]:
    rows = _Rows(logits_PV, targets_P)
    found = rows.at(sampler, edge)
    log_PV = rows.log_shares(sampler)
    inside_PV = torch.arange(log_PV.shape[1], device=log_PV.device) < found["count"][:, None]
    mass_PV = log_PV.exp() * inside_PV
    shares_PV = mass_PV / found["drawn_kept"][:, None]
    surprise_PV = torch.where(mass_PV > 0, found["drawn_kept"].log()[:, None] - log_PV, 0.0)
    entropy_P = (shares_PV * surprise_PV).sum(1)
    del found["count"]
    place = found.pop("drawn_place")
    return {
        **found,
        "drawn_entropy": entropy_P,
        "drawn_variance": (shares_PV * (surprise_PV - entropy_P[:, None]) ** 2).sum(1),
        "drawn_place": place,
    }


def _hypotheses_of_block(
    logits_PV: Tensor, targets_P: Tensor, sampler: Sampler, edge: float
) -> dict[str, Tensor]:
    rows = _Rows(logits_PV, targets_P)
    other, most = list[Tensor](), list[Tensor]()
    for changes in ALTERNATIVES:
        one = Sampler(
            changes.get("temperature", sampler.temperature),
            int(changes.get("top_k", sampler.top_k)),
            changes.get("top_p", sampler.top_p),
            changes.get("min_p", sampler.min_p),
        )
        claim = len(most) < len(TEMPERATURES)
        values = rows.at(one, edge if claim else 0.0)
        here = Drawn(*(values[f"drawn_{name}"].cpu().numpy() for name in DRAWN_NAMES))
        other.append(torch.from_numpy(here.log_density()))
        if claim:
            most.append(torch.from_numpy(here.log_bound()))
    return {
        "drawn_other": torch.stack(other, 1).to(logits_PV.device),
        "drawn_most": torch.stack(most, 1).to(logits_PV.device),
    }


DRAWN_NAMES = ("logprob", "before", "kept", "kept_least", "place")


class _Rows:
    """Rows and the tokens drawn from them, ordered once for every sampler that is asked about."""

    def __init__(self, logits_PV: Tensor, targets_P: Tensor) -> None:
        at_P1 = targets_P[:, None]
        self._own_P1 = logits_PV.gather(1, at_P1)
        ids_V = torch.arange(logits_PV.shape[1], device=logits_PV.device)
        first_PV = (logits_PV > self._own_P1) | ((logits_PV == self._own_P1) & (ids_V < at_P1))
        self._rank_P = first_PV.sum(1)
        self._ordered_PV = logits_PV.sort(dim=1, descending=True, stable=True).values

    def log_shares(self, sampler: Sampler) -> Tensor:
        """Log-probabilities at the temperature, in falling order, (position, vocab)."""
        scaled_PV = self._ordered_PV / max(sampler.temperature, LEAST_TEMPERATURE)
        return scaled_PV - scaled_PV.logsumexp(1, keepdim=True)

    def at(self, sampler: Sampler, edge: float) -> dict[str, Tensor]:
        """The first four numbers of `drawn` and the last, and ``count``, how many tokens are kept."""
        temperature = max(sampler.temperature, LEAST_TEMPERATURE)
        log_PV = self.log_shares(sampler)
        total_PV = log_PV.exp().cumsum(1)
        sums_PV = torch.cat([torch.zeros_like(total_PV[:, :1]), total_PV], dim=1)
        rank_P = self._rank_P
        if sampler.truncates:
            count_P = _count(log_PV, total_PV, sampler, 0.0)
            least_P, most_P = count_P, count_P
            # At one temperature vLLM's order keeps the shortest head, and top-p of all tokens the longest.
            for by in dict.fromkeys((temperature, 1.0)) if edge else ():
                at_PV = log_PV * (temperature / by)
                at_PV = at_PV - at_PV.logsumexp(1, keepdim=True)
                by_PV, moved = at_PV.exp().cumsum(1), 2 * edge / by  # both logits of a ratio may be off
                least_P = torch.minimum(least_P, _count(at_PV, by_PV, sampler, -moved))
                most_P = torch.maximum(most_P, _count(at_PV, by_PV, sampler, moved, of_all=True))
            kept_P, kept_least_P = (
                total_PV.gather(1, counts_P1 - 1)[:, 0] for counts_P1 in (count_P[:, None], least_P[:, None])
            )
        else:
            count_P = most_P = torch.full_like(rank_P, log_PV.shape[1])
            kept_P = kept_least_P = torch.ones_like(total_PV[:, 0])
        return {
            "drawn_logprob": log_PV.gather(1, rank_P[:, None])[:, 0],
            "drawn_before": sums_PV.gather(1, rank_P[:, None])[:, 0],
            "drawn_kept": kept_P,
            "drawn_kept_least": kept_least_P,
            "drawn_place": (rank_P < count_P).to(torch.int8) + (rank_P < most_P).to(torch.int8),
            "count": count_P,
        }


def head_counts(sorted_PV: Tensor, sampler: Sampler) -> Tensor:
    """Return how many tokens truncation keeps of rows of log-probabilities in falling order, (position,)."""
    return _count(sorted_PV, sorted_PV.exp().cumsum(1), sampler, 0.0)


def _count(
    sorted_PV: Tensor, total_PV: Tensor, sampler: Sampler, moved: float, *, of_all: bool = False
) -> Tensor:
    """`_head` of the tokens that can be inside at all: of a long vocabulary these are few."""
    reach = sorted_PV.shape[1]
    if sampler.top_p < 1 and sampler.min_p == 0 and not 0 < sampler.top_k < reach:
        of_all = True  # nothing else cuts, and what is left of the sums does not end in 1
        # Whatever is reordered, a token is outside when those `moved` above it have enough odds.
        odds = math.log(sampler.top_p) - math.log1p(-sampler.top_p) + abs(moved)
        enough = 1 / (1 + math.exp(-odds))
        last_P1 = (total_PV < enough).sum(1, keepdim=True).clamp(max=reach - 1)
        reach = int((sorted_PV >= sorted_PV.gather(1, last_P1) - abs(moved)).sum(1).max())
    if sampler.min_p > 0:
        least_P1 = sorted_PV[:, :1] + math.log(sampler.min_p) - abs(moved)
        reach = min(reach, int((sorted_PV >= least_P1).sum(1).max()))
    if 0 < sampler.top_k < sorted_PV.shape[1]:
        least_P1 = sorted_PV[:, sampler.top_k - 1 : sampler.top_k] - abs(moved)
        reach = min(reach, int((sorted_PV >= least_P1).sum(1).max()))
    reach = min(sorted_PV.shape[1], reach + 1)
    return _head(sorted_PV[:, :reach], total_PV[:, :reach], sampler, moved, of_all=of_all)


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
