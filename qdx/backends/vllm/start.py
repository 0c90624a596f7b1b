"""Starts vLLM's offline engine, with the kernels that a config asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from qdx.backends.vllm.errors import explained
from qdx.errors import QdxError
from qdx.schema import VllmOptions

if TYPE_CHECKING:
    from qdx.backends.vllm.kernel_choice import Request
    from qdx.models import Checkpoint

ENVIRONMENT = {
    # the engine in this process: rows reach the recorder without a copy
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # not needed for greedy decoding, and built on first use
    "VLLM_NO_USAGE_STATS": "1",
}
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
# options of the backend that are variables of vLLM's
SWITCHES = {f.name: f.metadata["variable"] for f in fields(VllmOptions) if f.metadata["variable"]}
TRACE_REPLAY = "enable_trace_replay"
NEEDS_SECOND_RUNNER = "trace replay requires Model Runner V2"


def start(
    version: str,
    checkpoint: Checkpoint,
    request: Request,
    options: VllmOptions,
    *,
    dtype: str,
    seed: int,
) -> Any:
    """Return a ``vllm.LLM``.

    Parameters
    ----------
    version : str
        vLLM's.
    checkpoint : Checkpoint
    request : Request
        How the kernel is asked for.
    options : VllmOptions
        An engine argument that is None is vLLM's own choice.
    dtype : str
    seed : int

    Raises
    ------
    QdxError
        When the engine refuses the model, or runs another model runner than was asked for: what vLLM said,
        and what to change.
    """
    prepare_environment(request.disabled, options)
    with explained(f"vLLM {version} does not start"):
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs

        from qdx.backends.vllm import simulated

        _require_device(version)
        _require_switches(version, options)
        simulated.register(request.model)
    arguments = {
        "model": str(checkpoint.path),
        "dtype": dtype,
        "seed": seed,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "generation_config": "vllm",
        "max_logprobs": -1,
        **{f.name: getattr(options, f.name) for f in fields(options) if f.metadata["argument"]},
        **request.engine,
    }
    known = EngineArgs.__dataclass_fields__
    if "attention_backend" in known:
        arguments["attention_backend"] = options.attention_backend
    unknown = [name for name in request.engine if name not in known]
    if unknown:
        raise QdxError(f"vLLM {version} has no engine argument {unknown[0]}: pip install vllm==0.20.2")
    arguments = {name: value for name, value in arguments.items() if value is not None}
    with explained(f"vLLM {version} did not load {checkpoint.source}"):
        return _with_trace_replay(LLM, arguments, version, options.trace_replay, known)


def _with_trace_replay(
    make: Callable[..., Any],
    arguments: Mapping[str, Any],
    version: str,
    wanted: bool | None,
    known: Container[str],
) -> Any:
    """Start the engine with its own trace replay where that is wanted, or may be had."""
    if wanted and TRACE_REPLAY not in known:
        raise QdxError(
            f"vLLM {version} has no trace replay (0.29 to 0.33 have): set backend.trace_replay=null"
        )
    if wanted is False or TRACE_REPLAY not in known:
        return make(**arguments)
    try:
        return make(**arguments, **{TRACE_REPLAY: True})
    except Exception as error:
        # vLLM decides by itself which runner `auto` is, and says so before it loads anything.
        if wanted or NEEDS_SECOND_RUNNER not in str(error):
            raise
        return make(**arguments)


def _require_switches(version: str, options: VllmOptions) -> None:
    """Stop when this version does not know a variable that is to be set: it would say nothing and go on."""
    from vllm import envs

    for option, variable in SWITCHES.items():
        if getattr(options, option) and variable not in envs.environment_variables:
            raise QdxError(
                f"backend.{option}=true: vLLM {version} does not know {variable}: set it to null, or "
                "use vLLM 0.33.0"
            )


def require_runner(version: str, asked: str, observed: str) -> None:
    """Stop when the engine runs another model runner than was asked for.

    Raises
    ------
    QdxError
    """
    if asked in ("auto", observed):
        return
    raise QdxError(
        f"backend.model_runner={asked}: vLLM {version} runs {observed} here (v2 needs Triton, and vLLM 0.29 "
        "to 0.33 have the one that is known here): set backend.model_runner=auto"
    )


def _require_device(version: str) -> None:
    """Stop when this build of vLLM runs on CUDA and the process may use no GPU; vLLM says it obscurely."""
    import torch
    from vllm.platforms import current_platform

    # torch counts without initializing CUDA, which workers that are forked afterwards could not use
    if current_platform.is_cuda() and not torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise QdxError(
            f"vLLM {version} runs on CUDA and no GPU is visible"
            + ("" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})")
            + ": make one visible, or use backend=transformers"
        )


def prepare_environment(disabled: tuple[str, ...], options: VllmOptions) -> None:
    """Set the variables that vLLM reads when it is imported; what the user disabled stays disabled."""
    os.environ.update(ENVIRONMENT)
    # What an earlier engine of this process asked for is its own affair, here as below.
    runner = options.model_runner
    _set(RUNNER, _of_user(RUNNER) if runner == "auto" else {"v1": "0", "v2": "1"}[runner])
    for option, variable in SWITCHES.items():
        wanted = getattr(options, option)
        _set(variable, _of_user(variable) if wanted is None else "1" if wanted else None)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_DISABLED_KERNELS"] = ",".join(dict.fromkeys((*_disabled_by_user(), *disabled)))
    if options.attention_backend is not None:
        # versions before 0.12 know nothing else
        os.environ["VLLM_ATTENTION_BACKEND"] = options.attention_backend


def _set(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value


@cache
def _of_user(variable: str) -> str | None:
    """Return what the variable was before the first engine of this process started."""
    return os.environ.get(variable)


@cache
def _disabled_by_user() -> tuple[str, ...]:
    return tuple(name for name in os.environ.get("VLLM_DISABLED_KERNELS", "").split(",") if name)
