"""Child processes: every config runs in a fresh one, so that memory and GPU are clean afterwards.

A child stays in its parent's process group and dies with it: its standard input is a pipe that the parent holds open, and
end-of-file on it means that the parent is gone, however it went. The request travels through the same pipe, as one line of
JSON: nothing is pickled, and nothing depends on how the parent was started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from qdx.errors import QdxError

STATUS = "status.json"


def spawn(request: dict[str, Any]) -> str:
    """Serve a request in a child process and wait for it.

    Parameters
    ----------
    request : dict
        JSON values; ``"do"`` names a function of this module's `main`.

    Returns
    -------
    str
        Empty when the child succeeded, otherwise how it ended.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen([sys.executable, "-m", "qdx.job"], stdin=subprocess.PIPE, env=environment)
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        code = child.wait()
    except BrokenPipeError:
        code = child.wait()
    except BaseException:
        # Ctrl-C reaches the whole process group; the child may still be writing its last rows.
        child.terminate()
        child.wait()
        raise
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"child process killed by {signal.Signals(-code).name}{hint}"
    return "" if code == 0 else f"child process exited with {code}"


def run(config: str, directory: str, command_line: str) -> str:
    """Run one job in a child process and leave its outcome in the job's folder.

    Parameters
    ----------
    config : str
        The composed config, as YAML.
    directory : str
        The job's folder.
    command_line : str
        Stored with the results.

    Returns
    -------
    str
        Empty on success, otherwise the error; ``status.json`` then holds it and its traceback.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    status = folder / STATUS
    status.unlink(missing_ok=True)
    ended = spawn({"do": "run", "config": config, "directory": directory, "command_line": command_line})
    if ended and not status.exists():
        write_status(folder, ended, "")
    return str(json.loads(status.read_text())["error"]) if ended else ""


def write_status(folder: Path, error: str, trace: str) -> None:
    """Record that a job failed, and why."""
    text = json.dumps({"status": "failed", "error": error, "traceback": trace}, indent=1)
    (folder / STATUS).write_text(text + "\n")


def _die_with_parent() -> None:
    def watch() -> None:
        # os.read, not sys.stdin: a buffered reader holds a lock that interpreter shutdown would wait for.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_request() -> dict[str, Any]:
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        line += byte
    request: dict[str, Any] = json.loads(line)
    return request


def main() -> None:
    """Serve the request on standard input: ``run`` a job, or ``prepare`` a sweep."""
    request = _read_request()
    _die_with_parent()
    from omegaconf import OmegaConf

    from qdx import experiment
    from qdx.progress import Progress

    try:
        if request["do"] == "prepare":
            configs = [OmegaConf.create(text) for text in request["configs"]]
            experiment.prepare(configs, Path(request["directory"]))
        else:
            cfg = OmegaConf.create(request["config"])
            assert not isinstance(cfg, list)
            folder = Path(request["directory"])
            with Progress(str(cfg.label)) as progress:
                progress.done(experiment.run(cfg, folder, request["command_line"], progress))
    except Exception as error:
        expected = isinstance(error, QdxError) and not os.environ.get("HYDRA_FULL_ERROR")
        message = str(error) if isinstance(error, QdxError) else f"{type(error).__name__}: {error}"
        if request["do"] == "run":
            write_status(Path(request["directory"]), message, traceback.format_exc())
        if not expected:
            traceback.print_exc()
        print(f"qdx: error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
