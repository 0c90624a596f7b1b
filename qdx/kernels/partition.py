"""How a GPU matmul cuts the K axis into slices that are summed apart, and the same sum on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from qdx.kernels._base import scratch

# Up to this many float32 partial sums are formed by one batched matmul; above it their memory traffic costs
# more than the calls that it saves.
_BATCHED_PARTIALS = 1 << 19


@dataclass(frozen=True)
class Region:
    """Output elements whose sums over K are cut at the same places.

    Attributes
    ----------
    rows : tuple of int
        First row and one past the last.
    columns : tuple of (int, int)
        Runs of output columns.
    cuts : tuple of int
        0, the places where a slice ends, and K.
    """

    rows: tuple[int, int]
    columns: tuple[tuple[int, int], ...]
    cuts: tuple[int, ...]


def regions(
    cuts_by_tile: Sequence[Sequence[tuple[int, ...]]],
    row_tile: int,
    column_tile: int,
    rows: int,
    columns: int,
) -> tuple[Region, ...]:
    """Join output tiles that are cut alike.

    Parameters
    ----------
    cuts_by_tile : sequence of sequence of tuple
        For each row tile, for each column tile, its cuts.
    row_tile, column_tile : int
        Size of a tile; the last ones may stick out.
    rows, columns : int
        Size of the output.

    Returns
    -------
    tuple of Region
        They cover every output element once.
    """
    found: list[Region] = []
    first = 0
    for index, tiles in enumerate(cuts_by_tile):
        if index + 1 < len(cuts_by_tile) and cuts_by_tile[index + 1] == tiles:
            continue
        span = (first * row_tile, min(rows, (index + 1) * row_tile))
        first = index + 1
        runs: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for column, cuts in enumerate(tiles):
            start, stop = column * column_tile, min(columns, (column + 1) * column_tile)
            if start >= stop:
                continue
            mine = runs.setdefault(cuts, [])
            if mine and mine[-1][1] == start:
                mine[-1] = (mine[-1][0], stop)
            else:
                mine.append((start, stop))
        if span[0] < span[1]:
            found += [Region(span, tuple(columns_of), cuts) for cuts, columns_of in runs.items()]
    return tuple(found)


def accumulate(
    x_LMK: Tensor,
    weight_LKN: Tensor,
    parts: Sequence[Region],
    *,
    accumulators: Sequence[Sequence[int]] = ((0,),),
    last_first: bool = False,
) -> Tensor:
    """Sum over K in float32, slice by slice.

    A slice is summed in `accumulators`; each holds one or more of the L interleaved shares of K. The GPU
    adds to one accumulator in an order of its own (16 products a tensor core step); here it is that of the
    CPU's BLAS. From one accumulator to the next, and from slice to slice, the order is the GPU's.

    Parameters
    ----------
    x_LMK : Tensor
        float32 (shares, rows, K / shares).
    weight_LKN : Tensor
        float32 (shares, K / shares, out_features).
    parts : sequence of Region
        Cover of the output; their cuts count K, not K / shares.
    accumulators : sequence of sequence of int
        Shares that each accumulator sums; a slice is the first plus the second, then plus the third, ….
    last_first : bool
        Add slices from the end of K to its beginning.

    Returns
    -------
    Tensor
        float32 (rows, out_features), work memory.
    """
    shares, rows, _ = x_LMK.shape
    out_MN = scratch("sum", rows, weight_LKN.shape[-1])
    gathered: dict[tuple[tuple[int, int], ...], Tensor] = {}
    for part in parts:
        bounds = [[_bound(cut, share, shares) for share in range(shares)] for cut in part.cuts]
        spans = list(pairwise(bounds))
        if last_first:
            spans.reverse()
        even = len({stop - start for span in spans for start, stop in zip(*span, strict=True)}) == 1
        row_slice = slice(*part.rows)
        x_part = x_LMK[:, row_slice]
        target_MN, part_LKN = out_MN[row_slice], weight_LKN
        whole = part.columns == ((0, out_MN.shape[1]),)
        if not whole:  # side by side they are one matmul
            width = sum(stop - start for start, stop in part.columns)
            if part.columns not in gathered:  # row tiles share their column runs, not their cuts
                runs = [weight_LKN[:, :, start:stop] for start, stop in part.columns]
                memory = scratch(f"columns {len(gathered)}", *weight_LKN.shape[:2], width)
                gathered[part.columns] = torch.cat(runs, 2, out=memory)
            part_LKN = gathered[part.columns]
            target_MN = scratch("target", x_part.shape[1], width)
        partials = shares * len(spans) * target_MN.numel()
        if even and shares * len(spans) > 1 and partials <= _BATCHED_PARTIALS:
            _batched(x_part, part_LKN, len(spans), accumulators, last_first, target_MN)
        else:
            _sliced(x_part, part_LKN, spans, accumulators, target_MN)
        if not whole:
            at = 0
            for start, stop in part.columns:
                out_MN[row_slice, start:stop] = target_MN[:, at : at + stop - start]
                at += stop - start
    return out_MN


def _bound(cut: int, share: int, shares: int) -> int:
    """How many rows of K above `cut` are in a share, when shares take turns by 32 rows."""
    return 32 * -(-(cut // 32 - share) // shares)


def _sliced(
    x_LMK: Tensor,
    weight_LKN: Tensor,
    spans: Sequence[tuple[list[int], list[int]]],
    accumulators: Sequence[Sequence[int]],
    target_MN: Tensor,
) -> None:
    """One matmul for each share of each slice."""
    slice_MN = scratch("slice", *target_MN.shape)
    for index, (starts, stops) in enumerate(spans):
        into_MN = slice_MN if index else target_MN
        for turn, shares in enumerate(accumulators):
            alone = turn > 0 and len(shares) > 1
            mine_MN = scratch("accumulator", *target_MN.shape) if alone else into_MN
            for step, share in enumerate(shares):
                rows_K = slice(starts[share], stops[share])
                factors = (x_LMK[share, :, rows_K], weight_LKN[share, rows_K])
                if step == 0 and (alone or turn == 0):
                    torch.mm(*factors, out=mine_MN)
                else:
                    mine_MN.addmm_(*factors)
            if alone:
                into_MN.add_(mine_MN)
        if index:
            target_MN.add_(slice_MN)


def _batched(
    x_LMK: Tensor,
    weight_LKN: Tensor,
    slices: int,
    accumulators: Sequence[Sequence[int]],
    last_first: bool,
    target_MN: Tensor,
) -> None:
    """All shares of all slices in one batched matmul, for few rows."""
    shares, rows, length = x_LMK.shape
    step = length // slices
    columns = weight_LKN.shape[-1]
    x_LSMK = x_LMK.view(shares, rows, slices, step).transpose(1, 2)
    if rows > 1:
        x_LSMK = scratch("batched_x", shares, slices, rows, step).copy_(x_LSMK)
    partial_LSMN = scratch("partial", shares, slices, rows, columns)
    torch.bmm(
        x_LSMK.reshape(shares * slices, rows, step),
        weight_LKN.view(shares * slices, step, columns),
        out=partial_LSMN.view(shares * slices, rows, columns),
    )
    total_SMN = partial_LSMN[accumulators[0][0]]
    for turn, group in enumerate(accumulators):
        mine_SMN = partial_LSMN[group[0]]
        for share in group[1:]:
            mine_SMN.add_(partial_LSMN[share])
        if turn:
            total_SMN.add_(mine_SMN)
    order = range(slices - 1, -1, -1) if last_first else range(slices)
    first, *rest = order
    if not rest:
        target_MN.copy_(total_SMN[first])
        return
    torch.add(total_SMN[first], total_SMN[rest[0]], out=target_MN)
    for index in rest[1:]:
        target_MN.add_(total_SMN[index])
