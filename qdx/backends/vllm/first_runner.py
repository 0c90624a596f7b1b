"""The tap of vLLM's first model runner, the default up to 0.28 and wherever Triton is missing.

Two methods are wrapped. ``model.compute_logits`` is called once a step, with one hidden state for each
request of the batch. ``runner._get_prompt_logprobs_dict`` is called once a step, with the hidden states of
all scheduled tokens. Read in 0.20.2 and 0.33.0: ``v1/worker/gpu_model_runner.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from qdx.backends.vllm.tap import ITEM, Step, Tap


class FirstRunnerTap(Tap):
    """Keeps the rows of one call of an engine with the first model runner.

    Parameters
    ----------
    runner : GPUModelRunner
        Of ``vllm.v1.worker.gpu_model_runner``, or its subclass for a CPU.
    """

    def __init__(self, runner: Any) -> None:
        model = runner.get_model()
        super().__init__(model.compute_logits)
        self._runner = runner
        self._model = model
        self._prompt_logprobs = runner._get_prompt_logprobs_dict
        self.wrap()

    def wrap(self) -> None:
        """Put the tap into the runner."""
        self._model.compute_logits = self._logits
        self._runner._get_prompt_logprobs_dict = self._prompts

    def unwrap(self) -> None:
        """Give the runner its own methods back."""
        self._model.compute_logits = self._compute_logits
        self._runner._get_prompt_logprobs_dict = self._prompt_logprobs

    def _step(self) -> Step:
        batch = self._runner.input_batch
        count = batch.num_reqs
        starts = self._runner.query_start_loc.np[: count + 1].astype(np.int64)
        requests = batch.req_ids[:count]
        return Step(
            requests,
            np.array([self._item(request) for request in requests], np.int32),
            first=starts[:-1],
            done=batch.num_computed_tokens_cpu[:count].astype(np.int64),
            scheduled=np.diff(starts),
            prompt=batch.num_prompt_tokens[:count].astype(np.int64),
        )

    def _item(self, request: str) -> int:
        parameters = self._runner.requests[request].sampling_params
        return int((parameters.extra_args or {}).get(ITEM, -1))

    def _logits(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor | None:
        logits_BV: Tensor | None = self._compute_logits(hidden_states, *arguments, **keywords)
        if self._wanted is None or logits_BV is None:
            return logits_BV
        return self._sampled(self._step(), logits_BV, hidden_states)

    def _prompts(self, hidden_states: Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        if self._wanted is not None:
            self._prompt(self._step(), hidden_states)
        return self._prompt_logprobs(hidden_states, num_scheduled_tokens)
