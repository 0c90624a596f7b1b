"""Noise floor: what a config differs from itself by, when the same tokens are run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from qdx.analysis.section import Section, check
from qdx.analysis.view import REGIONS, View, select_metrics
from qdx.document.blocks import Block, Cell, Table, Text
from qdx.document.format import number, percent, plural
from qdx.plugins import register
from qdx.statistics import Bools, Floats, first_difference, masked_mean, mean_of_references, mismatch_bound

MOST_PAIRS = 6  # repeat pairs that get a column of their own


@register("analysis", "noise_floor", title="Reproducibility check", check=check)
def noise_floor(
    tree: xr.DataTree, template: bool = False, metrics: Sequence[str] | None = None, level: float = 0.95
) -> Section:
    """Compare each config's repeats with each other.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep with ``/metrics``.
    template : bool
        Print the distances of template rows too. They are in the result either way, and never mixed with
        content.
    metrics : sequence of str, optional
        Default: all that were measured.
    level : float
        Confidence of the bound on the mismatch rate.

    Returns
    -------
    Section
        Result over (config, phase, metric, region, repeat_pair): ``reruns``, ``reruns_equal``,
        ``mismatch_bound``, ``rows``, ``rows_equal``; ``generations``, ``generations_diverged``,
        ``first_divergence``; ``mean``, ``median``, ``worst`` (the least alike), ``rows_measured``,
        ``pair_mean``.

    Notes
    -----
    A *rerun* is one reference in one repeat after the first; it is equal when every captured row, template
    and content alike, has the hash of the first repeat's. In free decode the rows up to and including the
    one that predicts the first differing token are compared: later ones have other inputs.
    """
    view = View(tree)
    names = select_metrics(view, metrics)
    result = xr.merge(
        [_equality(view, level), _generations(view), _distances(view, names)],
        join="outer",
        combine_attrs="override",
    ).reindex(config=view.configs, phase=list(view.phases))
    result.attrs = {
        "level": level,
        "rerun": "one reference in one repeat after the first, compared with the first repeat",
        "mean": "mean over references of the mean over a reference's rows and repeat pairs",
    }
    blocks = _blocks(view, result, names, template)
    return Section("noise_floor", "Reproducibility check", result, blocks=blocks, place="front")


def _equality(view: View, level: float) -> xr.Dataset:
    shape = (len(view.configs), len(view.phases))
    counts = {name: np.zeros(shape, np.int64) for name in ("reruns", "reruns_equal", "rows", "rows_equal")}
    for at, phase in enumerate(view.phases):
        hashes = view.hashes(phase)
        for config in range(shape[0]):
            for repeat in range(1, hashes.shape[1]):
                rows = view.comparable(phase, (config, 0), (config, repeat))
                equal = hashes[config, 0] == hashes[config, repeat]
                compared = rows.any(-1)
                counts["reruns"][config, at] += compared.sum()
                counts["reruns_equal"][config, at] += (compared & (equal | ~rows).all(-1)).sum()
                counts["rows"][config, at] += rows.sum()
                counts["rows_equal"][config, at] += (rows & equal).sum()
    bound = np.full(shape, np.nan)
    for index in np.ndindex(shape):
        if counts["reruns"][index] and counts["reruns"][index] == counts["reruns_equal"][index]:
            bound[index] = mismatch_bound(int(counts["reruns"][index]), level)
    meaning = {
        "reruns": "reruns that have rows to compare with the first repeat",
        "reruns_equal": "reruns whose every compared row has the hash of the first repeat's",
        "rows": "rows compared",
        "rows_equal": "rows with equal hashes",
    }
    dims = ("config", "phase")
    data = {k: (dims, v, {"units": "1", "long_name": meaning[k]}) for k, v in counts.items()}
    said = f"{level:.0%} upper bound of the share of reruns that mismatch; NaN where one did or none was made"
    data["mismatch_bound"] = (dims, bound, {"units": "1", "long_name": said})
    return xr.Dataset(data, coords={"config": view.configs, "phase": list(view.phases)})


def _generations(view: View) -> xr.Dataset:
    outputs = view.outputs()
    if outputs is None:
        return xr.Dataset(coords={"config": view.configs})
    first = first_difference(outputs[:, :1], outputs[:, 1:])
    produced = (outputs[:, 1:, :, 0] >= 0) & (outputs[:, :1, :, 0] >= 0)
    index = {
        "units": "1",
        "long_name": "index of the first token that differs from the first repeat's; -1: none",
    }
    return xr.Dataset(
        {
            "generations": (
                "config",
                produced.sum((1, 2)),
                {"units": "1", "long_name": "free generations compared with the first repeat's"},
            ),
            "generations_diverged": (
                "config",
                (produced & (first >= 0)).sum((1, 2)),
                {"units": "1", "long_name": "free generations that differ from the first repeat's"},
            ),
            "first_divergence": (("config", "rerun", "reference"), first, index),
        },
        coords={
            "config": view.configs,
            "reference": view.references,
            "rerun": np.arange(1, outputs.shape[1]),
        },
    )


def rows_of_references(values: Floats, mask: Bools) -> Floats:
    """Distances between repeats by what they are averaged over.

    Parameters
    ----------
    values : array (config, repeat pair, reference, position)
    mask : array of bool
        Which rows count; shaped to broadcast with `values`.

    Returns
    -------
    array (config, reference, repeat pair × position)
        NaN where nothing was measured or counts.
    """
    inside = np.where(mask, values, np.nan).transpose(0, 2, 1, 3)
    return inside.reshape(*inside.shape[:2], -1)


def mean_floor(rows_CRX: Floats) -> Floats:
    """The noise floor (config,): mean over references of each one's mean distance between its repeats."""
    of_reference, _ = masked_mean(rows_CRX, np.ones(rows_CRX.shape, bool))
    return mean_of_references(of_reference)[0]


