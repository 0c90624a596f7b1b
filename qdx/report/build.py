"""From a sweep folder to ``sweep.nc``, the report in its formats and ``summary.json``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx import plugins
from qdx.errors import QdxError

if TYPE_CHECKING:
    import xarray as xr

    from qdx.analysis.section import Section
    from qdx.report.facts import Facts
    from qdx.report.figures import Figures

DEFAULT_METRICS = ("l2", "kl", "js", "top1")
DEFAULT_ANALYSES = ("noise_floor", "consistency", "effects", "classes", "pairs", "snr")
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
        Label of a job, or name of an analysis, to its error.
    missing : list of str
        Labels that left nothing.
    """

    text: str
    summary: Mapping[str, Any]
    paths: Mapping[str, Path]
    failed: Mapping[str, str]
    missing: list[str]


def build(
    directory: str | Path,
    *,
    metrics: Nodes | None = None,
    analyses: Nodes | None = None,
    formats: Sequence[str] | None = None,
    figures: Sequence[str] | bool | None = None,
    console: bool = True,
) -> Report:
    """Merge the finished runs of a sweep, measure, analyse and report.

    Parameters
    ----------
    directory : path
        A sweep folder.
    metrics, analyses : Mapping of name to config node, optional
        ``{"l2": {"_target_": "qdx.metrics.l2"}}``. Default: what ``sweep.json`` lists, else the shipped
        defaults.
    formats : sequence of "txt", "html", "md", optional
        Which files the report is written as. Default: what ``sweep.json`` lists, else txt and html.
    figures : sequence of str or bool, optional
        Names of the figures to save as ``figures/<name>.svg``; True: all. Default: what ``sweep.json`` lists,
        else none.
    console : bool
        Print the report, and progress while distances are measured.

    Returns
    -------
    Report

    Raises
    ------
    QdxError
        When the folder is no sweep's, runs cannot be merged, a metric breaks its contract, or a format is
        unknown. A failed or missing job is no error, nor is an analysis that raises or a figure that is not
        there: they are named at the top of the report.
    """
    from qdx.dataset import folder
    from qdx.report.facts import Facts

    directory = Path(directory)
    state = folder.scan(directory)
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
    plugins.add_folders(state.settings.get("plugin_folders", ()))
    measures = _built(metrics or state.settings.get("metrics"), "qdx.metrics", DEFAULT_METRICS)
    steps = _built(analyses or state.settings.get("analyses"), "qdx.analysis", DEFAULT_ANALYSES)
    part = directory / f"{folder.SWEEP}.part"
    part.unlink(missing_ok=True)
    try:
        sections, broken = _measure(directory, part, measures, steps, console)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    facts = Facts(directory, state.labels, state.missing, state.failed, broken, state.settings)
    from qdx.dataset.opening import open_file

    tree = open_file(target)
    try:
        runs = [path for _, path in sorted(state.runs.items(), key=lambda run: state.labels.index(run[0]))]
        return _write(facts, tree, sections, [target, *runs], wanted, console)
    finally:
        tree.close()


@dataclass(frozen=True)
class _Wanted:
    """What to write."""

    formats: Sequence[str]
    figures: Sequence[str] | bool

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], formats: Sequence[str] | None, figures: Sequence[str] | bool | None
    ) -> _Wanted:
        from qdx.schema import Report as Options

        stored = settings.get("report") or {}
        chosen = list(stored.get("formats", DEFAULT_FORMATS) if formats is None else formats)
        named = stored.get("figures", False) if figures is None else figures
        checked = Options(chosen, named if isinstance(named, bool) else list(named))
        return cls(checked.formats, checked.figures)


def _built(nodes: Nodes | None, package: str, names: Sequence[str]) -> dict[str, Any]:
    """Turn nodes into callables, before anything that takes time."""
    chosen = nodes or {name: {"_target_": f"{package}.{name}"} for name in names}
    return {name: plugins.build(node) for name, node in chosen.items()}


