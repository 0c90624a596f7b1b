"""Cut the K axis into slices that are summed apart, as a GPU matmul does, and sum them so on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise

import torch
from torch import Tensor

from qdx.kernels._base import scratch

# MKL sums up to 384 rows of K before it adds them to what is there, and adds a longer run piece by piece,
# which would join two accumulators. Runs come in powers of two here; another BLAS that adds earlier joins
# them in the last bits, no more.
_LONGEST_RUN = 256


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
        Cover of the output, as `regions` makes it; their cuts count K, not K / shares, and are multiples of
        32 times the number of accumulators.
    accumulators : sequence of sequence of int
        Shares that each of the A accumulators sums, A apart; a slice is the first plus the second, then plus
        the third, ….
    last_first : bool
        Add slices from the end of K to its beginning.

    Returns
    -------
    Tensor
        float32 (rows, out_features), work memory.
    """
    if any(share % len(accumulators) != group[0] for group in accumulators for share in group):
        raise ValueError(f"each accumulator takes every {len(accumulators)}th share, got {accumulators}")
    slices = _even_slices(parts[0].cuts, x_LMK.shape[0]) if len(parts) == 1 else 0
    if not slices:
        return _sweep(x_LMK, weight_LKN, parts, [group[0] for group in accumulators], last_first)
    sum_slices = _vector_slices if x_LMK.shape[1] == 1 else _matrix_slices
    slice_SMN = sum_slices(x_LMK, weight_LKN, slices, accumulators)
    first, *rest = slice_SMN.unbind(0)[:: -1 if last_first else 1]
    return _add(first, rest)


def _add(sum_MN: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """Add to `sum_MN` one term after the other."""
    for term_MN in terms:
        sum_MN.add_(term_MN)
    return sum_MN


def _bound(cut: int, share: int, shares: int) -> int:
    """Return how many rows of K above `cut` are in a share, when shares take turns by 32 rows."""
    return 32 * -(-(cut // 32 - share) // shares)


@lru_cache(maxsize=512)
def _even_slices(cuts: tuple[int, ...], shares: int) -> int:
    """Return the number of slices if each has as many rows of each share, else 0."""
    bounds = [[_bound(cut, share, shares) for share in range(shares)] for cut in cuts]
    lengths = {stop - start for span in pairwise(bounds) for start, stop in zip(*span, strict=True)}
    return len(cuts) - 1 if len(lengths) == 1 else 0


def _vector_slices(
    x_LMK: Tensor, weight_LKN: Tensor, slices: int, accumulators: Sequence[Sequence[int]]
) -> Tensor:
    """Sum each slice of a single row: all shares of all slices in one batched product.

    Not as `_matrix_slices` does it: where BLAS adds a vector's product to what is there, it adds every term
    on its own, so that one accumulator would begin with the other's sum.
    """
    shares, rows, length = x_LMK.shape
    step, columns = length // slices, weight_LKN.shape[-1]
    partial_LSMN = scratch("partial", shares, slices, rows, columns)
    torch.bmm(
        x_LMK.view(shares * slices, rows, step),
        weight_LKN.view(shares * slices, step, columns),
        out=partial_LSMN.view(shares * slices, rows, columns),
    )
    partials = partial_LSMN.unbind(0)
    first, *rest = [
        _add(partials[group[0]], [partials[share] for share in group[1:]]) for group in accumulators
    ]
    return _add(first, rest)


def _matrix_slices(
    x_LMK: Tensor, weight_LKN: Tensor, slices: int, accumulators: Sequence[Sequence[int]]
) -> Tensor:
    """Sum each slice of several rows: a batched matmul for each share, which BLAS adds once it is summed."""
    shares, rows, length = x_LMK.shape
    step, columns = length // slices, weight_LKN.shape[-1]
    x_by_share = x_LMK.view(shares, rows, slices, step).transpose(1, 2).unbind(0)
    weight_by_share = weight_LKN.view(shares, slices, step, columns).unbind(0)
    total_SMN = scratch("total", slices, rows, columns)
    for turn, group in enumerate(accumulators):
        apart = turn > 0 and (len(group) > 1 or step > _LONGEST_RUN)
        mine_SMN = scratch("accumulator", slices, rows, columns) if apart else total_SMN
        for share in group:
            if share == group[0] and (apart or turn == 0):
                torch.bmm(x_by_share[share], weight_by_share[share], out=mine_SMN)
            else:
                mine_SMN.baddbmm_(x_by_share[share], weight_by_share[share])
        if apart:
            total_SMN.add_(mine_SMN)
    return total_SMN


def _sweep(
    x_LMK: Tensor, weight_LKN: Tensor, parts: Sequence[Region], order: Sequence[int], last_first: bool
) -> Tensor:
    """Walk down K, all columns at once; where a region is cut, put its slice aside and begin it anew.

    256 rows of a 768 x 1536 product, which stripes cut into 20 regions, take twice as long as uncut on two
    threads; with a matmul for each slice of each region they took three times as long.
    """
    shares, rows, _ = x_LMK.shape
    columns = weight_LKN.shape[-1]
    turns = range(0, shares, len(order))
    sum_MN = scratch("sum", rows, columns)
    for (top, bottom), group in groupby(parts, lambda part: part.rows):
        band = list(group)
        held_AMN = scratch("held", len(order), bottom - top, columns)
        most = max(len(part.cuts) for part in band) - 2
        aside_SMN = scratch("aside", most, bottom - top, columns)  # counted from the last slice but one
        for part in band:
            for aside in _columns(aside_SMN[len(part.cuts) - 2 :], part):
                aside.zero_()
        for start, stop in pairwise(sorted({cut for part in band for cut in part.cuts})):
            for turn in turns:
                now = slice(turn, turn + len(order))
                rows_K = slice(_bound(start, turn, shares), _bound(stop, turn, shares))
                factors = x_LMK[now, top:bottom, rows_K], weight_LKN[now, rows_K]
                if start == turn == 0:
                    torch.bmm(*factors, out=held_AMN)
                else:
                    held_AMN.baddbmm_(*factors)
            for part in band:
                if stop in part.cuts[1:-1]:
                    place = len(part.cuts) - 2 - part.cuts.index(stop)
                    for held, aside in zip(
                        _columns(held_AMN, part), _columns(aside_SMN[place], part), strict=True
                    ):
                        _sum_accumulators(held, order, aside)
                        held.zero_()
        band_MN = sum_MN[top:bottom]
        _sum_accumulators(held_AMN, order, band_MN)
        asides = aside_SMN.unbind(0)
        if last_first:
            _add(band_MN, asides)
        elif asides:
            band_MN.add_(_add(asides[-1], asides[-2::-1]))
    return sum_MN


def _columns(memory: Tensor, part: Region) -> list[Tensor]:
    """Views of a region's columns: one where its runs are alike and evenly spaced, as stripes leave them."""
    starts = [start for start, _ in part.columns]
    widths = {stop - start for start, stop in part.columns}
    steps = {after - before for before, after in pairwise(starts)}
    if len(widths) == len(steps) == 1:
        return [memory[..., starts[0] : part.columns[-1][1]].unfold(-1, widths.pop(), steps.pop())]
    return [memory[..., start:stop] for start, stop in part.columns]


def _sum_accumulators(held_A: Tensor, order: Sequence[int], out: Tensor) -> None:
    """Write the sum of the accumulators."""
    first, *rest = [held_A[index] for index in order]
    if not rest:
        out.copy_(first)
        return
    torch.add(first, rest[0], out=out)
    _add(out, rest[1:])
