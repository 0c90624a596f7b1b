"""Blocks as Markdown, in which nothing from outside has a meaning."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qdx.document.blocks import Block, Chart, Details, Matrix, Table, Text
from qdx.document.format import cell
from qdx.document.plain import cleaned


def render(blocks: Sequence[Block]) -> str:
    """Write blocks below each other; a chart is its table."""
    return "\n\n".join(part for block in blocks if (part := _rendered(block)))


def _rendered(block: Block) -> str:
    if isinstance(block, Text):
        if block.verbatim:
            return fence(block.text)
        return "\n\n".join(plain(line) for line in block.text.split("\n") if line.strip())
    if isinstance(block, Details):
        return f"**{plain(block.title)}**\n\n{render(block.blocks)}"
    if isinstance(block, Chart):
        block = block.table
    return table(block.as_table() if isinstance(block, Matrix) else block)


def plain(text: object) -> str:
    """Text from anywhere as one line of Markdown in which nothing has a meaning."""
    line = " ".join(cleaned(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", line)


def fence(text: str) -> str:
    """A block of text as it is, in more backticks than it has."""
    clean = cleaned(text)
    longest = max((len(run) for run in re.findall("`+", clean)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{clean}\n{ticks}" if text else ""


def table(of: Table, title: str = "") -> str:
    """A table with its caption above and its note below."""
    head = f"| {' | '.join(plain(h) for h in of.head)} |"
    rule = f"|{'|'.join('---' if i < of.left else '--:' for i in range(len(of.head)))}|"
    rows = [f"| {' | '.join(plain(cell(c)) for c in row)} |" for row in of.rows]
    caption = plain(title or of.caption)
    return "\n".join(
        [*([caption, ""] if caption else []), head, rule, *rows, *(["", plain(of.note)] if of.note else [])]
    )
