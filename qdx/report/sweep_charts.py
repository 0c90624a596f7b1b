"""The charts of a sweep, for its report and for ``tree.qdx.plot``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import xarray as xr

from qdx.analysis.snr import word
from qdx.analysis.view import View
from qdx.document import charts
from qdx.document.blocks import Chart
from qdx.document.charts import number
from qdx.document.format import plural
from qdx.kernel_names import pair_type
from qdx.statistics import Floats, first_difference, mean_of_references, median_of_references

MOST_PAIRS = 6  # drawn along positions
MOST_SIGNALS = 24
MOST_REFERENCES = 4  # with matrices of their own
MOST_STRIPS = 8
MOST_CONFIGS = 8  # above, single references are drawn for the first metric only
OTHER = str.maketrans(dict.fromkeys('/\\:*?"<>|\n\r\t\x00 ~', "_"))


def file_name(name: str) -> str:
    """Return a name without what a file name may not hold."""
    return name.translate(OTHER)


def unit_of(view: View, metric: str) -> str:
    """Unit to write after a number: `` nat``, or nothing."""
    unit = str(view.facts(metric).get("units", "1"))
    return "" if unit == "1" else f" {unit}"


def bare_unit(view: View, metric: str) -> str:
    """Unit of a chart: ``nat``, or nothing."""
    return unit_of(view, metric).strip()


def heatmaps(view: View, metric: str, phase: str, first: bool) -> list[Chart]:
    """Draw the matrix of a metric over all references, then one a reference, on the same colours.

    Parameters
    ----------
    view : View
    metric, phase : str
    first : bool
        Single references are drawn of however many configs.

    Returns
    -------
    list of Chart
        Empty where nothing was measured.
    """
    means = view.reference_means(metric, phase).get("content")
    if means is None or not np.isfinite(means[0]).any():
        return []
    of_reference, rows = means
    total, _ = mean_of_references(of_reference)
    unit = bare_unit(view, metric)
    off = ~np.eye(len(view.configs), dtype=bool)
    several = len(view.references) > 1
    single = several and (first or len(view.configs) <= MOST_CONFIGS)
    shown = range(min(len(view.references), MOST_REFERENCES)) if single else range(0)
    domain = np.concatenate([total[off], *(of_reference[..., r][off] for r in shown)])
    name = f"all {len(view.references)} references" if several else view.references[0]
    found = [
        charts.matrix(
            f"heatmap_{file_name(metric)}_{phase}",
            f"{metric}, {phase}: {name}",
            view.names,
            view.names,
            total,
            unit=unit,
            note=f"Mean over references of each one’s mean ({_rows(rows.sum(-1)[off])} a pair)."
            if several
            else f"Mean over {_rows(rows.sum(-1)[off])} a pair.",
            domain=domain,
        )
    ]
    for r in shown:
        reference = view.references[r]
        note = f"Mean over {_rows(rows[..., r][off])} a pair; colours as over all references."
        found.append(
            charts.matrix(
                f"heatmap_{file_name(metric)}_{phase}_{file_name(reference)}",
                f"{metric}, {phase}: {reference}",
                view.names,
                view.names,
                of_reference[..., r],
                unit=unit,
                note=note,
                domain=domain,
            )
        )
    return found


def _rows(count: np.ndarray) -> str:
    low, high = int(count.min()), int(count.max())
    return plural(high, "content row") if low == high else f"{low:,} to {high:,} content rows"


def pair_types(view: View, index: Sequence[tuple[int, int]]) -> list[str]:
    """Return what the two configs of each pair differ in."""
    formats, kernels = view.of_config("format"), view.of_config("observed_kernel")
    return [pair_type(formats[a], formats[b], kernels[a], kernels[b]) for a, b in index]


def _chosen(view: View, mean_CC: Floats) -> list[tuple[int, int]]:
    """Pairs to draw: the nearest of every type, then the nearest of all, nearest first."""
    index = [p for p in combinations(range(len(view.configs)), 2) if np.isfinite(mean_CC[p])]
    index.sort(key=lambda p: mean_CC[p])
    kinds = pair_types(view, index)
    leaders = [index[kinds.index(k)] for k in dict.fromkeys(kinds)]
    chosen = list(dict.fromkeys([*leaders, *index]))[:MOST_PAIRS]
    return sorted(chosen, key=lambda p: mean_CC[p])


def positions(
    view: View, metric: str, phase: str, pairs: Sequence[tuple[int, int]] | None = None
) -> list[Chart]:
    """Draw the distance of pairs of configs along positions, all on one axis.

    Parameters
    ----------
    view : View
    metric, phase : str
    pairs : sequence of (int, int), optional
        Which, by the numbers of the configs; default: the nearest of every type, then the nearest.

    Returns
    -------
    list of Chart
        Empty where nothing was measured.
    """
    values, masks = view.distances(metric, phase), view.region_masks(metric, phase)
    if values is None:
        return []
    means, _ = mean_of_references(view.reference_means(metric, phase)["content"][0])
    content = np.where(masks["content"], values, np.nan)
    dataset = view.measured(metric, phase)
    assert dataset is not None
    position = np.asarray(dataset["position"].values, np.int64)
    repeats = view.repeat_distances(metric, phase)
    noise = None
    if repeats is not None and np.isfinite(repeats).any():
        noise = np.fmax.reduce(np.where(masks["content"], repeats, np.nan), axis=(1, 2))  # config, position
    chosen, found = _chosen(view, means) if pairs is None else pairs, []
    drawn = [content[a, b, : charts.MOST_LINES].ravel() for a, b in chosen]
    if noise is not None:
        # A floor of 0 needs no place of its own: the drawing says so in words.
        drawn += [n[n > 0] for a, b in chosen for n in (noise[a], noise[b])]
    domain = np.concatenate(drawn) if drawn else np.empty(0)
    for a, b in chosen:
        names = f"{view.names[a]} ~ {view.names[b]}"
        found.append(
            charts.positions(
                f"positions_{file_name(metric)}_{phase}_{file_name(view.configs[a])}_"
                f"{file_name(view.configs[b])}",
                f"{metric}, {phase}: {names}",
                position,
                content[a, b],
                view.references,
                what=metric,
                unit=bare_unit(view, metric),
                note=f"{pair_types(view, [(a, b)])[0]}; mean over references of each one’s mean "
                f"{number(float(means[a, b]))}{unit_of(view, metric)}",
                noise_P=np.fmax(noise[a], noise[b]) if noise is not None else None,
                domain=domain,
            )
        )
    return found


@dataclass(frozen=True)
class PairSignal:
    """A pair's distance, the noise of its two configs, and their ratio in words or digits."""

    a: int
    b: int
    kind: str
    distance: float
    noise: float
    ratio: str


