"""Read from a started engine what it really loaded, as facts of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from qdx.backends import Facts
from qdx.backends.vllm import kernels, simulated
from qdx.backends.vllm.start import SWITCHES
from qdx.models import eos_token_ids
from qdx.schema import VllmOptions

if TYPE_CHECKING:
    from qdx.models import Checkpoint


def facts(
    engine: Any, version: str, checkpoint: Checkpoint, remedy: str, *, own: Mapping[str, str], sampling: str
) -> Facts:
    """Read the loaded model and the engine's config.

    Parameters
    ----------
    engine : vllm.LLM
    version : str
        vLLM's.
    checkpoint : Checkpoint
    remedy : str
        What the kernel that was asked for needs.
    own : Mapping of str to str
        Settings that are the backend's and not the engine's, by the names of its options.
    sampling : str
        What the sampling parameters of a request state.
    """
    from qdx.dataset.provenance import gpu_facts

    config = engine.llm_engine.vllm_config
    layers = _layers(engine)
    gpu = gpu_facts()
    on_cpu = config.device_config.device_type == "cpu"
    threads = {"threads": str(next(iter(engine.collective_rpc(_threads))))} if on_cpu else {}
    models = any(simulated.normalized(layer.kernel) for of_type in layers.values() for layer in of_type)
    runner = "+".join(sorted(set(engine.collective_rpc(kernels.model_runner))))
    attention = next(filter(None, engine.collective_rpc(kernels.attention)), "")
    return Facts(
        kernel_class={
            name: "+".join(layer.kernel_class for layer in of_type) for name, of_type in layers.items()
        },
        kernel={
            name: "+".join(sorted({kernels.normalized(layer.method, layer.kernel) for layer in of_type}))
            for name, of_type in layers.items()
        },
        quantized=frozenset(
            name
            for name, of_type in layers.items()
            if any(layer.method not in kernels.UNQUANTIZED for layer in of_type)
        ),
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        vocab=int(config.model_config.get_vocab_size()),
        hidden=int(config.model_config.get_hidden_size()),
        engine="vllm",
        engine_version=version,
        gpu=str(gpu["gpu"]),
        compute_capability=str(gpu["compute_capability"]),
        sm_count=simulated.SM_COUNT if models else int(gpu["sm_count"]),
        eos_token_ids=eos_token_ids(checkpoint.path) or frozenset(),
        remedy=_remedy(remedy, version, str(gpu["compute_capability"])),
        settings=settings(config, attention, runner, _switches()) | dict(own) | threads,
        sampling=sampling,
        attrs={
            **of_workers(engine.collective_rpc(_arithmetic)),
            "model_runner": runner,
            "compiled_kernels": _compiled(engine),
            **threads,
        },
    )


def _layers(engine: Any) -> dict[str, list[kernels.Layer]]:
    """Return the kinds of every layer type, as the first worker that has any reports them."""
    found: dict[str, list[kernels.Layer]] = {}
    for layer in next(layers for layers in engine.collective_rpc(kernels.on_worker) if layers):
        found.setdefault(layer.name, []).append(layer)
    return found


def _compiled(engine: Any) -> str:
    """Return what compiling chose, in every worker; empty in eager mode, which compiles nothing."""
    if engine.llm_engine.vllm_config.model_config.enforce_eager:
        return ""
    chosen = {kernels.summary(one) for one in engine.collective_rpc(kernels.compiled_kernels)}
    return " | ".join(sorted(chosen))


def _switches() -> dict[str, bool]:
    """Return what vLLM made of the variables that are options of the backend."""
    from vllm import envs

    return {option: bool(getattr(envs, variable, False)) for option, variable in SWITCHES.items()}


def settings(
    config: Any, attention_backend: str, model_runner: str, switches: Mapping[str, bool] | None = None
) -> dict[str, str]:
    """Return what the engine settled on, by the names of the options (`qdx.schema.VllmOptions`).

    Parameters
    ----------
    config : vllm.config.VllmConfig
    attention_backend, model_runner : str
        As the worker reports them.
    switches : Mapping, optional
        Options that are variables of the environment, as vLLM read them.
    """
    elsewhere = {"attention_backend": attention_backend, "model_runner": model_runner, **(switches or {})}
    observed: dict[str, Any] = {}
    for option in fields(VllmOptions):
        if place := option.metadata["observed"]:
            observed[option.name] = _at(config, place, option.metadata["absent"])
        elif option.name in elsewhere:
            observed[option.name] = elsewhere[option.name]
    return {key: str(value) for key, value in observed.items()}


def _at(config: Any, place: str, absent: Any) -> Any:
    """Return what a config of vLLM's has at a place; only what a version may lack is `absent` there."""
    part, name = place.split(".")
    if absent is MISSING:
        return getattr(getattr(config, part), name)
    value = getattr(getattr(config, part), name, absent)
    return bool(value) if absent is False else value


def of_workers(facts: list[Mapping[str, str]]) -> dict[str, str]:
    """Join what every worker states of its own process; values that differ stand beside each other.

    Parameters
    ----------
    facts : list of Mapping
        One of each worker, all with the same names.
    """
    return {name: " | ".join(sorted({own[name] for own in facts})) for name in facts[0]}


def _arithmetic(_worker: Any) -> dict[str, str]:
    from qdx.dataset.arithmetic import arithmetic

    return arithmetic()


def _threads(_worker: Any) -> int:
    import torch

    return int(torch.get_num_threads())


def _remedy(remedy: str, version: str, capability: str) -> str:
    if not remedy:
        return ""
    where = f"compute capability {capability}" if capability else "no GPU"
    return f"vLLM {version}, {where}: {remedy}; quant.kernel=any accepts what is loaded"
