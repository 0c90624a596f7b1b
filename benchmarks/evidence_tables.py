"""Make the tables and the figure of what each kind of evidence is worth from the numbers that were measured.

    python benchmarks/evidence_tables.py docs/results/evidence.csv               # the tables as text
    python benchmarks/evidence_tables.py docs/results/evidence.csv --markdown    # the first as Markdown
    python benchmarks/evidence_tables.py docs/results/evidence.csv --figure docs/images/evidence.svg

`evidence.py` measures the numbers and writes them, a row each, as `COLUMNS` has them.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from qdx.document.blocks import Chart, Table
from qdx.document.charts import matrix
from qdx.document.markdown import table as markdown
from qdx.document.vega import svg

NEEDED, HELD, EQUAL = "tokens needed", "E reached 100", "equal rows"
NEVER = "cannot"
ORDER = (
    "text: e-value", "text: uniformity", "greedy ids", "sampled ids: e-value", "sampled ids: uniformity",
    "seeded ids", "top-5", "top-20", "sketch", "Token-DiFR, greedy", "Token-DiFR, seeded", "RUT", "MMD",
)  # fmt: skip
DRAWN = ORDER[:9]  # in the figure: qdx's own evidence
TITLE = "Tokens until a false claim is refuted"


@dataclass(frozen=True)
class Row:
    """One number of the benchmark.

    Attributes
    ----------
    kind : str
        `NEEDED`, `HELD` or `EQUAL`.
    pair : str
        What is claimed, and what was run.
    what : str
        Kind of evidence, number of tokens, or whose rows.
    tokens : int
        At which the test has its power; 0: at none that was tried, −1: it never can.
    most : int
        Tokens that were tried at most.
    value : float
        Power at `tokens`, or at the most that were tried; of the other kinds a share.
    level : float
        Share of honest records that the test refutes there; NaN: nothing was measured.
    level_most : float
        The same with the most tokens that were tried.
    """

    kind: str
    pair: str
    what: str
    tokens: int = 0
    most: int = 0
    value: float = math.nan
    level: float = math.nan
    level_most: float = math.nan

    def __str__(self) -> str:
        if self.tokens < 0:
            return NEVER
        return f"{self.tokens:,}" if self.tokens else f">{self.most:,} ({self.value:.2f})"


COLUMNS = tuple(one.name for one in fields(Row))


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV, the numbers to as many digits as the tables show."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {
                n: "" if math.isnan(getattr(row, n)) else f"{getattr(row, n):.4f}"
                for n in ("value", "level", "level_most")
            }
            writer.writerow({**asdict(row), **numbers})


def read(path: Path) -> list[Row]:
    """Read what `write` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                one["kind"], one["pair"], one["what"], int(one["tokens"]), int(one["most"]),
                *(float(one[name] or "nan") for name in ("value", "level", "level_most")),
            )
            for one in csv.DictReader(file)
        ]  # fmt: skip


def pairs_of(rows: Sequence[Row]) -> list[str]:
    """The columns of every table, in the order in which they were measured."""
    return list(dict.fromkeys(row.pair for row in rows))


def _cells(rows: Sequence[Row], kind: str) -> dict[tuple[str, str], Row]:
    return {(row.what, row.pair): row for row in rows if row.kind == kind}


def needed(rows: Sequence[Row], order: Sequence[str] = ORDER) -> Table:
    """How many tokens each kind of evidence takes."""
    cells, pairs = _cells(rows, NEEDED), pairs_of(rows)
    lines = [
        [what, *(str(cells[what, p]) if (what, p) in cells else "no alternative" for p in pairs)]
        for what in order
    ]
    title = "Tokens for 99% power at the 1% level (in brackets: power with the most tried)"
    return Table(title, ["claim, and what was run", *pairs], lines)


