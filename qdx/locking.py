"""Locks that the operating system releases when their holder dies, however it dies: none is ever stale."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:
    # Windows: work is still renamed into place when it is whole; at worst two processes do it twice.
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def held(descriptor: int, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold an exclusive lock on an open file; yields False where the platform or the file system has none.

    Parameters
    ----------
    descriptor : int
    wait : bool
        Until another holder releases it.
    waiting : callable, optional
        Called once before waiting.

    Raises
    ------
    BlockingIOError
        When another process holds it and `wait` is False.
    """
    if fcntl is None:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        if waiting is not None:
            waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks, such as some network mounts
        yield False
        return
    yield True  # closing the file releases it


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock by the name of a file, which is there while the lock is held.

    Raises
    ------
    BlockingIOError
        When another process holds it and `wait` is False.
    OSError
        When the file cannot be made.
    """
    while True:
        descriptor = _open(path)
        try:
            with held(descriptor, wait=wait):
                if not _is(path, descriptor):  # its last holder removed it before the lock was had here
                    continue
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    """Open or make the file; a link or a fifo that a stranger's folder has in its place is replaced."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink() or path.is_fifo():
        path.unlink(missing_ok=True)
    return os.open(path, flags, 0o666)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
