"""What a file of other programs' records says of its transcripts, beside their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from qdx.errors import printable
from qdx.statistics import Ints
from qdx.verification.units import Span

MOST_NOTES, LONGEST_NOTE = 60, 400  # lines of such a file, and characters of each, that are shown


@dataclass(frozen=True)
class Recorded:
    """What records of another program say of a producer, and what had to be taken for granted.

    Attributes
    ----------
    assumed, asked : str
        Sampling parameters that are not stated: those that were taken to do nothing, and those that nobody
        can assume.
    other_prompts : int
        Transcripts whose record states another number of prompt tokens than were replayed.
    example : (int, int)
        Stated and replayed number of the first of them.
    from_text : int
        Transcripts whose ids were made from text.
    """

    assumed: str = ""
    asked: str = ""
    other_prompts: int = 0
    example: tuple[int, int] = (0, 0)
    from_text: int = 0


def shared_groups(tree: xr.DataTree, producers: list[str], references: list[str]) -> list[tuple[int, ...]]:
    """Groups of each producer's transcripts that share a seed or are one cached answer; −1: no transcript."""
    group = tree["stated"].to_dataset()["group"].sel(config=producers, reference=references)
    return [tuple(map(int, row)) for row in group.transpose("config", "reference").values]


def notes_of(tree: xr.DataTree) -> list[str]:
    """Return how the records were read, in lines that act on no terminal."""
    lines = [printable(line)[:LONGEST_NOTE] for line in str(tree.attrs.get("notes", "")).split("\n") if line]
    return lines[:MOST_NOTES]


def there_only(keys: Sequence[str], spans: Sequence[Span], emitted_R: Ints) -> tuple[list[str], list[Span]]:
    """Keys and spans of a producer's transcripts; a reference without one is a unit of nobody."""
    nobody: Span = ("", 0, np.empty(0, np.int64))
    return (
        [key if n else f"no transcript {i}" for i, (key, n) in enumerate(zip(keys, emitted_R, strict=True))],
        [span if n else nobody for span, n in zip(spans, emitted_R, strict=True)],
    )


def record_of(tree: xr.DataTree, stored: xr.Dataset, label: str) -> Recorded:
    """Return what the file says of a producer; `stored` is its ``/provenance``."""
    about = tree["stated"].to_dataset().sel(config=label)
    length = tree["references"].to_dataset()["length"].sel(reference=about["reference"]).values
    said, here = about["prompt_tokens"].values, about["group"].values >= 0
    other = here & (said >= 0) & (said != length)
    first = int(np.argmax(other)) if other.any() else 0
    how = about["answer_how"].values.astype(str)
    return Recorded(
        stated_text(stored, "assumed", label),
        stated_text(stored, "asked", label),
        int(other.sum()),
        (int(said[first]), int(length[first])),
        int((here & np.isin(how, ("text", "joined"))).sum()),
    )


def stated_text(stored: xr.Dataset, name: str, label: str) -> str:
    """Return a fact of ``/provenance``; "" where the file does not state it."""
    return str(stored[name].sel(config=label).values) if name in stored else ""
