"""Every run checks itself: does the replay of its own first transcript give the generation's rows back?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdx.backends import OnePass

if TYPE_CHECKING:
    from torch import Tensor

    from qdx.backends import Backend
    from qdx.capture import Recorder


class Listener:
    """Stands before a recorder (or alone) and keeps the hash of every row that passes.

    Parameters
    ----------
    lengths : list of int
        Tokens of each reference of the batch: rows up to there are prefill's.
    recorder : Recorder, optional
        Gets every row, too.
    """

    def __init__(self, lengths: list[int], recorder: Recorder | None = None) -> None:
        self._lengths, self._recorder = lengths, recorder
        self._phase = "decode"
        self.decoded: dict[tuple[int, int], int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def begin(self, phase: str, repeat: int, references: list[int]) -> None:
        """Follow the recorder's phases: only the rows of the free generation are kept."""
        self._phase = phase
        if self._recorder is not None:
            self._recorder.begin(phase, repeat, references)

    def wanted(self, item: int) -> NDArray[np.int32]:
        """Return the recorder's wanted positions; alone, the last row of the prefill."""
        if self._recorder is not None:
            return self._recorder.wanted(item)
        return np.array([self._lengths[item]], np.int32)

    def rows(
        self,
        item: int,
        positions: NDArray[np.int32],
        logits_PV: Tensor,
        targets: Tensor | None = None,
        **hidden: Tensor,
    ) -> None:
        """Hash decode rows and pass all rows on."""
        from qdx.capture import row_hash

        if self._phase == "decode" and (positions > self._lengths[item]).any():
            for position, value in zip(positions.tolist(), row_hash(logits_PV).tolist(), strict=True):
                self.decoded[item, position] = value
        if self._recorder is not None:
            self._recorder.rows(item, positions, logits_PV, targets, **hidden)


def replays_exactly(
    backend: Backend, batch: list[list[int]], generated: list[list[int]], heard: Listener
) -> bool:
    """Replay a generation and compare its rows, bit by bit, with those of the generation.

    Parameters
    ----------
    batch, generated : list of list of int
        A batch of references and what the backend generated after each.
    heard : Listener
        It heard that generation.

    Returns
    -------
    bool
        False is normal for a kernel that does not repeat itself (exllama's atomic additions).
    """
    again: Any = Listener([len(ids) for ids in batch])
    if not isinstance(backend, OnePass):
        backend.prefill(batch, again)
        again.decoded.clear()
    backend.replay(batch, generated, again)
    return bool(again.decoded == heard.decoded)


def generates_as_it_replays(backend: Backend, batch: list[list[int]], count: int) -> bool:
    """Generate `count` tokens after a batch of references, and compare as `replays_exactly` does."""
    heard: Any = Listener([len(ids) for ids in batch])
    if isinstance(backend, OnePass):
        generated = backend.prefill_generate(batch, count, heard, lambda _: None)
    else:
        backend.prefill(batch, heard)
        generated = backend.generate(batch, count, heard)
    return replays_exactly(backend, batch, generated, heard)
