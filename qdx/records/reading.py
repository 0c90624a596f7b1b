"""From a file to records: which reader takes it, what it read, and what could not be read."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qdx import plugins
from qdx.errors import QdxError, nearest
from qdx.records import lines
from qdx.records.record import Record, Unreadable

# In this order they are asked whether a file is theirs: what another one would take, too, comes first.
SHIPPED = {
    "k2": "K2",
    "openrouter": "OpenRouter",
    "vllm": "Vllm",
    "llamacpp": "Llamacpp",
    "openai": "OpenAI",
    "difr": "Difr",
    "inspect": "Inspect",
    "lm_eval": "LmEval",
    "legacy": "Legacy",
}
MOST_NAMED = 12  # of what could not be read; all are counted


class RecordReader(Protocol):
    """Reads the files of one other program.

    An argument ``requests`` of its class, where it has one, is the option ``prompts.requests``.
    """

    def matches(self, head: bytes) -> bool:
        """Say whether a file is this reader's.

        Parameters
        ----------
        head : bytes
            The first mebibyte of it, and at least the first line.
        """
        ...

    def read(self, path: Path) -> Iterator[Record | Unreadable]:
        """Read every answer of a file, one after the other and never all at once.

        Yields
        ------
        Record or Unreadable
            What cannot be read is named by line and field, and the others go on.

        Raises
        ------
        QdxError
            When nothing of the file can be read.
        """
        ...


@dataclass
class Losses:
    """List what of a file gave no record, by name as far as there is room, and count all of it."""

    count: int = 0
    named: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, one: Unreadable) -> None:
        """Count one, and name it where there is room."""
        self.count += 1
        if len(self.named) < MOST_NAMED:
            self.named.append(str(one))

    def lines(self) -> list[str]:
        """Return them for a reader."""
        left = self.count - len(self.named)
        return [*self.named, *([f"… and {left:,} more that could not be read"] if left else [])]


def readers() -> dict[str, type]:
    """Return the readers that ship with qdx, in the order in which they are asked."""
    return {name: shipped(name) for name in SHIPPED}


def shipped(name: str) -> type:
    """Return a reader that ships with qdx: ``vllm`` is `qdx.records.vllm.Vllm`."""
    member: type = getattr(importlib.import_module(f"qdx.records.{name}"), SHIPPED[name])
    return member


def choose(path: Path, name: str = "", requests: str = "") -> tuple[str, RecordReader]:
    """Return the reader of a file, with its name.

    Parameters
    ----------
    path : Path
    name : str
        ``prompts.reader``; "": the one that recognises the file. Plug-ins are asked first.
    requests : str
        ``prompts.requests``.

    Raises
    ------
    QdxError
        When there is no such reader, none or two plug-ins recognise the file, or it takes no requests.
    """
    added = {one.name: one.member for one in plugins.load() if one.kind == "record_reader"}
    if name:
        if name not in SHIPPED and name not in added:
            known = [*SHIPPED, *added]
            raise QdxError(f"prompts.reader={name}: one of {', '.join(known)}{nearest(name, known)}")
        return name, _made(name, added[name] if name in added else shipped(name), requests)
    beginning = lines.head(path)
    taking = [n for n, member in added.items() if _made(n, member, "").matches(beginning)]
    if len(taking) > 1:
        raise QdxError(f"{path}: {' and '.join(taking)} both read it: choose one with prompts.reader=…")
    for one in taking or SHIPPED:
        member = added[one] if one in added else shipped(one)
        if taking or _made(one, member, "").matches(beginning):
            return one, _made(one, member, requests)
    keys = ", ".join(map(repr, list(lines.peek(beginning))[:12]))
    seen = f"its first object has the keys {keys}" if keys else "it begins with no JSON object and no archive"
    raise QdxError(
        f"{path}: no reader recognises it: {seen}; readers: {', '.join([*SHIPPED, *added])} "
        "(prompts.reader=… forces one): give a file of such records, or give the producers' sweep.nc"
    )


def _made(name: str, member: object, requests: str) -> RecordReader:
    assert callable(member)
    takes = "requests" in inspect.signature(member).parameters
    if requests and not takes:
        raise QdxError(f"prompts.requests={requests}: the reader {name} takes no requests from another file")
    made: RecordReader = member(**({"requests": requests} if takes else {}))
    return made
