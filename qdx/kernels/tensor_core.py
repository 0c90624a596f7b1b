"""Sums as a GPU's tensor cores make them, bit for bit.

One step adds a few products to what the accumulator holds: 16 on a Hopper card. All of these numbers are
aligned with the one of the largest exponent and cut off, toward zero, some bits below float32's last one.
Their sum is exact, and is cut off to float32 again. `qdx.kernels.cards` has the constants of each card, with
their sources. A float32 sum on a CPU rounds after every addition, to nearest: the two differ in the last bits
of a few of a thousand float16 outputs.

With numba (``pip install "qdx[exact]"``) the sums are compiled (`qdx.kernels.compiled_sums`). Without it the
same rule runs in torch, with equal results and far slower: ``benchmarks/exact_sums.py`` says how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from qdx.kernels import compiled_sums
from qdx.kernels.cards import Rule, rule_of
from qdx.kernels.partition import Region

HOPPER = rule_of("h100")
_BLOCK = 32  # rows of K that a warp takes at a time
_OF_ZERO = -10_000  # exponent of zero: under every number's
# Largest exponents that no step on float16 factors, and no step at all, falls below, but where all is zero.
_LEAST_HALF, _LEAST_WIDE = -60, -300
_ELEMENTS = 1 << 18  # products handled at once: a core's second-level cache
_CONVERTED = 32  # products of one instruction on converted factors


def chain(x_MK: Tensor, weight_KN: Tensor, rule: Rule = HOPPER, held_MN: Tensor | None = None) -> Tensor:
    """Sum over K in one accumulator, step after step.

    Parameters
    ----------
    x_MK, weight_KN : Tensor
        float32 with the values of numbers of ``rule.factors``; (rows, K) and (K, columns). K is filled up
        with zeros to a whole number of steps, which changes no sum.
    rule : Rule
        Of the card; an H100's float16 factors and float32 accumulator without it.
    held_MN : Tensor, optional
        float32 (rows, columns): what the accumulator holds before; zeros without it.

    Returns
    -------
    Tensor
        float32 (rows, columns), with values of the accumulator's format. Infinite and undefined sums are as
        IEEE arithmetic has them.
    """
    rows, columns = x_MK.shape[0], weight_KN.shape[1]
    if held_MN is None:
        held_MN = torch.zeros(rows, columns, dtype=torch.float32)
    missing = -x_MK.shape[1] % (_CONVERTED if rule.converted else rule.products)
    if missing:
        x_MK = torch.nn.functional.pad(x_MK, (0, missing))
        weight_KN = torch.nn.functional.pad(weight_KN, (0, 0, 0, missing))
    if rule.converted:
        return _converted(x_MK, weight_KN, rule, held_MN)
    if not compiled_sums.available():
        return by_torch(x_MK, weight_KN, rule, held_MN)
    sum_MN, beyond_MN = compiled_sums.chain(x_MK, weight_KN, rule, held_MN)
    if beyond_MN.any():
        m, n = beyond_MN.any(1).nonzero()[:, 0], beyond_MN.any(0).nonzero()[:, 0]
        sum_MN[m[:, None], n] = by_torch(x_MK[m], weight_KN[:, n], rule, held_MN[m[:, None], n])
    return sum_MN


def _converted(x_MK: Tensor, weight_KN: Tensor, rule: Rule, held_MN: Tensor) -> Tensor:
    """Add 32 products from zero, in two steps, and their sum to the accumulator, rounded to nearest."""
    k = torch.arange(_CONVERTED)
    order = torch.cat((k[k % 4 < 2], k[k % 4 >= 2]))
    inner = rule_of("h100", "fp16", rule.accumulator)
    dtype = torch.float16 if rule.accumulator == "float16" else torch.float32
    for start in range(0, x_MK.shape[1], _CONVERTED):
        sum_MN = chain(x_MK[:, start + order], weight_KN[start + order], inner)
        held_MN = (held_MN + sum_MN).to(dtype).to(torch.float32)
    return held_MN


def by_torch(x_MK: Tensor, weight_KN: Tensor, rule: Rule, held_MN: Tensor) -> Tensor:
    """Do what `chain` does, in torch and for every number; K is a whole number of steps."""
    rows, length = x_MK.shape
    sum_MN = held_MN.to(torch.float64)
    # Products of float16 numbers are exact in float32, and aligned ones too.
    dtype = torch.float32 if rule.factors == "fp16" else torch.float64
    x_MK, weight_KN = x_MK.to(dtype), weight_KN.to(dtype)
    x_exponent_MK = _exponents(x_MK, rule.least_factor)
    weight_exponent_KN = _exponents(weight_KN, rule.least_factor)
    step = max(1, _ELEMENTS // (max(1, rows) * rule.products))
    for first in range(0, weight_KN.shape[1], step):
        columns = slice(first, first + step)
        for start in range(0, length, rule.products):
            k = slice(start, start + rule.products)
            sum_MN[:, columns] = _step(
                x_MK[:, k, None] * weight_KN[None, k, columns],
                (x_exponent_MK[:, k, None] + weight_exponent_KN[None, k, columns]).amax(1),
                sum_MN[:, columns],
                rule,
            )
    return sum_MN.to(torch.float32)


def _exponents(value: Tensor, least: int) -> Tensor:
    """Return e of 2^e ≤ |value| < 2^(e + 1), at least `least`, and of zero one under every number's."""
    exponent = torch.frexp(value).exponent.sub_(1).clamp_(min=least)
    return exponent.masked_fill_(value == 0, _OF_ZERO)


