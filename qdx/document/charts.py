"""The charts of a report from plain arrays: matrix, positions, curves, signal and noise, strips, bars.

Each function returns a `Chart`: a specification of Vega-Lite, the table of what it draws, and words for who
sees neither. An analysis puts it among its blocks; in a notebook ``.altair()`` makes an Altair chart of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from qdx.document.blocks import Chart, Table
from qdx.document.format import DASH, NOT_MEASURED, plural
from qdx.document.format import number as cell_number
from qdx.document.labels import cut_all
from qdx.document.text import letters
from qdx.document.vega import (
    DASHES,
    NEUTRAL,
    PALETTE,
    SAID,
    TICK,
    Scale,
    Spec,
    axis,
    ink,
    with_bracket,
    with_unit,
)
from qdx.statistics import Floats, Ints

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


def matrix(
    name: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values_RC: Floats,
    *,
    unit: str = "",
    note: str = "",
    domain: Floats | None = None,
    corner: str = "",
    row_is: str = "row: p, column: q",
    phase: str = "",
) -> Chart:
    """Draw one value for every row and column as a heatmap.

    Parameters
    ----------
    name, title, note : str
        As of `Chart`.
    rows, columns : sequence of str
        Labels. Where both are the same configs, columns are named by letters and the diagonal is not read.
    values_RC : array (row, column)
        NaN is not measured.
    unit : str
        ``nat``, or nothing.
    domain : array, optional
        What the colours span, so that several matrices share them; default: the values.
    corner : str
        What the rows are, where they are other things than the columns, although of the same names.
    row_is : str
        What rows and columns are, for the table.
    phase : str
        As of `Table`.

    Returns
    -------
    Chart

    Raises
    ------
    ValueError
        When the values have another shape.
    """
    values_RC = np.asarray(values_RC, float)
    if values_RC.shape != (len(rows), len(columns)):
        raise ValueError(f"values of shape {values_RC.shape} for {len(rows)} rows and {len(columns)} columns")
    square = not corner and list(rows) == list(columns)
    read = ~np.eye(len(rows), dtype=bool) if square else np.ones(values_RC.shape, bool)
    scale = Scale(values_RC[read] if domain is None else domain, tight=True)
    across = letters(len(columns)) if square else cut_all(list(columns), SHORTEST)
    down = cut_all(list(rows), LONGEST)
    if square:
        down = [f"{letter}  {label}" for letter, label in zip(across, down, strict=True)]
    cells: list[Spec] = []
    for r, c in np.ndindex(values_RC.shape):
        value = float(values_RC[r, c])
        kind = "self" if not read[r, c] else "value" if np.isfinite(value) else "missing"
        cell: Spec = {"row": down[r], "column": across[c], "p": rows[r], "q": columns[c], "kind": kind}
        if kind == "value":
            light = scale.share(value) > DARK_UNTIL
            cell |= {
                "value": _short(value),
                "text": cell_number(value),
                "ink": "#000000" if light else "#ffffff",
            }
        else:
            cell["text"] = "·" if kind == "self" else DASH
        cell["said"] = "the same config" if kind == "self" else with_unit(value, unit)
        cells.append(cell)
    off = values_RC[read]
    wide, high = (58, 30) if len(columns) <= 6 else (50, 24)
    missing = f"; {DASH} not measured" if np.isnan(off).any() else ""
    drawing: Spec = {
        "data": {"values": cells},
        "width": {"step": wide},
        "height": {"step": high},
        "encoding": {
            "x": {
                "field": "column",
                "type": "nominal",
                "scale": {"domain": across, "paddingInner": 0.04},
                "axis": _plain_axis(orient="top", labelAngle=0 if square else -35, labelLimit=180),
            },
            "y": {
                "field": "row",
                "type": "nominal",
                "scale": {"domain": down, "paddingInner": 0.06},
                "axis": _plain_axis(labelLimit=260),
            },
            "tooltip": _tooltip(p="row", q="column", said="value"),
        },
        "layer": [
            {
                "transform": [{"filter": "datum.kind !== 'value'"}],
                "mark": {"type": "rect", "fill": NEUTRAL, "fillOpacity": 0.16},
            },
            {
                "transform": [{"filter": "datum.kind === 'value'"}],
                "mark": {"type": "rect"},
                "encoding": {
                    "color": {
                        "field": "value",
                        "type": "quantitative",
                        "scale": {**scale.spec(), "scheme": "cividis"},
                        "legend": {
                            **axis(scale, values=scale.legend()),
                            "title": f"{unit or 'no unit'}{scale.word}{missing}",
                            "direction": "horizontal",
                            "gradientLength": 200,
                            "gradientThickness": 8,
                        },
                    }
                },
            },
            {
                "transform": [{"filter": "datum.kind === 'value'"}],
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "text": {"field": "text"},
                    "fill": {"field": "ink", "type": "nominal", "scale": None},
                },
            },
            {
                "transform": [{"filter": "datum.kind !== 'value'"}],
                "mark": {"type": "text"},
                "encoding": {"text": {"field": "text"}},
            },
        ],
    }
    table_rows = [
        [rows[r], *("·" if not read[r, c] else number(float(values_RC[r, c])) for c in range(len(columns)))]
        for r in range(len(rows))
    ]
    table = Table(
        f"{with_bracket(title, unit)}; {row_is}",
        ["config" if square else corner, *columns],
        table_rows,
        phase=phase,
    )
    spoken = f"Heatmap, {title}: {len(rows)} rows by {len(columns)} columns, {_range(off, unit)}. {BELOW}"
    return Chart(name, drawing, table, title, note, spoken)


def positions(
    name: str,
    title: str,
    position: Ints,
    lines_RP: Floats,
    references: Sequence[str],
    *,
    what: str,
    unit: str = "",
    note: str = "",
    line: str = "reference",
    noise_P: Floats | None = None,
    domain: Floats | None = None,
    phase: str = "",
) -> Chart:
    """Draw a distance at every position: a line a reference, the noise floor as a band.

    Parameters
    ----------
    name, title, note : str
        As of `Chart`.
    position : array (position,)
        Token indices.
    lines_RP : array (reference, position)
        NaN where nothing was measured: the line is broken there.
    references : sequence of str
        Names of the lines.
    what : str
        Name of the metric, on the axis.
    unit : str
        ``nat``, or nothing.
    line : str
        What a line stands for.
    noise_P : array (position,), optional
        Upper end of the band; None where nothing was repeated.
    domain : array, optional
        What the axis spans, so that charts beside each other share it; default: lines and noise.
    phase : str
        As of `Table`.

    Returns
    -------
    Chart
        At most `MOST_LINES` lines of `MOST_POINTS` points: means of neighbouring positions where there are
        more, and the greatest noise of them.
    """
    keep = np.isfinite(lines_RP).any(0)
    position, lines_RP = np.asarray(position)[keep], lines_RP[:MOST_LINES, keep]
    noise_P = noise_P[keep] if noise_P is not None else None
    if domain is None:
        domain = np.concatenate([lines_RP.ravel(), noise_P[noise_P > 0] if noise_P is not None else []])
    position, lines_RP, noise_P, bins = _binned(position, lines_RP, noise_P)
    scale = Scale(domain)
    shown = list(references[:MOST_LINES])
    names = cut_all(shown, SHORTEST)
    gaps = _gaps(position)
    points: list[Spec] = []
    for called, row in zip(names, lines_RP, strict=True):
        for part in np.split(np.arange(len(position)), gaps):
            finite = np.isfinite(row[part])
            for i, here in zip(part, finite, strict=True):
                beside = [j for j in (i - 1, i + 1) if j in part and np.isfinite(row[j])]
                dot = {"dot": 1} if here and (not beside or len(position) <= DOTTED) else {}
                value = _short(row[i]) if here else None
                points.append({"at": int(position[i]), "line": called, "value": value, **dot})
            if len(part) and part[-1] + 1 < len(position):  # nothing was captured between here and the next
                points.append({"at": int(position[part[-1]]) + 1, "line": called, "value": None})
    peak = float(np.nanmax(noise_P)) if noise_P is not None and np.isfinite(noise_P).any() else float("nan")
    x = {
        "field": "at",
        "type": "quantitative",
        "title": "position (token index)",
        "scale": {"zero": False, "nice": False, "padding": 6},
        "axis": _whole_numbers(position.tolist(), ",d"),
    }
    y = _quantity(scale, f"{with_bracket(what, unit)}{scale.word}")
    layers: list[Spec] = _band(position, noise_P, gaps, scale, y) if peak > 0 else []
    layers += _lines(points, names, y, _tooltip(at="position", line=line, said=with_bracket(what, unit)))
    drawing: Spec = {"width": WIDTH, "height": HEIGHT, "encoding": {"x": x}, "layer": layers}
    means = [f"each point is the mean of up to {bins} rows"] if bins > 1 else []
    if len(references) > len(shown):
        means.append(f"drawn: the first {len(shown)} of {plural(len(references), line)}")
    # Where there is no band to see, the note says why.
    floor = "noise floor 0: repeats are bit-equal" if peak == 0 else f"noise floor {NOT_MEASURED}"
    said = "; ".join([*([note] if note else []), *means, *([] if peak > 0 else [floor])])
    low, high = (int(position.min()), int(position.max())) if len(position) else (0, 0)
    spoken = (
        f"Line chart, {title}: {what} from position {low} to {high}, {_range(lines_RP, unit)}; "
        f"noise floor at most {with_unit(peak, unit)}. The table below holds every point."
    )
    rows = [
        [
            f"{p:,}",
            *(number(float(v)) for v in lines_RP[:, i]),
            number(float(noise_P[i])) if noise_P is not None else NOT_MEASURED,
        ]
        for i, p in enumerate(position)
    ]
    caption = "; ".join([f"{title}: {with_bracket(what, unit)}", *means])
    table = Table(caption, ["position", *shown, "noise floor"], rows, phase=phase)
    return Chart(name, drawing, table, title, said, spoken)


def _binned(
    position: Ints, lines_RP: Floats, noise_P: Floats | None
) -> tuple[Ints, Floats, Floats | None, int]:
    """Means of neighbouring rows (the noise: their greatest), so that no line has more than `MOST_POINTS`."""
    size = max(1, -(-len(position) // MOST_POINTS))
    if size == 1:
        return position, lines_RP, noise_P, 1
    starts = np.arange(0, len(position), size)
    finite = np.isfinite(lines_RP)
    count = np.add.reduceat(finite, starts, axis=1)
    total = np.add.reduceat(np.where(finite, lines_RP, 0.0), starts, axis=1)
    with np.errstate(invalid="ignore"):
        means = total / np.where(count, count, np.nan)
    noise = np.fmax.reduceat(noise_P, starts) if noise_P is not None else None
    return position[starts], means, noise, size


def _gaps(position: Ints) -> Ints:
    """Where a line is broken: indices after a step of more than twice the usual one."""
    steps = np.diff(position)
    return np.flatnonzero(steps > 2 * np.median(steps)) + 1 if len(steps) else np.array([], int)


def _band(position: Ints, noise_P: Floats | None, gaps: Ints, scale: Scale, y: Spec) -> list[Spec]:
    """The noise floor as an area from the bottom, with a dashed edge, for every run of positions."""
    assert noise_P is not None
    bottom = 0.0 if not scale.log or scale.zero else scale.low
    values: list[Spec] = []
    for part in np.split(np.arange(len(position)), gaps):
        for i in part:
            noise = float(noise_P[i])
            top = _short(max(noise, bottom)) if np.isfinite(noise) else None
            values.append({"at": int(position[i]), "noise": top})
        if len(part) and part[-1] + 1 < len(position):
            values.append({"at": int(position[part[-1]]) + 1, "noise": None})
    upper = {**y, "field": "noise"}
    return [
        {
            "data": {"values": values},
            "encoding": {"y": upper},
            "layer": [
                {
                    "mark": {"type": "area", "fill": NEUTRAL, "fillOpacity": 0.3, "clip": True},
                    "encoding": {"y2": {"datum": bottom}},
                },
                {
                    "mark": {
                        "type": "line",
                        "stroke": NEUTRAL,
                        "strokeDash": [3, 2],
                        "strokeWidth": 1.2,
                        "clip": True,
                    }
                },
            ],
        }
    ]


def _lines(points: list[Spec], names: Sequence[str], y: Spec, tooltip: list[Spec]) -> list[Spec]:
    """Lines that are told apart by colour and dash, with the point that is nearest to the pointer."""
    domain = list(names)
    told: Spec = {"field": "line", "type": "nominal"}
    longest = max(map(len, domain), default=0)
    columns = 4 if longest <= 8 else 2 if longest <= SHORTEST else 1
    legend = {"title": None, "symbolType": "stroke", "symbolSize": 300, "labelLimit": 220, "columns": columns}
    told |= {"legend": legend}
    stroke = {**told, "scale": {"domain": domain, "range": list(PALETTE[: len(domain)])}}
    dash = {**told, "scale": {"domain": domain, "range": list(DASHES[: len(domain)])}}
    shared = {"y": {**y, "field": "value"}, "stroke": stroke}
    circle: Spec = {"type": "point", "shape": "circle", "filled": False, "opacity": 1, "clip": True}
    # Without Shift the wheel scrolls the page and a finger moves it.
    zoom: Spec = {
        "name": "zoom",
        "bind": "scales",
        "select": {
            "type": "interval",
            "encodings": ["x"],
            "zoom": "wheel![event.shiftKey]",
            "translate": "[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
        },
    }
    near: Spec = {
        "name": "near",
        "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"},
    }
    return [
        {
            "data": {"values": points},
            "encoding": shared,
            "layer": [
                {
                    "params": [zoom],
                    "mark": {"type": "line", "strokeWidth": 1.7, "clip": True},
                    "encoding": {"strokeDash": dash},
                },
                {
                    "transform": [{"filter": "datum.dot === 1"}],
                    "mark": {**circle, "size": 4, "strokeWidth": 3},
                },
                {
                    "params": [near],
                    "transform": [{"filter": "isValid(datum.value)"}, {"calculate": SAID, "as": "said"}],
                    "mark": {**circle, "size": 60, "strokeWidth": 2.5},
                    "encoding": {
                        "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
                        "tooltip": tooltip,
                    },
                },
            ],
        }
    ]


def curves(
    name: str,
    title: str,
    x: Floats,
    lines_LX: Floats,
    lines: Sequence[str],
    *,
    across: str,
    up: str,
    note: str = "",
    named: str = "",
    spoken: str = "",
    caption: str = "",
) -> Chart:
    """Draw shares from 0 to 1 over `x`, a line each.

    Parameters
    ----------
    name, title, note : str
        As of `Chart`.
    x : array (x,)
    lines_LX : array (line, x)
        NaN where nothing is known.
    lines : sequence of str
        What the lines stand for; the first `MOST_LINES` are drawn, all are in the table.
    across, up : str
        What the axes show.
    named : str
        A word before each name in the legend.
    spoken, caption : str
        As of `Chart` and `Table`; default: the title.

    Returns
    -------
    Chart
        The table has 32 rows at most, evenly spaced.
    """
    shown = list(lines)[:MOST_LINES]
    names = cut_all([f"{named} {line}".strip() for line in shown], LONGEST)
    dot = {"dot": 1} if len(x) <= DOTTED else {}
    points = [
        {"at": _short(a), "line": called, "value": _short(v), **dot}
        for called, row in zip(names, lines_LX, strict=False)
        for a, v in zip(x, row, strict=True)
        if np.isfinite(v)
    ]
    scale = {"domain": [0, 1]}
    y = {"type": "quantitative", "title": up, "scale": scale, "axis": {"values": [0, 0.5, 1], "format": "~g"}}
    horizontal = {
        "field": "at",
        "type": "quantitative",
        "title": across,
        "scale": {
            "zero": False,
            "nice": False,
            "domain": [float(x.min()), float(x.max())] if len(x) else [0, 1],
        },
        "axis": {"grid": False, "tickCount": 6, "labelOverlap": "greedy"},
    }
    tooltip = _tooltip(at=across, line="line", said=up)
    drawing: Spec = {
        "width": WIDTH,
        "height": HEIGHT,
        "encoding": {"x": horizontal},
        "layer": _lines(points, names, y, tooltip),
    }
    step = max(1, -(-len(x) // 32))
    rows = [[f"{v:.3g}", *(number(float(s)) for s in lines_LX[:, i])] for i, v in enumerate(x)][::step]
    table = Table(caption or title, [across, *lines], rows)
    return Chart(name, drawing, table, title, note, spoken or f"Line chart, {title}: {up}. {BELOW}")


def signal_and_noise(
    name: str,
    title: str,
    pairs: Sequence[tuple[str, str]],
    distance: Floats,
    noise: Floats,
    ratio: Sequence[str],
    *,
    unit: str = "",
    note: str = "",
    phase: str = "",
) -> Chart:
    """Draw every pair's distance beside the noise of its two configs, on one axis.

    Parameters
    ----------
    name, title, note : str
        As of `Chart`.
    pairs : sequence of (str, str)
    distance, noise : array (pair,)
        NaN where it was not measured.
    ratio : sequence of str
        Signal to noise as text: "13.2", "exact", "equal", "floor 0, rows differ", "not measured".
    unit : str
        ``nat``, or nothing.
    phase : str
        As of `Table`.

    Returns
    -------
    Chart
    """
    scale = Scale(np.concatenate([distance, noise]))
    called = cut_all([f"{a} ~ {b}" for a, b in pairs], 40)
    rows: list[Spec] = []
    dots: list[Spec] = []
    for i, (a, b) in enumerate(pairs):
        d, n = float(distance[i]), float(noise[i])
        finite = [v for v in (d, n) if np.isfinite(v)]
        row = {"pair": i, "called": called[i], "ratio": ratio[i]}
        rows.append({**row, "low": min(finite, default=None), "high": max(finite, default=None)})
        for kind, value in (("noise of the pair", n), ("distance", d)):
            if np.isfinite(value):
                said = with_unit(value, unit)
                dots.append({**row, "kind": kind, "value": value, "said": said, "full": f"{a} ~ {b}"})
    y: Spec = {"field": "pair", "type": "ordinal", "scale": {"domain": list(range(len(pairs)))}, "axis": None}
    x = _quantity(scale, f"{unit or 'no unit'}{scale.word}; right: signal to noise")
    text: Spec = {"type": "text", "baseline": "bottom", "dy": -5}
    kinds = ["noise of the pair", "distance"]
    drawing: Spec = {
        "width": WIDTH,
        "height": 40 * max(len(pairs), 1),
        "encoding": {"y": y},
        "layer": [
            {
                "data": {"values": rows},
                "mark": {"type": "rule", "stroke": NEUTRAL, "strokeWidth": 2, "yOffset": 8},
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            {
                "data": {"values": dots},
                "mark": {"type": "point", "size": 90, "filled": True, "opacity": 1, "yOffset": 8},
                "encoding": {
                    "x": {**x, "field": "value"},
                    "shape": {
                        "field": "kind",
                        "type": "nominal",
                        "scale": {"domain": kinds, "range": ["circle", "diamond"]},
                        "legend": {"title": None},
                    },
                    "color": {
                        "field": "kind",
                        "type": "nominal",
                        "scale": {"domain": kinds, "range": [PALETTE[1], PALETTE[0]]},
                        "legend": {"title": None},
                    },
                    "tooltip": _tooltip(full="pair", kind="is", said="value", ratio="signal to noise"),
                },
            },
            {
                "data": {"values": rows},
                "mark": {**text, "align": "left"},
                "encoding": {"x": {"value": 0}, "text": {"field": "called"}},
            },
            {
                "data": {"values": rows},
                "mark": {**text, "align": "right", "fontWeight": "bold"},
                "encoding": {"x": {"value": {"expr": "width"}}, "text": {"field": "ratio"}},
            },
        ],
    }
    spoken = f"Dot chart, {title}: {len(pairs)} pairs, distances {_range(distance, unit)}. {BELOW}"
    of = f" [{unit or 'no unit'}]"
    table = Table(
        title,
        ["pair", f"distance{of}", f"noise{of}", "signal to noise [no unit]"],
        [
            [f"{a} ~ {b}", number(float(distance[i])), number(float(noise[i])), ratio[i]]
            for i, (a, b) in enumerate(pairs)
        ],
        phase=phase,
    )
    return Chart(name, drawing, table, title, note, spoken)


def strips(
    name: str,
    title: str,
    labels: Sequence[str],
    tokens_CT: Ints,
    rerun_C: Sequence[int],
    *,
    note: str = "",
) -> Chart:
    """Draw which configs say the same tokens up to where: a strip a config, a colour and letter a branch.

    Parameters
    ----------
    name, title, note : str
        As of `Chart`.
    labels : sequence of str
    tokens_CT : array (config, output_token)
        Generated ids, -1 for none.
    rerun_C : sequence of int
        Index of the first token at which a rerun of the config differs from its first repeat; -1: none.

    Returns
    -------
    Chart
    """
    branches = branch(tokens_CT)
    count, length = tokens_CT.shape
    called = cut_all(list(labels), LONGEST)
    spans: list[Spec] = []
    flags: list[Spec] = []
    rows = []
    for c, row in enumerate(branches):
        found = _spans(row)
        for start, end, which in found:
            colour = BRANCHES[which % len(BRANCHES)]
            spans.append(
                {
                    "row": called[c],
                    "config": labels[c],
                    "start": start,
                    "end": end,
                    "middle": (start + end) / 2,
                    "letter": letters(which + 1)[-1],
                    "tokens": f"{start} to {end - 1}",
                    "colour": colour,
                    "ink": ink(colour),
                    "wide": (end - start) * WIDTH / max(length, 1) > 9,
                }
            )
        if rerun_C[c] >= 0:
            flags.append(
                {
                    "row": called[c],
                    "at": rerun_C[c] + 0.5,
                    "said": f"a rerun differs from token {rerun_C[c]} on",
                }
            )
        said = ", ".join(f"{letters(w + 1)[-1]} {s}…{e - 1}" for s, e, w in found)
        rerun = str(rerun_C[c]) if rerun_C[c] >= 0 else "none"
        rows.append([labels[c], said or "no token", str(found[1][0]) if len(found) > 1 else "none", rerun])
    x: Spec = {
        "type": "quantitative",
        "title": "output token",
        "scale": {"domain": [0, max(length, 1)], "nice": False},
        "axis": _whole_numbers([0, length], "d"),
    }
    drawing: Spec = {
        "width": WIDTH,
        "height": 26 * max(count, 1),
        "encoding": {
            "y": {
                "field": "row",
                "type": "nominal",
                "scale": {"domain": called, "paddingInner": 0.25},
                "axis": _plain_axis(labelLimit=220),
            }
        },
        "layer": [
            {
                "data": {"values": spans},
                "mark": {"type": "rect", "stroke": NEUTRAL, "strokeWidth": 0.5},
                "encoding": {
                    "x": {**x, "field": "start"},
                    "x2": {"field": "end"},
                    "fill": {"field": "colour", "type": "nominal", "scale": None},
                    "tooltip": _tooltip(config="config", tokens="tokens", letter="branch"),
                },
            },
            {
                "data": {"values": spans},
                "transform": [{"filter": "datum.wide"}],
                "mark": {"type": "text", "fontWeight": "bold"},
                "encoding": {
                    "x": {**x, "field": "middle"},
                    "text": {"field": "letter"},
                    "fill": {"field": "ink", "type": "nominal", "scale": None},
                },
            },
            {
                "data": {"values": flags},
                "mark": {"type": "text", "text": "▲", "dy": 11, "fontSize": 11},
                "encoding": {"x": {**x, "field": "at"}, "tooltip": _tooltip(row="config", said="rerun")},
            },
        ],
    }
    leaves = int(branches[:, -1].max(initial=-1)) + 1 if length else 0
    spoken = f"Strips, {title}: {count} configs, {leaves} branches over {length} tokens. {BELOW}"
    head = [
        "config",
        "branches (tokens from…to)",
        "leaves its branch at token",
        "first rerun difference at token",
    ]
    table = Table(f"{title}: tokens of each branch", head, rows, 2)
    return Chart(name, drawing, table, title, note, spoken)


def bars(
    name: str,
    title: str,
    labels: Sequence[str],
    values: Sequence[float] | Floats,
    *,
    what: str,
    unit: str = "",
    note: str = "",
    phase: str = "",
) -> Chart:
    """Draw one value for every label as bars from 0.

    Parameters
    ----------
    name, title, note : str
        As of `Chart`.
    labels : sequence of str
        Of which no two are equal.
    values : sequence of float
        NaN is not measured: no bar.
    what : str
        Name of the value, on the axis and in the table.
    unit : str
        ``nat``, or nothing.
    phase : str
        As of `Table`.

    Returns
    -------
    Chart

    Raises
    ------
    ValueError
        When there are not as many values as labels.
    """
    numbers = [float(value) for value in values]
    if len(numbers) != len(labels):
        raise ValueError(f"{len(numbers)} values for {len(labels)} labels")
    finite = [value for value in numbers if np.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    called = cut_all(list(labels), LONGEST)
    data = [
        {
            "row": row,
            "config": label,
            "value": value if np.isfinite(value) else None,
            "end": max(value, 0.0) if np.isfinite(value) else 0.0,
        }
        | {"text": cell_number(value), "said": with_unit(value, unit)}
        for row, label, value in zip(called, labels, numbers, strict=True)
    ]
    x = {
        "type": "quantitative",
        "title": with_bracket(what, unit),
        # Room for the number behind the longest bar.
        "scale": {"domain": [low, (high + 0.15 * (high - low)) or 1.0], "nice": False},
        "axis": {"labelExpr": TICK, "tickCount": 5, "labelOverlap": "greedy"},
    }
    drawing: Spec = {
        "width": WIDTH,
        "height": 26 * max(len(data), 1),
        "data": {"values": data},
        "encoding": {
            "y": {
                "field": "row",
                "type": "nominal",
                "scale": {"domain": called, "paddingInner": 0.3},
                "axis": _plain_axis(labelLimit=220),
            },
            "tooltip": _tooltip(config="config", said=what),
        },
        "layer": [
            {
                "mark": {"type": "bar", "fill": PALETTE[0]},
                "encoding": {"x": {**x, "field": "value"}, "x2": {"datum": 0}},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4},
                "encoding": {"x": {**x, "field": "end"}, "text": {"field": "text"}},
            },
        ],
    }
    table = Table(
        with_bracket(title, unit),
        ["config", what],
        [[label, number(value)] for label, value in zip(labels, numbers, strict=True)],
        phase=phase,
    )
    spoken = f"Bar chart, {title}: {len(numbers)} bars, {_range(np.array(numbers), unit)}. {BELOW}"
    return Chart(name, drawing, table, title, note, spoken)


def branch(tokens_CT: Ints) -> Ints:
    """Number the branches of generated texts: equal numbers at a token mean equal tokens up to there.

    Where a branch splits, the side of more configs (the first of equals) keeps its number and the others get
    new ones. A config that has no more tokens has -1.
    """
    count, length = tokens_CT.shape
    result = np.full((count, length), -1, np.int64)
    now, following = np.zeros(count, np.int64), 1
    for t in range(length):
        alive = tokens_CT[:, t] >= 0
        for which in dict.fromkeys(now[alive].tolist()):
            members = np.flatnonzero(alive & (now == which))
            sides = {
                int(v): members[tokens_CT[members, t] == v]
                for v in dict.fromkeys(tokens_CT[members, t].tolist())
            }
            keeps = max(sides.values(), key=len)
            for side in sides.values():
                if side is not keeps:
                    now[side], following = following, following + 1
        result[alive, t] = now[alive]
    return result


def _spans(row: Ints) -> list[tuple[int, int, int]]:
    """Runs of one branch: (first token, token after the last, branch)."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return [(s, e, int(row[s])) for s, e in pairwise(edges) if e > s and row[s] >= 0]


def _range(values: Floats, unit: str) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return NOT_MEASURED
    return f"values from {with_unit(float(finite.min()), unit)} to {with_unit(float(finite.max()), unit)}"


def _short(value: float) -> float:
    """A number with the digits that a drawing can show."""
    return float(f"{value:.6g}")


def _plain_axis(**more: Any) -> Spec:
    """Labels without a line, ticks or a title."""
    return {"title": None, "domain": False, "ticks": False, "grid": False, **more}


def _whole_numbers(values: Sequence[int], form: str) -> Spec:
    """An axis of counts: every one has a tick where they are few."""
    low, high = (min(values), max(values)) if len(values) else (0, 1)
    few: Spec = {"values": list(range(low, high + 1))} if high - low <= 8 else {"tickCount": 6}
    return {"grid": False, "format": form, "labelOverlap": "greedy", **few}


def _quantity(scale: Scale, title: str) -> Spec:
    return {"type": "quantitative", "title": title, "scale": scale.spec(), "axis": axis(scale)}


def _tooltip(**fields: str) -> list[Spec]:
    """What the pointer shows of a mark: its fields, each under a name."""
    return [{"field": field, "type": "nominal", "title": named} for field, named in fields.items()]
