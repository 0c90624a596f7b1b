"""Vega-Lite: how charts look, their scales, and what becomes of a chart in a page, a file and a notebook.

A chart is a specification, plain data that needs no library until it is drawn. A page draws it with the
JavaScript that vl-convert carries, a file is drawn by vl-convert, and in a notebook it is an Altair chart.

Two rules keep what a stranger wrote from doing anything. Text from outside stands only where Vega-Lite takes
a value or a plain string; it never names a field and is never part of an expression. And a specification is
written into a page as JSON without the characters that HTML knows (`in_page`).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qdx.document.format import number
from qdx.document.plain import cleaned
from qdx.errors import QdxError

if TYPE_CHECKING:
    from altair import TopLevelMixin

    from qdx.document.blocks import Chart

Spec = dict[str, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]

HOW_TO_GET = "pip install 'qdx[charts]'"
# Okabe and Ito's colours (jfly.uni-koeln.de/color), the pale ones darkened: colour-blind readers tell them
# apart, and the first six have a contrast of 3 to 1 or more with white and with the page's dark #14181d.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b5548c", "#8a7a00", "#6e7781", "#e69f00", "#56b4e9")
DASHES = ([1, 0], [6, 3], [2, 3], [8, 3, 2, 3])
NEUTRAL = "#808080"  # of noise, links and cells without a value; with an opacity it fits light and dark
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
# A tick is written as `qdx.document.format.number` writes a number, without zeros at its end.
_EDGES = "datum.value === 0 ? '0' : abs(datum.value) < 1e-3 || abs(datum.value) >= 1e5"
TICK = f"{_EDGES} ? replace(format(datum.value, '.2~e'), 'e+', 'e') : format(datum.value, ',.3~r')"
# The same with all its digits, as a table has it.
SAID = TICK.replace("~", "")
MOST_TICKS = 6
MARGIN = 1.25  # factor by which a logarithmic axis goes on beyond its values
CLEAR = 0.32  # share of a legend that a label at its end needs free beside it
APART = 0.22  # share of a legend between two labels


def theme(dark: bool) -> Spec:
    """Return the colours and fonts of axes, legends and texts, as Vega-Lite's ``config``."""
    text, soft, grid = ("#e6edf3", "#a3adb8", "#343b44") if dark else ("#1b1f24", "#57606a", "#d8dee4")
    words: Spec = {"labelColor": text, "titleColor": soft, "labelFont": FONT, "titleFont": FONT}
    sizes: Spec = {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    return {
        "background": "#14181d" if dark else "#ffffff",
        "font": FONT,
        # The page says in words what a chart shows, and has its table: its parts are not read out.
        "aria": False,
        "mark": {"aria": False},
        "axis": {"aria": False, **words, **sizes, "gridColor": grid, "domainColor": soft, "tickColor": soft},
        "legend": {"aria": False, **words, **sizes, "orient": "bottom", "offset": 8},
        "title": {"color": text, "subtitleColor": soft, "font": FONT, "anchor": "start"},
        "view": {"stroke": None},
        "text": {"color": text, "font": FONT, "fontSize": 12},
        "rule": {"color": soft},
        "point": {"color": text},
    }


class Scale:
    """Place values on an axis or among colours: logarithmic where they span much, with 0 below them.

    Parameters
    ----------
    values : array
        What has to fit; NaN is ignored.
    tight : bool
        End at the values themselves, for colours; otherwise the axis may end at round numbers.
    """

    def __init__(self, values: Sequence[float] | Floats, *, tight: bool = False) -> None:
        finite = np.asarray(values, float).ravel()
        finite = finite[np.isfinite(finite)]
        positive = finite[finite > 0]
        self.tight = tight
        self.zero = bool((finite == 0).any())
        self.log = bool(positive.size and not (finite < 0).any() and positive.max() > 20 * positive.min())
        self.least = float(positive.min()) if positive.size else 1.0
        low = float(finite.min()) if finite.size else 0.0
        self.low = low if tight or low < 0 or self.log else 0.0
        self.high = float(finite.max()) if finite.size else 1.0
        if self.high <= self.low:  # one value alone
            self.low, self.high = (0.0, self.high or 1.0) if self.high >= 0 else (self.low, 0.0)
            self.log = False
        if self.log and not tight:  # so that no dot is cut at the edge
            self.low, self.high = self.low / MARGIN, self.high * MARGIN

    @property
    def word(self) -> str:
        """Return what the title of the axis says of the scale."""
        return ", log" if self.log else ""

    def spec(self) -> Spec:
        """Return the scale as Vega-Lite's ``scale``."""
        ends: Spec = {"domain": [self.low, self.high]}
        if self.log and self.zero:
            # log(1 + v / least): 0 is a third of a decade below the least other value.
            return {"type": "symlog", "constant": self.least, **ends}
        if self.log:
            return {"type": "log", **ends}
        return {**ends, "nice": not self.tight, "zero": False}

    def share(self, value: float) -> float:
        """Return where a value stands between the ends, 0…1."""
        low, high = self.low, self.high
        if self.log and self.zero:
            return math.log1p(value / self.least) / math.log1p(high / self.least)
        if self.log:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def ticks(self) -> list[float] | None:
        """Return where the labels of an axis stand; None where Vega's own are right, on a linear axis."""
        if not self.log:
            return None
        first, last = math.ceil(math.log10(self.least) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        decades = [10.0**d for d in range(first, last + 1, max(1, -(-(last - first) // MOST_TICKS)))]
        if len(decades) < 3:
            near = range(first - 1, last + 1)
            every = [m * 10.0**d for d in near for m in (1, 2, 5)]
            decades = [v for v in every if self.least <= v <= self.high * (1 + 1e-9)]
        return [*([0.0] if self.zero else []), *decades]

    def legend(self) -> list[float]:
        """Return what a legend of colours names: its ends, which are data, and what fits between."""
        found = [self.low, self.high]
        step = 10.0 ** math.floor(math.log10(self.high - self.low))
        linear = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        for value in self.ticks() or linear:
            at = self.share(value)
            if CLEAR <= at <= 1 - CLEAR and all(abs(at - self.share(v)) >= APART for v in found):
                found.append(value)
        return sorted(found)


def axis(scale: Scale, **more: Any) -> Spec:
    """Return the axis of a scale, with numbers as the tables write them."""
    ticks = scale.ticks()
    chosen: Spec = {"values": ticks} if ticks else {"tickCount": 5}
    return {"labelExpr": TICK, "labelOverlap": "greedy", **chosen, **more}


def ink(colour: str) -> str:
    """Return black or white, whichever is read better on a colour such as ``#0072b2``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    luminance = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    # WCAG 2: white on it has 1.05 / (L + .05), black (L + .05) / .05; they are equal at L = .179.
    return "#000000" if luminance > 0.179 else "#ffffff"


def with_unit(value: float, unit: str) -> str:
    """Write a value with its unit, or that it was not measured."""
    return number(value, missing="not measured") + (f" {unit}" if unit and math.isfinite(value) else "")


def with_bracket(what: str, unit: str) -> str:
    """Write what is shown and in which unit: ``l2 [nat]``."""
    return f"{what} [{unit or 'no unit'}]"


def specification(drawing: Any) -> Spec:
    """Return a chart's specification as plain JSON values.

    Parameters
    ----------
    drawing : Mapping or altair chart
        A specification, or what has ``to_dict``.

    Returns
    -------
    dict
        Numbers that JSON does not know are None, control characters in texts are U+FFFD.

    Raises
    ------
    QdxError
        For what is not a specification of Vega-Lite.
    """
    found = drawing.to_dict() if hasattr(drawing, "to_dict") else drawing
    if not isinstance(found, Mapping) or not _DRAWN & set(found) or "vega-lite" not in _schema(found):
        raise QdxError(
            f"a chart must be a Vega-Lite specification, an Altair chart, SVG text, or have savefig or "
            f"_repr_svg_, got {type(drawing).__name__}"
        )
    plain = _plain(found)
    assert isinstance(plain, dict)
    return plain


_DRAWN = {"mark", "layer", "hconcat", "vconcat", "concat", "facet", "repeat", "spec"}


def _schema(found: Mapping[str, Any]) -> str:
    return str(found.get("$schema", "vega-lite"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {cleaned(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def image(drawing: Any) -> str | None:
    """Return the SVG document of a drawing that is an image already; None for a specification.

    Parameters
    ----------
    drawing : Any
        SVG text, or what has ``savefig`` (matplotlib) or ``_repr_svg_``.
    """
    if hasattr(drawing, "savefig"):
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg")
        drawing = buffer.getvalue()
    elif hasattr(drawing, "_repr_svg_"):
        drawing = drawing._repr_svg_()
    if not isinstance(drawing, str) or "<svg" not in drawing:
        return None
    named = '<svg xmlns="http://www.w3.org/2000/svg"'
    return drawing if "xmlns" in drawing else drawing.replace("<svg", named, 1)


def in_page(spec: Mapping[str, Any]) -> str:
    """Write a specification as JSON that cannot end the ``<script>`` it stands in, or be read as HTML."""
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 is an escape too
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def height(spec: Mapping[str, Any]) -> int:
    """Return about how many pixels a chart is high, so that a page keeps the place free."""
    given = spec.get("height", 200)
    if isinstance(given, Mapping):
        domain = spec.get("encoding", {}).get("y", {}).get("scale", {}).get("domain", [])
        given = given.get("step", 20) * len(domain)
    return int(given) + 70 if isinstance(given, int | float) else 270


def width(spec: Mapping[str, Any]) -> int:
    """Return about how many pixels a chart needs, with the labels of its rows."""
    given = spec.get("width", 320)
    if not isinstance(given, Mapping):
        return 0  # a page fits it to the window
    encoding = spec.get("encoding", {})
    rows, columns = (encoding.get(c, {}).get("scale", {}).get("domain", []) for c in ("y", "x"))
    return int(given.get("step", 20) * len(columns) + 7 * max((len(str(row)) for row in rows), default=0))


def titled(spec: Mapping[str, Any], title: str, note: str) -> Spec:
    """Return the specification with title and note, for files and notebooks: a page shows them itself."""
    import textwrap

    given = spec.get("width", 320)
    room = int((given if isinstance(given, int | float) else 320) / 5.2)
    return {**spec, "title": {"text": textwrap.wrap(title, room), "subtitle": textwrap.wrap(note, room)}}


def svg(spec: Mapping[str, Any]) -> str:
    """Draw a chart as an SVG document, in light colours.

    Raises
    ------
    QdxError
        Without vl-convert, or when Vega-Lite refuses the specification.
    """
    convert = _vl_convert()
    try:
        # It may read nothing: neither an address nor a file.
        drawn = convert.vegalite_to_svg(
            json.dumps(_plain(spec)), config=theme(dark=False), allowed_base_urls=[]
        )
    except ValueError as error:
        lines = [line for line in str(error).splitlines() if not line.lstrip().startswith("at ")]
        raise QdxError(f"Vega-Lite refuses a chart: {' '.join(lines)}") from error
    return str(drawn)


def runtime() -> str:
    """Return the JavaScript that draws charts in a page: Vega, Vega-Lite and Vega-Embed.

    Raises
    ------
    QdxError
        Without vl-convert.
    """
    # Its names stay its own; it leaves `vegaEmbed` in the window.
    return f"(() => {{{_vl_convert().javascript_bundle()}\n}})();"


def versions() -> str:
    """Return what the JavaScript consists of, as a name of a file.

    Raises
    ------
    QdxError
        Without vl-convert.
    """
    convert = _vl_convert()
    return f"vl-convert-{convert.__version__}-vega-{convert.get_vega_version()}"


def _vl_convert() -> Any:
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise QdxError(f"charts need vl-convert, which is not installed: {HOW_TO_GET}") from error
    return vl_convert


def altair(chart: Chart) -> TopLevelMixin:
    """Return a chart of qdx as an Altair chart, to be shown, changed or layered in a notebook.

    Raises
    ------
    QdxError
        Without Altair, or for a drawing that is an image.
    """
    try:
        import altair as library
    except ModuleNotFoundError as error:
        raise QdxError(f"charts in a notebook need Altair, which is not installed: {HOW_TO_GET}") from error
    spec = titled(specification(chart.drawing), chart.title, chart.note)
    made: TopLevelMixin = library.Chart.from_dict(spec)
    return made
