"""Blocks as plain text of at most 110 columns, for a terminal and a log file alike."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Sequence

from qdx.document.blocks import Block, Cell, Chart, Details, Matrix, Table, Text
from qdx.document.format import cell
from qdx.document.labels import cut_all

WIDTH = 110
NARROWEST = 24  # columns that a last column of text needs to be wrapped
LONGEST_LABEL = 20  # a longer one gets a letter in matrix headers
LONGEST_ROW = 40  # columns of the name of a row of a matrix whose columns have other names
NARROWEST_CELL = 8  # columns that a cell of text keeps


def render(blocks: Sequence[Block], width: int = WIDTH, indent: str = "  ") -> str:
    """Write blocks below each other.

    Parameters
    ----------
    blocks : sequence of Block
    width : int
        Columns of the longest line; only a verbatim text may have longer ones.
    indent : str
        Before every line.

    Returns
    -------
    str
        Without a line break at its end.
    """
    parts: list[str] = []
    explained: set[tuple[str, ...]] = set()
    sentences = False  # whether what stands above are sentences, which need no empty line between them
    for block in blocks:
        rendered = _rendered(block, width, indent)
        if isinstance(block, Matrix) and block.heads and tuple(block.heads) not in explained:
            explained.add(tuple(block.heads))
            if names := legend(block.heads, width, indent):
                rendered = f"{names}\n\n{rendered}"
        plain = isinstance(block, Text) and not block.verbatim
        parts += [rendered] if not parts or (plain and sentences) else ["", rendered]
        sentences = plain
    return "\n".join(parts)


def _rendered(block: Block, width: int, indent: str) -> str:
    further = indent + "  "
    if isinstance(block, Text):
        if block.verbatim:
            return block.text
        return "\n".join(wrap(line, indent, width=width) for line in block.text.split("\n"))
    if isinstance(block, Details):
        return f"{wrap(block.title, indent, width=width)}\n{render(block.blocks, width, further)}"
    if isinstance(block, Chart):
        block = block.table
    lines = [wrap(block.caption, indent, width=width)] if block.caption else []
    if isinstance(block, Table):
        rows = [[_one_line(value) for value in row] for row in block.rows]
        lines.append(table(block.head, rows, further, block.left, width))
    else:
        cells = [[_one_line(value) for value in row] for row in block.shown()]
        lines.append(matrix(block.labels, cells, further, width, block.columns))
    if block.note:
        lines.append(wrap(block.note, further, width=width))
    return "\n".join(lines)


def _one_line(value: Cell) -> str:
    return " ".join(cell(value).splitlines())


def wrap(text: str, indent: str = "", hang: str = "  ", width: int = WIDTH) -> str:
    """Wrap a sentence to `width`, continuation lines indented by `hang` more."""
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=True,
        break_on_hyphens=False,
    )


def clip(text: str, width: int) -> str:
    """Cut `text` to `width` columns, with an ellipsis where something was lost."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    indent: str = "  ",
    left: int = 1,
    width: int = WIDTH,
) -> str:
    """Align columns: the first `left` to the left, the others to the right.

    A head of empty names is left out. A last column of text is wrapped where a line would be wider than
    `width`; other cells of text are cut, two different ones of a column differently. A number is never cut:
    columns of numbers that do not fit stand below the others, beside the first column again.
    """
    cells = [[str(c) for c in row] for row in [list(head), *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    free = width - len(indent) - 2 * (len(widths) - 1)
    wraps = left >= len(head) and free - sum(widths[:-1]) >= NARROWEST
    if wraps:
        widths[-1] = max(1, min(widths[-1], free - sum(widths[:-1])))
    count, texts = len(head), range(min(left, len(head)))
    if (
        sum(min(w, NARROWEST_CELL) if i in texts else w for i, w in enumerate(widths)) > free
        and left < count - 1
    ):
        room = width - len(indent) - sum(widths[:left]) - 2 * (left - 1)
        fit = next((n for n in range(count - left, 1, -1) if sum(widths[left : left + n]) + 2 * n <= room), 1)
        halves = (left, range(left + fit)), (1, [0, *range(left + fit, count)])
        return "\n\n".join(
            table([head[i] for i in of], [[row[i] for i in of] for row in rows], indent, first, width)
            for first, of in halves
        )
    while sum(widths) > free and texts and max(widths[:left]) > NARROWEST_CELL:
        widths[max(texts, key=widths.__getitem__)] -= 1
    columns = [
        column if wraps and i == len(widths) - 1 else cut_all(column, widths[i])
        for i, column in enumerate(map(list, zip(*cells, strict=True)))
    ]
    lines = []
    for row in [*zip(*columns, strict=True)][0 if any(head) else 1 :]:
        *first, last = row
        more = (textwrap.wrap(last, widths[-1], break_on_hyphens=False) or [""]) if wraps else [last]
        for i, part in enumerate(more):
            parts = [*(first if i == 0 else [""] * len(first)), part]
            line = "  ".join(
                text.ljust(w) if at < left else text.rjust(w)
                for at, (text, w) in enumerate(zip(parts, widths, strict=True))
            )
            lines.append((indent + line).rstrip())
    return "\n".join(lines)


def letters(count: int) -> list[str]:
    """A, B, … Z, AA, AB, …"""
    alphabet = string.ascii_uppercase
    return [(alphabet[i // 26 - 1] if i >= 26 else "") + alphabet[i % 26] for i in range(count)]


def needs_letters(labels: Sequence[str], width: int = WIDTH) -> bool:
    """Return whether a matrix of these labels gets letters for headers."""
    longest = max(map(len, labels))
    return longest > LONGEST_LABEL or 2 + (len(labels) + 1) * (2 + longest) > width


def legend(labels: Sequence[str], width: int = WIDTH, indent: str = "  ") -> str:
    """Say which letter is which label; empty when matrices carry the labels themselves."""
    if not needs_letters(labels, width):
        return ""
    names = letters(len(labels))
    shown = cut_all(labels, width - len(indent) - len(names[-1]) - 3)
    entries = [f"{letter} = {label}" for letter, label in zip(names, shown, strict=True)]
    longest = max(map(len, entries))
    across = max(1, (width - len(indent) + 3) // (longest + 3))
    lines = [entries[i : i + across] for i in range(0, len(entries), across)]
    return "\n".join(indent + "   ".join(e.ljust(longest) for e in line).rstrip() for line in lines)


def matrix(
    labels: Sequence[str],
    cells: Sequence[Sequence[str]],
    indent: str = "  ",
    width: int = WIDTH,
    columns: Sequence[str] = (),
) -> str:
    """Align a matrix of ready cells, in blocks of columns when it is wider than `width`.

    Rows are configs, columns config_b, or `columns`. Long or many names of columns become the letters of
    `legend`; so do the rows' where they are the same.
    """
    heads = list(columns or labels)
    short = letters(len(heads)) if needs_letters(heads, width) else heads
    names = cut_all(labels, LONGEST_ROW) if columns else short
    stub = max(map(len, names))
    column = 2 + max(max(len(s) for s in short), *(len(c) for row in cells for c in row))
    fit = max(1, (width - len(indent) - stub) // column)
    fit = -(-len(short) // -(-len(short) // fit))  # blocks of equal width
    parts = []
    for start in range(0, len(short), fit):
        shown = range(start, min(start + fit, len(short)))
        lines = [indent + " " * stub + "".join(short[c].rjust(column) for c in shown)]
        for name, row in zip(names, cells, strict=True):
            lines.append(indent + name.ljust(stub) + "".join(row[c].rjust(column) for c in shown))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
