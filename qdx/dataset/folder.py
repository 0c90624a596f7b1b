"""Read what lies in a sweep folder: which labels were asked for, are whole, failed, or never came.

It also says whether a job's result is there already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdx.dataset.guarding import guard
from qdx.errors import QdxError

RUN, PART, STATUS, PLAN, SWEEP = "run.nc", "run.nc.part", "status.json", "sweep.json", "sweep.nc"
LARGEST = 64 * 2**20  # bytes of sweep.json and status.json
ROWS, NEW = "run.nc.rows", "run.nc.new"  # beside a .part: its full rows, and the file that will replace it


@dataclass(frozen=True)
class Sweep:
    """The state of a sweep folder.

    Attributes
    ----------
    directory : Path
    labels : list of str
        Expected configs, in the order in which they were asked for.
    runs : dict
        Label → path of its finished ``run.nc``.
    failed : dict
        Label → error of a job that failed, or that stopped before its file was whole.
    missing : list of str
        Labels that left nothing.
    settings : Mapping
        ``sweep.json``, empty where there is none.
    """

    directory: Path
    labels: list[str]
    runs: dict[str, Path]
    failed: dict[str, str]
    missing: list[str]
    settings: Mapping[str, Any]


def is_sweep(directory: Path) -> bool:
    """Return whether a folder is a sweep's: it has sweep.json, sweep.nc, or a folder with a run in it."""
    return (directory / PLAN).exists() or (directory / SWEEP).exists() or any(directory.glob(f"*/{RUN}"))


def scan(directory: Path) -> Sweep:
    """Look at a sweep folder.

    A ``run.nc.part`` beside a ``run.nc`` means that the job was started again and did not finish; the older
    file no longer answers to what was asked for, so the label counts as failed.

    Raises
    ------
    QdxError
        When the folder does not exist, is not a sweep's, or its sweep.json is broken.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise QdxError(f"{directory}: no such folder")
    settings = _json(directory / PLAN) if (directory / PLAN).exists() else {}
    labels = settings.get("labels")
    if labels is None:
        labels = sorted(
            {found.parent.name for name in (RUN, PART, STATUS) for found in directory.glob(f"*/{name}")}
        )
    if not labels:
        raise QdxError(f"{directory} is not a sweep folder: it has neither {PLAN} nor <label>/{RUN}")
    runs: dict[str, Path] = {}
    failed: dict[str, str] = {}
    missing: list[str] = []
    for label in labels:
        folder = directory / label
        status = _json(folder / STATUS) if (folder / STATUS).exists() else {}
        if status.get("status") == "failed":
            failed[label] = str(status.get("error", "")) or "failed without a message"
        elif (folder / PART).exists():
            failed[label] = f"stopped before it was whole: {folder / PART} holds what it had written"
        elif (folder / RUN).exists():
            runs[label] = folder / RUN
        else:
            missing.append(label)
    return Sweep(directory, list(labels), runs, failed, missing, settings)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > LARGEST:  # of a stranger's: a fifo would be waited for
        raise QdxError(f"{path} cannot be read: not a regular file of at most {LARGEST // 2**20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QdxError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise QdxError(f"{path} holds {type(content).__name__}, expected a mapping")
    return content


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
