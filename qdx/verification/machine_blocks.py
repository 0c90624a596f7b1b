"""What is shown of a comparison of machines: blocks for text and page, and an object for JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from qdx.analysis.view import PHASE_TITLES
from qdx.document.blocks import Block, Cell, Table, Text
from qdx.document.format import DASH, part, plural
from qdx.document.labels import short_labels
from qdx.errors import printable
from qdx.verification.machines import REPEATS, Comparison

VERSION = 1  # of the object for JSON
MEANING = (
    "Rows are equal where their hashes, as the files state them, are. Nothing is confirmed or refuted here: "
    "rows of machines whose environment classes differ, or of a config that does not repeat, may differ "
    "honestly.",
    "|Δ ln p| is of the token at the position, in nat, over the rows compared. An l2 by sketches estimates "
    "the distance of the centred logits, where full rows are not there.",
    "Entries of one class are bit-equal in every row that they share. – was not compared; * does not "
    "repeat on that machine, and is a class by itself; ? was not run again there, so nobody knows whether it "
    "repeats.",
)
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b")
MOST_HEADS = 64  # characters of the heads of a table of machines
CLASSES = "Classes over configs and machines"


def headline(found: Comparison) -> str:
    """Say in one sentence a phase which configs are equal on all machines.

    Parameters
    ----------
    found : Comparison
    """
    said = []
    for phase in _phases(found):
        pairs = [pair for pair in found.pairs if pair.phase == phase and pair.rows]
        configs = list(dict.fromkeys(pair.config for pair in pairs))
        equal = [c for c in configs if all(p.equal == p.rows for p in pairs if p.config == c)]
        rows, same = sum(pair.rows for pair in pairs), sum(pair.equal for pair in pairs)
        said.append(
            f"{phase}: {same:,} of {plural(rows, 'row')} bit-equal; {len(equal)} of "
            f"{plural(len(configs), 'config')} equal in every row"
        )
    return f"{len(found.names)} machines. " + ". ".join(said) + "."


def blocks(found: Comparison) -> list[tuple[str, list[Block]]]:
    """Return the parts of a comparison, each with its title.

    Parameters
    ----------
    found : Comparison

    Returns
    -------
    list of (str, list of Block)
    """
    labels = list(dict.fromkeys(config for _, config in _entries(found)))
    shown = dict(zip(labels, map(_clean, short_labels(labels)), strict=True))
    listed = zip(found.names, found.paths, strict=True)
    sweeps = Table(
        "", ["", "machine", "sweep"], [[str(i), n, _clean(p)] for i, (n, p) in enumerate(listed, 1)], 3
    )
    parts: list[tuple[str, list[Block]]] = [("Machines", [sweeps])]
    for phase in _phases(found):
        title = PHASE_TITLES.get(phase, phase)
        parts.append((f"Rows of {title}", [_rows(found, phase, shown), _classes(found, phase, shown)]))
    parts.append(("What it means", [Text("\n".join(MEANING))]))
    if environment := _environment(found, shown):
        parts.append(("What differs between the machines", environment))
    if found.refused or found.remarks:
        rows = [[_clean(what), _clean(why)] for what, why in found.refused]
        table: list[Block] = [Table("", ["what", "why"], rows, 2)] if rows else []
        remarks: list[Block] = [Text("\n".join(map(_clean, found.remarks)))] if found.remarks else []
        parts.append(("Not compared", [*table, *remarks]))
    return parts


def as_object(found: Comparison) -> dict[str, Any]:
    """Return a comparison as what JSON can hold; a number that was not measured is None.

    Parameters
    ----------
    found : Comparison

    Returns
    -------
    dict
        ``kind``, ``schema_version``, ``machines`` (``name``, ``path``), ``all_equal``, ``pairs``, ``classes``
        by phase, machine and config, ``facts`` by title, ``environments``, ``refused`` and ``remarks``.
    """
    names = found.names
    return {
        "kind": "comparison",
        "schema_version": VERSION,
        "machines": [{"name": n, "path": p} for n, p in zip(names, found.paths, strict=True)],
        "all_equal": found.all_equal,
        "pairs": [
            {
                "phase": pair.phase,
                "config": pair.config,
                "machines": [names[m] for m in pair.machines],
                "rows": pair.rows,
                "equal": pair.equal,
                "mean_abs_dlogprob_nat": _number(pair.drift),
                "greatest_abs_dlogprob_nat": _number(pair.greatest),
                "mean_l2_nat": _number(pair.distance),
                "l2_of": pair.distance_of,
                "rows_without_numbers": pair.not_numbers,
            }
            for pair in found.pairs
        ],
        "classes": {
            phase: {
                name: {c: k for (m, c), k in of.items() if m == machine} for machine, name in enumerate(names)
            }
            for phase, of in found.classes.items()
        },
        "repeats": {
            phase: {
                name: {c: k for (m, c), k in of.items() if m == machine} for machine, name in enumerate(names)
            }
            for phase, of in found.repeats.items()
        },
        "facts": {title: dict(zip(names, values, strict=True)) for title, values in found.facts.items()},
        "environments": [
            {
                "machines": [names[i], names[j]],
                "config": config,
                "same": match.same,
                "differs": list(match.differs),
                "unstated": list(match.unstated),
            }
            for (i, j, config), match in found.environments.items()
        ],
        "refused": [{"what": what, "why": why} for what, why in found.refused],
        "remarks": found.remarks,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _clean(text: str) -> str:
    """A stranger's text on one line, in which nothing acts on a terminal."""
    return printable(" ".join(text.split()))


