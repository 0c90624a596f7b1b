"""The backend: an offline vLLM engine in this process (with tensor parallelism, in its workers)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qdx.backends import Facts, sampling
from qdx.backends.auto import gpus
from qdx.backends.vllm import kernel_choice
from qdx.backends.vllm.errors import explained, out_of_memory_explained
from qdx.backends.vllm.start import require_runner, start
from qdx.errors import QdxError
from qdx.plugins import register
from qdx.schema import VllmOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qdx.backends.vllm.kernel_choice import Request
    from qdx.backends.vllm.tap import Seen
    from qdx.capture import Recorder
    from qdx.models import Checkpoint
    from qdx.schema import Quant


@register("backend", "vllm", options=VllmOptions)
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
    **options
        See `qdx.schema.VllmOptions`.

    Raises
    ------
    QdxError
        When vLLM or a device is missing, or the engine refuses the model: with what vLLM said and what to
        change.
    """

    def __init__(
        self, checkpoint: Checkpoint, quant: Quant, dtype: str, seed: int = 0, **options: Any
    ) -> None:
        self._version = kernel_choice.installed_version()
        self._options = VllmOptions(**options)
        request = _request(quant, self._version, self._options)
        self._engine = start(self._version, checkpoint, request, self._options, dtype=dtype, seed=seed)
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
                own={
                    "chunked_prefill": str(self._options.chunked_prefill),
                    "replay": self._options.replay,
                    "companions": self._options.companions or "none",
                },
                sampling=sampling.stated_by(_parameters(count=2)),
            )
            require_runner(self._version, self._options.model_runner, self._facts.settings["model_runner"])
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
        """Step through the forced tokens, after a prefill of its own, and record the decode rows.

        With ``replay=prefill`` there are no steps: the forced tokens are part of the prompt.
        """
        if self._options.replay == "prefill":
            seen = self._prefilled(batch, forced, hidden=_wants_hidden(recorder))
            self._hand_over(seen, batch, forced, recorder, prefill=False)
            return
        count = max(len(ids) for ids in forced)
        generated, seen = self._run(batch, count, forced=forced, hidden=_wants_hidden(recorder))
        if generated != forced:
            raise RuntimeError("the engine did not give the pinned tokens back")
        self._hand_over(seen, batch, forced, recorder, prefill=False)

    def reseed(self, seed: int) -> None:
        """Start what numerical models draw anew; what a real kernel leaves to chance is the GPU's."""
        from qdx.backends.vllm import simulated

        simulated.GENERATOR.manual_seed(seed)

    def _prefilled(self, batch: list[list[int]], forced: list[list[int]], *, hidden: bool) -> list[Seen]:
        """Compute the rows of forced tokens in one prefill of prompts and tokens together."""
        import numpy as np

        whole = [ids + tokens[:-1] for ids, tokens in zip(batch, forced, strict=True)]
        # The row that predicts the last token is the one that the engine samples from; nobody asks for the
        # first one here, which is prefill's in any case.
        rows = [
            np.arange(len(ids) + 1, len(all_ids), dtype=np.int32)
            for ids, all_ids in zip(batch, whole, strict=True)
        ]
        _, seen = self._run(whole, 1, prompt_rows=rows, hidden=hidden)
        return seen

    def _run(
        self,
        batch: list[list[int]],
        count: int,
        *,
        forced: list[list[int]] | None = None,
        recorder: Recorder | None = None,
        prompt_rows: Sequence[NDArray[np.int32]] | None = None,
        hidden: bool = False,
    ) -> tuple[list[list[int]], list[Seen]]:
        """Generate once; `recorder` or `prompt_rows` says which prompt rows are wanted, else none are."""
        import numpy as np

        from qdx.backends.vllm import tap

        company = self._companions()
        self._check([*batch, *company], count)
        kept = list(prompt_rows or [np.empty(0, np.int32)] * len(batch))
        if recorder is not None:
            kept = [recorder.wanted(i)[recorder.wanted(i) < len(ids)] for i, ids in enumerate(batch)]
        tokens = [[] if forced is None else forced[item] for item in range(len(batch))]
        parameters = [
            _parameters(len(ids) or count, {tap.ITEM: item}, trace=ids if ids and self._trace else None)
            for item, ids in enumerate([*tokens, *([] for _ in company)])
        ]
        nothing = [np.empty(0, np.int32)] * len(company)
        pinned = None if forced is None or self._trace else [*forced, *([] for _ in company)]
        wanted = tap.Wanted([*kept, *nothing], pinned, hidden)
        # The engine takes requests in this order; items from len(batch) on are the companions.
        place = self._options.company[1]
        first = list(range(len(batch), len(batch) + place))
        order = [*first, *range(len(batch)), *range(len(batch) + place, len(batch) + len(company))]
        prompts = [{"prompt_token_ids": ids} for ids in (*batch, *company)]
        with explained(f"vLLM {self._version}, while running"):
            self._engine.collective_rpc(tap.open_tap, args=(wanted,))
            outputs = self._engine.generate(
                [prompts[i] for i in order], [parameters[i] for i in order], use_tqdm=False
            )
            seen = tap.joined(self._engine.collective_rpc(tap.drain))
        return [list(outputs[order.index(item)].outputs[0].token_ids) for item in range(len(batch))], seen

    def _companions(self) -> list[list[int]]:
        """Return the prompts of those who share every batch: the same random tokens in every process."""
        import numpy as np

        numbers = np.random.default_rng(0)
        return [
            numbers.integers(0, self._facts.vocab, length).tolist() for length in self._options.company[0]
        ]

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
        options = self._options
        if together > options.max_num_batched_tokens and not options.chunked_prefill:
            raise QdxError(
                f"the {len(batch)} references of a batch have {together} tokens, "
                f"backend.max_num_batched_tokens is {options.max_num_batched_tokens}: a prefill would be cut "
                f"into chunks: raise it to {together}, lower prompts.snippet_tokens or batch_size, or set "
                "backend.chunked_prefill=true"
            )
        if longest + count > self._max_len:
            raise QdxError(
                f"a reference of {longest} tokens and {count} more do not fit backend.max_model_len "
                f"{self._max_len}: raise it, or lower prompts.snippet_tokens or generate.tokens"
            )
        if len(batch) > options.max_num_seqs:
            raise QdxError(
                f"batch_size={len(batch)} is more than backend.max_num_seqs={options.max_num_seqs}: "
                "raise that"
            )


def _request(quant: Quant, version: str, options: VllmOptions) -> Request:
    """Return how the kernel is asked for; on a CPU it is a numerical model of it."""
    kernel_choice.generation(version)  # of a version that is not known here nothing else is known to hold
    from qdx.backends.vllm import simulated  # torch, which composing does without

    if simulated.applies(quant.format, quant.kernel):
        workers = options.tensor_parallel_size * options.pipeline_parallel_size
        simulated.require(options.enforce_eager, workers)
        return simulated.request(quant.format, quant.kernel)
    return kernel_choice.request(quant.format, quant.kernel, version)


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
