"""vLLM's Triton attention (``TRITON_ATTN``) on a Hopper card, bit for bit, on a CPU.

There are two kernels. One goes through all keys of a row, 32 at a time. The other, for few queries, cuts the
keys into up to 16 segments, goes through each 16 keys at a time, and joins them. Tensor cores make the scores
and the weighted sum of values; between these are float32 operations in an order that the compiler chose.

Source: vLLM 0.33.0, ``vllm/v1/attention/ops/triton_unified_attention.py`` and, beside it,
``triton_attention_helpers.py``; the order of sums, fused products and approximate functions are those of the
machine code that Triton 3.6.0 makes of it for compute capability 9.0 with 4 warps, which
``scripts/gpu/record_layers.py`` keeps.

- Scores: one accumulator over the head size, then times the scale. exp(x) is ex2.approx(x · log2 e).
- A thread holds two neighbouring columns of each 8 (``mma.m16n8k16``), four threads a row, a warp 8 columns.
  So eight columns are added as ((0 + 1) + (4 + 5)) + ((2 + 3) + (6 + 7)), and of a tile of 32 the four warps'
  sums as (0 + 2) + (1 + 3).
- The running sum is one fused product and sum; probabilities are rounded to 16 bits for the tensor cores and
  added before that.
- a / b is a times ``rcp.approx`` of b, both scaled where b is very large or small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import tensor_core
from qdx.kernels.cards import Rule
from qdx.kernels.elementary import ex2_approx, fma, rcp_approx

Float32s = NDArray[np.float32]

TILE, SEGMENT_TILE = 32, 16  # keys
SEGMENTS = 16
BLOCK_ROWS = 16  # rows of queries and heads of one thread block
MOST_QUERIES = 8  # of a sequence, with which keys are cut into segments
LEAST_BLOCKS = 128  # thread blocks under which keys are cut
_LOG2_E = np.float32(1.4426950216293335)
_LARGE, _LEAST_NORMAL = np.float32(2.0**126), np.float32(2.0**-126)


@dataclass(frozen=True)
class Batch:
    """The sequences that one launch computes.

    Attributes
    ----------
    queries : tuple of int
        Of each sequence, in the order of the rows.
    most_sequences : int
        The engine's ``max_num_seqs``: the memory for segments has rows for as many tokens.
    """

    queries: tuple[int, ...]
    most_sequences: int = 256

    def in_segments(self, heads: int, kv_heads: int) -> bool:
        """Return whether vLLM launches the kernel that cuts the keys into segments."""
        threshold = LEAST_BLOCKS // kv_heads
        longest = max(self.queries)
        blocks = -(-longest // (BLOCK_ROWS // (heads // kv_heads)))
        return (
            longest <= MOST_QUERIES
            and len(self.queries) * blocks <= threshold
            and sum(self.queries) <= min(threshold, self.most_sequences)
        )


def exp(x: Float32s) -> Float32s:
    """Return e^x as Triton's ``tl.exp`` does."""
    with np.errstate(invalid="ignore"):
        return ex2_approx(x * _LOG2_E)


def divide(a: Float32s, b: Float32s) -> Float32s:
    """Return a / b as ``div.full.f32`` does, which is what Triton's ``/`` is."""
    size = np.abs(b)
    factor = np.where(size > _LARGE, np.float32(0.25), np.float32(1))
    factor = np.where(size < _LEAST_NORMAL, np.float32(2.0**24), factor)
    with np.errstate(all="ignore"):
        quotient: Float32s = (a * factor) * rcp_approx(b * factor)
    return quotient


def _columns_sum(p: Float32s) -> Float32s:
    """Add the last axis, 16 or 32 columns, as the warps do."""
    pair = p[..., 0::2] + p[..., 1::2]
    thread = pair.reshape(*pair.shape[:-1], -1, 4)
    warp = (thread[..., 0] + thread[..., 2]) + (thread[..., 1] + thread[..., 3])
    if warp.shape[-1] == 2:
        return np.asarray(warp[..., 0] + warp[..., 1], np.float32)
    return np.asarray((warp[..., 0] + warp[..., 2]) + (warp[..., 1] + warp[..., 3]), np.float32)


