"""The parts of the HTML page, each from the analyses and figures of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qdx.analysis.section import Section
from qdx.analysis.view import PHASE_TITLES, View
from qdx.document.blocks import Block
from qdx.document.charts import MOST_LINES
from qdx.document.format import plural
from qdx.document.html import grid, more, render, table_of
from qdx.document.plain import escape
from qdx.report import tables
from qdx.report.figures import Figures
from qdx.report.sweep_charts import MOST_CONFIGS
from qdx.report.texts import Said, side_by_side
from qdx.verification.sections import RULE, TEXT_STATED, is_verifier

DRAWN: Mapping[str, tuple[str, ...]] = {
    "crossing": ("crossing_",),
    "attribution": ("roc_", "rows_", "tokens_"),
}
VERIFIED = ("verify", "environment_validation", "crossing", "attribution")  # the verdict first
MOST_TEXTS = 8  # references whose texts are shown
HOW_DISTANCES = (
    "Row: p; column: q. Content rows only: the snippet’s and those after the template. A brighter cell is a "
    "greater value."
)
HOW_POSITIONS = (
    "One drawing a pair of configs, one line a reference, content rows; those of a metric and phase share "
    "their axis. The grey band with a dashed edge is the noise floor: up to the greatest distance between "
    "two repeats of either config at that position, over references. A line inside it is no further than "
    "noise. Over a line the pointer reads its values; with Shift the wheel zooms in, dragging moves, and a "
    "double click shows all again."
)
HOW_STRIPS = (
    "One strip a config: its generated tokens (greedy, first repeat). Configs share a letter and a colour as "
    "long as all their tokens up to there are equal; a new letter begins where one parts from the others."
)
HOW_TEXTS = (
    "First repeat. Marked: the first word that differs from the first text (in the first text: where another "
    "first differs from it)."
)


def configs(view: View, sections: Sequence[Section]) -> str:
    """Say what ran, and its class."""
    return table_of(tables.at_a_glance(view, sections))


def distances(view: View, sections: Sequence[Section], figures: Figures) -> str:
    """Matrices by phase and metric."""
    if len(view.configs) == 1:
        classes = [s for s in sections if s.name == "classes"]
        return "<p>One config: there is no distance to another one.</p>" + _by_phase(view, classes)
    if not view.metrics:
        return "<p>No metric was measured.</p>" + _by_phase(view, sections)
    effects = [s for s in sections if s.name == "effects"]
    others = [s for s in sections if s.name in ("classes", "pairs")]
    parts = [f"<p>{HOW_DISTANCES}</p>", *(_formula(view, m) for m in view.metrics)]
    for phase in view.phases:
        found, title = figures.heatmaps.get(phase, {}), PHASE_TITLES[phase]
        parts.append(f"<h3>{escape(title)}</h3>")
        parts.append(grid([h[0] for h in found.values()], figures.drawn) or "<p>Not measured.</p>")
        missing = [m for m in view.metrics if m not in found]
        if missing and found:
            parts.append(f"<p>Not measured here: {escape(', '.join(missing))}.</p>")
        single = [f for h in found.values() for f in h[1:]]
        if single:
            count = f"{len(single)} matri{'x' if len(single) == 1 else 'ces'}"
            parts.append(more(f"Single references, {title}: {count}", grid(single, figures.drawn)))
            if len(view.configs) > MOST_CONFIGS and len(found) > 1:
                parts.append("<p>Single references of further metrics: sweep.nc /analysis/effects.</p>")
        tabled = "".join(render(section.of_phase(phase)) for section in effects)
        parts.append(more(f"The same as tables, {title}", tabled) if tabled else "")
        parts.append("".join(_with_title(section, section.of_phase(phase)) for section in others))
    return "".join(parts)


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
    return more(f"How {metric} is computed", f"<dl>{body}</dl>", "formula")


def _with_title(section: Section, blocks: Sequence[Block]) -> str:
    return f"<h4>{escape(section.title)}</h4>{render(blocks)}" if blocks else ""


def _by_phase(view: View, sections: Sequence[Section]) -> str:
    """Say what the analyses of a phase say, without drawings."""
    found = []
    for phase in view.phases:
        said = [_with_title(s, s.of_phase(phase)) for s in sections if s.name in tables.DRAWN_WITH_PHASES]
        found += [f"<h3>{escape(PHASE_TITLES[phase])}</h3>", *said] if any(said) else []
    return "".join(found)


def positions(view: View, figures: Figures) -> str:
    """Distance along positions, by phase."""
    found = {phase: drawn for phase, drawn in figures.positions.items() if drawn}
    if not found:
        return ""
    count = len(view.configs) * (len(view.configs) - 1) // 2
    shown = max(len(drawn) for metrics in found.values() for drawn in metrics.values())
    said = HOW_POSITIONS
    if shown < count:
        said += f" Drawn: the nearest pair of every type, then the nearest; {shown} of {count}."
    if len(view.references) > MOST_LINES:
        said += (
            f" Lines: the first {MOST_LINES} of {len(view.references)} references, as many as can be told "
            f"apart; means and the noise floor are over all, and every row is in sweep.nc /metrics."
        )
    parts = [f"<p>{escape(said)}</p>"]
    for phase, metrics in found.items():
        parts.append(f"<h3>{escape(PHASE_TITLES[phase])}</h3>")
        several = len(metrics) > 1
        for i, (metric, drawn) in enumerate(metrics.items()):
            title = f"{metric}, {PHASE_TITLES[phase]}: {plural(len(drawn), 'pair')}"
            parts.append(
                more(title, grid(drawn, figures.drawn), opened=not i)
                if several
                else grid(drawn, figures.drawn)
            )
    return "".join(parts)


def signal(view: View, sections: Sequence[Section], figures: Figures) -> str:
    """Noise against signal."""
    section = next((s for s in sections if s.name == "snr"), None)
    if section is None or len(view.configs) == 1:
        return ""
    return grid(figures.signal, figures.drawn) + render(section.content)


def strips(view: View, sections: Sequence[Section], figures: Figures) -> str:
    """Say where free generations part."""
    if is_verifier(view.tree):
        return f"<p>{escape(RULE[:1].upper() + RULE[1:])}.</p>"
    if not figures.strips:
        return "<p>No free generation was recorded.</p>"
    text = "".join(render(s.content) for s in sections if s.name == "consistency")
    rest = _further(len(view.references) - len(figures.strips))
    return f"<p>{HOW_STRIPS}</p>{grid(figures.strips, figures.drawn)}{rest}{text}"


def _further(count: int) -> str:
    return f"<p>{escape(plural(count, 'further reference'))}: sweep.nc /output.</p>" if count > 0 else ""


def texts(view: View, stated: bool = False) -> str:
    """Generated texts side by side."""
    if view.outputs() is None:
        return ""
    also = f" {TEXT_STATED[0].upper()}{TEXT_STATED[1:]}." if stated else ""
    parts = [f"<p>{HOW_TEXTS}{also}</p>"]
    for r, reference in enumerate(view.references[:MOST_TEXTS]):
        found = side_by_side(view, r)
        cards = "".join(_card(said, len(found) > 1) for said in found)
        parts.append(f'<h3>{escape(reference)}</h3><div class="texts">{cards}</div>')
    return "".join(parts) + _further(len(view.references) - MOST_TEXTS)


def _card(said: Said, several: bool) -> str:
    if said.token >= 0:
        where = f"differs from output token {said.token} on"
    else:
        where = "first text" if several else "equal in all configs"
    mark = ""
    if several:
        # A text that only ends earlier than the others has no word to mark.
        word = escape(said.mark) or "[ends here]"
        mark = f'<mark><span class="unseen">[first difference] </span>{word}</mark>'
    words = f"<span>{escape(said.same)}</span>{mark}{escape(said.rest)}"
    if not (said.same or mark or said.rest):
        words = "(no visible text)"
    return (
        f'<article><h4>{escape(", ".join(said.configs))}</h4><p class="how">{where}</p>'
        f'<p class="said" dir="auto">{words}</p></article>'
    )


def others(view: View, sections: Sequence[Section], figures: Figures) -> list[tuple[str, str, str]]:
    """Analyses that this page has no place for: anchor, title, and what they say."""
    found = []
    for i, section in enumerate(sections):
        drawn, body = figures.of_section(section.name), ""
        if section.name not in tables.SHIPPED:
            body = render(section.of_phase(""), drawn)
            for phase in view.phases:
                blocks = section.of_phase(phase)
                body += f"<h3>{escape(PHASE_TITLES[phase])}</h3>{render(blocks, drawn)}" if blocks else ""
        if body:
            found.append((f"analysis-{i}", section.title, body))
    return found


def verification(sections: Sequence[Section], figures: Figures) -> list[tuple[str, str, str]]:
    """Say what a verifier's sweep says of its transcripts: anchor, title and body of each part."""
    by_name = {section.name: section for section in sections}
    found = []
    for name in VERIFIED:
        if name in by_name:
            section = by_name[name]
            shown = [f for f in figures.verifying if f.name.startswith(DRAWN.get(name, ()))]
            found.append((name, section.title, grid(shown, figures.drawn) + render(section.content)))
    return found


def repeats(sections: Sequence[Section]) -> str:
    """The reproducibility check."""
    return "".join(render(s.content) for s in sections if s.name == "noise_floor")


def provenance(view: View, stated: bool = False) -> str:
    """Versions, machine and prompts."""
    return table_of(tables.environment(view)) + table_of(tables.prompts(view, stated))
