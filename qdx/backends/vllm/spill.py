"""Moves rows out of device memory while the engine goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Spill:
    """Two pinned buffers that take turns on a stream of their own.

    A copy waits for the kernels that were queued before it, not they for the copy, and the process waits only
    when a buffer's turn comes round before its last copy has ended. Without a GPU the same steps run with
    ordinary memory and no stream.
    """

    def __init__(self) -> None:
        self._slots = (_Slot(), _Slot())
        self._turn = 0
        self._stream: Any = None

    def put(self, rows: Tensor) -> Tensor:
        """Begin to copy rows.

        Returns
        -------
        Tensor
            In host memory; it holds the rows after `settle`.
        """
        if rows.is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(rows.device)
        slot = self._slots[self._turn]
        self._turn = 1 - self._turn
        with torch.inference_mode():  # the engine's rows are inference tensors
            slot.settle()
            return slot.start(rows, self._stream)

    def settle(self) -> None:
        """Wait until everything that was put is in host memory."""
        with torch.inference_mode():
            for slot in self._slots:
                slot.settle()


class _Slot:
    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._staged: Tensor | None = None
        self._host: Tensor | None = None
        self._done: Any = None

    def start(self, rows: Tensor, stream: Any) -> Tensor:
        size = rows.numel()
        if self._buffer is None or self._buffer.dtype != rows.dtype or len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=rows.dtype, pin_memory=stream is not None)
        self._staged = self._buffer[:size].view(rows.shape)
        if stream is None:
            self._staged.copy_(rows)
        else:
            stream.wait_stream(torch.cuda.current_stream(rows.device))
            with torch.cuda.stream(stream):
                self._staged.copy_(rows, non_blocking=True)
            rows.record_stream(stream)
            self._done = stream.record_event()
        self._host = torch.empty(rows.shape, dtype=rows.dtype)
        return self._host

    def settle(self) -> None:
        if self._host is None or self._staged is None:
            return
        if self._done is not None:
            self._done.synchronize()
        self._host.copy_(self._staged)
        self._host = self._staged = self._done = None
