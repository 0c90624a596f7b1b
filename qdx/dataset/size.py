"""Estimate how much a run will write, and check that the disk has it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError

# Measured with benchmarks/storage.py: float16 logits in float32, blosc_lz4 or zlib.
BYTES_PER_LOGIT = {"float16": 1.85, "bfloat16": 1.85, "float32": 4.0}
_FIXED = 256 * 1024  # groups, references, attributes


def bytes_per_run(
    plan: Mapping[str, Sequence[NDArray[np.int32]]],
    *,
    repeats: int,
    width: int,
    dtype: str = "float16",
    k: int = 20,
    components: int = 64,
) -> int:
    """Estimate the size of one config's file.

    Parameters
    ----------
    plan : Mapping
        See `qdx.capture.plan`: phase → captured positions of every reference.
    repeats : int
    width : int
        Values of a full row: the vocabulary's, a hidden state's, or 0 when none is kept.
    dtype : str
        Of the full rows.
    k : int
        Ranks.
    components : int
        Length of a sketch.

    Returns
    -------
    int
        Bytes: 1.85 a value of the full rows, what the small variables take uncompressed, and a fixed part.
    """
    rows = repeats * sum(len(positions) for phase in plan.values() for positions in phase)
    small = 1 + 4 + 4 + 4 + 8 + 8 + 4 * components + 8 * k
    return _FIXED + int(rows * (small + BYTES_PER_LOGIT[dtype] * width))


def unfinished_bytes(
    plan: Mapping[str, Sequence[NDArray[np.int32]]], *, repeats: int, width: int, dtype: str
) -> int:
    """Return what the full rows of a run take, besides its file, until it is whole: see `journal`."""
    rows = repeats * sum(len(positions) for phase in plan.values() for positions in phase)
    return rows * width * (4 if dtype == "float32" else 2)


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a run that the disk has no room for.

    Parameters
    ----------
    folder : Path
        Where the files will be; it need not exist yet.
    needed : int
        Bytes, of all configs together.

    Raises
    ------
    QdxError
    """
    present = Path(folder).absolute()
    while not present.exists():
        present = present.parent
    free = shutil.disk_usage(present).free
    if free < needed:
        raise QdxError(
            f"the run will write about {readable(needed)} to {folder}, free there: {readable(free)}: "
            "lower capture.prefill_positions, use capture=topk, or choose another hydra.sweep.dir"
        )


def readable(count: int) -> str:
    """Return a number of bytes for a person, in decimal units."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