def _measure(
    directory: Path, part: Path, measures: dict[str, Any], steps: dict[str, Any], console: bool
) -> tuple[list[Section], dict[str, str]]:
    """Write the merged file with its distances and the results of the analyses."""
    from qdx import dataset
    from qdx.analysis import distances
    from qdx.dataset.opening import open_file

    dataset.merge(directory, part)
    with _Progress(console) as progress:
        distances.compute(directory, part, measures, progress=progress)
    sections: list[Section] = []
    broken: dict[str, str] = {}
    tree = open_file(part)
    try:
        for name, step in steps.items():
            try:
                sections.append(_held_to_contract(step(tree), sections))
            except Exception as error:  # one analysis must not take the others, and hours of runs, with it
                broken[name] = f"{type(error).__name__}: {error}"
                if not isinstance(error, QdxError):
                    traceback.print_exc()
    finally:
        tree.close()
    for section in sections:
        dataset.append(part, f"analysis/{section.name}", section.result)
    return sections, broken


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
    from qdx.report import figures
    from qdx.report.summary import dump, summarize, with_files
    from qdx.report.text import render

    drawn = figures.collect(View(tree), sections) if tree is not None else figures.Figures()
    saved: list[Path] = []
    lost = {f"figure {name}": error for name, error in drawn.errors.items()}
    try:
        saved = drawn.save(facts.directory / figures.FOLDER, wanted.figures)
    except QdxError as error:  # a wrong name must not cost the report of hours of runs
        lost["report.figures"] = str(error)
    facts = replace(facts, broken={**facts.broken, **lost})

    pages = _pages(facts, tree, sections, drawn, wanted.formats)
    reports = [facts.directory / f"report.{suffix}" for suffix in pages]
    summary = facts.directory / "summary.json"
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    known = [(path, path.stat().st_size) for path in inputs]
    after = [(path, path.stat().st_size) for path in saved]

    def ordered(sizes: Sequence[int], summary_size: int) -> list[tuple[Path, int]]:
        written = list(zip(reports, sizes, strict=True))
        return [*known[:1], *written, (summary, summary_size), *after, *known[1:]]

    # Sizes are printed in a fixed width, so a page's size does not depend on them.
    none = ordered([0] * len(reports), 0)
    sizes = [len(page(none).encode()) for page in pages.values()]
    numbers = summarize(facts, tree, sections, time)
    summary_size, content = 0, ""
    while len(content.encode()) != summary_size or not content:  # its own size changes it by a digit at most
        summary_size = len(content.encode())
        found = with_files(numbers, ordered(sizes, summary_size))
        content = dump(found)
    files = ordered(sizes, summary_size)
    finished = [(path, page(files)) for path, page in zip(reports, pages.values(), strict=True)]
    for path, written in (*finished, (summary, content)):
        part = path.with_name(path.name + ".part")
        part.write_text(written, encoding="utf-8", newline="\n")
        part.replace(path)
    text = render(facts, tree, sections, files)
    if console:
        show(text)
    paths = {path.name: path for path in (*reports, summary, *inputs[:1])}
    paths |= {f"{figures.FOLDER}/{path.name}": path for path in saved}
    return Report(text, found, paths, {**facts.failed, **facts.broken}, list(facts.missing))


def _pages(
    facts: Facts, tree: xr.DataTree | None, sections: list[Section], drawn: Figures, formats: Sequence[str]
) -> dict[str, Callable[[list[tuple[Path, int]]], str]]:
    """By format, what makes the page when the files and their sizes are given."""
    from qdx.report import html, markdown, text

    pages: dict[str, Callable[[list[tuple[Path, int]]], str]] = {}
    for name in formats:
        if name == "html":
            pages[name] = html.render(facts, tree, sections, drawn)
        elif name == "md":
            pages[name] = partial(markdown.render, facts, tree, sections, drawn)
        else:
            pages[name] = partial(text.render, facts, tree, sections)
    return pages


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
