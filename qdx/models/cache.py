"""Find prepared models in the cache, and have exactly one of many processes build a missing one."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from qdx.errors import QdxError
from qdx.locking import held


def cache_folder() -> Path:
    """Return the folder for prepared models: ``$QDX_CACHE``, or ``qdx`` in the user's cache folder."""
    if named := os.environ.get("QDX_CACHE"):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache")
    return Path(base) / "qdx"


def prepare(
    target: Path,
    build: Callable[[Path], None],
    *,
    needs_bytes: int = 0,
    waiting: Callable[[], None] | None = None,
) -> Path:
    """Return `target`, built by `build` if it is not there yet.

    It is built in a temporary folder beside the target and renamed, so `target` is whole or absent. Of
    several processes one builds while the others wait on a lock that the operating system releases when its
    holder dies, however it dies.

    Parameters
    ----------
    target : Path
        The folder to make. A folder of that name is taken as complete.
    build : callable
        Called with an empty folder to fill.
    needs_bytes : int
        Free space to ask for before the build.
    waiting : callable, optional
        Called once when another process holds the lock.

    Raises
    ------
    QdxError
        The cache folder cannot be written, or its disk has too little space.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock_path = target.parent / f"{target.name}.lock"
        lock = lock_path.open("a")
    except OSError as error:
        raise QdxError(
            f"model cache {target.parent} cannot be written ({error}): set QDX_CACHE to another folder"
        ) from error
    with lock, held(lock.fileno(), waiting=waiting) as alone:
        if target.is_dir():  # another process built it while this one waited
            return target
        if alone:  # whoever left these is dead: it would hold the lock
            for leftover in target.parent.glob(f"{target.name}.building-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        if free < needs_bytes:
            raise QdxError(
                f"model cache {target.parent} has {free / 1e9:.1f} GB free, {needs_bytes / 1e9:.1f} GB "
                "are needed: free some or set QDX_CACHE to another folder"
            )
        working = Path(tempfile.mkdtemp(prefix=f"{target.name}.building-", dir=target.parent))
        try:
            build(working)
            _readable(working)
            try:
                working.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                # Without a lock another process may have been first; its result is as good.
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return target


def _readable(folder: Path) -> None:
    """Give a shared cache's readers what mkdtemp (0700) and safetensors (0600) withhold."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
