"""Opens a file, a run folder or a sweep folder as one tree, without reading arrays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
import xarray as xr

from qdx import new_file
from qdx.dataset import folder
from qdx.dataset.check import blaming, check, reading, scan
from qdx.dataset.checked import open_groups
from qdx.dataset.checksums import UNCHECKED, is_checked
from qdx.dataset.guarding import guard
from qdx.dataset.join_configs import combine, combine_rows
from qdx.dataset.journal import ATTRIBUTES, open_rows
from qdx.dataset.layout import (
    CONFIG_COORDS,
    DRAWN,
    FIRST,
    FIRST_DRAWN,
    PHASE,
    PHASES,
    PRODUCER_COORDS,
    READABLE,
    REGION,
    WIDE,
    setting_names,
)
from qdx.errors import QdxError

# Bytes of full rows in a dask chunk: of single rows dask's bookkeeping, and its threads' waiting for each
# other at netCDF's lock, take longer than reading them.
_TOGETHER = 16 * 2**20


def open(path: str | Path, *, trust: bool = False) -> xr.DataTree:
    """Open what a run or a sweep wrote.

    Parameters
    ----------
    path : str or Path
        A file (``run.nc``, ``sweep.nc``, or a ``run.nc.part`` that a killed job left), a run folder or a
        sweep folder.
    trust : bool
        The files are one's own. Otherwise another process looks at each before it is read, for a second or
        so: a stranger's could name other files of this machine, fill its memory or never end.

    Returns
    -------
    xarray.DataTree
        Groups and variables as the handbook lists them. Nothing is read but coordinates; full rows are dask
        arrays of whole chunks of the file (a row each), up to 16 MiB of them together (of an unfinished
        run, single rows). Of a sweep folder it has the groups of ``sweep.nc`` (of the runs that are there,
        where they are not merged yet) and the full rows of every run.

    Raises
    ------
    QdxError
        When there is nothing at `path`, or it is not a qdx file, is truncated, lacks a part or has another
        schema version; and when a file is refused by what it claims, see `qdx.dataset.guarding.guard`.
    DamageError
        A `QdxError`: when a group, an attribute or an index is not what was written. Arrays are read, and
        checked, when they are used: then it names the group, variable and index of the damage.

    Warns
    -----
    UserWarning
        When the file, or one of the runs, has no checksums: its values are read unchecked. It was written by
        an older qdx, or changed by another program. An unfinished ``.part`` never has them.

    Examples
    --------
    >>> tree = qdx.open("outputs/2026-01-31_12-00-00")  # doctest: +SKIP
    >>> tree["replay/logit"].sel(config="awq", repeat=0, reference="ref_0")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise QdxError(f"{path}: no such file or folder")
    file = path if path.is_file() else path / folder.RUN
    if not trust:
        _guard(path, file)
    if file.exists():
        tree = open_file(file)
        _warn([file])
        return tree
    if folder.is_sweep(path):
        tree = _open_sweep(path)
        _warn([*path.glob(folder.SWEEP), *sorted(path.glob(f"*/{folder.RUN}"))])
        return tree
    if (path / folder.PART).exists():
        raise QdxError(
            f"{path} holds an unfinished run only: open {path / folder.PART} to see what it had written"
        )
    raise QdxError(
        f"{path} holds no {folder.RUN}, {folder.SWEEP} or {folder.PLAN}: give a file or folder that qdx wrote"
    )


def _guard(path: Path, file: Path) -> None:
    """Have the files looked at that `open` reads, and refuse a folder with links out of it."""
    if path.is_dir():
        new_file.refuse_links(path)
    runs = [file] if file.exists() else [*path.glob(folder.SWEEP), *sorted(path.glob(f"*/{folder.RUN}"))]
    guard(*runs)


def _warn(files: Iterable[Path]) -> None:
    """Say which finished files have no checksums."""
    if unchecked := [file for file in files if file.suffix == ".nc" and not is_checked(file)]:
        more = f" and {len(unchecked) - 1} further files" if len(unchecked) > 1 else ""
        warnings.warn(f"{unchecked[0]}{more}: {UNCHECKED}", UserWarning, stacklevel=3)


