"""Build what the charts share: sizes, axes, tooltips and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qdx.document.format import NOT_MEASURED
from qdx.document.format import number as cell_number
from qdx.document.vega import DASHES, PALETTE, Scale, Spec, axis, with_unit
from qdx.statistics import Floats

LONGEST = 30  # characters of a label beside a drawing; the table has all of it
SHORTEST = 22  # of a label above a column
BELOW = "The table below holds every value."
WIDTH = 300  # pixels of an axis; a page widens it
HEIGHT = 150
MOST_POINTS = 96  # of a line
MOST_LINES = len(DASHES)
DOTTED = 40  # points of a line that are drawn as dots too
BRANCHES = (PALETTE[5], *PALETTE[:4], *PALETTE[6:], PALETTE[4])  # grey: what most configs say
DARK_UNTIL = 0.47  # share of Vega's cividis up to which white is read better on it than black


def number(value: float) -> str:
    """Write a number for a chart's table; NaN is "not measured"."""
    return cell_number(value, missing=NOT_MEASURED)


def span_of(values: Floats, unit: str) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return NOT_MEASURED
    return f"values from {with_unit(float(finite.min()), unit)} to {with_unit(float(finite.max()), unit)}"


def short(value: float) -> float:
    """A number with the digits that a drawing can show."""
    return float(f"{value:.6g}")


def plain_axis(**more: Any) -> Spec:
    """Labels without a line, ticks or a title."""
    return {"title": None, "domain": False, "ticks": False, "grid": False, **more}


def whole_numbers(values: Sequence[int], form: str) -> Spec:
    """An axis of counts: every one has a tick where they are few."""
    low, high = (min(values), max(values)) if len(values) else (0, 1)
    few: Spec = {"values": list(range(low, high + 1))} if high - low <= 8 else {"tickCount": 6}
    return {"grid": False, "format": form, "labelOverlap": "greedy", **few}


def quantity(scale: Scale, title: str) -> Spec:
    return {"type": "quantitative", "title": title, "scale": scale.spec(), "axis": axis(scale)}


def tooltip(**fields: str) -> list[Spec]:
    """Return what the pointer shows of a mark: its fields, each under a name."""
    return [{"field": field, "type": "nominal", "title": named} for field, named in fields.items()]
