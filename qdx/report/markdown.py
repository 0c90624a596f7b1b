"""The report as Markdown: the sections of the text report, with tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import PHASE_TITLES, View
from qdx.document.svg import CONTROL, Figure, Table
from qdx.report import tables
from qdx.report.figures import Figures
from qdx.report.front import verdict
from qdx.report.html import SIMULATED
from qdx.report.state import Facts, Files, next_command, report_command, resume_command, started_command
from qdx.report.text import generation, simulated_configs
from qdx.verification.sections import RULE, SECTIONS, is_verifier


def render(
    facts: Facts,
    tree: xr.DataTree | None,
    sections: Sequence[Section],
    figures: Figures,
    files: Files,
) -> str:
    """Compose ``report.md``."""
    view = View(tree) if tree is not None else None
    blocks = [f"# qdx report: {plain(facts.directory.name)}"]
    said = (
        verdict(view, sections)
        if view is not None
        else ["No run is finished: nothing was merged or analysed."]
    )
    blocks += [f"**{plain(said[0])}**", *_banners(facts, view)]
    blocks += ["\n".join(f"- {plain(s)}" for s in said[1:])]
    if view is not None:
        by_name = {s.name: s for s in sections}
        for name in SECTIONS:
            if name in by_name:
                blocks += [f"## {plain(by_name[name].title)}", fence(by_name[name].text.get("", ""))]
        blocks += ["## Environment", table(tables.environment(view))]
        blocks += ["## Configurations", table(tables.at_a_glance(view, sections))]
        blocks += ["## Prompts", table(tables.prompts(view, facts.stated))]
        if "noise_floor" in by_name:
            blocks += [
                "## Reproducibility check",
                *(table(t) for t in tables.noise(view, by_name["noise_floor"])),
            ]
        blocks += [
            "## Generation",
            plain(RULE) if is_verifier(view.tree) else fence(generation(view, facts.stated)),
        ]
        if figures.strips:
            blocks += [
                "## Token consistency",
                *(f"{plain(f.title)}\n\n{table(f.table)}" for f in figures.strips),
            ]
        elif "consistency" in by_name:
            blocks += ["## Token consistency", fence(by_name["consistency"].text.get("", ""))]
        for title, phases in (("Prefill effects", ("prefill",)), ("Decode effects", ("replay", "decode"))):
            found = [_phase(view, sections, figures, p) for p in phases if p in view.phases]
            if any(found):
                blocks += [f"## {title}", *found]
        if figures.signal:
            blocks += ["## Signal to noise", *(table(f.table, f.title) for f in figures.signal)]
        elif "snr" in by_name:
            blocks += ["## Signal to noise", fence(by_name["snr"].text.get("", ""))]
        for section in sections:
            if section.name not in tables.SHIPPED and any(section.text.values()):
                blocks += [
                    f"## {plain(section.title)}",
                    fence("\n\n".join(t for t in section.text.values() if t)),
                ]
    listed = "\n".join(f"{count}  {path}" for path, count in tables.files(facts, files).rows)
    blocks += ["## Results", fence(listed), *_commands(facts, view)]
    return "\n\n".join(b for b in blocks if b) + "\n"


def plain(text: object) -> str:
    """Text from anywhere as one line of Markdown in which nothing has a meaning."""
    line = " ".join(CONTROL.sub("\ufffd", str(text)).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", line)


def fence(text: str) -> str:
    """A block of text as it is, in more backticks than it has."""
    clean = CONTROL.sub("\ufffd", text)
    longest = max((len(run) for run in re.findall("`+", clean)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{clean}\n{ticks}" if text else ""


def table(of: Table, title: str = "") -> str:
    """A table with its caption above."""
    head = f"| {' | '.join(plain(h) for h in of.head)} |"
    rule = f"|{'|'.join('---' if i < of.left else '--:' for i in range(len(of.head)))}|"
    rows = [f"| {' | '.join(plain(c) for c in row)} |" for row in of.rows]
    return "\n".join([f"{plain(title or of.caption)}", "", head, rule, *rows])


def _phase(view: View, sections: Sequence[Section], figures: Figures, phase: str) -> str:
    blocks = [f"### {PHASE_TITLES[phase]}"]
    for metric, found in figures.heatmaps.get(phase, {}).items():
        blocks.append(f"{plain(metric)}: {fence_line(str(view.facts(metric).get('formula', '')))}")
        blocks += [_matrix(f) for f in found]
    for section in sections:
        if section.name == "classes" and section.text.get(phase):
            blocks.append(fence(section.text[phase]))
        elif section.name == "pairs" and section.result.sizes.get("pair"):
            blocks.append(table(tables.pairs(view, section, phase)))
        elif section.name not in tables.SHIPPED and section.text.get(phase):
            blocks.append(fence(section.text[phase]))
    return "\n\n".join(blocks) if len(blocks) > 1 else ""


def _matrix(figure: Figure) -> str:
    return f"{table(figure.table)}\n\n{plain(figure.note)}"


def fence_line(text: str) -> str:
    """A formula as code in a line."""
    return f"`{text.replace('`', chr(39))}`" if text else ""


def _banners(facts: Facts, view: View | None) -> list[str]:
    found = []
    simulated = simulated_configs(view) if view is not None else []
    if simulated:
        found.append(f"> **SIMULATED KERNELS** ({plain(', '.join(simulated))}): {SIMULATED}")
    if facts.failed or facts.missing:
        done = len(facts.labels) - len(facts.failed) - len(facts.missing)
        lines = [f"> **INCOMPLETE**: {done} of {len(facts.labels)} configs finished", ">"]
        lines += [f"> - failed: {plain(label)}: {plain(error)}" for label, error in facts.failed.items()]
        lines += [f"> - missing: {plain(label)}" for label in facts.missing]
        found.append("\n".join(lines))
    found += [f"> **{what}** {plain(name)}: {plain(error)}" for what, name, error in facts.problems()]
    return found


def _commands(facts: Facts, view: View | None) -> list[str]:
    blocks = []
    for said, command in (
        ("Started with:", started_command(facts)),
        ("Resume (finished configs are kept):", resume_command(facts)),
        ("Redo merge, analyses and report:", report_command(facts)),
    ):
        if command:
            blocks += [said, fence(command)]
    why, command = next_command(facts, view.configs) if view is not None else ("", "")
    if command:
        blocks += [plain(why), fence(command)]
    return blocks
