"""The report as one HTML file that needs nothing else: no network and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.document.format import plural
from qdx.document.html import Banner, Part, command, page, table_of
from qdx.document.plain import escape
from qdx.errors import QdxError
from qdx.report import parts, tables
from qdx.report.figures import Figures
from qdx.report.front import verdict
from qdx.report.runtime import load
from qdx.report.state import Facts, Files, next_command, report_command, resume_command, started_command
from qdx.report.text import simulated_configs

HERE = Path(__file__).parent
LAST = ("reproduce", "Reproduce")
SIMULATED = (
    "computed by numerical models of the GPU kernels on a CPU, not by the real kernels. Which configs "
    "differ, and how, is the models’ answer; check it on the GPU."
)


def render(
    facts: Facts, tree: xr.DataTree | None, sections: Sequence[Section], figures: Figures, files: Files
) -> str:
    """Compose the page.

    Parameters
    ----------
    facts : Facts
    tree : xarray.DataTree or None
        The merged sweep; None when no run is finished.
    sections : sequence of Section
    figures : Figures
        Of the same sweep.
    files : Files
        What its last section lists.
    """
    view = View(tree) if tree is not None else None
    script, lacking = _runtime(figures)
    if not script:
        figures = figures.without_runtime()
    found: list[tuple[str, str, str]] = []  # anchor, title, body
    if view is not None:
        found = [
            *parts.verification(sections, figures),
            ("configs", "Configurations", parts.configs(view, sections)),
            ("distances", "Distances between configs", parts.distances(view, sections, figures)),
            ("positions", "Distance along positions", parts.positions(view, figures)),
            ("signal", "Noise against signal", parts.signal(view, sections, figures)),
            ("divergence", "Where free generations part", parts.strips(view, sections, figures)),
            ("texts", "Generated texts", parts.texts(view, facts.stated)),
            *parts.others(view, sections, figures),
            ("repeats", "Reproducibility check", parts.repeats(sections)),
            ("provenance", "Provenance", parts.provenance(view, facts.stated)),
        ]
    found.append((*LAST, _commands(facts, view) + table_of(tables.files(facts, files))))
    said = ["No run is finished: nothing was merged or analysed."]
    if view is not None:
        said = verdict(view, sections)
    return page(
        facts.directory.name,
        said[0],
        [*said[1:], *lacking],
        _banners(facts, view),
        [Part(*part) for part in found if part[2]],
        (HERE / "page.css").read_text(encoding="utf-8"),
        (HERE / "page.js").read_text(encoding="utf-8"),
        script,
    )


def _runtime(figures: Figures) -> tuple[str, list[str]]:
    """Return the JavaScript that draws the charts, and what is said where it is not there."""
    if not figures.need_runtime:
        return "", []
    try:
        return load(), []
    except QdxError as error:
        return "", [f"Tables without charts: {error}."]


def _banners(facts: Facts, view: View | None) -> list[Banner]:
    found = []
    simulated = simulated_configs(view) if view is not None else []
    if simulated and view is not None:
        whose = "" if len(simulated) == len(view.configs) else f" ({', '.join(simulated)})"
        found.append(Banner(f"SIMULATED KERNELS{whose}", SIMULATED))
    if facts.failed or facts.missing:
        done = len(facts.labels) - len(facts.failed) - len(facts.missing)
        rows = [f"failed: {label}: {error}" for label, error in facts.failed.items()]
        rows += [f"missing: {label}" for label in facts.missing]
        finished = f"{done} of {plural(len(facts.labels), 'config')} finished"
        found.append(Banner("INCOMPLETE", finished, rows, resume_command(facts)))
    problems = facts.problems()
    for kind in dict.fromkeys(what for what, _, _ in problems):
        rows = [f"{name}: {error}" for what, name, error in problems if what == kind]
        found.append(Banner(kind, rows=rows))
    return found


def _commands(facts: Facts, view: View | None) -> str:
    said = [
        ("This sweep was started with:", started_command(facts)),
        ("Resume it (finished configs are kept):", resume_command(facts)),
        ("Redo merge, analyses and report:", report_command(facts)),
    ]
    if view is not None:
        said.append(next_command(facts, view.configs))
    return "".join(f"<p>{escape(why)}</p>{command(line)}" for why, line in said if line)
