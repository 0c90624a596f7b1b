"""Metrics of the last normed hidden state, of runs with ``capture=hidden``.

Each is what two parties can compare who exchange a few bytes of a row and not the row: the bytes are stated.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.plugins import register

_MANTISSA = 7  # bits of a bfloat16


@register(
    "metric",
    "projection",
    on="hidden",
    on_self=0.0,
    formula="‖hR − h′R‖₂, R ±1/√k; 4k bytes a token (float32)",
)
def projection(p: Tensor, q: Tensor, components: int = 16, seed: int = 0) -> Tensor:
    """Distance of the hidden states' random projections, as Activation-DiFR measures it.

    Whoever publishes hR publishes `components` float32, 64 bytes a token at the default. Over all R
    its square has the mean ‖h − h′‖².

    Parameters
    ----------
    p, q : Tensor, float64 (position, hidden)
        Last normed hidden states.
    components : int
        k, columns of R.
    seed : int
        Of R's signs.

    Returns
    -------
    Tensor, float64 (position,)
        ≥ 0, in the unit of the hidden state.

    Raises
    ------
    QdxError
        When components is under 1.

    Notes
    -----
    Computed as ‖(h − h′)R‖₂, so that small differences keep their digits. A published fingerprint is rounded
    to its own dtype first, which this leaves out.

    Source: Activation-DiFR, in Karvonen et al., "DiFR: Inference Verification Despite Nondeterminism", 2025,
    where R is orthogonal; here its signs are independent, so that nothing has to be shipped.
    """
    if components < 1:
        raise QdxError(f"metric.projection.components={components}: must be at least 1")
    signs_HK = _signs(p.shape[-1], components, seed).to(p.device)
    return torch.linalg.vector_norm((p - q) @ signs_HK, dim=-1).div_(math.sqrt(components))


@lru_cache(maxsize=4)
def _signs(hidden: int, components: int, seed: int) -> Tensor:
    """Return ±1 (hidden, component), from the raw bits of PCG64, which numpy keeps the same."""
    raw = np.random.PCG64(seed).random_raw(hidden * components) >> np.uint64(63)
    return torch.from_numpy(2.0 * raw.reshape(hidden, components).astype(np.float64) - 1.0)


@register(
    "metric",
    "toploc_exponent",
    on="hidden",
    on_self=0.0,
    formula="#{i in top-k of |h′|: not in top-k of |h|, or another exponent}; 2k + 2 bytes a proof",
)
def toploc_exponent(p: Tensor, q: Tensor, topk: int = 128) -> Tensor:
    """Exponent mismatches among the greatest elements of the hidden state, as TOPLOC counts them.

    Parameters
    ----------
    p, q : Tensor, float64 (position, hidden)
        Last normed hidden states; they are rounded to bfloat16, as TOPLOC encodes them.
    topk : int
        Elements of greatest absolute value that count. A proof takes 2 · topk + 2 bytes: 258 at the default.
        TOPLOC makes one of 32 tokens (8 bytes a token), here every row has its own (258 bytes a token).

    Returns
    -------
    Tensor, float64 (position,)
        0…topk.

    Raises
    ------
    QdxError
        When topk is not in 1…hidden.

    Notes
    -----
    An element that only one of the two lists is a mismatch: TOPLOC's polynomial gives an arbitrary number for
    it. So is another sign.

    Source: J. M. Ong et al., "TOPLOC: A Locality Sensitive Hashing Scheme for Trustless Verifiable
    Inference", 2025, arXiv:2501.16007, and its code, github.com/PrimeIntellect-ai/toploc (verify_proofs).
    """
    same_PK, _ = _compared(p, q, topk)
    return (~same_PK).sum(-1).to(p.dtype)


@register(
    "metric",
    "toploc_mantissa",
    on="hidden",
    on_self=0.0,
    nan_when="no element of the top-k has the same exponent in both",
    formula="mean (median) |mantissa − mantissa′| in 2⁻⁷, where exponents match; 2k + 2 bytes a proof",
)
def toploc_mantissa(p: Tensor, q: Tensor, topk: int = 128, median: bool = False) -> Tensor:
    """Mean (or median) mantissa error where the exponents match, as TOPLOC takes it; see `toploc_exponent`.

    Parameters
    ----------
    p, q : Tensor, float64 (position, hidden)
        Last normed hidden states; they are rounded to bfloat16.
    topk : int
        Elements of greatest absolute value that count; 2 · topk + 2 bytes a proof.
    median : bool
        The median instead of the mean; of an even number, the mean of the two in the middle.

    Returns
    -------
    Tensor, float64 (position,)
        0…127, units of a bfloat16's last mantissa bit; NaN where no exponent matches.

    Raises
    ------
    QdxError
        When topk is not in 1…hidden.

    Notes
    -----
    Source: as `toploc_exponent`.
    """
    same_PK, error_PK = _compared(p, q, topk)
    error_PK = error_PK.masked_fill(~same_PK, math.nan)
    return error_PK.nanquantile(0.5, -1) if median else error_PK.nanmean(-1)


def _compared(p_PH: Tensor, q_PH: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Return of q's greatest elements whether p lists them alike, and the mantissas' difference, (P, K)."""
    hidden = p_PH.shape[-1]
    if not 1 <= topk <= hidden:
        raise QdxError(f"topk={topk}: a hidden state has {hidden} elements: choose 1 ≤ topk ≤ {hidden}")
    p_bits_PH, q_bits_PH = (
        x.to(torch.bfloat16).view(torch.int16).to(torch.int64) & 0xFFFF for x in (p_PH, q_PH)
    )
    p_top_PH = torch.zeros_like(p_PH, dtype=torch.bool).scatter_(-1, _greatest(p_bits_PH, topk), True)
    at_PK = _greatest(q_bits_PH, topk)
    p_PK, q_PK = p_bits_PH.gather(-1, at_PK), q_bits_PH.gather(-1, at_PK)
    same_PK = p_top_PH.gather(-1, at_PK) & (p_PK >> _MANTISSA == q_PK >> _MANTISSA)
    mask = (1 << _MANTISSA) - 1
    return same_PK, ((p_PK & mask) - (q_PK & mask)).abs().to(p_PH.dtype)


def _greatest(bits_PH: Tensor, topk: int) -> Tensor:
    """Return the indices of the greatest absolute values, (position, topk); the lowest of equal ones."""
    magnitude_PH = bits_PH & 0x7FFF  # without its sign, a bfloat16's bits sort like its value
    return magnitude_PH.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
