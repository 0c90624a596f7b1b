"""Blocks as plain text of at most 110 columns, for a terminal and a log file alike."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdx.document.blocks import DIAGONAL, Block, Cell, Chart, Details, Matrix, Table, Text
from qdx.document.format import cell
from qdx.document.labels import cut_all

WIDTH = 110
NARROWEST = 24  # columns that a last column of text needs to be wrapped
LONGEST_LABEL = 20  # a longer one gets a letter in matrix headers


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
        if isinstance(block, Matrix) and block.labels and tuple(block.labels) not in explained:
            explained.add(tuple(block.labels))
            if names := legend(block.labels, width, indent):
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
        cells = [
            [DIAGONAL if a == b else _one_line(value) for b, value in enumerate(row)]
            for a, row in enumerate(block.cells)
        ]
        lines.append(matrix(block.labels, cells, indent=further, width=width))
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

    A last column of text is wrapped where a line would be wider than `width`; other cells are cut, two
    different ones of a column differently.
    """
    cells = [[str(c) for c in row] for row in [list(head), *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    free = width - len(indent) - 2 * (len(widths) - 1)
    wraps = left >= len(head) and free - sum(widths[:-1]) >= NARROWEST
    if wraps:
        widths[-1] = max(1, min(widths[-1], free - sum(widths[:-1])))
    while sum(widths) > free and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    columns = [
        column if wraps and i == len(widths) - 1 else cut_all(column, widths[i])
        for i, column in enumerate(map(list, zip(*cells, strict=True)))
    ]
    lines = []
    for row in zip(*columns, strict=True):
        *first, last = row
        more = (textwrap.wrap(last, widths[-1], break_on_hyphens=False) or [""]) if wraps else [last]
        for i, part in enumerate(more):
            texts = [*(first if i == 0 else [""] * len(first)), part]
            line = "  ".join(
                text.ljust(w) if at < left else text.rjust(w)
                for at, (text, w) in enumerate(zip(texts, widths, strict=True))
            )
            lines.append((indent + line).rstrip())
    return "\n".join(lines)


def letters(count: int) -> list[str]:
    """A, B, … Z, AA, AB, …"""
    alphabet = string.ascii_uppercase
    return [(alphabet[i // 26 - 1] if i >= 26 else "") + alphabet[i % 26] for i in range(count)]


def needs_letters(labels: Sequence[str], width: int = WIDTH) -> bool:
    """Whether a matrix of these labels gets letters for headers."""
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


def columns_of(labels: Sequence[str], beside: int) -> tuple[list[str], list[str]]:
    """Heads of columns of `labels` in a table with `beside` further ones, and the lines that explain them.

    Where the labels themselves would not fit, letters stand for them.
    """
    width = max(map(len, labels))
    if not needs_letters(labels) and 2 + (len(labels) + beside + 1) * (2 + width) <= WIDTH:
        return list(labels), []
    named = [" = ".join(pair) for pair in zip(letters(len(labels)), labels, strict=True)]
    return letters(len(labels)), [wrap("   ".join(named), "  ", "")]


def matrix(
    labels: Sequence[str],
    cells: NDArray[np.str_] | Sequence[Sequence[str]],
    corner: str = "",
    indent: str = "  ",
    width: int = WIDTH,
) -> str:
    """Align a square matrix of ready cells, in blocks of columns when it is wider than `width`.

    Rows are configs, columns config_b. Long or many labels become the letters of `legend`.
    """
    short = letters(len(labels)) if needs_letters(labels, width) else list(labels)
    stub = max(len(corner), *(len(s) for s in short))
    column = 2 + max(max(len(s) for s in short), *(len(c) for row in cells for c in row))
    fit = max(1, (width - len(indent) - stub) // column)
    fit = -(-len(short) // -(-len(short) // fit))  # blocks of equal width
    parts = []
    for start in range(0, len(short), fit):
        columns = range(start, min(start + fit, len(short)))
        lines = [indent + corner.ljust(stub) + "".join(short[c].rjust(column) for c in columns)]
        for row, name in enumerate(short):
            lines.append(
                indent + name.ljust(stub) + "".join(str(cells[row][c]).rjust(column) for c in columns)
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