def _distances(view: View, names: list[str]) -> xr.Dataset:
    pairs = next((view.repeat_pairs(m, p) for m in names for p in view.phases if view.repeat_pairs(m, p)), [])
    base = (len(names), len(view.phases), len(REGIONS), len(view.configs))
    floats = {name: np.full(base, np.nan) for name in ("mean", "median", "worst")}
    rows = np.zeros(base, np.int64)
    pair_mean = np.full((*base, len(pairs)), np.nan)
    for m, metric in enumerate(names):
        for p, phase in enumerate(view.phases):
            values = view.repeat_distances(metric, phase)
            if values is None:
                continue
            for r, mask in enumerate(view.region_masks(metric, phase).values()):
                inside = np.where(mask, values, np.nan)
                of_pair, _ = masked_mean(inside, np.ones(inside.shape, bool))
                pair_mean[m, p, r], _ = mean_of_references(of_pair)
                flat = rows_of_references(values, mask)
                floats["mean"][m, p, r] = mean_floor(flat)
                for c in range(len(view.configs)):
                    finite = flat[c][np.isfinite(flat[c])]
                    rows[m, p, r, c] = len(finite)
                    if len(finite):
                        floats["median"][m, p, r, c] = np.median(finite)
                        floats["worst"][m, p, r, c] = (
                            finite.max() if view.is_distance(metric) else finite.min()
                        )
    dims = ("metric", "phase", "region", "config")
    over = "distances between repeats, all references"
    data: dict[str, Any] = {
        "mean": (
            dims,
            floats["mean"],
            {"long_name": "mean over references of each one's mean distance between repeats"},
        ),
        "median": (dims, floats["median"], {"long_name": f"median of {over}"}),
        "worst": (dims, floats["worst"], {"long_name": f"least alike of {over}"}),
        "rows_measured": (dims, rows, {"long_name": "distances measured: rows × repeat pairs", "units": "1"}),
        "pair_mean": (
            (*dims, "repeat_pair"),
            pair_mean,
            {"long_name": "mean over references of each one's mean distance of a repeat pair"},
        ),
    }
    units = [str(view.facts(m).get("units", "1")) for m in names]
    coords = {
        "metric": names,
        "units": ("metric", units),
        "phase": list(view.phases),
        "region": list(REGIONS),
        "config": view.configs,
        "repeat_pair": pairs,
    }
    return xr.Dataset(data, coords=coords)


