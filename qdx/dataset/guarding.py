"""Refuse a stranger's file before qdx opens it: `guard` looks at it in a child process that may be killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from qdx.errors import QdxError

SCRIPT = Path(__file__).with_name("structure_check.py")
BYTES_A_SECOND = 10 * 2**20  # read at least this fast, a file has the time that its size needs


@dataclass(frozen=True)
class Limits:
    """What a file may claim; ``prompts.<name>=`` and ``python -m qdx.report --<name>`` raise each.

    Attributes
    ----------
    max_bytes : int
        Unpacked, of all variables together (a run's full rows are not counted). A chunk, all attributes and
        all texts of free length may each have a 32nd part of it.
    max_objects : int
        Groups and variables.
    max_length : int
        Of a dimension, and of a text in bytes.
    max_seconds : int
        For looking at a file and reading it once; large files get more, a second for 10 MiB.
    """

    max_bytes: int = 2 * 2**30
    max_objects: int = 20_000
    max_length: int = 2**24
    max_seconds: int = 60

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise QdxError(f"{one.name}={value!r}: must be a whole number of at least 1")


NAMES = tuple(one.name for one in fields(Limits))
_limits = Limits()
_passed: set[tuple[object, ...]] = set()


def allow(**given: int | None) -> Limits:
    """Set the limits of this process; None leaves one as it is. Return them.

    Raises
    ------
    QdxError
        For a limit that is not a whole number of at least 1.
    """
    global _limits
    _limits = Limits(
        **{**asdict(_limits), **{name: value for name, value in given.items() if value is not None}}
    )
    return _limits


def limits() -> Limits:
    """Return the limits of this process."""
    return _limits


def guard(*paths: Path) -> None:
    """Refuse files that name other files, claim too much, or that the HDF5 library cannot read.

    Nothing of a file is read in this process. A file that passed is not looked at again while its size, time
    and inode are the same.

    Parameters
    ----------
    paths : Path

    Raises
    ------
    QdxError
        Naming the first file that is refused, what it claims and the limit.

    Notes
    -----
    HDF5 can loop for ever over a damaged heap, and nothing in the process that called it can end that: hence
    the child, which is killed after ``max_seconds``.
    """
    known = _limits
    left = [path for path in paths if _state(path, known) not in _passed]
    if not left:
        return
    states = [_state(path, known) for path in left]
    _look(left, known)
    _passed.update(states)


def _state(path: Path, limits: Limits) -> tuple[object, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise QdxError(f"{path}: cannot be opened: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise QdxError(f"{path}: not a regular file (a folder, fifo, device or socket): give the file itself")
    return str(path.absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, limits


def _look(paths: Sequence[Path], limits: Limits) -> None:
    seconds = limits.max_seconds * len(paths) + sum(path.stat().st_size for path in paths) // BYTES_A_SECOND
    request = {"paths": [str(path.absolute()) for path in paths], "limits": asdict(limits)}
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        out, said = child.communicate(json.dumps(request).encode() + b"\n", timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        out, _ = child.communicate()
        path = _unanswered(paths, out)
        raise QdxError(
            f"{path} is not read: looking at it took more than {seconds} s: it is damaged or hostile, or "
            "very large: raise max_seconds if you trust it"
        ) from None
    except BaseException:
        child.kill()
        child.wait()
        raise
    for line in out.decode("utf-8", "replace").splitlines():
        answer = json.loads(line)
        if answer["refused"]:
            raise QdxError(f"{answer['path']} is not read: {answer['refused']}")
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        path = _unanswered(paths, out)
        raise QdxError(
            f"{path} is not read: the HDF5 library crashes on it ({name}): it is damaged or hostile"
        )
    if child.returncode:
        last = (said.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        raise QdxError(f"{_unanswered(paths, out)} cannot be looked at before it is read: {last}")


def _unanswered(paths: Sequence[Path], out: bytes) -> Path:
    return paths[min(out.count(b"\n"), len(paths) - 1)]
