"""Plain-text tables of at most 110 columns, for a terminal and a log file alike."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdx.document.format import number

WIDTH = 110
DIAGONAL = "·"
LONGEST_LABEL = 14  # a longer one gets a letter in matrix headers


def wrap(text: str, indent: str = "", hang: str = "  ") -> str:
    """Wrap a sentence to `WIDTH`, continuation lines indented by `hang` more."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=True,
        break_on_hyphens=False,
    )


def clip(text: str, width: int) -> str:
    """Cut `text` to `width` columns, with an ellipsis where something was lost."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ", left: int = 1) -> str:
    """Align columns: the first `left` to the left, the others to the right; cells are cut to keep `WIDTH`."""
    cells = [[str(c) for c in row] for row in [list(head), *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    while len(indent) + sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in cells:
        parts = [clip(c, w) for c, w in zip(row, widths, strict=True)]
        line = "  ".join(
            p.ljust(w) if i < left else p.rjust(w) for i, (p, w) in enumerate(zip(parts, widths, strict=True))
        )
        lines.append((indent + line).rstrip())
    return "\n".join(lines)


def letters(count: int) -> list[str]:
    """A, B, … Z, AA, AB, …"""
    alphabet = string.ascii_uppercase
    return [(alphabet[i // 26 - 1] if i >= 26 else "") + alphabet[i % 26] for i in range(count)]


def needs_letters(labels: Sequence[str]) -> bool:
    """Whether a matrix of these labels gets letters for headers."""
    return (
        max(map(len, labels)) > LONGEST_LABEL or 2 + (len(labels) + 1) * (2 + max(map(len, labels))) > WIDTH
    )


def legend(labels: Sequence[str]) -> str:
    """Say which letter is which label; empty when matrices carry the labels themselves."""
    if not needs_letters(labels):
        return ""
    entries = [f"{letter} = {label}" for letter, label in zip(letters(len(labels)), labels, strict=True)]
    width = min(max(map(len, entries)), WIDTH - 2)
    across = max(1, (WIDTH - 2 + 3) // (width + 3))
    lines = [entries[i : i + across] for i in range(0, len(entries), across)]
    return "\n".join("  " + "   ".join(clip(e, width).ljust(width) for e in line).rstrip() for line in lines)


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
) -> str:
    """Align a square matrix of ready cells, in blocks of columns when it is wider than `WIDTH`.

    Rows are configs, columns config_b. Long or many labels become the letters of `legend`.
    """
    short = letters(len(labels)) if needs_letters(labels) else list(labels)
    stub = max(len(corner), *(len(s) for s in short))
    width = 2 + max(max(len(s) for s in short), *(len(c) for row in cells for c in row))
    fit = max(1, (WIDTH - len(indent) - stub) // width)
    fit = -(-len(short) // -(-len(short) // fit))  # blocks of equal width
    blocks = []
    for start in range(0, len(short), fit):
        columns = range(start, min(start + fit, len(short)))
        lines = [indent + corner.ljust(stub) + "".join(short[c].rjust(width) for c in columns)]
        for row, name in enumerate(short):
            lines.append(
                indent + name.ljust(stub) + "".join(str(cells[row][c]).rjust(width) for c in columns)
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def distance_cells(values_CC: NDArray[np.float64]) -> list[list[str]]:
    """Cells of a distance matrix; the diagonal, which nobody measures, is a dot."""
    return [
        [DIAGONAL if a == b else number(value) for b, value in enumerate(row)]
        for a, row in enumerate(values_CC)
    ]
