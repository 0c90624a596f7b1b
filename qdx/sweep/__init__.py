"""From a command line to the jobs and back.

`callback` leads, `expand` makes the jobs' configs, `prepare` looks first at what they need, `job` is the
child, `launchers` says which of Hydra's launchers may run it, `tracking` logs a sweep to MLflow.

Hydra finds the callback by ``_target_: qdx.sweep.Sweep``, a name that lies in users' ``sweep.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdx.sweep.callback import Sweep
    from qdx.sweep.tracking import MLflow

__all__ = ["MLflow", "Sweep"]


def __getattr__(name: str) -> Any:
    if name == "Sweep":
        from qdx.sweep.callback import Sweep

        return Sweep
    if name == "MLflow":
        from qdx.sweep.tracking import MLflow

        return MLflow
    raise AttributeError(f"module 'qdx.sweep' has no attribute {name!r}")
