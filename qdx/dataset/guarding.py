"""Refuse a stranger's file before qdx opens it: `guard` looks at it in a child process that may be killed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qdx.errors import QdxError

SCRIPT = Path(__file__).with_name("structure_check.py")
BYTES_A_SECOND = 10 * 2**20  # read at least this fast, a file has the time that its size needs


@dataclass(frozen=True)
class Limits:
    """Limit what a file may claim; ``prompts.<name>=`` and ``python -m qdx.report --<name>`` raise each.

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
    with _lock:
        child = _running()
        try:
            answers, ended = child.ask(request, len(paths), seconds)
        except BaseException:
            child.end()
            raise
        refused = next((answer for answer in answers if answer["refused"]), None)
        if refused is not None or ended:
            child.end()  # what a damaged file has done to its memory concerns no other file
    if refused is not None:
        raise QdxError(f"{refused['path']} is not read: {refused['refused']}")
    if ended:
        path = paths[min(len(answers), len(paths) - 1)]
        raise QdxError(f"{path} {ended}")


class Child:
    """A process that looks at files, one request after the other, and that may be killed.

    Parameters
    ----------
    script : Path
        What it runs: it reads requests, objects in JSON, from standard input, a line each, and prints an
        object for every path of theirs.
    """

    def __init__(self, script: Path) -> None:
        self.pid = os.getpid()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONUTF8": "1",
                "HDF5_USE_FILE_LOCKING": "FALSE",  # a run that is still being written may be looked at
            },
        )

    @property
    def lives(self) -> bool:
        """Return whether this process started it and it has not ended."""
        return self.pid == os.getpid() and self._process.poll() is None

    def ask(self, request: Mapping[str, Any], count: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
        """Return an answer for every file, and why there is none for the others ("" when there is)."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        slow = threading.Event()

        def give_up() -> None:
            slow.set()
            self._process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        answers: list[dict[str, Any]] = []
        try:
            while len(answers) < count and (line := self._process.stdout.readline()):
                answers.append(json.loads(line))
        finally:
            timer.cancel()
        if len(answers) == count:
            return answers, ""
        if slow.is_set():
            return answers, (
                f"is not read: looking at it took more than {seconds} s: it is damaged or hostile, or very "
                "large: raise max_seconds if you trust it"
            )
        return answers, self._why()

    def _why(self) -> str:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"is not read: the HDF5 library crashes on it ({name}): it is damaged or hostile"
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
        return f"cannot be looked at before it is read: {said[-1]}"

    def end(self) -> None:
        """End it, in the process that started it."""
        if self.pid != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


_child: Child | None = None
_lock = threading.Lock()


def _running() -> Child:
    """Return the process that looks at files, a new one where there is none: it takes a second to start."""
    global _child
    if _child is None or not _child.lives:
        if _child is not None:
            _child.end()
        _child = Child(SCRIPT)
    return _child


@atexit.register
def _end() -> None:
    if _child is not None:
        _child.end()
