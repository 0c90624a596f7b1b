"""The tables of the HTML and Markdown reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.document.blocks import Table
from qdx.document.format import NOT_MEASURED, percent, plural
from qdx.kernel_names import another_kernel
from qdx.report.state import Facts, Files, size
from qdx.report.text import environment_rows
from qdx.verification.environment import lines as environment_lines
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


def claims(result: xr.Dataset) -> Table:
    """Every claim with its verdict and what that rests on."""
    rows = [
        [str(result[name].values[d]) for name in ("producer", "claim", "verdict", "concerns", "because")]
        for d in range(result.sizes["producer"])
    ]
    level = float(result.attrs["alpha"])
    return Table(
        f"Claims, at level {level:.0%} over all of them",
        ["producer", "claim", "verdict", "concerns", "because"],
        rows,
        5,
    )


def validation(result: xr.Dataset) -> list[Table]:
    """Software that must agree, and hardware that may differ."""
    head = ["", "what", "producer’s record; this machine’s where it differs"]
    captions = {False: "Software, ✓ where both agree", True: "Hardware, → where it differs, as is expected"}
    found = [(caption, environment_lines(result, hardware=kind)) for kind, caption in captions.items()]
    return [Table(caption, head, rows, 3) for caption, rows in found if rows]


def crossing(result: xr.Dataset) -> list[Table]:
    """Producer × verifier: how many rows are bit-equal, a table a phase."""
    found = []
    configs = [str(v) for v in result["config"].values]
    for phase in (str(v) for v in result["phase"].values):
        at, rows = result.sel(phase=phase), []
        counts = zip(at["rows_equal"].values, at["rows_compared"].values, strict=True)
        for producer, (equal, compared) in zip(at["producer"].values, counts, strict=True):
            cells = [f"{int(k):,} of {int(n):,}" for k, n in zip(equal, compared, strict=True)]
            rows.append([str(producer), *cells])
        found.append(Table(f"{phase}: rows bit-equal, by who replayed", ["made by", *configs], rows))
    return found


def attribution(result: xr.Dataset) -> list[Table]:
    """Answers of held-out transcripts, and claims refuted; without a split the answers leave one out."""
    names, held = [str(v) for v in result["answer"].values], "answers" in result
    producers, configs = ([str(v) for v in result[dim].values] for dim in ("producer", "config"))
    counts = result["answers" if held else "confusion"].values
    rows = [[producer, *(str(int(k)) for k in counts[d])] for d, producer in enumerate(producers)]
    if not held:
        said = (
            "Transcripts by answer, leave one reference out: how many sets leave the true config out is an "
            "identity and no error rate"
        )
        return [Table(said, ["made by", *names], rows)]
    for d, row in enumerate(rows):
        row += [_rate(result, name, d) for name in ("wrong_names", "in_set")]
    said = "Held-out transcripts by answer; wrong names and coverage with 95 % intervals (Clopper, Pearson)"
    found = [Table(said, ["made by", *names, "wrong", "true config in set"], rows)]
    for name, by in (("refuted", "their rows"), ("refuted_by_tokens", "their tokens alone")):
        cells = [
            [producer, *(_rate(result, name, d, c) for c in range(len(configs)))]
            for d, producer in enumerate(producers)
        ]
        said = (
            f"Held-out transcripts refuted by {by} at level {float(result.attrs['alpha']):g}, by claim; "
            "under the own config: false alarms; 95 % (Clopper and Pearson)"
        )
        found.append(Table(said, ["made by", *configs], cells))
    return found


def _rate(result: xr.Dataset, name: str, *at: int) -> str:
    """``k of n (low to high)``."""
    of = int(result[f"{name}_of"].values[at])
    low, high = (float(result[f"{name}_{end}"].values[at]) for end in ("low", "high"))
    count = int(result[name].values[at])
    return f"{count} of {of} ({percent(low)} to {percent(high)})" if of else NOT_MEASURED


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
