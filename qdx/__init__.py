"""qdx: run one language model under many quantization formats and kernels, and tell from the record which one it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qdx.dataset import open
    from qdx.plugins import register

_LAZY = {"open": "qdx.dataset", "register": "qdx.plugins"}

__all__ = ["open", "register"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qdx' has no attribute {name!r}")