def open_file(path: Path) -> xr.DataTree:
    """Open one NetCDF file; see `open`."""
    with reading(path):
        groups = open_groups(path)
    try:
        return _tree(path, groups)
    except BaseException:
        for dataset in groups.values():
            dataset.close()
        raise


def _tree(path: Path, groups: dict[str, xr.Dataset]) -> xr.DataTree:
    version = groups["/"].attrs.get("schema_version")
    if version is None:
        raise QdxError(f"{path} is a NetCDF file that qdx did not write: it has no attribute schema_version")
    if not any(np.array_equal(version, known) for known in READABLE):
        raise QdxError(
            f"{path} has schema version {version}, this qdx reads {' and '.join(map(str, READABLE))}: "
            "use the qdx that wrote it"
        )
    with reading(path):
        check(path, groups)
    for phase in PHASES:
        if f"/{phase}" in groups:
            # A Dataset taken out of the tree must still say whether it is free decode (`qdx.arrays`).
            groups[f"/{phase}"] = groups[f"/{phase}"].assign_attrs(phase=phase)
    with reading(path):
        rows_at = path.with_name(folder.ROWS)
        if set(ATTRIBUTES) <= set(groups["/"].attrs) and rows_at.exists():
            known = {phase: groups[f"/{phase}"] for phase in PHASES if f"/{phase}" in groups}
            for phase, dataset in open_rows(rows_at, known, groups["/"].attrs).items():
                groups[f"/{phase}"] = dataset
        tree = xr.DataTree.from_dict(
            {
                name: _lazy_rows(dataset) if name.strip("/") in PHASES else dataset
                for name, dataset in groups.items()
            }
        )
    for name, dataset in groups.items():
        tree[name].set_close(dataset.close)  # from_dict forgets it, and an open file cannot be appended to
    return tree


def _lazy_rows(dataset: xr.Dataset) -> xr.Dataset:
    for name in WIDE:
        if name in dataset and dataset[name].chunks is None:
            rows = dataset[name]
            sizes = dict(zip(rows.dims, rows.encoding.get("chunksizes") or rows.shape, strict=True))
            together = _TOGETHER // max(1, rows.dtype.itemsize * math.prod(sizes.values()))
            sizes["position"] *= max(1, min(together, rows.sizes["position"] // max(1, sizes["position"])))
            dataset = dataset.assign({name: rows.variable.chunk(sizes, name=f"{name}-{uuid4().hex}")})
    return dataset


def _open_sweep(directory: Path) -> xr.DataTree:
    if not (directory / folder.SWEEP).exists():
        state = scan(directory)
        if not state.runs:
            raise QdxError(f"{directory} has no finished run: {_why(state.failed, state.missing)}")
        with blaming(state.runs.values()):
            return combine(state, {label: open_file(run) for label, run in state.runs.items()})
    tree = open_file(directory / folder.SWEEP)
    phases = [phase for phase in PHASES if phase in tree.children]
    labels = [str(label) for phase in phases[:1] for label in tree[phase].to_dataset()["config"].values]
    runs = {label: directory / label / folder.RUN for label in labels}
    for phase in phases:
        settings = setting_names(tree[phase].coords)
        parts = {label: _open_rows(run, phase, settings) for label, run in runs.items() if run.exists()}
        with blaming(runs[label] for label in parts):
            tree[phase] = tree[phase].assign(combine_rows(parts, tree[phase].to_dataset()))
    return tree


def _open_rows(path: Path, phase: str, settings: Iterable[str]) -> xr.Dataset:
    """Open the full rows of a phase and nothing else: a quarter of the time of the whole file."""
    small = (*PHASE, *DRAWN, *FIRST, *FIRST_DRAWN, *CONFIG_COORDS, *PRODUCER_COORDS, *settings, REGION.name)
    others = [name for name in small if name not in WIDE]
    with reading(path):
        groups = open_groups(path, groups=[f"/{phase}"], drop_variables=others)
        return _lazy_rows(groups[f"/{phase}"])


def _why(failed: Mapping[str, str], missing: list[str]) -> str:
    return "; ".join(
        [
            *(f"{label}: {error}" for label, error in failed.items()),
            *(f"{label}: missing" for label in missing),
        ]
    )
