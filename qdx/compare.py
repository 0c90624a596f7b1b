"""``python -m qdx.compare A B [C …]``: compare sweeps of several machines row by row.

For every config and phase it says how many rows are bit-equal and how far the others are apart, which
(machine, config) form one class, what differs between the machines, and what cannot be compared and why.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from qdx import new_file
from qdx.dataset import open
from qdx.dataset.guarding import NAMES, Limits, allow
from qdx.dataset.writing import disk_errors
from qdx.document import html
from qdx.document.text import render, wrap
from qdx.errors import QdxError
from qdx.program import of_disk, run
from qdx.verification.machine_blocks import as_object, blocks, headline
from qdx.verification.machine_rows import Side
from qdx.verification.machines import Comparison, compare

PAGE = Path(__file__).parent / "report"  # the reports' style, so that a comparison looks like them
UNEQUAL, PARTLY = 3, 4  # exit statuses of --equal


def compare_files(paths: Sequence[str | Path], *, full_rows: bool = True, trust: bool = False) -> Comparison:
    """Open sweeps and compare them.

    Parameters
    ----------
    paths : sequence of path
        Two or more sweep folders, run folders or files. Of a folder the full rows are there, of ``sweep.nc``
        they are not.
    full_rows : bool
        Measure distances on full rows where two sweeps have them.
    trust : bool
        The files are one's own; see `qdx.open`.

    Returns
    -------
    qdx.verification.machines.Comparison

    Raises
    ------
    QdxError
        When one of them cannot be read, or no row of any two can be compared.
    """
    sides, remarks = [], []
    for path in paths:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            tree = open(path, trust=trust)
        remarks += [str(one.message) for one in said if issubclass(one.category, UserWarning)]
        sides.append(Side(tree, str(path)))
    found = compare(sides, full_rows=full_rows)
    found.remarks.extend(remarks)
    return found


def text(found: Comparison) -> str:
    """Write a comparison as text of at most 110 columns.

    Parameters
    ----------
    found : Comparison
    """
    parts = [wrap(headline(found))]
    for title, content in blocks(found):
        parts.append(f"{title}\n{'─' * len(title)}\n{render(content)}")
    return "\n\n".join(parts)


def page(found: Comparison) -> str:
    """Write a comparison as a page that needs nothing else.

    Parameters
    ----------
    found : Comparison
    """
    first, *others = headline(found).split(". ")
    return html.page(
        "qdx comparison",
        f"{first}.",
        [f"{one.removesuffix('.')}." for one in others],
        [],
        [
            html.Part(f"part{number}", title, html.render(content))
            for number, (title, content) in enumerate(blocks(found))
        ],
        (PAGE / "page.css").read_text(encoding="utf-8"),
        (PAGE / "page.js").read_text(encoding="utf-8"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Returns
    -------
    int
        0: compared. 1: the page could not be written. 2: a file is wrong, or nothing can be compared. With
        ``--equal`` also 3: a compared row is unequal; 4: all compared rows are equal, and something was not
        compared.
    """
    parser = argparse.ArgumentParser(prog="python -m qdx.compare", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "sweeps",
        metavar="SWEEP",
        nargs="+",
        help="a sweep folder (with full rows), its sweep.nc, or a run.nc",
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write it as a page, too")
    parser.add_argument("--json", action="store_true", help="print it as JSON, for scripts")
    parser.add_argument(
        "--equal",
        action="store_true",
        help="exit with 3 where a compared row is unequal, and with 4 where something was not compared",
    )
    parser.add_argument(
        "--no-full-rows", action="store_true", help="measure by sketches, also where full rows are there"
    )
    for name in NAMES:
        parser.add_argument(
            f"--{name.replace('_', '-')}", metavar="N", type=int,
            help=f"what a file may claim before it is read, where that is more than {getattr(Limits, name)}",
        )  # fmt: skip
    chosen = parser.parse_args(arguments)
    try:
        allow(**{name: getattr(chosen, name) for name in NAMES})
        found = compare_files(chosen.sweeps, full_rows=not chosen.no_full_rows)
        if chosen.html is not None:
            with disk_errors(chosen.html):
                new_file.write_text(chosen.html, page(found))
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 1 if of_disk(error) else 2
    print(json.dumps(as_object(found), indent=1, allow_nan=False) if chosen.json else text(found))
    if not chosen.equal:
        return 0
    if not found.all_equal:
        return UNEQUAL
    return PARTLY if found.refused else 0


if __name__ == "__main__":
    run(main)
