"""Pieces of the HTML page: sections, tables, figures, parts that open, commands."""

from __future__ import annotations

from collections.abc import Sequence

from qdx.document.svg import Figure, Own, Table, escape

COLUMN = 360  # pixels of a figure's column in page.css; a wider figure gets a row of its own


def section_of(anchor: str, title: str, body: str) -> str:
    """A landmark with its heading."""
    head = f'<h2 id="{anchor}">{escape(title)}</h2>'
    return f'<section aria-labelledby="{anchor}">\n{head}\n{body}\n</section>\n'


def table_of(table: Table, *, caption: bool = True) -> str:
    """A table; without `caption` only a screen reader gets it."""
    numeric = ["" if i < table.left else ' class="num"' for i in range(len(table.head))]
    head = "".join(f'<th scope="col"{n}>{escape(h)}</th>' for n, h in zip(numeric, table.head, strict=True))
    rows = []
    for row in table.rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [f"<td{n}>{escape(c)}</td>" for n, c in zip(numeric[1:], row[1:], strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    css = "" if caption else ' class="unseen"'
    return (
        f'<div class="scroll"><table><caption{css}><span>{escape(table.caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def more(summary: str, body: str, css: str = "", *, opened: bool = False) -> str:
    """A part that opens, or that is open and closes."""
    start = "<details" + (f' class="{css}"' if css else "") + (" open>" if opened else ">")
    return f"{start}<summary>{escape(summary)}</summary>{body}</details>\n"


def figure_of(figure: Figure) -> str:
    """A figure with title, note and the table of what it draws."""
    note = f"<span>{escape(figure.note)}</span>" if figure.note else ""
    css = ' class="wide"' if figure.width > COLUMN else ""
    return (
        f"<figure{css}><figcaption><strong>{escape(figure.title)}</strong>{note}</figcaption>"
        f'<div class="scroll">{figure.inline()}</div>'
        f"{more('Table of ' + figure.title, table_of(figure.table, caption=False))}</figure>\n"
    )


def grid(figures: Sequence[Figure]) -> str:
    """Figures beside each other as the window allows."""
    return f'<div class="figures">{"".join(figure_of(f) for f in figures)}</div>\n' if figures else ""


def own(figure: Own) -> str:
    """An analysis' own figure, as an image."""
    title = escape(figure.title)
    return (
        f'<figure class="wide"><figcaption><strong>{title}</strong></figcaption><div class="scroll">'
        f'<img src="{figure.source()}" alt="{title}: the numbers are in the text below and in sweep.nc">'
        "</div></figure>\n"
    )


def preformatted(text: str) -> str:
    """Text in columns."""
    return f'<pre class="scroll">{escape(text)}</pre>'


def command(text: str) -> str:
    """A command, broken where the window ends."""
    return f'<pre class="command"><code>{escape(text)}</code></pre>'
