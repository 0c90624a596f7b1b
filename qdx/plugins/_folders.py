"""The folders of plug-in files, importable in every process as the package ``qdx_plugins``.

A file ``plugins/half_l1.py`` is the module ``qdx_plugins.half_l1``. The package is made in memory with these
folders as its path, so that a child process finds a plug-in by its target alone.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from qdx.errors import QdxError

PACKAGE = "qdx_plugins"
_QDX = Path(__file__).parent.parent
_also: list[Path] = []
# Set to anything but 0: plug-in files of the working folder are left out, in children too (`--no-plugins`).
LEFT_OUT = "QDX_NO_PLUGINS"
# What a results folder holds. Who works in one reads it, and it may be a stranger's. Not sweep.nc alone: a
# verifier copies that into a folder of his own.
_RESULTS = ("sweep.json", "run.nc", "*/run.nc")
_said: set[Path] = set()


def conf_dir() -> Path:
    """Return the folder of the config groups: beside the package in a checkout, inside it in a wheel."""
    packaged = _QDX / "conf"
    return packaged if packaged.is_dir() else _QDX.parent / "conf"


def folders() -> list[Path]:
    """Return the folders that are there: of the project's checkout, of the working folder, and of `add`.

    That of the working folder is left out where `leave_out` was called, and where the working folder holds
    results, so that nobody's code runs because his results are looked at; a line on standard error says so.
    """
    checkout = [_QDX.parent / "plugins"] if conf_dir().parent == _QDX.parent else []
    here = [path for path in (Path("plugins"),) if path.is_dir() and not _is_left_out(path)]
    found = [path.resolve() for path in (*checkout, *here, *_also) if path.is_dir()]
    return list(dict.fromkeys(found))


def leave_out() -> None:
    """Leave the plug-in files of the working folder out, in this process and in its children."""
    os.environ[LEFT_OUT] = "1"


def are_left_out() -> bool:
    """Whether the plug-in files of the working folder are left out because the user said so."""
    return os.environ.get(LEFT_OUT, "0") not in ("", "0")


def _is_left_out(plugins: Path) -> bool:
    if are_left_out():
        return True
    results = [path.name for name in _RESULTS for path in Path().glob(name)]
    if results and plugins.resolve() not in _said:
        _said.add(plugins.resolve())
        print(
            f"qdx: the working folder holds results ({results[0]}), which may be a stranger's: its plugins/ "
            "are left out; work in another folder to use them",
            file=sys.stderr,
        )
    return bool(results)


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
