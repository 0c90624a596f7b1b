"""Sums of tensor cores, compiled for this CPU by numba.

They are what `qdx.kernels.tensor_core.by_torch` gives. The rule's numbers fit 32 bits, so that 16 columns
(AVX-512) or 8 (AVX2) are summed at once. A sum whose exponents lie beyond what float32 can scale, or which is
infinite or undefined, is marked instead, for the caller to repeat in torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.kernels.cards import Rule
from qdx.kernels.partition import Region
from qdx.kernels.vector_instructions import LANES, instructions

COLUMNS = 64  # of one block: its accumulators and one step's weights stay in the first-level cache
ROWS = 128
_AT_ONCE = 256  # columns that a thread takes
_ALONE = 1 << 20  # products under which threads are not worth their start
# Largest exponents between which a scale and what it scales are normal float32 numbers. A product that
# float32 makes subnormal lies too far under these for any of its bits to be kept.
_LEAST, _MOST = -80, 100


@cache
def available() -> bool:
    """Return whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def chain(x_MK: Tensor, weight_KN: Tensor, rule: Rule, held_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Sum as `qdx.kernels.tensor_core.chain` does; K is a whole number of steps, nothing is converted.

    Returns
    -------
    tuple of Tensor
        float32 (rows, columns), and bool: which of them are not valid.
    """
    x, weight = (np.ascontiguousarray(value.numpy()) for value in (x_MK, weight_KN))
    rows, columns = held_MN.shape
    total = held_MN.numpy().astype(np.float32, order="C", copy=True)
    beyond = np.zeros((rows, columns), np.int32)
    wild = ~np.isfinite(x).all(1)
    if wild.any():
        x = np.where(wild[:, None], np.float32(0), x)
    kernel = _kernel_of(rule)
    powers, starts = _powers(x, rule.least_factor), np.arange(0, x.shape[1], rule.products)
    threads = torch.get_num_threads() if rows * columns * x.shape[1] > _ALONE else 1
    width = -(-columns // (threads * COLUMNS)) * COLUMNS

    def run(first: tuple[int, int]) -> None:
        m, n = (first[0], min(first[0] + ROWS, rows)), (first[1], min(first[1] + width, columns))
        kernel(x, powers, weight, total, beyond, m, n, starts)

    parts = [(m, n) for m in range(0, rows, ROWS) for n in range(0, columns, max(1, width))]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            run(part)
    else:
        list(_pool(threads).map(run, parts))
    return torch.from_numpy(total), torch.from_numpy((beyond != 0) | wild[:, None])


def sums(
    x_MK: Tensor,
    weight_KN: Tensor,
    parts: Sequence[Region],
    rule: Rule,
    *,
    block: int,
    shares: int,
    accumulators: Sequence[Sequence[int]],
    last_first: bool,
) -> Tensor | None:
    """Sum as `qdx.kernels.tensor_core.sums` does, every row and column, without copies of the weights.

    Returns
    -------
    Tensor or None
        float32 (rows, columns); None where some sum is not valid.
    """
    x, weight = (np.ascontiguousarray(value.numpy()) for value in (x_MK, weight_KN))
    if not np.isfinite(x).all():
        return None
    kernel, powers = _kernel_of(rule), _powers(x, rule.least_factor)
    found, held, joined = np.empty((3, len(x), weight.shape[1]), np.float32)
    beyond = np.zeros(held.shape, np.int32)
    groups = tuple(map(tuple, accumulators))

    def run(task: tuple[Region, int, int]) -> None:
        part, first, last = task
        here = slice(*part.rows), slice(first, last)
        slices = _steps(part.cuts, rule.products, block, shares, groups)
        for number, accumulated in enumerate(slices[:: -1 if last_first else 1]):
            for place, own in enumerate(accumulated):
                held[here] = 0
                kernel(x, powers, weight, held, beyond, part.rows, (first, last), own)
                if place == 0:
                    joined[here] = held[here]
                else:
                    joined[here] += held[here]
            if number == 0:
                found[here] = joined[here]
            else:
                found[here] += joined[here]

    tasks = [
        (part, first, min(first + _AT_ONCE, stop))
        for part in parts
        for start, stop in part.columns
        for first in range(start, stop, _AT_ONCE)
    ]
    alone = found.size * x.shape[1] <= _ALONE or torch.get_num_threads() == 1
    list(map(run, tasks) if alone else _pool(torch.get_num_threads()).map(run, tasks))
    return None if beyond.any() else torch.from_numpy(found)


@lru_cache(maxsize=1024)
def _steps(
    cuts: tuple[int, ...], products: int, block: int, shares: int, groups: tuple[tuple[int, ...], ...]
) -> list[list[NDArray[np.int64]]]:
    """Return of each slice of K, and of each accumulator, where its steps begin."""
    found = []
    for start, stop in pairwise(cuts):
        steps = np.arange(start, stop, products)
        found.append([steps[np.isin(steps // block % shares, group)] for group in groups])
    return found


def _kernel_of(rule: Rule) -> Callable[..., None]:
    return _kernel(
        rule.products, rule.fraction_bits, rule.least, rule.result_bits, rule.nearest, rule.least_factor
    )


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="qdx-sums")


def _powers(x: Any, least: int) -> Any:
    """Return 2^e of each number's exponent, at least 2^least, and of zero 0."""
    power = (x.view(np.int32) & 0x7F800000).view(np.float32)
    return np.where(x == 0, np.float32(0), np.maximum(power, np.float32(2.0**least)))


@cache
def _kernel(
    products: int, fraction_bits: int, least: int | None, result_bits: int, nearest: bool, least_factor: int
) -> Callable[..., None]:
    """Compile the sums of one rule, which takes a second or two, once a process."""
    from numba import njit

    clamped = least is not None and least > _LEAST
    prepare, advance = instructions(
        products,
        COLUMNS,
        fraction_bits,
        result_bits,
        nearest,
        normal=2.0**least_factor,
        floor=2.0 ** (least if least is not None and clamped else _LEAST),
        ceiling=2.0**_MOST,
        clamped=clamped,
    )

    # One loop nest on purpose: a block's accumulators and one step's weights stay in the cache.
    @njit(nogil=True, error_model="numpy")  # numba's own cache does not find what was made in a function
    def run(x: Any, x_power: Any, weight: Any, total: Any, beyond: Any, m: Any, n: Any, starts: Any) -> None:
        top_row, rows = m[0], m[1] - m[0]
        length, width = x.shape[1], weight.shape[1]
        factor = np.zeros(products * COLUMNS, np.float32)
        power = np.zeros(products * COLUMNS, np.float32)
        held = np.empty(rows * COLUMNS, np.float32)
        marked = np.empty(rows * COLUMNS, np.int32)
        line = np.zeros(COLUMNS, np.float32)
        for first in range(n[0], n[1], COLUMNS):
            count = min(COLUMNS, n[1] - first)
            wild = np.int32(0)
            held[:] = 0
            marked[:] = 0
            for row in range(rows):
                for lane in range(count):
                    held[row * COLUMNS + lane] = total[top_row + row, first + lane]
            for start in starts:
                for k in range(products):
                    if count == COLUMNS:
                        at = (start + k) * width + first
                        for lane in range(0, COLUMNS, LANES):
                            wild |= prepare(weight, at + lane, factor, power, k * COLUMNS + lane)
                    else:
                        for lane in range(count):
                            line[lane] = weight[start + k, first + lane]
                        for lane in range(0, COLUMNS, LANES):
                            wild |= prepare(line, lane, factor, power, k * COLUMNS + lane)
                for row in range(rows):
                    at = (top_row + row) * length + start
                    for lane in range(0, COLUMNS, LANES):
                        place = row * COLUMNS + lane
                        advance(x, x_power, at, factor, power, lane, held, marked, place)
            for row in range(rows):
                for lane in range(count):
                    total[top_row + row, first + lane] = held[row * COLUMNS + lane]
                    beyond[top_row + row, first + lane] = marked[row * COLUMNS + lane] | wild

    return run  # type: ignore[no-any-return]
