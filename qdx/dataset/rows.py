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
from qdx.dataset.checking import reading
from qdx.dataset.writing import runs_of
from qdx.errors import QdxError

_OPEN_FILES = 32  # a sweep may have hundreds of runs, a process about a thousand file descriptors
_Key = tuple[Path, int, int]
_handles: OrderedDict[_Key, Any] = OrderedDict()


def _key(path: Path) -> _Key:
    """Identify the file, not its name: a job that is run again replaces it."""
    try:
        status = path.stat()
    except OSError as error:
        raise QdxError(f"{path}: {error.strerror}") from error
    return path, status.st_ino, status.st_mtime_ns


def _handle(key: _Key) -> Any:
    """Return the open file, closing the one that was used longest ago when there are too many."""
    import netCDF4

    path = key[0]
    if key in _handles:
        _handles.move_to_end(key)
        return _handles[key]
    try:
        opened = netCDF4.Dataset(path)
    except OSError as error:
        raise QdxError(f"{path} is not a whole NetCDF-4 file: {error}") from error
    opened.set_auto_maskandscale(False)
    for phase in layout.PHASES:
        if phase in opened.groups and "logit" in opened[phase].variables:
            # A row is read once: netCDF's cache of 64 MiB a variable would be filled for nothing.
            opened[phase]["logit"].set_var_chunk_cache(2**20)
    _handles[key] = opened
    while len(_handles) > _OPEN_FILES:
        _handles.popitem(last=False)[1].close()
    return opened


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
    """

    def __init__(self, path: Path) -> None:
        path = Path(path)
        self.path = (path / "run.nc" if path.is_dir() else path).resolve()
        self._key = _key(self.path)
        with reading(self.path), _lock:
            file = _handle(self._key)
            self.label = str(file.getncattr("label"))
            self.dtype = str(file["prefill"]["dtype"][:][0])
            self.references = [str(name) for name in file["references"]["reference"][:]]
            self.vocab = int(file.getncattr("vocab"))
        self._phases: dict[str, Phase] = {}

    @cached_property
    def repeats(self) -> int:
        """Number of repeats."""
        return int(self.phase("prefill").captured.shape[0])

    def phase(self, name: str) -> Phase:
        """Return the small arrays of a phase; read once."""
        if name not in layout.PHASES:
            raise QdxError(f"{name!r} is no phase: {', '.join(layout.PHASES)}")
        if name not in self._phases:
            with reading(self.path), _lock:
                group = _handle(self._key)[name]
                values = {key: group[key][0] for key in Phase.__dataclass_fields__ if key in group.variables}
                self._phases[name] = Phase(
                    positions=group["position"][:],
                    captured=values.pop("captured").astype(bool),
                    has_rows="logit" in group.variables,
                    has_hidden="hidden" in group.variables,
                    **values,
                )
        return self._phases[name]

    def width(self, phase: str, *, hidden: bool = False) -> int:
        """Return the values of a full row, or of a hidden state, of a phase that has them."""
        with reading(self.path), _lock:
            return int(_handle(self._key)[phase]["hidden" if hidden else "logit"].shape[-1])

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
        own = self.phase(phase)
        if hidden and not own.has_hidden:
            raise QdxError(f"{self.path} has no hidden states in {phase}: run it with capture=hidden")
        if not hidden and not own.has_rows:
            raise QdxError(f"{self.path} has no full rows in {phase}: it was run with capture=topk")
        wanted = np.arange(len(own.positions))[indices]
        order = np.argsort(wanted, kind="stable")
        unique_U, inverse = np.unique(wanted[order], return_inverse=True)
        with reading(self.path), _lock:
            variable = _handle(self._key)[phase]["hidden" if hidden else "logit"]
            rows_UV: NDArray[np.float32]
            stretches = list(runs_of(unique_U))
            if len(stretches) == 1:
                rows_UV = variable[0, repeat, reference, stretches[0][0], :]
            else:
                rows_UV = np.empty((len(unique_U), variable.shape[-1]), np.float32)
                for axis, values in stretches:
                    rows_UV[values] = variable[0, repeat, reference, axis, :]
        if len(unique_U) == len(wanted) and np.array_equal(order, np.arange(len(wanted))):
            return rows_UV
        rows_PV = np.empty((len(wanted), rows_UV.shape[1]), np.float32)
        rows_PV[order] = rows_UV[inverse]
        return rows_PV

    def close(self) -> None:
        """Close the file if it is open; reading opens it again."""
        with _lock:
            if self._key in _handles:
                _handles.pop(self._key).close()


def read_rows(
    path: Path | RunReader,
    phase: str,
    repeat: int,
    reference: int,
    indices: slice | NDArray[np.int64] = slice(None),
) -> NDArray[np.float32]:
    """Read full rows of logits of a run; see `RunReader.rows`."""
    reader = path if isinstance(path, RunReader) else RunReader(path)
    return reader.rows(phase, repeat, reference, indices)
