"""Machete: CUTLASS 3 mixed-input matmul for Hopper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qdx.kernels import tensor_core
from qdx.kernels._base import KernelModel, check_weight, scratch
from qdx.kernels.partition import Region, accumulate, regions
from qdx.kernels.weights import QuantizedWeight

TILE_K = 64
_LEAST_K_TILES = 8  # min_iters_per_sk_unit_
_MOST_GROUPS = 8  # max_sk_groups_


@dataclass(frozen=True)
class Schedule:
    """Tile of out-features and rows, and thread blocks of a cluster (along out-features)."""

    tile_n: int
    tile_m: int
    cluster: int


def schedule(rows: int, in_features: int, out_features: int) -> Schedule:
    """Return the tile shape that ``default_heuristic`` of ``generate.py`` picks; 4069 is its own."""
    m, k, n = rows, in_features, out_features
    if m > 256:
        return Schedule(128, 128, 2) if k <= 16384 and n <= 4096 else Schedule(128, 256, 2)
    if m > 128:
        if k <= 4096 and n <= 4096:
            return Schedule(128, 64, 2)
        return Schedule(128, 128, 2) if k <= 8192 and n <= 8192 else Schedule(128, 256, 2)
    if m > 64:
        if k <= 4069 and n <= 4069:
            return Schedule(128, 32, 2)
        if k <= 4069 and n <= 8192:
            return Schedule(128, 64, 2)
        return Schedule(256, 128, 2) if k >= 8192 and n >= 12288 else Schedule(128, 128, 2)
    if m > 32:
        if k <= 6144 and n <= 6144:
            return Schedule(128, 16, 1)
        return Schedule(256, 64, 2) if k >= 16384 and n >= 12288 else Schedule(128, 64, 2)
    if m > 16:
        return Schedule(128, 32, 2) if k <= 12288 and n <= 8192 else Schedule(256, 32, 2)
    return Schedule(256, 16, 1) if n >= 26624 else Schedule(128, 16, 1)


def _wave(sm_count: int, cluster: int) -> int:
    """Thread blocks at a time, in full clusters: GPCs of at most 18 SMs (``get_max_cta_occupancy``)."""
    if cluster == 1:
        return sm_count
    gpcs = max(1, sm_count // 18)
    left = 0 if sm_count < 18 else sm_count % 18
    fit = gpcs * (18 - 18 % cluster) + left - left % cluster
    return max(cluster, min(sm_count, fit) // cluster * cluster)


def _groups(most: int, clusters: int, cluster_tiles: int, cluster: int, units: int, k_tiles: int) -> int:
    """Groups of stream-K units that share tiles (``calculate_groups``)."""

    def fits(groups: int) -> bool:
        k_tiles_a_unit = cluster_tiles // groups * cluster * k_tiles // max(1, units // groups)
        return clusters % groups == 0 and k_tiles_a_unit >= _LEAST_K_TILES

    start = min(most, _MOST_GROUPS)
    for groups in range(start, 1, -1):
        if fits(groups) and cluster_tiles % groups == 0:
            return groups
    return next((groups for groups in range(start, 1, -1) if fits(groups)), 1)


def _group_cuts(tiles: int, units: int, k_tiles: int) -> list[tuple[int, ...]]:
    """Cuts of each of one group's tiles; a share of under 8 K tiles goes to the unit before or after."""
    share, big = divmod(tiles * k_tiles, units)
    inside: list[set[int]] = [set() for _ in range(tiles)]
    for unit in range(1, units):
        tile, at = divmod(unit * share + min(unit, big), k_tiles)
        if tile < tiles and _LEAST_K_TILES <= at <= k_tiles - _LEAST_K_TILES:
            inside[tile].add(at)
    return [(0, *sorted(cuts), k_tiles) for cuts in inside]


