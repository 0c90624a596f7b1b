"""JSON that knows where each value lies, so that a malformed file is refused by the path of the bad key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError

Floats = NDArray[np.float64]


class Node:
    """One value of a JSON file and its path, such as ``generations.awq[2].ref_idx``.

    Parameters
    ----------
    value : Any
        What `json` made of it.
    path : str
        Empty for the whole file.
    """

    def __init__(self, value: Any, path: str = "") -> None:
        self.value, self.path = value, path

    @classmethod
    def load(cls, file: Path) -> Node:
        """Read a file; ``Infinity`` and ``NaN`` are floats, as Python's `json` writes them.

        Raises
        ------
        QdxError
            When it cannot be read, is no JSON, or names a key twice.
        """
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise QdxError(f"{file}: cannot be read as UTF-8 text: {error}") from error
        try:
            return cls(json.loads(text, object_pairs_hook=_once))
        except (ValueError, RecursionError) as error:
            raise QdxError(f"{file}: not a JSON file: {error}") from error

    def refuse(self, expected: str) -> NoReturn:
        """Raise a `QdxError` with the path, what is there and what was expected."""
        shown = json.dumps(self.value)
        shown = shown if len(shown) <= 60 else shown[:57] + "…"
        raise QdxError(f"{self.path or 'the file'}: got {shown}, expected {expected}")

    def __getitem__(self, key: str) -> Node:
        """Return a key that must be there."""
        if key not in self.mapping():
            raise QdxError(f"{self._at(key)}: got nothing, expected this key: it is missing")
        return Node(self.value[key], self._at(key))

    def get(self, key: str) -> Node | None:
        """Return a key, or None where it is absent."""
        return self[key] if key in self.mapping() else None

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def mapping(self) -> dict[str, Any]:
        """The value, an object."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return self.value

    def items(self) -> Iterator[tuple[str, Node]]:
        """Keys and values of an object."""
        for key in self.mapping():
            yield key, self[key]

    def entries(self, length: int | None = None) -> list[Node]:
        """Entries of a list, of a given length."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        if length is not None and len(self.value) != length:
            raise QdxError(f"{self.path}: got {len(self.value)} entries, expected {length}")
        return [Node(value, f"{self.path}[{i}]") for i, value in enumerate(self.value)]

    def integer(self, least: int = 0, below: int = 2**31) -> int:
        """The value, a whole number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not least <= self.value < below:
            self.refuse(
                f"a whole number of at least {least}" + (f" and below {below}" if below < 2**31 else "")
            )
        return self.value

    def number(self) -> float:
        """The value, a number; it may be infinite or NaN."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.refuse("a number (or Infinity)")
        return float(self.value)

    def text(self) -> str:
        """The value, a text."""
        if not isinstance(self.value, str):
            self.refuse("a text")
        return self.value

    def integers(self) -> NDArray[np.int64]:
        """The value, a list of token ids."""
        return np.array([entry.integer() for entry in self.entries()], np.int64)

    def numbers(self) -> Floats:
        """The value, a list of numbers."""
        return np.array([entry.number() for entry in self.entries()], np.float64)

    def square(self, labels: Sequence[str]) -> Floats:
        """The value, a matrix over labels: lists in their order, or objects by name."""
        rows = self._over(labels)
        return np.array([[cell.number() for cell in row._over(labels)] for row in rows]).reshape(
            len(labels), len(labels)
        )

    def _over(self, labels: Sequence[str]) -> list[Node]:
        if isinstance(self.value, dict):
            return [self[label] for label in labels]
        return self.entries(len(labels))

    def others(self, *known: str) -> dict[str, Any]:
        """Unknown keys of an object, by their paths."""
        return {self._at(key): value for key, value in self.mapping().items() if key not in known}


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object"
        )
    return found
