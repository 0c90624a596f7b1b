"""Reads a file's values, and holds them against its checksums: netCDF4 variables and groups for xarray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import NetCDF4DataStore
from xarray.backends.netCDF4_ import NetCDF4ArrayWrapper
from xarray.core import indexing

from qdx.dataset.checksums import (
    Checksums,
    DamageError,
    damage,
    join,
    load,
    outer_axes,
    pieces,
    sums_of,
    walk,
)
from qdx.dataset.layout import WIDE

UNREADABLE = "cannot be read"
CHANGED = "holds other values than were written"


@dataclass(frozen=True)
class Stored:
    """A variable of a file, and how its values are fetched.

    Attributes
    ----------
    path : Path
        The file.
    name : str
        Path of the variable in it, such as ``/replay/logit``.
    dims : tuple of str
    shape : tuple of int
    fetch : callable
        Takes a key for every axis and returns raw values, as netCDF4 does without masking, scaling and
        joining of characters. It takes the lock that it needs.
    checksums : Checksums or None
        Of the file; without them only what cannot be read at all is found.
    """

    path: Path
    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    fetch: Callable[[Any], Any]
    checksums: Checksums | None

    @classmethod
    def of(cls, path: Path, group: str, variable: Any, checksums: Checksums | None) -> Stored:
        """Take a variable of an open netCDF4 file that nobody else reads."""
        variable.set_auto_maskandscale(False)
        variable.set_auto_chartostring(False)
        name = join(group, variable.name)
        return cls(path, name, variable.dimensions, variable.shape, variable.__getitem__, checksums)

    @property
    def outer(self) -> int:
        """Over how many of the first axes blocks are counted."""
        sums = None if self.checksums is None else self.checksums.sums.get(self.name)
        return outer_axes(self.name.rpartition("/")[2], self.dims) if sums is None else sums.ndim

    def read(self, key: Sequence[Any] = ()) -> NDArray[Any]:
        """Read values.

        Parameters
        ----------
        key : sequence
            An integer, slice or sorted array of integers for each axis; axes that it lacks are taken whole.

        Raises
        ------
        DamageError
            When a block that has any of these values is not what was written; it names the first.
        """
        values, bad, axes = self.read_marked(key)
        if bad.any():
            raise self.damage(bad, axes, UNREADABLE if values is None else CHANGED)
        assert values is not None
        return values

    def read_marked(
        self, key: Sequence[Any]
    ) -> tuple[NDArray[Any] | None, NDArray[np.bool_], list[NDArray[np.int64]]]:
        """`read`, but mark damaged blocks where it raises.

        Returns
        -------
        values : array or None
            None when HDF5 refuses to read them.
        damaged : array of bool
            Over the axes of the blocks that were touched.
        axes : list of array
            Indices along each of these axes.
        """
        outer = self.outer
        filled = (*key, *(slice(None) for _ in range(len(self.shape) - len(key))))
        before, after = filled[:outer], filled[outer:]
        axes = [np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape[:outer], before, strict=True)]
        sums = None if self.checksums is None else self.checksums.sums.get(self.name)
        whole = sums is None or all(isinstance(k, slice) and k == slice(None) for k in after)
        wanted = filled if whole else (*before, *(slice(None) for _ in after))
        try:
            values = np.asarray(self.fetch(wanted or ...))
        except (RuntimeError, OSError, MemoryError):
            return None, self._unreadable(axes), axes
        lengths = tuple(len(axis) for axis in axes)
        if sums is None:
            return values, np.zeros(lengths, bool), axes
        own = sums[np.ix_(*axes)] if axes else sums
        bad = (sums_of(values, own.size) != own.reshape(-1)).reshape(lengths)
        if not whole:
            # From the last axis, so that one that is dropped moves no other.
            first = sum(not isinstance(k, int | np.integer) for k in before)
            for axis in reversed(range(len(after))):
                values = values[(*(slice(None) for _ in range(first + axis)), after[axis])]
        return values, bad, axes

    def _unreadable(self, axes: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Find which blocks HDF5 refuses to read."""
        bad = np.zeros([len(axis) for axis in axes], bool)
        for at in np.ndindex(bad.shape):
            try:
                self.fetch((*(int(axis[i]) for axis, i in zip(axes, at, strict=True)), ...))
            except (RuntimeError, OSError, MemoryError):
                bad[at] = True
        return bad if bad.any() else ~bad

    def damage(
        self, bad: NDArray[np.bool_], axes: Sequence[NDArray[np.int64]], what: str = CHANGED
    ) -> DamageError:
        """Return the error that names the first of some blocks; see `read_marked`."""
        first, *others = np.argwhere(bad)
        told = ", ".join(f"{dim} {axis[i]}" for dim, axis, i in zip(self.dims, axes, first, strict=False))
        where = f"{self.name}[{told}]" if told else self.name
        more = f" and {len(others)} further blocks" if others else ""
        return damage(self.path, where + more, what)


