"""JSON that knows where each value lies, so that a malformed file is refused by the path of the bad key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError, printable

Floats = NDArray[np.float64]
MOST_BYTES = 2**28  # of a file: Python's objects take ten times as much and more; the original's have 3 MB
MOST_POSITIONS = 10**5  # of one generation and phase; the original's have 3
MOST_NUMBERS = 5 * 10**7  # in one array: 400 MB
MOST_CONFIGS = 1000
LONGEST_NAME = 200
MOST_FACTS = 200  # of an environment, each a variable; the original's have 12
POSITION = re.compile(r"pos_(-[1-9][0-9]{0,8})\Z", re.ASCII)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z", re.ASCII)
# Escapes that become text which no UTF-8 file and no NetCDF variable holds: NUL and halves of a pair.
_UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")


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

        NUL and halves of a surrogate pair, which JSON can escape and NetCDF cannot hold, become �.

        Raises
        ------
        QdxError
            When it cannot be read, is larger than 256 MiB, is not JSON, or names a key twice.
        """
        try:
            size = file.stat().st_size
            if size > MOST_BYTES:
                raise QdxError(
                    f"{file}: has {size:,} bytes, limit {MOST_BYTES:,}: the original's files have 4 MB"
                )
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise QdxError(f"{file}: cannot be read as UTF-8 text: {error}") from error
        try:
            value = json.loads(text, object_pairs_hook=_once)
            return cls(_writable(value) if "\\u" in text else value)
        except (ValueError, RecursionError) as error:
            raise QdxError(f"{file}: not a JSON file: {error}") from error

    def refuse(self, expected: str) -> NoReturn:
        """Raise a `QdxError` with the path, what is there and what was expected."""
        shown = json.dumps(_short(self.value))
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

    def find(self, path: str) -> Node | None:
        """Return what lies at a path of keys joined by dots, or None where one of them is absent."""
        node: Node | None = self
        for key in path.split("."):
            node = node.get(key) if node is not None and isinstance(node.value, dict) else None
        return node

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
        try:
            return float(self.value)
        except OverflowError:
            self.refuse("a number below 1.8e308")

    def text(self) -> str:
        """The value, a text."""
        if not isinstance(self.value, str):
            self.refuse("a text")
        return self.value

    def label(self) -> str:
        """The value, the name of a config: see `name`."""
        return name(self.text(), self.path)

    def integers(self) -> NDArray[np.int64]:
        """The value, a list of token ids."""
        if isinstance(self.value, list) and all(type(v) is int and 0 <= v < 2**31 for v in self.value):
            return np.array(self.value, np.int64)  # one pass: a file may hold millions
        return np.array([entry.integer() for entry in self.entries()], np.int64)

    def numbers(self) -> Floats:
        """The value, a list of numbers."""
        if isinstance(self.value, list) and all(type(v) is float for v in self.value):
            return np.array(self.value, np.float64)
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


def name(text: str, path: str) -> str:
    """A text that can stand as a label in a table, a file and a command.

    Raises
    ------
    QdxError
        For one that is empty, longer than 200 characters, begins or ends with a blank, or holds a slash, a
        line break or a character that acts on a terminal.
    """
    bare = text.strip()
    if not bare or bare != text or len(text) > LONGEST_NAME or any(c in text for c in "/\n\ufffd"):
        fits = False
    else:
        fits = printable(text) == text
    if not fits:
        raise QdxError(
            f"{printable(path)}: got the name {json.dumps(text[:40])}, expected one of 1 to {LONGEST_NAME} "
            "printable characters without a slash, and no blank around them"
        )
    return text


def word(text: str, path: str) -> str:
    """A text that can name a variable and a group.

    Raises
    ------
    QdxError
        For one that is not a letter and up to 63 more letters, digits and underscores.
    """
    if not _WORD.match(text):
        raise QdxError(
            f"{path}: got {json.dumps(text[:40])}, expected a name of letters, digits and underscores, such "
            "as logprobs or batch_size"
        )
    return text


def environment(node: Node) -> dict[str, str]:
    """The facts of a machine as texts.

    Raises
    ------
    QdxError
        When there are more than 200.
    """
    count = len(node.mapping())
    if count > MOST_FACTS:
        raise QdxError(f"{node.path}: got {count:,} facts, limit {MOST_FACTS}: leave some out")
    return {key: plain(value.value) for key, value in node.items()}


def bounded(what: str, *sizes: int) -> None:
    """Refuse an array before it is made.

    A file may be small and sparse, such as one row at each of many positions, and still ask for a table of
    all of them.

    Raises
    ------
    QdxError
        When the product of the sizes is beyond 50 million.
    """
    count = math.prod(sizes)
    if count > MOST_NUMBERS:
        raise QdxError(
            f"{what} would need {' × '.join(f'{size:,}' for size in sizes)} = {count:,} numbers, limit "
            f"{MOST_NUMBERS:,}: the file's rows are spread too thinly to be a table; split the file"
        )


def few(count: int) -> None:
    """Refuse more configs than analyses over pairs of them are made for.

    Raises
    ------
    QdxError
        Beyond 1,000.
    """
    if count > MOST_CONFIGS:
        raise QdxError(
            f"got {count:,} configs, limit {MOST_CONFIGS:,}: the original's files have nine; split it"
        )


def plain(value: Any) -> str:
    """A fact of an environment as text."""
    return value if isinstance(value, str) else "" if value is None else _digits(value)


def _digits(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return "an integer of more than 4,300 digits"


def _short(value: Any, most: int = 8) -> Any:
    """The start of a value, so that a message about a large one is made at once."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**40:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list):
        return [_short(entry, 2) for entry in value[:most]] if most > 1 else []
    if isinstance(value, dict):
        return {k[:80]: _short(value[k], 2) for k in list(value)[:most]} if most > 2 else {}
    return value


def _writable(value: Any) -> Any:
    """The value with � for what NetCDF cannot hold, in keys and texts."""
    if isinstance(value, str):
        return _UNWRITABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_writable(entry) for entry in value]
    if isinstance(value, dict):
        return _once([(_writable(key), _writable(entry)) for key, entry in value.items()])
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return found
