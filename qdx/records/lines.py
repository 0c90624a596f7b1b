"""JSON values of a file one after the other: lines, a streamed response, one document or the array in it.

Everything here is bounded: a line is read up to a limit and skipped beyond it, an array gives its entries one
by one, and only a document that is one object is read whole. Nothing in a value is executed.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qdx.dataset.guarding import limits
from qdx.errors import QdxError, printable
from qdx.records.record import FieldError, Record, Unreadable

MOST_BYTES = 2**28  # of a document that is one object: Python's objects take ten times as much
HEAD = 2**20  # bytes that a format is recognised from, and the whole first line
LONGEST_REASON = 200  # characters
_PIECE = 2**18
_SPACE = " \t\r\n"
_HALVES = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Value:
    """One JSON value of a file.

    Attributes
    ----------
    where : str
        File and line, or entry.
    value : object
    event : bool
        Whether it stood behind ``data:``, as a server's events do: then it is a piece of an answer.
    """

    where: str
    value: Any
    event: bool = False


def head(path: Path) -> bytes:
    """Return what a format is recognised from: the beginning, with the first line as far as the limit."""
    with path.open("rb") as stream:
        first = stream.readline(limits().max_length)
        return first if len(first) >= HEAD else first + stream.read(HEAD - len(first))


def peek(beginning: bytes) -> dict[str, Any]:
    """Return the first object of a file's beginning, or of the array that it begins with; else an empty one.

    An object that the beginning does not hold whole gives the keys that are seen, each with None.
    """
    text = beginning.decode("utf-8", "replace").lstrip("\ufeff" + _SPACE)
    for line in text.split("\n", 3)[:3]:
        if line.startswith("data:"):
            text = line[5:]
            break
    text = text.lstrip(_SPACE + "[")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return _keys(text)
    return value if isinstance(value, dict) else {}


def _keys(text: str) -> dict[str, Any]:
    return dict.fromkeys(re.findall(r'"([A-Za-z_][A-Za-z0-9_]{0,40})"\s*:', text))


def parse(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises
    ------
    ValueError
        When it is not JSON, is nested too deeply, or names a key twice.
    """
    try:
        return _whole_text(json.loads(text, object_pairs_hook=_once))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None


def values(path: Path) -> Iterator[Value | Unreadable]:
    """Iterate over the values of a file.

    Parameters
    ----------
    path : Path
        JSON lines, server-sent events (``data: {…}``), an array, or one object.

    Yields
    ------
    Value or Unreadable
        What cannot be read is named by its line or entry, and the others go on.
    """
    with path.open("rb") as stream:
        kind = _kind(stream)
        stream.seek(0)
        if kind == "array":
            yield from _array(path, stream)
        elif kind == "object":
            yield from _document(path, stream)
        else:
            yield from _lines(path, stream)


def each(path: Path, read: Callable[[Value], Iterator[Record | Unreadable]]) -> Iterator[Record | Unreadable]:
    """Read every value of a file: what of it cannot be read is named, and the others go on.

    Parameters
    ----------
    path : Path
    read : callable
        Gives the answers of a value, or raises FieldError.
    """
    for value in values(path):
        if isinstance(value, Unreadable):
            yield value
        else:
            yield from naming(value.where, read(value))


def naming(where: str, found: Iterator[Record | Unreadable]) -> Iterator[Record | Unreadable]:
    """Give what is found, and in the place of what raised what could not be read there.

    A value is a stranger's, and may have a type in some field that nobody thought of. It is named like any
    other that cannot be read, and the values after it are read.
    """
    try:
        yield from found
    except FieldError as error:
        yield Unreadable(where, str(error))
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        what = " ".join(printable(f"{type(error).__name__}: {error}").split())
        yield Unreadable(where, f"a field has a type that no answer has ({what[:LONGEST_REASON]})")


def _kind(stream: IO[bytes]) -> str:
    """Say how the values of a file are laid out: by its first line, or its second if that is not a value."""
    longest = limits().max_length
    first = b""
    while not first.strip() and (line := stream.readline(longest)):
        first = line.removeprefix(b"\xef\xbb\xbf")
    start = first.strip()
    if start.startswith(b"["):
        return "array"
    if not start.startswith(b"{"):
        return "lines"
    if len(first) >= longest and not first.endswith(b"\n"):  # one long line is a document, several are lines
        while (line := stream.readline(_PIECE)) and not line.endswith(b"\n"):
            pass
        return "lines" if stream.read(_PIECE).strip() else "object"
    if _whole(start):
        return "lines"
    second = stream.readline(longest).strip()
    return "lines" if second.startswith(b"{") and _whole(second) else "object"