def pair_signals(view: View, at: xr.Dataset, metric: str, phase: str) -> list[PairSignal]:
    """Hold every pair against its noise, nearest first; empty where nothing was measured or rerun.

    Parameters
    ----------
    view : View
    at : xarray.Dataset
        The result of ``snr`` at `metric` and `phase`.
    metric, phase : str
    """
    floor = at["floor"].values
    means = view.reference_means(metric, phase)
    index = list(combinations(range(len(view.configs)), 2))
    if not means or not index or not np.isfinite(floor).any():
        return []
    kinds = pair_types(view, index)
    found = []
    for (a, b), kind in zip(index, kinds, strict=True):
        distance = float(median_of_references(means["content"][0][a, b]))
        noise = float(np.sqrt((floor[a] ** 2 + floor[b] ** 2) / 2))
        found.append(PairSignal(a, b, kind, distance, noise, ratio_text(at, (a, b), distance)))
    return [found[i] for i in np.argsort([one.distance for one in found], kind="stable")]


def signals(view: View, result: xr.Dataset, metric: str | None = None) -> list[Chart]:
    """Draw every pair against its noise, a chart a phase.

    Parameters
    ----------
    view : View
    result : xarray.Dataset
        Of the analysis ``snr``.
    metric : str, optional
        Default: the first.

    Returns
    -------
    list of Chart
        Empty where nothing was measured or run again.
    """
    if "ratio" not in result or not result.sizes["metric"]:
        return []
    found = []
    metric = str(result["metric"].values[0]) if metric is None else metric
    for phase in (str(p) for p in result["phase"].values):
        pairs = pair_signals(view, result.sel(metric=metric, phase=phase), metric, phase)
        if not pairs:
            continue
        shown = pairs[:MOST_SIGNALS]
        more = len(pairs) - len(shown)
        found.append(
            charts.signal_and_noise(
                f"signal_{file_name(metric)}_{phase}",
                f"{metric}, {phase}",
                [(view.names[one.a], view.names[one.b]) for one in shown],
                np.array([one.distance for one in shown]),
                np.array([one.noise for one in shown]),
                [one.ratio for one in shown],
                unit=bare_unit(view, metric),
                note="Nearest pair first."
                + (f" {plural(more, 'further pair')}: sweep.nc /analysis/snr." if more else ""),
            )
        )
    return found


def ratio_text(at: xr.Dataset, pair: tuple[int, int], distance: float) -> str:
    """Signal to noise, from its result at one metric and phase; a word where it is not a number."""
    return word(at, *pair, distance) or number(float(at["ratio"].values[pair]))


def strips(view: View) -> list[Chart]:
    """Draw where free generations part, a chart a reference; empty where nothing was generated."""
    outputs = view.outputs()
    if outputs is None or not outputs.size:
        return []
    splits = first_difference(outputs[:, :1], outputs[:, 1:])  # config, rerun, reference
    found = []
    for r, reference in enumerate(view.references[:MOST_STRIPS]):
        reruns = [[int(s) for s in row if s >= 0] for row in splits[..., r]]
        earliest = [min(row, default=-1) for row in reruns]
        flag = " ▲: a rerun of that config differs from that token on." if max(earliest) >= 0 else ""
        found.append(
            charts.strips(
                f"divergence_{file_name(reference)}",
                reference,
                view.names,
                outputs[:, 0, r],
                earliest,
                note=f"Equal letters: equal tokens up to there.{flag}",
            )
        )
    return found
