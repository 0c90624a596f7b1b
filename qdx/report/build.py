"""From a sweep folder to ``sweep.nc``, the report in its formats and ``summary.json``."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx import new_file, plugins
from qdx.errors import QdxError
from qdx.locking import locked
from qdx.program import PLAIN, collect_as_usual
from qdx.progress import Progress

if TYPE_CHECKING:
    import xarray as xr

    from qdx.analysis.section import Section
    from qdx.dataset.folder import Sweep
    from qdx.report.figures import Figures
    from qdx.report.state import Facts, Files

Nodes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """List what was written, and what could not be.

    Attributes
    ----------
    text : str
        The report, as in ``report.txt``.
    summary : Mapping
        As in ``summary.json``.
    paths : Mapping of str to Path
        By file name; without ``sweep.nc`` when no run was finished. A saved figure is ``figures/<name>.svg``.
    failed : Mapping of str to str
        Label of a job, name of an analysis, ``metric <name>`` or name of a file to its error. A damaged run
        is a failed job; damaged full rows stand under their file.
    missing : list of str
        Labels that left nothing.
    verdict_status : int
        Exit status that the verdicts of a verifier's sweep ask for: 0, 3 or 4.
    """

    text: str
    summary: Mapping[str, Any]
    paths: Mapping[str, Path]
    failed: Mapping[str, str]
    missing: list[str]
    verdict_status: int = 0


def build(
    directory: str | Path,
    *,
    metrics: Nodes | None = None,
    analyses: Nodes | None = None,
    formats: Sequence[str] | None = None,
    figures: Sequence[str] | bool | None = None,
    plugin_folders: Sequence[str | Path] = (),
    console: bool = True,
    trust: bool = False,
    shown: str | None = None,
) -> Report:
    """Merge the finished runs of a sweep, measure, analyse and report.

    Parameters
    ----------
    directory : path
        A sweep folder.
    metrics, analyses : Mapping of name to config node, optional
        ``{"l2": {"_target_": "qdx.metrics.l2"}}``. Default: what ``sweep.json`` lists, else the shipped
        defaults; of a file, only members that are registered here count, and nothing else is imported.
    formats : sequence of "txt", "html", "md", optional
        Which files the report is written as. Default: what ``sweep.json`` lists, else txt and html.
    figures : sequence of str or bool, optional
        Names of the figures to save as ``figures/<name>.svg``; True: all. Default: what ``sweep.json`` lists,
        else none.
    plugin_folders : sequence of path
        Folders of plug-in files that the metrics and analyses of ``sweep.json`` may come from, beside
        ``plugins/`` of the working folder.
    console : bool
        Print the report, and progress while distances are measured.
    shown : "answer" or "full", optional
        What is printed: the answer on one screen, or all of ``report.txt``. Default: what ``sweep.json``
        says, else the answer.
    trust : bool
        The folder is one's own. Otherwise its files are looked at before they are read (`guard_folder`).

    Returns
    -------
    Report

    Raises
    ------
    QdxError
        When the folder is not a sweep's, runs cannot be merged, or a format is unknown. These are not errors,
        but are named at the top of the report: a failed or missing job, a metric or an analysis that raises,
        ``report.html`` or ``report.md`` that cannot be made, or a figure that is not there.
    """
    directory = Path(directory)
    new_file.require_place(directory)
    if not trust:
        guard_folder(directory)
    with contextlib.ExitStack() as stack:
        # Two reports of a folder write the same files. Why a folder cannot be written is said further on.
        with contextlib.suppress(OSError):
            stack.enter_context(locked(directory / "report.lock", wait=True))
        return _build(directory, metrics, analyses, formats, figures, plugin_folders, console, trust, shown)


def guard_folder(directory: Path) -> None:
    """Refuse a folder whose files name other files, claim too much or cannot be read.

    Raises
    ------
    QdxError
        See `qdx.dataset.guarding.guard`.
    """
    from qdx.dataset import check, folder
    from qdx.dataset.guarding import guard
    from qdx.prompts.transcripts import COPY
    from qdx.verification.sections import CALIBRATION

    beside = [directory / folder.SWEEP, directory / COPY]
    beside += [directory / CALIBRATION / name for name in (folder.SWEEP, COPY)]
    guard(*(path for path in beside if path.exists()), *check.scan(directory).runs.values())


def _build(
    directory: Path,
    metrics: Nodes | None,
    analyses: Nodes | None,
    formats: Sequence[str] | None,
    figures: Sequence[str] | bool | None,
    plugin_folders: Sequence[str | Path],
    console: bool,
    trust: bool,
    shown: str | None,
) -> Report:
    from qdx.dataset import check, folder
    from qdx.dataset.writing import disk_errors
    from qdx.endpoints import is_asked
    from qdx.report.state import Facts

    state = check.scan(directory)
    facts = Facts(directory, state.labels, state.missing, state.failed, {}, state.settings, stated=not trust)
    wanted = _Wanted.of(state.settings, formats, figures, shown)
    target = directory / folder.SWEEP
    if is_asked(directory):
        return _write_asked(state, facts, wanted.formats, console)
    if not state.runs:
        if target.exists() and not state.failed:
            # Runs are large and may have been deleted on purpose: what was made of them must not be lost.
            raise QdxError(
                f"{directory} holds {target.name} but no run to merge again: its report is left as it was; "
                f"read the file with qdx.open"
            )
        return _write(facts, None, [], [], wanted, console)
    plugins.add_folders(plugin_folders)
    measures = _callables("metric", metrics, "metrics", state)
    steps = _callables("analysis", analyses, "analyses", state)
    with contextlib.ExitStack() as stack:
        with disk_errors(target):
            part = stack.enter_context(new_file.replacing(target))
        with check.blaming(state.runs.values()):
            sections, problems = _measure(
                directory, part, measures, steps, state.settings, console, wanted.memory
            )
    gone = {
        str(
            run.relative_to(directory)
        ): "was deleted while this report was made: what is shown was read before"
        for run in state.runs.values()
        if not run.exists()
    }
    runs = [run for label, run in state.runs.items() if label not in problems.runs and run.exists()]
    facts = replace(
        facts,
        failed={**facts.failed, **problems.runs},
        broken=problems.analyses,
        unmeasured=problems.metrics,
        damaged={**problems.rows, **gone},
        unchecked=_unchecked(directory, runs),
    )
    from qdx.dataset.opening import open_file

    tree = open_file(target)
    try:
        ordered = sorted(state.runs.items(), key=lambda run: state.labels.index(run[0]))
        runs = [path for _, path in ordered if path.exists()]
        return _write(facts, tree, sections, [target, *runs], wanted, console)
    finally:
        tree.close()


@dataclass(frozen=True)
class _Problems:
    """Collect what went wrong while a sweep was measured, each a name to its error."""

    runs: dict[str, str] = field(default_factory=dict)  # damaged: left out
    metrics: dict[str, str] = field(default_factory=dict)
    analyses: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)  # by file: damaged full rows


def _unchecked(directory: Path, runs: Sequence[Path]) -> dict[str, str]:
    """Say of which files nobody can tell whether they are what was written."""
    from qdx.dataset.checksums import UNCHECKED, is_checked
    from qdx.prompts.transcripts import COPY

    copy = directory / COPY
    files = [path for path in (*([copy] if copy.is_file() else []), *runs) if not is_checked(path)]
    names = [str(path.relative_to(directory)) for path in files]
    if not names:
        return {}
    more = f" and {len(names) - 3} further files" if len(names) > 3 else ""
    return {f"{', '.join(names[:3])}{more}": UNCHECKED}


@dataclass(frozen=True)
class _Wanted:
    """Say what to write."""

    formats: Sequence[str]
    figures: Sequence[str] | bool
    memory: int  # MiB, of the distances
    print: str  # what the terminal shows: "answer" or "full"

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Any],
        formats: Sequence[str] | None,
        figures: Sequence[str] | bool | None,
        shown: str | None,
    ) -> _Wanted:
        from qdx.schema import Report as Options

        stored: Any = settings.get("report") if isinstance(settings.get("report"), Mapping) else {}
        chosen = stored.get("formats", Options().formats) if formats is None else formats
        if not isinstance(chosen, list | tuple):
            raise QdxError(f"report.formats={chosen}: must be a list of formats")
        named = stored.get("figures", False) if figures is None else figures
        memory = stored.get("memory", Options.memory)
        if not isinstance(memory, int) or isinstance(memory, bool):
            raise QdxError(f"report.memory={memory!r}: must be a number of MiB")
        shown = stored.get("print", Options.print) if shown is None else shown
        checked = Options(list(chosen), list(named) if isinstance(named, tuple) else named, memory, shown)
        return cls(checked.formats, checked.figures, checked.memory, checked.print)


def _callables(kind: str, nodes: Nodes | None, key: str, state: Sweep) -> dict[str, Callable[..., Any]]:
    """Turn nodes into callables, before anything that takes time; those of the folder are data."""
    if nodes is not None:
        return {name: plugins.build(node) for name, node in nodes.items()}
    if (stored := state.settings.get(key)) is None:
        return {name: plugins.find(kind, name) for name in _chosen_by_default(kind)}
    from qdx.dataset import folder

    return plugins.from_file(kind, stored, state.directory / folder.PLAN)


def _chosen_by_default(kind: str) -> list[str]:
    """Return what ``conf/config.yaml`` chooses in a group, for a folder without ``sweep.json``."""
    from omegaconf import OmegaConf

    defaults: Any = OmegaConf.to_container(OmegaConf.load(plugins.conf_dir() / "config.yaml"), resolve=False)
    return next(list(one[kind]) for one in defaults["defaults"] if isinstance(one, dict) and kind in one)


def _measure(
    directory: Path,
    part: Path,
    measures: dict[str, Any],
    steps: dict[str, Any],
    settings: Mapping[str, Any],
    console: bool,
    memory: int,
) -> tuple[list[Section], _Problems]:
    """Write the merged file with its distances and the results of the analyses."""
    from qdx import dataset
    from qdx.dataset.opening import open_file
    from qdx.distances import measure
    from qdx.verification import sections as verifier

    collect_as_usual()
    problems = _Problems()
    dataset.merge(directory, part, damaged=problems.runs)
    with Progress("measuring distances", shown=console, every=None) as progress:
        measure.compute(
            directory,
            part,
            measures,
            progress=progress.reached,
            broken=problems.metrics,
            damaged=problems.rows,
            memory_mib=memory,
        )
    sections: list[Section] = []
    broken = problems.analyses
    tree = open_file(part)
    try:
        if verifier.is_verifier(tree):
            sections, unjudged = verifier.judge(directory, tree, settings, _said)
            broken.update(unjudged)
            steps = {name: step for name, step in steps.items() if name not in verifier.LEFT_OUT}
        for name, step in steps.items():
            try:
                section = _held_to_contract(step(tree), sections)
                section.result.attrs.update(plugins.code_of(step))
                sections.append(section)
            except Exception as error:  # one analysis must not take the others, and hours of runs, with it
                broken[name] = _said(error)
    finally:
        tree.close()
    dataset.append_all(part, ((f"analysis/{section.name}", section.result) for section in sections))
    return sections, problems


def _said(error: Exception) -> str:
    """An error in one line, for the report; its traceback, where it is not a message, on standard error."""
    if not isinstance(error, QdxError):
        traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _held_to_contract(section: Any, before: Sequence[Section]) -> Section:
    from qdx.analysis.section import Section

    if not isinstance(section, Section):
        raise QdxError(f"returned a {type(section).__name__}: return a qdx.analysis.Section")
    if section.name in [other.name for other in before]:
        raise QdxError(f"its section is named {section.name!r}, as another analysis's is: rename it")
    return section


def _write(
    facts: Facts,
    tree: xr.DataTree | None,
    sections: list[Section],
    inputs: list[Path],
    wanted: _Wanted,
    console: bool,
) -> Report:
    """Write the report in its formats, and summary.json."""
    from qdx.analysis.view import View
    from qdx.dataset.writing import disk_errors
    from qdx.report import figures
    from qdx.report.answer import answer
    from qdx.report.summary import dump, summarize, with_files
    from qdx.report.text import render

    drawn, saved = figures.Figures(), []
    formats = list(wanted.formats)
    unwritten: dict[str, str] = {}
    try:
        drawn = figures.collect(View(tree), sections) if tree is not None else drawn
    except Exception as error:  # report.txt and report.md need no figure
        said = _said(error)
        pages = {f"report.{f}": said + _stale(facts, f) for f in formats if f == "html"}
        unwritten = {"figures": said, **pages}
        formats = [f for f in formats if f != "html"]
    lost = {f"figure {name}": error for name, error in drawn.errors.items()}
    try:
        saved = drawn.save(facts.directory / figures.FOLDER, [] if unwritten else wanted.figures)
    except (QdxError, OSError) as error:  # a wrong name must not cost the report of hours of runs
        lost["report.figures"] = str(error)
    facts = replace(facts, broken={**facts.broken, **lost}, unwritten=unwritten)
    pages, facts, listed = _pages(facts, tree, sections, inputs, saved, drawn, formats)
    for name in sorted(pages, key=lambda name: name.endswith((".html", ".md"))):
        with disk_errors(facts.directory / name):
            new_file.write_text(facts.directory / name, pages[name])
    written = [(path, path.stat().st_size if path.name in pages else count) for path, count in listed]
    summary = with_files(summarize(facts, tree, sections, _now()), written)
    with disk_errors(facts.directory / "summary.json"):
        new_file.write_text(facts.directory / "summary.json", dump(summary))
    text = pages.get("report.txt") or render(facts, tree, sections, listed)
    if console:
        show(text if wanted.print == "full" else answer(facts, tree, sections, written))
    paths = {name: facts.directory / name for name in (*pages, "summary.json")}
    paths |= {path.name: path for path in inputs[:1]}
    paths |= {f"{figures.FOLDER}/{path.name}": path for path in saved}
    problems = {f"metric {name}": error for name, error in facts.unmeasured.items()}
    failed = {**facts.failed, **facts.broken, **problems, **facts.unwritten, **facts.damaged}
    return Report(text, summary, paths, failed, list(facts.missing), _verdict_status(sections))


def _write_asked(state: Sweep, facts: Facts, formats: Sequence[str], console: bool) -> Report:
    """Write the report of a sweep that asked servers."""
    from qdx.report import asked

    there = asked.finished(state)
    missing = [label for label in facts.missing if label not in there]
    facts = replace(facts, missing=missing)
    text, summary, paths = asked.build(state, facts, formats, _now())
    if console:
        show(text)
    return Report(text, summary, paths, dict(facts.failed), missing)


def _verdict_status(sections: list[Section]) -> int:
    """The exit status that the verdicts ask for; 0 where nothing was judged."""
    from qdx.verification.verdicts import exit_status

    judged = [section.result["verdict"].values.tolist() for section in sections if section.name == "verify"]
    return exit_status(judged[0]) if judged else 0


def _stale(facts: Facts, suffix: str) -> str:
    there = (facts.directory / f"report.{suffix}").exists()
    return " (the one that is there is of an earlier report)" if there else ""


def _pages(
    facts: Facts,
    tree: xr.DataTree | None,
    sections: list[Section],
    inputs: list[Path],
    saved: list[Path],
    drawn: Figures,
    formats: Sequence[str],
) -> tuple[dict[str, str], Facts, Files]:
    """Return the pages by file name, the facts with what could not be made, and the files that pages list."""
    from qdx.report import html, markdown, text

    while True:
        here = [facts.directory / f"report.{suffix}" for suffix in formats]
        data = [(path, path.stat().st_size) for path in inputs]
        files: Files = [
            *data[:1],
            *((path, None) for path in (*here, facts.directory / "summary.json")),
            *((path, path.stat().st_size) for path in saved),
            *data[1:],
        ]
        pages: dict[str, str] = {}
        lost: dict[str, str] = {}
        for path, suffix in zip(here, formats, strict=True):
            try:
                if suffix == "txt":
                    pages[path.name] = text.render(facts, tree, sections, files)
                else:
                    pages[path.name] = (
                        html.render(facts, tree, sections, drawn, files)
                        if suffix == "html"
                        else markdown.render(facts, tree, sections, files)
                    )
            except Exception as error:
                if suffix == "txt":
                    raise
                lost[path.name] = _said(error) + _stale(facts, suffix)
        if not lost:
            return pages, facts, files
        # The others name what is missing, so they are made again.
        facts = replace(facts, unwritten={**facts.unwritten, **lost})
        formats = [suffix for suffix in formats if f"report.{suffix}" not in lost]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show(text: str) -> None:
    """Print, also where the terminal's encoding lacks a character."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, errors=PLAIN).decode(encoding), end="", flush=True)
