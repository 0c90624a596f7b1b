"""Whether a job's result is there already."""

from __future__ import annotations

from pathlib import Path

from qdx.dataset.folder import NEW, PART, ROWS
from qdx.dataset.guarding import guard
from qdx.errors import QdxError


def is_complete(path: Path, config_hash: str) -> bool:
    """Return whether a run's file is whole and was made by what has this hash.

    Parameters
    ----------
    path : Path
        A ``run.nc``; it need not exist.
    config_hash : str
        See `qdx.dataset.provenance.config_hash`.
    """
    import netCDF4

    if not path.exists():
        return False
    try:
        guard(path)
        with netCDF4.Dataset(path) as file:
            attrs = {name: file.getncattr(name) for name in file.ncattrs()}
    except (
        OSError,
        RuntimeError,
        AttributeError,
        QdxError,
    ):  # not a NetCDF file, or cut short: it will be set aside, not believed
        return False
    return attrs.get("status") == "complete" and attrs.get("config_hash") == config_hash


def discard_unfinished(path: Path) -> None:
    """Remove what a job that was killed left beside the place of a run's file."""
    for name in (PART, ROWS, NEW):
        path.with_name(name).unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Rename a file that another config, or another version of the code, left where a new one goes.

    Without this a job that fails would leave the old result to be merged as if it were its own.

    Returns
    -------
    Path or None
        The new name, ``run.replaced-<n>.nc``; None when there was no file.
    """
    if not path.exists():
        return None
    number = 1
    while (other := path.with_name(f"{path.stem}.replaced-{number}{path.suffix}")).exists():
        number += 1
    return path.rename(other)
