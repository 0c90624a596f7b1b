"""Commitments: what a producer publishes of a row so that she cannot change it afterwards.

A row's commitment is the SHA-256 of its logits' little-endian bytes in the model's data type (the unpadded
vocabulary, in the order of ids), cut to 16 bytes. Unlike ``row_hash`` it holds against somebody who looks for
a collision.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.dataset.checked import open_groups
from qdx.dataset.checksums import damage
from qdx.dataset.folder import RUN
from qdx.errors import QdxError

BYTES = 16
DTYPES = ("float16", "bfloat16", "float32")
BLOCK = 64  # rows in memory
ABOUT = {
    "units": "1",
    "long_name": f"first {BYTES} bytes of the SHA-256 of the row's little-endian bytes in the model's dtype",
}


def row_bytes(rows_PV: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """The rows in the model's data type, little-endian; bfloat16 as the upper halves of float32.

    Raises
    ------
    QdxError
        For another data type than float16, bfloat16 and float32.
    """
    if dtype == "bfloat16":
        return (np.ascontiguousarray(rows_PV, "<f4").view("<u4") >> 16).astype("<u2")
    if dtype not in ("float16", "float32"):
        raise QdxError(f"rows of {dtype}: commitments are of {', '.join(DTYPES)}")
    return rows_PV.astype({"float16": "<f2", "float32": "<f4"}[dtype])


def commit(rows_PV: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    """Commit to every row.

    Parameters
    ----------
    rows_PV : array (position, vocab)
        float32, exactly as the model's data type holds them.
    dtype : str
        Of the model's logits.

    Returns
    -------
    array of uint8 (position, byte)

    Examples
    --------
    >>> commit(np.array([[1.0, -2.0]], np.float32), "float16").tobytes().hex()
    '0c82e2008d4b1c37a2604f1dee0db584'
    """
    digests = [hashlib.sha256(row.tobytes()).digest()[:BYTES] for row in row_bytes(rows_PV, dtype)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), BYTES)


def of_run(path: Path, phase: str) -> xr.DataArray | None:
    """Commit to the captured rows of a run's first repeat.

    Parameters
    ----------
    path : Path
        A ``run.nc``.
    phase : str

    Returns
    -------
    xarray.DataArray or None
        Over the dimensions of ``row_hash``, repeat 0 only, and ``byte``; zeros where no row was captured.
        None where the run kept no full rows.

    Raises
    ------
    DamageError
        When a row is not what was written, or not that of its ``row_hash``.
    """
    groups = open_groups(path, groups=[f"/{phase}"])
    data = groups[f"/{phase}"]
    try:
        return _of_phase(path, phase, data) if "logit" in data else None
    finally:
        data.close()


def _of_phase(path: Path, phase: str, data: xr.Dataset) -> xr.DataArray:
    from qdx.distances.blocks import hashes  # torch, which planning and reading a verdict do without

    rows = data["logit"].isel(repeat=[0])
    order = [dim for dim in rows.dims if dim not in ("position", "vocab")]
    rows = rows.transpose(*order, "position", "vocab")
    captured, hashed = (
        data[name].isel(repeat=[0]).transpose(*order, "position") for name in ("captured", "row_hash")
    )
    found = np.zeros((*captured.shape, BYTES), np.uint8)
    dtype = str(np.broadcast_to(data["dtype"].values, 1)[0])
    for at in np.ndindex(captured.shape[:-1]):
        here = np.flatnonzero(captured.values[at])
        for start in range(0, len(here), BLOCK):
            some = here[start : start + BLOCK]
            rows_PV = np.asarray(rows[at][some].values, np.float32)
            # A commitment to a damaged row would refute an honest producer.
            other_P = hashes(rows_PV, dtype) != hashed.values[at][some]
            if other_P.any():
                told = ", ".join(f"{dim} {i}" for dim, i in zip(order, at, strict=True))
                where = f"/{phase}/logit[{told}, position {some[other_P][0]}]"
                raise damage(path, where, "holds another row than its row_hash is of")
            found[(*at, some)] = commit(rows_PV, dtype)
    index = {dim: data[dim].values for dim in (*order, "position") if dim != "repeat"}
    return xr.DataArray(
        found, dims=(*order, "position", "byte"), coords={**index, "repeat": [0]}, attrs=ABOUT
    )


def attach(tree: xr.DataTree, directory: Path) -> xr.DataTree:
    """Give a sweep's tree the commitments of its own rows, of the first repeat, where all runs kept them.

    Parameters
    ----------
    tree : xarray.DataTree
        A merged sweep; it is left as it is.
    directory : Path
        With ``<label>/run.nc``.
    """
    groups = {name: child.to_dataset() for name, child in tree.children.items() if name != "metrics"}
    for phase in ("prefill", "replay"):
        data = groups.get(phase)
        if data is None:
            continue
        paths = [directory / str(label) / RUN for label in data["config"].values]
        parts = [of_run(path, phase) if path.exists() else None for path in paths]
        kept = [part for part in parts if part is not None]
        if len(kept) < len(parts):
            continue
        index = {name: data[name].values for name in ("reference", "position", "repeat")}
        aligned = [part.reindex(index, fill_value=np.uint8(0)) for part in kept]
        whole = xr.concat(aligned, "config", join="exact", coords="minimal", compat="override")
        groups[phase] = data.assign(commitment=whole.drop_vars(["repeat"]))
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **groups})
