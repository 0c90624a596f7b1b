"""The report as one HTML file that needs nothing else: no network, no other file, and no script to be read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr

from qdx.analysis.layout import plural
from qdx.analysis.section import Section
from qdx.analysis.view import PHASE_TITLES, View
from qdx.report import tables
from qdx.report.drawing import Figure, Table, escape, palette_css
from qdx.report.facts import Facts, next_command, report_command, resume_command
from qdx.report.figures import MOST_CONFIGS, Figures, Own
from qdx.report.text import simulated_configs
from qdx.report.texts import side_by_side
from qdx.report.verdict import verdict

Files = Sequence[tuple[Path, int]]
MOST_TEXTS = 8  # references whose texts are shown
HERE = Path(__file__).parent
SIMULATED = (
    "computed by numerical models of the GPU kernels on a CPU, not by the real kernels. Which configs differ, and how, is the "
    "models’ answer; check it on the GPU."
)
NOISE = (
    "n: a config’s noise floor, the mean distance between its repeats over content rows. The noise of a pair is √((n_a² + n_b²) / 2); "
    "signal to noise is the median over references of distance / noise, without unit. About 1: the pair is no further apart than "
    "its own noise puts it. exact: both floors are 0 and the pair differs; equal: both floors and the distance are 0."
)


def render(
    facts: Facts, tree: xr.DataTree | None, sections: Sequence[Section], figures: Figures
) -> Callable[[Files], str]:
    """Compose the page.

    Returns
    -------
    callable
        Takes the files and their sizes, which are known last, and returns the document. Its length in bytes does not depend
        on the sizes.
    """
    view = View(tree) if tree is not None else None
    parts: list[tuple[str, str, str]] = []  # id, title, body
    if view is not None:
        parts = [
            ("configs", "Configurations", _configs(view, sections)),
            ("distances", "Distances between configs", _distances(view, sections, figures)),
            ("positions", "Distance along positions", _positions(view, figures)),
            ("signal", "Noise against signal", _signal(view, sections, figures)),
            ("divergence", "Where free generations part", _strips(view, sections, figures)),
            ("texts", "Generated texts", _texts(view)),
            *_others(sections, figures),
            ("repeats", "Reproducibility check", _repeats(view, sections)),
            ("provenance", "Provenance", _table(tables.environment(view)) + _table(tables.prompts(view))),
        ]
    parts = [part for part in parts if part[2]]
    head = _head(facts, view, sections, [*parts, ("reproduce", "Reproduce", "")])
    body = "".join(_section(*part) for part in parts)
    commands = _commands(facts, view)

    def finish(files: Files) -> str:
        end = _section("reproduce", "Reproduce", commands + _table(tables.files(facts, files)))
        return f"{head}{body}{end}</main>\n</div>\n<script>{_script()}</script>\n</body>\n</html>\n"

    return finish


def _script() -> str:
    return (HERE / "page.js").read_text(encoding="utf-8")


def _head(
    facts: Facts, view: View | None, sections: Sequence[Section], parts: list[tuple[str, str, str]]
) -> str:
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    # The browser itself refuses every request and every script but this one, whatever a text in the page says.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    said = (
        verdict(view, sections)
        if view is not None
        else ["No run is finished: nothing was merged or analysed."]
    )
    style = palette_css() + (HERE / "page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{i}">{escape(title)}</a></li>' for i, title, _ in parts)
    more = "".join(f"<li>{escape(s)}</li>" for s in said[1:])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>qdx report: {escape(facts.directory.name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the results</a>\n'
        f'<header><p class="brand">qdx report <span>{escape(facts.directory.name)}</span></p>'
        '<button id="theme" type="button" hidden>Dark</button></header>\n'
        f'<div class="frame">\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main">\n'
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
        again = f"<p>Resume:</p>{_command(resume_command(facts))}" if resume_command(facts) else ""
        of = plural(len(facts.labels), "config")
        found.append(f"<strong>INCOMPLETE</strong>: {done} of {of} finished<ul>{rows}</ul>{again}")
    if facts.broken:
        rows = "".join(f"<li>{escape(name)}: {escape(error)}</li>" for name, error in facts.broken.items())
        found.append(f"<strong>ANALYSIS FAILED</strong><ul>{rows}</ul>")
    return "".join(f'<div class="banner">{text}</div>\n' for text in found)


def _section(anchor: str, title: str, body: str) -> str:
    return (
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(title)}</h2>\n{body}\n</section>\n'
    )


def _table(table: Table, *, caption: bool = True) -> str:
    head = "".join(
        f'<th scope="col"{"" if i < table.left else _NUMERIC}>{escape(h)}</th>'
        for i, h in enumerate(table.head)
    )
    rows = []
    for row in table.rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [
            f"<td{'' if i < table.left else _NUMERIC}>{escape(c)}</td>" for i, c in enumerate(row[1:], 1)
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    css = "" if caption else ' class="unseen"'
    return (
        f'<div class="scroll"><table><caption{css}><span>{escape(table.caption)}</span></caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


_NUMERIC = ' class="num"'


def _more(summary: str, body: str, css: str = "") -> str:
    return f"<details{f' class={chr(34)}{css}{chr(34)}' if css else ''}><summary>{escape(summary)}</summary>{body}</details>\n"


def _figure(figure: Figure) -> str:
    note = f"<span>{escape(figure.note)}</span>" if figure.note else ""
    return (
        f'<figure><figcaption><strong>{escape(figure.title)}</strong>{note}</figcaption><div class="scroll">{figure.inline()}</div>'
        f"{_more('Table of ' + figure.title, _table(figure.table, caption=False))}</figure>\n"
    )


def _figures(figures: Sequence[Figure]) -> str:
    return f'<div class="figures">{"".join(_figure(f) for f in figures)}</div>\n' if figures else ""


def _formula(view: View, metric: str) -> str:
    facts = view.facts(metric)
    unit = str(facts.get("units", "1"))
    rows = [
        ("Formula", str(facts.get("formula", "") or "not stated")),
        ("Meaning", str(facts.get("long_name", ""))),
        ("Unit", "no unit" if unit == "1" else unit),
        ("Direction", f"higher means {facts.get('higher_means', 'less alike')}"),
        ("p and q", "next-token distributions of the row’s and the column’s config at one position"),
    ]
    body = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows if v)
    return _more(f"How {metric} is computed", f"<dl>{body}</dl>", "formula")


def _as_text(sections: Sequence[Section], phase: str) -> str:
    blocks = [s.text[phase] for s in sections if s.text.get(phase)]
    if not blocks:
        return ""
    said = "all analyses, as in report.txt" if phase else "as in report.txt"
    return _more(
        f"{PHASE_TITLES.get(phase, sections[0].title)}: {said}",
        f'<pre class="scroll">{escape(chr(10).join(blocks))}</pre>',
    )


def _configs(view: View, sections: Sequence[Section]) -> str:
    head = next((s.text.get("", "") for s in sections if s.name == "classes"), "")
    return _table(tables.at_a_glance(view, sections)) + (
        f"<p>{escape(' '.join(head.split()))}</p>" if head else ""
    )


def _distances(view: View, sections: Sequence[Section], figures: Figures) -> str:
    if len(view.configs) == 1:
        return "<p>One config: there is no distance to another one.</p>"
    if not view.metrics:
        return "<p>No metric was measured.</p>"
    parts = [
        "<p>Row: p; column: q. Content rows only: the snippet’s and those after the template. A brighter cell is a greater value.</p>"
    ]
    pairs = next((s for s in sections if s.name == "pairs" and s.result.sizes.get("pair")), None)
    for phase in view.phases:
        found = figures.heatmaps.get(phase, {})
        parts.append(f"<h3>{escape(PHASE_TITLES[phase])}</h3>")
        parts.append(_figures([h[0] for h in found.values()]) or "<p>Not measured.</p>")
        missing = [m for m in view.metrics if m not in found]
        if missing and found:
            parts.append(f"<p>Not measured here: {escape(', '.join(missing))}.</p>")
        parts.append("".join(_formula(view, m) for m in found) if phase == view.phases[0] else "")
        single = [f for h in found.values() for f in h[1:]]
        if single:
            parts.append(
                _more(
                    f"Single references, {PHASE_TITLES[phase]}: {plural(len(single), 'matrix').replace('matrixs', 'matrices')}",
                    _figures(single),
                )
            )
            if len(view.configs) > MOST_CONFIGS:
                parts.append("<p>Single references of further metrics: sweep.nc /analysis/effects.</p>")
        if pairs is not None:
            parts.append(_more(f"Pairs, {PHASE_TITLES[phase]}", _table(tables.pairs(view, pairs, phase))))
        parts.append(_as_text([s for s in sections if s.name in tables.SHIPPED], phase))
    return "".join(parts)


def _positions(view: View, figures: Figures) -> str:
    parts = [
        f"<h3>{escape(PHASE_TITLES[p])}</h3>{_figures(found)}"
        for p, found in figures.positions.items()
        if found
    ]
    if not parts:
        return ""
    count = len(view.configs) * (len(view.configs) - 1) // 2
    shown = max(len(f) for f in figures.positions.values())
    some = (
        f" Drawn: the nearest pair of every type, then the nearest; {shown} of {count}."
        if shown < count
        else ""
    )
    how = (
        "One drawing a pair of configs, one line a reference, content rows. The grey band with a dashed edge is the noise floor: from 0 to the greatest "
        "distance between two repeats of either config at that position, over references. A line inside it is no further than noise."
    )
    return f"<p>{how}{some}</p>" + "".join(parts)


def _signal(view: View, sections: Sequence[Section], figures: Figures) -> str:
    section = next((s for s in sections if s.name == "snr"), None)
    if section is None or len(view.configs) == 1:
        return ""
    if not figures.signal:
        return f"<p>{escape(' '.join(section.text.get('', 'Not measured.').split()))}</p>"
    how = _more("How signal to noise is computed", f"<p>{escape(NOISE)}</p>", "formula")
    return _figures(figures.signal) + how + _as_text([section], "")


def _strips(view: View, sections: Sequence[Section], figures: Figures) -> str:
    if not figures.strips:
        return "<p>No free generation was recorded.</p>"
    how = (
        "One strip a config: its generated tokens (greedy, first repeat). Configs share a letter and a colour as long as all their tokens up to "
        "there are equal; a new letter begins where one parts from the others."
    )
    rest = len(view.references) - len(figures.strips)
    more = f"<p>{escape(plural(rest, 'further reference'))}: sweep.nc /output.</p>" if rest > 0 else ""
    return (
        f"<p>{how}</p>"
        + _figures(figures.strips)
        + more
        + _as_text([s for s in sections if s.name == "consistency"], "")
    )


def _texts(view: View) -> str:
    if view.outputs() is None:
        return ""
    parts = [
        "<p>First repeat. Marked: the first word that differs from the first text (in the first text: from its nearest other).</p>"
    ]
    for r, reference in enumerate(view.references[:MOST_TEXTS]):
        cards = []
        found = side_by_side(view, r)
        for said in found:
            split = (
                f"differs from output token {said.token} on"
                if said.token >= 0
                else "first text"
                if len(found) > 1
                else "equal in all configs"
            )
            mark = (
                f'<mark><span class="unseen">[first difference] </span>{escape(said.mark)}</mark>'
                if said.mark
                else ""
            )
            if not said.mark and len(found) > 1:
                mark = "<mark>[ends here]</mark>"
            words = f"<span>{escape(said.same)}</span>{mark}{escape(said.rest)}"
            empty = "" if said.same or said.mark else "<p>(no visible text)</p>"
            cards.append(
                f'<article><h4>{escape(", ".join(said.configs))}</h4><p class="how">{split}</p>{empty}<p class="said" dir="auto">{words}</p></article>'
            )
        parts.append(f'<h3>{escape(reference)}</h3><div class="texts">{"".join(cards)}</div>')
    rest = len(view.references) - MOST_TEXTS
    return "".join(parts) + (
        f"<p>{escape(plural(rest, 'further reference'))}: sweep.nc /output.</p>" if rest > 0 else ""
    )


def _others(sections: Sequence[Section], figures: Figures) -> list[tuple[str, str, str]]:
    """Analyses that this page has no place for: their figures and their text."""
    found = []
    for i, section in enumerate(sections):
        if section.name in tables.SHIPPED and section.name not in figures.own:
            continue
        body = "".join(_own(f) for f in figures.own.get(section.name, ()))
        if section.name not in tables.SHIPPED:
            text = "\n\n".join(t for t in section.text.values() if t)
            body += f'<pre class="scroll">{escape(text)}</pre>' if text else ""
        found.append((f"analysis-{i}", section.title, body))
    return found


def _own(figure: Own) -> str:
    return f'<figure><figcaption><strong>{escape(figure.title)}</strong></figcaption><div class="scroll"><img src="{figure.source()}" alt="{escape(figure.title)}: the numbers are in the text below and in sweep.nc"></div></figure>\n'


def _repeats(view: View, sections: Sequence[Section]) -> str:
    section = next((s for s in sections if s.name == "noise_floor"), None)
    if section is None:
        return ""
    how = (
        "A rerun is one reference in one repeat after the first; it is bit-equal when every captured row (template and content) has the hash of the first "
        "repeat’s. If none of n reruns mismatched, the mismatch rate is under 1 − 0.05^(1/n) at 95 % (reruns taken as independent)."
    )
    found = "".join(_table(t) for t in tables.noise(view, section))
    return found + _more("How the bound is computed", f"<p>{how}</p>", "formula") + _as_text([section], "")


def _command(command: str) -> str:
    return f'<pre class="scroll command"><code>{escape(command)}</code></pre>'


def _commands(facts: Facts, view: View | None) -> str:
    parts = []
    line = str(facts.settings.get("command_line", ""))
    if line:
        parts.append(f"<p>This sweep was started with:</p>{_command(line)}")
    if resume_command(facts):
        parts.append(f"<p>Resume it (finished configs are kept):</p>{_command(resume_command(facts))}")
    parts.append(f"<p>Redo merge, analyses and report:</p>{_command(report_command(facts))}")
    why, command = next_command(facts, view.configs) if view is not None else ("", "")
    if command:
        parts.append(f"<p>Next command for the verifier machine: {escape(why)}</p>{_command(command)}")
    return "".join(parts)
