"""Effects: the distance of every pair of configs, by reference and over references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section, check
from qdx.analysis.view import PHASE_TITLES, REGIONS, View, describe_metric, select_metrics
from qdx.document.format import number, plural
from qdx.document.text import distance_cells, legend, matrix, wrap
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
    text: dict[str, str] = {}
    for phase in view.phases:
        if names:
            text[phase] = _text(view, result, names, phase, references_shown, template, not text)
    return Section("effects", "Effects", result, text)


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


def _text(
    view: View,
    result: xr.Dataset,
    names: list[str],
    phase: str,
    references_shown: int,
    template: bool,
    first_phase: bool,
) -> str:
    labels = view.configs
    if len(labels) == 1:
        return "  one config: no effect to measure" if first_phase else ""
    at = result.sel(phase=phase)
    lines = [legend(labels), ""] if legend(labels) else []
    if first_phase:
        lines.append(
            "  p: the row's config; q: the column's. Content rows: the snippet's and those after the "
            "template."
        )
    for position, metric in enumerate(names):
        of = at.sel(metric=metric)
        lines.append(wrap(describe_metric(view, metric) if first_phase else metric, "  "))
        lines += _caveats(view, metric, phase)
        if not int(of["rows"].sum()):
            lines += [f"    not measured in {PHASE_TITLES[phase]}", ""]
            continue
        if position == 0:
            lines += _single_references(view, of.sel(region="content"), references_shown)
        lines += _aggregate(view, of.sel(region="content"), "content")
        if template and int(of.sel(region="template")["rows"].sum()):
            lines += _aggregate(view, of.sel(region="template"), "template")
    if not template:
        count = int(at["rows"].sel(metric=names[0], region="template").max(["config", "config_b"]).sum())
        if count:
            lines.append(_template_line(at.sel(metric=names[0], region="template"), names[0]))
    return "\n".join(lines).rstrip()


def _caveats(view: View, metric: str, phase: str) -> list[str]:
    """What the measuring had to do to the rows: coarsen them, or drop an infinite value."""
    measured = view.measured(metric, phase)
    if measured is None:
        return []
    attrs, lines = measured[metric].attrs, []
    if int(attrs.get("coarse_rows", 0)):
        count = plural(int(attrs["coarse_rows"]), "row")
        said = f"{count} measured on shared top ids and one bucket for all others"
        if "shared_ids" in measured:
            ids = measured["shared_ids"].values
            if (ids >= 0).any():
                said += f" (median {np.median(ids[ids >= 0]):.0f} shared ids)"
        lines.append(wrap(f"{said}: an f-divergence (kl, js, total variation) is then a lower bound", "    "))
    if int(attrs.get("infinite", 0)):
        lines.append(
            f"    {plural(int(attrs['infinite']), 'infinite distance')} (a token impossible in one row): "
            "not measured"
        )
    return lines


def _single_references(view: View, of: xr.Dataset, shown: int) -> list[str]:
    if len(view.references) == 1:
        return []
    if len(view.configs) > MOST_CONFIGS:
        return [
            f"  Matrices of single references: sweep.nc /analysis/effects ({len(view.configs)} configs)",
            "",
        ]
    lines = []
    for name in view.references[:shown]:
        one = of.sel(reference=name)
        lines.append(wrap(f"{name}, mean of {_counted(one, 'content')}", "  "))
        lines += [matrix(view.configs, distance_cells(one["reference_mean"].values), indent="    "), ""]
    more = len(view.references) - shown
    return (
        [*lines, f"  … {plural(more, 'more reference')}: sweep.nc /analysis/effects", ""]
        if more > 0
        else lines
    )


def _aggregate(view: View, of: xr.Dataset, region: str) -> list[str]:
    references = len(view.references)
    mean, measured = of["mean"].values, of["references_measured"].values
    lines = [
        wrap(
            f"Mean over {references} references of each one's mean ({_counted(of, region)})"
            if references > 1
            else f"{view.references[0]}, mean of {_counted(of, region)}",
            "  ",
        ),
        matrix(view.configs, distance_cells(mean), indent="    "),
    ]
    off = ~np.eye(len(view.configs), dtype=bool)
    total = int(off.sum())
    count = int(of["off_diagonal_measured"])
    said = (
        f"off the diagonal: mean {number(float(of['off_diagonal_mean']))}, range "
        f"{number(float(of['off_diagonal_low']))} to {number(float(of['off_diagonal_high']))}"
    )
    if count < total:
        said += f"; {total - count} of {total} entries not measured"
    lines.append("    " + said)
    partial = off & (measured < references) & (measured > 0)
    if partial.any():
        lines.append(
            wrap(
                f"{int(partial.sum())} of {total} entries rest on fewer references (fewest "
                f"{int(measured[partial].min())} "
                f"of {references}); the others were not measured",
                "    ",
            )
        )
    return [*lines, ""]


def _counted(of: xr.Dataset, region: str) -> str:
    """Say how many rows a pair of a matrix rests on, and how many were not measured."""
    off = ~np.eye(of.sizes["config"], dtype=bool)
    rows, missed = of["rows"].values[off], of["not_measured"].values[off]
    rows, missed = (v.sum(-1) if v.ndim > 1 else v for v in (rows, missed))
    low, high = int(rows.min()), int(rows.max())
    said = f"{low if low == high else f'{low} to {high}'} {region} rows a pair"
    return said + (
        f"; {int(missed.sum())} of {int((rows + missed).sum())} not measured" if missed.sum() else ""
    )


def _template_line(of: xr.Dataset, metric: str) -> str:
    return wrap(
        f"Template rows, apart: {metric} off the diagonal: mean {number(float(of['off_diagonal_mean']))}, "
        "range "
        f"{number(float(of['off_diagonal_low']))} to {number(float(of['off_diagonal_high']))}",
        "  ",
    )