def _tile_cuts(
    blocks_n: int, blocks_m: int, k_tiles: int, cluster: int, sm_count: int
) -> list[tuple[int, ...]]:
    """Cuts of every output tile in the scheduler's order (``select_decomposition_mode``), in K tiles."""
    tiles = blocks_n * blocks_m
    whole: tuple[int, ...] = (0, k_tiles)
    wave = _wave(sm_count, cluster)
    full_waves, tail = divmod(tiles, wave)
    if not tail or k_tiles <= _LEAST_K_TILES or 2 * tail >= wave:
        return [whole] * tiles
    streamed = tiles - max(0, full_waves - 1) * wave
    streamed -= streamed % cluster
    units = min(wave, k_tiles * streamed // _LEAST_K_TILES // cluster * cluster)
    if not streamed or not units:
        return [whole] * tiles
    if streamed < units and units % streamed == 0:  # plain split-K
        share, big = divmod(k_tiles, units // streamed)
        cuts = tuple(split * share + min(split, big) for split in range(units // streamed + 1))
        return [cuts] * tiles
    most = blocks_n // cluster if blocks_m > blocks_n else blocks_m
    cluster_tiles = streamed // cluster
    groups = _groups(most, units // cluster, cluster_tiles, cluster, units, k_tiles)
    found = [whole] * tiles
    for group in range(groups):
        mine = range(group, cluster_tiles, groups)
        cut = _group_cuts(len(mine), units // cluster // groups, k_tiles) if len(mine) else []
        for cuts, cluster_tile in zip(cut, mine, strict=True):
            found[cluster_tile * cluster : (cluster_tile + 1) * cluster] = [cuts] * cluster
    return found


@lru_cache(maxsize=512)
def stream_k(rows: int, in_features: int, out_features: int, sm_count: int) -> tuple[Region, ...]:
    """Partition the work as CUTLASS's stream-K tile scheduler does.

    Parameters
    ----------
    rows, in_features, out_features : int
        M, K, N of the product.
    sm_count : int
        Streaming multiprocessors.

    Returns
    -------
    tuple of Region
    """
    plan = schedule(rows, in_features, out_features)
    blocks_n = -(-out_features // plan.tile_n)
    blocks_n = -(-blocks_n // plan.cluster) * plan.cluster
    blocks_m = -(-rows // plan.tile_m)
    cuts = _tile_cuts(blocks_n, blocks_m, in_features // TILE_K, plan.cluster, sm_count)
    by_tile = []
    for block_m in range(blocks_m):
        line = []
        for block_n in range(blocks_n):
            if blocks_m > blocks_n:  # along out-features first
                index = block_m * blocks_n + block_n
            else:  # along rows first, the blocks of a cluster side by side
                index = (block_n // plan.cluster * blocks_m + block_m) * plan.cluster + block_n % plan.cluster
            line.append(tuple(cut * TILE_K for cut in cuts[index]))
        by_tile.append(line)
    return regions(by_tile, plan.tile_m, plan.tile_n, rows, out_features)


class Machete(KernelModel):
    """Float32 sums of 64-row K tiles, slices added from the top of K to its bottom, then rounded.

    Source: ``csrc/quantization/machete/machete_mainloop.cuh`` (``transform_A_kblock``, ``mma``),
    ``machete_mm_kernel.cuh`` (K tile, scheduler), ``generate.py`` (tile shapes),
    ``vllm/…/mixed_precision/machete.py`` (``transform_w_zp``); CUTLASS ``tile_scheduler_params.h`` and
    ``sm90_tile_scheduler_stream_k.hpp`` (``select_decomposition_mode``, ``fixup_helper``).

    - Symmetric weights: (q - 8) times the scale, rounded once: the same numbers as Marlin's.
    - With zero points, -scale * zero is rounded when the checkpoint is loaded, and q * scale + that again
      in the kernel: other numbers than Marlin's. The kernel's product and sum have no rounding modifier, so
      the assembler may fuse them into one FMA, which this model takes it to do.
    - Partition: `stream_k`; a slice has at least 8 K tiles, so K = 768 is cut only in plain split-K.

    Parameters
    ----------
    weight : QuantizedWeight
        In-features divisible by 128, out-features by 64, group size 32, 64, 128 or in-features.
        (vLLM's ``machete_utils.py`` asks for 64 and 128, and for no group size of 32; a tile that sticks out
        changes no sum, so the wider rule that Marlin shares is kept.)
    bias : Tensor, optional
        (out_features,); added to the rounded product.
    sm_count : int
        Streaming multiprocessors of the GPU that is modelled.
    generator
        Not used: this kernel leaves nothing to chance.
    """

    name = "machete"
    multiples = (128, 64)

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
        self._prepare(torch.float16)

    def _prepare(self, dtype: torch.dtype) -> None:
        """Round the weights for activations of `dtype`."""
        source = self._source
        # Every product and sum is exact in float32: at most 16 bits above the scale's last one.
        q_GSN = source.q_KN.to(torch.float32).view(-1, source.group_size, source.out_features)
        scale_GN = source.scale_GN.to(dtype).to(torch.float32)
        if source.symmetric:
            weight_GSN = (q_GSN - 8) * scale_GN[:, None]
        else:
            shift_GN = (-scale_GN * source.zero_GN).to(dtype).to(torch.float32)
            weight_GSN = torch.addcmul(shift_GN[:, None], q_GSN, scale_GN[:, None])
        self._weight_LKN = weight_GSN.to(dtype).to(torch.float32).view(1, self.in_features, self.out_features)
        self._dtype = dtype

    def multiply(self, x_MK: Tensor) -> Tensor:
        """One launch."""
        if x_MK.dtype != self._dtype:
            self._prepare(x_MK.dtype)
        rows = x_MK.shape[0]
        parts = stream_k(rows, self.in_features, self.out_features, self.sm_count)
        x_LMK = scratch("x", 1, rows, self.in_features)
        x_LMK[0].copy_(x_MK)
        return self.add_bias(accumulate(x_LMK, self._weight_LKN, parts).to(x_MK.dtype))

    def multiply_exactly(self, x_MK: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """One launch."""
        if x_MK.dtype != self._dtype:
            self._prepare(x_MK.dtype)
        parts = stream_k(len(x_MK), self.in_features, self.out_features, self.sm_count)
        weight_KN = self._weight_LKN[0]
        if len(columns) < self.out_features or not torch.equal(columns, torch.arange(self.out_features)):
            weight_KN = weight_KN[:, columns]
        sum_MN = tensor_core.sums(
            x_MK[rows].to(torch.float32), weight_KN, parts, rows, columns, rule=self.rule
        )
        return self.add_bias(sum_MN.to(x_MK.dtype), columns)
