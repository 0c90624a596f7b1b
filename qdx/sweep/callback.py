"""A sweep: what happens before its first job and after its last one.

Hydra calls `Sweep` as a callback and `job` for every config. A job never raises out of the sweep (Hydra 1.3
would skip the end): it leaves ``status.json`` in its folder, and the process exits 1 at the end.
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
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from qdx import new_file, plugins
from qdx.backends.auto import AUTO, explanation
from qdx.commands import NO_PLUGINS, own_command, quoted
from qdx.dataset.folder import PLAN
from qdx.errors import QdxError, nearest
from qdx.hydra_errors import explain
from qdx.locking import locked
from qdx.process import FULL_ERROR, spawn
from qdx.program import in_one_line, of_disk
from qdx.schema import validate
from qdx.sweep import job as job_process
from qdx.sweep import launchers

SUBDIR = "${label}"  # hydra.sweep.subdir in conf/config.yaml
DEFAULTS = {"metric": "l2", "analysis": "effects"}
# The folder of the sweep whose jobs the launcher has, what is measured when they are done (nodes of the
# user's config, not of a file in the folder), and whether jobs run in other processes. Not in `Sweep`, which
# launchers pickle.
_running: tuple[Path, dict[str, Any], bool] | None = None
# Errors of this process's jobs by label: a disk that is full took no status.json.
_errors: dict[str, str] = {}
_held = contextlib.ExitStack()  # the folder's lock, until this process ends
atexit.register(_held.close)


def job(cfg: DictConfig) -> None:
    """Run one config of the sweep (Hydra's task function), in whatever process the launcher chose."""
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    launchers.follow()
    try:
        _settle(cfg, hydra.overrides.task)
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
    # Hydra turns an exception in a callback into a warning and goes on; SystemExit gets through.
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
    """What Hydra does not know and was taken from the command line: a sweep is resumed as it was started."""
    return [NO_PLUGINS] if plugins.are_left_out() else []


def _settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Take from a file of transcripts what the command line leaves open; see `qdx.prompts.transcripts`."""
    if OmegaConf.select(cfg, "prompts.name") == "transcripts":
        from qdx.dataset.guarding import allow
        from qdx.prompts.transcripts import LIMITS, settle

        allow(**{name: OmegaConf.select(cfg, f"prompts.{name}") for name in LIMITS})
        settle(cfg, overrides)
    if OmegaConf.select(cfg, "prompts.name") == "challenge":
        from qdx.prompts.challenge import settle

        settle(cfg, overrides)


def start(config: DictConfig) -> None:
    """Check all jobs, give them unique labels, write the manifest and prepare models and references.

    Raises
    ------
    QdxError
        For the first job whose config is not valid, for two jobs of one label, when preparation fails, or
        when another sweep runs in the folder.
    """
    launchers.require(config.hydra.launcher)
    folders: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    subdir = folders["subdir"]
    if subdir != SUBDIR:
        raise QdxError(
            f"hydra.sweep.subdir={subdir}: a job's folder has the name of its label: remove it, or name the "
            "folder with label=…"
        )
    swept, jobs = expand(config)
    if config.hydra.runtime.choices.get("backend") == AUTO:
        print(explanation(), flush=True)
    if not config.hydra.overrides.task:
        print(_what_is_run(jobs), flush=True)
    directory = Path(config.hydra.sweep.dir).absolute()
    new_file.require_place(directory)  # a sweep that is resumed may be a stranger's folder
    (directory / "multirun.yaml").unlink(missing_ok=True)  # Hydra writes it, through a link too
    with flag_override(config, ["readonly", "struct"], False):
        if swept:
            config.hydra.overrides.task.append(f"swept=[{','.join(swept)}]")
        # A launcher's worker may have another working folder.
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(directory))}")
        config.hydra.sweep.dir = str(directory)
    first: Any = OmegaConf.to_container(jobs[0], resolve=True)
    labels = [str(cfg.label) for cfg in jobs]
    for label in labels:
        if (place := directory / label).exists() and not place.is_dir():
            raise QdxError(f"{place} is a file, and the results of config {label!r} go there: rename it")
    _check_names(first, [*labels, *_earlier(directory / PLAN)["labels"]])
    manifest = {
        "metrics": first["metric"],
        "analyses": first["analysis"],
        "report": first["report"],
        "verify": first["verify"],
        "labels": labels,
        "plugin_folders": [str(folder) for folder in plugins.folders()],
    }
    composed = [OmegaConf.to_yaml(cfg, resolve=True) for cfg in jobs]
    ended = spawn({"do": "prepare", "configs": composed, "directory": str(directory)})
    if "killed" in ended:
        print(f"qdx: error: preparing the sweep: {ended}", file=sys.stderr)
        sys.exit(1)
    if ended:  # the child has said why
        sys.exit(4 if ended == job_process.NOT_MET else 2)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        _held.enter_context(locked(directory / "sweep.lock", wait=False))
    except BlockingIOError as error:
        raise QdxError(
            f"another sweep is running in {directory}: wait for its end, or choose another hydra.sweep.dir"
        ) from error
    resume = _write_manifest(directory, manifest)
    print(f"resume: {resume}", flush=True)
    launchers.hold(config.hydra.launcher)
    global _running
    chosen = {"metrics": first["metric"], "analyses": first["analysis"]}
    _running = directory, chosen, launchers.parallel(config.hydra.launcher)


def _what_is_run(jobs: Sequence[DictConfig]) -> str:
    """Say in one line what runs when nothing was configured, and how to compare configs."""
    cfg = jobs[0]
    labels = ", ".join(str(job.label) for job in jobs)
    return (
        f"nothing configured: config {labels}, model={cfg.model.name}, repeats={cfg.repeats}, "
        f"generate.tokens={cfg.generate.tokens}; four configs: python -m qdx -m "
        f"quant=awq,awq_marlin,gptq,gptq_marlin"
    )


def expand(config: DictConfig) -> tuple[list[str], list[DictConfig]]:
    """Compose and check every job of a sweep.

    Parameters
    ----------
    config : DictConfig
        What Hydra composed for a multirun, with its ``hydra`` node.

    Returns
    -------
    swept : list of str
        The keys that vary.
    jobs : list of DictConfig
        One config a job, without its ``hydra`` node.

    Raises
    ------
    QdxError
        For the first job whose config is not valid, or for two jobs of one label.
    """
    loader = GlobalHydra.instance().config_loader()
    swept, batch = _expand(config, loader)
    for group in ("metric", "analysis"):
        if group in swept:
            raise QdxError(
                f"{group} takes a list and is no axis of a sweep: write '{group}=[a,b]' in brackets"
            )
    jobs: dict[str, DictConfig] = {}
    for overrides in batch:
        cfg = loader.load_sweep_config(config, [*overrides, f"swept=[{','.join(swept)}]"])
        with flag_override(cfg, ["readonly", "struct"], False):
            cfg.label = (
                None if cfg.label is None else str(cfg.label)
            )  # while the choices of groups that leave no node are known
            del cfg["hydra"]
        _settle(cfg, overrides)
        label = validate(cfg).label
        _check_plugins(cfg)
        if label in jobs:
            raise QdxError(f"two jobs of this sweep have the label {label!r}: drop one of them")
        jobs[label] = cfg
    return swept, list(jobs.values())


def _expand(config: DictConfig, loader: Any) -> tuple[list[str], list[list[str]]]:
    """Return the keys that vary, and the overrides of every job, as Hydra's basic sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        raise QdxError(
            f"hydra/sweeper={config.hydra.sweeper._target_}: qdx knows the labels of a sweep before "
            f"it starts, which only the basic sweeper allows: remove hydra/sweeper"
        )
    arguments = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    # Unresolved: an interpolation such as label='${quant.name}-b' is each job's own.
    task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    arguments += [str(override) for override in task]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    # A later override of a key replaces an earlier one, so the last one says whether it is swept.
    last = {override.get_key_element(): override for override in parsed}
    swept = [key.lstrip("+") for key, override in last.items() if override.is_sweep_override()]
    return swept, BasicSweeper.split_arguments(parsed, None)[0]


