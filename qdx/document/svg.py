"""Small SVG drawings: escaped text, number formats, colours, axes, and what a finished figure carries.

Colours are cividis (sequential) and Okabe and Ito's (categories), which colour-blind readers tell apart;
nothing is said by colour alone. A figure refers to colours by name (``var(--fg)``), which ``figure.css``
defines for light and dark; a figure that is saved alone brings that file with it.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdx.document import format
from qdx.document.blocks import Table as Table
from qdx.document.format import NOT_MEASURED

CHARACTER = 6.7  # width of an average character of a 12 px sans-serif face, for layout without a browser
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# matplotlib's cividis at nine equal steps (Nuñez, Anderton, Renslow 2018, doi:10.1371/journal.pone.0199239)
CIVIDIS = (
    (0, 34, 78),
    (18, 53, 112),
    (59, 73, 108),
    (87, 93, 109),
    (112, 113, 115),
    (138, 134, 120),
    (165, 156, 116),
    (195, 179, 105),
    (254, 232, 56),
)
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def escape(text: object) -> str:
    """Make text from anywhere safe as content or attribute of HTML and SVG: control characters become �."""
    return html.escape(CONTROL.sub("\ufffd", str(text)), quote=True)


def number(value: float, digits: int = 3) -> str:
    """`qdx.document.format.number`; NaN is "not measured"."""
    return format.number(value, digits, NOT_MEASURED)


def clip(text: str, width: int) -> str:
    """Cut the middle out of what is longer than `width`: labels of a sweep begin and end alike."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


@dataclass(frozen=True)
class Figure:
    """A drawing with everything that a reader who cannot see it needs.

    Attributes
    ----------
    name : str
        File name without ``.svg``; unique in a report.
    title, note : str
        Heading, and how to read it with units.
    label : str
        What a screen reader says in place of the drawing.
    body : str
        SVG elements.
    width, height : float
    table : Table
        The drawn numbers.
    """

    name: str
    title: str
    note: str
    label: str
    body: str
    width: float
    height: float
    table: Table

    def inline(self) -> str:
        """The drawing as part of a page."""
        return self._svg(self.width, self.height, "", self.body)

    def standalone(self) -> str:
        """The drawing as a file of its own, with title, note and colours."""
        lines = _lines(self.note, int(self.width / 5.6))
        top = 34 + 14 * len(lines)
        said = "".join(label(8, 40 + 14 * i, line, "small") for i, line in enumerate(lines))
        head = f'<rect class="paper" width="{px(self.width + 16)}" height="{px(self.height + top + 8)}"/>'
        head += label(8, 22, clip(self.title, int(self.width / CHARACTER)), "title") + said
        body = f'{head}<g transform="translate(8 {top})">{self.body}</g>'
        style = f"<style>{palette_css()}</style>"
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + self._svg(
            self.width + 16, self.height + top + 8, style, body
        )

    def _svg(self, width: float, height: float, style: str, body: str) -> str:
        space = ' xmlns="http://www.w3.org/2000/svg"' if style else ""
        return (
            f'<svg{space} class="qdx" role="img" aria-label="{escape(self.label)}" width="{px(width)}" '
            f'height="{px(height)}" viewBox="0 0 {px(width)} {px(height)}">{style}{body}</svg>'
        )


