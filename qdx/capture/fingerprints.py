"""Reduce a row of logits to a 64-bit hash, which says whether two rows are bit-equal, and to a sketch.

**Hash.** ``h = a_0 · V + Σ_i a_{i+1} · bits_i (mod 2^64)``; ``bits_i`` is the bit pattern of logit i as an
unsigned integer (16 bits for float16 and bfloat16, 32 for float32) and ``a_i`` is output i of the splitmix64
generator started at 0, with its lowest bit set. This is the multilinear family of D. Lemire and O. Kaser,
"Strongly universal string hashing is fast" (The Computer Journal 57, 2014). Odd multipliers make it certain,
not only likely, that two rows that differ in one logit have different hashes. It does not protect against
somebody who looks for a collision.

**Sketch.** A short random projection from which distances between rows can be estimated: ``sketch = S · (z −
mean z)``, S a (components × vocab) matrix of ±1/√components. The sign of an entry is the top bit of a fixed
hash of (seed, row, column), so the matrix is the same everywhere and nothing has to be shipped. For two rows
``E‖sketch_a − sketch_b‖² = ‖a − b‖²`` of the centred rows, with a relative deviation of about
√(2 / components) (D. Achlioptas, "Database-friendly random projections", Journal of Computer and System
Sciences 66, 2003).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's increment, as a signed number
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_BLOCK = 1 << 20  # logits hashed at once: their int64 products take 8 MiB, about what a cache holds
_BLOCK_ON_GPU = 1 << 23  # there starting a kernel is what takes time


def mix64(x: Tensor) -> Tensor:
    """Scramble the bits of 64-bit integers: the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).

    Parameters
    ----------
    x : Tensor
        int64, taken as bit patterns of unsigned numbers.

    Returns
    -------
    Tensor
        int64 of the same shape. Integers only, so every device gives the same.
    """
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask takes the copies of the sign away.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@lru_cache(maxsize=8)
def _multipliers(vocab: int, device: torch.device) -> Tensor:
    counter = torch.arange(1, vocab + 2, dtype=torch.int64, device=device)
    return mix64(counter * GOLDEN) | 1


def row_hash(rows_PV: Tensor) -> Tensor:
    """Hash every row of logits in the model's own data type.

    Parameters
    ----------
    rows_PV : Tensor
        Logits of the unpadded vocabulary, (position, vocab), float16, bfloat16 or float32.

    Returns
    -------
    Tensor
        (position,) int64 whose bits are the uint64 hash; the same on every device. −0.0 and 0.0 differ, and
        so do NaNs of different payload: it is the bits that count. Rows of different data types are not
        comparable.

    Raises
    ------
    ValueError
        For another data type or number of dimensions.

    Examples
    --------
    The numbers that any implementation must give (two logits, then three of zero):

    >>> import torch
    >>> [f"{h % 2**64:016x}" for h in row_hash(torch.tensor([[1.0, -2.0]], dtype=torch.float16)).tolist()]
    ['4f34ae615e1c475e']
    >>> [f"{h % 2**64:016x}" for h in row_hash(torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)).tolist()]
    ['f55f2397670120de']
    >>> [f"{h % 2**64:016x}" for h in row_hash(torch.tensor([[1.0, -2.0]], dtype=torch.float32)).tolist()]
    ['9765c1387bbb9b5e']
    >>> [f"{h % 2**64:016x}" for h in row_hash(torch.zeros(1, 3, dtype=torch.float16)).tolist()]
    ['a661f8ac7159690d']
    """
    if rows_PV.ndim != 2:
        raise ValueError(f"row_hash takes (position, vocab), got shape {tuple(rows_PV.shape)}")
    if rows_PV.dtype in (torch.float16, torch.bfloat16):
        bits_PV, mask = rows_PV.contiguous().view(torch.int16), 0xFFFF
    elif rows_PV.dtype == torch.float32:
        bits_PV, mask = rows_PV.contiguous().view(torch.int32), 0xFFFFFFFF
    else:
        raise ValueError(f"row_hash takes float16, bfloat16 or float32, got {rows_PV.dtype}")
    positions, vocab = rows_PV.shape
    multiplier = _multipliers(vocab, rows_PV.device)
    hashes_P = torch.empty(positions, dtype=torch.int64, device=rows_PV.device)
    step = max(1, (_BLOCK_ON_GPU if rows_PV.is_cuda else _BLOCK) // max(1, vocab))
    for start in range(0, positions, step):
        block_PV = bits_PV[start : start + step].to(torch.int64) & mask
        hashes_P[start : start + step] = (block_PV * multiplier[1:]).sum(1)
    return hashes_P + multiplier[0] * vocab


_COLUMNS = 4096  # of S that are widened to float64 at once: 2 MiB, which stays in a core's cache
_COLUMNS_ON_GPU = 1 << 16


@lru_cache(maxsize=4)
def signs(vocab: int, components: int, seed: int, device: torch.device) -> Tensor:
    """Return the signs of S.

    Returns
    -------
    Tensor
        (components, vocab) int8 of ±1: entry (c, v) is −1 where ``mix64(mix64(mix64(seed + g) + c·g) +
        v·g)`` has its top bit set, with g the increment of splitmix64, all modulo 2^64.
    """
    seed_1 = mix64(torch.tensor([seed], dtype=torch.int64, device=device) + GOLDEN)
    row_K = mix64(seed_1 + torch.arange(components, dtype=torch.int64, device=device) * GOLDEN)
    sign_KV = torch.empty(components, vocab, dtype=torch.int8, device=device)
    for start in range(0, vocab, 1 << 15):
        column_V = (
            torch.arange(start, min(start + (1 << 15), vocab), dtype=torch.int64, device=device) * GOLDEN
        )
        sign_KV[:, start : start + (1 << 15)] = (mix64(row_K[:, None] + column_V) >> 63) * 2 + 1
    return sign_KV


@lru_cache(maxsize=4)
def _row_sums(vocab: int, components: int, seed: int, device: torch.device) -> Tensor:
    return signs(vocab, components, seed, device).sum(1, dtype=torch.int64).to(torch.float64)


class Sketcher:
    """Projects rows of logits.

    Parameters
    ----------
    vocab : int
        Length of a row.
    components : int
        Length of a sketch.
    seed : int
        Sketches are comparable when vocab, components and seed are equal.

    Examples
    --------
    >>> import torch
    >>> Sketcher(vocab=5, components=4)(torch.tensor([[4.0, 0.0, 0.0, 0.0, 1.0]])).tolist()
    [[0.0, -2.0, -2.0, 1.0]]
    """

    def __init__(self, vocab: int, components: int = 64, seed: int = 0) -> None:
        self.vocab, self.components, self.seed = vocab, components, seed

    def __call__(self, rows_PV: Tensor) -> Tensor:
        """Return the sketch of every row.

        Parameters
        ----------
        rows_PV : Tensor
            Logits, (position, vocab), any float type.

        Returns
        -------
        Tensor
            (position, component) float32, in the unit of the logits. Sums of float16 logits are exact in
            float64 (they are multiples of 2⁻²⁴ and their absolute values add up to less than 2²⁹), so the
            result depends neither on the order of summation nor on the device; for bfloat16 and float32 the
            same holds up to rounding errors of float64.

        Raises
        ------
        ValueError
            For rows of another length.
        """
        if rows_PV.ndim != 2 or rows_PV.shape[1] != self.vocab:
            raise ValueError(f"sketch of (position, {self.vocab}) logits, got shape {tuple(rows_PV.shape)}")
        sign_KV = signs(self.vocab, self.components, self.seed, rows_PV.device)
        wide_PV = rows_PV.to(torch.float64)
        dot_PK = torch.zeros(len(rows_PV), self.components, dtype=torch.float64, device=rows_PV.device)
        step = _COLUMNS_ON_GPU if rows_PV.is_cuda else _COLUMNS
        for start in range(0, self.vocab, step):
            columns = slice(start, start + step)
            dot_PK += wide_PV[:, columns] @ sign_KV[:, columns].to(torch.float64).T
        # S (z − mean) = S z − mean · S 1: the second form has exact sums, the first rounds every centred
        # logit.
        mean_P1 = wide_PV.sum(1, keepdim=True) / self.vocab
        row_sum_K = _row_sums(self.vocab, self.components, self.seed, rows_PV.device)
        return ((dot_PK - mean_P1 * row_sum_K) / self.components**0.5).to(torch.float32)