def _step(product_MKN: Tensor, exponent_MN: Tensor, held_MN: Tensor, rule: Rule) -> Tensor:
    """Add exact products, float32 or float64, to numbers of the accumulator's format in float64.

    `exponent_MN` is the greatest of the products', each the sum of its factors' exponents: 1.5 · 1.5 counts
    as 2^0, though it is over 2.
    """
    largest_MN = torch.maximum(exponent_MN, _exponents(held_MN, rule.least_result))
    least = _LEAST_HALF if rule.factors == "fp16" else _LEAST_WIDE
    largest_MN.clamp_(min=least if rule.least is None else max(least, rule.least))
    last_MN = largest_MN - rule.fraction_bits  # exponent of the last bit that is kept
    scale_MN = torch.ldexp(torch.ones_like(held_MN), -last_MN)
    aligned_MKN = (product_MKN * scale_MN[:, None].to(product_MKN.dtype)).trunc_()
    total_MN = aligned_MKN.sum(1, dtype=torch.float64) + (held_MN * scale_MN).trunc_()
    exponent_MN = torch.frexp(total_MN).exponent - 1 + last_MN
    unit_MN = exponent_MN.clamp_(min=rule.least_result) - rule.result_bits
    total_MN = torch.ldexp(total_MN, last_MN - unit_MN)
    total_MN = torch.ldexp(total_MN.round_() if rule.nearest else total_MN.trunc_(), unit_MN)
    total_MN = torch.where(total_MN.abs() >= rule.overflow, total_MN.sign() * torch.inf, total_MN)
    plain_MN = product_MKN.sum(1, dtype=torch.float64) + held_MN
    return torch.where(plain_MN.isfinite(), total_MN, plain_MN)


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
    if compiled_sums.available() and _are_all(parts, rows, columns):
        whole_MN = compiled_sums.sums(
            x_MK,
            weight_KN,
            parts,
            HOPPER,
            block=_BLOCK,
            shares=shares,
            accumulators=accumulators,
            last_first=last_first,
        )
        if whole_MN is not None:
            return whole_MN
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


def _are_all(parts: Sequence[Region], rows: Tensor, columns: Tensor) -> bool:
    """Return whether every output is wanted, in order."""
    ends = max(part.rows[1] for part in parts), max(run[1] for part in parts for run in part.columns)
    return all(
        len(wanted) == end and torch.equal(wanted, torch.arange(end))
        for wanted, end in zip((rows, columns), ends, strict=True)
    )
