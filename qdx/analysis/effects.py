"""Effects: the distance of every pair of configs, by reference and over references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section, check
from qdx.analysis.view import PHASE_TITLES, REGIONS, View, describe_metric, select_metrics
from qdx.document.blocks import Block, Matrix, Text
from qdx.document.format import number, plural, span
from qdx.plugins import register
from qdx.statistics import Floats, mean_of_references

MOST_CONFIGS = 8  # above, matrices of single references stay in the result


@register("analysis", "effects", title="Effects", check=check)
def effects(
    tree: xr.DataTree, metrics: Sequence[str] | None = None, references_shown: int = 4, template: bool = False
) -> Section:
    """Average each pair's distances over the rows of a reference, then over references.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep with ``/metrics``.
    metrics : sequence of str, optional
        Default: all that were measured. The first is the one whose matrices of single references are printed.
    references_shown : int
        How many references get a matrix of their own in the text.
    template : bool
        Print the aggregate matrix of template rows too. It is in the result either way, never mixed with
        content.

    Returns
    -------
    Section
        Result over (metric, phase, region, config, config_b[, reference]): ``reference_mean``, ``rows``,
        ``not_measured``, ``mean`` (over references of each one's mean, whatever its number of rows),
        ``references_measured``; ``off_diagonal_mean``, ``_low``, ``_high``, ``_measured``.
    """
    view = View(tree)
    names = select_metrics(view, metrics)
    result = _measure(view, names)
    blocks: list[Block] = []
    if len(view.configs) == 1:
        blocks.append(Text("One config: no effect to measure.", view.phases[0]))
    elif names:
        for phase in view.phases:
            first = phase == view.phases[0]
            blocks += _of_phase(view, result, names, phase, references_shown, template, first)
    return Section("effects", "Effects", result, blocks=blocks)


def _measure(view: View, names: list[str]) -> xr.Dataset:
    configs, references = len(view.configs), len(view.references)
    base = (len(names), len(view.phases), len(REGIONS))
    reference_mean = np.full((*base, configs, configs, references), np.nan)
    rows = np.zeros((*base, configs, configs, references), np.int64)
    not_measured = np.zeros_like(rows)
    for p, phase in enumerate(view.phases):
        captured = view.captured(phase)[:, 0]
        either = (
            captured[:, None] | captured[None, :]
        )  # a row that only one of the two has is not measured either
        for m, metric in enumerate(names):
            masks = view.region_masks(metric, phase)
            for r, (region, (mean, count)) in enumerate(view.reference_means(metric, phase).items()):
                reference_mean[m, p, r], rows[m, p, r] = mean, count
                not_measured[m, p, r] = (either & masks[region]).sum(-1) - count
    mean, measured = mean_of_references(reference_mean)
    off = ~np.eye(configs, dtype=bool)
    values = mean[..., off]
    off_mean, off_count = mean_of_references(values)
    pair = ("metric", "phase", "region", "config", "config_b")
    one = {"units": "1"}
    return xr.Dataset(
        {
            "reference_mean": (
                (*pair, "reference"),
                reference_mean,
                {"long_name": "mean distance over the rows of a reference; NaN: none measured"},
            ),
            "rows": ((*pair, "reference"), rows, {**one, "long_name": "rows measured"}),
            "not_measured": (
                (*pair, "reference"),
                not_measured,
                {**one, "long_name": "rows that either config captured and that were not measured"},
            ),
            "mean": (
                pair,
                mean,
                {"long_name": "mean over references of each one's mean, each reference of equal weight"},
            ),
            "references_measured": (pair, measured, {**one, "long_name": "references in the mean"}),
            "off_diagonal_mean": (pair[:3], off_mean, {"long_name": "mean of the matrix off its diagonal"}),
            "off_diagonal_low": (pair[:3], _extreme(values, np.inf, np.min), {"long_name": "least of them"}),
            "off_diagonal_high": (
                pair[:3],
                _extreme(values, -np.inf, np.max),
                {"long_name": "greatest of them"},
            ),
            "off_diagonal_measured": (
                pair[:3],
                off_count,
                {**one, "long_name": "entries of the matrix measured"},
            ),
        },
        coords={
            "metric": names,
            "units": ("metric", [str(view.facts(m).get("units", "1")) for m in names]),
            "higher_means": ("metric", [str(view.facts(m).get("higher_means", "less alike")) for m in names]),
            "formula": ("metric", [str(view.facts(m).get("formula", "")) for m in names]),
            "phase": list(view.phases),
            "region": list(REGIONS),
            "config": view.configs,
            "config_b": view.configs,
            "reference": view.references,
        },
    )


def _extreme(values: Floats, empty: float, choose: np.ufunc | object) -> Floats:
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan)
    best = choose(np.where(np.isfinite(values), values, empty), axis=-1)  # type: ignore[operator]
    return np.where(np.isfinite(best), best, np.nan)


def _of_phase(
    view: View,
    result: xr.Dataset,
    names: list[str],
    phase: str,
    references_shown: int,
    template: bool,
    first_phase: bool,
) -> list[Block]:
    at = result.sel(phase=phase)
    blocks: list[Block] = []
    if first_phase:
        rows = "Content rows: the snippet's and those after the template."
        blocks.append(Text(f"p: the row's config; q: the column's. {rows}", phase))
    for position, metric in enumerate(names):
        of = at.sel(metric=metric)
        lines = [describe_metric(view, metric)] if first_phase else []
        lines += [f"{metric}: {caveat}" for caveat in _caveats(view, metric, phase)]
        measured = bool(of["rows"].any())
        if not measured:
            lines.append(f"{metric}: not measured in {PHASE_TITLES[phase]}")
        if lines:
            blocks.append(Text("\n".join(lines), phase))
        if not measured:
            continue
        if position == 0:
            blocks += _single_references(view, of.sel(region="content"), metric, references_shown, phase)
        blocks.append(_aggregate(view, of.sel(region="content"), metric, "content", phase))
        if template and int(of.sel(region="template")["rows"].sum()):
            blocks.append(_aggregate(view, of.sel(region="template"), metric, "template", phase))
    if not template:
        of = at.sel(metric=names[0], region="template")
        if int(of["rows"].max(["config", "config_b"]).sum()):
            spread = _spread(of)
            blocks.append(Text(f"Template rows (separate): {names[0]} {spread}", phase))
    return blocks


def _caveats(view: View, metric: str, phase: str) -> list[str]:
    """Return what the measuring had to do to the rows: coarsen them, or drop an infinite value."""
    measured = view.measured(metric, phase)
    if measured is None:
        return []
    attrs, lines = measured[metric].attrs, []
    if int(attrs.get("coarse_rows", 0)):
        count = plural(int(attrs["coarse_rows"]), "row")
        shared = ""
        if "shared_ids" in measured:
            ids = measured["shared_ids"].values
            if (ids >= 0).any():
                shared = f" (median {np.median(ids[ids >= 0]):.0f} shared ids)"
        lines.append(
            f"{count} measured on shared top ids and one bucket for all others{shared}: an f-divergence (kl, "
            "js, total variation) is then a lower bound"
        )
    if int(attrs.get("infinite", 0)):
        count = plural(int(attrs["infinite"]), "infinite distance")
        lines.append(f"{count} (a token impossible in one row): not measured")
    return lines


def _single_references(view: View, of: xr.Dataset, metric: str, shown: int, phase: str) -> list[Block]:
    if len(view.references) == 1:
        return []
    where = "sweep.nc /analysis/effects"
    if len(view.configs) > MOST_CONFIGS:
        return [Text(f"Matrices of single references: {where} ({len(view.configs)} configs)", phase)]
    matrices = []
    for name in view.references[:shown]:
        one = of.sel(reference=name)
        caption = f"{name}, mean of {_counted(one, 'content')}, {metric}"
        matrices.append(Matrix(caption, view.names, one["reference_mean"].values, phase=phase))
    more = len(view.references) - shown
    rest = [Text(f"… {plural(more, 'more reference')}: {where}", phase)] if more > 0 else []
    return [*matrices, *rest]


def _aggregate(view: View, of: xr.Dataset, metric: str, region: str, phase: str) -> Matrix:
    references = len(view.references)
    measured = of["references_measured"].values
    caption = (
        f"Mean over {references} references of each one's mean ({_counted(of, region)}), {metric}"
        if references > 1
        else f"{view.references[0]}, mean of {_counted(of, region)}, {metric}"
    )
    off = ~np.eye(len(view.configs), dtype=bool)
    total = int(off.sum())
    count = int(of["off_diagonal_measured"])
    notes = [_spread(of)]
    if count < total:
        notes.append(f"{total - count} of {total} entries not measured")
    partial = off & (measured < references) & (measured > 0)
    if partial.any():
        notes.append(
            f"{int(partial.sum())} of {total} entries rest on fewer references (fewest "
            f"{int(measured[partial].min())} of {references}); the others were not measured"
        )
    return Matrix(caption, view.names, of["mean"].values, "; ".join(notes), phase)


def _spread(of: xr.Dataset) -> str:
    return (
        f"off the diagonal: mean {number(float(of['off_diagonal_mean']))}, range "
        f"{span(float(of['off_diagonal_low']), float(of['off_diagonal_high']))}"
    )


def _counted(of: xr.Dataset, region: str) -> str:
    """Say how many rows a pair of a matrix rests on, and how many were not measured."""
    off = ~np.eye(of.sizes["config"], dtype=bool)
    rows, missed = of["rows"].values[off], of["not_measured"].values[off]
    rows, missed = (v.sum(-1) if v.ndim > 1 else v for v in (rows, missed))
    low, high = int(rows.min()), int(rows.max())
    counted = f"{low if low == high else f'{low} to {high}'} {region} rows a pair"
    return counted + (
        f"; {int(missed.sum())} of {int((rows + missed).sum())} not measured" if missed.sum() else ""
    )