@dataclass(frozen=True)
class Own:
    """A figure that an analysis returned: an SVG document, shown as an image so that nothing in it runs."""

    name: str
    title: str
    svg: str

    def standalone(self) -> str:
        """The document."""
        return self.svg

    def source(self) -> str:
        """A data address of it."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8", "replace")).decode()


def palette_css() -> str:
    """The style of figures: colours for light and dark, and classes."""
    return (Path(__file__).parent / "figure.css").read_text(encoding="utf-8")


def px(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def label(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    """A text element."""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    style = f' class="{css}"' if css else ""
    return f'<text x="{px(x)}" y="{px(y)}"{place}{style}>{escape(text)}</text>'


def rectangle(
    x: float, y: float, width: float, height: float, css: str = "", fill: str = "", tip: str = ""
) -> str:
    """A rectangle, with what a mouse sees over it."""
    style = (f' class="{css}"' if css else "") + (f' fill="{fill}"' if fill else "")
    start = f'<rect x="{px(x)}" y="{px(y)}" width="{px(width)}" height="{px(height)}"{style}'
    return f"{start}><title>{escape(tip)}</title></rect>" if tip else f"{start}/>"


def line(x: float, y: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line x1="{px(x)}" y1="{px(y)}" x2="{px(x2)}" y2="{px(y2)}" class="{css}"/>'


def colour(share: float) -> tuple[str, str]:
    """Cividis at 0…1, and the class of a text that is legible on it."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(at), len(CIVIDIS) - 2)
    rgb = [a + (b - a) * (at - low) for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)]
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
    luminance = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    # WCAG 2 contrast: white on it is (1.05)/(L + .05), black (L + .05)/.05; they are equal at L = .179.
    return "#" + "".join(f"{round(v):02x}" for v in rgb), "dark" if luminance > 0.179 else "light"


class Scale:
    """Places values on a length: logarithmic where they span much, zero in a lane of its own below.

    Parameters
    ----------
    values : sequence of float
        What has to fit; NaN is ignored.
    length : float
        Pixels.
    lane : float
        Pixels that zero has to itself on a logarithmic scale.
    tight : bool
        End at the values themselves, for colours; otherwise at round numbers.
    """

    def __init__(
        self, values: Sequence[float] | np.ndarray, length: float, lane: float = 16.0, *, tight: bool = False
    ) -> None:
        finite = np.asarray(values, float)
        finite = finite[np.isfinite(finite)]
        positive = finite[finite > 0]
        self.empty = not finite.size
        self.zero = bool((finite == 0).any())
        self.log = bool(positive.size and not (finite < 0).any() and positive.max() > 20 * positive.min())
        self.length = length
        if self.log:
            self.low, self.high = math.log10(positive.min()), math.log10(positive.max())
            if not tight:
                self.low, self.high = (
                    math.floor(self.low),
                    max(math.ceil(self.high), math.floor(self.low) + 1),
                )
        else:
            self.low = min(0.0, float(finite.min())) if finite.size else 0.0
            self.high = float(finite.max()) if positive.size else max(self.low, 0.0) or 1.0
            step = _step(self.high - self.low or 1.0)
            self.high = step * math.ceil(self.high / step - 1e-9) if self.high > 0 else 0.0
            self.low = step * math.floor(self.low / step + 1e-9)
            self.high = self.high if self.high > self.low else self.low + step
            self.step = step
            if tight and finite.size and finite.max() > finite.min():
                self.low, self.high = float(finite.min()), float(finite.max())
        self.start = lane if self.log and self.zero else 0.0

    def place(self, value: float) -> float:
        """Pixels from the low end; not a number for NaN."""
        if self.log:
            if value <= 0:
                return 0.0
            value = math.log10(value)
        return self.start + (value - self.low) / (self.high - self.low) * (self.length - self.start)

    def share(self, value: float) -> float:
        """0…1, for a colour."""
        return self.place(value) / self.length

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels, six at most."""
        if not self.log:
            low, high = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
            return [(self.place(i * self.step), f"{i * self.step:,.8g}") for i in range(low, high + 1)]
        first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
        decades = range(first, last + 1, max(1, -(-(last - first) // 5)))
        zero = [(0.0, "0")] if self.zero else []
        return zero + [(self.place(10.0**d), power(d)) for d in decades]


def power(exponent: int) -> str:
    """A power of ten: 0.001 … 1,000 in digits, others as 10⁻⁵."""
    if -3 <= exponent <= 4:
        return f"{10.0**exponent:,.{max(0, -exponent)}f}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _step(span: float) -> float:
    base = 10.0 ** math.floor(math.log10(span / 4))
    return next(base * m for m in (1, 2, 2.5, 5, 10) if base * m * 5 >= span)


def _lines(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