def _blocks(view: View, result: xr.Dataset, names: list[str], template: bool) -> list[Block]:
    repeats = view.group(view.phases[0]).sizes["repeat"]
    runs = (
        f"Runs: {plural(len(view.configs), 'config')} × {plural(repeats, 'repeat')} × "
        f"{plural(len(view.references), 'reference')}"
    )
    if repeats < 2:
        missing = (
            "One repeat: nothing was run again, so whether a config repeats, its noise floor and every "
            "signal to noise ratio are not known (repeats=3 measures them)."
        )
        return [Text(f"{runs}\n{missing}")]
    level = result.attrs["level"]
    blocks: list[Block] = [
        Text(
            f"{runs}\n"
            "Bit-equality. A rerun is one reference in one repeat after the first; it is bit-equal when "
            "every captured row (template and content) has the hash of the first repeat's. If none of n "
            f"reruns mismatched, the mismatch rate is under 1 − {1 - level:.2g}^(1/n) at {100 * level:.0f} % "
            "(reruns taken as independent)."
        ),
        _equality_table(view, result, level),
        _generation_table(view, result),
    ]
    blocks += [_pair_table(view, result, metric) for metric in names[:1]]
    blocks += _summary_tables(view, result, names, "content")
    if template:
        blocks += _summary_tables(view, result, names, "template")
    elif names:
        blocks.append(_template_line(view, result, names[0]))
    return blocks


def _equality_table(view: View, result: xr.Dataset, level: float) -> Table:
    rows = []
    for config, name in zip(view.configs, view.names, strict=True):
        cells = {}
        for phase in view.phases:
            at = result.sel(config=config, phase=phase)
            n, k = int(at["reruns"]), int(at["reruns_equal"])
            differing = int(at["rows"]) - int(at["rows_equal"])
            if not n:
                finding = "no rerun has rows to compare"
            elif n == k:
                bound = np.ceil(float(at["mismatch_bound"]) * 1000) / 10  # rounded up: it is an upper bound
                finding = f"mismatch rate under {bound:.1f} % at {100 * level:.0f} %"
            else:
                finding = f"does not repeat: {n - k} of {n} reruns mismatch"
            cells[phase] = [f"{k} of {n}", f"{differing:,} of {int(at['rows']):,}", finding]
        alike = len({(row[0], row[2]) for row in cells.values()}) == 1
        if alike and all(row[1].startswith("0 ") for row in cells.values()):
            first = next(iter(cells.values()))
            total = int(result["rows"].sel(config=config).sum())
            which = "each" if len(cells) > 1 else view.phases[0]
            rows.append([name, which, first[0], f"0 of {total:,}", first[2]])
        else:
            rows += [[name, phase, *row] for phase, row in cells.items()]
    head = ["config", "phase", "bit-equal in", "rows that differ", ""]
    return Table("Reruns compared with the first repeat, every captured row", head, rows, 2)


def _generation_table(view: View, result: xr.Dataset) -> Block:
    if "generations" not in result:
        return Text("No free generation was recorded.")
    rows = []
    for config, name in zip(view.configs, view.names, strict=True):
        at = result.sel(config=config)
        n, k = int(at["generations"]), int(at["generations_diverged"])
        first = at["first_divergence"].values
        earliest = f"token {int(first[first >= 0].min())}" if k else "none"
        rows.append([name, f"{k} of {n}", percent(k / n if n else float("nan")), earliest])
    caption = (
        "Free generation: reruns whose tokens differ from the first repeat's, and the index of the earliest "
        "difference"
    )
    return Table(caption, ["config", "diverged", "rate", "earliest"], rows)


