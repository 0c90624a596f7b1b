"""How a kernel is asked for, in the words of one generation of vLLM's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
