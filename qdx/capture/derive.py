"""Compute the quantities that are kept of every captured row, on the device that the row is on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdx.capture.fingerprints import Sketcher, row_hash

_BLOCK = 1 << 20  # logits handled at once: their int64 keys take 8 MiB, about what a cache holds
_BLOCK_ON_GPU = 1 << 22  # there starting a kernel is what takes time
_BITS = {
    torch.float16: (torch.int16, 0x7FFF),
    torch.bfloat16: (torch.int16, 0x7FFF),
    torch.float32: (torch.int32, 0x7FFFFFFF),
}


def greedy(logits_PV: Tensor) -> Tensor:
    """Return the id of the greatest logit of every row; the lowest id wins a tie.

    Parameters
    ----------
    logits_PV : Tensor
        (position, vocab).

    Returns
    -------
    Tensor
        (position,) int64.
    """
    return logits_PV.argmax(1)  # torch documents that argmax returns the first of equal maxima


def top_k(logits_PV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k greatest logits of every row, sorted by (logit descending, id ascending).

    `torch.topk` leaves open which of equal logits it returns and in which order; here the lowest ids win, at
    the boundary too. −0.0 and 0.0 are equal.

    Parameters
    ----------
    logits_PV : Tensor
        (position, vocab), at most 2³¹ logits a row.
    k : int
        Cut to the vocabulary's length.

    Returns
    -------
    ids_PK : Tensor
        int64.
    logits_PK : Tensor
        In the data type of the input.
    """
    positions, vocab = logits_PV.shape
    k = min(k, vocab)
    ids_PK = torch.empty(positions, k, dtype=torch.int64, device=logits_PV.device)
    # One integer that sorts like the pair: the float's bits made monotonic (above), the reversed id (below).
    # All keys differ.
    reversed_V = torch.arange(vocab - 1, -1, -1, dtype=torch.int64, device=logits_PV.device)
    step = max(1, (_BLOCK_ON_GPU if logits_PV.is_cuda else _BLOCK) // vocab)
    for start in range(0, positions, step):
        bits_PV = (logits_PV[start : start + step].to(torch.float32) + 0.0).view(torch.int32)
        monotonic_PV = torch.where(bits_PV < 0, bits_PV ^ 0x7FFFFFFF, bits_PV).to(torch.int64)
        key_PK = (monotonic_PV * 2**32 + reversed_V).topk(k, dim=1, sorted=True).values
        ids_PK[start : start + step] = vocab - 1 - (key_PK & 0xFFFFFFFF)
    return ids_PK, logits_PV.gather(1, ids_PK)


def finite(logits_PV: Tensor) -> Tensor:
    """Return which rows have neither NaN nor infinity, (position,) bool.

    By the bits, whose exponent is all ones then: `torch.isfinite` of float16 takes twelve times as long on a
    CPU.
    """
    bits, mask = _BITS[logits_PV.dtype]
    infinity = torch.tensor(math.inf, dtype=logits_PV.dtype).view(bits).item()
    return logits_PV.view(bits).bitwise_and(mask).amax(1) < infinity


def derive(logits_PV: Tensor, targets_P: Tensor, *, k: int, sketcher: Sketcher) -> dict[str, Tensor]:
    """Compute everything that is always stored of a row.

    Parameters
    ----------
    logits_PV : Tensor
        Finite logits in the model's data type, (position, vocab).
    targets_P : Tensor
        int64 ids of the tokens at the positions; −1 stands for the row's own greatest logit.
    k : int
        Ranks to keep.
    sketcher : Sketcher

    Returns
    -------
    dict
        By variable name of `qdx.dataset.layout.PHASE`, on the device of the logits: token_id, target_logit,
        target_rank, logsumexp, row_hash (int64 bits), sketch, top_id, top_logit.
    """
    top_id_PK, top_logit_PK = top_k(logits_PV, k)
    target_P = torch.where(targets_P < 0, top_id_PK[:, 0], targets_P)
    target_logit_P1 = logits_PV.gather(1, target_P[:, None])
    return {
        "token_id": target_P,
        "target_logit": target_logit_P1[:, 0].to(torch.float32),
        "target_rank": (logits_PV > target_logit_P1).sum(1),
        "logsumexp": torch.logsumexp(logits_PV.to(torch.float64), dim=1),
        "row_hash": row_hash(logits_PV),
        "sketch": sketcher(logits_PV),
        "top_id": top_id_PK,
        "top_logit": top_logit_PK.to(torch.float32),
    }
