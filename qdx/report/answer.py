"""Print the answer of a sweep on one screen when it ends. ``report.txt`` has everything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import PHASE_TITLES, View
from qdx.document.blocks import Cell, Matrix, Table
from qdx.document.format import plural, probability
from qdx.document.text import render, wrap
from qdx.errors import printable
from qdx.kernel_names import another_kernel
from qdx.report.front import verdict
from qdx.report.state import Facts, Files, next_command, resume_command, size
from qdx.report.sweep_charts import pair_signals, unit_of
from qdx.report.text import simulated_configs
from qdx.statistics import mean_of_references

MOST_LINES = 40
MOST_CONFIGS = 8  # in the matrix; of more, the nearest pairs are listed
MOST_ROWS = 8  # of a table
MOST_PROBLEMS, MOST_OF_PROBLEM = 5, 4  # lines of one of them
MOST_LEAD = 5  # lines
SIMULATED = "SIMULATED KERNELS: models of them on a CPU, not the real ones; check the answer on the GPU."


def answer(facts: Facts, tree: xr.DataTree | None, sections: Sequence[Section], files: Files) -> str:
    """Compose what the terminal shows.

    Parameters
    ----------
    facts : Facts
    tree : xarray.DataTree or None
        The merged sweep; None when no run is finished.
    sections : sequence of Section
    files : Files
        What was written.

    Returns
    -------
    str
        At most `MOST_LINES` lines of at most 110 columns, except paths and commands, which are not cut so
        that they can be copied.
    """
    view = View(tree) if tree is not None else None
    # The formats of the report are chosen: the page that is named must be one that was written.
    pages = [path.name for path, _ in files if path.name.startswith("report.")]
    whole = next(iter(pages), "summary.json")
    parts = [_lead(view, sections, whole), _problems(facts, whole)]
    end = _end(facts, view, files)
    room = MOST_LINES - len(end) - 1 - sum(len(part) + 1 for part in parts if part)
    judged = next((s for s in sections if s.name == "verify"), None)
    if judged is not None:
        parts.append(_claims(judged, room, whole))
    elif view is not None:
        for block in (_configs(view, sections, whole), _matrix(view), _pairs(view, sections, whole)):
            # A matrix of which rows are missing would mislead: it is shown whole or not at all.
            lines = _fitting(block, room - 1, whole)
            parts.append(lines)
            room -= len(lines) + 1 if lines else 0
    parts.append(end)
    return printable("\n\n".join("\n".join(part) for part in parts if part) + "\n")


def _fitting(block: Table | Matrix | None, room: int, whole: str) -> list[str]:
    """The lines of a block, of a table as many rows as fit; none where that would be less than two."""
    if block is None:
        return []
    lines = render([block], indent="").split("\n")
    if len(lines) <= room or isinstance(block, Matrix):
        return lines if len(lines) <= room else []
    return [*lines[: room - 1], f"  … the rest: {whole}"] if room >= 5 else []


def _lead(view: View | None, sections: Sequence[Section], whole: str) -> list[str]:
    """One sentence of verdict."""
    if view is None:
        return ["No run is finished: nothing was merged or analysed."]
    lines = _wrapped(verdict(view, sections)[0])
    lines = lines if len(lines) <= MOST_LEAD else [*lines[: MOST_LEAD - 1], f"… the rest: {whole}"]
    simulated = simulated_configs(view)
    if len(simulated) == len(view.configs):
        lines.append(SIMULATED)
    elif simulated:
        lines.append(f"{SIMULATED[:-1]} ({len(simulated)} of {len(view.configs)} configs).")
    return lines


def _problems(facts: Facts, whole: str) -> list[str]:
    """Say what failed or is missing."""
    found = [f"failed   {label}: {error}" for label, error in facts.failed.items()]
    found += [f"missing  {label}" for label in facts.missing]
    found += [f"{kind}  {name}: {error}" for kind, name, error in facts.problems()]
    if not found:
        return []
    lines = []
    if facts.failed or facts.missing:
        done = len(facts.labels) - len(facts.failed) - len(facts.missing)
        lines.append(f"INCOMPLETE: {done} of {plural(len(facts.labels), 'config')} finished")
    for line in found[:MOST_PROBLEMS]:
        told = wrap(" ".join(line.splitlines()), "  ", "    ").split("\n")
        whole_told = len(told) <= MOST_OF_PROBLEM
        lines += told if whole_told else [*told[: MOST_OF_PROBLEM - 1], f"    … the rest: {whole}"]
    more = len(found) - MOST_PROBLEMS
    return [*lines, *([f"  … {more:,} further: {whole}"] if more > 0 else [])]


def _configs(view: View, sections: Sequence[Section], whole: str) -> Table:
    """Every config with its kernel, its class and whether it repeats."""
    result = next((s.result for s in sections if s.name == "classes"), None)
    requested, observed = view.of_config("requested_kernel"), view.of_config("observed_kernel")
    rows = []
    for c, name in enumerate(view.names):
        kernel = observed[c] + (" (≠ requested)" if another_kernel(requested[c], observed[c]) else "")
        row = [name, view.of_config("format")[c], kernel]
        if result is not None:
            row.append(_by_phase([str(int(v) + 1) for v in result["class_id"].values[:, c]], view.phases))
            row.append(_by_phase([_REPEATS[str(v)] for v in result["repeats"].values[:, c]], view.phases))
        rows.append(row)
    head = ["config", "format", "kernel", *(["class", "repeats bit for bit"] if result is not None else [])]
    more = len(rows) - MOST_ROWS
    note = f"… {plural(more, 'more config')}: {whole}" if more > 0 else ""
    caption = "Configs; those of one class are bit-equal in every shared row of the phase"
    return Table(caption, head, rows[:MOST_ROWS], len(head), note)


_REPEATS = {"repeats": "yes", "does not repeat": "no", "not rerun": "not rerun"}


def _by_phase(values: Sequence[str], phases: Sequence[str]) -> str:
    """One word where all phases have the same one."""
    words: dict[str, list[str]] = {}
    for phase, value in zip(phases, values, strict=True):
        words.setdefault(value, []).append(phase)
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(f"{value} in {' and '.join(where)}" for value, where in words.items())


def _metric(view: View) -> tuple[str, str]:
    """The first metric and the phase that are shown."""
    phase = next((p for p in ("replay", "prefill", "decode") if p in view.phases), "")
    return next((m for m in view.metrics if view.is_distance(m)), next(iter(view.metrics), "")), phase


def _matrix(view: View) -> Matrix | None:
    """The distances of the first metric in replay."""
    metric, phase = _metric(view)
    means = view.reference_means(metric, phase) if metric else {}
    if not 2 <= len(view.configs) <= MOST_CONFIGS or not means:
        return None
    mean, _ = mean_of_references(means["content"][0])
    caption = f"{_of(view, metric)} in {PHASE_TITLES[phase]}, mean over references of each one's mean"
    return Matrix(caption, view.names, mean)


def _of(view: View, metric: str) -> str:
    unit = unit_of(view, metric).strip()
    return f"{metric} [{unit}]" if unit else metric


def _pairs(view: View, sections: Sequence[Section], whole: str) -> Table | None:
    """Pairs against noise, nearest first."""
    snr = next((s for s in sections if s.name == "snr"), None)
    metric, phase = _metric(view)
    if snr is None or "ratio" not in snr.result or phase not in snr.result["phase"].values:
        return None
    if metric not in snr.result["metric"].values:
        return None
    pairs = pair_signals(view, snr.result.sel(metric=metric, phase=phase), metric, phase)
    rows: list[list[Cell]] = [
        [f"{view.names[p.a]} ~ {view.names[p.b]}", p.kind, p.distance, p.noise, p.ratio]
        for p in pairs[:MOST_ROWS]
    ]
    if not rows:
        return None
    caption = (
        f"Pairs by {_of(view, metric)} in {phase}, nearest first (median over references), against the noise "
        "floors of both"
    )
    head = ["pair", "type", "distance", "noise", "signal / noise"]
    more = len(pairs) - len(rows)
    note = f"… {plural(more, 'more pair')}: {whole}" if more > 0 else ""
    return Table(caption, head, rows, 2, note)


def _claims(section: Section, room: int, whole: str) -> list[str]:
    """Every claim's verdict in words, with its evidence, p and what it assumes."""
    result = section.result
    entries: list[list[str]] = []
    for producer in (str(v) for v in result["producer"].values):
        one = result.sel(producer=producer)
        claim, kind, concerns, because = (
            str(one[name].item()) for name in ("claim", "verdict", "concerns", "because")
        )
        name = producer if claim == producer else f"{producer} as {claim}"
        names = [str(t) for t in result["test"].values if np.isfinite(float(one["test_p"].sel(test=t)))]
        holm = float(one["p_test_holm"])
        evidence = ""
        if names and np.isfinite(holm):
            evidence = f" Tests: {', '.join(names)}; over all of them and all claims p = {probability(holm)}."
        why = f"{because[:1].upper()}{because[1:]}"
        text = f"{name}: {kind.upper()}{f' ({concerns})' if concerns else ''}. {why}.{evidence}"
        entries.append(wrap(text, "  ", "    ").split("\n"))
    assumed = wrap(
        f"Level {float(result.attrs['alpha']):.0%} over all claims. Equal rows confirm on any machine; a p "
        "assumes that judged and known transcripts are of one kind, and that an engine's start does not "
        f"choose its kernel. All assumptions, and every count: {whole}, Claims.",
        "  ",
    ).split("\n")
    lines: list[str] = []
    for i, entry in enumerate(entries):
        if len(lines) + len(entry) + len(assumed) + 1 > room:
            lines.append(f"  … {plural(len(entries) - i, 'more claim')}: {whole}")
            break
        lines += entry
    return [*lines, *assumed]


def _end(facts: Facts, view: View | None, files: Files) -> list[str]:
    """Files and what to type next."""
    names = [
        path.name + (f" ({size(count)})" if count is not None else "")
        for path, count in files
        if path.name != "run.nc" and path.parent == facts.directory
    ]
    runs = [count or 0 for path, count in files if path.name == "run.nc"]
    if runs:
        names.append(f"{plural(len(runs), 'run')} of {size(sum(runs))} as <label>/run.nc")
    lines = [f"Files in {facts.directory}:", *_wrapped(f"  {', '.join(names)}", "  ")[:3]]
    if (facts.failed or facts.missing) and (resume := resume_command(facts)):
        return [*lines, "Next: run what failed or is missing (finished configs are kept):", f"  {resume}"]
    if view is not None:
        why, command = next_command(facts, view.configs)
        if command:
            return [*lines, *_wrapped(why)[:2], f"  {command}"]
    return lines


def _wrapped(text: str, hang: str = "") -> list[str]:
    return wrap(text, "", hang).split("\n")
