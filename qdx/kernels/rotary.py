"""The table of cosines and sines that rotary embedding reads, as an engine makes it on an NVIDIA card.

vLLM makes it on the card, in float32, and rounds it to 16 bits once
(``vllm/model_executor/layers/rotary_embedding/base.py``). CUDA's ``cosf`` and ``sinf`` are libdevice's, read
in the code of CUDA 13: the angle less a multiple of π/2, by three fused operations, and a polynomial. Its
``powf`` takes a logarithm to base 2 in two parts. ``scripts/gpu/record_layers.py`` compared all three on a
card: frequencies for five bases, and every angle up to position 8191.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels.elementary import Float32s, fma, rcp_approx_ftz

_BEYOND = np.float32(105615)  # larger angles are reduced by another method
_TWO_OVER_PI = np.array([0x3F22F983], np.uint32).view(np.float32)[0]
_HALF_PI = np.array([0xBFC90FDA, 0xB3A22168, 0xA7C234C5], np.uint32).view(np.float32)
_COSINE = np.array([0x37CBAC00, 0xBAB607ED, 0x3D2AAABB, 0xBEFFFFFF], np.uint32).view(np.float32)
_SINE = np.array([0xB94D4153, 0x3C0885E4, 0xBE2AAAA8], np.uint32).view(np.float32)
_ZERO = np.float32(0)


def _circular(x: Float32s, quadrants: int) -> Float32s:
    x = np.asarray(x, np.float32)
    if not (np.abs(x) < _BEYOND).all():
        raise QdxError(f"cosine and sine of a card are known up to {_BEYOND:.0f}, got {np.abs(x).max():.0f}")
    turns = np.rint(x * _TWO_OVER_PI)
    rest = x
    for part in _HALF_PI:
        rest = fma(turns, part, rest)
    quadrant = turns.astype(np.int64) + quadrants
    square = rest * rest
    odd = quadrant & 1 == 1
    first = np.where(odd, np.float32(1), rest)
    scaled = fma(square, first, _ZERO)
    cosine = fma(np.broadcast_to(_COSINE[0], x.shape), square, _COSINE[1])
    value = np.where(odd, cosine, _SINE[0])
    value = fma(value, square, np.where(odd, _COSINE[2], _SINE[1]))
    value = fma(value, square, np.where(odd, _COSINE[3], _SINE[2]))
    value = fma(value, scaled, first)
    return np.where(quadrant & 2 == 2, fma(value, np.float32(-1), _ZERO), value)


def cosf(x: Float32s) -> Float32s:
    """Return cos x as CUDA's ``cosf`` does.

    Raises
    ------
    QdxError
        For an angle of 105,615 and more, which CUDA reduces by another method.
    """
    return _circular(x, 1)


def sinf(x: Float32s) -> Float32s:
    """Return sin x as CUDA's ``sinf`` does; see `cosf`."""
    return _circular(x, 0)


def _constants(*words: int) -> list[np.float32]:
    return list(np.array(words, np.uint32).view(np.float32))


def powf(base: float, exponent: Float32s) -> Float32s:
    """Return base^exponent as CUDA 13's ``powf`` does, for a positive base.

    Raises
    ------
    QdxError
        Where the result would leave float32's normal numbers.
    """
    y = np.asarray(exponent, np.float32)
    bits = int(np.float32(base).view(np.int32))
    scale = (bits - 0x3F3504F3) >> 23 << 23
    mantissa = np.array(bits - scale, np.int32).view(np.float32)
    zero = np.zeros(1, np.float32)
    whole = zero + np.float32(scale) * np.float32(2.0**-23)
    # the logarithm of the mantissa: a polynomial of q = 2 (m - 1) / (m + 1), and what rounding q lost
    less, double = zero + (mantissa - np.float32(1)), zero + 2 * (mantissa - np.float32(1))
    inverse = rcp_approx_ftz(zero + (mantissa + np.float32(1)))
    q = inverse * double
    square = q * q
    first, *others = _constants(0x3A2C32E4, 0x3B52E7DB, 0x3C93BB73, 0x3DF6384F)
    series = zero + first
    for constant in others:
        series = fma(series, square, constant)
    series = series * square
    log2_e, rest_of_log2_e = _constants(0x3FB8AA3B, 0x32A55E34)
    high = fma(q, log2_e, whole)
    lost = inverse * fma(-q, less, 2 * (less - q))
    low = fma(q, log2_e, whole - high)
    low = fma(lost, log2_e, low)
    low = fma(q, rest_of_log2_e, low)
    low = fma(series * np.float32(3), lost, low)
    low = fma(series, q, low)
    log = high + low
    low = low - (log - high)
    # 2 to the power of both parts times the exponent
    product = log * y
    rest = fma(np.broadcast_to(low, y.shape), y, fma(np.broadcast_to(log, y.shape), y, -product))
    if not (np.abs(product) < 126).all():
        raise QdxError(f"a card's power of {base} is known where it is a normal number alone")
    nearest = np.rint(product)
    fraction = (product - nearest) + rest
    first, *others = _constants(
        0x391FCB8E, 0x3AAF85ED, 0x3C1D9856, 0x3D6357BB, 0x3E75FDEC, 0x3F317218, 0x3F800000
    )
    power = np.full_like(y, first)
    for constant in others:
        power = fma(power, fraction, constant)
    result = np.ldexp(power, nearest.astype(np.int32))
    return np.where(y == 0, np.float32(1), result).astype(np.float32)


def inverse_frequencies(base: float, rotary: int) -> Float32s:
    """Return 1 / base^(2 i / rotary), float32, i from 0 to rotary / 2 - 1."""
    exponent = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    return np.asarray(np.float32(1) / powf(base, exponent), np.float32)


def table(base: float, rotary: int, positions: NDArray[np.int64], dtype: torch.dtype) -> Tensor:
    """Return cosines, then sines, of each position.

    Parameters
    ----------
    base : float
        ``rope_theta``.
    rotary : int
        Rotated elements of a head.
    positions : ndarray
        int64 (rows,).
    dtype : torch.dtype
        That the table is rounded to.

    Returns
    -------
    Tensor
        (rows, rotary).
    """
    angle = positions.astype(np.float32)[:, None] * inverse_frequencies(base, rotary)[None]
    return torch.from_numpy(np.concatenate((cosf(angle), sinf(angle)), axis=1)).to(dtype)
