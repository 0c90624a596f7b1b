"""Sees the rows of logits inside vLLM's worker, in the model's own dtype and on its device, and pins tokens.

Two methods are wrapped, both called by ``GPUModelRunner`` in Python after the forward pass, so neither is
part of a compiled or captured graph:

- ``model.compute_logits``: once a step, one row for each request of the batch. The row of a request whose
  prompt is not all consumed yet (chunked prefill) predicts nothing and is left out. In a replay the sampler
  gets, in place of the rows that were kept, rows that leave the forced token alone possible. A
  ``LogitsProcessor`` could do that, too, but its mere presence makes vLLM copy every sampled token to the
  host before the next step (``logitsprocs_need_output_token_ids``), in plain generation as well. Nor does it
  use the trace replay that vLLM has from 0.33 on: only the second model runner has that, whose batches are
  laid out otherwise, so that one way to pin tokens serves every version.
- ``runner._get_prompt_logprobs_dict``: once a step, with the hidden states of all scheduled tokens. The
  wanted prompt rows are picked from them and only those go through the output head; ``prompt_logprobs`` would
  compute the whole vocabulary for every token of the prompt, in float32, and a Python object for each.

What is seen stays on the device until it is drained; beyond `ON_DEVICE` bytes it moves to host memory beside
the engine's work (`qdx.backends.vllm.spill`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.backends.vllm.spill import Spill
from qdx.errors import QdxError

ITEM = "qdx_item"  # key of SamplingParams.extra_args: which reference of the batch a request is
ON_DEVICE = 1 << 29
# prompt rows that go through the output head together: a fixed number, so that the same rows give the same
# bits
ROWS_AT_ONCE = 256


class Seen(NamedTuple):
    """Rows of logits: batch item and predicted position of each, and the hidden states that gave them."""

    items: NDArray[np.int32]
    positions: NDArray[np.int32]
    logits_PV: Tensor
    hidden_PH: Tensor | None = None


class Wanted(NamedTuple):
    """What to keep of one call of the engine.

    Attributes
    ----------
    positions : list of array
        Sorted prompt positions of each item, without the one that the first output token takes.
    forced : list of list of int, optional
        Tokens to pin, for each item.
    hidden : bool
        Keep the input of the output head, too.
    rows : bool
        False: keep nothing (the benchmark's measure of the hook itself).
    """

    positions: list[NDArray[np.int32]]
    forced: list[list[int]] | None = None
    hidden: bool = False
    rows: bool = True


class Tap:
    """Keeps the rows of one call of the engine.

    Parameters
    ----------
    runner : GPUModelRunner
        vLLM's first model runner; the second one (``VLLM_USE_V2_MODEL_RUNNER=1``) keeps its batch otherwise.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._spill = Spill()
        self._seen: list[Seen] = []
        self._on_device = 0
        self._reached: dict[int, int] = {}
        self._wanted: Wanted | None = None
        model = runner.get_model()
        self._compute_logits = model.compute_logits
        self._prompt_logprobs = runner._get_prompt_logprobs_dict
        model.compute_logits = self._sampled
        runner._get_prompt_logprobs_dict = self._prompt

    def open(self, wanted: Wanted) -> None:
        """Begin to keep rows."""
        self._seen, self._on_device, self._reached, self._wanted = [], 0, {}, wanted

    def drain(self) -> list[Seen]:
        """Return what was seen, and stop to keep."""
        self._spill.settle()
        seen, self._seen, self._wanted = self._seen, [], None
        return seen

    def _item(self, request: str) -> int:
        parameters = self._runner.requests[request].sampling_params
        return int((parameters.extra_args or {}).get(ITEM, -1))

    def _sampled(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor | None:
        logits_BV: Tensor | None = self._compute_logits(hidden_states, *arguments, **keywords)
        wanted = self._wanted
        if wanted is None or logits_BV is None:
            return logits_BV
        batch = self._runner.input_batch
        starts = self._runner.query_start_loc.np
        count = batch.num_reqs
        if len(logits_BV) != count:
            raise RuntimeError(
                f"{len(logits_BV)} rows of logits for {count} requests: is speculative decoding on?"
            )
        consumed = batch.num_computed_tokens_cpu[:count] + np.diff(starts[: count + 1])
        prompts = batch.num_prompt_tokens[:count]
        ready = np.flatnonzero(consumed >= prompts)
        if not len(ready):
            return logits_BV
        items = np.array([self._item(batch.req_ids[row]) for row in ready], np.int32)
        positions = consumed[ready].astype(np.int32)
        self._advance(items, positions)
        if wanted.rows:
            whole = len(ready) == count
            index = None if whole else torch.as_tensor(ready, device=logits_BV.device)
            rows_PV = logits_BV if index is None else logits_BV[index]
            # The engine's sampler works on a float32 copy; float32 rows themselves it changes in place.
            rows_PV = rows_PV.clone() if rows_PV is logits_BV and rows_PV.dtype == torch.float32 else rows_PV
            hidden_PH = None
            if wanted.hidden:
                hidden_PH = hidden_states[:count] if index is None else hidden_states[index]
            self._keep(Seen(items, positions, rows_PV, hidden_PH))
        if wanted.forced is None:
            return logits_BV
        steps = (consumed - prompts)[ready]
        pins = [
            (row, wanted.forced[item][step])
            for row, item, step in zip(ready.tolist(), items.tolist(), steps.tolist(), strict=True)
            if step < len(wanted.forced[item])
        ]
        return _pinned(logits_BV, pins) if pins else logits_BV

    def _advance(self, items: NDArray[np.int32], positions: NDArray[np.int32]) -> None:
        """Stop when the engine, out of cache blocks, threw a request out and computes it again."""
        for item, position in zip(items.tolist(), positions.tolist(), strict=True):
            if position <= self._reached.get(item, -1):
                raise QdxError(
                    f"the engine ran out of key-value cache and began reference {item} of the batch again at "
                    f"position {position}: lower batch_size, or raise backend.kv_cache_memory_bytes where it "
                    "is set, else backend.gpu_memory_utilization"
                )
            self._reached[item] = position

    def _prompt(self, hidden_states: Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        if self._wanted is not None and self._wanted.rows:
            batch = self._runner.input_batch
            for row, request in enumerate(batch.req_ids[: batch.num_reqs]):
                item, first = self._item(request), int(self._runner.query_start_loc.np[row])
                done = int(batch.num_computed_tokens_cpu[row])
                wanted = self._wanted.positions[item]
                # Row i of a request's slice has consumed token done + i and predicts position done + i + 1.
                mine = wanted[(wanted > done) & (wanted <= done + num_scheduled_tokens[request])]
                for start in range(0, len(mine), ROWS_AT_ONCE):
                    positions = mine[start : start + ROWS_AT_ONCE]
                    index = torch.as_tensor(first + positions - 1 - done, device=hidden_states.device)
                    hidden_PH = hidden_states[index]
                    logits_PV = self._compute_logits(hidden_PH)
                    if logits_PV is not None:
                        items = np.full(len(positions), item, np.int32)
                        kept = hidden_PH if self._wanted.hidden else None
                        self._keep(Seen(items, positions, logits_PV, kept))
        return self._prompt_logprobs(hidden_states, num_scheduled_tokens)

    def _keep(self, rows: Seen) -> None:
        logits_PV = rows.logits_PV
        self._on_device += logits_PV.numel() * logits_PV.element_size()
        if self._on_device > ON_DEVICE:
            rows = rows._replace(logits_PV=self._spill.put(logits_PV))
        self._seen.append(rows)


def _pinned(logits_BV: Tensor, pins: list[tuple[int, int]]) -> Tensor:
    """Return logits that leave one token possible in each (row, token); nothing waits for the device."""
    where = torch.as_tensor(np.array(pins, np.int64).T)
    if logits_BV.is_cuda:
        where = where.pin_memory().to(logits_BV.device, non_blocking=True)
    pinned_BV = logits_BV.index_fill(0, where[0], float("-inf"))
    pinned_BV[where[0], where[1]] = 0.0
    return pinned_BV


def install(worker: Any) -> None:
    """Wrap the worker's methods; runs inside the engine's worker, as the functions below do."""
    worker.qdx_tap = Tap(worker.model_runner)


def open_tap(worker: Any, wanted: Wanted) -> None:
    """Begin to keep rows."""
    worker.qdx_tap.open(wanted)


def drain(worker: Any) -> list[Seen]:
    """Return the rows; those of a worker in another process as host memory."""
    seen: list[Seen] = worker.qdx_tap.drain()
    if worker.parallel_config.world_size > 1:
        seen = [
            rows._replace(
                logits_PV=rows.logits_PV.cpu(),
                hidden_PH=None if rows.hidden_PH is None else rows.hidden_PH.cpu(),
            )
            for rows in seen
        ]
    return seen