@dataclass
class _Rows:
    """Hold what a thread block has of each row while it goes through the keys of a range."""

    maximum: Float32s
    total: Float32s
    weighted: Float32s  # (rows, head size)

    @classmethod
    def empty(cls, rows: int, size: int) -> _Rows:
        return cls(
            np.full(rows, -np.inf, np.float32), np.ones(rows, np.float32), np.zeros((rows, size), np.float32)
        )

    def add(self, score: Float32s, value_KD: Tensor, rule: Rule) -> None:
        """Go through one tile: `score` is -inf where a row does not see a key."""
        maximum = np.maximum(self.maximum, score.max(1))
        shift = np.where(maximum > -np.inf, maximum, np.float32(0))
        p = exp(score - shift[:, None])
        alpha = exp(self.maximum - shift)
        self.total = fma(alpha, self.total, _columns_sum(p))
        self.maximum = maximum
        rounded = torch.from_numpy(p).to(torch.float16).to(torch.float32)
        held = torch.from_numpy(self.weighted * alpha[:, None])
        self.weighted = tensor_core.chain(rounded, value_KD, rule, held).numpy()


def _scores(
    q_RD: Tensor, key_KD: Tensor, position_R: NDArray[np.int64], scale: float, tile: int, rule: Rule
) -> Float32s:
    """Return scaled scores of whole tiles, -inf where a key comes after its row."""
    keys = -(-len(key_KD) // tile) * tile
    padded = torch.nn.functional.pad(key_KD, (0, 0, 0, keys - len(key_KD)))
    score = tensor_core.chain(q_RD, padded.t().contiguous(), rule).numpy() * np.float32(scale)
    return np.where(np.arange(keys)[None] <= position_R[:, None], score, np.float32(-np.inf))


def _whole(
    q_RD: Tensor, key_KD: Tensor, value_KD: Tensor, position_R: NDArray[np.int64], scale: float, rule: Rule
) -> Float32s:
    """Attend to all keys in one range. Tiles that a row does not see leave it as it is."""
    score = _scores(q_RD, key_KD, position_R, scale, TILE, rule)
    value_KD = torch.nn.functional.pad(value_KD, (0, 0, 0, score.shape[1] - len(value_KD)))
    state = _Rows.empty(*q_RD.shape)
    for first in range(0, score.shape[1], TILE):
        state.add(score[:, first : first + TILE], value_KD[first : first + TILE], rule)
    return divide(state.weighted, state.total[:, None])


def _by_segments(
    q_RD: Tensor, key_KD: Tensor, value_KD: Tensor, position_R: NDArray[np.int64], scale: float, rule: Rule
) -> Float32s:
    """Attend to each segment's keys, then join the segments."""
    score = _scores(q_RD, key_KD, position_R, scale, SEGMENT_TILE, rule)
    value_KD = torch.nn.functional.pad(value_KD, (0, 0, 0, score.shape[1] - len(value_KD)))
    width = -(-len(key_KD) // (SEGMENTS * SEGMENT_TILE)) * SEGMENT_TILE
    rows, size = q_RD.shape
    maximum = np.full((rows, SEGMENTS), -np.inf, np.float32)
    total = np.zeros((rows, SEGMENTS), np.float32)
    weighted = np.zeros((rows, SEGMENTS, size), np.float32)
    for segment in range(-(-len(key_KD) // width)):
        state = _Rows.empty(rows, size)
        for first in range(segment * width, min((segment + 1) * width, score.shape[1]), SEGMENT_TILE):
            state.add(score[:, first : first + SEGMENT_TILE], value_KD[first : first + SEGMENT_TILE], rule)
        maximum[:, segment], total[:, segment] = state.maximum, state.total
        weighted[:, segment] = state.weighted
    return join(maximum, total, weighted)


def join(maximum_RS: Float32s, total_RS: Float32s, weighted_RSD: Float32s) -> Float32s:
    """Join 16 segments as vLLM's ``reduce_segments`` does.

    Parameters
    ----------
    maximum_RS, total_RS : ndarray
        float32 (rows, 16): the largest score of a segment, -inf where it has none, and its sum.
    weighted_RSD : ndarray
        float32 (rows, 16, head size): what the segments' probabilities make of their values.

    Returns
    -------
    ndarray
        float32 (rows, head size).
    """
    valid = (total_RS > 0) & (maximum_RS > -np.inf)
    maximum = np.where(valid, maximum_RS, np.float32(-np.inf))
    with np.errstate(invalid="ignore"):
        scale = np.where(valid, exp(maximum - maximum.max(1, keepdims=True)), np.float32(0))
    low, high = slice(0, 8), slice(8, 16)
    # A thread adds the product of the other half to its own by one fused operation, so that the lower and
    # the upper half of a warp's threads come to different sums; each divides its own columns.
    product = scale * total_RS
    divisors = []
    for own, other in ((low, high), (high, low)):
        pair = fma(scale[:, own], total_RS[:, own], product[:, other])
        four = pair[:, :4] + pair[:, 4:]
        two = four[:, :2] + four[:, 2:]
        divisors.append(two[:, 0] + two[:, 1])
    scaled = scale[:, high, None] * weighted_RSD[:, high]
    eight = fma(np.broadcast_to(scale[:, low, None], scaled.shape), weighted_RSD[:, low], scaled)
    four = eight[:, 0::2] + eight[:, 1::2]
    joined = (four[:, 0] + four[:, 2]) + (four[:, 1] + four[:, 3])
    half = joined.shape[1] // 2
    result = np.concatenate(
        [
            divide(part, divisor[:, None])
            for part, divisor in zip((joined[:, :half], joined[:, half:]), divisors, strict=True)
        ],
        axis=1,
    )
    return np.where(divisors[0][:, None] == 0, np.float32(0), result)


def attention(
    q_THD: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    batch: Batch,
    scale: float,
    rule: Rule = tensor_core.HOPPER,
) -> Tensor:
    """Attend causally, the queries being the last tokens of their sequences.

    Parameters
    ----------
    q_THD : Tensor
        float16 (tokens, heads, 64), sequence after sequence.
    keys, values : list of Tensor
        Of each sequence, float16 (keys, heads of keys, 64), the queries' own among them.
    batch : Batch
        How many of the tokens belong to each sequence.
    scale : float
        Of the scores.
    rule : Rule
        Of the card's tensor cores.

    Returns
    -------
    Tensor
        float16 (tokens, heads, 64).

    Raises
    ------
    QdxError
        For another dtype or head size than those whose machine code is known.
    """
    _, heads, size = q_THD.shape
    if q_THD.dtype != torch.float16 or size != 64:
        raise QdxError(
            f"Triton attention is known bit for bit in float16 with heads of 64, got "
            f"{str(q_THD.dtype).removeprefix('torch.')} with heads of {size}: set backend.approximate=true"
        )
    kv_heads = keys[0].shape[1]
    group = heads // kv_heads
    attend = _by_segments if batch.in_segments(heads, kv_heads) else _whole
    out_THD = torch.empty_like(q_THD)
    first = 0
    for count, key_KHD, value_KHD in zip(batch.queries, keys, values, strict=True):
        part = slice(first, first + count)
        position_R = np.repeat(np.arange(len(key_KHD) - count, len(key_KHD)), group)
        for head in range(kv_heads):
            own = slice(head * group, (head + 1) * group)
            q_RD = q_THD[part, own].reshape(count * group, size).to(torch.float32)
            result = attend(
                q_RD,
                key_KHD[:, head].to(torch.float32),
                value_KHD[:, head].to(torch.float32),
                position_R,
                scale,
                rule,
            )
            out_THD[part, own] = torch.from_numpy(result).to(torch.float16).view(count, group, size)
        first += count
    return out_THD
