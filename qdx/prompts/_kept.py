"""The references of a sweep, made once: every job and every later resume reads them from the sweep's folder.

A chat template may write the date or the time of day. References that each job made for itself would differ
from job to job, the runs could not be merged, and a resume on the next day would run everything again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from qdx import new_file
from qdx.errors import QdxError
from qdx.prompts._reference import Reference

KEPT = "references.json"
LARGEST = 1 << 30  # bytes
_IDS = ("token_ids", "continuation")
_COUNTS = ("prefix_length", "content_length", "suffix_length", "token_offset")


def key_of(node: Any, tokens: int, tokenizer_sha256: str, tokenizer: Any) -> str:
    """Return a hash of what references are made from, beside the documents: options, tokenizer, template."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    made_from = json.dumps([node, tokens, tokenizer_sha256, template], sort_keys=True, default=str)
    return hashlib.sha256(made_from.encode()).hexdigest()


def keep(references: Sequence[Reference], description: str, key: str, folder: Path) -> None:
    """Write a sweep's references, and the lines that a report prints of them, into its folder."""
    listed = [
        {name: value.tolist() if name in _IDS else value for name, value in _plain(one).items()}
        for one in references
    ]
    folder.mkdir(parents=True, exist_ok=True)
    new_file.write_text(
        folder / KEPT, json.dumps({"key": key, "description": description, "references": listed}) + "\n"
    )


def _plain(reference: Reference) -> dict[str, Any]:
    return {one.name: getattr(reference, one.name) for one in fields(Reference)}


def kept(folder: Path, key: str) -> tuple[list[Reference], str] | None:
    """Return the references that a sweep's folder keeps, with their description.

    None when it has none that were made so.

    Parameters
    ----------
    folder : Path
    key : str
        What `key_of` says now.

    Raises
    ------
    QdxError
        When the file cannot be read as what `keep` writes.
    """
    path = folder / KEPT
    if not path.is_file():
        return None
    damaged = QdxError(f"{path} is damaged: remove it, the references are then made anew")
    if path.stat().st_size > LARGEST:
        raise damaged
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if stated["key"] != key:
            return None
        return [_reference(one) for one in stated["references"]], str(stated["description"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise damaged from error


def _reference(stated: dict[str, Any]) -> Reference:
    values = dict(stated)
    for name in _IDS:
        values[name] = np.asarray(values[name], np.int32).reshape(-1)
    made = Reference(**values)
    for name, value in asdict(made).items():
        wanted = int if name in _COUNTS else np.ndarray if name in _IDS else str
        if not isinstance(value, wanted):
            raise TypeError(name)
    return made


def same_text(one: Sequence[Reference], other: Sequence[Reference]) -> bool:
    """Return whether two sets of references differ at most in what the chat template wrote around them."""
    return len(one) == len(other) and all(
        (a.name, a.source, a.sha256, a.token_offset, a.content_length)
        == (b.name, b.source, b.sha256, b.token_offset, b.content_length)
        and np.array_equal(_content(a), _content(b))
        and np.array_equal(a.continuation, b.continuation)
        for a, b in zip(one, other, strict=True)
    )


def _content(reference: Reference) -> Any:
    return reference.token_ids[reference.prefix_length : reference.prefix_length + reference.content_length]
