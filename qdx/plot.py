"""``tree.qdx.plot``: the charts of a report as Altair charts, for notebooks and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from qdx.analysis.view import View
from qdx.errors import QdxError, nearest
from qdx.report import sweep_charts
from qdx.verification import figures

if TYPE_CHECKING:
    from altair import TopLevelMixin

    from qdx.document.blocks import Chart


class Plots:
    """Charts of a sweep; every one can be changed, layered and saved as any Altair chart.

    A notebook shows what a cell ends with; ``chart.save("chart.html")``, ``.svg`` and ``.png`` write files.
    They need Altair and vl-convert (``pip install 'qdx[charts]'``).

    Examples
    --------
    >>> tree = qdx.open("outputs/…")  # doctest: +SKIP
    >>> tree.qdx.plot.matrix("l2")  # doctest: +SKIP
    >>> tree.qdx.plot.positions("awq", "awq_marlin", "kl").properties(width=800)  # doctest: +SKIP
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def matrix(
        self, metric: str = "l2", phase: str = "replay", reference: str | None = None
    ) -> TopLevelMixin:
        """Draw the distances between all configs as a heatmap.

        Parameters
        ----------
        metric : str
            One that the sweep was run with (``metric=[…]``).
        phase : {"replay", "prefill", "decode"}
        reference : str, optional
            One of them; default: the mean over references of each one's mean over content rows.

        Returns
        -------
        altair.LayerChart
            Row p, column q, in the metric's unit. Colours are logarithmic where the values span much.

        Raises
        ------
        QdxError
            When the sweep has no such metric, phase or reference, when it has one config, or without Altair.
        """
        view = self._measured(metric, phase)
        found = sweep_charts.heatmaps(view, metric, phase, True)
        if reference is None:
            return _first(found, f"{metric} in {phase}").altair()
        if reference not in view.references[: sweep_charts.MOST_REFERENCES]:
            drawn = view.references[: sweep_charts.MOST_REFERENCES]
            raise QdxError(
                f"reference {reference!r} is not drawn, only {', '.join(drawn)}{nearest(reference, drawn)}"
            )
        return _first(found[view.references.index(reference) + 1 :] or found, metric).altair()

    def positions(
        self, config: str, config_b: str, metric: str = "l2", phase: str = "replay"
    ) -> TopLevelMixin:
        """Draw how far two configs are apart at every position, with the noise floor as a band.

        Parameters
        ----------
        config, config_b : str
            Labels.
        metric : str
            One that the sweep was run with (``metric=[…]``).
        phase : {"replay", "prefill", "decode"}

        Returns
        -------
        altair.LayerChart
            A line a reference, of the first four, content rows only, in the metric's unit. The band ends at
            the greatest distance between two repeats of either config at that position, over references.

        Raises
        ------
        QdxError
            When the sweep has no such config, metric or phase, or without Altair.
        """
        view = self._measured(metric, phase)
        for label in (config, config_b):
            if label not in view.configs:
                raise QdxError(
                    f"no config {label!r} here, only {', '.join(view.configs)}{nearest(label, view.configs)}"
                )
        pair = (view.configs.index(config), view.configs.index(config_b))
        return _first(sweep_charts.positions(view, metric, phase, [pair]), f"{metric} in {phase}").altair()

    def signal(self, metric: str = "l2", phase: str = "replay") -> TopLevelMixin:
        """Draw every pair's distance beside the noise of its two configs, nearest pair first.

        Parameters
        ----------
        metric : str
            One that the analysis ``snr`` was run with.
        phase : {"replay", "prefill"}

        Returns
        -------
        altair.LayerChart
            The 24 nearest pairs; median over references, in the metric's unit.

        Raises
        ------
        QdxError
            When the sweep has no analysis ``snr``, no such metric or phase in it, when nothing was run
            again, or without Altair.
        """
        view, result = self._measured(metric, phase), self._analysis("snr")
        known = [str(name) for name in result["metric"].values]
        if metric not in known:
            raise QdxError(f"snr has no metric {metric!r}, only {', '.join(known)}{nearest(metric, known)}")
        chosen = result.isel(phase=result["phase"].values.astype(str) == phase)
        found = sweep_charts.signals(view, chosen, metric)
        return _first(found, f"signal and noise of {metric} in {phase}").altair()

    def strips(self, reference: str | None = None) -> TopLevelMixin:
        """Draw which configs generate the same tokens up to where.

        Parameters
        ----------
        reference : str, optional
            Default: the first.

        Returns
        -------
        altair.LayerChart
            A strip a config (greedy, first repeat), a colour and a letter a branch of equal tokens.

        Raises
        ------
        QdxError
            Where nothing was generated, for an unknown reference, or without Altair.
        """
        view = View(self._tree)
        found = sweep_charts.strips(view)
        names = view.references[: len(found)]
        if reference is not None and reference not in names:
            listed = ", ".join(names) or "none"
            raise QdxError(f"reference {reference!r} is not drawn, only {listed}{nearest(reference, names)}")
        at = names.index(reference) if reference is not None else 0
        return _first(found[at:], "free generations").altair()

    def roc(self, producer: str) -> TopLevelMixin:
        """Draw the share of false claims that is found by the share of honest ones that is rejected.

        Parameters
        ----------
        producer : str
            Whose transcripts; each line claims them to be of another config.

        Returns
        -------
        altair.LayerChart

        Raises
        ------
        QdxError
            When the tree is not of a verifier's sweep, for an unknown producer, where there were too few
            references to hold some out, or without Altair.
        """
        return self._separation("roc", producer)

    def rows_needed(self, producer: str) -> TopLevelMixin:
        """Draw the share of false claims that is found by the first published rows of a transcript.

        Parameters, return value and errors are those of `roc`.
        """
        return self._separation("rows", producer)

    def tokens_needed(self, producer: str) -> TopLevelMixin:
        """Draw the share of false claims that is found by the first tokens alone.

        Parameters, return value and errors are those of `roc`.
        """
        return self._separation("tokens", producer)

    def crossing(self, phase: str = "decode") -> TopLevelMixin:
        """Draw the distance of every producer's rows from every config's replay here as a heatmap.

        Parameters
        ----------
        phase : {"decode", "prefill"}
            Of the producers' rows.

        Returns
        -------
        altair.LayerChart
            Nat; mean over content rows, then over references.

        Raises
        ------
        QdxError
            When the tree is not of a verifier's sweep, for another phase, where nothing was measured, or
            without Altair.
        """
        result = self._analysis("crossing")
        known = [str(name) for name in result["phase"].values]
        if phase not in known:
            raise QdxError(f"crossing has no phase {phase!r}, only {', '.join(known)}{nearest(phase, known)}")
        chart = figures.cross(result, phase)
        return _first([chart] if chart else [], f"distances of producers in {phase}").altair()

    def _separation(self, kind: str, producer: str) -> TopLevelMixin:
        result = self._analysis("attribution")
        known = [str(name) for name in result["producer"].values]
        if producer not in known:
            raise QdxError(
                f"no producer {producer!r} here, only {', '.join(known)}{nearest(producer, known)}"
            )
        chart = figures.separation(result, kind, producer)
        return _first([chart] if chart else [], f"held-out references of {producer}").altair()

    def _measured(self, metric: str, phase: str) -> View:
        self._tree.qdx.pairs(metric, phase)  # says what is missing
        return View(self._tree)

    def _analysis(self, name: str) -> xr.Dataset:
        known = list(self._tree["analysis"].children) if "analysis" in self._tree.children else []
        if name not in known:
            raise QdxError(
                f"the analysis {name!r} was not run here, only {', '.join(known) or 'none'}: open the "
                f"sweep.nc of a sweep that has it"
            )
        return self._tree[f"analysis/{name}"].to_dataset()


def _first(found: list[Chart], what: str) -> Chart:
    if not found:
        raise QdxError(f"nothing to draw: {what} were not measured here")
    return found[0]
