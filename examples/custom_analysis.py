"""An analysis of one's own: is a config farther from another where the model is unsure?

    python examples/custom_analysis.py outputs/2026-01-31_12-00-00

The same file in ``plugins/`` makes it part of every report: ``analysis=[noise_floor,unsure]``.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import qdx
from qdx.document import text

if TYPE_CHECKING:
    import xarray as xr

    from qdx.analysis import Section


@qdx.register("analysis", "unsure", title="Distance and certainty")
def unsure(tree: xr.DataTree, metric: str = "l2") -> Section:
    """Rank correlation of the distance between two configs with the gap of the first one's best two tokens.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep with that metric.
    metric : str
    """
    import numpy as np
    import xarray as xr

    from qdx.analysis import Matrix, Section, Table

    distance = tree.qdx.pairs(metric)
    top = tree["replay/top_logit"].isel(repeat=0, drop=True)
    gap = top.isel(rank=0) - top.isel(rank=1)
    labels = [str(label) for label in distance["config"].values]
    value = np.full((len(labels), len(labels)), np.nan)
    for i, j in np.ndindex(value.shape):
        x, y = (rows.values.ravel() for rows in (gap.isel(config=i), distance.isel(config=i, config_b=j)))
        both = np.isfinite(x) & np.isfinite(y)
        if i != j and both.sum() > 2:
            ranks = [np.argsort(np.argsort(rows[both])) for rows in (x, y)]
            value[i, j] = np.corrcoef(*ranks)[0, 1]
    meaning = {"units": "1", "long_name": f"Spearman's rank correlation of the gap and {metric}, replay"}
    result = xr.Dataset(
        {"correlation": (("config", "config_b"), value, meaning)}, {"config": labels, "config_b": labels}
    )
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
    rows = [[f"{a} ~ {b}", result.correlation.sel(config=a, config_b=b).item()] for a, b in pairs]
    caption = f"Rank correlation of {metric} with the gap of the two best tokens"
    blocks = [
        Matrix(caption, labels, value, phase="replay"),
        Table(caption, ["pair", "correlation"], rows, phase="replay"),
    ]
    return Section("unsure", "Distance and certainty", result, blocks=blocks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="a sweep folder, or its sweep.nc")
    parser.add_argument("--metric", default="l2")
    chosen = parser.parse_args()
    section = unsure(qdx.open(chosen.sweep), chosen.metric)
    print(section.title)
    print(text.render(section.blocks))
