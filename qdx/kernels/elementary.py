"""The elementary functions of an NVIDIA card, bit for bit: ex2, rsqrt, rcp, expf and division.

A card's special function unit answers ``ex2``, ``rsqrt`` and ``rcp`` with values that differ from the
correctly rounded ones by up to 2 ulps. Which way is a fact of the circuit, not of a formula, so it is stored.
There is one table of 2^23 results for each function, two for rsqrt; all other arguments follow by scaling. A
table holds differences from values that IEEE arithmetic gives on every machine, in 2 bits an entry, packed.

Source: measured on an H100 by ``scripts/gpu/prove_functions.py``, which also compares every function here
with the card for all 2^32 arguments: none differs (docs/results). ``expf`` is libdevice's (CUDA 13), around
``ex2.approx.ftz``. CUDA's division is correctly rounded, as numpy's and torch's are. Other cards were not
asked.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]

FRACTION = 23
ENTRIES = 1 << FRACTION
_SIGN = np.uint32(1 << 31)
_NAN = np.uint32(0x7FFFFFFF)  # the card's only NaN
_INFINITE = np.int32(0x7F800000)
_BEYOND = np.float32(255)  # past 2^x's range on both sides; 2^23 times as much is an int32
_LEAST_NORMAL = np.float32(2.0**-126)
_LEAST_RESIDUAL = -2  # of the two bits of an entry


def packed(residual: NDArray[np.int64]) -> bytes:
    """Pack differences of -2 … 1 ulp, 2 bits each.

    Raises
    ------
    ValueError
        For a difference that 2 bits do not hold.
    """
    code = residual - _LEAST_RESIDUAL
    if code.min() < 0 or code.max() > 3:
        raise ValueError(
            f"differences from the predicted values are {residual.min()} … {residual.max()} ulp, "
            "2 bits hold -2 … 1: predict better"
        )
    pairs = code.astype(np.uint8).reshape(-1, 4)
    words = pairs[:, 0] | pairs[:, 1] << 2 | pairs[:, 2] << 4 | pairs[:, 3] << 6
    return lzma.compress(words.tobytes(), format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


def _unpacked(data: bytes) -> NDArray[np.int8]:
    codes = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3
    entries = (codes + _LEAST_RESIDUAL).astype(np.int8)
    residual: NDArray[np.int8] = entries[np.frombuffer(lzma.decompress(data), np.uint8)].ravel()
    return residual


def _fractions() -> NDArray[np.float64]:
    return np.arange(ENTRIES, dtype=np.float64) * 2.0**-FRACTION


def _predicted_ex2() -> Float32s:
    """2^f by a polynomial: products and sums alone, which are the same on every machine."""
    log2 = Fraction(float.fromhex("0x1.62e42fefa39efp-1"))
    coefficients = [float(log2**n / math.factorial(n)) for n in range(14)]
    result = np.empty(ENTRIES, np.float32)
    for part in np.array_split(np.arange(ENTRIES), 256):  # a processor's cache holds one
        f = part * 2.0**-FRACTION
        total = np.full_like(f, coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total *= f
            total += coefficient
        result[part[0] : part[-1] + 1] = total
    return result


PREDICTED: dict[str, Callable[[], Float32s]] = {
    "ex2": _predicted_ex2,  # of 2^f, f in [0, 1)
    "rcp": lambda: (1 / (1 + _fractions())).astype(np.float32),  # of 1 / m, m in [1, 2)
    "rsqrt1": lambda: (1 / np.sqrt(1 + _fractions())).astype(np.float32),  # of m^-1/2
    "rsqrt2": lambda: (1 / np.sqrt(2 + 2 * _fractions())).astype(np.float32),  # of (2 m)^-1/2
}


@cache
def table(name: str) -> Float32s:
    """Return the card's 2^23 results of a key of `PREDICTED`; 32 MiB, unpacked once a process in 0.5 s."""
    data = files("qdx.kernels").joinpath("tables", f"{name}.xz").read_bytes()
    result: Float32s = (PREDICTED[name]().view(np.int32) + _unpacked(data)).view(np.float32)
    result.flags.writeable = False
    return result


def _split(x: Float32s) -> tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.int32]]:
    """Return sign bit, biased exponent and fraction."""
    bits = x.view(np.int32)
    return bits.view(np.uint32) & _SIGN, bits >> FRACTION & 0xFF, bits & (ENTRIES - 1)


def _scaled(value: Float32s, power: NDArray[np.int32]) -> Float32s:
    """Return value · 2^power without subnormal results: they are flushed to zero, as .ftz asks."""
    bits = value.view(np.int32)
    exponent = (bits >> FRACTION) + power
    result = np.where(exponent > 254, _INFINITE, bits + (power << FRACTION))
    return np.where(exponent < 1, np.int32(0), result).astype(np.int32).view(np.float32)