def _check_plugins(cfg: DictConfig) -> None:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for kind in ("metric", "analysis"):
        if not isinstance(plain.get(kind), dict) or not plain[kind]:
            raise QdxError(f"{kind}=[]: choose at least one, such as {kind}=[{DEFAULTS[kind]}]")
        for name, node in plain[kind].items():
            plugins.check(kind, str(name), node)
    for kind in ("backend", "prompts"):
        plugins.check(kind, str(plain[kind]["name"]), plain[kind])


def _check_names(chosen: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Refuse analyses that name a metric or a config which the sweep will not have when they run."""
    metrics = list(chosen["metric"])
    for name, options in chosen["analysis"].items():
        if not str(options["_target_"]).startswith("qdx.analysis."):
            continue  # a plug-in's options may mean something else
        for metric in options.get("metrics") or []:
            if metric not in metrics:
                raise QdxError(
                    f"analysis.{name}.metrics={metric}: not measured in this sweep, only "
                    f"{', '.join(metrics)}{nearest(str(metric), metrics)}: add it to metric"
                )
        baseline = options.get("baseline")
        if baseline is not None and baseline not in labels:
            raise QdxError(
                f"analysis.{name}.baseline={baseline}: no config of this sweep, one of "
                f"{', '.join(labels)}{nearest(str(baseline), labels)}: add it to the sweep"
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
    folder, _, elsewhere = _running
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    said = f"qdx: error: the launcher stopped: {what}"
    if elsewhere:
        redo = shlex.join(["python", "-m", "qdx.report", str(folder)])
        said += f": jobs that it has started elsewhere may go on; when they have ended, {redo} takes them in"
    print(said, file=sys.stderr)
    _guard(_end)
    return True


def _end() -> None:
    assert _running is not None
    directory, chosen, _ = _running
    finish(directory, chosen)


def finish(directory: Path, chosen: Mapping[str, Any]) -> None:
    """Merge, analyse and report with the chosen metrics and analyses, then exit 1 when a job failed."""
    from qdx import report

    try:
        built = report.build(directory, trust=True, **chosen)  # its runs are of this sweep
    except QdxError:  # such as a full disk, which took no status.json either
        _say_failed(_errors, [])
        raise
    if built.failed or built.missing:
        own = {name: error for name, error in _errors.items() if name in (*built.failed, *built.missing)}
        _say_failed({**built.failed, **own}, [name for name in built.missing if name not in own])
        sys.exit(1)
    if built.verdict_status:
        sys.exit(built.verdict_status)


def _say_failed(failed: Mapping[str, str], missing: Sequence[str]) -> None:
    for name, error in failed.items():
        print(f"qdx: failed: {name}: {error}", file=sys.stderr)
    for name in missing:
        print(f"qdx: missing: {name}", file=sys.stderr)
