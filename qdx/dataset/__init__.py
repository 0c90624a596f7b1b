"""The files: what is in them, how they are written, merged, opened and stamped.

Importing this package imports neither xarray nor netCDF4; the names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdx.dataset.opening import open
    from qdx.dataset.run_reader import RunReader
    from qdx.dataset.write_sweep import append, append_all, merge

_LAZY = {
    "RunReader": "qdx.dataset.run_reader",
    "append": "qdx.dataset.write_sweep",
    "append_all": "qdx.dataset.write_sweep",
    "merge": "qdx.dataset.write_sweep",
    "open": "qdx.dataset.opening",
}

__all__ = ["RunReader", "append", "append_all", "merge", "open"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qdx.dataset' has no attribute {name!r}")
