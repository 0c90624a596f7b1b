"""Blocks, figures and the other pieces of a page as HTML, by the templates beside this file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx.document import vega
from qdx.document.blocks import Block, Chart, Details, Matrix, Table, Text
from qdx.document.format import cell
from qdx.document.plain import cleaned

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
COLUMN = 360  # pixels of a chart's column in page.css; a wider chart gets a row of its own
NO_SCRIPT = "Charts are drawn by JavaScript, which is off: the table below each one holds what it shows."
Drawing = vega.Spec | str  # a specification, or an SVG document that is shown as an image


@cache
def environment() -> Environment:
    """Return the templates' environment: everything that is put into a page is escaped, without exception.

    A control character becomes U+FFFD, as it does in the text report; an undefined name is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else cleaned(value)

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        keep_trailing_newline=True,
    )
    made.filters |= {"cell": cell}
    return made


def _macro(name: str, *values: object, **options: object) -> str:
    module: Any = environment().get_template("blocks.html.j2").module
    return str(getattr(module, name)(*values, **options))


def _markup(body: str) -> str:
    """Mark HTML that this module has made as HTML."""
    from markupsafe import Markup

    return Markup(body)


def render(blocks: Sequence[Block], drawn: Mapping[str, Drawing] | None = None) -> str:
    """Write blocks below each other.

    Parameters
    ----------
    blocks : sequence of Block
    drawn : Mapping of str to dict or str, optional
        Of each chart by its name the specification or the SVG document; a chart without one shows its table.
    """
    return "".join(_rendered(block, drawn or {}) for block in blocks)


def _rendered(block: Block, drawn: Mapping[str, Drawing]) -> str:
    if isinstance(block, Text):
        return preformatted(block.text) if block.verbatim else _macro("paragraphs", block.text)
    if isinstance(block, Details):
        return more(block.title, render(block.blocks, drawn))
    if isinstance(block, Chart):
        return figure_of(block, drawn.get(block.name))
    return table_of(block.as_table() if isinstance(block, Matrix) else block)


@dataclass(frozen=True)
class Banner:
    """Show above everything else a title, what is to be said of it, and a command that mends it."""

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
    runtime: str = "",
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
    runtime : str
        JavaScript that draws the charts (`qdx.document.vega.runtime`); empty where there is no chart.
    """
    scripts = [one for one in (runtime, script) if one]
    for one in scripts:
        if "</script" in one.lower() or "<!--" in one:
            raise ValueError("a script of the page holds what would end it")
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    # The browser itself refuses every request and every script but these, whatever a text in it says. Vega
    # reads its expressions by an interpreter (`ast` in page.js): nothing in the page is evaluated as code.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src {allowed}"
    )
    looks = {"light": vega.theme(dark=False), "dark": vega.theme(dark=True)} if runtime else {}
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
            scripts=[_markup(one) for one in scripts],
            looks=_markup(vega.in_page(looks)),
            no_script=NO_SCRIPT if runtime else "",
        )
    )


def table_of(table: Table, *, caption: bool = True) -> str:
    """A table; without `caption` only a screen reader gets it."""
    return _macro("table", table, caption=caption)


def more(summary: str, body: str, css: str = "", *, opened: bool = False) -> str:
    """A part that opens, or that is open and closes."""
    return _macro("details", summary, _markup(body), css, opened=opened)


def figure_of(chart: Chart, drawing: Drawing | None) -> str:
    """A chart with title, note and the table of what it draws; without a drawing the table is all of it."""
    spoken = chart.spoken or f"{chart.heading}. The table below holds every value."
    if isinstance(drawing, str):
        source = "data:image/svg+xml;base64," + base64.b64encode(drawing.encode("utf-8", "replace")).decode()
        return _macro("figure", chart, spoken, image=source, wide=True)
    if drawing is None:
        return _macro("figure", chart, spoken)
    spec, high = _markup(vega.in_page(drawing)), vega.height(drawing)
    return _macro("figure", chart, spoken, spec=spec, high=high, wide=vega.width(drawing) > COLUMN)


def grid(charts: Sequence[Chart], drawn: Mapping[str, Drawing]) -> str:
    """Charts beside each other as the window allows."""
    if not charts:
        return ""
    return f'<div class="figures">{"".join(figure_of(c, drawn.get(c.name)) for c in charts)}</div>\n'


def preformatted(text: str) -> str:
    """Text in columns."""
    return _macro("preformatted", text)


def command(text: str) -> str:
    """A command, broken where the window ends."""
    return _macro("command", text)
