"""Fast access to the rows of one run, for the distances between runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK as _lock  # netCDF-C is not thread-safe

from qdx.dataset import layout
from qdx.dataset.check import reading
from qdx.dataset.checked import CHANGED, Stored
from qdx.dataset.checksums import Checksums, DamageError, damage, load
from qdx.dataset.writing import runs_of
from qdx.errors import QdxError

_OPEN_FILES = 32  # a sweep may have hundreds of runs, a process about a thousand file descriptors
_Key = tuple[Path, int, int]
_handles: OrderedDict[_Key, tuple[Any, Checksums | None]] = OrderedDict()


def _key(path: Path) -> _Key:
    """Identify the file, not its name: a job that is run again replaces it."""
    try:
        status = path.stat()
    except OSError as error:
        raise QdxError(f"{path}: {error.strerror}") from error
    return path, status.st_ino, status.st_mtime_ns


def _handle(key: _Key) -> tuple[Any, Checksums | None]:
    """Return the open file and its checksums; of too many, close the one that was used longest ago."""
    import netCDF4

    path = key[0]
    if key in _handles:
        _handles.move_to_end(key)
        return _handles[key]
    checksums = load(path)
    try:
        opened = netCDF4.Dataset(path)
    except OSError as error:
        raise DamageError(path, f"{path} is not a whole NetCDF-4 file: {error}") from error
    opened.set_auto_maskandscale(False)
    opened.set_auto_chartostring(False)
    for phase in layout.PHASES:
        if phase in opened.groups and "logit" in opened[phase].variables:
            # A row is read once: netCDF's cache of 64 MiB a variable would be filled for nothing.
            opened[phase]["logit"].set_var_chunk_cache(2**20)
    if checksums is not None:
        checksums.check_structure(path, opened)
    _handles[key] = opened, checksums
    while len(_handles) > _OPEN_FILES:
        _handles.popitem(last=False)[1][0].close()
    return _handles[key]


@dataclass(frozen=True)
class Phase:
    """The small arrays of one phase of a run; axes are (repeat R, reference F, position P, rank K)."""

    positions: NDArray[np.int32]
    captured: NDArray[np.bool_]
    token_id: NDArray[np.int32]
    target_logit: NDArray[np.float32]
    logsumexp: NDArray[np.float64]
    row_hash: NDArray[np.uint64]
    top_id: NDArray[np.int32]
    top_logit: NDArray[np.float32]
    has_rows: bool
    has_hidden: bool


class RunReader:
    """Reads one ``run.nc``.

    Any number of readers may be kept: at most 32 files are open at a time.

    Parameters
    ----------
    path : Path
        A ``run.nc`` or the folder that it is in.

    Attributes
    ----------
    label : str
    dtype : str
        Data type of the model's logits, such as ``float16``.
    references : list of str
    vocab : int
    checked : bool
        Whether the file has checksums; without them a changed value is not noticed.

    Raises
    ------
    DamageError
        Here and in every method that reads: when the values are not those that were written.
    """

    def __init__(self, path: Path) -> None:
        path = Path(path)
        self.path = (path / "run.nc" if path.is_dir() else path).resolve()
        self._key = _key(self.path)
        with reading(self.path):
            with _lock:
                file, checksums = _handle(self._key)
                self.label, self.vocab = str(file.getncattr("label")), int(file.getncattr("vocab"))
            self.checked = checksums is not None
            self.dtype = self._texts("prefill", "dtype")[0]
            self.references = self._texts("references", "reference")
        self._phases: dict[str, Phase] = {}

    def _texts(self, group: str, name: str) -> list[str]:
        from netCDF4 import chartostring

        letters = self._stored(group, name).read()
        return [str(text) for text in chartostring(letters, encoding="utf-8")]

    def _stored(self, group: str, name: str) -> Stored:
        def fetch(key: Any) -> Any:
            with _lock:
                return _handle(self._key)[0][group][name][key]

        with _lock:
            file, checksums = _handle(self._key)
            variable = file[group][name]
        return Stored(self.path, f"/{group}/{name}", variable.dimensions, variable.shape, fetch, checksums)

    @cached_property
    def repeats(self) -> int:
        """Number of repeats."""
        return int(self.phase("prefill").captured.shape[0])

    def phase(self, name: str) -> Phase:
        """Return the small arrays of a phase; read once."""
        if name not in layout.PHASES:
            raise QdxError(f"{name!r} is not a phase: {', '.join(layout.PHASES)}")
        if name not in self._phases:
            with reading(self.path):
                with _lock:
                    present = set(_handle(self._key)[0][name].variables)
                names = [key for key in Phase.__dataclass_fields__ if key in present]
                values = {key: self._stored(name, key).read((0,)) for key in names}
                self._phases[name] = Phase(
                    positions=self._stored(name, "position").read(),
                    captured=values.pop("captured").astype(bool),
                    has_rows="logit" in present,
                    has_hidden="hidden" in present,
                    **values,
                )
        return self._phases[name]

    def width(self, phase: str, *, hidden: bool = False) -> int:
        """Return the values of a full row, or of a hidden state, of a phase that has them."""
        with reading(self.path), _lock:
            return int(_handle(self._key)[0][phase]["hidden" if hidden else "logit"].shape[-1])

    def rows(
        self,
        phase: str,
        repeat: int,
        reference: int,
        indices: slice | NDArray[np.int64],
        *,
        hidden: bool = False,
    ) -> NDArray[np.float32]:
        """Read full rows of logits, or hidden states.

        Parameters
        ----------
        phase : str
        repeat, reference : int
        indices : slice or ndarray of int
            On the position axis (see ``phase(...).positions``), in any order.
        hidden : bool
            The hidden states, which ``capture=hidden`` keeps in place of the logits.

        Returns
        -------
        ndarray of float32
            (position, vocab) or (position, element), NaN where a row was not captured.

        Raises
        ------
        QdxError
            When the run kept none.
        """
        rows_PV, bad_P = self.marked_rows(phase, repeat, reference, indices, hidden=hidden)
        if bad_P.any():
            wanted = np.arange(len(self.phase(phase).positions))[indices]
            raise self.damage(phase, repeat, reference, wanted[bad_P], hidden=hidden)
        return rows_PV

    def damage(
        self, phase: str, repeat: int, reference: int, indices: NDArray[np.int64], *, hidden: bool = False
    ) -> DamageError:
        """Return the error that names the first of some damaged rows, at indices of the position axis."""
        name = "hidden" if hidden else "logit"
        at = f"config 0, repeat {repeat}, reference {reference}, position {indices.min()}"
        more = f" and {len(indices) - 1} further rows" if len(indices) > 1 else ""
        return damage(self.path, f"/{phase}/{name}[{at}]{more}", CHANGED)

    def marked_rows(
        self,
        phase: str,
        repeat: int,
        reference: int,
        indices: slice | NDArray[np.int64],
        *,
        hidden: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`rows`, and which of them (position,) are damaged: those are NaN, where `rows` raises."""
        own = self.phase(phase)
        if hidden and not own.has_hidden:
            raise QdxError(f"{self.path} has no hidden states in {phase}: run it with capture=hidden")
        if not hidden and not own.has_rows:
            raise QdxError(f"{self.path} has no full rows in {phase}: it was run with capture=topk")
        wanted = np.arange(len(own.positions))[indices]
        order = np.argsort(wanted, kind="stable")
        unique_U, inverse = np.unique(wanted[order], return_inverse=True)
        with reading(self.path):
            stored = self._stored(phase, "hidden" if hidden else "logit")
            stretches = list(runs_of(unique_U))
            if len(stretches) == 1:
                rows_UV, bad_U = _stretch(stored, repeat, reference, stretches[0][0])
            else:
                rows_UV = np.empty((len(unique_U), stored.shape[-1]), np.float32)
                bad_U = np.zeros(len(unique_U), bool)
                for axis, values in stretches:
                    rows_UV[values], bad_U[values] = _stretch(stored, repeat, reference, axis)
        if len(unique_U) == len(wanted) and np.array_equal(order, np.arange(len(wanted))):
            return rows_UV, bad_U
        rows_PV = np.empty((len(wanted), rows_UV.shape[1]), np.float32)
        bad_P = np.zeros(len(wanted), bool)
        rows_PV[order], bad_P[order] = rows_UV[inverse], bad_U[inverse]
        return rows_PV, bad_P

    def close(self) -> None:
        """Close the file if it is open; reading opens it again."""
        with _lock:
            if self._key in _handles:
                _handles.pop(self._key)[0].close()


def _stretch(
    stored: Stored, repeat: int, reference: int, axis: slice
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read neighbouring rows; row by row where HDF5 refuses to read them together."""
    values, bad, _ = stored.read_marked((0, repeat, reference, axis))
    bad_P = bad.reshape(-1)
    if values is None:
        values = np.full((len(bad_P), stored.shape[-1]), np.nan, np.float32)
        for i in np.flatnonzero(~bad_P):
            row, marked, _ = stored.read_marked((0, repeat, reference, axis.start + int(i)))
            bad_P[i] = row is None or marked.any()
            values[i] = np.nan if row is None else row
    if bad_P.any():
        values[bad_P] = np.nan
    return values, bad_P
