"""The figures of a verifier's report: producer × verifier, and how well claims are told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.document.charts import BELOW, LONGEST, WIDTH
from qdx.document.format import number as cell_number
from qdx.document.format import plural
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
from qdx.statistics import Floats

MOST = 16  # figures of one kind
HOW = {
    "roc": "share of held-out false claims found, by the share of honest ones that are rejected with them",
    "rows": "share of held-out false claims above the threshold of {level:.0%} false alarms that other "
    "references made, by the first published rows of a transcript",
    "tokens": "share of held-out false claims whose mean margin is above the threshold of {level:.0%} false "
    "alarms that other references made, by the first tokens alone",
}


def figures(sections: Sequence[Section]) -> list[Figure]:
    """Draw what the sections ``crossing`` and ``attribution`` measured."""
    by_name = {s.name: s.result for s in sections}
    found = []
    if "crossing" in by_name:
        result = by_name["crossing"]
        for phase in (str(p) for p in result["phase"].values):
            at = result.sel(phase=phase)
            if np.isfinite(at["distance"].values).any():
                found.append(_cross(phase, at))
    if "attribution" in by_name:
        found += _separation(by_name["attribution"])
    return found


def _cross(phase: str, at: xr.Dataset) -> Figure:
    """Distances of every producer's rows and every config's here."""
    producers, configs = ([str(v) for v in at[dim].values] for dim in ("producer", "config"))
    values_DC = at["distance"].values
    short = letters(len(configs))
    names = [clip(p, LONGEST) for p in producers]
    left, width, height = max(map(len, names)) * CHARACTER + 10, 58.0, 28.0
    scale = Scale(values_DC.ravel(), 200.0, lane=24.0, tight=True)
    parts = [label(left + (c + 0.5) * width, 13, s, "strong", "middle") for c, s in enumerate(short)]
    for d, c in np.ndindex(values_DC.shape):
        x, y, value = left + c * width, 20 + d * height, float(values_DC[d, c])
        fill, ink = colour(scale.share(value)) if np.isfinite(value) else ("", "")
        said = f"{producers[d]} replayed by {configs[c]}: {number(value)}"
        parts.append(rectangle(x, y, width - 2, height - 2, "" if fill else "none", fill, said))
        parts.append(label(x + width / 2 - 1, y + height / 2 + 4, cell_number(value), ink, "middle"))
    parts += [label(0, 20 + (d + 0.5) * height + 4, name) for d, name in enumerate(names)]
    bottom = 20 + len(producers) * height + 14
    legend = [f"{s}  {clip(c, LONGEST)}" for s, c in zip(short, configs, strict=True)]
    parts += [label(0, bottom + 15 * i, text, "small") for i, text in enumerate(legend)]
    rows = [[p, *(number(float(v)) for v in row)] for p, row in zip(producers, values_DC, strict=True)]
    title = f"{phase}: distance of producers’ rows from the replays here"
    return Figure(
        f"crossing_{phase}",
        title,
        "Row: made by; column: replayed by. Logits, mean over content rows, then over references.",
        f"Heatmap, {title}: {len(producers)} producers by {plural(len(configs), 'config')}. {BELOW}",
        "".join(parts),
        max(left + len(configs) * width, WIDTH),
        bottom + 15 * len(legend),
        Table(f"{title} [nat]", ["made by", *configs], rows),
    )


def _separation(result: xr.Dataset) -> list[Figure]:
    """One drawing a producer: its transcripts claimed to be each other config's."""
    kinds = {
        "roc": ("roc", "false_positive_rate", "false alarms"),
        "rows": ("tpr_at", "rows", "published rows"),
        "tokens": ("margin_tpr_at", "tokens", "tokens"),
    }
    level = float(result.attrs.get("curve_level", np.nan))
    found = []
    for kind, (variable, axis, said) in kinds.items():
        if variable not in result:
            continue
        for producer in [str(v) for v in result["producer"].values][:MOST]:
            at = result[variable].sel(producer=producer)
            drawn = [str(c) for c in at["config"].values if np.isfinite(at.sel(config=c).values).any()]
            if drawn:
                lines_CX = at.sel(config=drawn).transpose("config", axis).values
                x = np.asarray(result[axis].values, float)
                how = HOW[kind].format(level=level)
                found.append(_curves(kind, how, producer, drawn, x, lines_CX, said))
    return found


def _curves(
    kind: str, how: str, producer: str, claimed: Sequence[str], x: Floats, lines_CX: Floats, axis: str
) -> Figure:
    """Shares of 0 to 1 over `x`, a line a claimed config."""
    left, top, width, height = 40.0, 18.0, WIDTH - 56, 130.0
    shown = list(claimed)[: len(DASHES)]
    low, high = float(x.min()), float(x.max())
    across = left + (x - low) / max(high - low, 1e-9) * width
    parts = [label(0, 10, "share of false claims found", "small")]
    for share in (0.0, 0.5, 1.0):
        y = top + (1 - share) * height
        parts += [
            line(left, y, left + width, y, "grid"),
            label(left - 5, y + 4, f"{share:g}", "small", "end"),
        ]
    for c in range(len(shown)):
        points = [
            f"{px(a)} {px(top + (1 - v) * height)}"
            for a, v in zip(across, lines_CX[c], strict=True)
            if np.isfinite(v)
        ]
        dash = f' stroke-dasharray="{DASHES[c]}"' if DASHES[c] else ""
        parts.append(f'<path d="M{"L".join(points)}" class="s{c}"{dash}/>')
        start = top + height + 44 + 16 * c
        parts.append(f'<path d="M{px(left)} {px(start - 4)}h22" class="s{c}"{dash}/>')
        parts.append(label(left + 28, start, f"claimed {clip(shown[c], LONGEST)}", "small"))
    parts.append(line(left, top + height, left + width, top + height, "axis"))
    for value, end in ((low, "start"), (high, "end")):
        place = left + (width if end == "end" else 0)
        parts.append(label(place, top + height + 15, f"{value:g}", "small", end))
    parts.append(label(left + width / 2, top + height + 15, axis, "small", "middle"))
    step = -(-len(x) // 32)
    rows = [[f"{v:.3g}", *(number(float(y)) for y in lines_CX[:, i])] for i, v in enumerate(x)][::step]
    more = len(claimed) - len(shown)
    note = how[:1].upper() + how[1:] + (f"; {more} more in the table." if more else ".")
    title = f"made by {producer}"
    return Figure(
        f"{kind}_{''.join(c if c.isalnum() else '_' for c in producer)}",
        title,
        note,
        f"Line chart, {title}: {how}. {BELOW}",
        "".join(parts),
        WIDTH,
        top + height + 44 + 16 * len(shown),
        Table(f"{title}: {how}", [axis, *claimed], rows),
    )
