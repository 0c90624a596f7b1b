"""FlashAttention 3 as vLLM calls it on a Hopper card, bit for bit, where it does not cut the keys.

A thread block goes through a row's keys in blocks, **from the last block to the first**. Scores and the sum
of values are made by tensor cores; between these are float32 operations, compiled with fast math.

- Prefill takes 128 keys at a time; steps with few queries (all heads of a group, at most 64 rows) 192.
- p = ex2.approx(s · c - m · c) by one fused operation, c = scale · log2 e, m the largest score so far.
- A thread holds two neighbouring columns of each 8, and adds its own p one after the other, over all blocks;
  four threads hold a row and add their sums as (0 + 2) + (1 + 3) at the end.
- Probabilities are rounded to 16 bits before they meet the values, and added before that. What came before is
  multiplied by ex2.approx((m before - m) · c).
- At the end the row is multiplied by ``rcp.approx`` of the sum.

Source: vllm-project/flash-attention, ``hopper/softmax.h``, ``mainloop_fwd_sm90_tma_gmma_ws.hpp``,
``tile_size.h``, ``heuristics.h``. Compared with a card (docs/results): prefill to 300 tokens, decode to 316
keys. Of more than four blocks of keys FlashAttention may attend to parts, and join them by their logarithms
(``lg2.approx``), which is not known here.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import tensor_core
from qdx.kernels.cards import Rule
from qdx.kernels.elementary import Float32s, ex2_approx_ftz, fma, rcp_approx_ftz

PREFILL_KEYS, FEW_QUERIES_KEYS = 128, 192
FEW_ROWS = 64  # queries of the longest sequence times heads that share keys
MOST_BLOCKS = 4  # of keys, which are never cut
_LOG2_E = np.float32(1.4426950408889634)
_MINUS_INFINITY = np.float32(-np.inf)


def keys_at_once(most_queries: int, group: int) -> int:
    """Return how many keys a thread block takes at a time.

    Parameters
    ----------
    most_queries : int
        Of the sequence with the most in this step.
    group : int
        Query heads that share keys.
    """
    return FEW_QUERIES_KEYS if most_queries * group <= FEW_ROWS else PREFILL_KEYS


def known(queries: tuple[int, ...], keys: tuple[int, ...], group: int) -> bool:
    """Return whether no sequence has keys enough to be cut."""
    return max(keys) <= MOST_BLOCKS * keys_at_once(max(queries), group)


def _rows(
    q_RD: Tensor,
    key_KD: Tensor,
    value_KD: Tensor,
    position_R: NDArray[np.int64],
    c: np.float32,
    block: int,
    rule: Rule,
) -> Float32s:
    """Attend; blocks that a row does not see come first and leave nothing behind."""
    rows = len(q_RD)
    keys = -(-len(key_KD) // block) * block
    key_KD, value_KD = (
        torch.nn.functional.pad(one, (0, 0, 0, keys - len(one))) for one in (key_KD, value_KD)
    )
    score = tensor_core.chain(q_RD, key_KD.t().contiguous(), rule).numpy()
    score = np.where(np.arange(keys)[None] <= position_R[:, None], score, _MINUS_INFINITY)
    maximum = np.full(rows, _MINUS_INFINITY)
    own_RT = np.zeros((rows, 4), np.float32)  # each of a row's four threads its sum
    weighted_RD = torch.zeros(q_RD.shape)
    for first in range(keys - block, -1, -block):
        part = score[:, first : first + block]
        before, maximum = maximum, np.maximum(maximum, part.max(1))
        seen = maximum > _MINUS_INFINITY
        shift = np.where(seen, maximum, np.float32(0))
        shrink = ex2_approx_ftz((before - shift) * c)
        own_RT *= shrink[:, None]
        with np.errstate(invalid="ignore"):  # a masked score is -inf
            p = ex2_approx_ftz(fma(part, c, -(shift * c)[:, None]))
        by_thread = p.reshape(rows, block // 8, 4, 2)
        for eight in range(block // 8):
            for column in range(2):
                own_RT += by_thread[:, eight, :, column]
        rounded = torch.from_numpy(p).to(torch.float16).to(torch.float32)
        held_RD = weighted_RD * torch.from_numpy(shrink)[:, None]
        weighted_RD = tensor_core.chain(rounded, value_KD[first : first + block], rule, held_RD)
    total = (own_RT[:, 0] + own_RT[:, 2]) + (own_RT[:, 1] + own_RT[:, 3])
    return np.asarray(weighted_RD.numpy() * rcp_approx_ftz(total)[:, None], np.float32)


def attention(
    q_THD: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    queries: tuple[int, ...],
    scale: float,
    rule: Rule = tensor_core.HOPPER,
    *,
    exactly: bool = True,
) -> Tensor:
    """Attend causally, the queries being the last tokens of their sequences.

    Parameters
    ----------
    q_THD : Tensor
        float16 (tokens, heads, 64), sequence after sequence.
    keys, values : list of Tensor
        Of each sequence, float16 (keys, heads of keys, 64), the queries' own among them.
    queries : tuple of int
        How many of the tokens belong to each sequence.
    scale : float
        Of the scores.
    rule : Rule
        Of the card's tensor cores.
    exactly : bool
        Refuse keys that FlashAttention may cut; else they are taken not to be.

    Returns
    -------
    Tensor
        float16 (tokens, heads, 64).

    Raises
    ------
    QdxError
        For another dtype or head size than those that were compared, and for too many keys.
    """
    _, heads, size = q_THD.shape
    if q_THD.dtype != torch.float16 or size != 64:
        raise QdxError(
            f"FlashAttention 3 is known bit for bit in float16 with heads of 64, got "
            f"{str(q_THD.dtype).removeprefix('torch.')} with heads of {size}: use backend=transformers"
        )
    kv_heads = keys[0].shape[1]
    group = heads // kv_heads
    block = keys_at_once(max(queries), group)
    if exactly and not known(queries, tuple(map(len, keys)), group):
        raise QdxError(
            f"FlashAttention 3 may cut the keys of a sequence of {max(map(len, keys))}, which is not known "
            f"bit for bit; known are up to {MOST_BLOCKS * block} here: use shorter prompts, "
            "backend.attention_backend=TRITON_ATTN on both sides, or backend.approximate=true"
        )
    c = np.float32(np.float32(scale) * _LOG2_E)
    out_THD = torch.empty_like(q_THD)
    first = 0
    for count, key_KHD, value_KHD in zip(queries, keys, values, strict=True):
        part = slice(first, first + count)
        position_R = np.repeat(np.arange(len(key_KHD) - count, len(key_KHD)), group)
        for head in range(kv_heads):
            own = slice(head * group, (head + 1) * group)
            q_RD = q_THD[part, own].reshape(count * group, size).to(torch.float32)
            key_KD, value_KD = (one[:, head].to(torch.float32) for one in (key_KHD, value_KHD))
            result = _rows(q_RD, key_KD, value_KD, position_R, c, block, rule)
            out_THD[part, own] = torch.from_numpy(result).to(torch.float16).view(count, group, size)
        first += count
    return out_THD
