"""Hands the rows that were seen in the engine to a recorder, phase by phase and item by item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.backends.vllm.tap import Seen

if TYPE_CHECKING:
    from qdx.capture import Recorder

ROWS_TOGETHER = 64


def hand_over(
    seen: list[Seen], batch: list[list[int]], tokens: list[list[int]], recorder: Recorder, *, prefill: bool
) -> None:
    """Pass the rows of one phase to the recorder.

    Parameters
    ----------
    seen : list of Seen
    batch, tokens : list of list of int
        Ids of each reference, and those that came after it.
    recorder : Recorder
    prefill : bool
        The rows up to the one that predicts the first output token; otherwise those after it.
    """
    for item, ids in enumerate(batch):
        # The token at each position; the last prefill row's is the recorder's to find: −1.
        targets = np.array([*ids, -1, *tokens[item][1:]], np.int64)
        block: list[Seen] = []
        for part in seen:
            mine = (part.items == item) & ((part.positions <= len(ids)) == prefill)
            if not mine.any():
                continue
            block.append(part if mine.all() else _chosen(part, np.flatnonzero(mine)))
            if sum(len(rows.positions) for rows in block) >= ROWS_TOGETHER:
                _hand(recorder, item, block, targets)
                block = []
        if block:
            _hand(recorder, item, block, targets)


def _chosen(part: Seen, rows: NDArray[np.int64]) -> Seen:
    index = torch.from_numpy(rows)
    hidden_PH = None if part.hidden_PH is None else part.hidden_PH[index]
    return Seen(part.items[rows], part.positions[rows], part.logits_PV[index], hidden_PH)


def _hand(recorder: Recorder, item: int, block: list[Seen], targets: NDArray[np.int64]) -> None:
    at = np.concatenate([part.positions for part in block])
    logits_PV = _joined([part.logits_PV for part in block])
    hidden = [part.hidden_PH for part in block if part.hidden_PH is not None]
    hidden_PH = _joined(hidden) if hidden else None
    for start in range(0, len(at), ROWS_TOGETHER):
        rows = slice(start, start + ROWS_TOGETHER)
        kept = {} if hidden_PH is None else {"hidden_PH": hidden_PH[rows]}
        recorder.rows(item, at[rows], logits_PV[rows], torch.from_numpy(targets[at[rows]]), **kept)


def _joined(parts: list[Tensor]) -> Tensor:
    """Return rows in one tensor, on the GPU where there is one: what is stored of them is computed there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.cat([part.to(device) for part in parts])
