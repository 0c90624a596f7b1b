"""From a sweep folder to ``sweep.nc``, the report in its formats and ``summary.json``."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx import new_file, plugins
from qdx.errors import QdxError
from qdx.locking import locked

if TYPE_CHECKING:
    import xarray as xr

    from qdx.analysis.section import Section
    from qdx.dataset.folder import Sweep
    from qdx.report.figures import Figures
    from qdx.report.state import Facts

DEFAULT_METRICS = ("l2", "kl", "js", "top1")
DEFAULT_ANALYSES = ("noise_floor", "consistency", "effects", "classes", "pairs", "snr", "cost")
DEFAULT_FORMATS = ("txt", "html")
Nodes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """What was written, and what could not be.

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
    guarded: bool = False,
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
    guarded : bool
        The folder may be a stranger's: look at its files before they are read (`guard_folder`).

    Returns
    -------
    Report

    Raises
    ------
    QdxError
        When the folder is no sweep's, runs cannot be merged, or a format is unknown. A failed or missing job
        is no error, nor is a metric or an analysis that raises, ``report.html`` or ``report.md`` that cannot
        be made, or a figure that is not there: they are named at the top of the report.
    """
    directory = Path(directory)
    new_file.refuse_links(directory)
    if guarded:
        guard_folder(directory)
    with contextlib.ExitStack() as stack:
        # Two reports of a folder write the same files. Why a folder cannot be written is said further on.
        with contextlib.suppress(OSError):
            stack.enter_context(locked(directory / "report.lock", wait=True))
        return _build(directory, metrics, analyses, formats, figures, plugin_folders, console)


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
) -> Report:
    from qdx.dataset import check, folder
    from qdx.dataset.writing import disk_errors
    from qdx.report.state import Facts

    state = check.scan(directory)
    facts = Facts(directory, state.labels, state.missing, state.failed, {}, state.settings)
    wanted = _Wanted.of(state.settings, formats, figures)
    target = directory / folder.SWEEP
    if not state.runs:
        if target.exists() and not state.failed:
            # Runs are large and may have been deleted on purpose: what was made of them must not be lost.
            raise QdxError(
                f"{directory} holds {target.name} but no run to merge again: its report is left as it was; "
                f"read the file with qdx.open"
            )
        return _write(facts, None, [], [], wanted, console)
    plugins.add_folders(plugin_folders)
    measures = _callables("metric", metrics, "metrics", state, DEFAULT_METRICS)
    steps = _callables("analysis", analyses, "analyses", state, DEFAULT_ANALYSES)
    with contextlib.ExitStack() as stack:
        with disk_errors(target):
            part = stack.enter_context(new_file.replacing(target))
        with check.blaming(state.runs.values()):
            sections, problems = _measure(
                directory, part, measures, steps, state.settings, console, wanted.memory
            )
    runs = [run for label, run in state.runs.items() if label not in problems.runs]
    facts = replace(
        facts,
        failed={**facts.failed, **problems.runs},
        broken=problems.analyses,
        unmeasured=problems.metrics,
        damaged=problems.rows,
        unchecked=_unchecked(directory, runs),
    )
    from qdx.dataset.opening import open_file

    tree = open_file(target)
    try:
        runs = [path for _, path in sorted(state.runs.items(), key=lambda run: state.labels.index(run[0]))]
        return _write(facts, tree, sections, [target, *runs], wanted, console)
    finally:
        tree.close()


@dataclass(frozen=True)
class _Problems:
    """What went wrong while a sweep was measured, each a name to its error."""

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
    """What to write."""

    formats: Sequence[str]
    figures: Sequence[str] | bool
    memory: int  # MiB, of the distances

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], formats: Sequence[str] | None, figures: Sequence[str] | bool | None
    ) -> _Wanted:
        from qdx.schema import Report as Options

        stored: Any = settings.get("report") if isinstance(settings.get("report"), Mapping) else {}
        chosen = stored.get("formats", DEFAULT_FORMATS) if formats is None else formats
        if not isinstance(chosen, list | tuple):
            raise QdxError(f"report.formats={chosen}: must be a list of formats")
        named = stored.get("figures", False) if figures is None else figures
        memory = stored.get("memory", Options.memory)
        if not isinstance(memory, int) or isinstance(memory, bool):
            raise QdxError(f"report.memory={memory!r}: must be a number of MiB")
        checked = Options(list(chosen), list(named) if isinstance(named, tuple) else named, memory)
        return cls(checked.formats, checked.figures, checked.memory)


def _callables(
    kind: str, nodes: Nodes | None, key: str, state: Sweep, names: Sequence[str]
) -> dict[str, Callable[..., Any]]:
    """Turn nodes into callables, before anything that takes time; those of the folder are data."""
    if nodes is not None:
        return {name: plugins.build(node) for name, node in nodes.items()}
    if (stored := state.settings.get(key)) is None:
        return {name: plugins.find(kind, name) for name in names}
    from qdx.dataset import folder

    return plugins.from_file(kind, stored, state.directory / folder.PLAN)


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

    problems = _Problems()
    dataset.merge(directory, part, damaged=problems.runs)
    with _Progress(console) as progress:
        measure.compute(
            directory,
            part,
            measures,
            progress=progress,
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
    for section in sections:
        dataset.append(part, f"analysis/{section.name}", section.result)
    return sections, problems


def _said(error: Exception) -> str:
    """An error in one line, for the report; its traceback, where it is no message, on standard error."""
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
    """Write the report in its formats and summary.json, each of which states the sizes of all."""
    from qdx.analysis.view import View
    from qdx.dataset.writing import disk_errors
    from qdx.report import figures
    from qdx.report.summary import dump
    from qdx.report.text import render

    drawn, saved = figures.Figures(), []
    formats = list(wanted.formats)
    unwritten: dict[str, str] = {}
    try:
        drawn = figures.collect(View(tree), sections) if tree is not None else drawn
    except Exception as error:  # report.txt needs no figure
        said = _said(error)
        pages = {f"report.{f}": said + _stale(facts, f) for f in formats if f != "txt"}
        unwritten = {"figures": said, **pages}
        formats = [f for f in formats if f == "txt"]
    lost = {f"figure {name}": error for name, error in drawn.errors.items()}
    try:
        saved = drawn.save(facts.directory / figures.FOLDER, [] if unwritten else wanted.figures)
    except (QdxError, OSError) as error:  # a wrong name must not cost the report of hours of runs
        lost["report.figures"] = str(error)
    facts = replace(facts, broken={**facts.broken, **lost})
    while True:
        facts = replace(facts, unwritten=unwritten)
        try:
            finished, files, summary = _compose(facts, tree, sections, inputs, saved, drawn, formats)
            break
        except _PageError as error:  # the others name it, so they are made again
            unwritten[f"report.{error.suffix}"] = _said(error.cause) + _stale(facts, error.suffix)
            formats.remove(error.suffix)
    contents = {**finished, "summary.json": dump(summary)}
    for name in sorted(contents, key=lambda name: name.endswith((".html", ".md"))):
        path = facts.directory / name
        with disk_errors(path):
            new_file.write_text(path, contents[name])
    text = render(facts, tree, sections, files)
    if console:
        show(text)
    paths = {name: facts.directory / name for name in contents} | {path.name: path for path in inputs[:1]}
    paths |= {f"{figures.FOLDER}/{path.name}": path for path in saved}
    problems = {f"metric {name}": error for name, error in facts.unmeasured.items()}
    failed = {**facts.failed, **facts.broken, **problems, **facts.unwritten, **facts.damaged}
    return Report(text, summary, paths, failed, list(facts.missing), _verdict_status(sections))


def _verdict_status(sections: list[Section]) -> int:
    """The exit status that the verdicts ask for; 0 where nothing was judged."""
    from qdx.verification.verdicts import exit_status

    judged = [section.result["verdict"].values.tolist() for section in sections if section.name == "verify"]
    return exit_status(judged[0]) if judged else 0


def _stale(facts: Facts, suffix: str) -> str:
    there = (facts.directory / f"report.{suffix}").exists()
    return " (the one that is there is of an earlier report)" if there else ""


class _PageError(Exception):
    """What raised while ``report.html`` or ``report.md`` was made."""

    def __init__(self, suffix: str, cause: Exception) -> None:
        super().__init__(suffix)
        self.suffix, self.cause = suffix, cause


def _compose(
    facts: Facts,
    tree: xr.DataTree | None,
    sections: list[Section],
    inputs: list[Path],
    saved: list[Path],
    drawn: Figures,
    formats: Sequence[str],
) -> tuple[dict[str, str], list[tuple[Path, int]], dict[str, Any]]:
    """Return the pages by file name, the files with their sizes, and the summary."""
    from qdx.report.summary import dump, summarize, with_files

    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    known = [(path, path.stat().st_size) for path in inputs]
    after = [(path, path.stat().st_size) for path in saved]

    def ordered(sizes: Sequence[int], summary_size: int) -> list[tuple[Path, int]]:
        reports = [facts.directory / f"report.{suffix}" for suffix in formats]
        written = list(zip(reports, sizes, strict=True))
        return [*known[:1], *written, (facts.directory / "summary.json", summary_size), *after, *known[1:]]

    # Sizes are printed in a fixed width, so a page's size does not depend on them.
    none = ordered([0] * len(formats), 0)
    pages = {suffix: _page(suffix, facts, tree, sections, drawn) for suffix in formats}
    sizes = [len(page(none).encode()) for page in pages.values()]
    numbers = summarize(facts, tree, sections, time)
    summary_size, content = 0, ""
    while len(content.encode()) != summary_size or not content:  # its own size changes it by a digit at most
        summary_size = len(content.encode())
        found = with_files(numbers, ordered(sizes, summary_size))
        content = dump(found)
    files = ordered(sizes, summary_size)
    return {f"report.{suffix}": page(files) for suffix, page in pages.items()}, files, found


def _page(
    suffix: str, facts: Facts, tree: xr.DataTree | None, sections: list[Section], drawn: Figures
) -> Callable[[list[tuple[Path, int]]], str]:
    """What makes the page of a format when the files and their sizes are given."""
    from qdx.report import html, markdown, text

    if suffix == "txt":
        return partial(text.render, facts, tree, sections)

    def guarded(files: list[tuple[Path, int]]) -> str:
        try:
            return finish(files)
        except Exception as error:
            raise _PageError(suffix, error) from error

    try:
        if suffix == "html":
            finish = html.render(facts, tree, sections, drawn)
        else:
            finish = partial(markdown.render, facts, tree, sections, drawn)
    except Exception as error:
        raise _PageError(suffix, error) from error
    return guarded


def show(text: str) -> None:
    """Print, also where the terminal's encoding lacks a character."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), end="", flush=True)


class _Progress:
    """A bar on a terminal, on standard error so that the report can be piped; nothing in a log file."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if self._shown:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("measuring distances", total=None)
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
