"""List the charts of a sweep, and save them as SVG files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qdx import new_file
from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.document import vega
from qdx.document.blocks import Block, Chart, Details
from qdx.document.html import Drawing
from qdx.errors import QdxError, nearest
from qdx.report import sweep_charts
from qdx.verification import figures

FOLDER = "figures"


@dataclass
class Figures:
    """The charts of a report, in its order.

    Attributes
    ----------
    heatmaps : dict
        By phase and metric; the first is over all references, the others over one each.
    positions : dict
        By phase and metric, one a pair of configs.
    signal : list of Chart
    strips : list of Chart
    verifying : list of Chart
        Of a verifier's sweep.
    own : dict
        By name of the analysis and of the chart.
    drawn : dict
        By name: the specification, or the SVG document of what is an image.
    errors : dict
        Name of a chart to why it cannot be shown.
    """

    heatmaps: dict[str, dict[str, list[Chart]]] = field(default_factory=dict)
    positions: dict[str, dict[str, list[Chart]]] = field(default_factory=dict)
    signal: list[Chart] = field(default_factory=list)
    strips: list[Chart] = field(default_factory=list)
    verifying: list[Chart] = field(default_factory=list)
    own: dict[str, dict[str, Chart]] = field(default_factory=dict)
    drawn: dict[str, Drawing] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Chart]:
        for metrics in (*self.heatmaps.values(), *self.positions.values()):
            for found in metrics.values():
                yield from found
        yield from self.signal
        yield from self.strips
        yield from self.verifying
        for owned in self.own.values():
            yield from owned.values()

    @property
    def need_runtime(self) -> bool:
        """Return whether a page needs JavaScript to show them."""
        return any(not isinstance(drawing, str) for drawing in self.drawn.values())

    def without_runtime(self) -> Figures:
        """The same with nothing that a page without JavaScript cannot show."""
        return replace(self, drawn={n: d for n, d in self.drawn.items() if isinstance(d, str)})

    def of_section(self, name: str) -> dict[str, Drawing]:
        """Return what is drawn of the charts of an analysis, by their names in it."""
        owned = self.own.get(name, {})
        return {n: self.drawn[chart.name] for n, chart in owned.items() if chart.name in self.drawn}

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
            For a name that no figure has, or without vl-convert; nothing is written then.
        """
        known = {chart.name: chart for chart in self if chart.name in self.drawn}
        wanted = list(known) if names is True else list(names or ())
        for name in wanted:
            if name not in known:
                raise QdxError(
                    f"report.figures={name}: this sweep has no such figure{nearest(name, known)}; "
                    f"it has {', '.join(known) or 'none'}"
                )
        saved = {directory / f"{name}.svg": self._alone(known[name]) for name in wanted}
        if saved:
            new_file.make_folder(directory)
        for path, text in saved.items():
            new_file.write_text(path, text, errors="replace")
        return list(saved)

    def _alone(self, chart: Chart) -> str:
        """An SVG document with title and note."""
        drawing = self.drawn[chart.name]
        if isinstance(drawing, str):
            return drawing
        return vega.svg(vega.titled(drawing, chart.heading, chart.note))


def collect(view: View, sections: Sequence[Section]) -> Figures:
    """Draw everything that a sweep has numbers for."""
    found = Figures()
    distances = [m for m in view.metrics if view.is_distance(m)]
    for phase in view.phases:
        if len(view.configs) > 1:
            found.heatmaps[phase] = {
                m: h
                for m in view.metrics
                if (h := sweep_charts.heatmaps(view, m, phase, m == view.metrics[0]))
            }
            found.positions[phase] = {
                m: p for m in distances if (p := sweep_charts.positions(view, m, phase))
            }
    found.signal = [c for s in sections if s.name == "snr" for c in sweep_charts.signals(view, s.result)]
    found.strips = sweep_charts.strips(view)
    found.verifying = figures.figures(sections)
    for section in sections:
        for chart in _charts(section.content):
            named = replace(chart, name=sweep_charts.file_name(f"{section.name}_{chart.name}"))
            found.own.setdefault(section.name, {})[chart.name] = named
    for chart in found:
        try:
            found.drawn[chart.name] = vega.image(chart.drawing) or vega.specification(chart.drawing)
        except Exception as error:  # one figure must not take the report with it
            found.errors[chart.name] = f"{type(error).__name__}: {error}"
    return found


def _charts(blocks: Sequence[Block]) -> Iterator[Chart]:
    for block in blocks:
        if isinstance(block, Chart):
            yield block
        elif isinstance(block, Details):
            yield from _charts(block.blocks)
