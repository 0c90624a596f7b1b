"""Writes the file of a sweep: every config, everything but the full rows, for every reader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from qdx.dataset import checksums, folder
from qdx.dataset.checksums import DamageError
from qdx.dataset.encoding import PORTABLE
from qdx.dataset.join_configs import combine
from qdx.dataset.layout import CHUNK_LIMIT, PHASES, WIDE
from qdx.dataset.opening import open_file
from qdx.dataset.writing import attribute, disk_errors
from qdx.errors import QdxError


def merge(directory: Path, target: Path, *, damaged: dict[str, str] | None = None) -> None:
    """Merge the finished runs of a sweep folder into one file.

    Parameters
    ----------
    directory : Path
        With ``<label>/run.nc`` and, as the sweep's own list of labels, ``sweep.json``.
    target : Path
        Written directly: give a temporary name and rename it.
    damaged : dict, optional
        Where a run that is damaged is noted, label → what is damaged; it counts as failed. Without it that is
        an error. Full rows are not read here.

    Raises
    ------
    QdxError
        When no run is finished and whole, or runs differ in tokenizer, references, vocabulary or sketch
        (named with their labels), or the disk is full. Failed and missing labels are not an error: they are
        listed in the root attributes, never filled with NaN.
    """
    state = folder.scan(Path(directory))
    if not state.runs:
        raise QdxError(
            f"{directory} has no finished run: {len(state.failed)} failed, {len(state.missing)} missing"
        )
    while True:
        try:
            return _merge(state, target)
        except DamageError as error:
            label = next((label for label, run in state.runs.items() if run == error.path), None)
            if damaged is None or label is None or len(state.runs) == 1:
                raise
            damaged[label] = f"{error}: remove the file and resume the sweep to run it again"
            whole = {name: run for name, run in state.runs.items() if name != label}
            state = replace(state, runs=whole, failed={**state.failed, label: damaged[label]})


def _merge(state: folder.Sweep, target: Path) -> None:
    trees: dict[str, xr.DataTree] = {}
    try:
        for label, run in state.runs.items():
            trees[label] = open_file(run)
        tree = combine(state, trees)
        with disk_errors(target):
            xr.Dataset(attrs=_attributes(tree.attrs)).to_netcdf(target, mode="w", engine="netcdf4")
        names = [name for name in ("provenance", "references", *PHASES, "output") if name in tree.children]
        append_all(
            target,
            ((name, tree[name].to_dataset().drop_vars([*WIDE], errors="ignore")) for name in names),
        )
    finally:
        for opened in trees.values():
            opened.close()
    with disk_errors(target):
        checksums.store(target)


def append(path: Path, group: str, dataset: xr.Dataset) -> None:
    """Add a group to a file, compressed with zlib; a file with checksums gets those of the group too.

    Parameters
    ----------
    path : Path
        A file that `merge` wrote.
    group : str
        Such as ``metrics/kl/replay``; its parents are made.
    dataset : xarray.Dataset
        Numbers, bools and text. Attributes that NetCDF cannot hold are written as text.

    Raises
    ------
    QdxError
        When the group is there already, or the disk is full.
    """
    append_all(path, [(group, dataset)])


def append_all(path: Path, groups: Iterable[tuple[str, xr.Dataset]]) -> None:
    """Add groups one after the other as `append` does; the checksums are read and written once.

    Parameters
    ----------
    path : Path
        A file that `merge` wrote. From the first group on it is open, and has no checksums.
    groups : iterable of (str, xarray.Dataset)
        Taken one at a time; from the first one on it must not read the file. Where that raises, the groups
        before stay, in a file without checksums.

    Raises
    ------
    QdxError
        When a group is there already, or the disk is full.
    """
    import netCDF4

    present: set[str] = set()
    before: checksums.Checksums | None = None
    file: Any = None
    try:
        for given, dataset in groups:
            group = given.strip("/")
            if file is None:
                present = _with_variables(path)
                before = checksums.load(path)  # writing cuts them off
            if group in present:
                raise QdxError(f"{path} has a group {group} already: merge again to replace it")
            present.add(group)
            with disk_errors(path):
                file = netCDF4.Dataset(path, "a") if file is None else file
                _put(file, group, _plain(dataset))
    finally:
        if file is not None:
            with disk_errors(path):
                file.close()
    if before is not None:
        with disk_errors(path):
            checksums.store(path, known=before.sums)


def _with_variables(path: Path) -> set[str]:
    """Paths of a file's groups that hold variables."""
    import netCDF4

    with disk_errors(path), netCDF4.Dataset(path) as file:
        return {name.strip("/") for name, group in checksums.walk(file) if group.variables}


def _put(file: Any, group: str, plain: xr.Dataset) -> None:
    """Write a group as `xarray.Dataset.to_netcdf` does, which would open and close the file each time."""
    import dask

    values = _Values()
    store = xr.backends.NetCDF4DataStore(file, group=group, mode="a")  # type: ignore[no-untyped-call]
    plain.dump_to_store(store, encoding=_encoding(plain), writer=values)
    # One thread: netCDF writes one at a time anyway.
    with dask.config.set(scheduler="synchronous"):
        values.write()


class _Values:
    """What xarray hands over to be written: it is, when every variable of the group is defined.

    Whenever a value follows a definition, netCDF walks through all groups and flushes the file: here once a
    group, and not once a variable.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[Any, Any]] = []

    def add(self, source: Any, target: Any, region: None = None) -> None:
        """Take the values of a variable, and its place in the file."""
        self._pairs.append((source, target))

    def write(self) -> None:
        """Write them, one variable after the other."""
        for source, target in self._pairs:
            target[...] = np.asarray(source)


def _plain(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with attributes that NetCDF can hold and without the encoding that it came in."""
    plain = dataset.drop_encoding()
    plain.attrs = _attributes(plain.attrs)
    for name in plain.variables:
        plain[name].attrs = _attributes(plain[name].attrs)
    return plain


def _attributes(attrs: Any) -> dict[str, Any]:
    return {str(name): attribute(value) for name, value in attrs.items()}


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OUST":
            encoding[str(name)] = {"dtype": "S1"}  # characters, see qdx.dataset.writing
            continue
        if not variable.ndim or not variable.size:
            continue
        encoding[str(name)] = {**PORTABLE, "chunksizes": _chunks(variable)}
        if variable.dtype.kind in "iu":
            encoding[str(name)]["_FillValue"] = None
    return encoding


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Cut the outer dimensions to 1, one after another, until a chunk is under the limit."""
    sizes = list(variable.shape)
    for axis in range(len(sizes) - 1):
        if np.prod(sizes, dtype=np.int64) * variable.dtype.itemsize <= CHUNK_LIMIT:
            break
        sizes[axis] = 1
    return tuple(sizes)
