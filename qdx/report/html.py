"""The report as one HTML file that needs nothing else: no network, no other file, no script to be read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.document.format import plural
from qdx.document.html import command, section_of, table_of
from qdx.document.svg import escape, palette_css
from qdx.report import parts, tables
from qdx.report.figures import Figures
from qdx.report.front import verdict
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
    found = [part for part in found if part[2]]
    start = _head(facts) + _top(facts, view, sections, [*(part[:2] for part in found), LAST])
    body = start + "".join(section_of(*part) for part in found)
    end = section_of(*LAST, _commands(facts, view) + table_of(tables.files(facts, files)))
    return f"{body}{end}</main>\n</div>\n<script>{_script()}</script>\n</body>\n</html>\n"


def _script() -> str:
    return (HERE / "page.js").read_text(encoding="utf-8")


def _head(facts: Facts) -> str:
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    # The browser itself refuses every request and every script but this one, whatever a text in it says.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    style = palette_css() + (HERE / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>qdx report: {escape(facts.directory.name)}</title>\n<style>\n{style}</style>\n</head>\n"
    )


def _top(
    facts: Facts, view: View | None, sections: Sequence[Section], links: Sequence[tuple[str, str]]
) -> str:
    said = ["No run is finished: nothing was merged or analysed."]
    if view is not None:
        said = verdict(view, sections)
    items = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in links)
    more = "".join(f"<li>{escape(s)}</li>" for s in said[1:])
    return (
        '<body>\n<a class="skip" href="#main">Skip to the results</a>\n'
        f'<header><p class="brand">qdx report <span>{escape(facts.directory.name)}</span></p>'
        '<button id="theme" type="button" hidden>Dark colours</button></header>\n'
        f'<div class="frame">\n<nav aria-label="Sections"><ul>{items}</ul></nav>\n<main id="main">\n'
        f"<h1>{escape(said[0])}</h1>\n{_banners(facts, view)}"
        + (f'<ul class="facts">{more}</ul>\n' if more else "")
    )


def _banners(facts: Facts, view: View | None) -> str:
    found = []
    simulated = simulated_configs(view) if view is not None else []
    if simulated and view is not None:
        whose = "" if len(simulated) == len(view.configs) else f" ({', '.join(simulated)})"
        found.append(f"<strong>SIMULATED KERNELS{escape(whose)}</strong>: {SIMULATED}")
    if facts.failed or facts.missing:
        done = len(facts.labels) - len(facts.failed) - len(facts.missing)
        items = [f"failed: {label}: {error}" for label, error in facts.failed.items()]
        items += [f"missing: {label}" for label in facts.missing]
        rows = "".join(f"<li>{escape(i)}</li>" for i in items)
        again = f"<p>Resume:</p>{command(resume_command(facts))}" if resume_command(facts) else ""
        of = plural(len(facts.labels), "config")
        found.append(f"<strong>INCOMPLETE</strong>: {done} of {of} finished<ul>{rows}</ul>{again}")
    problems = facts.problems()
    for kind in dict.fromkeys(what for what, _, _ in problems):
        rows = "".join(f"<li>{escape(n)}: {escape(e)}</li>" for what, n, e in problems if what == kind)
        found.append(f"<strong>{kind}</strong><ul>{rows}</ul>")
    return "".join(f'<div class="banner">{text}</div>\n' for text in found)


def _commands(facts: Facts, view: View | None) -> str:
    said = [
        ("This sweep was started with:", started_command(facts)),
        ("Resume it (finished configs are kept):", resume_command(facts)),
        ("Redo merge, analyses and report:", report_command(facts)),
    ]
    if view is not None:
        said.append(next_command(facts, view.configs))
    return "".join(f"<p>{escape(why)}</p>{command(line)}" for why, line in said if line)
