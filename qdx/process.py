"""Child processes: every config runs in a fresh one, so that memory and GPU are clean afterwards.

A child stays in its parent's process group and dies with it: its standard input is a pipe that the parent
holds open, and end-of-file on it means that the parent is gone, however it went. The request travels through
the same pipe, as one line of JSON: nothing is pickled, and nothing depends on how the parent was started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from qdx.program import ENDING, Ended, ended

# What a user's HYDRA_FULL_ERROR=1 becomes for the children: the parent sets that variable for Hydra's sake in
# any case.
FULL_ERROR = "QDX_FULL_ERROR"


_interrupted = threading.Event()
ANSWER_BYTES = 4096  # of an error; a pipe holds more, so that the child never waits for its parent
CLOSING_S = 20  # a child that was interrupted has this long to close its file


def command(module: str) -> list[str]:
    """Return the command that runs the function ``main`` of a module of qdx in a new interpreter.

    The working folder, from which the user started, is not on the child's path (``-P``): a ``torch.py`` in it
    would be imported in the place of torch. The folder that holds qdx is, as the last one.

    Parameters
    ----------
    module : str
        Such as ``qdx.sweep.job``.
    """
    home = str(Path(__file__).parent.parent)
    start = (
        f"import sys; {home!r} in sys.path or sys.path.append({home!r}); from {module} import main; main()"
    )
    return [sys.executable, "-P", "-c", start]


def spawn(
    request: dict[str, Any], cwd: str | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Serve a request in a child process and wait for it.

    Parameters
    ----------
    request : dict
        JSON values; ``"do"`` says what, see `qdx.sweep.job`.
    cwd : str, optional
        The child's working folder; this process's by default.
    environment : Mapping, optional
        Variables that the child gets besides this process's.

    Returns
    -------
    str
        Empty when the child succeeded, otherwise the error that it gave to `answer`, or how it ended.
    """
    # What went wrong comes back through a pipe of its own: a disk that is full takes no status.json.
    answer, answering = os.pipe()
    with open(answer, "rb") as reader:  # noqa: PTH123 - a file descriptor
        try:
            child = subprocess.Popen(
                command("qdx.sweep.job"),
                stdin=subprocess.PIPE,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                pass_fds=[answering] if os.name == "posix" else [],
            )
        finally:
            os.close(answering)
        code = _wait(child, json.dumps({**request, "answer": answering}).encode() + b"\n")
        if code == 0:
            return ""
        # Not to its end: a process that the child has left behind holds the pipe open.
        os.set_blocking(answer, False)
        said = (reader.read() or b"").decode("utf-8", "replace").strip()
    if said:
        return said
    number = -code if code < 0 else code - 128
    if number in (signal.SIGINT, *(getattr(signal, name, 0) for name in ENDING)) or code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"child process killed by {signal.Signals(number).name}{hint}"
    return f"child process exited with {code}"


def _wait(child: subprocess.Popen[bytes], request: bytes) -> int:
    assert child.stdin is not None
    try:
        child.stdin.write(request)
        child.stdin.flush()
        return child.wait()
    except BrokenPipeError:
        return child.wait()
    except BaseException as error:
        # Ctrl-C reaches the whole process group, so the child is closing its file already; a signal that asks
        # a program to end may have reached this process alone.
        if isinstance(error, Ended):
            child.terminate()
        try:
            child.wait(timeout=CLOSING_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise


def serve() -> dict[str, Any]:
    """Return the request that this child process was started for; from then on it dies with its parent."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        line += byte
    threading.Thread(target=_watch, daemon=True).start()
    request: dict[str, Any] = json.loads(line)
    global _answering
    _answering = request.pop("answer", None)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    return request


_answering: int | None = None


def answer(message: str) -> None:
    """Tell the parent what went wrong; it returns from `spawn`."""
    if _answering is not None:
        with contextlib.suppress(OSError):
            os.write(_answering, message.encode("utf-8", "replace")[:ANSWER_BYTES])


def interrupted() -> int:
    """Exit status for Ctrl-C or a signal that asked this process to end; 0 when none came.

    Compiled code that a signal hits may raise another exception in its place.
    """
    if (signalled := ended()) is not None:
        return signalled.status
    return 130 if _interrupted.is_set() else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    signal.default_int_handler(number, frame)


def _watch() -> None:
    # os.read, not sys.stdin: a buffered reader holds a lock that interpreter shutdown would wait for.
    while os.read(0, 1):
        pass
    os._exit(1)
