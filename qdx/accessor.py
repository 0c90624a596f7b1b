"""``.qdx`` on a Dataset of one phase and on the tree of a sweep: thin over `qdx.arrays`.

``qdx.open`` registers both; after ``xarray.open_dataset`` alone, ``import qdx.accessor`` does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from qdx import arrays, tables
from qdx.arrays import Metric
from qdx.dataset import open
from qdx.dataset.layout import PHASES
from qdx.errors import QdxError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from qdx.plot import Plots

__all__ = ["DatasetAccessor", "TreeAccessor", "open"]


@xr.register_dataset_accessor("qdx")  # type: ignore[no-untyped-call]
class DatasetAccessor:
    """Quantities of one phase, computed from its rows when they are asked for.

    Examples
    --------
    >>> replay = qdx.open("outputs/…")["replay"].to_dataset()  # doctest: +SKIP
    >>> replay.qdx.margin().mean(["repeat", "reference", "position"])  # doctest: +SKIP
    >>> replay.qdx.against("none").mean(["reference", "position"])  # doctest: +SKIP
    """

    def __init__(self, data: xr.Dataset) -> None:
        self._data = data

    def logprob(self, of: Literal["target", "top", "vocab"] = "target") -> xr.DataArray:
        """Natural log-probabilities of the targets, of the greatest logits or of every token."""
        return arrays.logprob(self._data, of)

    def margin(self) -> xr.DataArray:
        """Greatest logit minus the target's, in nat."""
        return arrays.margin(self._data)

    def pairs(self, metric: Metric = "l2", **options: Any) -> xr.DataArray:
        """Distance of every two configs, (config, config_b, reference, position)."""
        return arrays.pairs(self._data, metric, **options)

    def noise_floor(self, metric: Metric = "l2", **options: Any) -> xr.DataArray:
        """Distance of every two repeats of a config, (config, repeat_pair, reference, position)."""
        return arrays.noise_floor(self._data, metric, **options)

    def against(self, config: str, metric: Metric = "l2", **options: Any) -> xr.DataArray:
        """Distance of every config from one of them, (config, reference, position)."""
        return arrays.against(self._data, config, metric, **options)


def _without_data(text: str | None) -> str | None:
    """Drop the entry `data`, and the section Parameters where it was the only one."""
    one = re.sub(r"^( *)data : .*\n(?:\1 +.*\n)+", "", text or "", flags=re.MULTILINE)
    return re.sub(r"^ *Parameters\n *-+\n\n", "", one, flags=re.MULTILINE) or None


for _name in ("logprob", "margin", "pairs", "noise_floor", "against"):
    # One text for both: `help` shows the function's parameters, shapes and units.
    getattr(DatasetAccessor, _name).__doc__ = _without_data(getattr(arrays, _name).__doc__)