def find(path: Path, *, rows: bool = True) -> DamageError | None:
    """Read a file whole and return what is damaged first; None when everything is as it was written.

    Parameters
    ----------
    path : Path
        Of a file without checksums only what cannot be read is found.
    rows : bool
        Read the full rows too, which are most of a run's bytes.
    """
    import netCDF4

    try:
        checksums = load(path)
        with netCDF4.Dataset(path) as file:
            if checksums is not None:
                checksums.check_structure(path, file)
            for group, of in walk(file):
                for own, variable in of.variables.items():
                    if own in WIDE and not rows:
                        continue
                    stored = Stored.of(path, group, variable, checksums)
                    for key in pieces(stored.shape, stored.outer, getattr(variable.dtype, "itemsize", 16)):
                        stored.read(key)
    except DamageError as error:
        return error
    except Exception as error:  # what damage leads to: KeyError, UnicodeDecodeError, MemoryError …
        kind = "" if isinstance(error, OSError | RuntimeError) else f"{type(error).__name__}: "
        said = (str(error).strip().splitlines() or [""])[0]
        return DamageError(path, f"{path} is not a whole NetCDF-4 file that qdx wrote: {kind}{said}")
    return None


def require(path: Path, *, rows: bool = True) -> None:
    """Raise what `find` returns."""
    if (error := find(path, rows=rows)) is not None:
        raise error


class _Array(NetCDF4ArrayWrapper):
    """A variable of a file, whose values are checked when they are read."""

    __slots__ = ()

    def _getitem(self, key: Any) -> Any:
        store: CheckedStore = self.datastore
        variable = self.get_array()  # type: ignore[no-untyped-call]
        name = join(f"/{(store._group or '').strip('/')}", self.variable_name)
        dims, shape = variable.dimensions, variable.shape
        return Stored(Path(store._filename), name, dims, shape, super()._getitem, store.checksums).read(key)


class CheckedStore(NetCDF4DataStore):
    """xarray's store of a netCDF4 group, which gives only values that are as they were written."""

    checksums: Checksums | None = None

    def open_store_variable(self, name: Any, var: Any) -> xr.Variable:
        """Return a variable of the group, unread."""
        plain = super().open_store_variable(name, var)
        array = indexing.LazilyIndexedArray(_Array(name, self))  # type: ignore[no-untyped-call]
        return xr.Variable(plain.dims, array, plain.attrs, plain.encoding)


def open_groups(
    path: Path, *, groups: Sequence[str] | None = None, drop_variables: Iterable[str] = ()
) -> dict[str, xr.Dataset]:
    """Open a file's groups without reading arrays, as `xarray.open_groups` does.

    Parameters
    ----------
    path : Path
    groups : sequence of str, optional
        Which: ``/prefill``; default all.
    drop_variables : iterable of str

    Returns
    -------
    dict
        Groups by path. All share one open file.

    Raises
    ------
    DamageError
        When groups, dimensions, attributes or an index are not what was written. Arrays raise it when they
        are read.
    OSError, RuntimeError
        When it is not a NetCDF-4 file, or not a whole one.
    """
    checksums = load(path)
    root = CheckedStore.open(str(path))  # type: ignore[no-untyped-call]
    try:
        if checksums is not None:
            checksums.check_structure(path, root.ds)
        found = {}
        for name in [name for name, _ in walk(root.ds)] if groups is None else groups:
            store = root.get_child_store(name)
            store.checksums = checksums
            found[name] = xr.open_dataset(store, engine="store", drop_variables=list(drop_variables))
    except BaseException:
        root.close()
        raise
    return found
