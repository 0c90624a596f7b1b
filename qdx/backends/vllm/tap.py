"""Sees the rows of logits inside vLLM's worker, in the model's own dtype and on its device, and pins tokens.

vLLM has two model runners, which lay out their batches differently; each has a tap of its own
(`qdx.backends.vllm.first_runner`, `qdx.backends.vllm.second_runner`). Both wrap what the runner calls in
Python after the forward pass, so nothing of a tap is part of a compiled or captured graph, and both do the
same two things in every step:

- **Sampled rows**: one row for each request of the batch. The row of a request whose prompt is not all
  consumed yet (chunked prefill) predicts nothing and is left out. Where tokens are pinned, the sampler gets,
  in place of the rows that were kept, rows that leave the forced token alone possible. A ``LogitsProcessor``
  could do that, too, but its mere presence makes vLLM copy every sampled token to the host before the next
  step (``logitsprocs_need_output_token_ids``), in plain generation as well. Where the engine replays by
  itself (``enable_trace_replay``, the second runner only), its sampler overwrites the token, and nothing is
  pinned here.
- **Prompt rows**: the wanted ones are picked from the hidden states of all scheduled tokens, and only those
  go through the output head; ``prompt_logprobs`` would compute the whole vocabulary for every token of the
  prompt, in float32, and a Python object for each, and vLLM refuses it in a request that replays.

What is seen stays on the device until it is drained; beyond half of the memory that is free there, and
`ON_DEVICE` bytes in any case, it moves to host memory beside the engine's work (`Spill`), which costs the
process time. `hand_over` gives what was drained to a recorder, phase by phase and item by item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.errors import QdxError

if TYPE_CHECKING:
    from qdx.capture import Recorder

ITEM = "qdx_item"  # key of SamplingParams.extra_args: which reference of the batch a request is
ON_DEVICE = 1 << 29  # bytes
OF_FREE = 2  # half of the device's free memory is for rows, the rest for what is derived of them
# prompt rows that go through the output head together: a fixed number, so that the same rows give the same
# bits
ROWS_AT_ONCE = 256
ROWS_TOGETHER = 64  # that are handed to the recorder


class Seen(NamedTuple):
    """Rows of logits: batch item and predicted position of each, and the hidden states that gave them."""

    items: NDArray[np.int32]
    positions: NDArray[np.int32]
    logits_PV: Tensor
    hidden_PH: Tensor | None = None


class Wanted(NamedTuple):
    """Say what to keep of one call of the engine.

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


class Step(NamedTuple):
    """Describe what one step of the engine computes for each request of its batch.

    Attributes
    ----------
    requests : sequence of str
    items : array
        Which reference of the batch each request is.
    first : array
        Row of each request's first token among the hidden states of all scheduled tokens.
    done, scheduled : array
        Tokens that each had consumed before the step, and consumes in it.
    prompt : array
        Tokens of each one's prompt.
    """

    requests: Sequence[str]
    items: NDArray[np.int32]
    first: NDArray[np.int64]
    done: NDArray[np.int64]
    scheduled: NDArray[np.int64]
    prompt: NDArray[np.int64]

    def of(self, requests: Sequence[str]) -> Step:
        """Return the part that concerns some of the requests, in their order."""
        rows = np.array([self.requests.index(request) for request in requests], np.int64)
        return Step(
            requests,
            self.items[rows],
            self.first[rows],
            self.done[rows],
            self.scheduled[rows],
            self.prompt[rows],
        )


