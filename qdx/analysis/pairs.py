"""Pairs: every two configs with what they differ in, their distance and its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import xarray as xr

from qdx.analysis.section import Section, check
from qdx.analysis.view import View, select_metrics
from qdx.document.format import number, plural
from qdx.document.text import clip, table, wrap
from qdx.kernel_names import pair_type
from qdx.plugins import register
from qdx.statistics import (
    FEWEST_REFERENCES,
    Floats,
    Ints,
    bootstrap_interval,
    mean_of_references,
    median_of_references,
)

FEWEST_TO_GROUP = 6  # so few pairs are read one by one


@register("analysis", "pairs", title="Pairwise summary", check=check)
def pairs(
    tree: xr.DataTree,
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
    shown: int = 30,
) -> Section:
    """List every pair of configs with its type, mean and median over references, and an interval.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep with ``/metrics``.
    metrics : sequence of str, optional
        Default: all that were measured. The first is printed.
    level, draws, seed
        Of the percentile bootstrap over references.
    shown : int
        How many of the nearest pairs are printed.

    Returns
    -------
    Section
        Result over (metric, phase, pair): ``mean``, ``median``, ``low``, ``high`` (NaN under 8) over
        references of each one's mean distance of content rows, ``references_measured``; coordinates
        ``config``, ``config_b``, ``pair_type`` on ``pair``.
        A metric that is not symmetric is taken from ``config`` to ``config_b``.
    """
    view = View(tree)
    names = select_metrics(view, metrics)
    index = list(combinations(range(len(view.configs)), 2))
    shape = (len(names), len(view.phases), len(index))
    numbers = {name: np.full(shape, np.nan) for name in ("mean", "median", "low", "high")}
    measured = np.zeros(shape, np.int64)
    for m, metric in enumerate(names):
        for p, phase in enumerate(view.phases):
            means = view.reference_means(metric, phase)
            if not means or not index:
                continue
            values = np.stack([means["content"][0][a, b] for a, b in index])  # pair, reference
            numbers["mean"][m, p], measured[m, p] = mean_of_references(values)
            numbers["median"][m, p] = median_of_references(values)
            for i, value in enumerate(values):
                numbers["low"][m, p, i], numbers["high"][m, p, i] = bootstrap_interval(
                    value, level, draws, seed
                )
    result = _dataset(view, names, index, numbers, measured, level)
    result.attrs |= {
        "ci_kind": "percentile bootstrap over references",
        "ci_prob": level,
        "draws": draws,
        "seed": seed,
    }
    for variable in numbers:
        result[variable].attrs |= {"ci_kind": "percentile bootstrap", "ci_prob": level}
    text = {} if index else dict.fromkeys(view.phases[:1], "  one config: no pair")
    if names and index:
        for phase in view.phases:
            text[phase] = _text(result, names[0], phase, shown)
        if len(view.references) < FEWEST_REFERENCES:
            text[view.phases[0]] += "\n" + wrap(
                f"No interval: {plural(len(view.references), 'reference')}, and under {FEWEST_REFERENCES} a "
                "bootstrap "
                "over references says nothing (raise prompts.references).",
                "    ",
            )
    return Section("pairs", "Pairwise summary", result, text)


def _dataset(
    view: View,
    names: list[str],
    index: list[tuple[int, int]],
    numbers: dict[str, Floats],
    measured: Ints,
    level: float,
) -> xr.Dataset:
    formats, kernels = view.of_config("format"), view.of_config("observed_kernel")
    meaning = {
        "mean": "mean over references of each one's mean distance of content rows",
        "median": "median over references of each one's mean distance of content rows",
        "low": f"lower end of the {level:.0%} bootstrap interval of the mean; NaN under {FEWEST_REFERENCES} "
        "references",
        "high": f"upper end of the {level:.0%} bootstrap interval of the mean",
    }
    dims = ("metric", "phase", "pair")
    return xr.Dataset(
        {
            **{name: (dims, values, {"long_name": meaning[name]}) for name, values in numbers.items()},
            "references_measured": (dims, measured, {"units": "1", "long_name": "references measured"}),
        },
        coords={
            "metric": names,
            "units": ("metric", [str(view.facts(m).get("units", "1")) for m in names]),
            "phase": list(view.phases),
            "pair": [f"{view.configs[a]} ~ {view.configs[b]}" for a, b in index],
            "config": ("pair", [view.configs[a] for a, _ in index]),
            "config_b": ("pair", [view.configs[b] for _, b in index]),
            "pair_type": (
                "pair",
                [pair_type(formats[a], formats[b], kernels[a], kernels[b]) for a, b in index],
            ),
        },
    )


def _text(result: xr.Dataset, metric: str, phase: str, shown: int) -> str:
    at = result.sel(metric=metric, phase=phase)
    order = np.argsort(at["mean"].values, kind="stable")  # NaN, not measured, comes last
    intervals = bool(np.isfinite(at["low"].values).any())
    rows = []
    for i in order[:shown]:
        one = at.isel(pair=int(i))
        name = f"{clip(str(one['config'].item()), 28)} ~ {clip(str(one['config_b'].item()), 28)}"
        row = [name, str(one["pair_type"].item()), number(float(one["mean"])), number(float(one["median"]))]
        if intervals:
            row.append(f"{number(float(one['low']))} to {number(float(one['high']))}")
        rows.append([*row, str(int(one["references_measured"]))])
    level = float(result.attrs["ci_prob"])
    head = ["pair", "type", "mean", "median", *([f"{level:.0%} interval"] if intervals else []), "references"]
    lines = [
        wrap(
            f"Pairs by {metric} of content rows, nearest first; mean, median: over references of each one's "
            "mean",
            "  ",
        ),
        table(head, rows, indent="    ", left=2),
    ]
    if len(order) > shown:
        lines.append(f"    … {plural(len(order) - shown, 'more pair')}: sweep.nc /analysis/pairs")
    return "\n".join([*lines, *_by_type(at)])


def _by_type(at: xr.Dataset) -> list[str]:
    kinds = at["pair_type"].values.astype(str)
    if len(kinds) <= FEWEST_TO_GROUP:
        return []
    rows = []
    for kind in dict.fromkeys(kinds[np.argsort(at["mean"].values, kind="stable")]):
        values = at["mean"].values[kinds == kind]
        finite = values[np.isfinite(values)]
        span = f"{number(finite.min())} to {number(finite.max())}" if len(finite) else number(float("nan"))
        rows.append([kind, f"{len(finite)} of {len(values)}", span])
    return ["", table(["type", "pairs measured", "range of means"], rows, indent="    ")]
