"""Sums of tensor cores, compiled for this CPU by numba.

They are what `qdx.kernels.tensor_core.by_torch` gives. The rule's numbers fit 32 bits, so that 16 columns
(AVX-512) or 8 (AVX2) are summed at once. A sum whose exponents lie beyond what float32 can scale, or which is
infinite or undefined, is marked instead, for the caller to repeat in torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdx.kernels.cards import Rule

COLUMNS = 64  # of one block: its accumulators and one step's weights stay in the first-level cache
ROWS = 128
_ALONE = 1 << 18  # products under which threads are not worth their start
# Largest exponents between which a scale and what it scales are normal float32 numbers. A product that
# float32 makes subnormal lies too far under these for any of its bits to be kept.
_LEAST, _MOST = -80, 100


@cache
def available() -> bool:
    """Whether numba is installed."""
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
    kernel = _kernel(
        rule.products, rule.fraction_bits, rule.least, rule.result_bits, rule.nearest, rule.least_factor
    )
    powers = _powers(x, rule.least_factor)
    threads = torch.get_num_threads() if rows * columns * x.shape[1] > _ALONE else 1
    width = -(-columns // (threads * COLUMNS)) * COLUMNS

    def run(first: tuple[int, int]) -> None:
        m, n = slice(first[0], first[0] + ROWS), slice(first[1], first[1] + width)
        kernel(x[m], powers[m], weight[:, n], total[m, n], beyond[m, n])

    parts = [(m, n) for m in range(0, rows, ROWS) for n in range(0, columns, max(1, width))]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            run(part)
    else:
        list(_pool(threads).map(run, parts))
    return torch.from_numpy(total), torch.from_numpy((beyond != 0) | wild[:, None])


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
    """Compile the sums of one rule, once a machine: numba keeps what it compiled."""
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    def same_bits(source: Any, target: Any) -> Any:
        @intrinsic
        def cast(context: Any, value: Any) -> Any:
            def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
                return builder.bitcast(arguments[0], context.get_value_type(target))

            return target(source), generate

        return cast

    to_int32, to_float32 = same_bits(types.float32, types.int32), same_bits(types.int32, types.float32)
    to_int64, to_float64 = same_bits(types.float64, types.int64), same_bits(types.int64, types.float64)
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

    @njit(nogil=True, cache=True, error_model="numpy")
    def run(x: Any, x_power: Any, weight: Any, total: Any, beyond: Any) -> None:
        rows, columns = total.shape
        factor = np.empty((products, COLUMNS), np.float32)
        power = np.empty((products, COLUMNS), np.float32)
        held = np.empty((rows, COLUMNS), np.float32)
        marked = np.empty((rows, COLUMNS), np.int32)
        for first in range(0, columns, COLUMNS):
            count = min(COLUMNS, columns - first)
            wild = np.int32(0)
            for m in range(rows):
                for n in range(count):
                    held[m, n] = total[m, first + n]
                    marked[m, n] = 0
            for start in range(0, x.shape[1], products):
                for k in range(products):
                    for n in range(count):
                        value = weight[start + k, first + n]
                        own = to_float32(np.int32(to_int32(value) & exponent))
                        wild = np.int32(wild | np.int32(to_int32(own) == exponent))
                        own = own if own > normal else normal
                        factor[k, n] = value
                        power[k, n] = own if value != zero else zero
                for m in range(rows):
                    for n in range(count):
                        before = held[m, n]
                        top = to_float32(np.int32(to_int32(before) & exponent))
                        if nearest:  # a subnormal float16 accumulator has the least normal one's exponent
                            top = top if top > least_half or before == zero else least_half
                        for k in range(products):
                            own = x_power[m, start + k] * power[k, n]
                            top = own if own > top else top
                        wrong = np.int32(not top <= ceiling)
                        if not clamped:
                            wrong = np.int32(wrong | np.int32((top < floor) & (top > zero)))
                        top = top if top > floor else floor
                        scale = to_float32(np.int32(np.int32(one - to_int32(top)) + up))
                        kept = np.int32(0)
                        for k in range(products):
                            kept = np.int32(kept + np.int32(x[m, start + k] * factor[k, n] * scale))
                        exact = np.float64(kept) + np.float64(np.int32(before * scale))
                        exact *= np.float64(top) * down
                        if nearest:
                            size = to_float64(to_int64(exact) & wide_exponent)
                            unit = (size if size > least_power else least_power) * whole
                            after = np.float32((exact + unit) - unit)
                            wrong = np.int32(wrong | np.int32(not abs(after) < infinite))
                        else:
                            after = np.float32(to_float64(to_int64(exact) & mask))
                        held[m, n] = after
                        marked[m, n] = np.int32(marked[m, n] | wrong)
            for m in range(rows):
                for n in range(count):
                    total[m, first + n] = held[m, n]
                    beyond[m, first + n] = marked[m, n] | wild

    return run  # type: ignore[no-any-return]