def _pair_table(view: View, result: xr.Dataset, metric: str) -> Block:
    pairs = [str(p) for p in result["repeat_pair"].values]
    title = f"{metric} between repeats, content rows: mean over references of each one's mean"
    if not pairs:
        return Text(f"{title}: not measured")
    if len(pairs) > MOST_PAIRS:
        return Text(f"{title}: {len(pairs)} pairs, in sweep.nc /analysis/noise_floor (pair_mean)")
    rows: list[list[Cell]] = []
    for config, name in zip(view.configs, view.names, strict=True):
        at = result["pair_mean"].sel(metric=metric, region="content", config=config)
        rows += _phase_rows(name, {p: [float(v) for v in at.sel(phase=p).values] for p in view.phases})
    return Table(title, ["config", "phase", *pairs], rows, 2)


def _phase_rows(name: str, cells: dict[str, list[float]]) -> list[list[Cell]]:
    """Table rows of one config, one a phase; a single one where every distance of every phase is 0."""
    if all(value == 0 for row in cells.values() for value in row):
        return [[name, "all", *next(iter(cells.values()))]]
    return [[name, phase, *row] for phase, row in cells.items()]


def _template_line(view: View, result: xr.Dataset, metric: str) -> Text:
    """The greatest distance between repeats in template rows, by phase that has such rows."""
    at = result.sel(metric=metric, region="template")
    phases = []
    for phase in view.phases:
        values = at["worst"].sel(phase=phase).values
        if np.isfinite(values).any():
            worst = int(np.nanargmax(values) if view.is_distance(metric) else np.nanargmin(values))
            whose = f" ({view.names[worst]})" if values[worst] and view.is_distance(metric) else ""
            phases.append(f"{phase} {number(float(values[worst]))}{whose}")
    greatest = ", ".join(phases) or "none captured"
    return Text(f"Template rows (separate): greatest {metric} between repeats: {greatest}")


def _side_by_side(result: xr.Dataset, names: list[str], region: str, most: int = 3) -> list[list[str]]:
    """Metrics that were measured at equally many rows, in groups that fit beside each other."""
    groups: list[list[str]] = []
    counts = result["rows_measured"].sel(region=region)
    for name in names:
        fitting = groups and len(groups[-1]) < most
        if fitting and bool(
            (counts.sel(metric=name).values == counts.sel(metric=groups[-1][0]).values).all()
        ):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _summary_tables(view: View, result: xr.Dataset, names: list[str], region: str) -> list[Block]:
    """Median and maximum, metrics side by side."""
    tables: list[Block] = []
    for chunk in _side_by_side(result, names, region):
        rows: list[list[Cell]] = []
        for config, name in zip(view.configs, view.names, strict=True):
            at = result.sel(region=region, config=config, metric=chunk)
            cells = {}
            for phase in view.phases:
                both = (at["median"].sel(phase=phase).values, at["worst"].sel(phase=phase).values)
                cells[phase] = [float(v) for v in np.stack(both, 1).ravel()]
            for row in _phase_rows(name, cells):
                count = at["rows_measured"].max("metric")
                n = int(count.sum() if row[1] == "all" else count.sel(phase=row[1]))
                rows.append([*row[:2], n, *row[2:]])
        head = ["config", "phase", "n"]
        for metric in chunk:
            head += [f"{metric} median", "max" if view.is_distance(metric) else "min"]
        caption = (
            f"Noise floor of {region} rows: median, maximum of n distances between repeats (rows × repeat "
            "pairs)"
        )
        tables.append(Table(caption, head, rows, 2))
    return tables
