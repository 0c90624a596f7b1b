"""``python -m qdx.ls [FOLDER]``: list the sweeps below a folder, as their files describe them.

Only names, sizes, attributes and ``summary.json`` are read, by a process that may be killed, so a folder of
somebody else's can be listed like one's own. Nothing is judged: a verdict in the list is what the folder's
own files state, and the list says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qdx.dataset.catalogue import Catalogue, Entry, catalogue
from qdx.document.blocks import Block, Table, Text
from qdx.document.format import plural
from qdx.document.text import WIDTH, render
from qdx.errors import QdxError, printable
from qdx.program import run
from qdx.report.state import size

VERSION = 1  # of the output of --json
STATED = (
    "Nothing was judged here: a verdict is what the files of that folder state, and whoever wrote them could "
    "write anything. python -m qdx.report FOLDER judges a verifier's sweep again from its records."
)
MOST_VERDICTS = 8  # kinds; qdx has eight
LONGEST_VERDICT = 30  # characters of one
LONGEST_MODEL = 14
LONGEST_CONFIGS = 26


def listing(found: Catalogue) -> list[Block]:
    """Return the blocks that are printed of a catalogue.

    Parameters
    ----------
    found : Catalogue

    Returns
    -------
    list of Block
        A table with a line for each sweep, and what could not be read, a line each.
    """
    blocks: list[Block] = []
    there = [one for one in found.entries if one.kind]
    if there:
        rows = [
            [
                _clean(one.time[:16].replace("T", " ")) or "–",
                size(one.bytes),
                _completeness(one),
                _shortened(", ".join(one.models) or "–", LONGEST_MODEL),
                _configs(one),
                _place(one.path, found.folder),
            ]
            for one in there
        ]
        head = ["date", "size", "complete", "model", "configs", "sweep"]
        blocks.append(Table("", head, rows, len(head)))
    else:
        blocks.append(Text(f"{_clean(found.folder)}: no sweep here or in a folder below."))
    if judged := [[_place(one.path, found.folder), _verdict(one)] for one in there if one.verdicts]:
        blocks.append(Table("What verifiers' sweeps state of claims", ["sweep", ""], judged, 2, STATED))
    remarks = [
        f"not read: {_place(one.path, found.folder)}: {_clean(problem)}" if not one.kind
        else f"{_place(one.path, found.folder)}: {_clean(problem)}"
        for one in found.entries
        for problem in one.problems
    ]  # fmt: skip
    remarks += [_clean(problem) for problem in found.problems]
    if found.links:
        remarks.append(f"{plural(found.links, 'link')} to other folders not followed.")
    if found.foreign:
        remarks.append(f"{plural(found.foreign, 'NetCDF file')} that qdx did not write left out.")
    if remarks:
        blocks.append(Text("\n".join(remarks)))
    return blocks


def as_json(found: Catalogue) -> str:
    """Return a catalogue for scripts, in ASCII.

    Returns
    -------
    str
        An object with ``kind``, ``schema_version``, ``folder``, ``sweeps`` (as `qdx.dataset.catalogue.Entry`,
        with ``verdicts_stated`` in place of ``verdicts``), ``foreign``, ``links`` and ``problems``.
    """
    sweeps: list[Mapping[str, Any]] = []
    for one in found.entries:
        fields = asdict(one)
        fields["verdicts_stated"] = fields.pop("verdicts")
        sweeps.append(fields)
    return json.dumps(
        {
            "kind": "catalogue",
            "schema_version": VERSION,
            "folder": found.folder,
            "sweeps": sweeps,
            "foreign": found.foreign,
            "links": found.links,
            "problems": found.problems,
        },
        indent=1,
        allow_nan=False,
    )


def _clean(text: str) -> str:
    """A stranger's text on one line, in which nothing acts on a terminal."""
    return printable(" ".join(text.split()))


def _place(path: str, folder: str) -> str:
    try:
        inside = Path(path).relative_to(folder)
    except ValueError:
        inside = Path(path)
    return _clean(str(inside))


def _shortened(text: str, longest: int) -> str:
    text = _clean(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _configs(one: Entry) -> str:
    what = "" if one.kind in ("sweep", "servers") else f"{one.kind} "
    names = f": {', '.join(one.labels)}" if one.labels else ""
    return _shortened(f"{one.configs:,} {what}".strip() + names, LONGEST_CONFIGS)


def _completeness(one: Entry) -> str:
    if one.complete is not False:
        return "yes" if one.complete else "?"
    return f"{max(0, one.configs - one.failed - one.missing):,} of {one.configs:,}"


def _verdict(one: Entry) -> str:
    """Return what files state; "stated" stands in the very cell, which may be all that somebody copies."""
    if not one.verdicts:
        return "–"
    counts = one.verdicts[0]["counts"]
    if any(other["counts"] != counts for other in one.verdicts[1:]):
        return "its files state different verdicts"
    shown = list(counts.items())[:MOST_VERDICTS]
    named = [f"{count:,} {_shortened(name, LONGEST_VERDICT)}" for name, count in shown]
    if others := one.verdicts[0]["claims"] - sum(count for _, count in shown):
        named.append(f"{others:,} other")
    return f"stated: {', '.join(named)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (2: there is no such folder)."""
    parser = argparse.ArgumentParser(prog="python -m qdx.ls", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="default: this folder")
    parser.add_argument("--json", action="store_true", help="print it as JSON, for scripts")
    chosen = parser.parse_args(arguments)
    try:
        found = catalogue(chosen.folder)
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 2
    print(as_json(found) if chosen.json else render(listing(found), WIDTH, ""))
    return 0


if __name__ == "__main__":
    run(main)
