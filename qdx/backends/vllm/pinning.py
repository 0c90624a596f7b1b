"""Forces the tokens of a replay: a logits processor that leaves one token possible at each step.

`Pins` is the arithmetic and needs no vLLM; `PinTokens` of ``processor.py`` is the class that the engine
loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

FORCED = "qdx_forced"  # keys of SamplingParams.extra_args
ITEM = "qdx_item"


class Pins:
    """The forced tokens of every row of the engine's batch.

    A row's own list of output tokens says how far it is, so a request that the engine preempts and runs
    again stays right.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[list[int], list[int]]] = {}

    def update(
        self,
        removed: Iterable[int],
        added: Iterable[tuple[int, Any, Any, list[int]]],
        moved: Iterable[tuple[int, int, Any]],
        is_swap: Callable[[Any], bool],
    ) -> None:
        """Follow a change of the engine's batch: rows that left, came and moved, in that order.

        Parameters
        ----------
        added : iterable of (row, sampling parameters, prompt ids, output ids)
            The output ids are the engine's own list, which grows.
        moved : iterable of (from, to, direction)
        is_swap : callable
            Whether a direction means that the two rows change places.
        """
        for row in removed:
            self._rows.pop(row, None)
        for row, parameters, _, output in added:
            forced = (parameters.extra_args or {}).get(FORCED)
            self._rows.pop(row, None)
            if forced is not None:
                self._rows[row] = (forced, output)
        for one, two, direction in moved:
            first, second = self._rows.pop(one, None), self._rows.pop(two, None)
            if first is not None:
                self._rows[two] = first
            if second is not None and is_swap(direction):
                self._rows[one] = second

    def now(self) -> dict[int, int]:
        """Return the token that each pinned row has to give next."""
        return {
            row: forced[len(output)]
            for row, (forced, output) in self._rows.items()
            if len(output) < len(forced)
        }
