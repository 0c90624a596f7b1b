"""The folders of plug-in files, importable in every process as the package ``qdx_plugins``.

A file ``plugins/half_l1.py`` is the module ``qdx_plugins.half_l1``. The package is made in memory with these
folders as its path, so that a child process finds a plug-in by its target alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from qdx.errors import QdxError

PACKAGE = "qdx_plugins"
_QDX = Path(__file__).parent.parent
_also: list[Path] = []


def conf_dir() -> Path:
    """Return the folder of the config groups: beside the package in a checkout, inside it in a wheel."""
    packaged = _QDX / "conf"
    return packaged if packaged.is_dir() else _QDX.parent / "conf"


def folders() -> list[Path]:
    """Return the folders that are there: of the project's checkout, of the working folder, and of `add`."""
    checkout = [_QDX.parent / "plugins"] if conf_dir().parent == _QDX.parent else []
    found = [path.resolve() for path in (*checkout, Path("plugins"), *_also) if path.is_dir()]
    return list(dict.fromkeys(found))


def add(paths: Iterable[str | Path]) -> None:
    """Look for plug-in files in these folders too, which the user named.

    Raises
    ------
    QdxError
        For one that is not there.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            raise QdxError(f"{path}: no such folder of plug-ins")
        if path not in _also:
            _also.append(path)


def install() -> ModuleType:
    """Make the package ``qdx_plugins`` importable and return it."""
    package = sys.modules.get(PACKAGE)
    if package is None:
        package = sys.modules[PACKAGE] = ModuleType(PACKAGE, "Files of the plugins/ folders.")
    package.__path__ = [str(folder) for folder in folders()]
    importlib.invalidate_caches()  # a file may be younger than what the finders remember
    return package
