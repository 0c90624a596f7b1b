"""Line charts: a distance along positions with its noise floor, and shares over anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qdx.document.blocks import Chart, Table
from qdx.document.chart_parts import (
    BELOW,
    DOTTED,
    HEIGHT,
    LONGEST,
    MOST_LINES,
    MOST_POINTS,
    SHORTEST,
    WIDTH,
    number,
    quantity,
    short,
    span_of,
    tooltip,
    whole_numbers,
)
from qdx.document.format import NOT_MEASURED, plural
from qdx.document.labels import cut_all
from qdx.document.vega import DASHES, NEUTRAL, PALETTE, SAID, Scale, Spec, with_bracket, with_unit
from qdx.statistics import Floats, Ints


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
                value = short(row[i]) if here else None
                points.append({"at": int(position[i]), "line": called, "value": value, **dot})
            if len(part) and part[-1] + 1 < len(position):  # nothing was captured between here and the next
                points.append({"at": int(position[part[-1]]) + 1, "line": called, "value": None})
    peak = float(np.nanmax(noise_P)) if noise_P is not None and np.isfinite(noise_P).any() else float("nan")
    x = {
        "field": "at",
        "type": "quantitative",
        "title": "position (token index)",
        "scale": {"zero": False, "nice": False, "padding": 6},
        "axis": whole_numbers(position.tolist(), ",d"),
    }
    y = quantity(scale, f"{with_bracket(what, unit)}{scale.word}")
    layers: list[Spec] = _band(position, noise_P, gaps, scale, y) if peak > 0 else []
    layers += _lines(points, names, y, tooltip(at="position", line=line, said=with_bracket(what, unit)))
    drawing: Spec = {"width": WIDTH, "height": HEIGHT, "encoding": {"x": x}, "layer": layers}
    means = [f"each point is the mean of up to {bins} rows"] if bins > 1 else []
    if len(references) > len(shown):
        means.append(f"drawn: the first {len(shown)} of {plural(len(references), line)}")
    # Where there is no band to see, the note says why.
    floor = "noise floor 0: repeats are bit-equal" if peak == 0 else f"noise floor {NOT_MEASURED}"
    said = "; ".join([*([note] if note else []), *means, *([] if peak > 0 else [floor])])
    low, high = (int(position.min()), int(position.max())) if len(position) else (0, 0)
    spoken = (
        f"Line chart, {title}: {what} from position {low} to {high}, {span_of(lines_RP, unit)}; "
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
    """Return where a line is broken: indices after a step of more than twice the usual one."""
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
            top = short(max(noise, bottom)) if np.isfinite(noise) else None
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


def _lines(points: list[Spec], names: Sequence[str], y: Spec, shown: list[Spec]) -> list[Spec]:
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
                        "tooltip": shown,
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
        {"at": short(a), "line": called, "value": short(v), **dot}
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
        "axis": whole_numbers(x.astype(int).tolist(), "d")
        if len(x) and (x == x.round()).all()
        else {"grid": False, "tickCount": 6, "labelOverlap": "greedy"},
    }
    pointed = tooltip(at=across, line="line", said=up)
    drawing: Spec = {
        "width": WIDTH,
        "height": HEIGHT,
        "encoding": {"x": horizontal},
        "layer": _lines(points, names, y, pointed),
    }
    step = max(1, -(-len(x) // 32))
    rows = [[f"{v:.3g}", *(number(float(s)) for s in lines_LX[:, i])] for i, v in enumerate(x)][::step]
    table = Table(caption or title, [across, *lines], rows)
    return Chart(name, drawing, table, title, note, spoken or f"Line chart, {title}: {up}. {BELOW}")
