"""Choose how values are compressed, by writing and reading a test file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError

# zlib is in every netCDF-4 and HDF5 reader. Level 1: higher ones are 2-6 times slower for 1-2 % on logits.
PORTABLE: dict[str, Any] = {"zlib": True, "complevel": 1, "shuffle": True}
# blosc_shuffle 2 shuffles bits: a float16 in a float32 leaves 13 mantissa bits zero, which then are runs.
FAST: dict[str, Any] = {"compression": "blosc_lz4", "complevel": 5, "blosc_shuffle": 2, "shuffle": False}


_SMALLEST = (
    16 * 1024
)  # bytes of a chunk; blosc refuses to compress some that are shorter, and refusing fails the write


def choose(folder: Path, *, portable: bool, dtype: str, values: int) -> dict[str, Any]:
    """Return the keyword arguments of `netCDF4.Dataset.createVariable` that full rows are written with.

    blosc_lz4 with shuffled bits is an order of magnitude faster than zlib, but netCDF's filter fails the
    whole write on a chunk that does not become smaller. That cannot happen to 16-bit floats in float32, of
    whose bits 13 or more are zero, and can to float32.

    Parameters
    ----------
    folder : Path
        Where the file will be: the test file is written there, so that a folder that cannot be written is
        found at once.
    portable : bool
        Take zlib, which every reader has.
    dtype : str
        Data type of the logits; blosc is taken for float16 and bfloat16 only, and only where a test file
        comes back bit-equal.
    values : int
        Values of a chunk.

    Raises
    ------
    QdxError
        When the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".qdx-", dir=folder) as scratch:
            path = Path(scratch) / "test.nc"
            path.touch()
            fast = not portable and dtype in ("float16", "bfloat16") and values * 4 >= _SMALLEST
            return dict(FAST) if fast and _works(path, dtype) else dict(PORTABLE)
    except OSError as error:
        raise QdxError(
            f"cannot write to {folder}: {error.strerror or error}: choose another hydra.sweep.dir"
        ) from error


def _works(path: Path, dtype: str) -> bool:
    """Try whether values written with `FAST` come back bit-equal: any bits, logit-like values, a constant."""
    import netCDF4

    generator = np.random.default_rng(0)
    count = _SMALLEST // 4
    rows_PV = np.stack(
        [
            _widen(generator.integers(0, 2**16, count, dtype=np.uint16), dtype),
            generator.normal(0, 3, count).astype(np.float16).astype(np.float32),
            np.full(count, 1.5, np.float32),
        ]
    )
    try:
        with netCDF4.Dataset(path, "w") as file:
            if not file.has_blosc_filter():
                return False
            file.createDimension("row", len(rows_PV))
            file.createDimension("vocab", count)
            file.createVariable("x", "f4", ("row", "vocab"), chunksizes=(1, count), **FAST)[:] = rows_PV
        with netCDF4.Dataset(path) as file:
            file.set_auto_mask(False)
            return file["x"][:].tobytes() == rows_PV.tobytes()  # type: ignore[no-any-return]
    except RuntimeError:  # "NetCDF: Filter error" and the like: the filter is announced and does not work
        return False


def _widen(bits: NDArray[np.uint16], dtype: str) -> NDArray[np.float32]:
    """Return 16-bit patterns of a float type as float32, without NaN and infinity."""
    with np.errstate(invalid="ignore"):
        wide = (
            bits.view(np.float16).astype(np.float32)
            if dtype == "float16"
            else (bits.astype(np.uint32) << 16).view(np.float32)
        )
    return np.where(np.isfinite(wide), wide, np.float32(0))
