"""Sees the rows of logits inside vLLM's worker, in the model's own dtype and on its device.

Two methods are wrapped, both called by ``GPUModelRunner`` in Python after the forward pass, so neither is
part of a compiled or
captured graph:

- ``model.compute_logits``: once a step, one row for each request of the batch. The row of a request whose
prompt is not all
  consumed yet (chunked prefill) predicts nothing and is left out.
- ``runner._get_prompt_logprobs_dict``: once a step, with the hidden states of all scheduled tokens. The
wanted prompt rows are
  picked from them and only those go through the output head; ``prompt_logprobs`` would compute the whole
  vocabulary for every
  token of the prompt, in float32, and a Python object for each.

What is seen stays on the device until it is drained; beyond `ON_DEVICE` bytes it is copied to pinned host
memory, asynchronously.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.backends.vllm.pinning import ITEM

ON_DEVICE = 1 << 29
# prompt rows that go through the output head together: a fixed number, so that the same rows give the same
# bits
ROWS_AT_ONCE = 256


class Seen(NamedTuple):
    """Rows of logits: batch item and predicted position of each."""

    items: NDArray[np.int32]
    positions: NDArray[np.int32]
    logits_PV: Tensor


class Tap:
    """Keeps the rows of one call of the engine.

    Parameters
    ----------
    runner : GPUModelRunner
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._seen: list[Seen] = []
        self._on_device = 0
        self._wanted: list[NDArray[np.int32]] | None = None
        model = runner.get_model()
        self._compute_logits = model.compute_logits
        self._prompt_logprobs = runner._get_prompt_logprobs_dict
        model.compute_logits = self._sampled
        runner._get_prompt_logprobs_dict = self._prompt

    def open(self, wanted: list[NDArray[np.int32]]) -> None:
        """Begin to keep rows; `wanted`: sorted prompt positions of each item, without the first output's."""
        self._seen, self._on_device, self._wanted = [], 0, wanted

    def drain(self) -> list[Seen]:
        """Return what was seen, and stop to keep."""
        seen, self._seen, self._wanted = self._seen, [], None
        if any(rows.logits_PV.device.type == "cpu" for rows in seen) and torch.cuda.is_available():
            torch.cuda.synchronize()
        return seen

    def _item(self, request: str) -> int:
        parameters = self._runner.requests[request].sampling_params
        return int((parameters.extra_args or {}).get(ITEM, -1))

    def _sampled(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor | None:
        logits_BV: Tensor | None = self._compute_logits(hidden_states, *arguments, **keywords)
        if self._wanted is None or logits_BV is None:
            return logits_BV
        batch = self._runner.input_batch
        starts = self._runner.query_start_loc.np
        count = batch.num_reqs
        if len(logits_BV) != count:
            raise RuntimeError(
                f"{len(logits_BV)} rows of logits for {count} requests: is speculative decoding on?"
            )
        consumed = batch.num_computed_tokens_cpu[:count] + np.diff(starts[: count + 1])
        ready = np.flatnonzero(consumed >= batch.num_prompt_tokens[:count])
        if len(ready):
            items = np.array([self._item(batch.req_ids[row]) for row in ready], np.int32)
            # The engine's sampler works on a float32 copy; float32 rows themselves it changes in place.
            rows = (
                logits_BV
                if len(ready) == count
                else logits_BV[torch.as_tensor(ready, device=logits_BV.device)]
            )
            rows = rows.clone() if rows is logits_BV and rows.dtype == torch.float32 else rows
            self._keep(Seen(items, consumed[ready].astype(np.int32), rows))
        return logits_BV

    def _prompt(self, hidden_states: Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        if self._wanted is not None:
            batch = self._runner.input_batch
            for row, request in enumerate(batch.req_ids[: batch.num_reqs]):
                item, first = self._item(request), int(self._runner.query_start_loc.np[row])
                done = int(batch.num_computed_tokens_cpu[row])
                wanted = self._wanted[item]
                # Row i of a request's slice has consumed token done + i and predicts position done + i + 1.
                mine = wanted[(wanted > done) & (wanted <= done + num_scheduled_tokens[request])]
                for start in range(0, len(mine), ROWS_AT_ONCE):
                    positions = mine[start : start + ROWS_AT_ONCE]
                    index = torch.as_tensor(first + positions - 1 - done, device=hidden_states.device)
                    logits_PV = self._compute_logits(hidden_states[index])
                    if logits_PV is not None:
                        self._keep(Seen(np.full(len(positions), item, np.int32), positions, logits_PV))
        return self._prompt_logprobs(hidden_states, num_scheduled_tokens)

    def _keep(self, rows: Seen) -> None:
        logits_PV = rows.logits_PV
        if logits_PV.device.type == "cuda":
            self._on_device += logits_PV.numel() * logits_PV.element_size()
            if self._on_device > ON_DEVICE:
                host_PV = torch.empty(logits_PV.shape, dtype=logits_PV.dtype, pin_memory=True)
                rows = rows._replace(logits_PV=host_PV.copy_(logits_PV, non_blocking=True))
        self._seen.append(rows)


def install(worker: Any) -> None:
    """Wrap the worker's methods; runs inside the engine's worker, as the functions below do."""
    worker.qdx_tap = Tap(worker.model_runner)


def open_tap(worker: Any, wanted: list[NDArray[np.int32]]) -> None:
    """Begin to keep rows."""
    worker.qdx_tap.open(wanted)


def drain(worker: Any) -> list[Seen]:
    """Return the rows; those of a worker in another process as host memory."""
    seen: list[Seen] = worker.qdx_tap.drain()
    if worker.parallel_config.world_size > 1:
        seen = [rows._replace(logits_PV=rows.logits_PV.cpu()) for rows in seen]
    return seen
