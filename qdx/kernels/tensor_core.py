"""Sums as a Hopper GPU's tensor cores make them, bit for bit.

One instruction adds 16 products to what its accumulator holds. All 17 numbers are aligned with the one of the
largest exponent (a product's is the sum of its factors') and cut off, toward zero, two bits below float32's
last one; their sum is exact, and is cut off to float32 again. A float32 sum on a CPU rounds after every
addition, to nearest: the two differ in the last bits of a few of a thousand float16 outputs.

Source: measured. With these numbers, 16 products and two bits, outputs that an H100 gave come out bit-equal
(``benchmarks/kernel_fidelity.py``); with 8, 32 or 64 products, or 0, 1 or 3 bits, they do not. That tensor
cores align and cut off is known of earlier generations: M. Fasi, N. J. Higham, M. Mikaitis and S. Pranesh,
"Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from qdx.kernels.partition import Region

PRODUCTS = 16  # of one instruction, K of m16n8k16 and of wgmma for 16-bit numbers
GUARD_BITS = 2
_MANTISSA = 24
_BLOCK = 32  # rows of K that a warp takes at a time
_OF_ZERO, _LEAST = -10_000, -60  # under 2^-48, the least product of two float16 numbers
_ELEMENTS = 1 << 18  # products handled at once: a core's second-level cache


def chain(x_MK: Tensor, weight_KN: Tensor) -> Tensor:
    """Sum over K in one accumulator, instruction after instruction.

    Parameters
    ----------
    x_MK, weight_KN : Tensor
        float32 with the values of float16 numbers, finite; (rows, K) and (K, columns).

    Returns
    -------
    Tensor
        float32 (rows, columns).
    """
    rows, length = x_MK.shape
    sum_MN = torch.zeros(rows, weight_KN.shape[1], dtype=torch.float64)
    x_exponent_MK, weight_exponent_KN = _exponents(x_MK), _exponents(weight_KN)
    step = max(1, _ELEMENTS // (max(1, rows) * PRODUCTS))
    for first in range(0, weight_KN.shape[1], step):
        columns = slice(first, first + step)
        for start in range(0, length, PRODUCTS):
            k = slice(start, start + PRODUCTS)
            sum_MN[:, columns] = _instruction(
                x_MK[:, k, None] * weight_KN[None, k, columns],
                (x_exponent_MK[:, k, None] + weight_exponent_KN[None, k, columns]).amax(1),
                sum_MN[:, columns],
            )
    return sum_MN.to(torch.float32)


def _exponents(value: Tensor) -> Tensor:
    """Return e of 2^e ≤ |value| < 2^(e + 1), and of zero one under every number's."""
    exponent = torch.frexp(value).exponent.sub_(1)
    return exponent.masked_fill_(value == 0, _OF_ZERO)


def _instruction(product_MKN: Tensor, exponent_MN: Tensor, held_MN: Tensor) -> Tensor:
    """Add up to 16 exact products, float32, to float32 numbers in float64.

    `exponent_MN` is the greatest of the products', each the sum of its factors' exponents: 1.5 · 1.5 counts
    as 2^0, though it is over 2.
    """
    largest_MN = torch.maximum(exponent_MN, _exponents(held_MN)).clamp_(min=_LEAST)
    last_MN = largest_MN - (_MANTISSA - 1 + GUARD_BITS)  # exponent of the last bit that is kept
    one = torch.ones_like(held_MN)
    aligned_MKN = product_MKN * torch.ldexp(one, -last_MN).to(torch.float32)[:, None]
    total_MN = aligned_MKN.trunc_().sum(1, dtype=torch.float64) + torch.ldexp(held_MN, -last_MN).trunc_()
    mantissa_MN, total_exponent_MN = torch.frexp(total_MN)
    cut_MN = torch.ldexp(mantissa_MN, one * _MANTISSA).trunc_()
    return torch.ldexp(cut_MN, total_exponent_MN - _MANTISSA + last_MN)


def sums(
    x_MK: Tensor,
    weight_KN: Tensor,
    parts: Sequence[Region],
    rows: Tensor,
    columns: Tensor,
    *,
    shares: int = 1,
    accumulators: Sequence[Sequence[int]] = ((0,),),
    last_first: bool = False,
) -> Tensor:
    """Sum over K, slice by slice, as `qdx.kernels.partition.accumulate` does, with the sums of `chain`.

    Parameters
    ----------
    x_MK, weight_KN : Tensor
        As `chain` takes them: the wanted rows and columns, all of K in its own order.
    parts : sequence of Region
        Of the whole output.
    rows, columns : Tensor
        Which rows and columns of it those are, int64.
    shares : int
        How many warps take turns, by 32 rows of K.
    accumulators : sequence of sequence of int
        Shares that each accumulator sums, in the order of K.
    last_first : bool
        Add slices from the end of K to its beginning.

    Returns
    -------
    Tensor
        float32 (len(rows), len(columns)).
    """
    found_MN = torch.empty(len(rows), len(columns), dtype=torch.float32)
    for part in parts:
        mine_M = ((rows >= part.rows[0]) & (rows < part.rows[1])).nonzero()[:, 0]
        inside = [(columns >= start) & (columns < stop) for start, stop in part.columns]
        mine_N = torch.stack(inside).any(0).nonzero()[:, 0]
        if not len(mine_M) or not len(mine_N):
            continue
        x_part, weight_part = x_MK[mine_M], weight_KN[:, mine_N]
        slices = []
        for start, stop in pairwise(part.cuts):
            block = torch.arange(start // _BLOCK, stop // _BLOCK)
            total: Tensor | None = None
            for group in accumulators:
                own = block[torch.isin(block % shares, torch.tensor(group))]
                k = (own[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
                sum_MN = chain(x_part[:, k], weight_part[k])
                total = sum_MN if total is None else total.add_(sum_MN)
            assert total is not None
            slices.append(total)
        first, *rest = slices[:: -1 if last_first else 1]
        for term in rest:
            first.add_(term)
        found_MN[mine_M[:, None], mine_N] = first
    return found_MN
