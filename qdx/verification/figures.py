"""The charts of a verifier's report: producer × verifier, and how well claims are told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.document import charts
from qdx.document.blocks import Chart

MOST = 16  # charts of one kind
HOW = {
    "roc": "share of held-out false claims found, by the share of honest ones that are rejected with them",
    "rows": "share of held-out false claims above the threshold of {level:.0%} false alarms that other "
    "references made, by the first published rows of a transcript",
    "tokens": "share of held-out false claims whose mean margin is above the threshold of {level:.0%} false "
    "alarms that other references made, by the first tokens alone",
}


KINDS = {  # the variable, its axis, what that is called, and the first words of the title
    "roc": ("roc", "false_positive_rate", "false alarms", "ROC"),
    "rows": ("tpr_at", "rows", "published rows", "Rows needed"),
    "tokens": ("margin_tpr_at", "tokens", "tokens", "Tokens needed"),
}


def figures(sections: Sequence[Section]) -> list[Chart]:
    """Draw what the sections ``crossing`` and ``attribution`` measured."""
    by_name = {s.name: s.result for s in sections}
    found = []
    if "crossing" in by_name:
        result = by_name["crossing"]
        found += [c for p in result["phase"].values if (c := cross(result, str(p))) is not None]
    if "attribution" in by_name:
        result = by_name["attribution"]
        producers = [str(v) for v in result["producer"].values][:MOST]
        found += [c for kind in KINDS for p in producers if (c := separation(result, kind, p)) is not None]
    return found


def cross(result: xr.Dataset, phase: str) -> Chart | None:
    """Draw the distances of every producer's rows from every config's here.

    Parameters
    ----------
    result : xarray.Dataset
        Of the section ``crossing``.
    phase : str

    Returns
    -------
    Chart or None
        None where nothing was measured.
    """
    at = result.sel(phase=phase)
    if not np.isfinite(at["distance"].values).any():
        return None
    return charts.matrix(
        f"crossing_{phase}",
        f"{phase}: distance of producers’ rows from the replays here",
        [str(v) for v in at["producer"].values],
        [str(v) for v in at["config"].values],
        at["distance"].transpose("producer", "config").values,
        unit="nat",
        note="Row: made by; column: replayed by. Logits, mean over content rows, then over references.",
        corner="made by",
        row_is="row: made by, column: replayed by",
    )


def separation(result: xr.Dataset, kind: str, producer: str) -> Chart | None:
    """Draw how well a producer's transcripts, claimed to be each other config's, are told from honest ones.

    Parameters
    ----------
    result : xarray.Dataset
        Of the section ``attribution``.
    kind : "roc", "rows" or "tokens"
        Over the share of false alarms, the published rows or the tokens alone.
    producer : str

    Returns
    -------
    Chart or None
        None where there were too few references to hold some out.
    """
    variable, axis, across, what = KINDS[kind]
    if variable not in result:
        return None
    at = result[variable].sel(producer=producer)
    claimed = [str(c) for c in at["config"].values if np.isfinite(at.sel(config=c).values).any()]
    if not claimed:
        return None
    how = HOW[kind].format(level=float(result.attrs.get("curve_level", np.nan)))
    title = f"{what}, made by {producer}"
    more = len(claimed) - charts.MOST_LINES
    return charts.curves(
        f"{kind}_{''.join(c if c.isalnum() else '_' for c in producer)}",
        title,
        np.asarray(result[axis].values, float),
        at.sel(config=claimed).transpose("config", axis).values,
        claimed,
        across=across,
        up="share of false claims found",
        note=how[:1].upper() + how[1:] + (f"; {more} more in the table." if more > 0 else "."),
        named="claimed",
        spoken=f"Line chart, {title}: {how}. {charts.BELOW}",
        caption=f"{title}: {how}",
    )
