"""The charts of a report from plain arrays: matrix, positions, curves, signal and noise, strips, bars.

Each function returns a `Chart`: a specification of Vega-Lite, the table of what it draws, and words for who
sees neither. An analysis puts it among its blocks; in a notebook ``.altair()`` makes an Altair chart of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from qdx.document.blocks import Chart, Table
from qdx.document.chart_parts import (
    BELOW,
    BRANCHES,
    DARK_UNTIL,
    LONGEST,
    MOST_LINES,
    MOST_POINTS,
    SHORTEST,
    WIDTH,
    number,
    plain_axis,
    quantity,
    short,
    span_of,
    tooltip,
    whole_numbers,
)
from qdx.document.format import DASH
from qdx.document.format import number as cell_number
from qdx.document.labels import cut_all
from qdx.document.line_charts import curves, positions
from qdx.document.text import letters
from qdx.document.vega import NEUTRAL, PALETTE, TICK, Scale, Spec, axis, ink, with_bracket, with_unit
from qdx.statistics import Floats, Ints

__all__ = [
    "BELOW",
    "MOST_LINES",
    "MOST_POINTS",
    "bars",
    "branch",
    "curves",
    "matrix",
    "number",
    "positions",
    "signal_and_noise",
    "strips",
]


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
                "value": short(value),
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
                "axis": plain_axis(orient="top", labelAngle=0 if square else -35, labelLimit=180),
            },
            "y": {
                "field": "row",
                "type": "nominal",
                "scale": {"domain": down, "paddingInner": 0.06},
                "axis": plain_axis(labelLimit=260),
            },
            "tooltip": tooltip(p="row", q="column", said="value"),
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
    spoken = f"Heatmap, {title}: {len(rows)} rows by {len(columns)} columns, {span_of(off, unit)}. {BELOW}"
    return Chart(name, drawing, table, title, note, spoken)


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
    x = quantity(scale, f"{unit or 'no unit'}{scale.word}; right: signal to noise")
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
                    "tooltip": tooltip(full="pair", kind="is", said="value", ratio="signal to noise"),
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
    spoken = f"Dot chart, {title}: {len(pairs)} pairs, distances {span_of(distance, unit)}. {BELOW}"
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
        "axis": whole_numbers([0, length], "d"),
    }
    drawing: Spec = {
        "width": WIDTH,
        "height": 26 * max(count, 1),
        "encoding": {
            "y": {
                "field": "row",
                "type": "nominal",
                "scale": {"domain": called, "paddingInner": 0.25},
                "axis": plain_axis(labelLimit=220),
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
                    "tooltip": tooltip(config="config", tokens="tokens", letter="branch"),
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
                "encoding": {"x": {**x, "field": "at"}, "tooltip": tooltip(row="config", said="rerun")},
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
                "axis": plain_axis(labelLimit=220),
            },
            "tooltip": tooltip(config="config", said=what),
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
    spoken = f"Bar chart, {title}: {len(numbers)} bars, {span_of(np.array(numbers), unit)}. {BELOW}"
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
