"""Signal to noise: a pair's distance in units of the two configs' own noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.classes import REPEATS, repeat_state
from qdx.analysis.noise_floor import mean_floor, rows_of_references
from qdx.analysis.section import Section, check
from qdx.analysis.view import PHASE_TITLES, View, select_metrics
from qdx.document.blocks import Block, Cell, Matrix, Text
from qdx.document.format import plural
from qdx.plugins import register
from qdx.statistics import mean_of_references, signal_to_noise

ZERO_FLOOR = "floor 0, rows differ"
ZERO_FLOOR_MEANS = (
    "both floors are 0, but rows of a config's repeats differ in bits that {metric} does not see; the noise "
    "is not 0, so there is no ratio."
)


@register("analysis", "snr", title="Signal to noise", check=check)
def snr(
    tree: xr.DataTree, metrics: Sequence[str] | None = None, phases: Sequence[str] = ("prefill", "replay")
) -> Section:
    """Divide each pair's distance by the noise floors of its two configs.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep with ``/metrics``.
    metrics : sequence of str, optional
        Default: all that were measured and are distances (higher means less alike). The first is printed.
    phases : sequence of str
        Free decode is left out by default: its repeats split, so its floor is cut where it is greatest.

    Returns
    -------
    Section
        Result over (metric, phase, config, config_b). ``ratio`` is the median over references of
        d / √((n_a² + n_b²) / 2). ``exact`` says that both floors are 0 and both configs repeat bit for bit in
        that phase; the ratio is NaN then. ``floor`` (config) is the mean over references of each one's mean
        distance between repeats, content rows. Where both floors are 0 but rows differ between repeats, the
        ratio is NaN and not exact.
    """
    view = View(tree)
    names = [m for m in select_metrics(view, metrics) if view.is_distance(m)]
    present = [p for p in view.phases if p in phases]
    count = len(view.configs)
    floor = np.full((len(names), len(present), count), np.nan)
    ratio = np.full((*floor.shape, count), np.nan)
    exact = np.zeros(ratio.shape, bool)
    distance = np.full(ratio.shape, np.nan)
    bit_equal = [[repeat_state(view, p, c) == REPEATS[0] for c in range(count)] for p in present]
    for m, metric in enumerate(names):
        for p, phase in enumerate(present):
            means = view.reference_means(metric, phase)
            if not means:
                continue
            between_repeats = view.repeat_distances(metric, phase)
            if between_repeats is not None:
                content = view.region_masks(metric, phase)["content"]
                floor[m, p] = mean_floor(rows_of_references(between_repeats, content))
            between = means["content"][0]  # config, config_b, reference
            distance[m, p], _ = mean_of_references(between)
            for a, b in np.ndindex(count, count):
                if a != b:
                    ratio[m, p, a, b], exact[m, p, a, b] = signal_to_noise(
                        between[a, b],
                        floor[m, p, a],
                        floor[m, p, b],
                        bit_equal=bit_equal[p][a] and bit_equal[p][b],
                    )
    dims = ("metric", "phase", "config", "config_b")
    one = {"units": "1"}
    result = xr.Dataset(
        {
            "ratio": (
                dims,
                ratio,
                {
                    **one,
                    "long_name": "median over references of distance / root mean square of both noise floors",
                    "higher_means": "less alike",
                },
            ),
            "exact": (
                dims,
                exact,
                {
                    **one,
                    "long_name": "both noise floors are 0 and the repeats bit-equal: any difference is "
                    "signal",
                },
            ),
            "floor": (
                dims[:3],
                floor,
                {
                    "long_name": "noise floor: mean over references of each one's mean distance between "
                    "repeats, content rows"
                },
            ),
        },
        coords={
            "metric": names,
            "units": ("metric", [str(view.facts(m).get("units", "1")) for m in names]),
            "phase": present,
            "config": view.configs,
            "config_b": view.configs,
        },
    )
    blocks = _blocks(view, result, names, present, distance)
    return Section("snr", "Signal to noise", result, blocks=blocks, place="end")


def word(at: xr.Dataset, a: int, b: int, distance: float) -> str:
    """Return what to write where signal to noise is not a number; empty where it is, or was not measured.

    Parameters
    ----------
    at : xarray.Dataset
        The result of `snr` at one metric and phase.
    a, b : int
        The pair.
    distance : float
        Of the pair.
    """
    if bool(at["exact"].values[a, b]):
        return "equal" if distance == 0 else "exact"
    both = at["floor"].values[[a, b]]
    return ZERO_FLOOR if np.isfinite(distance) and bool((both == 0).all()) else ""


def _blocks(
    view: View, result: xr.Dataset, names: list[str], phases: list[str], distance: np.ndarray
) -> list[Block]:
    missing = _missing(view, result, names, phases)
    if missing:
        return [Text(missing)]
    metric = names[0]
    references = plural(len(view.references), "reference")
    blocks: list[Block] = [
        Text(
            f"Median over {references} of each one's mean {metric} / √((n_a² + n_b²) / 2), content rows; n: "
            f"a config's noise floor (mean over references of each one's mean {metric} between repeats).\n"
            "About 1: the pair is no further apart than its own noise puts it. exact: both floors are 0, "
            "both configs repeat bit for bit and the pair differs, so any difference is signal; equal: as "
            "exact, and the distance is 0."
        )
    ]
    undecided = False
    for p, phase in enumerate(phases):
        at = result.sel(metric=metric, phase=phase)
        cells: list[list[Cell]] = [
            [
                word(at, a, b, float(distance[0, p, a, b])) or float(value) if a != b else ""
                for b, value in enumerate(row)
            ]
            for a, row in enumerate(at["ratio"].values)
        ]
        undecided |= any(ZERO_FLOOR in line for line in cells)
        blocks.append(Matrix(PHASE_TITLES[phase], view.names, cells))
    if undecided:
        blocks.append(Text(f"{ZERO_FLOOR}: {ZERO_FLOOR_MEANS.format(metric=metric)}"))
    return blocks


def _missing(view: View, result: xr.Dataset, names: list[str], phases: list[str]) -> str:
    """Say why there is nothing to show; empty where there is something."""
    if len(view.configs) == 1:
        return "One config: no pair."
    if not names:
        return "Not measured: no metric here is a distance."
    if not phases:
        return "Not measured: the sweep has no rows of the phases that were asked for (analysis.snr.phases)."
    if not np.isfinite(result["floor"].values).any():
        return "Not measured: no config was run again, so there is no noise floor (repeats=3)."
    return ""
