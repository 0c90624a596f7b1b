"""Pairs: every two configs with what they differ in, their distance and its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import xarray as xr

from qdx.analysis.section import Section, check
from qdx.analysis.view import View, select_metrics
from qdx.document.blocks import Block, Cell, Table, Text
from qdx.document.format import plural, span
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
    blocks: list[Block] = []
    if not index:
        blocks.append(Text("One config: no pair.", view.phases[0]))
    for p, phase in enumerate(view.phases if names and index else ()):
        blocks += _of_phase(view, result, phase, shown)
        if p == 0 and len(view.references) < FEWEST_REFERENCES:
            few = plural(len(view.references), "reference")
            blocks.append(
                Text(
                    f"No interval: {few}, and under {FEWEST_REFERENCES} a bootstrap over references says "
                    "nothing (raise prompts.references).",
                    phase,
                )
            )
    return Section("pairs", "Pairwise summary", result, blocks=blocks)


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


def _of_phase(view: View, result: xr.Dataset, phase: str, shown: int) -> list[Block]:
    at = result.sel(phase=phase)
    metrics = [str(m) for m in at["metric"].values]
    first = at.sel(metric=metrics[0])
    names = dict(zip(view.configs, view.names, strict=True))
    order = np.argsort(first["mean"].values, kind="stable")  # NaN, not measured, comes last
    intervals = bool(np.isfinite(first["low"].values).any())
    rows: list[list[Cell]] = []
    for i in order[:shown]:
        one = first.isel(pair=int(i))
        pair = " ~ ".join(names[str(one[end].item())] for end in ("config", "config_b"))
        row: list[Cell] = [pair, str(one["pair_type"].item()), float(one["mean"]), float(one["median"])]
        if intervals:
            row.append(span(float(one["low"]), float(one["high"])))
        rows.append([*row, int(one["references_measured"])])
    level = [f"{float(result.attrs['ci_prob']):.0%} interval"] if intervals else []
    more = len(order) - shown
    blocks: list[Block] = [
        Table(
            f"Pairs by {metrics[0]}{_unit(at, 0)} of content rows, nearest first; mean, median: over "
            "references of each one's mean",
            ["pair", "type", "mean", "median", *level, "references"],
            rows,
            2,
            f"… {plural(more, 'more pair')}: sweep.nc /analysis/pairs" if more > 0 else "",
            phase,
        )
    ]
    if len(metrics) > 1:
        blocks.append(_further_metrics(at, metrics, rows, order[:shown], phase))
    return [*blocks, *_by_type(first, phase)]


def _unit(at: xr.Dataset, metric: int) -> str:
    unit = str(at["units"].values[metric])
    return "" if unit == "1" else f" [{unit}]"


def _further_metrics(
    at: xr.Dataset, metrics: list[str], named: list[list[Cell]], order: Ints, phase: str
) -> Block:
    """The same pairs by the metrics after the first."""
    means = at["mean"].transpose("pair", "metric").values
    rows: list[list[Cell]] = [
        [name[0], *(float(v) for v in means[i, 1:])] for name, i in zip(named, order, strict=True)
    ]
    head = ["pair", *(f"{metric}{_unit(at, m)}" for m, metric in enumerate(metrics[1:], 1))]
    caption = "The same pairs by every other metric: mean over references of each one's mean"
    return Table(caption, head, rows, phase=phase)


def _by_type(at: xr.Dataset, phase: str) -> list[Block]:
    kinds = at["pair_type"].values.astype(str)
    if len(kinds) <= FEWEST_TO_GROUP:
        return []
    rows = []
    for kind in dict.fromkeys(kinds[np.argsort(at["mean"].values, kind="stable")]):
        values = at["mean"].values[kinds == kind]
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if len(finite) else (np.nan, np.nan)
        rows.append([str(kind), f"{len(finite)} of {len(values)}", span(float(low), float(high))])
    head = ["type", "pairs measured", "range of means"]
    return [Table("Pairs by what they differ in", head, rows, phase=phase)]
