"""The tables of the HTML and Markdown reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.document.blocks import Table
from qdx.document.format import plural
from qdx.kernel_names import another_kernel
from qdx.report.state import Facts, Files, size
from qdx.report.text import environment_rows
from qdx.verification.sections import SECTIONS as VERIFIED
from qdx.verification.sections import STATED, is_verifier

# Analyses that the page shows beside their drawings; every other one is a part of its own.
DRAWN_WITH_PHASES = ("effects", "classes", "pairs")
SHIPPED = ("noise_floor", "consistency", *DRAWN_WITH_PHASES, "snr", *VERIFIED)


def at_a_glance(view: View, sections: Sequence[Section]) -> Table:
    """Every config: what was asked for, what was loaded, its class, and whether it repeats."""
    result = next((s.result for s in sections if s.name == "classes"), None)
    head = ["config", "format", "requested kernel", "observed kernel", "dtype"]
    columns = [view.of_config(n) for n in ("format", "requested_kernel", "observed_kernel", "dtype")]
    batch = view.of_config("batch_size")
    rows = []
    for c, config in enumerate(view.names):
        row = [config, *(column[c] for column in columns)]
        if another_kernel(row[2], row[3]):
            row[3] += " (≠ requested)"
        if result is not None:
            row.append(_repeats([str(v) for v in result["repeats"].values[:, c]], view.phases))
            row += [str(int(v) + 1) for v in result["class_id"].values[:, c]]
        rows.append([*row, batch[c], *([view.configs[c]] if view.names != view.configs else [])])
    last = ["batch [references]", *(["label"] if view.names != view.configs else [])]
    if result is None:
        return Table("Configs", [*head, *last], rows, 5)
    head += ["repeats bit for bit", *(f"class in {p}" for p in view.phases), *last]
    return Table(
        "Configs; those of one class number have equal row hashes in every shared row of a phase",
        head,
        rows,
        6,
    )


def _repeats(state: list[str], phases: Sequence[str]) -> str:
    words = {"repeats": "yes", "does not repeat": "no"}
    said: dict[str, list[str]] = {}
    for phase, value in zip(phases, state, strict=True):
        said.setdefault(words.get(value, value), []).append(phase)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{word}: {', '.join(where)}" for word, where in said.items())


def environment(view: View) -> Table:
    """Versions and machine."""
    rows: list[list[str]] = []
    for what, value in environment_rows(view):
        rows.append([what or rows[-1][0], value])
    return Table("Environment", ["what", "value"], rows, 2)


def prompts(view: View, stated: bool = False) -> Table:
    """Tokens and sources of the references."""
    head = [
        "reference",
        "source",
        "pages",
        "sha256",
        "prefix [tokens]",
        "snippet [tokens]",
        "suffix [tokens]",
        "source offset [tokens]",
    ]
    if "references" not in view.tree.children:
        return Table("References (not recorded)", head, [], 4)
    stored, rows = view.group("references"), []
    names = ("prefix_length", "content_length", "suffix_length", "token_offset")
    for i, name in enumerate(stored["reference"].values):
        source, digest = str(stored["source"].values[i]), str(stored["sha256"].values[i])
        counts = [f"{int(stored[n].values[i]):,}" for n in names]
        rows.append(
            [
                str(name),
                Path(source).name or source,
                str(stored["pages"].values[i]),
                f"{digest[:16]}…" if digest else "",
                *counts,
            ]
        )
    title = f"References ({STATED})" if stated or is_verifier(view.tree) else "References"
    return Table(title, head, rows, 4)


def files(facts: Facts, found: Files) -> Table:
    """Paths and sizes."""
    rows = [[str(path), size(count)] for path, count in found if path.name != "run.nc"]
    runs = [count or 0 for path, count in found if path.name == "run.nc"]
    if runs:
        rows.append(
            [
                f"{facts.directory}/<label>/run.nc ({plural(len(runs), 'file')}, all that was captured)",
                size(sum(runs)),
            ]
        )
    return Table("Files", ["path", "size"], rows)
