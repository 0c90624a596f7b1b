"""Lead a sweep: what happens before its first job, for each job, and after the last one.

Hydra calls `Sweep` as a callback and `job` for every config. Three of its habits shape this file:

- It does not call ``on_multirun_end`` when a job raised. So a job never raises out of the sweep: it leaves
  ``status.json`` in its folder, the sweep goes on, and the process exits 1 at the end, naming what failed.
- It turns an exception in a callback into a warning and goes on to the jobs. So `_guard` prints the error
  itself and leaves by ``SystemExit``, which gets through.
- It pickles the callback and the task function for a launcher's workers. So what belongs to the running
  sweep (its folder, its lock, what to measure at the end) is state of this module, and `job` reads what it
  needs from ``sweep.json``: in a worker this module's state is that of another process, which is empty.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from qdx import new_file, plugins
from qdx.backends.auto import AUTO, explanation
from qdx.commands import NO_PLUGINS, own_command, quoted
from qdx.dataset.folder import PLAN
from qdx.errors import QdxError
from qdx.hydra_errors import explain
from qdx.locking import locked
from qdx.process import FULL_ERROR, spawn
from qdx.program import guard, in_one_line, of_disk
from qdx.sweep import job as job_process
from qdx.sweep import launchers
from qdx.sweep.expand import check_names, expand, settle

SUBDIR = "${label}"  # hydra.sweep.subdir in conf/config.yaml


class _Running(NamedTuple):
    """State of the running sweep: its folder, what to measure at the end, and whether jobs run elsewhere.

    Attributes
    ----------
    directory : Path
    chosen : dict
        What is measured when they are done: nodes of the user's config, not of a file in the folder, which
        may be a stranger's.
    elsewhere : bool
        Whether jobs run in other processes.
    """

    directory: Path
    chosen: dict[str, Any]
    elsewhere: bool


# Of this process, and not attributes of `Sweep`, which launchers pickle.
_running: _Running | None = None
# Errors of this process's jobs by label: a disk that is full took no status.json.
_errors: dict[str, str] = {}
# What is done with a sweep's folder when its report is written, such as logging it somewhere.
_afterwards: list[Callable[[Path], None]] = []
_held = contextlib.ExitStack()  # the folder's lock, until this process ends
atexit.register(_held.close)


def job(cfg: DictConfig) -> None:
    """Run one config of the sweep (Hydra's task function), in whatever process the launcher chose."""
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    launchers.follow()
    guard()  # a launcher's worker prints past the streams of the sweep's process
    try:
        settle(cfg, hydra.overrides.task)
        # Of the sweep's process: here the command line may be a worker's.
        stated = json.loads((Path(hydra.sweep.dir) / PLAN).read_text())["command_line"]
        # Live bars of jobs that run at once would write over each other.
        environment = {"TTY_COMPATIBLE": "0"} if launchers.parallel(hydra.launcher) else {}
        config = OmegaConf.to_yaml(cfg, resolve=True)
        if error := job_process.run(config, str(directory), stated, hydra.runtime.cwd, environment):
            _errors[str(cfg.label)] = error
    except QdxError as error:  # the file of transcripts has gone since the sweep started
        directory.mkdir(parents=True, exist_ok=True)
        job_process.write_status(directory, str(error), traceback.format_exc())
    except OSError as error:
        elsewhere = "the machine of a job must see the sweep's folders under the same paths"
        message = in_one_line(error) if of_disk(error) else f"{error}: {elsewhere}"
        _errors[str(cfg.label)] = message
        job_process.write_status(directory, message, traceback.format_exc())
        print(f"qdx: error: {message}", file=sys.stderr, flush=True)


class Sweep(Callback):
    """Check every job of a sweep before the first one starts; merge, analyse and report after the last."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Expand, check, name and prepare the jobs."""
        _guard(lambda: start(config))

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse Hydra's single-run mode: it has no end at which results could be merged and reported."""
        print(
            "qdx: error: hydra.mode=RUN: qdx always runs a sweep, of one config too: remove it",
            file=sys.stderr,
        )
        sys.exit(2)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write ``sweep.nc`` and the reports, and exit 1 when a job failed."""
        _guard(_end)


def _guard(step: Callable[[], None]) -> None:
    """Print what a step raises as an error, and leave."""
    try:
        step()
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        sys.exit(1 if of_disk(error) else 2)
    except Exception as error:
        message = explain(error, plugins.conf_dir())
        if message is None:
            traceback.print_exc()
            sys.exit(1)
        print(f"qdx: error: {message}", file=sys.stderr)
        sys.exit(1 if of_disk(error) else 2)


def command_line() -> str:
    """Return the command that started this process, as it can be typed."""
    return shlex.join(["python", "-m", "qdx", *_flags(), *sys.argv[1:]])


def _flags() -> list[str]:
    """Return the flags that Hydra does not know: a sweep is resumed as it was started."""
    return [NO_PLUGINS] if plugins.are_left_out() else []


def start(config: DictConfig) -> None:
    """Check all jobs, give them unique labels, write the manifest and prepare models and references.

    The order matters: what can be wrong is looked for before the manifest is written, and the manifest is
    written under the folder's lock, which is held until this process ends.

    Raises
    ------
    QdxError
        For the first job whose config is not valid, for two jobs of one label, when preparation fails, or
        when another sweep runs in the folder.
    """
    global _running
    launchers.require(config.hydra.launcher)
    _require_folders_by_label(config)
    swept, jobs = expand(config)
    if config.hydra.runtime.choices.get("backend") == AUTO:
        print(explanation(), flush=True)
    if not config.hydra.overrides.task:
        print(_what_is_run(jobs), flush=True)
    directory = Path(config.hydra.sweep.dir).absolute()
    new_file.require_place(directory)  # a sweep that is resumed may be a stranger's folder
    (directory / "multirun.yaml").unlink(missing_ok=True)  # Hydra writes it, through a link too
    _tell_the_jobs(config, swept, directory)
    first: Any = OmegaConf.to_container(jobs[0], resolve=True)
    labels = [str(cfg.label) for cfg in jobs]
    for label in labels:
        if (place := directory / label).exists() and not place.is_dir():
            raise QdxError(f"{place} is a file, and the results of config {label!r} go there: rename it")
    check_names(first, [*labels, *_earlier(directory / PLAN)["labels"]])
    _prepare(jobs, directory)
    _lock(directory)
    resume = _write_manifest(
        directory,
        {
            "metrics": first["metric"],
            "analyses": first["analysis"],
            "report": first["report"],
            "verify": first["verify"],
            "labels": labels,
            "plugin_folders": [str(folder) for folder in plugins.folders()],
        },
    )
    print(f"resume: {resume}", flush=True)
    launchers.hold(config.hydra.launcher)
    chosen = {"metrics": first["metric"], "analyses": first["analysis"]}
    _running = _Running(directory, chosen, launchers.parallel(config.hydra.launcher))


def _require_folders_by_label(config: DictConfig) -> None:
    """Refuse another name for the jobs' folders: merging and resuming find a run by its label."""
    folders: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    subdir = folders["subdir"]
    if subdir != SUBDIR:
        raise QdxError(
            f"hydra.sweep.subdir={subdir}: a job's folder has the name of its label: remove it, or name the "
            "folder with label=…"
        )


def _tell_the_jobs(config: DictConfig, swept: Sequence[str], directory: Path) -> None:
    """Put into the overrides what every job has to know, whatever process the launcher makes it in.

    Hydra composes each job from these overrides. A callback may change them: it is called with the very
    config from which the sweeper reads them afterwards.
    """
    with flag_override(config, ["readonly", "struct"], False):
        if swept:
            config.hydra.overrides.task.append(f"swept=[{','.join(swept)}]")
        # A launcher's worker may have another working folder.
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(directory))}")
        config.hydra.sweep.dir = str(directory)


