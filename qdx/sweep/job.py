"""One job of a sweep as a process: the parent's side (`run`) and the child's (`main`)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdx import new_file, program
from qdx.dataset.folder import STATUS
from qdx.errors import QdxError
from qdx.process import FULL_ERROR, answer, interrupted, serve, spawn

NOT_MET = "obligation not met"  # what preparing a sweep answers where nothing is to be replayed


class NotMetError(QdxError):
    """Raised before anything runs if a verifier's demand is known not to be met; `lines` say which."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(
            f"{NOT_MET}: the files alone show it, so nothing was replayed: verify.go_on=true replays anyway"
        )
        self.lines = lines


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
    request["sweep"] = str(folder.parent)
    ended = spawn(request, cwd, environment)
    if ended and not status.exists():
        write_status(folder, ended, "")
    return str(json.loads(status.read_text())["error"]) if ended and status.exists() else ended


def write_status(folder: Path, error: str, trace: str) -> None:
    """Record that a job failed, and why, as far as its disk takes it: standard error says it in any case."""
    text = json.dumps({"status": "failed", "error": error, "traceback": trace}, indent=1)
    with contextlib.suppress(OSError):
        new_file.write_text(folder / STATUS, text + "\n")


def _convert(request: Mapping[str, str]) -> None:
    """Turn a file of records into one of transcripts, and say where it is or why there is none."""
    from omegaconf import DictConfig, OmegaConf

    from qdx import experiment

    cfg = OmegaConf.create(request["config"])
    assert isinstance(cfg, DictConfig)
    try:
        said = {"path": str(experiment.convert_records(cfg))}
    except QdxError as error:
        said = {"error": str(error)}
    new_file.write_text(Path(request["into"]), json.dumps(said))


def _prepare(request: Mapping[str, Any]) -> int:
    """Prepare a sweep; what the files alone show unmet is said, and is status 4."""
    from omegaconf import OmegaConf

    from qdx.sweep import prepare  # with all that judges evidence, which a job has no use for

    try:
        prepare.prepare([OmegaConf.create(text) for text in request["configs"]], Path(request["directory"]))
    except NotMetError as error:
        print("\n".join(error.lines), flush=True)
        print(f"qdx: {error}", file=sys.stderr, flush=True)
        answer(NOT_MET)
        return 4
    return 0


def main() -> None:
    """Serve the request on standard input: ``run`` a job, ``prepare`` a sweep, or read its ``records``."""
    program.run(_serve, full=bool(os.environ.get(FULL_ERROR)), child=True)


def _serve() -> int:
    request = serve()
    from omegaconf import OmegaConf

    from qdx import experiment
    from qdx.progress import Progress

    try:
        if request["do"] == "prepare":
            return _prepare(request)
        if request["do"] == "records":
            _convert(request)
        else:
            cfg = OmegaConf.create(request["config"])
            assert not isinstance(cfg, list)
            folder = Path(request["directory"])
            with Progress(str(cfg.label)) as progress:
                sweep = Path(request["sweep"]) if "sweep" in request else None
                stated = request["command_line"], progress, request.get("hashed"), sweep
                progress.done(experiment.run(cfg, folder, *stated))
    except KeyboardInterrupt as error:  # the parent says it
        return error.status if isinstance(error, program.Ended) else 130
    except Exception as error:
        if status := interrupted():
            return status
        expected = isinstance(error, QdxError) or program.of_disk(error)
        message = (
            program.in_one_line(error) if expected else str(QdxError(f"{type(error).__name__}: {error}"))
        )
        if request["do"] == "run":
            write_status(Path(request["directory"]), message, traceback.format_exc())
            answer(message)
        if not expected or os.environ.get(FULL_ERROR):
            traceback.print_exc()
        print(f"qdx: error: {message}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    main()
