"""The backend: an offline vLLM engine in this process (with tensor parallelism, in its workers)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qdx.backends import Facts, sampling
from qdx.backends.auto import gpus
from qdx.backends.vllm import kernel_choice
from qdx.backends.vllm.errors import explained, out_of_memory_explained
from qdx.backends.vllm.start import require_runner, start
from qdx.errors import QdxError
from qdx.plugins import register

if TYPE_CHECKING:
    from qdx.backends.vllm.kernel_choice import Request
    from qdx.backends.vllm.tap import Seen
    from qdx.capture import Recorder
    from qdx.models import Checkpoint
    from qdx.schema import Quant


@register("backend", "vllm")
class VllmBackend:
    """Any model that vLLM runs, with the kernels that it really loads.

    Prefix caching is off, so every request computes its own prefill, and nothing is sampled: the next token
    is the greatest logit, or the pinned one.

    Parameters
    ----------
    checkpoint : Checkpoint
    quant : Quant
        The kernel to ask for; ``any`` takes what vLLM chooses.
    dtype : str
        Of activations and logits.
    seed : int
        The engine's.
    max_model_len : int, optional
        Longest sequence; the model's own when None.
    max_num_batched_tokens : int
        Tokens of one step; a batch's references have to fit it together, unless `chunked_prefill`.
    max_num_seqs : int
        Most references that run together.
    gpu_memory_utilization : float
        Share of the GPU's memory that the engine takes; the rows that are captured need some of the rest.
    kv_cache_memory_bytes : int, optional
        Size of the key-value cache. None: what `gpu_memory_utilization` leaves, which vLLM measures, wrongly
        where several jobs share a GPU; give it there.
    enforce_eager : bool
        Run without compiled and captured graphs.
    tensor_parallel_size, pipeline_parallel_size : int
    kv_cache_dtype : str
    attention_backend : str, optional
        vLLM's choice when None.
    chunked_prefill : bool
        Let a prefill that does not fit a step be cut into chunks, whose last one may run another kernel.
    async_scheduling : bool, optional
        Prepare a step while the one before it runs; vLLM's choice when None.
    model_runner : str
        ``v1``, ``v2``, or ``auto`` for what this version does by default.
    trace_replay : bool, optional
        Replay by vLLM's own trace replay, which needs the second model runner. False: give the sampler rows
        that leave the forced token alone possible. None: the former where the engine has it.
    batch_invariant, marlin_atomic_add : bool, optional
        Set ``VLLM_BATCH_INVARIANT`` or ``VLLM_MARLIN_USE_ATOMIC_ADD``, or take it out of the environment;
        None leaves it as the user has it.

    Raises
    ------
    QdxError
        When vLLM or a device is missing, or the engine refuses the model: with what vLLM said and what to
        change.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        quant: Quant,
        dtype: str,
        seed: int = 0,
        max_model_len: int | None = None,
        max_num_batched_tokens: int = 16384,
        max_num_seqs: int = 64,
        gpu_memory_utilization: float = 0.85,
        kv_cache_memory_bytes: int | None = None,
        enforce_eager: bool = True,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        kv_cache_dtype: str = "auto",
        attention_backend: str | None = None,
        chunked_prefill: bool = False,
        async_scheduling: bool | None = None,
        model_runner: str = "auto",
        trace_replay: bool | None = None,
        batch_invariant: bool | None = None,
        marlin_atomic_add: bool | None = None,
    ) -> None:
        self._version = kernel_choice.installed_version()
        kernel_choice.generation(self._version)  # first of all: nothing else holds for an unknown one
        from qdx.backends.vllm import simulated  # torch, which composing does without

        request: Request
        if simulated.applies(quant.format, quant.kernel):
            simulated.require(enforce_eager, tensor_parallel_size * pipeline_parallel_size)
            request = simulated.request(quant.format, quant.kernel)
        else:
            request = kernel_choice.request(quant.format, quant.kernel, self._version)
        self._max_tokens, self._max_seqs = max_num_batched_tokens, max_num_seqs
        self._chunked = chunked_prefill
        settings = {
            "max_model_len": max_model_len,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_memory_bytes": kv_cache_memory_bytes,
            "enforce_eager": enforce_eager,
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": pipeline_parallel_size,
            "kv_cache_dtype": kv_cache_dtype,
            "async_scheduling": async_scheduling,
        }
        self._engine = start(
            self._version,
            checkpoint,
            request,
            settings,
            dtype=dtype,
            seed=seed,
            attention_backend=attention_backend,
            model_runner=model_runner,
            trace_replay=trace_replay,
            switches={"batch_invariant": batch_invariant, "marlin_atomic_add": marlin_atomic_add},
        )
        with explained(f"vLLM {self._version}, looking into the loaded model"):
            from qdx.backends.vllm import tap
            from qdx.backends.vllm.observed import facts

            model_config = self._engine.llm_engine.vllm_config.model_config
            self._max_len = int(model_config.max_model_len)
            self._trace = bool(getattr(model_config, "enable_trace_replay", False))
            self._facts = facts(
                self._engine,
                self._version,
                checkpoint,
                request.remedy,
                chunked_prefill=chunked_prefill,
                sampling=sampling.stated_by(_parameters(count=2)),
            )
            require_runner(self._version, model_runner, self._facts.settings["model_runner"])
            self._engine.collective_rpc(tap.install)

    @staticmethod
    def identity(**_: Any) -> dict[str, Any]:
        """Return the engine's version and, of a CPU, the threads: they decide where sums are split."""
        found: dict[str, Any] = {"engine_version": kernel_choice.installed_version()}
        if not gpus():
            found["threads"] = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
            if bound := os.environ.get("VLLM_CPU_OMP_THREADS_BIND"):
                found["omp_threads_bind"] = bound
        return found

    def observe(self) -> Facts:
        """Return the kernel of every layer type of the loaded model, as read from its classes."""
        return self._facts

    def prefill_generate(
        self, batch: list[list[int]], count: int, recorder: Recorder, begin: Callable[[str], None]
    ) -> list[list[int]]:
        """Run a batch once and record its prefill and its decode rows.

        Parameters
        ----------
        batch : list of list of int
            Token ids of each reference.
        count : int
            Tokens to generate for each.
        recorder : Recorder
        begin : callable
            Called with ``"prefill"`` and ``"decode"`` before the rows of that phase are handed over.

        Returns
        -------
        list of list of int
            `count` token ids for each reference.
        """
        begin("prefill")
        generated, seen = self._run(batch, count, recorder=recorder, hidden=_wants_hidden(recorder))
        self._hand_over(seen, batch, generated, recorder, prefill=True)
        begin("decode")
        self._hand_over(seen, batch, generated, recorder, prefill=False)
        return generated

    def prefill(self, batch: list[list[int]], recorder: Recorder) -> None:
        """Run the references of a batch and record their wanted rows; nothing is kept for later."""
        generated, seen = self._run(batch, 1, recorder=recorder, hidden=_wants_hidden(recorder))
        self._hand_over(seen, batch, generated, recorder, prefill=True)

    def generate(self, batch: list[list[int]], count: int, recorder: Recorder) -> list[list[int]]:
        """Generate greedily, with a prefill of its own, and record the decode rows."""
        generated, seen = self._run(batch, count, hidden=_wants_hidden(recorder))
        self._hand_over(seen, batch, generated, recorder, prefill=False)
        return generated

    def replay(self, batch: list[list[int]], forced: list[list[int]], recorder: Recorder) -> None:
        """Step through the forced tokens, after a prefill of its own, and record the decode rows."""
        count = max(len(ids) for ids in forced)
        generated, seen = self._run(batch, count, forced=forced, hidden=_wants_hidden(recorder))
        if generated != forced:
            raise RuntimeError("the engine did not give the pinned tokens back")
        self._hand_over(seen, batch, forced, recorder, prefill=False)

    def reseed(self, seed: int) -> None:
        """Start what numerical models draw anew; what a real kernel leaves to chance is the GPU's."""
        from qdx.backends.vllm import simulated

        simulated.GENERATOR.manual_seed(seed)

    def _run(
        self,
        batch: list[list[int]],
        count: int,
        *,
        forced: list[list[int]] | None = None,
        recorder: Recorder | None = None,
        hidden: bool = False,
    ) -> tuple[list[list[int]], list[Seen]]:
        """Generate once; `recorder` says which prompt rows are wanted, none without it."""
        import numpy as np

        from qdx.backends.vllm import tap

        self._check(batch, count)
        prompt_rows = [np.empty(0, np.int32)] * len(batch)
        if recorder is not None:
            prompt_rows = [recorder.wanted(i)[recorder.wanted(i) < len(ids)] for i, ids in enumerate(batch)]
        parameters = [
            _parameters(
                count if forced is None else len(forced[item]),
                {tap.ITEM: item},
                trace=forced[item] if forced is not None and self._trace else None,
            )
            for item in range(len(batch))
        ]
        wanted = tap.Wanted(prompt_rows, None if self._trace else forced, hidden)
        with explained(f"vLLM {self._version}, while running"):
            self._engine.collective_rpc(tap.open_tap, args=(wanted,))
            prompts = [{"prompt_token_ids": ids} for ids in batch]
            outputs = self._engine.generate(prompts, parameters, use_tqdm=False)
            seen = tap.joined(self._engine.collective_rpc(tap.drain))
        return [list(output.outputs[0].token_ids) for output in outputs], seen

    def _hand_over(
        self,
        seen: list[Seen],
        batch: list[list[int]],
        tokens: list[list[int]],
        recorder: Recorder,
        *,
        prefill: bool,
    ) -> None:
        from qdx.backends.vllm.tap import hand_over

        with out_of_memory_explained(f"vLLM {self._version}, deriving what is kept of captured rows"):
            hand_over(seen, batch, tokens, recorder, prefill=prefill)

    def _check(self, batch: list[list[int]], count: int) -> None:
        longest, together = max(len(ids) for ids in batch), sum(len(ids) for ids in batch)
        if together > self._max_tokens and not self._chunked:
            raise QdxError(
                f"the {len(batch)} references of a batch have {together} tokens, "
                f"backend.max_num_batched_tokens is {self._max_tokens}: a prefill would be cut into chunks: "
                f"raise it to {together}, lower prompts.snippet_tokens or batch_size, or set "
                "backend.chunked_prefill=true"
            )
        if longest + count > self._max_len:
            raise QdxError(
                f"a reference of {longest} tokens and {count} more do not fit backend.max_model_len "
                f"{self._max_len}: raise it, or lower prompts.snippet_tokens or generate.tokens"
            )
        if len(batch) > self._max_seqs:
            raise QdxError(
                f"batch_size={len(batch)} is more than backend.max_num_seqs={self._max_seqs}: raise that"
            )


def _parameters(count: int, extra: Mapping[str, Any] | None = None, trace: list[int] | None = None) -> Any:
    """Return the sampling parameters of a request; what a run's record states is read from them.

    vLLM's trace replay ends at ``max_tokens``, whose default is 16, so `count` is always given.
    """
    from vllm import SamplingParams

    replayed = {} if trace is None else {"trace_decode_token_ids": trace}

    return SamplingParams(
        temperature=0.0,
        max_tokens=count,
        ignore_eos=True,
        detokenize=False,
        extra_args=dict(extra or {}),
        **replayed,
    )


def _wants_hidden(recorder: Recorder) -> bool:
    return bool(getattr(recorder, "wants_hidden", False))