def _prepare(jobs: Sequence[DictConfig], directory: Path) -> None:
    """Run `qdx.sweep.prepare` in a process of its own, whose memory is free again before a job starts."""
    composed = [OmegaConf.to_yaml(cfg, resolve=True) for cfg in jobs]
    ended = spawn({"do": "prepare", "configs": composed, "directory": str(directory)})
    if "killed" in ended:
        print(f"qdx: error: preparing the sweep: {ended}", file=sys.stderr)
        sys.exit(1)
    if ended:  # the child has said why
        sys.exit(4 if ended == job_process.NOT_MET else 2)


def _lock(directory: Path) -> None:
    """Hold the folder until this process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        _held.enter_context(locked(directory / "sweep.lock", wait=False))
    except BlockingIOError as error:
        raise QdxError(
            f"another sweep is running in {directory}: wait for its end, or choose another hydra.sweep.dir"
        ) from error


def _what_is_run(jobs: Sequence[DictConfig]) -> str:
    """Say in one line what runs when nothing was configured, and how to compare configs."""
    cfg = jobs[0]
    labels = ", ".join(str(job.label) for job in jobs)
    return (
        f"nothing configured: config {labels}, model={cfg.model.name}, repeats={cfg.repeats}, "
        f"generate.tokens={cfg.generate.tokens}; four configs: python -m qdx -m "
        f"quant=awq,awq_marlin,gptq,gptq_marlin"
    )


def _write_manifest(directory: Path, manifest: dict[str, Any]) -> str:
    """Write what the sweep consists of, with earlier sweeps of the folder; return how to resume it."""
    path = directory / PLAN
    earlier = _earlier(path)
    labels = [*earlier["labels"], *(name for name in manifest["labels"] if name not in earlier["labels"])]
    arguments = [a for a in sys.argv[1:] if not a.startswith("hydra.sweep.dir=")]
    resume = shlex.join(
        ["python", "-m", "qdx", *_flags(), *arguments, f"hydra.sweep.dir={quoted(str(directory))}"]
    )
    if set(earlier["labels"]) - set(manifest["labels"]) and resume not in earlier["resume"]:
        resume = f"{earlier['resume']} && {resume}"
    text = json.dumps(
        {
            **manifest,
            "labels": labels,
            "command_line": command_line(),
            "arguments": arguments,
            "resume": resume,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        indent=1,
    )
    new_file.write_text(path, text + "\n")
    return resume


def _earlier(path: Path) -> dict[str, Any]:
    """Return the labels of the folder's earlier sweeps, and how to resume them."""
    if not path.exists():
        return {"labels": [], "resume": ""}
    from qdx.dataset.check import scan

    state = scan(path.parent)
    return {"labels": state.labels, "resume": own_command(state.settings.get("resume"), path.parent)}


