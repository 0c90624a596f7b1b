"""Which figures a sweep has, and saving them as SVG files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from qdx import new_file
from qdx.analysis.section import Section
from qdx.analysis.snr import word
from qdx.analysis.view import View
from qdx.document import charts
from qdx.document.blocks import Block, Chart, Details
from qdx.document.format import plural
from qdx.document.svg import Figure, Own, number
from qdx.errors import QdxError, nearest
from qdx.kernel_names import pair_type
from qdx.statistics import (
    Floats,
    first_difference,
    mean_of_references,
    median_of_references,
)
from qdx.verification import figures

FOLDER = "figures"
MOST_PAIRS = 6  # drawn along positions
MOST_SIGNALS = 24
MOST_REFERENCES = 4  # with figures of their own
MOST_CONFIGS = 8  # above, single references are drawn for the first metric only
OTHER = str.maketrans(dict.fromkeys('/\\:*?"<>|\n\r\t\x00 ~', "_"))


@dataclass
class Figures:
    """The figures of a report, in its order.

    Attributes
    ----------
    heatmaps : dict
        By phase and metric; the first is over all references, the others over one each.
    positions : dict
        By phase and metric, one a pair of configs.
    signal : list of Figure
    strips : list of Figure
    verifying : list of Figure
        Of a verifier's sweep.
    own : dict
        By name of the analysis.
    errors : dict
        Name of a figure to why it cannot be shown.
    """

    heatmaps: dict[str, dict[str, list[Figure]]] = field(default_factory=dict)
    positions: dict[str, dict[str, list[Figure]]] = field(default_factory=dict)
    signal: list[Figure] = field(default_factory=list)
    strips: list[Figure] = field(default_factory=list)
    verifying: list[Figure] = field(default_factory=list)
    own: dict[str, list[Own]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Figure | Own]:
        for metrics in (*self.heatmaps.values(), *self.positions.values()):
            for found in metrics.values():
                yield from found
        yield from self.signal
        yield from self.strips
        yield from self.verifying
        for owned in self.own.values():
            yield from owned

    def save(self, directory: Path, names: Sequence[str] | bool) -> list[Path]:
        """Write figures as ``<directory>/<name>.svg``.

        Parameters
        ----------
        directory : Path
            Made when it is not there.
        names : sequence of str or bool
            True: all.

        Raises
        ------
        QdxError
            For a name that no figure has; nothing is written then.
        """
        known = {figure.name: figure for figure in self}
        wanted = list(known) if names is True else list(names or ())
        for name in wanted:
            if name not in known:
                raise QdxError(
                    f"report.figures={name}: this sweep has no such figure{nearest(name, known)}; "
                    f"it has {', '.join(known) or 'none'}"
                )
        if wanted:
            new_file.make_folder(directory)
        paths = [directory / f"{name}.svg" for name in wanted]
        for name, path in zip(wanted, paths, strict=True):
            new_file.write_text(path, known[name].standalone(), errors="replace")
        return paths


def collect(view: View, sections: Sequence[Section]) -> Figures:
    """Draw everything that a sweep has numbers for."""
    found = Figures()
    distances = [m for m in view.metrics if view.is_distance(m)]
    for phase in view.phases:
        if len(view.configs) > 1:
            found.heatmaps[phase] = {
                m: h for m in view.metrics if (h := _heatmaps(view, m, phase, m == view.metrics[0]))
            }
            found.positions[phase] = {m: p for m in distances if (p := _positions(view, m, phase))}
    found.signal = _signal(view, next((s for s in sections if s.name == "snr"), None))
    found.strips = _strips(view)
    found.verifying = figures.figures(sections)
    for section in sections:
        charts_of = {block.name: block.drawing for block in _charts(section.content)}
        for name, value in {**section.figures, **charts_of}.items():
            full = _file(f"{section.name}_{name}")
            try:
                found.own.setdefault(section.name, []).append(Own(full, str(name), _svg(value)))
            except Exception as error:  # one figure must not take the report with it
                found.errors[full] = f"{type(error).__name__}: {error}"
    return found


def _charts(blocks: Sequence[Block]) -> Iterator[Chart]:
    for block in blocks:
        if isinstance(block, Chart):
            yield block
        elif isinstance(block, Details):
            yield from _charts(block.blocks)


def unit_of(view: View, metric: str) -> str:
    """Unit to write after a number: `` nat``, or nothing."""
    unit = str(view.facts(metric).get("units", "1"))
    return "" if unit == "1" else f" {unit}"


def _file(name: str) -> str:
    return name.translate(OTHER)


def _heatmaps(view: View, metric: str, phase: str, first: bool) -> list[Figure]:
    means = view.reference_means(metric, phase).get("content")
    if means is None or not np.isfinite(means[0]).any():
        return []
    of_reference, rows = means
    total, _ = mean_of_references(of_reference)
    unit = unit_of(view, metric)
    off = ~np.eye(len(view.configs), dtype=bool)
    several = len(view.references) > 1
    single = several and (first or len(view.configs) <= MOST_CONFIGS)
    shown = range(min(len(view.references), MOST_REFERENCES)) if single else range(0)
    domain = np.concatenate([total[off], *(of_reference[..., r][off] for r in shown)])
    name = f"all {len(view.references)} references" if several else view.references[0]
    found = [
        charts.heatmap(
            f"heatmap_{_file(metric)}_{phase}",
            f"{metric}, {phase}: {name}",
            f"Mean over references of each one’s mean ({_rows(rows.sum(-1)[off])} a pair)."
            if several
            else f"Mean over {_rows(rows.sum(-1)[off])} a pair.",
            view.names,
            total,
            unit,
            domain,
        )
    ]
    for r in shown:
        reference = view.references[r]
        note = f"Mean over {_rows(rows[..., r][off])} a pair; colours as over all references."
        found.append(
            charts.heatmap(
                f"heatmap_{_file(metric)}_{phase}_{_file(reference)}",
                f"{metric}, {phase}: {reference}",
                note,
                view.names,
                of_reference[..., r],
                unit,
                domain,
            )
        )
    return found


def _rows(count: np.ndarray) -> str:
    low, high = int(count.min()), int(count.max())
    return plural(high, "content row") if low == high else f"{low:,} to {high:,} content rows"


def pair_types(view: View, index: Sequence[tuple[int, int]]) -> list[str]:
    """What the two configs of each pair differ in."""
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


def _positions(view: View, metric: str, phase: str) -> list[Figure]:
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
    chosen, found = _chosen(view, means), []
    drawn = [content[a, b, : charts.MOST_LINES].ravel() for a, b in chosen]
    if noise is not None:
        # A floor of 0 needs no place of its own: the drawing says so in words.
        drawn += [n[n > 0] for a, b in chosen for n in (noise[a], noise[b])]
    domain = np.concatenate(drawn) if drawn else np.empty(0)
    for a, b in chosen:
        names = f"{view.names[a]} ~ {view.names[b]}"
        found.append(
            charts.along_positions(
                f"positions_{_file(metric)}_{phase}_{_file(view.configs[a])}_{_file(view.configs[b])}",
                f"{metric}, {phase}: {names}",
                f"{pair_types(view, [(a, b)])[0]}; mean over references of each one’s mean "
                f"{number(float(means[a, b]))}{unit_of(view, metric)}",
                unit_of(view, metric),
                position,
                content[a, b],
                view.references,
                np.fmax(noise[a], noise[b]) if noise is not None else None,
                metric,
                domain,
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


def _signal(view: View, section: Section | None) -> list[Figure]:
    if section is None or "ratio" not in section.result or not section.result.sizes["metric"]:
        return []
    result, found = section.result, []
    metric = str(result["metric"].values[0])
    for phase in (str(p) for p in result["phase"].values):
        pairs = pair_signals(view, result.sel(metric=metric, phase=phase), metric, phase)
        if not pairs:
            continue
        shown = pairs[:MOST_SIGNALS]
        more = len(pairs) - len(shown)
        found.append(
            charts.signal_and_noise(
                f"signal_{_file(metric)}_{phase}",
                f"{metric}, {phase}",
                "Nearest pair first."
                + (f" {plural(more, 'further pair')}: sweep.nc /analysis/snr." if more else ""),
                unit_of(view, metric),
                [(view.names[one.a], view.names[one.b]) for one in shown],
                np.array([one.distance for one in shown]),
                np.array([one.noise for one in shown]),
                [one.ratio for one in shown],
            )
        )
    return found


def ratio_text(at: xr.Dataset, pair: tuple[int, int], distance: float) -> str:
    """Signal to noise, from its result at one metric and phase; a word where it is no number."""
    return word(at, *pair, distance) or number(float(at["ratio"].values[pair]))


def _strips(view: View) -> list[Figure]:
    outputs = view.outputs()
    if outputs is None or not outputs.size:
        return []
    splits = first_difference(outputs[:, :1], outputs[:, 1:])  # config, rerun, reference
    found = []
    for r, reference in enumerate(view.references[: 2 * MOST_REFERENCES]):
        reruns = [[int(s) for s in row if s >= 0] for row in splits[..., r]]
        earliest = [min(row, default=-1) for row in reruns]
        flag = " ▲: a rerun of that config differs from that token on." if max(earliest) >= 0 else ""
        found.append(
            charts.divergence(
                f"divergence_{_file(reference)}",
                reference,
                f"Equal letters: equal tokens up to there.{flag}",
                view.names,
                outputs[:, 0, r],
                earliest,
            )
        )
    return found


def _svg(value: Any) -> str:
    """The SVG document of an analysis' figure: text, or of what has ``savefig`` or ``_repr_svg_``."""
    if isinstance(value, Mapping) or value is None:
        raise QdxError(f"a figure must be SVG text, have savefig or _repr_svg_, got {type(value).__name__}")
    if hasattr(value, "savefig"):
        buffer = io.StringIO()
        value.savefig(buffer, format="svg")
        value = buffer.getvalue()
    elif hasattr(value, "_repr_svg_"):
        value = value._repr_svg_()
    if not isinstance(value, str) or "<svg" not in value:
        raise QdxError(f"a figure must be SVG text, have savefig or _repr_svg_, got {type(value).__name__}")
    named = '<svg xmlns="http://www.w3.org/2000/svg"'
    return str(value if "xmlns" in value else value.replace("<svg", named, 1))