def levels(rows: Sequence[Row]) -> Table:
    """How many honest records are refuted there."""
    cells, pairs = _cells(rows, NEEDED), pairs_of(rows)

    def cell(what: str, pair: str) -> str:
        row = cells.get((what, pair))
        if row is None:
            return ""
        return f"{row.level:.4f} ({row.level_most:.4f})"

    title = "Honest records of another kernel or card refuted there (in brackets: with the most tokens tried)"
    return Table(
        title,
        ["claim, and what was run", *pairs],
        [[what, *(cell(what, p) for p in pairs)] for what in ORDER],
    )


def held(rows: Sequence[Row]) -> Table:
    """How many honest records an e-value calls false, by tokens."""
    cells, pairs = _cells(rows, HELD), pairs_of(rows)
    counts = list(dict.fromkeys(what for what, _ in cells))
    lines = [
        [count, *(f"{cells[count, p].value:.4f}" if (count, p) in cells else "–" for p in pairs)]
        for count in counts
    ]
    return Table(
        "Honest records whose E reached 100, of all, by tokens (Ville's bound: 0.01)",
        ["tokens", *pairs],
        lines,
    )


def equal(rows: Sequence[Row]) -> Table:
    """How many rows are bit-equal to the verifier's."""
    cells, pairs = _cells(rows, EQUAL), pairs_of(rows)
    lines = [[who, *(f"{cells[who, p].value:.3f}" for p in pairs)] for who in ("honest", "false")]
    return Table("Share of rows that are bit-equal to the verifier's", ["", *pairs], lines)


def as_text(table: Table) -> str:
    """The caption, and columns aligned by their widest cell."""
    lines = [table.head, *table.rows]
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(table.head))]
    shown = [
        "  ".join(
            str(cell).ljust(w) if i == 0 else str(cell).rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.caption, *shown])


def everything(rows: Sequence[Row]) -> str:
    """All four tables as text."""
    first = as_text(needed(rows)) + (
        "\nhash: one row, where an honest producer's rows are equal to the verifier's (last table)"
        f'\n"{NEVER}": the allowance for the noise of kernels is more than a token tells'
    )
    return "\n\n".join([first, *(as_text(table(rows)) for table in (levels, held, equal))])


def chart(rows: Sequence[Row]) -> Chart:
    """Draw the tokens that qdx's kinds of evidence take, a cell each."""
    cells, pairs = _cells(rows, NEEDED), pairs_of(rows)
    values = np.full((len(DRAWN), len(pairs)), np.nan)
    for (what, pair), row in cells.items():
        if row.tokens > 0 and what in DRAWN:
            values[DRAWN.index(what), pairs.index(pair)] = row.tokens
    found = matrix(
        "evidence",
        TITLE,
        DRAWN,
        pairs,
        values,
        corner="evidence",
        note="99 % power at the 1 % level; dark: few tokens",
        row_is="row: evidence; column: claim, and what was run",
    )
    for cell in found.drawing["data"]["values"]:
        if cell["kind"] == "value":
            cell["text"] = f"{cell['value']:,.0f}"
        else:
            at = cells.get((cell["p"], cell["q"]))
            cell["text"] = "–" if at is None else NEVER if at.tokens < 0 else f">{at.most:,}"
    legend = found.drawing["layer"][1]["encoding"]["color"]["legend"]
    legend["title"] = "tokens; grey: more, or no test"
    return found


def main() -> None:
    """Print the tables, or write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", type=Path, help="what evidence.py wrote with --csv")
    parser.add_argument("--markdown", action="store_true", help="the first table, of qdx's own evidence")
    parser.add_argument("--figure", type=Path, help="an SVG file to write")
    options = parser.parse_args()
    rows = read(options.numbers)
    if options.figure:
        options.figure.write_text(svg(chart(rows).drawing) + "\n", encoding="utf-8")
    elif options.markdown:
        print(markdown(needed(rows, DRAWN)))
    else:
        print(everything(rows))


if __name__ == "__main__":
    main()