def stopped(error: Exception) -> bool:
    """Finish a sweep whose launcher raised, as one does when a worker of its is killed.

    Returns
    -------
    bool
        False when no sweep was running: the error is another one.
    """
    if _running is None:
        return False
    if os.environ.get(FULL_ERROR):
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    said = f"qdx: error: the launcher stopped: {what}"
    if _running.elsewhere:
        redo = shlex.join(["python", "-m", "qdx.report", str(_running.directory)])
        said += f": jobs that it has started elsewhere may go on; when they have ended, {redo} takes them in"
    print(said, file=sys.stderr)
    _guard(_end)
    return True


def _end() -> None:
    assert _running is not None
    finish(_running.directory, _running.chosen)


def finish(directory: Path, chosen: Mapping[str, Any]) -> None:
    """Merge, analyse and report with the chosen metrics and analyses, then exit 1 when a job failed."""
    from qdx import report

    lost = ""
    try:
        built = report.build(directory, trust=True, **chosen)  # its runs are of this sweep
    except QdxError:  # such as a full disk, which took no status.json either
        _say_failed(_errors, [])
        raise
    for step in _afterwards:
        try:
            step(directory)
        except QdxError as error:  # the sweep's own files are whole
            lost = str(error)
            print(f"qdx: error: {lost}", file=sys.stderr)
    if built.failed or built.missing:
        own = {name: error for name, error in _errors.items() if name in (*built.failed, *built.missing)}
        _say_failed({**built.failed, **own}, [name for name in built.missing if name not in own])
        sys.exit(1)
    if built.verdict_status or lost:
        sys.exit(built.verdict_status or 1)


def when_reported(step: Callable[[Path], None]) -> None:
    """Have something done with the sweep's folder when its report is written, whatever the report says.

    Parameters
    ----------
    step : callable
        Takes the folder. A `QdxError` that it raises is printed, and the sweep ends with 1 where it would
        have ended with 0.
    """
    _afterwards.append(step)


def _say_failed(failed: Mapping[str, str], missing: Sequence[str]) -> None:
    for name, error in failed.items():
        print(f"qdx: failed: {name}: {error}", file=sys.stderr)
    for name in missing:
        print(f"qdx: missing: {name}", file=sys.stderr)
