"""The drawings of a report from plain arrays: heatmap, distance along positions, signal and noise, strips."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from qdx.document.format import NOT_MEASURED
from qdx.document.format import number as cell_number
from qdx.document.svg import (
    CHARACTER,
    DASHES,
    Figure,
    Scale,
    Table,
    clip,
    colour,
    label,
    line,
    number,
    px,
    rectangle,
)
from qdx.document.text import letters
from qdx.statistics import Floats, Ints

LONGEST = 30  # characters of a label beside a drawing; the table has all of it
BELOW = "The table below holds every value."
WIDTH = 344.0  # fits a window of 400 pixels
MOST_POINTS = 96  # of a line
MOST_LINES = len(DASHES)


def heatmap(
    name: str, title: str, note: str, labels: Sequence[str], values_CC: Floats, unit: str, domain: Floats
) -> Figure:
    """A matrix of distances, row = p, column = q, coloured on the scale of `domain`.

    Parameters
    ----------
    values_CC : array (config, config_b)
        NaN is not measured; the diagonal is not read.
    unit : str
        " nat" or "".
    domain : array
        What the colours span, so that matrices of one metric and phase share them.
    """
    count = len(labels)
    short = letters(count)
    names = [f"{s}  {clip(t, LONGEST)}" for s, t in zip(short, labels, strict=True)]
    left = max(len(n) for n in names) * CHARACTER + 10
    width, height = (58.0, 30.0) if count <= 6 else (50.0, 24.0)
    scale = Scale(domain, 200.0, lane=24.0, tight=True)
    parts, rows = [], []
    for b, s in enumerate(short):
        parts.append(label(left + (b + 0.5) * width, 13, s, "strong", "middle"))
    for a in range(count):
        y = 20 + a * height
        parts.append(label(0, y + height / 2 + 4, names[a]))
        for b in range(count):
            x, value = left + b * width, float(values_CC[a, b])
            if a == b:
                parts.append(
                    rectangle(x, y, width - 2, height - 2, "self", tip=f"{labels[a]}: the same config")
                )
                parts.append(label(x + width / 2 - 1, y + height / 2 + 3, "·", "", "middle"))
                continue
            said = f"{labels[a]} → {labels[b]}: {_with(value, unit)}"
            if not np.isfinite(value):
                parts.append(rectangle(x + 1, y + 1, width - 4, height - 4, "none", tip=said))
                parts.append(label(x + width / 2 - 1, y + height / 2 + 3, "–", "", "middle"))
                continue
            fill, ink = colour(scale.share(value))
            parts.append(rectangle(x, y, width - 2, height - 2, "", fill, said))
            parts.append(label(x + width / 2 - 1, y + height / 2 + 3, cell_number(value), ink, "middle"))
        rows.append([labels[a], *("·" if a == b else number(float(values_CC[a, b])) for b in range(count))])
    bottom = 20 + count * height + 12
    parts.append(
        _key(scale, domain, left, bottom, unit, bool(np.isnan(values_CC[~np.eye(count, dtype=bool)]).any()))
    )
    off = values_CC[~np.eye(count, dtype=bool)]
    spoken = f"Heatmap, {title}: {count} by {count} configs, {_range(off, unit)}. {BELOW}"
    table = Table(f"{title}{_of(unit)}; row: p, column: q", ["config", *labels], rows)
    return Figure(
        name, title, note, spoken, "".join(parts), max(left + count * width, left + 210), bottom + 34, table
    )


def _key(scale: Scale, domain: Floats, x: float, y: float, unit: str, missing: bool) -> str:
    """The colours and what they mean."""
    finite = domain[np.isfinite(domain)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 0.0)
    steps = 40
    parts = [
        rectangle(x + i * 200 / steps, y, 200 / steps + 0.5, 8, "", colour((i + 0.5) / steps)[0])
        for i in range(steps)
    ]
    # The ends are data; round numbers between them stand where there is room.
    ends = [(scale.place(v), number(v)) for v in (least, most)] if least <= most else []
    taken: list[tuple[float, float]] = []
    for place, text in [*ends, *scale.ticks()]:
        end = "start" if place < 8 else "end" if place > 192 else "middle"
        width = len(text) * CHARACTER
        left = place - {"start": 0.0, "middle": width / 2, "end": width}[end]
        if all(left + width <= other_left or left >= right for other_left, right in taken):
            taken.append((left, left + width))
            parts.append(label(x + place, y + 20, text, "small", end))
    said = (unit.strip() or "no unit") + (", log" if scale.log else "")
    parts.append(label(0, y + 8, said, "small"))
    if missing:
        parts.append(label(0, y + 20, "– not meas.", "small"))
    return "".join(parts)


def along_positions(
    name: str,
    title: str,
    note: str,
    unit: str,
    position: Ints,
    lines_RP: Floats,
    references: Sequence[str],
    noise_P: Floats | None,
    what: str,
    domain: Floats,
) -> Figure:
    """Distance of one pair of configs at every position: a line a reference, the noise floor as a band.

    Parameters
    ----------
    position : array (position,)
    lines_RP : array (reference, position)
        NaN where nothing was measured: the line is broken there.
    noise_P : array (position,) or None
        Upper end of the band; None where nothing was repeated.
    what : str
        Name of the metric, on the axis.
    domain : array
        What the axis spans, so that drawings beside each other share it.
    """
    keep = np.isfinite(lines_RP).any(0)
    position, lines_RP = position[keep], lines_RP[:MOST_LINES, keep]
    noise_P = noise_P[keep] if noise_P is not None else None
    left, top, width, height = 46.0, 18.0, WIDTH - 56, 130.0
    position, lines_RP, noise_P, bins = _binned(position, lines_RP, noise_P)
    scale = Scale(domain, height)
    parts = [label(0, 10, f"{what}{_of(unit)}{', log' if scale.log else ''}", "small")]
    for place, text in scale.ticks():
        y = top + height - place
        parts += [line(left, y, left + width, y, "grid"), label(left - 5, y + 4, text, "small", "end")]
    low, high = (int(position.min()), int(position.max())) if len(position) else (0, 1)
    x = left + (position - low) / max(high - low, 1) * width
    steps = np.diff(position)
    gap = (
        np.concatenate([[False], steps > 2 * np.median(steps)])
        if len(steps)
        else np.zeros(len(position), bool)
    )
    if noise_P is not None:
        parts.append(_band(x, top + height, np.array([scale.place(v) for v in noise_P]), gap, noise_P))
    for r, row in enumerate(lines_RP):
        parts.append(_path(x, row, gap, scale, top + height, r))
    parts.append(line(left, top + height, left + width, top + height, "axis"))
    for at, end in ((low, "start"), ((low + high) // 2, "middle"), (high, "end")):
        if end != "middle" or high - low > 1:
            place = left + (at - low) / max(high - low, 1) * width
            parts.append(label(place, top + height + 15, f"{at:,}", "small", end))
    parts.append(label(left + width / 2, top + height + 29, "position (token index)", "small", "middle"))
    shown = references[:MOST_LINES]
    for r, reference in enumerate(shown):
        start = left + r * width / max(len(shown), 3)
        dash = f' stroke-dasharray="{DASHES[r]}"' if DASHES[r] else ""
        parts.append(f'<path d="M{px(start)} {px(top + height + 44)}h22" class="s{r}"{dash}/>')
        parts.append(label(start + 26, top + height + 48, clip(reference, 7), "small"))
    peak = float(np.nanmax(noise_P)) if noise_P is not None and np.isfinite(noise_P).any() else float("nan")
    if not np.isfinite(peak) or peak == 0:
        said = "noise floor 0: repeats are bit-equal" if peak == 0 else f"noise floor {NOT_MEASURED}"
        parts.append(label(left + width, 10, said, "small", "end"))
    spoken = (
        f"Line chart, {title}: {what} from position {low} to {high}, {_range(lines_RP, unit)}; "
        f"noise floor at most {_with(peak, unit)}. The table below holds every point."
    )
    mean = f"; each point is the mean of up to {bins} rows" if bins > 1 else ""
    if len(references) > len(shown):
        mean += f"; drawn: the first {len(shown)} of {len(references)} references"
    head = ["position", *shown, "noise floor"]
    rows = [
        [
            f"{p:,}",
            *(number(float(v)) for v in lines_RP[:, i]),
            number(float(noise_P[i])) if noise_P is not None else NOT_MEASURED,
        ]
        for i, p in enumerate(position)
    ]
    table = Table(f"{title}: {what}{_of(unit)}{mean}", head, rows)
    return Figure(name, title, note + mean, spoken, "".join(parts), WIDTH, top + height + 56, table)


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


def _band(x: Floats, base: float, height_P: Floats, gap: np.ndarray, noise_P: Floats) -> str:
    """The noise floor as areas from the bottom, one for every run of neighbouring positions."""
    parts = []
    for run in np.split(np.arange(len(x)), np.flatnonzero(gap)):
        run = run[np.isfinite(noise_P[run])]
        if not len(run) or not (noise_P[run] > 0).any():
            continue
        up = " ".join(f"L{px(x[i])} {px(base - height_P[i])}" for i in run)
        parts.append(
            f'<path d="M{px(x[run[0]])} {px(base)} {up} L{px(x[run[-1]])} {px(base)}Z" class="band"/>'
        )
    return "".join(parts)


def _path(x: Floats, values: Floats, gap: np.ndarray, scale: Scale, base: float, number_of: int) -> str:
    """One line, broken at what was not measured; a value without neighbours is a dot."""
    data, dots, drawing = [], [], False
    finite = np.isfinite(values)
    for i in np.flatnonzero(finite):
        y = base - scale.place(float(values[i]))
        joined = drawing and i > 0 and finite[i - 1] and not gap[i]
        data.append(f"{'L' if joined else 'M'}{px(x[i])} {px(y)}")
        alone = not joined and not (i + 1 < len(values) and finite[i + 1] and not gap[i + 1])
        if alone or len(values) <= 40:
            dots.append(f'<circle cx="{px(x[i])}" cy="{px(y)}" r="2" class="f{number_of + 1}"/>')
        drawing = True
    dash = f' stroke-dasharray="{DASHES[number_of]}"' if DASHES[number_of] else ""
    return f'<path d="{" ".join(data)}" class="s{number_of}"{dash}/>' + "".join(dots) if data else ""


def signal_and_noise(
    name: str,
    title: str,
    note: str,
    unit: str,
    pairs: Sequence[tuple[str, str]],
    distance: Floats,
    noise: Floats,
    ratio: Sequence[str],
) -> Figure:
    """Every pair's distance beside the noise of its two configs, on one axis.

    Parameters
    ----------
    distance, noise : array (pair,)
    ratio : sequence of str
        Signal to noise as text: "13.2", "exact", "equal", "floor 0, rows differ", "not measured".
    """
    left, width, step = 8.0, WIDTH - 16, 38.0
    scale = Scale(np.concatenate([distance, noise]), width, lane=40.0)
    bottom = 8 + step * len(pairs)
    parts = []
    for place, text in scale.ticks():
        end = "start" if place < 12 else "end" if place > width - 12 else "middle"
        parts += [
            line(left + place, 4, left + place, bottom, "grid"),
            label(left + place, bottom + 14, text, "small", end),
        ]
    rows = []
    for i, (a, b) in enumerate(pairs):
        y, d, n = 8 + i * step, float(distance[i]), float(noise[i])
        parts.append(label(0, y + 10, f"{clip(a, 18)} ~ {clip(b, 18)}"))
        parts.append(label(WIDTH, y + 10, ratio[i], "strong", "end"))
        at = y + 22
        if np.isfinite(d) and np.isfinite(n):
            parts.append(line(left + scale.place(n), at, left + scale.place(d), at, "link"))
        if np.isfinite(n):
            parts.append(f'<circle cx="{px(left + scale.place(n))}" cy="{px(at)}" r="5" class="hollow"/>')
        if np.isfinite(d):
            x = left + scale.place(d)
            parts.append(f'<path d="M{px(x)} {px(at - 6)}l6 6l-6 6l-6 -6z" class="solid"/>')
        rows.append([f"{a} ~ {b}", number(d), number(n), ratio[i]])
    axis = f"{unit.strip() or 'no unit'}{', log' if scale.log else ''}"
    parts.append(label(left + width / 2, bottom + 30, axis, "small", "middle"))
    parts.append(f'<circle cx="{px(left + 4)}" cy="{px(bottom + 44)}" r="5" class="hollow"/>')
    parts.append(label(left + 14, bottom + 48, "noise of the pair", "small"))
    parts.append(f'<path d="M{px(left + 130)} {px(bottom + 38)}l6 6l-6 6l-6 -6z" class="solid"/>')
    parts.append(label(left + 142, bottom + 48, "distance", "small"))
    parts.append(label(WIDTH, bottom + 48, "right: signal to noise", "small", "end"))
    spoken = f"Dot chart, {title}: {len(pairs)} pairs, distances {_range(distance, unit)}. {BELOW}"
    head = ["pair", f"distance{_of(unit)}", f"noise{_of(unit)}", "signal to noise [no unit]"]
    return Figure(name, title, note, spoken, "".join(parts), WIDTH, bottom + 54, Table(title, head, rows))


def divergence(
    name: str, title: str, note: str, labels: Sequence[str], tokens_CT: Ints, rerun_C: Sequence[int]
) -> Figure:
    """Which configs say the same tokens up to where: a strip a config, a colour and letter a branch.

    Parameters
    ----------
    tokens_CT : array (config, output_token)
        Generated ids, -1 for none.
    rerun_C : sequence of int
        Index of the first token at which a rerun of the config differs from its first repeat; -1: none.
    """
    branches = branch(tokens_CT)
    count, length = tokens_CT.shape
    left = min(max(max(len(t) for t in labels), 6), LONGEST) * CHARACTER + 8
    width = max(WIDTH - left, 4.0 * length, 160.0)
    cell = width / max(length, 1)
    parts, rows = [], []
    for c in range(count):
        y = 4 + c * 24
        parts.append(label(0, y + 14, clip(labels[c], LONGEST)))
        spans = _spans(branches[c])
        for start, end, which in spans:
            x = left + start * cell
            tip = f"{labels[c]}, tokens {start} to {end - 1}: branch {letters(which + 1)[-1]}"
            parts.append(rectangle(x, y, (end - start) * cell - 1.5, 18, f"f{which % 8}", tip=tip))
            if (end - start) * cell > 9:
                parts.append(label(x + 3, y + 13, letters(which + 1)[-1], "ink strong"))
        if rerun_C[c] >= 0:
            x = left + (rerun_C[c] + 0.5) * cell
            parts.append(
                f'<path d="M{px(x - 5)} {px(y + 20)}h10l-5 -7z" class="cut flag">'
                "<title>a rerun differs</title></path>"
            )
        said = ", ".join(f"{letters(w + 1)[-1]} {s}…{e - 1}" for s, e, w in spans)
        rerun = str(rerun_C[c]) if rerun_C[c] >= 0 else "none"
        rows.append([labels[c], said or "no token", str(spans[1][0]) if len(spans) > 1 else "none", rerun])
    bottom = 4 + count * 24
    parts.append(label(left, bottom + 12, "0", "small"))
    parts.append(label(left + width, bottom + 12, f"{length - 1}", "small", "end"))
    parts.append(label(left + width / 2, bottom + 12, "output token", "small", "middle"))
    leaves = int(branches[:, -1].max(initial=-1)) + 1 if length else 0
    spoken = f"Strips, {title}: {count} configs, {leaves} branches over {length} tokens. {BELOW}"
    head = [
        "config",
        "branches (tokens from…to)",
        "leaves its branch at token",
        "first rerun difference at token",
    ]
    return Figure(
        name, title, note, spoken, "".join(parts), left + width, bottom + 18, Table(title, head, rows, 2)
    )


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


def _with(value: float, unit: str) -> str:
    return number(value) + (unit if np.isfinite(value) else "")


def _of(unit: str) -> str:
    return f" [{unit.strip() or 'no unit'}]"


def _range(values: Floats, unit: str) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return NOT_MEASURED
    return f"values from {_with(float(finite.min()), unit)} to {_with(float(finite.max()), unit)}"
