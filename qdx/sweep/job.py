"""One job of a sweep as a process: the parent's side (`run`) and the child's (`main`)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from qdx import new_file
from qdx.dataset.folder import STATUS
from qdx.errors import QdxError
from qdx.process import FULL_ERROR, interrupted, serve, spawn


def run(
    config: str,
    directory: str,
    command_line: str,
    cwd: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run one job in a child process and leave its outcome in the job's folder.

    Parameters
    ----------
    config : str
        The composed config, as YAML.
    directory : str
        The job's folder.
    command_line : str
        Stored with the results.
    cwd, environment
        Of the child, as `qdx.process.spawn` takes them.

    Returns
    -------
    str
        Empty on success, otherwise the error; ``status.json`` then holds it and its traceback.
    """
    folder = Path(directory)
    new_file.make_folder(folder)
    status = folder / STATUS
    status.unlink(missing_ok=True)
    request = {"do": "run", "config": config, "directory": directory, "command_line": command_line}
    ended = spawn(request, cwd, environment)
    if ended and not status.exists():
        write_status(folder, ended, "")
    return str(json.loads(status.read_text())["error"]) if ended and status.exists() else ended


def write_status(folder: Path, error: str, trace: str) -> None:
    """Record that a job failed, and why, as far as its disk takes it: standard error says it in any case."""
    text = json.dumps({"status": "failed", "error": error, "traceback": trace}, indent=1)
    with contextlib.suppress(OSError):
        new_file.write_text(folder / STATUS, text + "\n")


def main() -> None:
    """Serve the request on standard input: ``run`` a job, or ``prepare`` a sweep."""
    request = serve()
    from omegaconf import OmegaConf

    from qdx import experiment
    from qdx.progress import Progress
    from qdx.sweep import prepare

    try:
        if request["do"] == "prepare":
            configs = [OmegaConf.create(text) for text in request["configs"]]
            prepare.prepare(configs, Path(request["directory"]))
        else:
            cfg = OmegaConf.create(request["config"])
            assert not isinstance(cfg, list)
            folder = Path(request["directory"])
            with Progress(str(cfg.label)) as progress:
                stated = request["command_line"], progress, request.get("hashed")
                progress.done(experiment.run(cfg, folder, *stated))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if interrupted():
            sys.exit(130)
        expected = isinstance(error, QdxError) and not os.environ.get(FULL_ERROR)
        message = str(error) if isinstance(error, QdxError) else f"{type(error).__name__}: {error}"
        if request["do"] == "run":
            write_status(Path(request["directory"]), message, traceback.format_exc())
        if not expected:
            traceback.print_exc()
        print(f"qdx: error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
