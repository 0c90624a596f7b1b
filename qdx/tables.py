"""A record as tidy tables, one observation a row: `tree.qdx.table` (pandas), `tree.qdx.to_parquet` (files).

A table is made piece by piece, a config and a prompt at a time, so that the rows of a large sweep pass into
a Parquet file without ever being in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx import new_file
from qdx.dataset.layout import CONFIG_COORDS, PHASES, PRODUCER_COORDS, WIDE, setting_names
from qdx.dataset.writing import disk_errors
from qdx.errors import QdxError, nearest

if TYPE_CHECKING:
    import pandas as pd

WHAT = (*PHASES, "distances", "noise_floor", "configs", "references")
STATED = ("kind", "schema_version", "qdx_version", "time_utc")  # of the file, kept beside a table
Piece = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        ``object`` for text.
    attrs : Mapping
        ``units``, ``long_name`` and, for distances, ``higher_means``.
    """

    name: str
    dtype: np.dtype[Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def table(tree: xr.DataTree, what: str = "replay") -> pd.DataFrame:
    """Return a part of a record as a table.

    Parameters
    ----------
    tree : xarray.DataTree
        What `qdx.open` returns.
    what : str
        ``prefill``, ``replay`` or ``decode``: a line for every captured row, with what is one number of it.
        ``distances``: a line for every metric, phase, pair of configs, prompt and position that was measured;
        ``noise_floor``: the same between repeats. ``configs``, ``references``: a line for each.

    Returns
    -------
    pandas.DataFrame
        Coordinates are columns. ``attrs`` holds ``columns``, the unit and the meaning of each column, and
        what the file states of itself.

    Raises
    ------
    QdxError
        For another `what`, or one that the record does not have.
    """
    import pandas as pd

    columns, pieces = _of(tree, what)
    parts = list(pieces)
    arrays = {
        one.name: np.concatenate([part[one.name] for part in parts]) if parts else np.zeros(0, one.dtype)
        for one in columns
    }
    frame = pd.DataFrame(arrays)
    frame.attrs = {**_stated(tree), "what": what, "columns": {one.name: dict(one.attrs) for one in columns}}
    return frame


def to_parquet(tree: xr.DataTree, path: str | Path, what: str = "replay") -> Path:
    """Write a part of a record as a Parquet file, a config and a prompt at a time.

    Parameters
    ----------
    tree : xarray.DataTree
    path : path
        The file; one that is there is replaced when the new one is whole.
    what : str
        As `table` takes it.

    Returns
    -------
    Path
        The file. Units and meanings are in the metadata of its columns, under ``units``, ``long_name`` and
        ``higher_means``; the metadata ``qdx`` of the file is a JSON object.

    Raises
    ------
    QdxError
        As `table`; also without pyarrow, and when the file cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise QdxError(
            "Parquet files need pyarrow, which is not installed: pip install 'qdx[tables]'"
        ) from error
    columns, pieces = _of(tree, what)
    metadata = {"qdx": json.dumps({**_stated(tree), "what": what})}
    fields = [
        pa.field(
            one.name,
            pa.string() if one.dtype.kind == "O" else pa.from_numpy_dtype(one.dtype),
            metadata={str(k): str(v) for k, v in one.attrs.items()},
        )
        for one in columns
    ]
    schema = pa.schema(fields, metadata=metadata)
    target = Path(path)
    with (
        disk_errors(target),
        new_file.replacing(target) as part,
        pq.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        for piece in pieces:
            arrays = [
                pa.array(piece[one.name], type=of.type, from_pandas=False)
                for one, of in zip(columns, fields, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return target


def _of(tree: xr.DataTree, what: str) -> tuple[list[Column], Iterator[Piece]]:
    """Columns of a table, and its lines in pieces that have them all."""
    if what not in WHAT:
        raise QdxError(f"table of {what!r}: one of {', '.join(WHAT)}{nearest(what, WHAT)}")
    if what in PHASES:
        return _rows(_group(tree, what))
    if what in ("distances", "noise_floor"):
        return _distances(tree, what)
    return _lines(_group(tree, "provenance" if what == "configs" else what), what)


def _group(tree: xr.DataTree, name: str) -> xr.Dataset:
    if name not in tree.children:
        here = [one for one in (*PHASES, "metrics", "provenance", "references") if one in tree.children]
        raise QdxError(f"the record has no /{name}, only {', '.join(here) or 'none'}")
    return tree[name].to_dataset()


def _stated(tree: xr.DataTree) -> dict[str, Any]:
    """What the file says of itself, as plain values."""
    found = {name: tree.attrs[name] for name in STATED if name in tree.attrs}
    return {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}


def _column(name: str, data: xr.DataArray) -> Column:
    kept = {key: data.attrs[key] for key in ("units", "long_name", "higher_means") if key in data.attrs}
    return Column(name, _plain(data.dtype), kept)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(object) if dtype.kind in "OUST" else dtype


def _values(data: xr.DataArray) -> NDArray[Any]:
    """Values in memory; texts as Python's."""
    values = np.asarray(data.values)
    return values.astype(str).astype(object) if _plain(values.dtype).kind == "O" else values


def _rows(data: xr.Dataset) -> tuple[list[Column], Iterator[Piece]]:
    """Captured rows of a phase, with every variable that has one value for each."""
    dims = [str(dim) for dim in data["captured"].dims]
    scalars = [
        str(name)
        for name, variable in data.data_vars.items()
        if name != "captured" and name not in WIDE and set(variable.dims) == set(dims)
    ]
    of_config = [
        str(name)
        for name in (*CONFIG_COORDS, *setting_names(data.coords))
        if name in data.coords and data[name].dims in ((), ("config",))
    ]
    of_producer = [name for name in PRODUCER_COORDS if name in data.coords and "producer" in dims]
    columns = [_column(dim, data[dim]) for dim in dims]
    if "region" in data.coords:
        columns.append(_column("region", data["region"]))
    columns += [_column(name, data[name]) for name in scalars]
    with_logprob = {"target_logit", "logsumexp"} <= set(scalars)
    if with_logprob:
        about = {"units": "nat", "long_name": "log-probability of token_id"}
        columns.append(Column("logprob", np.dtype(np.float64), about))
    columns += [_column(name, data[name]) for name in (*of_config, *of_producer)]

    def piece(part: xr.Dataset) -> Piece:
        captured = np.asarray(part["captured"].transpose(*dims).values, bool)
        at = np.nonzero(captured)
        found: Piece = {dim: _values(part[dim])[at[i]] for i, dim in enumerate(dims)}
        if "region" in part.coords:
            region = _values(part["region"].transpose("reference", "position"))
            found["region"] = region[at[dims.index("reference")], at[dims.index("position")]]
        for name in scalars:
            found[name] = np.asarray(part[name].transpose(*dims).values)[at]
        if with_logprob:
            found["logprob"] = found["target_logit"].astype(np.float64) - found["logsumexp"]
        for names, dim in ((of_config, "config"), (of_producer, "producer")):
            for name in names:
                values = np.broadcast_to(_values(part[name]), (part.sizes[dim],))
                found[name] = values[at[dims.index(dim)]]
        return found

    return columns, map(piece, _parts(data, ("config", "reference")))


def _distances(tree: xr.DataTree, what: str) -> tuple[list[Column], Iterator[Piece]]:
    measured = tree["metrics"] if "metrics" in tree.children else None
    groups = [
        (str(metric), str(phase), node.to_dataset())
        for metric, of in (measured.children.items() if measured is not None else ())
        for phase, node in of.children.items()
    ]
    between = "config_b" if what == "distances" else "repeat_pair"
    wanted = [
        (metric, phase, data[metric if what == "distances" else "repeat_distance"])
        for metric, phase, data in groups
        if (metric if what == "distances" else "repeat_distance") in data
    ]
    if not wanted:
        raise QdxError(f"the record has no {what}: run the sweep with metric=[…] and, for a floor, repeats=2")
    text, one = np.dtype(object), {"units": "1"}
    first = wanted[0][2]
    columns = [
        Column("metric", text, {**one, "long_name": "name of the metric"}),
        Column("phase", text, {**one, "long_name": "prefill, replay or decode"}),
        *(
            Column(dim, _plain(first[dim].dtype), dict(first[dim].attrs) or one)
            for dim in ("config", between, "reference", "position")
        ),
        Column("value", np.dtype(np.float64), {"long_name": "the distance, in the unit that units says"}),
        Column("units", text, {**one, "long_name": "unit of the value"}),
        Column("higher_means", text, {**one, "long_name": "what a higher value means"}),
    ]

    def pieces() -> Iterator[Piece]:
        dims = ["config", between, "reference", "position"]
        for metric, phase, data in wanted:
            for part in _parts(data.to_dataset(name="value"), ("config", "reference")):
                values = np.asarray(part["value"].transpose(*dims).values, np.float64)
                at = np.nonzero(np.isfinite(values))
                count = len(at[0])
                texts = {
                    "metric": metric,
                    "phase": phase,
                    "units": str(data.attrs.get("units", "1")),
                    "higher_means": str(data.attrs.get("higher_means", "less alike")),
                }
                yield {
                    **{name: np.full(count, value, object) for name, value in texts.items()},
                    **{dim: _values(part[dim])[at[i]] for i, dim in enumerate(dims)},
                    "value": values[at],
                }

    return columns, pieces()


def _lines(data: xr.Dataset, what: str) -> tuple[list[Column], Iterator[Piece]]:
    """One line for every config or reference."""
    dim = "config" if what == "configs" else "reference"
    names = [str(name) for name, one in data.variables.items() if one.dims == (dim,) and name != dim]
    columns = [_column(name, data[name]) for name in (dim, *names)]
    return columns, iter([{name: _values(data[name]) for name in (dim, *names)}])


def _parts(data: xr.Dataset, dims: tuple[str, str]) -> Iterator[xr.Dataset]:
    """A Dataset in pieces of one index along each of two dimensions."""
    for a in range(data.sizes[dims[0]]):
        for b in range(data.sizes[dims[1]]):
            yield data.isel({dims[0]: slice(a, a + 1), dims[1]: slice(b, b + 1)})
