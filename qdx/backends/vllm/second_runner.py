"""The tap of vLLM's second model runner, the default on GPUs since 0.29.

Three things are wrapped. ``runner.sampler`` is called once a step with one row of logits for each request:
whole rows in the model's dtype, also where tensor parallel workers share the sampling, because vLLM
exchanges their shards of the vocabulary before (``all_to_all_logits``). ``runner.sample`` is given the hidden
states of all scheduled tokens and the batch that they belong to. ``runner.add_requests`` is where a request's
sampling parameters pass, which this runner does not keep.

With asynchronous scheduling the process prepares a step while the one before it runs. The numbers of tokens
that are read here are the scheduler's own, which it counts ahead: they are exact without speculative
decoding, which is refused. Read in 0.29.0, 0.31.0, 0.32.0 and 0.33.0: ``v1/worker/gpu/model_runner.py``,
``input_batch.py``, ``sample/sampler.py``, ``sample/batch_shard.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from qdx.backends.vllm.tap import ITEM, Step, Tap
from qdx.errors import QdxError

NEEDED = ("sample", "sampler", "add_requests", "req_states")


class SecondRunnerTap(Tap):
    """Keeps the rows of one call of an engine with the second model runner.

    Parameters
    ----------
    runner : GPUModelRunner
        Of ``vllm.v1.worker.gpu.model_runner``, or its subclass for a CPU.

    Raises
    ------
    QdxError
        When the runner of this version is built otherwise.
    """

    def __init__(self, runner: Any) -> None:
        if missing := [name for name in NEEDED if not hasattr(runner, name)]:
            raise QdxError(
                f"the second model runner of this vLLM has no {missing[0]}, by which its rows are seen: "
                "set backend.model_runner=v1, or use vLLM 0.29 to 0.33"
            )
        super().__init__(runner.get_model().compute_logits)
        self._runner = runner
        self._items: dict[str, int] = {}
        self._step: Step | None = None
        self._hidden_states: Tensor | None = None
        self._add_requests, self._sample = runner.add_requests, runner.sample
        self._sampler = runner.sampler  # None but on the last stage of a pipeline
        self.wrap()

    def wrap(self) -> None:
        """Put the tap into the runner."""
        self._runner.add_requests, self._runner.sample = self._added, self._sampling
        if self._sampler is not None:
            self._runner.sampler = _Sampler(self._sampler, self._logits)

    def unwrap(self) -> None:
        """Give the runner its own methods back."""
        self._runner.add_requests, self._runner.sample = self._add_requests, self._sample
        self._runner.sampler = self._sampler

    def _added(self, scheduler_output: Any) -> None:
        for finished in scheduler_output.finished_req_ids:
            self._items.pop(finished, None)
        for request in scheduler_output.scheduled_new_reqs:
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            self._items[request.req_id] = int(extra.get(ITEM, -1))
        self._add_requests(scheduler_output)

    def _sampling(self, hidden_states: Tensor, input_batch: Any, *arguments: Any, **keywords: Any) -> Any:
        if self._wanted is None:
            return self._sample(hidden_states, input_batch, *arguments, **keywords)
        self._step, self._hidden_states = self._step_of(input_batch), hidden_states
        try:
            sampled = self._sample(hidden_states, input_batch, *arguments, **keywords)
            self._prompt(self._step, hidden_states)
        finally:
            self._step = self._hidden_states = None
        return sampled

    def _logits(self, logits_BV: Tensor, input_batch: Any) -> Tensor:
        step = self._step
        if self._wanted is None or step is None or self._hidden_states is None:
            return logits_BV
        if list(input_batch.req_ids) != list(step.requests):  # this worker's share of the batch
            step = step.of(input_batch.req_ids)
        hidden_BH = self._hidden_states[input_batch.logits_indices] if self._wanted.hidden else None
        return self._sampled(step, logits_BV, hidden_BH)

    def _step_of(self, batch: Any) -> Step:
        count, slots = batch.num_reqs, batch.idx_mapping_np
        states = self._runner.req_states
        prompt = states.prompt_len.np[slots].astype(np.int64)
        requests = list(batch.req_ids)
        items = np.array([self._items[request] for request in requests], np.int32)
        for item, own, given in zip(
            items.tolist(), prompt.tolist(), batch.prefill_len_np.tolist(), strict=True
        ):
            if given > own:
                raise QdxError(
                    f"the engine ran out of key-value cache and began reference {item} of the batch again at "
                    f"position {given}: lower batch_size, or raise backend.kv_cache_memory_bytes where it "
                    "is set, else backend.gpu_memory_utilization"
                )
        return Step(
            requests,
            items,
            first=batch.query_start_loc_np[:count].astype(np.int64),
            done=batch.num_computed_tokens_np[:count].astype(np.int64),
            scheduled=batch.num_scheduled_tokens[:count].astype(np.int64),
            prompt=prompt,
        )


class _Sampler:
    """vLLM's sampler, with what it is given passed through a function first."""

    def __init__(self, sampler: Any, hear: Callable[[Tensor, Any], Tensor]) -> None:
        self._sampler, self._hear = sampler, hear

    def __call__(self, logits_BV: Tensor, input_batch: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._sampler(self._hear(logits_BV, input_batch), input_batch, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)