def _whole(text: bytes) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _lines(path: Path, stream: IO[bytes]) -> Iterator[Value | Unreadable]:
    longest = limits().max_length
    number = 0
    while line := stream.readline(longest):
        number += 1
        where = f"{path.name}:{number}"
        if len(line) >= longest and not line.endswith(b"\n"):
            size = len(line)
            while (more := stream.readline(_PIECE)) and not more.endswith(b"\n"):
                size += len(more)
            yield Unreadable(where, f"the line has more than {size:,} bytes, limit {longest:,} (max_length)")
            continue
        text = line.removeprefix(b"\xef\xbb\xbf").strip()
        if text.startswith((b"event:", b"id:", b"retry:", b":")):  # of server-sent events
            continue
        event = text.startswith(b"data:")
        text = text.removeprefix(b"data:").strip()
        if not text or text == b"[DONE]":
            continue
        try:
            yield Value(where, parse(text), event)
        except ValueError as error:
            yield Unreadable(where, f"it is not JSON: {error}")


def _document(path: Path, stream: IO[bytes]) -> Iterator[Value | Unreadable]:
    most = min(MOST_BYTES, limits().max_bytes)
    text = stream.read(most + 1)
    if len(text) > most:
        raise QdxError(
            f"{path}: one JSON object of more than {most:,} bytes: write its entries as JSON lines, which "
            "are read one by one"
        )
    try:
        yield Value(path.name, parse(text.removeprefix(b"\xef\xbb\xbf")))
    except ValueError as error:
        yield Unreadable(path.name, f"it is not JSON: {error}")


def _array(path: Path, stream: IO[bytes]) -> Iterator[Value | Unreadable]:
    """Read the entries of an array one by one; after one that cannot be read the rest is lost."""
    decoder, longest = codecs.getincrementaldecoder("utf-8-sig")("strict"), limits().max_length
    scanner = json.JSONDecoder(object_pairs_hook=_once)
    text, at, number = "", 0, -1  # −1: before the bracket
    ended = False
    while True:
        where = f"{path.name}[{max(0, number)}]"
        at = _SPACES.match(text, at).end()  # type: ignore[union-attr]
        if number < 0 and at < len(text):
            at, number = at + 1, 0
            continue
        if number > 0 and text.startswith(",", at):
            at = _SPACES.match(text, at + 1).end()  # type: ignore[union-attr]
        if number >= 0 and text.startswith("]", at):
            return
        if number >= 0 and at < len(text):
            try:
                value, end = scanner.raw_decode(text, at)
                value = _whole_text(value)
                if ended or end < len(text):  # a number that ends where the text does may go on
                    yield Value(where, value)
                    at, number = end, number + 1
                    continue
            except RecursionError:
                yield Unreadable(where, "it is nested too deeply; what follows is not read")
                return
            except ValueError as error:
                if ended or len(text) - at > longest:
                    why = f"not JSON: {error}" if ended else f"longer than {longest:,} bytes (max_length)"
                    yield Unreadable(where, f"the entry is {why}; what follows is not read")
                    return
        if ended:
            yield Unreadable(where, "the array is cut here; what follows is lost")
            return
        # Twice as much each time: an entry that is longer than what is there is parsed again from its start.
        piece = stream.read(max(_PIECE, len(text) - at))
        ended = not piece
        try:
            text, at = text[at:] + decoder.decode(piece, final=ended), 0
        except UnicodeDecodeError as error:
            yield Unreadable(where, f"byte {error.start} of it is not UTF-8; what follows is not read")
            return


def _whole_text(value: Any) -> Any:
    """Put � for halves of a surrogate pair, which JSON can escape and no tokenizer and no file can hold."""
    if isinstance(value, str):
        return value if value.isascii() else _HALVES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole_text(one) for one in value]
    if isinstance(value, dict):
        return {_whole_text(name): _whole_text(one) for name, one in value.items()}
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return made
