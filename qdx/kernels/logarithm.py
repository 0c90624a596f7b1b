"""The logarithm of an NVIDIA card, ``lg2.approx.ftz.f32``, bit for bit: what its circuit computes.

The card adds three terms in whole numbers of 2^-38. One of 64 triples of constants belongs to the first six
bits of the fraction; X is the other 17:

    lg2(1 + fraction) = constant + slope · X - curve · square(X)

``square`` leaves out what the circuit leaves out: the products of two bits of X that weigh less than 2^19.
The exponent is added, what is left of 2^-36 is cut off, and the result is cut toward zero to 24 bits. Below 1
the ones' complement takes the place of the negative.

The constants were found from what ``scripts/gpu/record_lg2.py`` recorded on an H200: for each segment only
one slope and one curve give all of its 2^17 results. All 2^23 results from 1 to 2 are equal, and those from
1/2 to 1 (docs/results); from 2 on the log-sum-exps that FlashAttention gives there were compared.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError

Float32s = NDArray[np.float32]

_LOW = 17  # bits of X
_LEAST_WEIGHT = 19  # of a product of two bits
_ROUNDING = 324
# fmt: off
_CONSTANTS = (
    57, 12008657, 23833985, 35481425, 46956329, 58263697, 69408353, 80394905, 91227865, 101911337,
    112449473, 122846153, 133105121, 143229945, 153224185, 163091105, 172833865, 182455641, 191959337,
    201347809, 210623865, 219790105, 228849161, 237803505, 246655505, 255407465, 264061649, 272620201,
    281085201, 289458729, 297742673, 305938929, 314049385, 322075777, 330019881, 337883321, 345667713,
    353374641, 361005673, 368562201, 376045729, 383457673, 390799361, 398072065, 405277161, 412415881,
    419489353, 426498817, 433445409, 440330265, 447154465, 453919025, 460625073, 467273529, 473865433,
    480401673, 486883193, 493310953, 499685841, 506008641, 512280297, 518501529, 524673193, 530796065,
)
_SLOPES = (
    47272, 46545, 45840, 45156, 44492, 43847, 43221, 42612, 42020, 41444, 40884, 40339, 39809, 39292,
    38788, 38297, 37818, 37351, 36896, 36451, 36018, 35594, 35180, 34776, 34380, 33994, 33616, 33247,
    32886, 32532, 32186, 31847, 31516, 31191, 30872, 30561, 30255, 29955, 29662, 29374, 29091, 28814,
    28542, 28276, 28014, 27757, 27505, 27257, 27013, 26774, 26540, 26309, 26082, 25859, 25640, 25424,
    25213, 25004, 24799, 24598, 24399, 24204, 24012, 23823,
)
_CURVES = (
    727, 705, 685, 665, 646, 627, 610, 592, 576, 559, 544, 530, 518, 504, 491, 479, 466, 455, 445, 433,
    425, 414, 404, 396, 385, 377, 368, 361, 354, 346, 339, 331, 326, 319, 311, 307, 300, 293, 289, 283,
    276, 271, 266, 262, 257, 253, 249, 244, 238, 234, 232, 227, 223, 219, 216, 211, 209, 204, 201, 199,
    195, 192, 189, 186,
)
# fmt: on


@cache
def _squares() -> NDArray[np.int64]:
    """Return the truncated square of each X, in units of 2^19."""
    x = np.arange(1 << _LOW, dtype=np.int64)
    bits = [x >> place & 1 for place in range(_LOW)]
    total = np.zeros_like(x)
    for i, bit in enumerate(bits):
        if 2 * i >= _LEAST_WEIGHT:
            total += bit << 2 * i
        for j in range(max(0, _LEAST_WEIGHT - 1 - i), i):
            total += (bit & bits[j]) << i + j + 1
    return total >> _LEAST_WEIGHT


def _cut(value: NDArray[np.int64], unit: int) -> Float32s:
    """Return value · 2^unit, cut toward zero to 24 bits."""
    over = np.maximum(np.frexp(value.astype(np.float64))[1] - 24, 0)
    cut = (value >> over << over).astype(np.float64)
    return np.asarray(np.ldexp(cut, unit), np.float32)


def lg2_approx_ftz(x: Float32s) -> Float32s:
    """Return log2 x as ``lg2.approx.ftz.f32`` does, for x of at least 1/2.

    Raises
    ------
    QdxError
        For a smaller x, an infinite and an undefined one, whose rule was not looked for.
    """
    x = np.asarray(x, np.float32)
    if not ((x >= 0.5) & (x < np.inf)).all():
        raise QdxError(f"a card's logarithm is known from 1/2 on, got {x[~((x >= 0.5) & (x < np.inf))][0]}")
    bits = x.view(np.int32).astype(np.int64)
    exponent, segment, low = (bits >> 23) - 127, bits >> _LOW & 63, bits & ((1 << _LOW) - 1)
    slope = np.array(_SLOPES)[segment]
    value = (np.array(_CONSTANTS)[segment] << 9) + _ROUNDING + (slope & 1) + slope * low
    value -= 2 * np.array(_CURVES)[segment] * _squares()[low]
    coarse = value >> 2
    above = _cut((np.maximum(exponent, 0) << 36) + coarse, -36)
    below = -_cut((1 << 36) - 1 - coarse, -36)
    result = np.where(exponent == 0, _cut(value, -38), np.where(exponent < 0, below, above))
    return np.asarray(np.where(x == 1, np.float32(0), result), np.float32)
