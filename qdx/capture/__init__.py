"""Keep what is wanted of each row of logits: the settings, and the recorder that streams rows to disk.

Importing this package imports no torch; the names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdx.capture.derive import greedy, top_k
    from qdx.capture.fingerprints import Sketcher, row_hash
    from qdx.capture.recorder import Recorder
    from qdx.schema import CaptureSettings

_LAZY = {
    "CaptureSettings": "qdx.schema",
    "Recorder": "qdx.capture.recorder",
    "Sketcher": "qdx.capture.fingerprints",
    "greedy": "qdx.capture.derive",
    "row_hash": "qdx.capture.fingerprints",
    "top_k": "qdx.capture.derive",
}

__all__ = ["CaptureSettings", "Recorder", "Sketcher", "greedy", "row_hash", "top_k"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qdx.capture' has no attribute {name!r}")
