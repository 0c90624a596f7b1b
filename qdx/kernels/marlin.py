"""Marlin: 4-bit weights, fp16 or bf16 activations, stripes over SMs."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qdx.kernels import tensor_core
from qdx.kernels._base import KernelModel, check_weight, scratch
from qdx.kernels.partition import Region, accumulate, regions
from qdx.kernels.weights import QuantizedWeight

SHARES = 4
BLOCK = 32
# A thread block's warps share a K tile by 32-row blocks: four of them a tile of 128, two a tile of 64.
# Their sums are added in shared memory as c0 + (c1 + (c3 + c2)), or c0 + c1.
_ACCUMULATORS = {128: ((2,), (3,), (1,), (0,)), 64: ((1, 3), (0, 2))}
_MAX_ROW_BLOCKS = 4


def tile_shape(rows: int, out_features: int, sm_count: int) -> tuple[int, int]:
    """Return (K rows, columns) of a thread block's tile.

    The rule of ``determine_exec_config`` and the small-tile override that follows it in ``marlin_mm``.
    Shared memory never decides on compute capability 8.0 or 9.0.
    """
    many = rows > 16
    wide = 256 if many else 128
    if out_features % wide == 0:
        shape = (64, 256) if many else (128, 128)
    elif out_features % 128 == 0:
        shape = (64, 128)
    else:
        shape = (128, 64)
    row_blocks = -(-rows // (16 * min(-(-rows // 16), _MAX_ROW_BLOCKS)))
    return (128, 64) if out_features // shape[1] * row_blocks * 4 <= sm_count else shape


def launches(rows: int, out_features: int) -> list[tuple[int, int]]:
    """Return (first row, rows) of each kernel launch: full 64-row blocks together, then what is left."""
    most = 16 * (8 if out_features <= 4096 else 1)
    found: list[tuple[int, int]] = []
    first = 0
    while first < rows:
        full = min((rows - first) // (16 * _MAX_ROW_BLOCKS), most)
        count = full * 16 * _MAX_ROW_BLOCKS or rows - first
        found.append((first, count))
        first += count
    return found


@lru_cache(maxsize=512)
def stripes(
    rows: int, in_features: int, out_features: int, group_size: int, sm_count: int
) -> tuple[tuple[int, int, int, tuple[Region, ...]], ...]:
    """Partition the work over SMs.

    Parameters
    ----------
    rows, in_features, out_features : int
        M, K, N of the product.
    group_size : int
        -1 for one scale a column.
    sm_count : int
        Number of thread blocks.

    Returns
    -------
    tuple of (int, int, int, tuple of Region)
        For each launch its first row, its number of rows, the K rows of a tile and the regions (rows from 0).
    """
    found = []
    for first, count in launches(rows, out_features):
        tile_k, tile_n = tile_shape(count, out_features, sm_count)
        block_rows = min(-(-count // 16), _MAX_ROW_BLOCKS) * 16
        row_tiles = count // block_rows if count > block_rows else 1
        column_tiles, k_tiles = out_features // tile_n, in_features // tile_k
        tiles = row_tiles * column_tiles
        striped = tiles
        if tiles > sm_count:  # whole waves first, one tile a thread block, K not cut
            striped = tiles % sm_count
            if striped * 3 <= sm_count:
                striped += sm_count
        length = -(-k_tiles * striped // sm_count)
        if group_size >= tile_k:  # a stripe never starts inside a group
            per_group = group_size // tile_k
            length = per_group * -(-length // per_group)
        by_tile: list[list[tuple[int, ...]]] = []
        for row_tile in range(row_tiles):
            line = []
            for column_tile in range(column_tiles):
                index = row_tile * column_tiles + column_tile - (tiles - striped)
                inside: list[int] = []
                if index >= 0:
                    low, high = index * k_tiles, (index + 1) * k_tiles
                    inside = [cut - low for cut in range(-(-(low + 1) // length) * length, high, length)]
                line.append(tuple(cut * tile_k for cut in (0, *inside, k_tiles)))
            by_tile.append(line)
        found.append((first, count, tile_k, regions(by_tile, block_rows, tile_n, count, out_features)))
    return tuple(found)


class Marlin(KernelModel):
    """Float32 sums of each stripe, added from the bottom of K to its top in float32, then rounded.

    Source: ``csrc/quantization/marlin/marlin.cu`` (``marlin_mm``, ``determine_exec_config``),
    ``marlin_template.h`` (``Marlin``: partition, ``matmul``, ``thread_block_reduce``,
    ``global_reduce_fp32``, ``write_result``), ``dequant.h``, and
    ``vllm/model_executor/layers/quantization/utils/marlin_utils.py`` (``USE_FP32_REDUCE_DEFAULT`` is true,
    atomic add is off unless ``VLLM_MARLIN_USE_ATOMIC_ADD`` is set).

    - Weights: q minus zero point (8 in symmetric GPTQ) is exact in fp16 and bf16; the product with the
      group's scale is rounded once before the tensor cores see it. With one scale a column (group size =
      in-features) the integers are multiplied, and the rounded sum times the scale is rounded again.
    - Partition: `stripes`. Its tile shape, launches and cuts depend on rows, shape and SM count.
    - vLLM merges q, k, v and gate, up into one product each, which changes out-features and with it the
      cuts; this partitions the layer that it is given.

    Parameters
    ----------
    weight : QuantizedWeight
        In-features divisible by 128, out-features by 64, group size 32, 64, 128 or in-features.
    bias : Tensor, optional
        (out_features,); added to the rounded product.
    sm_count : int
        Streaming multiprocessors of the GPU that is modelled; 132 on H100 and H200, 108 on A100.
    generator
        Not used: this kernel leaves nothing to chance.
    """

    name = "marlin"
    multiples = (SHARES * BLOCK, 64)

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None = None,
        *,
        sm_count: int = 132,
        generator: torch.Generator | None = None,
    ) -> None:
        check_weight(type(self), weight)
        super().__init__(weight.in_features, weight.out_features, bias)
        self.sm_count = sm_count
        self._source = weight
        self._per_column = weight.group_size == weight.in_features
        self._prepare(torch.float16)

    def _prepare(self, dtype: torch.dtype) -> None:
        """Round the weights for activations of `dtype` and lay them out share by share."""
        source = self._source
        centred_GSN = source.q_KN.to(torch.float32).view(-1, source.group_size, source.out_features)
        centred_GSN = centred_GSN - source.zero_GN.to(torch.float32)[:, None]
        if not self._per_column:
            scale_GN = source.scale_GN.to(dtype).to(torch.float32)
            centred_GSN = centred_GSN.mul_(scale_GN[:, None]).to(dtype).to(torch.float32)
        weight_TLBN = centred_GSN.view(-1, SHARES, BLOCK, source.out_features)
        self._weight_LKN = weight_TLBN.transpose(0, 1).reshape(SHARES, -1, source.out_features)
        self._weight_KN: Tensor | None = None
        self._dtype = dtype

    def _natural_KN(self) -> Tensor:
        """Return the weights in the order of K, made on first use."""
        if self._weight_KN is None:
            weight_TLBN = self._weight_LKN.unflatten(1, (-1, BLOCK)).transpose(0, 1)
            self._weight_KN = weight_TLBN.reshape(-1, self.out_features)
        return self._weight_KN

    def multiply(self, x_MK: Tensor) -> Tensor:
        """Launch by launch, as ``marlin_mm`` splits the rows."""
        if x_MK.dtype != self._dtype:
            self._prepare(x_MK.dtype)
        source = self._source
        y_MN = x_MK.new_empty(x_MK.shape[0], self.out_features)
        group_size = -1 if self._per_column else source.group_size
        for first, count, tile_k, parts in stripes(
            x_MK.shape[0], self.in_features, self.out_features, group_size, self.sm_count
        ):
            x_MTLB = x_MK[first : first + count].view(count, -1, SHARES, BLOCK)
            x_LMTB = scratch("x", SHARES, count, x_MTLB.shape[1], BLOCK).copy_(x_MTLB.permute(2, 0, 1, 3))
            sum_MN = accumulate(
                x_LMTB.view(SHARES, count, -1),
                self._weight_LKN,
                parts,
                accumulators=_ACCUMULATORS[tile_k],
                last_first=True,
            )
            y_MN[first : first + count] = sum_MN
        if self._per_column:
            y_MN.mul_(source.scale_GN[0].to(y_MN.dtype))
        return self.add_bias(y_MN)

    def multiply_exactly(self, x_MK: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Launch by launch."""
        if x_MK.dtype != self._dtype:
            self._prepare(x_MK.dtype)
        weight_KN = self._natural_KN()
        if len(columns) < self.out_features or not torch.equal(columns, torch.arange(self.out_features)):
            weight_KN = weight_KN[:, columns]
        group_size = -1 if self._per_column else self._source.group_size
        y_MN = x_MK.new_empty(len(rows), len(columns))
        for first, count, tile_k, parts in stripes(
            x_MK.shape[0], self.in_features, self.out_features, group_size, self.sm_count
        ):
            mine = (rows >= first) & (rows < first + count)
            y_MN[mine] = tensor_core.sums(
                x_MK[rows[mine]].to(torch.float32),
                weight_KN,
                parts,
                rows[mine] - first,
                columns,
                shares=SHARES,
                accumulators=_ACCUMULATORS[tile_k],
                last_first=True,
                rule=self.rule,
            ).to(y_MN.dtype)
        if self._per_column:
            y_MN.mul_(self._source.scale_GN[0, columns].to(y_MN.dtype))
        return self.add_bias(y_MN, columns)
