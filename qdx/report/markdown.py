"""The report as Markdown: the sections of the text report, with tables."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import PHASE_TITLES, View
from qdx.document.markdown import fence, plain, table
from qdx.document.markdown import render as rendered
from qdx.report import tables
from qdx.report.front import verdict
from qdx.report.html import SIMULATED
from qdx.report.state import Facts, Files, next_command, report_command, resume_command, started_command
from qdx.report.text import generation, simulated_configs
from qdx.verification.sections import RULE, SECTIONS, is_verifier


def render(
    facts: Facts,
    tree: xr.DataTree | None,
    sections: Sequence[Section],
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
                blocks += [f"## {plain(by_name[name].title)}", rendered(by_name[name].content)]
        blocks += ["## Environment", table(tables.environment(view))]
        blocks += ["## Configurations", table(tables.at_a_glance(view, sections))]
        blocks += ["## Prompts", table(tables.prompts(view, facts.stated))]
        own = [s for s in sections if s.name not in SECTIONS]
        front = [[f"## {plain(s.title)}", rendered(s.of_phase(""))] for s in own if s.place == "front"]
        generated = plain(RULE) if is_verifier(view.tree) else fence(generation(view, facts.stated))
        front.insert(min(len(front), 1), ["## Generation", generated])
        blocks += [block for part in front for block in part]
        for title, phases in (("Prefill effects", ("prefill",)), ("Decode effects", ("replay", "decode"))):
            found = [_phase(sections, p) for p in phases if p in view.phases]
            if any(found):
                blocks += [f"## {title}", *found]
        for section in own:
            if section.place != "front" and section.of_phase(""):
                blocks += [f"## {plain(section.title)}", rendered(section.of_phase(""))]
    blocks += ["## Results", table(tables.files(facts, files)), *_commands(facts, view)]
    return "\n\n".join(b for b in blocks if b) + "\n"


def _phase(sections: Sequence[Section], phase: str) -> str:
    blocks = [block for section in sections for block in section.of_phase(phase)]
    return f"### {PHASE_TITLES[phase]}\n\n{rendered(blocks)}" if blocks else ""


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
