"""qdx: run one language model under many quantization formats and kernels, and tell which one it was.

- `open` reads what a run or a sweep wrote, as an `xarray.DataTree` with the accessor ``.qdx``.
- `run` runs a sweep from Python; ``python -m qdx`` from a shell.
- `expand` recomputes logits from hidden states.
- `compose` composes and checks the configs of a sweep without running it.
- `register` makes a function or class a plug-in: a metric, analysis, backend or prompt source.
"""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path:
    # `python -m qdx…` puts the working folder before everything else: a results folder that holds a torch.py
    # would be asked for torch. While a package is looked for, argv[0] is "-m"; an `import qdx` is never here.
    # In a checkout that folder is where qdx is: it becomes the last one.
    _first = sys.path.pop(0)
    if __file__.startswith(_first.rstrip("/") + "/qdx/"):
        sys.path.append(_first)

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qdx.accessor import open
    from qdx.api import compose, run
    from qdx.arrays import expand
    from qdx.plugins import register

_LAZY = {
    "compose": "qdx.api",
    "expand": "qdx.arrays",
    "open": "qdx.accessor",
    "register": "qdx.plugins",
    "run": "qdx.api",
}

# What a plug-in makes its results of, `qdx.analysis.Section`, `qdx.charts.bars` and `qdx.prompts.Inline`,
# without an import of numpy at every start.
_MODULES = {
    "analysis": "qdx.analysis",
    "backends": "qdx.backends",
    "charts": "qdx.document.charts",
    "prompts": "qdx.prompts",
}

__all__ = ["compose", "expand", "open", "register", "run"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'qdx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
