"""FlashAttention 3 as vLLM calls it on a Hopper card, bit for bit, on a CPU.

A thread block goes through a row's keys in blocks, **from the last block to the first**. Scores and the sum
of values are made by tensor cores; between these are float32 operations, compiled with fast math.

- Prefill takes 128 keys at a time; steps with few queries (all heads of a group, at most 64 rows) 192.
- p = ex2.approx(s · c - m · c) by one fused operation, c = scale · log2 e, m the largest score so far.
- A thread holds two neighbouring columns of each 8, and adds its own p one after the other, over all blocks;
  four threads hold a row and add their sums as (0 + 2) + (1 + 3) at the end.
- Probabilities are rounded to 16 bits before they meet the values, and added before that. What came before is
  multiplied by ex2.approx((m before - m) · c); for the sum this and the first addition are one fused
  operation.
- At the end the row is multiplied by ``rcp.approx`` of the sum.
- Where more than four blocks of keys meet few thread blocks, each sequence's keys are cut into parts
  (`parts_of`), which are attended to apart. A second kernel weighs them by ``exp`` of their log-sum-exps.

Source: vllm-project/flash-attention, ``hopper/softmax.h``, ``mainloop_fwd_sm90_tma_gmma_ws.hpp``,
``tile_size.h``, ``heuristics.h``, ``flash_prepare_scheduler.cu``, ``flash_fwd_combine_kernel.h``. Compared
with a card (docs/results).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import tensor_core
from qdx.kernels.cards import Rule
from qdx.kernels.elementary import Float32s, ex2_approx_ftz, fma, rcp_approx_ftz
from qdx.kernels.logarithm import lg2_approx_ftz

PREFILL_KEYS, FEW_QUERIES_KEYS = 128, 192
PREFILL_ROWS, FEW_ROWS = 192, 64  # queries times heads that share keys, of one thread block
MOST_BLOCKS = 4  # of keys, which are never cut
MOST_PARTS = 128
VERSION_2_KEYS = 256  # of FlashAttention 2 with heads of 64 and pages, by its source alone
_LOG2_E, _LOG_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
_MINUS_INFINITY = np.float32(-np.inf)
_AT_ONCE = 1 << 16  # scores of several heads that are handled together


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


def _most_parts(row_blocks: int, key_blocks: int, sm_count: int) -> int:
    """Return into how many parts a sequence may be cut: ``num_splits_heuristic``, causal."""
    if row_blocks >= np.float32(0.8) * np.float32(sm_count) or key_blocks <= MOST_BLOCKS:
        return 1
    most = min(MOST_PARTS, sm_count, key_blocks)
    waves = (np.arange(1, most + 1) * row_blocks).astype(np.float32) / np.float32(sm_count)
    efficiency = waves / np.ceil(waves)
    # the comparison is with a double, 0.85 times the greatest
    return int(np.argmax(efficiency >= 0.85 * efficiency.max().astype(np.float64))) + 1


def parts_of(
    queries: Sequence[int], keys: Sequence[int], heads: int, kv_heads: int, sm_count: int
) -> tuple[int, tuple[int, ...]]:
    """Return the most parts that the launch allows for, and into how many each sequence's keys are cut.

    Parameters
    ----------
    queries, keys : sequence of int
        Of each sequence.
    heads, kv_heads : int
    sm_count : int
        Of the card.
    """
    group = heads // kv_heads
    block = keys_at_once(max(queries), group)
    tile = FEW_ROWS if block == FEW_QUERIES_KEYS else PREFILL_ROWS
    most = _most_parts(kv_heads * -(-max(queries) * group // tile), -(-max(keys) // block), sm_count)
    if most == 1:
        return 1, (1,) * len(keys)
    blocks = [-(-count // block) for count in keys]
    total = sum(-(-count * group // tile) * own for count, own in zip(queries, blocks, strict=True))
    margin = np.float32(total) * np.float32(1.1) * np.float32(kv_heads) / np.float32(sm_count)
    an_sm = int(np.ceil(margin))
    return most, tuple(max(1, min(-(-own // an_sm), most)) for own in blocks)


@dataclass
class _Heads:
    """Queries, keys and values of heads that are attended to together, float32."""

    q_HRD: Tensor
    key_HKD: Tensor
    value_HKD: Tensor

    def scores(self, rule: Rule) -> Float32s:
        """Return (heads · rows, keys)."""
        found = [
            tensor_core.chain(q_RD, key_KD.t().contiguous(), rule)
            for q_RD, key_KD in zip(self.q_HRD, self.key_HKD, strict=True)
        ]
        return np.asarray(torch.cat(found).numpy(), np.float32)

    def weigh(self, p: Float32s, first: int, held: Float32s, rule: Rule) -> Float32s:
        """Add to (heads · rows, head size) what probabilities make of the values from `first` on."""
        rounded = torch.from_numpy(p).to(torch.float16).to(torch.float32)
        rows = self.q_HRD.shape[1]
        found = [
            tensor_core.chain(own, value_KD[first : first + p.shape[1]], rule, before)
            for own, value_KD, before in zip(
                rounded.split(rows), self.value_HKD, torch.from_numpy(held).split(rows), strict=True
            )
        ]
        return np.asarray(torch.cat(found).numpy(), np.float32)


def _attended(
    given: _Heads, score: Float32s, blocks: range, block: int, c: np.float32, rule: Rule
) -> tuple[Float32s, Float32s]:
    """Attend to blocks of keys; blocks that a row does not see leave nothing behind.

    Returns
    -------
    tuple of ndarray
        float32 (rows, head size), and the rows' log-sum-exps.
    """
    rows = len(score)
    maximum = np.full(rows, _MINUS_INFINITY)
    own_RT = np.zeros((rows, 4), np.float32)  # each of a row's four threads its sum
    weighted = np.zeros((rows, given.q_HRD.shape[2]), np.float32)
    for number in reversed(blocks):
        first = number * block
        part = score[:, first : first + block]
        before, maximum = maximum, np.maximum(maximum, part.max(1))
        seen = maximum > _MINUS_INFINITY
        shift = np.where(seen, maximum, np.float32(0))
        shrink = ex2_approx_ftz((before - shift) * c)
        with np.errstate(invalid="ignore"):  # a masked score is -inf
            p = ex2_approx_ftz(fma(part, c, -(shift * c)[:, None]))
        by_thread = p.reshape(rows, block // 8, 4, 2)
        own_RT = fma(own_RT, shrink[:, None], by_thread[:, 0, :, 0])
        for column in range(1, block // 4):
            own_RT += by_thread[:, column // 2, :, column % 2]
        weighted = given.weigh(p, first, weighted * shrink[:, None], rule)
    total = (own_RT[:, 0] + own_RT[:, 2]) + (own_RT[:, 1] + own_RT[:, 3])
    none = total == 0
    logarithm = lg2_approx_ftz(np.where(none, np.float32(1), total)) * _LOG_2
    lse = fma(np.where(none, np.float32(0), maximum), c * _LOG_2, logarithm)
    inverse = np.where(none, np.float32(0), rcp_approx_ftz(total))
    return weighted * inverse[:, None], np.where(none, _MINUS_INFINITY, lse).astype(np.float32)


def _joined(parts: list[tuple[Float32s, Float32s]], most: int) -> tuple[Float32s, Float32s]:
    """Weigh the parts of each row, as the second kernel does.

    16 threads hold a row's weights, of more than 16 parts each thread several, and add them by shuffles of
    8, 4, 2 and 1.
    """
    rows = len(parts[0][1])
    slots = next(size for size in (16, 32, 64, 128) if size >= most)
    lse_RS = np.full((rows, slots), _MINUS_INFINITY)
    for place, (_, lse) in enumerate(parts):
        lse_RS[:, place] = lse
    largest = lse_RS.max(1)
    shift = np.where(largest > _MINUS_INFINITY, largest, np.float32(0))
    weight_RS = ex2_approx_ftz((lse_RS - shift[:, None]) * _LOG2_E)
    sum_RT = weight_RS[:, :16].copy()
    for first in range(16, slots, 16):
        sum_RT += weight_RS[:, first : first + 16]
    while sum_RT.shape[1] > 1:
        half = sum_RT.shape[1] // 2
        sum_RT = sum_RT[:, :half] + sum_RT[:, half:]
    total = sum_RT[:, 0]
    weight_RS = weight_RS * np.where(total == 0, np.float32(0), rcp_approx_ftz(total))[:, None]
    found = np.zeros_like(parts[0][0])
    for place, (part, _) in enumerate(parts):
        weight = weight_RS[:, place, None]
        found = np.where(weight > 0, fma(weight, part, found), found)
    lse = fma(lg2_approx_ftz(total), _LOG_2, largest)
    return found.astype(np.float32), lse


def _rows(
    given: _Heads,
    position_R: NDArray[np.int64],
    c: np.float32,
    block: int,
    tile: int,
    cut: tuple[int, int],
    rule: Rule,
) -> tuple[Float32s, Float32s]:
    """Attend with several heads: `cut` is the most parts and this sequence's."""
    most, count = cut
    heads, _, size = given.q_HRD.shape
    length = given.key_HKD.shape[1]
    filled = -(-length // block) * block
    given.key_HKD, given.value_HKD = (
        torch.nn.functional.pad(one, (0, 0, 0, filled - length)) for one in (given.key_HKD, given.value_HKD)
    )
    score = given.scores(rule)
    position = np.tile(position_R, heads)
    score = np.where(np.arange(filled)[None] <= position[:, None], score, _MINUS_INFINITY)
    if count == 1:
        return _attended(given, score, range(filled // block), block, c, rule)
    rows = len(position_R)
    out, lse = np.empty((heads, rows, size), np.float32), np.empty((heads, rows), np.float32)
    score_HRK = score.reshape(heads, rows, filled)
    for top in range(0, rows, tile):  # a thread block's rows are cut by the keys that its last row sees
        here = slice(top, top + tile)
        last = int(position_R[here].max()) + 1
        blocks = -(-last // block)
        each = -(-blocks // count)
        mine = _Heads(given.q_HRD[:, here], given.key_HKD, given.value_HKD)
        own = np.ascontiguousarray(score_HRK[:, here]).reshape(-1, filled)
        parts = [
            _attended(mine, own, range(min(first, blocks), min(first + each, blocks)), block, c, rule)
            for first in range(0, each * count, each)
        ]
        joined, its_lse = _joined(parts, most)
        out[:, here], lse[:, here] = joined.reshape(heads, -1, size), its_lse.reshape(heads, -1)
    return out.reshape(-1, size), lse.reshape(-1)


def attention(
    q_THD: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    queries: tuple[int, ...],
    scale: float,
    rule: Rule = tensor_core.HOPPER,
    *,
    sm_count: int = 132,
    exactly: bool = True,
    block: int | None = None,
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
    sm_count : int
        Of the card, which decides into how many parts keys are cut.
    exactly : bool
        Refuse cut keys where no card was asked: in steps of many queries.
    block : int, optional
        Keys at a time, never cut, in place of FlashAttention 3's: `VERSION_2_KEYS` for FlashAttention 2.

    Returns
    -------
    Tensor
        float16 (tokens, heads, 64).

    Raises
    ------
    QdxError
        For another dtype or head size than those that were compared, and for what `exactly` refuses.
    """
    return with_lse(
        q_THD, keys, values, queries, scale, rule, sm_count=sm_count, exactly=exactly, block=block
    )[0]


def with_lse(
    q_THD: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    queries: tuple[int, ...],
    scale: float,
    rule: Rule = tensor_core.HOPPER,
    *,
    sm_count: int = 132,
    exactly: bool = True,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Do as `attention`, and return the log-sum-exps, float32 (tokens, heads), beside it."""
    _, heads, size = q_THD.shape
    if q_THD.dtype != torch.float16 or size != 64:
        raise QdxError(
            f"FlashAttention 3 is known bit for bit in float16 with heads of 64, got "
            f"{str(q_THD.dtype).removeprefix('torch.')} with heads of {size}: use backend=transformers"
        )
    kv_heads = keys[0].shape[1]
    group = heads // kv_heads
    most, cuts = parts_of(queries, [len(one) for one in keys], heads, kv_heads, sm_count)
    if block is not None:
        most, cuts = 1, (1,) * len(keys)
    else:
        block = keys_at_once(max(queries), group)
    tile = FEW_ROWS if block == FEW_QUERIES_KEYS else PREFILL_ROWS
    if exactly and block == PREFILL_KEYS and max(cuts) > 1:
        raise QdxError(
            f"FlashAttention 3 cuts {max(map(len, keys))} keys of a step of {max(queries)} queries, which "
            f"was not compared with a card; up to {MOST_BLOCKS * block} keys were: use shorter prompts, "
            "backend.attention_backend=TRITON_ATTN on both sides, or backend.approximate=true"
        )
    c = np.float32(np.float32(scale) * _LOG2_E)
    out_THD = torch.empty_like(q_THD)
    lse_TH = torch.empty(q_THD.shape[:2])
    first = 0
    for count, cut, key_KHD, value_KHD in zip(queries, cuts, keys, values, strict=True):
        part = slice(first, first + count)
        position_R = np.repeat(np.arange(len(key_KHD) - count, len(key_KHD)), group)
        together = max(1, _AT_ONCE // (len(position_R) * len(key_KHD)))
        for head in range(0, kv_heads, together):
            own = slice(head, min(head + together, kv_heads))
            wide = slice(own.start * group, own.stop * group)
            members = own.stop - own.start
            q_HRD = q_THD[part, wide].view(count, members, group, size).transpose(0, 1)
            given = _Heads(
                q_HRD.reshape(members, count * group, size).to(torch.float32),
                *(one[:, own].transpose(0, 1).to(torch.float32) for one in (key_KHD, value_KHD)),
            )
            result, lse = _rows(given, position_R, c, block, tile, (most, cut), rule)
            shape = members, count, group
            half = torch.from_numpy(result).to(torch.float16).view(*shape, size)
            out_THD[part, wide] = half.transpose(0, 1).reshape(count, -1, size)
            lse_TH[part, wide] = torch.from_numpy(lse).view(shape).transpose(0, 1).reshape(count, -1)
        first += count
    return out_THD, lse_TH
