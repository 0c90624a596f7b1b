"""Full rows of an unfinished run: a plain file of fixed slots beside ``run.nc.part``.

HDF5 has no journal of its own: while it writes the index of a compressed variable, a process that dies leaves
a file that cannot be opened. Full rows therefore wait in the model's own dtype in a file without structure,
where every row has its place from the start, and are compressed when the run is whole. A row that is
overwritten in the middle is not marked as captured yet. Places that no row takes are holes without blocks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

STORED: Mapping[str, np.dtype[Any]] = {
    "float16": np.dtype("<u2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<u4"),
}
ATTRIBUTES = ("rows_dtype", "rows_name", "rows_width")  # root attributes of a file that has a journal


def widen(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return stored bit patterns as float32, which holds every value of the three types."""
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float32)


class Journal:
    """Writes and reads rows by their place.

    Parameters
    ----------
    path : Path
        Replaced when it is there.
    shapes : Mapping
        Phase → length of every axis that names a row: repeat, producer where it has one, reference, position.
    width : int
        Values of a row.
    dtype : str
        Of the rows: float16, bfloat16 or float32.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], width: int, dtype: str) -> None:
        self._dtype, self._width, self._row = dtype, width, width * STORED[dtype].itemsize
        self._shapes = {phase: tuple(shape) for phase, shape in shapes.items()}
        self._starts = starts(self._shapes)
        path.unlink(missing_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        os.ftruncate(self._file, self._row * sum(math.prod(shape) for shape in self._shapes.values()))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, phase: str, at: tuple[int, ...], rows_PV: Tensor) -> None:
        """Write rows of neighbouring positions; `at` is the place of the first one."""
        import torch  # whoever only reads does without

        integer = torch.int32 if rows_PV.dtype == torch.float32 else torch.int16
        view = memoryview(rows_PV.contiguous().view(integer).numpy()).cast("B")
        offset = self._offset(phase, at)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def read(self, phase: str, at: tuple[int, ...], count: int) -> NDArray[np.float32]:
        """Return rows of neighbouring positions, (position, width)."""
        bits = os.pread(self._file, count * self._row, self._offset(phase, at))
        return widen(np.frombuffer(bits, STORED[self._dtype]).reshape(count, self._width), self._dtype)

    def _offset(self, phase: str, at: tuple[int, ...]) -> int:
        place = int(np.ravel_multi_index(at, self._shapes[phase])) if at else 0
        return (self._starts[phase] + place) * self._row


def starts(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the number of the first row of each phase."""
    found, total = {}, 0
    for phase, shape in shapes.items():
        found[phase] = total
        total += math.prod(shape)
    return found


def open_rows(
    path: Path, phases: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]
) -> dict[str, xr.Dataset]:
    """Add the rows of a journal to the phases of an unfinished run, as dask arrays of one row a chunk.

    Parameters
    ----------
    path : Path
        The journal.
    phases : Mapping
        Phase → its small variables.
    attrs : Mapping
        Root attributes: `ATTRIBUTES`.
    """
    import dask.array

    from qdx.dataset import layout

    name, width, dtype = str(attrs["rows_name"]), int(attrs["rows_width"]), str(attrs["rows_dtype"])
    shapes = {phase: part["captured"].shape[1:] for phase, part in phases.items()}
    first, found = starts(shapes), {}
    for phase, part in phases.items():
        captured = part["captured"].values
        dims = part["captured"].dims
        if not captured.size:
            found[phase] = part
            continue
        offset, shape = first[phase] * width * STORED[dtype].itemsize, (*captured.shape, width)
        bits: Any = np.memmap(path, STORED[dtype], "r", offset, shape)
        chunks = (*(1 for _ in dims), width)
        rows = dask.array.from_array(bits, chunks=chunks, name=False)
        rows = rows.map_blocks(partial(widen, dtype=dtype), dtype=np.float32)
        marks = dask.array.from_array(captured[..., None], chunks=(*chunks[:-1], 1))
        rows = dask.array.where(marks, rows, np.float32(np.nan))
        found[phase] = part.assign(
            {name: ((*dims, layout.WIDE[name].dims[-1]), rows, layout.WIDE[name].attrs)}
        )
    return found
