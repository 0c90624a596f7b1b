"""Creates the groups of a file from the table in `qdx.dataset.layout`."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.dataset import layout
from qdx.dataset.encoding import PORTABLE
from qdx.errors import UnwritableError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failed write (disk full, read-only) into an error that names the file and the free space."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # netCDF4 raises RuntimeError("NetCDF: HDF error") for ENOSPC
        try:
            free = f"{shutil.disk_usage(path.parent).free / 1e9:.2f} GB free there"
        except OSError:
            free = "its folder cannot be read"
        remedy = "free some, choose another hydra.sweep.dir or lower capture.prefill_positions"
        refused = getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM)
        if refused and not os.access(path.parent, os.W_OK):  # netCDF4 says EACCES of a full disk as well
            free, remedy = "its folder takes no files", "copy the folder to a place that can be written"
        raise UnwritableError(f"cannot write {path}: {error}; {free}: {remedy}") from error


def attribute(value: Any) -> str | int | float:
    """Return `value` as something that a NetCDF attribute can hold: no bool, no None, no mapping or list."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, np.generic):
        return attribute(value.item())
    return json.dumps(value, sort_keys=True, default=str)


def set_attributes(target: Any, attrs: Mapping[str, Any]) -> None:
    """Set attributes of a netCDF4 file, group or variable; text stays one string, however long."""
    for name, value in attrs.items():
        target.setncattr(name, attribute(value))


def create(
    group: Any,
    variable: layout.Variable,
    sizes: Mapping[str, int],
    *,
    filters: Mapping[str, Any] | None = PORTABLE,
    coordinates: str = "",
    width: int | None = None,
) -> Any:
    """Create one variable of the table, with the dimensions that it lacks, and return the netCDF4 variable.

    Parameters
    ----------
    group : netCDF4.Group
    variable : Variable
    sizes : Mapping
        Length of every dimension.
    filters : Mapping
        See `qdx.dataset.encoding.choose`; None stores the values contiguously and uncompressed. Text has its
        own.
    coordinates : str
        Names of the coordinates that are not dimensions (CF conventions 5).
    width : int, optional
        Bytes of the longest text.
    """
    for dim in variable.dims:
        if dim not in group.dimensions:
            group.createDimension(dim, sizes[dim])
    if variable.dtype == "str":
        created = _create_text(group, variable, sizes, width or 1)
    else:
        code = "i1" if variable.dtype == "bool" else variable.dtype
        floating = code.startswith("f")
        # A dimension of length 0 cannot be chunked; filters need chunks.
        empty = any(sizes[dim] == 0 for dim in variable.dims)
        storage: dict[str, Any] = {}
        if variable.dims and not empty:
            chunks = {"chunksizes": layout.chunk_sizes(variable, sizes)}
            storage = {"contiguous": True} if filters is None else {**chunks, **filters}
        created = group.createVariable(
            variable.name,
            code,
            variable.dims,
            fill_value=np.dtype(code).type(np.nan) if floating else None,
            **storage,
        )
        created.set_auto_maskandscale(False)
    set_attributes(created, variable.attrs)
    if variable.dtype == "bool":
        created.setncattr("dtype", "bool")
    if coordinates:
        created.setncattr("coordinates", coordinates)
    return created


def _create_text(group: Any, variable: layout.Variable, sizes: Mapping[str, int], width: int) -> Any:
    """Create a variable of characters (UTF-8), which xarray and netCDF4 read as text.

    Not of NC_STRING: a file with such variables that is opened a second time while it is open crashes the
    process (netcdf4-python issue 1444, HDF5 issue 5359; seen with netCDF4 1.7.3 to 1.7.5.1), and xarray
    keeps files open as long as a lazy variable lives.
    """
    dim = f"string{width}"
    if dim not in group.dimensions:
        group.createDimension(dim, width)
    counts = [sizes[name] for name in variable.dims]
    storage: dict[str, Any] = {}
    if all(counts):
        storage = {"chunksizes": [*counts, width], **PORTABLE}
    created = group.createVariable(variable.name, "S1", (*variable.dims, dim), **storage)
    created.setncattr("_Encoding", "utf-8")
    created.set_auto_chartostring(False)
    return created


def characters(texts: Any) -> NDArray[np.bytes_]:
    """Return texts as single bytes with one more axis, which is as wide as the longest text (1 at least)."""
    encoded = np.frompyfunc(lambda text: str(text).encode(), 1, 1)(np.asarray(texts, object))
    encoded = np.asarray(encoded, object)
    width = max([1, *(len(text) for text in encoded.flat)])
    return encoded.astype(f"S{width}").reshape(*encoded.shape, 1).view("S1")


def put(group: Any, variable: layout.Variable, sizes: Mapping[str, int], values: Any) -> None:
    """Create a variable of the table and write all of it."""
    if variable.dtype == "str":
        letters = characters(values)
        created = create(group, variable, sizes, width=letters.shape[-1])
        if letters.size:
            created[...] = letters
        return
    created = create(group, variable, sizes)
    if all(sizes[dim] for dim in variable.dims):
        created[...] = np.asarray(values, dtype="i1" if variable.dtype == "bool" else variable.dtype)


def put_index(group: Any, sizes: Mapping[str, int], **labels: Any) -> None:
    """Write index coordinates by name: config, repeat, reference, position."""
    for name, values in labels.items():
        put(group, layout.INDEX[name], sizes, values)


def put_references(file: Any, references: Sequence[layout.ReferenceLike]) -> None:
    """Write the group ``/references``."""
    group = file.createGroup("references")
    arrays = layout.reference_arrays(references)
    sizes = {
        "reference": len(references),
        "token": arrays["token_ids"].shape[1],
        "continuation_token": arrays["continuation"].shape[1],
    }
    put_index(group, sizes, reference=[r.name for r in references])
    for name, variable in layout.REFERENCES.items():
        put(group, variable, sizes, arrays[name])


def put_provenance(
    file: Any, label: str, attrs: Mapping[str, Any], layers: Mapping[str, tuple[str, str]]
) -> None:
    """Write ``/provenance``: each attribute as a text over config, and the kernel of each layer type."""
    group = file.createGroup("provenance")
    sizes = {"config": 1, "layer_type": len(layers)}
    put_index(group, sizes, config=[label])
    for name, value in attrs.items():
        meaning = f"root attribute {name} of the run's file"
        own = "config_yaml" if name == "config" else name  # `config` is the coordinate
        put(group, layout.Variable(own, ("config",), "str", "1", meaning), sizes, [str(attribute(value))])
    put(group, layout.LAYER_TYPE, sizes, list(layers))
    for index, name in enumerate(layout.LAYERS):
        put(group, layout.LAYERS[name], sizes, [[names[index] for names in layers.values()]])


def runs_of(indices: NDArray[np.int64]) -> Iterable[tuple[slice, slice]]:
    """Split sorted indices where they have gaps: pairs of (slice of the axis, slice of the values)."""
    if not len(indices):
        return
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    for start, stop in zip(np.r_[0, breaks], np.r_[breaks, len(indices)], strict=True):
        yield slice(int(indices[start]), int(indices[stop - 1]) + 1), slice(int(start), int(stop))
