"""Define the blocks that a report consists of; they know neither width nor markup.

`qdx.document.text`, `qdx.document.html` and `qdx.document.markdown` render the same blocks, so that a table
of somebody's own analysis looks like a shipped one in all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from altair import TopLevelMixin

# A number is written by `qdx.document.format.cell`, once for all forms of a report.
DIAGONAL = "·"
Cell = str | int | float | np.integer[Any] | np.floating[Any] | np.bool_


@dataclass(frozen=True)
class Text:
    """Sentences; every line is a paragraph.

    Attributes
    ----------
    text : str
    phase : str
        ``prefill``, ``replay`` or ``decode``; empty for what belongs to no phase.
    verbatim : bool
        The text has columns of its own, so nothing in it is moved.
    """

    text: str
    phase: str = ""
    verbatim: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; the first column names the row.

    Attributes
    ----------
    caption : str
        What the table shows, with units.
    head : sequence of str
    rows : sequence of sequence of str or number
        A number is rounded to three digits, a count is written whole, and NaN is a dash.
    left : int
        How many of the first columns are text; the others are numbers.
    note : str
        What stands below.
    phase : str
        As of `Text`.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int = 1
    note: str = ""
    phase: str = ""


@dataclass(frozen=True)
class Matrix:
    """One value for every two labels; rows and columns have the same ones, unless `columns` are given.

    Attributes
    ----------
    caption : str
        What a cell shows, with units.
    labels : sequence of str
        Of the rows.
    cells : sequence of sequence of str or number
        As of `Table`. Without `columns` the diagonal is not shown: a config has no distance to itself.
    note : str
        What stands below.
    phase : str
        As of `Text`.
    columns : sequence of str
        What the columns are, where they are not what the rows are, such as who replayed what others made.
    """

    caption: str
    labels: Sequence[str]
    cells: Sequence[Sequence[Cell]] | np.ndarray
    note: str = ""
    phase: str = ""
    columns: Sequence[str] = ()

    @property
    def heads(self) -> Sequence[str]:
        """The names of the columns."""
        return self.columns or self.labels

    def shown(self) -> list[list[Cell]]:
        """The cells as they are shown, row by row."""
        return [
            [DIAGONAL if a == b and not self.columns else value for b, value in enumerate(row)]
            for a, row in enumerate(self.cells)
        ]

    def as_table(self) -> Table:
        """The matrix with its labels as a column and as heads."""
        rows = [[name, *row] for name, row in zip(self.labels, self.shown(), strict=True)]
        return Table(self.caption, ["", *self.heads], rows, 1, self.note, self.phase)


@dataclass(frozen=True)
class Chart:
    """A drawing and the table of what it draws; text and Markdown show the table.

    The functions of `qdx.charts` make them.

    Attributes
    ----------
    name : str
        Under which ``report.figures`` saves it, after the name of its section.
    drawing : Any
        A specification of Vega-Lite, an Altair chart, SVG text, or what has ``savefig`` (matplotlib) or
        ``_repr_svg_``. The last three are shown as images.
    table : Table
        The drawn numbers.
    title, note : str
        Heading, without which the table's caption is one, and how to read the chart.
    spoken : str
        What a screen reader says in place of the drawing.
    """

    name: str
    drawing: Any
    table: Table
    title: str = ""
    note: str = ""
    spoken: str = ""

    @property
    def phase(self) -> str:
        """The phase of its table."""
        return self.table.phase

    @property
    def heading(self) -> str:
        """The title, or the table's caption."""
        return self.title or self.table.caption

    def altair(self) -> TopLevelMixin:
        """Return the chart as an Altair chart, to be shown, changed or layered.

        Raises
        ------
        QdxError
            Without Altair (``pip install 'qdx[charts]'``), or where the drawing is an image.
        """
        from qdx.document import vega

        return vega.altair(self)

    def _repr_mimebundle_(self, *_: object, **__: object) -> Any:
        """Show the chart where a notebook's cell ends with it."""
        return self.altair()._repr_mimebundle_()


@dataclass(frozen=True)
class Details:
    """Blocks that a page folds away under their title; text and Markdown show them."""

    title: str
    blocks: Sequence[Block]
    phase: str = ""


Block = Text | Table | Matrix | Chart | Details


def of_phase(blocks: Sequence[Block], phase: str) -> list[Block]:
    """Return the blocks of a phase; of ``""`` those that belong to none."""
    return [block for block in blocks if block.phase == phase]


def from_text(text: Mapping[str, str]) -> list[Block]:
    """Return lines by phase, as an analysis of an earlier version gives them, as blocks."""
    return [Text(lines, phase, verbatim=True) for phase, lines in text.items() if lines]
