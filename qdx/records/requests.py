"""The requests of a Batch, found by their ``custom_id`` without keeping them in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.dataset.guarding import limits
from qdx.errors import QdxError
from qdx.records import lines
from qdx.records.record import FieldError, Fields, Unreadable, shown

_BLOCK = 65_536  # entries of the index that are appended at once


class Requests:
    """A file of requests, one a line: ``{"custom_id": …, "body": …}``, or ``{"custom_id": …, "request": …}``.

    The index has sixteen bytes a line: a hash of the name, and where the line begins.

    Parameters
    ----------
    path : Path

    Raises
    ------
    QdxError
        When the file cannot be opened or no line of it has a ``custom_id``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise QdxError(f"prompts.requests: {path}: no such file: give the input file of the Batch")
        self._keys, self._starts = self._index()
        self._answered = np.zeros(len(self._keys), bool)
        if not len(self._keys):
            raise QdxError(
                f"prompts.requests: {path} has no line with a custom_id: give the input of a Batch"
            )

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        blocks: list[NDArray[np.int64]] = []
        rows: list[tuple[int, int]] = []
        longest = limits().max_length
        with self._path.open("rb") as stream:
            while True:
                start = stream.tell()
                line = stream.readline(longest)
                if not line:
                    break
                try:
                    value = lines.parse(line)
                except ValueError:
                    continue
                name = value.get("custom_id") if isinstance(value, dict) else None
                if isinstance(name, str):
                    rows.append((_key(name), start))
                if len(rows) >= _BLOCK:
                    blocks.append(np.array(rows, np.int64))
                    rows = []
        whole = np.concatenate([*blocks, np.array(rows, np.int64).reshape(-1, 2)])
        order = np.argsort(whole[:, 0], kind="stable")
        return whole[order, 0], whole[order, 1]

    def find(self, identity: str) -> Fields | None:
        """Return the request of that name; None where the file has none.

        Raises
        ------
        FieldError
            When two requests have the name: nobody can say which one was answered.
        """
        key = _key(identity)
        first = int(np.searchsorted(self._keys, key, "left"))
        end = int(np.searchsorted(self._keys, key, "right"))
        self._answered[first:end] = True
        found = []
        with self._path.open("rb") as stream:
            for start in self._starts[first:end].tolist():
                stream.seek(start)
                value: Any = lines.parse(stream.readline(limits().max_length))
                if value.get("custom_id") == identity:
                    found.append(value)
        if len(found) > 1:
            raise FieldError(
                "custom_id", identity, f"one request of that name in {self._path.name}, got several"
            )
        if not found:
            return None
        body = found[0].get("body", found[0].get("request"))
        return Fields(body, "request")

    def unanswered(self) -> Iterator[Unreadable]:
        """Say how many requests nobody has asked for with `find`: whoever answers can leave some out."""
        open_ones = np.flatnonzero(~self._answered)
        if not len(open_ones):
            return
        with self._path.open("rb") as stream:
            stream.seek(int(self._starts[open_ones].min()))
            name = lines.parse(stream.readline(limits().max_length))["custom_id"]
        yield Unreadable(
            self._path.name,
            f"{len(open_ones):,} of its {len(self._keys):,} requests have no answer, "
            f"the first is {shown(name)}",
        )


def _key(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
