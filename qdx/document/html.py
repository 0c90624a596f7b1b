"""Blocks, figures and the other pieces of a page as HTML, by the templates beside this file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx.document.blocks import Block, Chart, Details, Matrix, Table, Text
from qdx.document.format import cell
from qdx.document.svg import CONTROL, Figure, Own

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
COLUMN = 360  # pixels of a figure's column in page.css; a wider figure gets a row of its own


@cache
def environment() -> Environment:
    """Return the templates' environment: everything that is put into a page is escaped, without exception.

    A control character becomes U+FFFD, as it does in the text report; an undefined name is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else CONTROL.sub("\ufffd", str(value))

    def drawing(svg: str) -> Markup:
        return Markup(svg)  # of `Figure`, which has escaped what is in it

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        keep_trailing_newline=True,
    )
    made.filters |= {"cell": cell, "drawing": drawing}
    return made


def _macro(name: str, *values: object, **options: object) -> str:
    module: Any = environment().get_template("blocks.html.j2").module
    return str(getattr(module, name)(*values, **options))


def _markup(body: str) -> str:
    """Mark HTML that this module has made as HTML."""
    from markupsafe import Markup

    return Markup(body)


def render(blocks: Sequence[Block], drawn: Mapping[str, Own] | None = None) -> str:
    """Write blocks below each other.

    Parameters
    ----------
    blocks : sequence of Block
    drawn : Mapping of str to Own, optional
        The drawings of charts by name; a chart without one shows its table.
    """
    return "".join(_rendered(block, drawn or {}) for block in blocks)


def _rendered(block: Block, drawn: Mapping[str, Own]) -> str:
    if isinstance(block, Text):
        return preformatted(block.text) if block.verbatim else _macro("paragraphs", block.text)
    if isinstance(block, Details):
        return more(block.title, render(block.blocks, drawn))
    if isinstance(block, Chart):
        image = own(drawn[block.name], "the table below") if block.name in drawn else ""
        return image + table_of(block.table)
    return table_of(block.as_table() if isinstance(block, Matrix) else block)


@dataclass(frozen=True)
class Banner:
    """What stands above everything else: a title, what is to be said of it, and a command that mends it."""

    title: str
    text: str = ""
    rows: Sequence[str] = ()
    command: str = ""


@dataclass(frozen=True)
class Part:
    """A part of a page with a heading: where links lead, its title, and its HTML, made by this module."""

    anchor: str
    title: str
    body: str


def page(
    name: str,
    headline: str,
    facts: Sequence[str],
    banners: Sequence[Banner],
    parts: Sequence[Part],
    style: str,
    script: str,
) -> str:
    """Write a page that needs nothing else, and whose browser refuses everything else.

    Parameters
    ----------
    name, headline : str
        Of the browser's tab, and the first sentence of the page.
    facts : sequence of str
        Further sentences.
    banners : sequence of Banner
    parts : sequence of Part
    style, script : str
        Of the program, put into the page as they are.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser itself refuses every request and every script but this one, whatever a text in it says.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            policy=policy,
            name=name,
            headline=headline,
            facts=facts,
            banners=banners,
            parts=[replace(part, body=_markup(part.body)) for part in parts],
            style=_markup(style),
            script=_markup(script),
        )
    )


def table_of(table: Table, *, caption: bool = True) -> str:
    """A table; without `caption` only a screen reader gets it."""
    return _macro("table", table, caption=caption)


def more(summary: str, body: str, css: str = "", *, opened: bool = False) -> str:
    """A part that opens, or that is open and closes."""
    return _macro("details", summary, _markup(body), css, opened=opened)


def figure_of(figure: Figure) -> str:
    """A figure with title, note and the table of what it draws."""
    return _macro("figure", figure, figure.width > COLUMN)


def grid(figures: Sequence[Figure]) -> str:
    """Figures beside each other as the window allows."""
    return f'<div class="figures">{"".join(figure_of(f) for f in figures)}</div>\n' if figures else ""


def own(figure: Own, where: str = "the text below and in sweep.nc") -> str:
    """An analysis' own figure, as an image."""
    return _macro("image", figure, where)


def preformatted(text: str) -> str:
    """Text in columns."""
    return _macro("preformatted", text)


def command(text: str) -> str:
    """A command, broken where the window ends."""
    return _macro("command", text)
