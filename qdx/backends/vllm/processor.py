"""The logits processor that vLLM loads. Imports vLLM: import it late."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from qdx.backends.vllm.pinning import Pins


class PinTokens(LogitsProcessor):  # type: ignore[misc]
    """Leaves only the forced token of a request possible; other requests are not touched.

    It works on the sampler's float32 copy: the rows that are recorded are those of ``compute_logits``, which
    come before it.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._pins = Pins()

    def is_argmax_invariant(self) -> bool:
        """Greedy sampling must see it."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the engine's batch."""
        if batch_update is not None:
            self._pins.update(
                batch_update.removed,
                batch_update.added,
                batch_update.moved,
                lambda direction: bool(direction == MoveDirectionality.SWAP),
            )

    def apply(self, logits: Tensor) -> Tensor:
        """Pin every row that has a token to give."""
        for row, token in self._pins.now().items():
            logits[row].fill_(float("-inf"))
            logits[row, token] = 0.0
        return logits
