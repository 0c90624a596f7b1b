"""Matrices of producer × verifier: how far apart their rows are, and how many are bit-equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.document.format import DASH, number, percent, plural
from qdx.document.text import columns_of, table, wrap
from qdx.statistics import mean_of_references
from qdx.verification.compare import Compared
from qdx.verification.replays import Replays

TITLES = {
    "prefill": "prefill (the references)",
    "decode": "decode (producers' generation against its replay here)",
}


def crossing(producer_tree: xr.DataTree, verifier_tree: xr.DataTree) -> Section:
    """Compare every producer's rows with every config's here, in prefill and in decode.

    Parameters
    ----------
    producer_tree, verifier_tree : xarray.DataTree
        See `qdx.verification.verify`.

    Returns
    -------
    Section
        Result over (phase, producer, config): ``distance`` (mean over references of each one's mean over
        content rows), ``rows_compared``, ``rows_equal``; ``reference_mean`` (…, reference).
    """
    data = Replays.of(producer_tree, verifier_tree)
    phases = ([] if data.prefill is None else [data.prefill]) + [data.decode]
    of_reference = np.stack([rows.distance_DCR for rows in phases])
    dims, one = ("phase", "producer", "config"), {"units": "1"}
    about = "of the centred logits' L2 distance, estimated from sketches"
    result = xr.Dataset(
        {
            "distance": (
                dims,
                mean_of_references(of_reference)[0],
                {
                    "units": "nat",
                    "long_name": f"mean over references {about}",
                    "higher_means": "less alike",
                },
            ),
            "reference_mean": (
                (*dims, "reference"),
                of_reference,
                {"units": "nat", "long_name": f"mean over a reference's content rows {about}"},
            ),
            "rows_compared": (
                dims,
                np.stack([rows.compared_DCR.sum(-1) for rows in phases]),
                {**one, "long_name": "rows compared bit by bit, template and content"},
            ),
            "rows_equal": (
                dims,
                np.stack([rows.equal_DCR.sum(-1) for rows in phases]),
                {**one, "long_name": "rows that are bit-equal"},
            ),
        },
        coords={
            "phase": [rows.phase for rows in phases],
            "producer": data.producers,
            "config": data.configs,
            "reference": data.references,
        },
    )
    return Section("crossing", "Producer × verifier", result, {"": _text(data, phases, result)})


def _text(data: Replays, phases: Sequence[Compared], result: xr.Dataset) -> str:
    lines = [
        wrap(
            "Row: the producer that made the transcripts; column: the config that replayed them here. "
            f"Distance: ‖sketch − sketch‖ of {data.components} components, an estimate of the L2 distance of "
            "the two rows' centred logits (relative error about "
            f"{percent(float(1 / np.sqrt(2 * data.components)))} a row), mean over content rows, then over "
            f"{plural(len(data.references), 'reference')}.",
            "  ",
        )
    ]
    columns, about = columns_of(data.configs, beside=1)
    lines += about
    for rows in phases:
        at = result.sel(phase=rows.phase)
        lines += ["", f"  {TITLES[rows.phase]}"]
        distance = at["distance"].values
        if np.isfinite(distance).any():
            cells = [[name, *map(number, row)] for name, row in zip(data.producers, distance, strict=True)]
            lines += [table(["distance", *columns], cells, indent="    ")]
        if rows.missing:
            lines.append(wrap(f"rows equal: {rows.missing}", "    "))
            continue
        counts = zip(data.producers, at["rows_equal"].values, at["rows_compared"].values, strict=True)
        cells = [[name, *(_share(k, n) for k, n in zip(a, b, strict=True))] for name, a, b in counts]
        lines += [table(["rows equal", *columns], cells, indent="    ")]
    return "\n".join(lines)


def _share(equal: int, compared: int) -> str:
    return f"{equal:,}/{compared:,}" if compared else DASH
