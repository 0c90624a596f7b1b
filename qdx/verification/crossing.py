"""Matrices of producer × verifier: how far apart their rows are, and how many are bit-equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.document.blocks import Block, Matrix, Text
from qdx.document.format import part, percent, plural
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
    return Section("crossing", "Producer × verifier", result, blocks=_blocks(data, phases, result))


def _blocks(data: Replays, phases: Sequence[Compared], result: xr.Dataset) -> list[Block]:
    blocks: list[Block] = [
        Text(
            "Row: the producer that made the transcripts; column: the config that replayed them here. "
            f"Distance: ‖sketch − sketch‖ of {data.components} components, an estimate of the L2 distance of "
            "the two rows' centred logits (relative error about "
            f"{percent(float(1 / np.sqrt(2 * data.components)))} a row), mean over content rows, then over "
            f"{plural(len(data.references), 'reference')}."
        )
    ]
    for rows in phases:
        at, title = result.sel(phase=rows.phase), TITLES[rows.phase]
        distance = at["distance"].values
        if np.isfinite(distance).any():
            caption = f"Distance in {title} [nat]"
            blocks.append(Matrix(caption, data.producers, distance, columns=data.configs))
        if rows.missing:
            blocks.append(Text(f"Rows that are bit-equal in {title}: {rows.missing}."))
            continue
        counts = zip(at["rows_equal"].values, at["rows_compared"].values, strict=True)
        cells = [[part(*pair) for pair in zip(*row, strict=True)] for row in counts]
        blocks.append(
            Matrix(f"Rows that are bit-equal in {title}", data.producers, cells, columns=data.configs)
        )
    return blocks
