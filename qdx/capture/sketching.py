"""A short random projection of a row of logits from which distances between rows can be estimated.

``sketch = S · (z − mean z)``, S a (components × vocab) matrix of ±1/√components. The sign of an entry is the
top bit of a fixed hash of (seed, row, column), so the matrix is the same everywhere and nothing has to be
shipped. For two rows ``E‖sketch_a − sketch_b‖² = ‖a − b‖²`` of the centred rows, with a relative deviation
of about √(2 / components) (D. Achlioptas, "Database-friendly random projections", Journal of Computer and
System Sciences 66, 2003).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qdx.capture.fingerprints import GOLDEN, mix64

_BLOCK = 4096  # columns of S that are widened to float64 at once: 2 MiB, which stays in a core's cache


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
        for start in range(0, self.vocab, _BLOCK):
            columns = slice(start, start + _BLOCK)
            dot_PK += wide_PV[:, columns] @ sign_KV[:, columns].to(torch.float64).T
        # S (z − mean) = S z − mean · S 1: the second form has exact sums, the first rounds every centred
        # logit.
        mean_P1 = wide_PV.sum(1, keepdim=True) / self.vocab
        row_sum_K = _row_sums(self.vocab, self.components, self.seed, rows_PV.device)
        return ((dot_PK - mean_P1 * row_sum_K) / self.components**0.5).to(torch.float32)
