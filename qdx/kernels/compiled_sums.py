"""Sums of tensor cores, compiled for this CPU by numba.

They are what `qdx.kernels.tensor_core.by_torch` gives. The rule's numbers fit 32 bits, so that 16 columns
(AVX-512) or 8 (AVX2) are summed at once. A sum whose exponents lie beyond what float32 can scale, or which is
infinite or undefined, is marked instead, for the caller to repeat in torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdx.kernels.cards import Rule
from qdx.kernels.partition import Region

COLUMNS = 64  # of one block: its accumulators and one step's weights stay in the first-level cache
ROWS = 128
_AT_ONCE = 256  # columns that a thread takes
_ALONE = 1 << 18  # products under which threads are not worth their start
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
    beyond = np.zeros(found.shape, np.int32)
    steps = np.arange(0, x.shape[1], rule.products)
    blocks = steps // block

    def run(task: tuple[Region, int, int]) -> bool:
        part, first, last = task
        here = slice(*part.rows), slice(first, last)
        slices = list(pairwise(part.cuts))
        for number, (start, stop) in enumerate(slices[:: -1 if last_first else 1]):
            for place, group in enumerate(accumulators):
                own = np.isin(blocks % shares, group) & (steps >= start) & (steps < stop)
                held[here] = 0
                kernel(x, powers, weight, held, beyond, part.rows, (first, last), steps[own])
                if beyond[here].any():
                    return False
                if place == 0:
                    joined[here] = held[here]
                else:
                    joined[here] += held[here]
            if number == 0:
                found[here] = joined[here]
            else:
                found[here] += joined[here]
        return True

    tasks = [
        (part, first, min(first + _AT_ONCE, stop))
        for part in parts
        for start, stop in part.columns
        for first in range(start, stop, _AT_ONCE)
    ]
    alone = found.size * x.shape[1] <= _ALONE or torch.get_num_threads() == 1
    valid = map(run, tasks) if alone else _pool(torch.get_num_threads()).map(run, tasks)
    return torch.from_numpy(found) if all(list(valid)) else None


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
def _bit_casts() -> tuple[Any, Any, Any, Any]:
    """Return what reads a float's bits as an integer and an integer's as a float: 32 bits, then 64.

    numba has no name for that inside compiled code; LLVM's bitcast costs nothing.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def same_bits(source: Any, target: Any) -> Any:
        @intrinsic
        def cast(context: Any, value: Any) -> Any:
            def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
                return builder.bitcast(arguments[0], context.get_value_type(target))

            return target(source), generate

        return cast

    return (
        same_bits(types.float32, types.int32),
        same_bits(types.int32, types.float32),
        same_bits(types.float64, types.int64),
        same_bits(types.int64, types.float64),
    )


@cache
def _kernel(
    products: int, fraction_bits: int, least: int | None, result_bits: int, nearest: bool, least_factor: int
) -> Callable[..., None]:
    """Compile the sums of one rule, which takes a second or two, once a process."""
    from numba import njit

    to_int32, to_float32, to_int64, to_float64 = _bit_casts()
    exponent, wide_exponent = np.int32(0x7F800000), np.int64(0x7FF << 52)
    one, up = np.int32(127 << 23), np.int32((127 + fraction_bits) << 23)
    down = 2.0**-fraction_bits
    mask = np.int64(-1 << (52 - result_bits))
    zero, normal = np.float32(0), np.float32(2.0**least_factor)
    clamped = least is not None and least > _LEAST
    floor = np.float32(2.0 ** (least if least is not None and clamped else _LEAST))
    ceiling = np.float32(2.0**_MOST)
    # Adding and taking off 1.5 · 2^52 units leaves whole units, rounded to nearest.
    least_half = np.float32(2.0**-14)
    whole, least_power, infinite = 1.5 * 2.0 ** (52 - result_bits), 2.0**-14, np.float32(2.0**16)

    # One loop nest on purpose: lanes are summed at once, and a block's accumulators stay in the cache.
    @njit(nogil=True, error_model="numpy")  # numba's own cache does not find what was made in a function
    def run(x: Any, x_power: Any, weight: Any, total: Any, beyond: Any, m: Any, n: Any, starts: Any) -> None:
        top_row, rows = m[0], m[1] - m[0]
        factor = np.empty((products, COLUMNS), np.float32)
        power = np.empty((products, COLUMNS), np.float32)
        held = np.empty((rows, COLUMNS), np.float32)
        marked = np.empty((rows, COLUMNS), np.int32)
        for first in range(n[0], n[1], COLUMNS):
            count = min(COLUMNS, n[1] - first)
            wild = np.int32(0)
            for row in range(rows):
                for lane in range(count):
                    held[row, lane] = total[top_row + row, first + lane]
                    marked[row, lane] = 0
            for start in starts:
                for k in range(products):
                    for lane in range(count):
                        value = weight[start + k, first + lane]
                        own = to_float32(np.int32(to_int32(value) & exponent))
                        wild = np.int32(wild | np.int32(to_int32(own) == exponent))
                        own = own if own > normal else normal
                        factor[k, lane] = value
                        power[k, lane] = own if value != zero else zero
                for row in range(rows):
                    for lane in range(count):
                        before = held[row, lane]
                        top = to_float32(np.int32(to_int32(before) & exponent))
                        if nearest:  # a subnormal float16 accumulator has the least normal one's exponent
                            top = top if top > least_half or before == zero else least_half
                        for k in range(products):
                            own = x_power[top_row + row, start + k] * power[k, lane]
                            top = own if own > top else top
                        wrong = np.int32(not top <= ceiling)
                        if not clamped:
                            wrong = np.int32(wrong | np.int32((top < floor) & (top > zero)))
                        top = top if top > floor else floor
                        scale = to_float32(np.int32(np.int32(one - to_int32(top)) + up))
                        kept = np.int32(0)
                        for k in range(products):
                            kept = np.int32(
                                kept + np.int32(x[top_row + row, start + k] * factor[k, lane] * scale)
                            )
                        exact = np.float64(kept) + np.float64(np.int32(before * scale))
                        exact *= np.float64(top) * down
                        if nearest:
                            size = to_float64(to_int64(exact) & wide_exponent)
                            unit = (size if size > least_power else least_power) * whole
                            after = np.float32((exact + unit) - unit)
                            wrong = np.int32(wrong | np.int32(not abs(after) < infinite))
                        else:
                            after = np.float32(to_float64(to_int64(exact) & mask))
                        held[row, lane] = after
                        marked[row, lane] = np.int32(marked[row, lane] | wrong)
            for row in range(rows):
                for lane in range(count):
                    total[top_row + row, first + lane] = held[row, lane]
                    beyond[top_row + row, first + lane] = marked[row, lane] | wild

    return run  # type: ignore[no-any-return]