def _phases(found: Comparison) -> list[str]:
    return list(dict.fromkeys(pair.phase for pair in found.pairs))


def _entries(found: Comparison) -> list[tuple[int, str]]:
    return list(dict.fromkeys(entry for of in found.repeats.values() for entry in of))


def _rows(found: Comparison, phase: str, shown: Mapping[str, str]) -> Table:
    pairs = [pair for pair in found.pairs if pair.phase == phase]
    several = len(found.names) > 2
    measures = list(dict.fromkeys(pair.distance_of for pair in pairs if pair.distance_of))
    head = ["config", *(["machines"] if several else []), "rows equal", "mean |Δ ln p|", "greatest |Δ ln p|"]
    head += [f"mean l2 by {measure}" for measure in measures]
    lost = sum(pair.not_numbers for pair in pairs)
    head += ["rows without numbers"] if lost else []
    rows: list[list[Cell]] = []
    for pair in pairs:
        between = [" ~ ".join(str(m + 1) for m in pair.machines)] if several else []
        distances: list[Cell] = [
            pair.distance if pair.distance_of == measure else math.nan for measure in measures
        ]
        rows.append(
            [
                shown[pair.config],
                *between,
                part(pair.equal, pair.rows),
                pair.drift,
                pair.greatest,
                *distances,
                *([pair.not_numbers] if lost else []),
            ]
        )
    return Table("Rows that are bit-equal", head, rows, 2 if several else 1)


def _classes(found: Comparison, phase: str, shown: Mapping[str, str]) -> Table:
    classes, repeats = found.classes[phase], found.repeats[phase]
    machines = range(len(found.names))
    # Long names would put the machines below each other, where nobody can compare them.
    heads = found.names if sum(map(len, found.names)) <= MOST_HEADS else [str(m + 1) for m in machines]
    rows: list[list[Cell]] = []
    for config, name in shown.items():
        cells = [
            _class(classes.get((m, config)), repeats.get((m, config), "")) for m in range(len(found.names))
        ]
        if any(cell != DASH for cell in cells):
            rows.append([name, *cells])
    return Table(CLASSES, ["config", *heads], rows, 1)


def _class(number: int | None, state: str) -> str:
    if number is None:
        return DASH
    return f"{number}{dict(zip(REPEATS, ('', '*', '?'), strict=True)).get(state, '')}"


def _environment(found: Comparison, shown: Mapping[str, str]) -> list[Block]:
    blocks: list[Block] = []
    if found.facts:
        rows: list[list[Cell]] = [
            ["" if i else title, name, _DIGEST.sub(r"\1…", _clean(value))]
            for title, values in found.facts.items()
            for i, (name, value) in enumerate(zip(found.names, values, strict=True))
        ]
        blocks.append(Table("", ["fact", "machine", "as its file states it"], rows, 3))
    groups: dict[tuple[int, int, str], list[str]] = {}
    for (i, j, config), match in found.environments.items():
        groups.setdefault((i, j, match.why), []).append(shown.get(config, _clean(config)))
    lines = [
        f"Environment class of {', '.join(configs)} on {found.names[i]} ~ {found.names[j]}: "
        f"{_clean(why) or 'the same'}."
        for (i, j, why), configs in groups.items()
    ]
    return [*blocks, Text("\n".join(lines))] if lines else blocks
