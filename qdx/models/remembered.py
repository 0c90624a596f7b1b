"""Hashes of weight files that were read before, so that a job does not read 5 GB again to name them.

A file is the same one as long as its device, inode, size, time of change of the content and time of change of
the inode are. The last one, which no program can set, moves with every write, rename, link and change of
times; a file that changed less than `YOUNG_NS` before its hash was taken is not remembered, because a second
change could fall on the same tick of the clock. The notes lie in the cache folder, a small file for each
weight file. Nobody has to trust them: what was taken from here is marked in a record (``weights_hash``), and
a verifier's job and ``python -m qdx.commit`` read the weights themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from qdx.models.cache import cache_folder

FOLDER = "hashes"
YOUNG_NS = 2_000_000_000  # above the coarsest clock of the usual file systems (FAT: 2 s)


def state_of(file: Path) -> dict[str, int]:
    """Return what says whether a file is still the one that was hashed."""
    state = file.stat()
    return {
        "device": state.st_dev,
        "inode": state.st_ino,
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,
    }


def recall(file: Path) -> str | None:
    """Return the SHA-256 that was noted for a file which has not changed since; None where there is none."""
    now = state_of(file)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        noted = json.loads(_note(now).read_text(encoding="utf-8"))
        digest = noted.pop("sha256", None) if isinstance(noted, dict) else None
        if noted == now and isinstance(digest, str) and len(digest) == 64:
            return digest
    return None


def note(file: Path, before: dict[str, int], digest: str) -> None:
    """Remember a file's hash; a cache that cannot be written remembers nothing.

    Parameters
    ----------
    file : Path
    before : dict
        What `state_of` returned before the file was read: a file that changed meanwhile is not noted.
    digest : str
        Hexadecimal SHA-256.
    """
    changed_ns = max(before["mtime_ns"], before["ctime_ns"])
    if state_of(file) != before or not 0 <= changed_ns <= time.time_ns() - YOUNG_NS:
        return
    target = _note(before)
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump({**before, "sha256": digest}, stream)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)


def _note(state: dict[str, int]) -> Path:
    key = hashlib.sha256(f"{state['device']} {state['inode']}".encode()).hexdigest()[:24]
    return cache_folder() / FOLDER / f"{key}.json"
