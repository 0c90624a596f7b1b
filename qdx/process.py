"""Child processes: every config runs in a fresh one, so that memory and GPU are clean afterwards.

A child stays in its parent's process group and dies with it: its standard input is a pipe that the parent
holds open, and end-of-file on it means that the parent is gone, however it went. The request travels through
the same pipe, as one line of JSON: nothing is pickled, and nothing depends on how the parent was started.
"""

from __future__ import annotations

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

# What a user's HYDRA_FULL_ERROR=1 becomes for the children: the parent sets that variable for Hydra's sake in
# any case.
FULL_ERROR = "QDX_FULL_ERROR"


_interrupted = threading.Event()
CLOSING_S = 20  # a child that was interrupted has this long to close its file


def command(module: str) -> list[str]:
    """Return the command that runs the function ``main`` of a module of qdx in a new interpreter.

    The working folder, from which the user started, is not on the child's path (``-P``): a ``torch.py`` in it
    would be imported in the place of torch. The folder that holds qdx is, as the last one.

    Parameters
    ----------
    module : str
        Such as ``qdx.job``.
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
        JSON values; ``"do"`` says what, see `qdx.job`.
    cwd : str, optional
        The child's working folder; this process's by default.
    environment : Mapping, optional
        Variables that the child gets besides this process's.

    Returns
    -------
    str
        Empty when the child succeeded, otherwise how it ended.
    """
    child = subprocess.Popen(
        command("qdx.sweep.job"),
        stdin=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        code = child.wait()
    except BrokenPipeError:
        code = child.wait()
    except BaseException:
        # Ctrl-C reaches the whole process group: the child is closing its file already.
        try:
            child.wait(timeout=CLOSING_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"child process killed by {signal.Signals(-code).name}{hint}"
    return "" if code == 0 else f"child process exited with {code}"


def serve() -> dict[str, Any]:
    """Return the request that this child process was started for; from then on it dies with its parent."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        line += byte
    threading.Thread(target=_watch, daemon=True).start()
    request: dict[str, Any] = json.loads(line)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    return request


def interrupted() -> bool:
    """Whether Ctrl-C came: compiled code that it hits may raise another exception in its place."""
    return _interrupted.is_set()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    signal.default_int_handler(number, frame)


def _watch() -> None:
    # os.read, not sys.stdin: a buffered reader holds a lock that interpreter shutdown would wait for.
    while os.read(0, 1):
        pass
    os._exit(1)
