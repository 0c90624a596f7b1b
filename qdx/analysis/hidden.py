"""Hidden states of a run, as ``capture=hidden`` keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK as _lock  # netCDF-C is not thread-safe


def has_hidden(path: Path, phase: str) -> bool:
    """Whether a ``run.nc`` holds hidden states of a phase."""
    import netCDF4

    with _lock, netCDF4.Dataset(path) as file:
        return "hidden" in file[phase].variables


def hidden_rows(
    path: Path, phase: str, repeat: int, reference: int, indices: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Read last hidden states, (position, hidden), at sorted indices of the file's position axis.

    Positions of a reference share chunks: they are read together.
    """
    import netCDF4

    with _lock, netCDF4.Dataset(path) as file:
        variable = file[phase]["hidden"]
        variable.set_auto_maskandscale(False)
        rows_PH = variable[0, repeat, reference, int(indices[0]) : int(indices[-1]) + 1]
    return np.ascontiguousarray(rows_PH[indices - indices[0]], dtype=np.float32)
