"""Reads a JSON file that somebody else wrote: its size, its depth and the type of every field are checked.

`read` refuses what Python's own reader would let through or choke on: numbers that are not finite, a key that
stands twice, nesting without end, and integers of a million digits. `Fields` then hands out the fields by
name, each held to a type and a range, and refuses a file that has others. Nothing in a file is executed, and
no path in it is opened.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdx.errors import QdxError

LARGEST = 64 * 2**20  # bytes of a file
DEPTH = 8  # of lists and objects; qdx's own files have 4
DIGITS = 18  # of an integer: what 64 bits hold
SHOWN = 60  # characters of a value in a message
# A text, also one that does not end: each is passed once, however its quotes are escaped.
TEXT = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
HEX = re.compile(r"[0-9a-f]*")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def read(path: Path, kind: str, version: int, *, largest: int = LARGEST) -> Fields:
    """Read a JSON object of one kind.

    Parameters
    ----------
    path : Path
        A regular file, or a link to one.
    kind : str
        What its field ``kind`` has to say.
    version : int
        What its field ``schema_version`` has to say.
    largest : int
        Bytes that the file may have.

    Returns
    -------
    Fields
        The others.

    Raises
    ------
    QdxError
        Naming the file, what is wrong and the limit.
    """
    return parse(read_bytes(path, largest=largest), path, kind, version)


def read_bytes(path: Path, *, largest: int = LARGEST) -> bytes:
    """Return a file's bytes.

    Raises
    ------
    QdxError
        For what is not a regular file, cannot be read, or is larger.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise QdxError(
                f"{path}: not a regular file (a folder, fifo, device or socket): give the file itself"
            )
        if found.st_size > largest:
            raise QdxError(f"{path} is not read: {found.st_size:,} bytes, limit {largest:,}")
        with path.open("rb") as stream:
            data = stream.read(largest + 1)  # it may have grown
    except OSError as error:
        raise QdxError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > largest:
        raise QdxError(f"{path} is not read: more than {largest:,} bytes")
    return data


def parse(data: bytes, path: Path, kind: str, version: int) -> Fields:
    """`read` of bytes that were read before; `path` is for messages."""
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        content = json.loads(
            text,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_finite,
            object_pairs_hook=_no_twins,
        )
    except UnicodeDecodeError as error:
        raise QdxError(f"{path} is not JSON: byte {error.start} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise QdxError(f"{path} is not read: {error}") from error
    if not isinstance(content, dict):
        raise QdxError(f"{path} holds {_named(content)}, expected an object")
    fields = Fields(content, str(path))
    if (got := fields.text("kind", most=40)) != kind:
        raise QdxError(f"{path}: its kind is {shown(got)}, expected {kind!r}: give the other file")
    if (number := fields.integer("schema_version", 0, 10**6)) != version:
        raise QdxError(f"{path}: its schema_version is {number}, this qdx reads {version}")
    return fields


def shown(value: object) -> str:
    """A value for a message: on one line, in ASCII, cut."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


class Fields:
    """The fields of an object, each of which is asked for once by name, type and range.

    Parameters
    ----------
    content : Mapping
    where : str
        Begins every message: the file, and the place in it.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content, self._where, self._left = content, where, set(content)

    def has(self, name: str) -> bool:
        """Return whether the field is there and is not null."""
        if self._content.get(name) is None:
            self._left.discard(name)
            return False
        return True

    def done(self) -> None:
        """Refuse fields that nobody asked for: they may mean something that is not done.

        Raises
        ------
        QdxError
        """
        if self._left:
            names = ", ".join(shown(name) for name in sorted(self._left)[:3])
            raise QdxError(f"{self._where}: unknown field {names}: it was changed, or made by another qdx")

    def text(self, name: str, *, most: int = 200, pattern: re.Pattern[str] | None = None) -> str:
        """A text of at most `most` characters, all of which are printable, that matches a pattern."""
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "must be a text")
        if len(value) > most or not value.isprintable():
            raise self._wrong(name, value, f"must be printable and have at most {most} characters")
        if pattern is not None and not pattern.fullmatch(value):
            raise self._wrong(name, value, f"must match {pattern.pattern}")
        return value

    def hexadecimal(self, name: str, digits: int = 64) -> str:
        """So many lower-case hexadecimal digits."""
        value = self.text(name, most=digits, pattern=HEX)
        if len(value) != digits:
            raise self._wrong(name, value, f"must be {digits} hexadecimal digits")
        return value

    def time(self, name: str) -> str:
        """A time in UTC, such as ``2026-11-28T01:15:00Z``."""
        return self.text(name, most=20, pattern=TIME)

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number within a range."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, value, f"must be a whole number from {low} to {high}")
        return value

    def integers(self, name: str, low: int, high: int, *, most: int) -> list[int]:
        """A list of whole numbers within a range."""
        value = self._list(name, most)
        for one in value:
            if not isinstance(one, int) or isinstance(one, bool) or not low <= one <= high:
                raise self._wrong(name, one, f"must hold whole numbers from {low} to {high}")
        return value

    def objects(self, name: str, *, most: int) -> list[Fields]:
        """A list of objects."""
        found = []
        for i, one in enumerate(self._list(name, most)):
            if not isinstance(one, dict):
                raise self._wrong(f"{name}[{i}]", one, "must be an object")
            found.append(Fields(one, f"{self._where}: {name}[{i}]"))
        return found

    def fields(self, name: str) -> Fields:
        """The fields of an object."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "must be an object")
        return Fields(value, f"{self._where}: {name}")

    def _list(self, name: str, most: int) -> list[Any]:
        value = self._get(name)
        if not isinstance(value, list) or len(value) > most:
            count = f", got {len(value):,}" if isinstance(value, list) else ""
            raise self._wrong(name, value, f"must be a list of at most {most:,} entries{count}")
        return value

    def _get(self, name: str) -> Any:
        if name not in self._content:
            raise QdxError(f"{self._where}: it has no {name}: it was changed, or made by something else")
        self._left.discard(name)
        return self._content[name]

    def _wrong(self, name: str, value: object, rule: str) -> QdxError:
        said = _named(value) if isinstance(value, list | dict) else shown(value)
        return QdxError(f"{self._where}: {name} is {said}: {rule}")


def _named(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _check_depth(text: str) -> None:
    """Refuse nesting before it is read: a reader that recurses would need a stack for it."""
    depth = 0
    for match in re.finditer(r"[\[\]{}]", TEXT.sub("", text)):
        depth += 1 if match.group() in "[{" else -1
        if depth > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep")


def _no_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}, which is not a number")


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ValueError(f"it holds a whole number of {len(text)} digits, limit {DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    if len(text) > 40 or not math.isfinite(value := float(text)):
        raise ValueError(f"it holds the number {text[:20]}…, which no field takes")
    return value


def _no_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a field twice")
    return found