class Tap:
    """Keeps the rows of one call of the engine; what is common to both model runners.

    Parameters
    ----------
    compute_logits : callable
        The model's output head, as it was before anything was wrapped.
    """

    def __init__(self, compute_logits: Any) -> None:
        self._compute_logits = compute_logits
        self._spill = Spill()
        self._seen: list[Seen] = []
        self._on_device = self._room = 0
        self._reached: dict[int, int] = {}
        self._wanted: Wanted | None = None

    def wrap(self) -> None:
        """Put the tap into the runner."""
        raise NotImplementedError

    def unwrap(self) -> None:
        """Give the runner its own methods back."""
        raise NotImplementedError

    def open(self, wanted: Wanted) -> None:
        """Begin to keep rows."""
        self._seen, self._on_device, self._reached, self._wanted = [], 0, {}, wanted
        self._room = max(ON_DEVICE, _free() // OF_FREE)

    def drain(self) -> list[Seen]:
        """Return what was seen, and stop to keep."""
        self._spill.settle()
        seen, self._seen, self._wanted = self._seen, [], None
        return seen

    def _sampled(self, step: Step, logits_BV: Tensor, hidden_BH: Tensor | None) -> Tensor:
        """Keep the rows that predict a token, and return those that the sampler gets.

        Parameters
        ----------
        step : Step
            Of the requests that `logits_BV` has a row for, in that order.
        logits_BV : Tensor
        hidden_BH : Tensor, optional
            What the output head read; needed where `Wanted.hidden` is set.
        """
        wanted = self._wanted
        if wanted is None:
            return logits_BV
        count = len(step.requests)
        if len(logits_BV) != count:
            raise RuntimeError(
                f"{len(logits_BV)} rows of logits for {count} requests: is speculative decoding on?"
            )
        consumed = step.done + step.scheduled
        ready = np.flatnonzero(consumed >= step.prompt)
        if not len(ready):
            return logits_BV
        items = step.items[ready]
        positions = consumed[ready].astype(np.int32)
        self._advance(items, positions, again=(consumed > step.prompt)[ready] & (step.scheduled > 1)[ready])
        if wanted.rows:
            index = None if len(ready) == count else _on(logits_BV, ready)
            rows_PV = logits_BV if index is None else logits_BV[index]
            # The engine's sampler works on a float32 copy; float32 rows themselves it changes in place.
            rows_PV = rows_PV.clone() if rows_PV is logits_BV and rows_PV.dtype == torch.float32 else rows_PV
            hidden_PH = None
            if wanted.hidden:
                assert hidden_BH is not None
                hidden_PH = hidden_BH[:count] if index is None else hidden_BH[index]
            self._keep(Seen(items, positions, rows_PV, hidden_PH))
        if wanted.forced is None:
            return logits_BV
        outputs = (consumed - step.prompt)[ready]
        pins = [
            (row, wanted.forced[item][output])
            for row, item, output in zip(ready.tolist(), items.tolist(), outputs.tolist(), strict=True)
            if output < len(wanted.forced[item])
        ]
        return _pinned(logits_BV, pins) if pins else logits_BV

    def _advance(
        self, items: NDArray[np.int32], positions: NDArray[np.int32], again: NDArray[np.bool_]
    ) -> None:
        """Stop when the engine, out of cache blocks, threw a request out and computes it again.

        A request that begins again consumes its own output as if it were prompt: it comes back to a position
        that it had reached, or takes several tokens past its prompt in one step (`again`).
        """
        for item, position, restarted in zip(items.tolist(), positions.tolist(), again.tolist(), strict=True):
            if restarted or position <= self._reached.get(item, -1):
                raise QdxError(
                    f"the engine ran out of key-value cache and began reference {item} of the batch again at "
                    f"position {position}: lower batch_size, or raise backend.kv_cache_memory_bytes where it "
                    "is set, else backend.gpu_memory_utilization"
                )
            self._reached[item] = position

    def _prompt(self, step: Step, hidden_states: Tensor) -> None:
        """Keep the wanted rows of the prompts; `hidden_states` are those of all scheduled tokens."""
        wanted = self._wanted
        if wanted is None or not wanted.rows:
            return
        for row, item in enumerate(step.items.tolist()):
            first, done, scheduled = int(step.first[row]), int(step.done[row]), int(step.scheduled[row])
            # Row i of a request's slice has consumed token done + i and predicts position done + i + 1.
            positions = wanted.positions[item]
            of_step = positions[(positions > done) & (positions <= done + scheduled)]
            for start in range(0, len(of_step), ROWS_AT_ONCE):
                together = of_step[start : start + ROWS_AT_ONCE]
                hidden_PH = hidden_states[_on(hidden_states, first + together - 1 - done)]
                logits_PV = self._compute_logits(hidden_PH)
                if logits_PV is not None:
                    items = np.full(len(together), item, np.int32)
                    self._keep(Seen(items, together, logits_PV, hidden_PH if wanted.hidden else None))

    def _keep(self, rows: Seen) -> None:
        logits_PV = rows.logits_PV
        self._on_device += logits_PV.numel() * logits_PV.element_size()
        if self._on_device > self._room:
            rows = rows._replace(logits_PV=self._spill.put(logits_PV))
        self._seen.append(rows)


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


def _free() -> int:
    """Return the bytes of the device that this process could take; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0] + unused)


def _on(rows: Tensor, index: NDArray[Any]) -> Tensor:
    """Return an index on the device of `rows`; the process does not wait for the device."""
    made = torch.as_tensor(np.asarray(index, np.int64))
    return made.pin_memory().to(rows.device, non_blocking=True) if rows.is_cuda else made


def _pinned(logits_BV: Tensor, pins: list[tuple[int, int]]) -> Tensor:
    """Return logits that leave one token possible in each (row, token); nothing waits for the device."""
    where = _on(logits_BV, np.array(pins, np.int64).T)
    pinned_BV = logits_BV.index_fill(0, where[0], float("-inf"))
    pinned_BV[where[0], where[1]] = 0.0
    return pinned_BV


def install(worker: Any) -> None:
    """Wrap the worker's methods; runs inside the engine's worker, as the functions below do."""
    from qdx.backends.vllm.first_runner import FirstRunnerTap
    from qdx.backends.vllm.kernels import model_runner
    from qdx.backends.vllm.second_runner import SecondRunnerTap

    tap = SecondRunnerTap if model_runner(worker) == "v2" else FirstRunnerTap
    worker.qdx_tap = tap(worker.model_runner)


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


def joined(workers: Sequence[list[Seen]]) -> list[Seen]:
    """Return the rows of all workers, each once.

    Without sharded sampling every worker that has the output head has all rows, or one has; with it
    (``enable_batch_sharded_sampling``) a worker has the sampled rows of its own share of the requests.
    """
    kept: list[Seen] = []
    known: set[tuple[int, int]] = set()
    for worker in workers:
        own: set[tuple[int, int]] = set()
        for rows in worker:
            keys = list(zip(rows.items.tolist(), rows.positions.tolist(), strict=True))
            new = np.array([key not in known for key in keys], bool)
            own.update(keys)
            if new.all():
                kept.append(rows)
            elif new.any():
                index = torch.as_tensor(np.flatnonzero(new))
                hidden_PH = None if rows.hidden_PH is None else rows.hidden_PH[index]
                kept.append(Seen(rows.items[new], rows.positions[new], rows.logits_PV[index], hidden_PH))
        known |= own
    return kept


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
    # One row of a batch's step is the usual case: a view, which costs neither a copy nor a wait.
    index = slice(rows[0], rows[0] + 1) if len(rows) == 1 else _on(part.logits_PV, rows)
    hidden_PH = None if part.hidden_PH is None else part.hidden_PH[index]
    return Seen(part.items[rows], part.positions[rows], part.logits_PV[index], hidden_PH)


def _hand(recorder: Recorder, item: int, block: list[Seen], targets: NDArray[np.int64]) -> None:
    at = np.concatenate([part.positions for part in block])
    logits_PV = _on_one_device([part.logits_PV for part in block])
    hidden = [part.hidden_PH for part in block if part.hidden_PH is not None]
    hidden_PH = _on_one_device(hidden) if hidden else None
    for start in range(0, len(at), ROWS_TOGETHER):
        rows = slice(start, start + ROWS_TOGETHER)
        kept = {} if hidden_PH is None else {"hidden_PH": hidden_PH[rows]}
        recorder.rows(item, at[rows], logits_PV[rows], torch.from_numpy(targets[at[rows]]), **kept)


def _on_one_device(parts: list[Tensor]) -> Tensor:
    """Return rows in one tensor, on the GPU where there is one: what is stored of them is computed there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.cat([part.to(device) for part in parts])