def ex2_approx_ftz(x: Float32s) -> Float32s:
    """Return 2^x as ``ex2.approx.ftz.f32`` does.

    |x| is cut to 23 fraction bits. Of a negative x the ones' complement is taken, unless what is left of |x|
    is an integer.
    """
    x = np.asarray(x, np.float32)
    unknown = np.isnan(x)
    size = np.where(unknown, np.float32(0), np.minimum(np.abs(x), _BEYOND)) * np.float32(ENTRIES)
    fixed = size.astype(np.int32)
    negative = np.where(fixed & (ENTRIES - 1) == 0, -fixed, ~fixed)
    fixed = np.where(x < 0, negative, fixed)
    result = _scaled(table("ex2")[fixed & (ENTRIES - 1)], fixed >> FRACTION)
    result.view(np.uint32)[unknown] = _NAN
    return result


def ex2_approx(x: Float32s) -> Float32s:
    """Return 2^x as ``ex2.approx.f32`` does: below -126 the square of the half's."""
    x = np.asarray(x, np.float32)
    low = x < np.float32(-126)
    with np.errstate(all="ignore"):
        result = ex2_approx_ftz(np.where(low, x * np.float32(0.5), x))
        return np.where(low, result * result, result)


def rsqrt_approx_ftz(x: Float32s) -> Float32s:
    """Return x^-1/2 as ``rsqrt.approx.ftz.f32`` does; a subnormal x counts as zero."""
    x = np.asarray(x, np.float32)
    sign, exponent, fraction = _split(x)
    unbiased = exponent - 127
    odd = unbiased & 1
    mantissa = np.where(odd == 1, table("rsqrt2")[fraction], table("rsqrt1")[fraction])
    result = _scaled(mantissa, -(unbiased - odd) >> 1).view(np.uint32)
    result = np.where(exponent == 0, sign | np.uint32(_INFINITE), result)
    result = np.where((exponent == 255) & (fraction == 0), np.uint32(0), result)
    result = np.where(np.isnan(x) | ((sign != 0) & (exponent != 0)), _NAN, result)
    return result.view(np.float32)


def rsqrt_approx(x: Float32s) -> Float32s:
    """Return x^-1/2 as ``rsqrt.approx.f32`` and CUDA's ``rsqrtf`` do, subnormal x among them."""
    x = np.asarray(x, np.float32)
    small = np.abs(x) < _LEAST_NORMAL
    with np.errstate(all="ignore"):
        result = rsqrt_approx_ftz(np.where(small, x * np.float32(2.0**24), x))
        return np.where(small, result * np.float32(2.0**12), result)


def rcp_approx_ftz(x: Float32s) -> Float32s:
    """Return 1 / x as ``rcp.approx.ftz.f32`` does; a subnormal x counts as zero."""
    x = np.asarray(x, np.float32)
    sign, exponent, fraction = _split(x)
    result = _scaled(table("rcp")[fraction], 127 - exponent).view(np.uint32)
    result = np.where(exponent == 0, np.uint32(_INFINITE), result)
    result = np.where(exponent == 255, np.uint32(0), result) | sign
    return np.where(np.isnan(x), _NAN, result).view(np.float32)


def rcp_approx(x: Float32s) -> Float32s:
    """Return 1 / x as ``rcp.approx.f32`` does, subnormal arguments and results among them."""
    x = np.asarray(x, np.float32)
    small = np.abs(x) < _LEAST_NORMAL
    large = np.abs(x) > np.float32(2.0**126)
    factor = np.where(small, np.float32(2.0**24), np.where(large, np.float32(0.25), np.float32(1)))
    with np.errstate(all="ignore"):
        return rcp_approx_ftz(x * factor) * factor


def fma(a: Float32s, b: Float32s | np.float32, c: Float32s | np.float32) -> Float32s:
    """Return a·b + c, rounded once to float32.

    The product is exact in float64. The sum is made odd where it is not exact, so that the second rounding
    cannot meet a tie that is none.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    added = np.asarray(c, np.float64)
    total = product + added
    back = total - product
    lost = (product - (total - back)) + (added - back)
    bits = total.view(np.int64)
    step = np.where((lost > 0) == (total > 0), 1, -1)
    even = np.isfinite(lost) & (lost != 0) & (bits & 1 == 0)
    return (bits + np.where(even, step, 0)).view(np.float64).astype(np.float32)


def expf(x: Float32s) -> Float32s:
    """Return e^x as CUDA's ``expf`` does, compiled without fast math."""
    x = np.asarray(x, np.float32)
    constant = _constants()
    with np.errstate(all="ignore"):
        start = fma(x, constant[0], np.float32(0.5))
        start = np.clip(np.nan_to_num(start, nan=0.0), np.float32(0), np.float32(1))
        # fma rounded down: next to 12582913 a float32 number has no fraction
        shifted = (np.floor(start.astype(np.float64) * 252) + 12582913).astype(np.float32)
        whole = shifted - np.float32(12583039)
        nearly = x.astype(np.float64) * np.float64(constant[1]) - whole  # 48 bits, so exact
        rest = fma(x, constant[2], nearly.astype(np.float32))
        power = (shifted.view(np.uint32) << np.uint32(23)).view(np.float32)
        return ex2_approx_ftz(rest) * power


@cache
def _constants() -> NDArray[np.float32]:
    """1 / (252 log 2), log2 e and its remainder, as libdevice has them."""
    return np.array([0x3BBB989D, 0x3FB8AA3B, 0x32A57060], np.uint32).view(np.float32)
