"""Files of the original experiment that hold one vector of activations again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from qdx.legacy.imported import Imported
from qdx.legacy.ledger import WITHIN, Ledger
from qdx.legacy.reading import Floats, Node, bounded, name

BITS = {
    "float16": 11,
    "bfloat16": 8,
    "float32": 24,
}  # of the significand: the scripts' numbers are rounded to it
DIMS = ("series", "repeat", "component")


def read(root: Node) -> Imported:
    """Check a file of ``raw_activations``: from series (batch_size_1, layer_1) to vectors by repeat.

    Returns
    -------
    Imported
        ``activations``: ``activation`` (series, repeat, component), NaN beyond a series' own.
        ``analysis/legacy/activations``: ``norm`` of the mean over repeats, ``distance`` of the means of two
        series (NaN where their lengths differ), ``repeats_equal``.

    Raises
    ------
    QdxError
        With the path of the bad key.
    """
    series = {}
    for label, runs in root["raw_activations"].items():
        vectors = [run.numbers() for run in runs.entries()]
        if not vectors or any(len(v) != len(vectors[0]) for v in vectors) or not len(vectors[0]):
            runs.refuse("one vector for each repeat, all of one length")
        series[name(label, runs.path)] = vectors
    if not series:
        root["raw_activations"].refuse("at least one series")
    repeats, most = max(map(len, series.values())), max(len(v[0]) for v in series.values())
    bounded("activations", len(series), repeats, most)
    values = np.full((len(series), repeats, most), np.nan)
    for i, vectors in enumerate(series.values()):
        values[i, : len(vectors), : len(vectors[0])] = vectors
    labels = list(series)
    means = [np.mean(vectors, 0) for vectors in series.values()]
    norm = np.array([float(np.linalg.norm(mean)) for mean in means])
    distance = np.array(
        [[float(np.linalg.norm(a - b)) if len(a) == len(b) else np.nan for b in means] for a in means]
    )
    equal = np.array([all(np.array_equal(v, vectors[0]) for v in vectors) for vectors in series.values()])
    ledger = Ledger()
    _compare(root, labels, norm, distance, equal, ledger)
    kept = root.others("raw_activations")
    one = {"units": "1"}
    groups = {
        "activations": xr.Dataset(
            {"activation": (DIMS, values, {**one, "long_name": "activations as the file has them"})},
            coords={"series": labels},
        ),
        "analysis/legacy/activations": xr.Dataset(
            {
                "norm": ("series", norm, {**one, "long_name": "L2 of the mean over repeats"}),
                "distance": (
                    ("series", "series_b"),
                    distance,
                    {**one, "long_name": "L2 of the means of two series", "higher_means": "less alike"},
                ),
                "repeats_equal": (
                    "series",
                    equal,
                    {**one, "long_name": "every repeat is the first, bit for bit"},
                ),
            },
            coords={"series": labels, "series_b": labels},
        ),
    }
    numbers = int(np.isfinite(values).sum())
    said = [
        f"activations: {len(labels)} series of {repeats} repeats, {numbers:,} numbers read; the repeats of "
        f"{int(equal.sum())} series are equal bit for bit; there are no rows of logits"
    ]
    return Imported("activations", groups, said, kept, ledger, numbers)


def _compare(
    root: Node, labels: list[str], norm: Floats, distance: Floats, equal: Any, ledger: Ledger
) -> None:
    """Compare what the file states, rounded as its data type rounds, with what its vectors give."""
    dtype = root.find("config.dtype")
    kind = str(dtype.value).removeprefix("torch.") if dtype is not None else ""
    bits = BITS.get(kind, 53)
    note = f"{WITHIN} of {kind}" if kind in BITS else ""
    index = {label: i for i, label in enumerate(labels)}

    def compare(node: Node, own: float) -> None:
        ledger.compare(node.path, node.number(), own, note, _half_unit(node.number(), bits), relative=False)

    for key, of in (("activation_norms", "{}"), ("layer_statistics", "{}.mean_norm")):
        for label, i in index.items():
            if (node := root.find(f"{key}.{of.format(label)}")) is not None and "." not in label:
                compare(node, norm[i])
    if (node := root.get("systematic_deviations")) is not None:
        short = {label.replace("batch_size_", "bs"): i for label, i in index.items()}
        for pair, value in node.items():
            a, _, b = pair.partition("_vs_")
            if a in short and b in short:
                compare(value, distance[short[a], short[b]])
    for label, i in index.items():
        for path in (f"statistical_noise.{label}.mean", f"statistical_noise.{label}.std",
                     f"layer_statistics.{label}.std_within_reps"):  # fmt: skip
            if (node := root.find(path)) is None or "." in label:
                continue
            if equal[i]:
                ledger.compare(node.path, node.number(), 0.0, "the repeats are equal")
            else:
                ledger.cannot(
                    node.path, 1, "the repeats differ, and the file does not say how it was computed"
                )
    if (node := root.find("reproducibility.all_repetitions_identical")) is not None:
        ledger.same(node.path, node.value is bool(equal.all()))


def _half_unit(value: float, bits: int) -> float:
    """Half a unit in the last place of a number of so many significant bits."""
    if value == 0 or not np.isfinite(value):
        return 0.0
    return float(2.0 ** (np.floor(np.log2(abs(value))) - bits))
