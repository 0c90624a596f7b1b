"""The parts of the HTML page, each from the analyses and figures of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import PHASE_TITLES, View
from qdx.document.charts import MOST_LINES
from qdx.document.format import plural
from qdx.document.html import grid, more, own, preformatted, table_of
from qdx.document.svg import Table, escape
from qdx.report import tables
from qdx.report.figures import MOST_CONFIGS, Figures
from qdx.report.texts import Said, side_by_side
from qdx.verification.sections import RULE, is_verifier

DRAWN: Mapping[str, tuple[str, ...]] = {
    "crossing": ("crossing_",),
    "attribution": ("roc_", "rows_", "tokens_"),
}
MOST_TEXTS = 8  # references whose texts are shown
HOW_DISTANCES = (
    "Row: p; column: q. Content rows only: the snippet’s and those after the template. A brighter cell is a "
    "greater value."
)
HOW_POSITIONS = (
    "One drawing a pair of configs, one line a reference, content rows; those of a metric and phase share "
    "their axis. The grey band with a dashed edge is the noise floor: up to the greatest distance between "
    "two repeats of either config at that position, over references. A line inside it is no further than "
    "noise."
)
HOW_SIGNAL = (
    "n: a config’s noise floor, the mean over references of each one’s mean distance between repeats over "
    "content rows. The noise of a pair is √((n_a² + n_b²) / 2); signal to noise is the median over "
    "references of each one’s mean distance / noise, without unit. About 1: the pair is no further apart "
    "than its noise puts it. exact: both floors are 0, both configs repeat bit for bit and the pair differs; "
    "equal: as exact, and the distance is 0; floor 0, rows differ: both floors are 0, but rows of a config’s "
    "repeats differ in bits that the metric does not see, so there is no ratio."
)
HOW_STRIPS = (
    "One strip a config: its generated tokens (greedy, first repeat). Configs share a letter and a colour as "
    "long as all their tokens up to there are equal; a new letter begins where one parts from the others."
)
HOW_TEXTS = (
    "First repeat. Marked: the first word that differs from the first text (in the first text: where another "
    "first differs from it)."
)
HOW_REPEATS = (
    "A rerun is one reference in one repeat after the first; it is bit-equal when every captured row "
    "(template and content) has the hash of the first repeat’s. If none of n reruns mismatched, the mismatch "
    "rate is under 1 − 0.05^(1/n) at 95 % (reruns taken as independent)."
)


def configs(view: View, sections: Sequence[Section]) -> str:
    """What ran, its class, and the environment classes."""
    said = next((s.text.get("", "") for s in sections if s.name == "classes"), "")
    environment = f"<p>{escape(' '.join(said.split()))}</p>" if said else ""
    return table_of(tables.at_a_glance(view, sections)) + environment


def distances(view: View, sections: Sequence[Section], figures: Figures) -> str:
    """Matrices by phase and metric."""
    if len(view.configs) == 1:
        return "<p>One config: there is no distance to another one.</p>"
    if not view.metrics:
        return "<p>No metric was measured.</p>"
    pairs = next((s for s in sections if s.name == "pairs" and s.result.sizes.get("pair")), None)
    shipped = [s for s in sections if s.name in tables.SHIPPED]
    parts = [f"<p>{HOW_DISTANCES}</p>", *(_formula(view, m) for m in view.metrics)]
    for phase in view.phases:
        found, title = figures.heatmaps.get(phase, {}), PHASE_TITLES[phase]
        parts.append(f"<h3>{escape(title)}</h3>")
        parts.append(grid([h[0] for h in found.values()]) or "<p>Not measured.</p>")
        missing = [m for m in view.metrics if m not in found]
        if missing and found:
            parts.append(f"<p>Not measured here: {escape(', '.join(missing))}.</p>")
        single = [f for h in found.values() for f in h[1:]]
        if single:
            count = f"{len(single)} matri{'x' if len(single) == 1 else 'ces'}"
            parts.append(more(f"Single references, {title}: {count}", grid(single)))
            if len(view.configs) > MOST_CONFIGS and len(found) > 1:
                parts.append("<p>Single references of further metrics: sweep.nc /analysis/effects.</p>")
        if pairs is not None:
            parts.append(more(f"Pairs, {title}", table_of(tables.pairs(view, pairs, phase))))
        parts.append(_as_text(shipped, phase))
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


def _as_text(sections: Sequence[Section], phase: str) -> str:
    blocks = [s.text[phase] for s in sections if s.text.get(phase)]
    if not blocks:
        return ""
    said = "all analyses, as in report.txt" if phase else "as in report.txt"
    return more(f"{PHASE_TITLES.get(phase, sections[0].title)}: {said}", preformatted("\n".join(blocks)))


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
            parts.append(more(title, grid(drawn), opened=not i) if several else grid(drawn))
    return "".join(parts)


def signal(view: View, sections: Sequence[Section], figures: Figures) -> str:
    """Noise against signal."""
    section = next((s for s in sections if s.name == "snr"), None)
    if section is None or len(view.configs) == 1:
        return ""
    if not figures.signal:
        return f"<p>{escape(' '.join(section.text.get('', 'Not measured.').split()))}</p>"
    how = more("How signal to noise is computed", f"<p>{escape(HOW_SIGNAL)}</p>", "formula")
    return grid(figures.signal) + how + _as_text([section], "")


def strips(view: View, sections: Sequence[Section], figures: Figures) -> str:
    """Where free generations part."""
    if is_verifier(view.tree):
        return f"<p>{escape(RULE[:1].upper() + RULE[1:])}.</p>"
    if not figures.strips:
        return "<p>No free generation was recorded.</p>"
    text = _as_text([s for s in sections if s.name == "consistency"], "")
    rest = _further(len(view.references) - len(figures.strips))
    return f"<p>{HOW_STRIPS}</p>{grid(figures.strips)}{rest}{text}"


def _further(count: int) -> str:
    return f"<p>{escape(plural(count, 'further reference'))}: sweep.nc /output.</p>" if count > 0 else ""


def texts(view: View) -> str:
    """Generated texts side by side."""
    if view.outputs() is None:
        return ""
    parts = [f"<p>{HOW_TEXTS}</p>"]
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


def others(sections: Sequence[Section], figures: Figures) -> list[tuple[str, str, str]]:
    """Analyses that this page has no place for: anchor, title, their figures and their text."""
    found = []
    for i, section in enumerate(sections):
        if section.name in tables.SHIPPED and section.name not in figures.own:
            continue
        body = "".join(own(f) for f in figures.own.get(section.name, ()))
        if section.name not in tables.SHIPPED:
            text = "\n\n".join(t for t in section.text.values() if t)
            body += preformatted(text) if text else ""
        found.append((f"analysis-{i}", section.title, body))
    return found


def verification(sections: Sequence[Section], figures: Figures) -> list[tuple[str, str, str]]:
    """What a verifier's sweep says of its transcripts: anchor, title and body of each part."""
    made: dict[str, Callable[[xr.Dataset], list[Table]]] = {
        "verify": lambda result: [tables.claims(result)],
        "environment_validation": tables.validation,
        "crossing": tables.crossing,
        "attribution": tables.attribution,
    }
    by_name = {s.name: s for s in sections}
    found = []
    for name, make in made.items():
        if name in by_name:
            section = by_name[name]
            body = "".join(table_of(t) for t in make(section.result))
            body += grid([f for f in figures.verifying if f.name.startswith(DRAWN.get(name, ()))])
            found.append((name, section.title, body + more("In full", preformatted(section.text[""]))))
    return found


def repeats(view: View, sections: Sequence[Section]) -> str:
    """The reproducibility check."""
    section = next((s for s in sections if s.name == "noise_floor"), None)
    if section is None:
        return ""
    found = "".join(table_of(t) for t in tables.noise(view, section))
    return (
        found
        + more("How the bound is computed", f"<p>{HOW_REPEATS}</p>", "formula")
        + _as_text([section], "")
    )


def provenance(view: View) -> str:
    """Versions, machine and prompts."""
    return table_of(tables.environment(view)) + table_of(tables.prompts(view))