@xr.register_datatree_accessor("qdx")  # type: ignore[no-untyped-call]
class TreeAccessor:
    """Distances that a sweep has stored, by metric and phase; see ``tree["metrics"]``.

    Examples
    --------
    >>> tree = qdx.open("outputs/…")  # doctest: +SKIP
    >>> tree.qdx.pairs("l2", "decode").mean(["reference", "position"])  # doctest: +SKIP
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def logprob(
        self, of: Literal["target", "top", "vocab"] = "target", *, phase: str = "replay"
    ) -> xr.DataArray:
        """Return natural log-probabilities of a phase, logit − logsumexp.

        Parameters
        ----------
        of : {"target", "top", "vocab"}
            Of ``token_id``, of the greatest logits (adds ``rank``), or of every token (adds ``vocab``; needs
            full rows).
        phase : {"replay", "prefill", "decode"}

        Returns
        -------
        xarray.DataArray
            float64 (config, repeat, reference, position), nat; NaN where not captured.

        Raises
        ------
        QdxError
            For an unknown `of`, without such a phase, or without full rows.
        """
        return arrays.logprob(self._phase(phase), of)

    def margin(self, *, phase: str = "replay") -> xr.DataArray:
        """Return the greatest logit minus the target's, of a phase.

        Parameters
        ----------
        phase : {"replay", "prefill", "decode"}

        Returns
        -------
        xarray.DataArray
            float64 (config, repeat, reference, position), nat, ≥ 0; NaN where not captured.

        Raises
        ------
        QdxError
            Without such a phase.
        """
        return arrays.margin(self._phase(phase))

    def pairs(self, metric: str = "l2", phase: str = "replay") -> xr.DataArray:
        """Return stored distances between configs.

        Parameters
        ----------
        metric : str
            One that the sweep was run with (``metric=[…]``).
        phase : {"replay", "prefill", "decode"}

        Returns
        -------
        xarray.DataArray
            float64 (config, config_b, reference, position), in the metric's unit; NaN where not measured.

        Raises
        ------
        QdxError
            When the sweep has no such metric or phase.
        """
        return self._stored(metric, phase)[metric]

    def noise_floor(self, metric: str = "l2", phase: str = "replay") -> xr.DataArray:
        """Return stored distances between every two repeats of each config.

        Parameters
        ----------
        metric : str
            One that the sweep was run with (``metric=[…]``).
        phase : {"replay", "prefill", "decode"}

        Returns
        -------
        xarray.DataArray
            float64 (config, repeat_pair, reference, position), in the metric's unit; NaN where not measured,
            and ``repeat_pair`` is empty where nothing was run again.

        Raises
        ------
        QdxError
            When the sweep has no such metric or phase.
        """
        return self._stored(metric, phase)["repeat_distance"]

    def against(self, config: str, metric: str = "l2", phase: str = "replay") -> xr.DataArray:
        """Return stored distances of every config from one of them.

        Parameters
        ----------
        config : str
            Label of the config that takes the place of ``config_b``.
        metric : str
            One that the sweep was run with (``metric=[…]``).
        phase : {"replay", "prefill", "decode"}

        Returns
        -------
        xarray.DataArray
            float64 (config, reference, position), in the metric's unit; NaN where not measured.

        Raises
        ------
        QdxError
            When the sweep has no such config, metric or phase.
        """
        arrays.check_label(self._phase(phase), config)
        return self.pairs(metric, phase).sel(config_b=config, drop=True)

    def table(self, what: str = "replay") -> pd.DataFrame:
        """Return a part of the record as a table, one observation a row.

        Parameters
        ----------
        what : str
            ``prefill``, ``replay`` or ``decode``: a line for every captured row. ``distances``: a line for
            every metric, phase, pair of configs, prompt and position that was measured; ``noise_floor``: the
            same between repeats. ``configs``, ``references``: a line for each.

        Returns
        -------
        pandas.DataFrame
            Coordinates are columns; ``attrs["columns"]`` says the unit and the meaning of each.

        Raises
        ------
        QdxError
            For another `what`, or one that the record does not have.

        Examples
        --------
        >>> lines = tree.qdx.table("distances")  # doctest: +SKIP
        >>> lines.groupby(["metric", "config", "config_b"])["value"].mean()  # doctest: +SKIP
        """
        return tables.table(self._tree, what)

    def to_parquet(self, path: str | Path, what: str = "replay") -> Path:
        """Write what `table` returns as a Parquet file, piece by piece, however large it is.

        Parameters
        ----------
        path : str or Path
            One that is there is replaced when the new one is whole.
        what : str
            As `table` takes it.

        Returns
        -------
        Path
            The file; units and meanings are in the metadata of its columns.

        Raises
        ------
        QdxError
            As `table`; also without pyarrow (``pip install 'qdx[tables]'``), and when the file cannot be
            written.
        """
        return tables.to_parquet(self._tree, path, what)

    @property
    def plot(self) -> Plots:
        """The charts of the report, as Altair charts: ``tree.qdx.plot.matrix("l2")``.

        Returns
        -------
        qdx.plot.Plots
        """
        from qdx.plot import Plots

        return Plots(self._tree)

    def _phase(self, phase: str) -> xr.Dataset:
        here = [name for name in PHASES if name in self._tree.children]
        if phase not in here:
            raise QdxError(f"no phase {phase!r} here, only {', '.join(here) or 'none'}{nearest(phase, here)}")
        return self._tree[phase].to_dataset()

    def _stored(self, metric: str, phase: str) -> xr.Dataset:
        self._phase(phase)
        known = list(self._tree["metrics"].children) if "metrics" in self._tree.children else []
        if metric not in known:
            listed = f"{', '.join(known) or 'none'}{nearest(metric, known)}"
            raise QdxError(
                f"metric {metric!r} was not measured, only {listed}: run the sweep with it in metric=[…], or "
                f"compute it, tree['{phase}'].to_dataset().qdx.pairs({metric!r})"
            )
        if phase not in self._tree[f"metrics/{metric}"].children:
            raise QdxError(f"metric {metric!r} was not measured in {phase}: no row was captured there")
        return self._tree[f"metrics/{metric}/{phase}"].to_dataset()
