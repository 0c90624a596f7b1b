"""Generated texts of a reference beside each other, cut where they first differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdx.analysis.view import View
from qdx.statistics import first_difference

LONGEST = 1500  # characters shown of a text after its first difference
SHARED = 600  # and before it
LONGEST_WORD = 30


@dataclass(frozen=True)
class Said:
    """One text and who says it.

    Attributes
    ----------
    configs : sequence of str
    same, mark, rest : str
        What it shares with the other texts; its first differing word; the remainder.
    token : int
        Index of the first output token that differs from the first text's; -1: none, or it is the first.
    """

    configs: Sequence[str]
    same: str
    mark: str
    rest: str
    token: int


def side_by_side(view: View, reference: int) -> list[Said]:
    """Group configs by their generated tokens (first repeat); the first group is the first config's."""
    outputs = view.outputs()
    if outputs is None:
        return []
    tokens = outputs[:, 0, reference]
    text = view.group("output")["text"].transpose("config", "repeat", "reference").values[:, 0, reference]
    groups: dict[bytes, list[int]] = {}
    for c in range(len(tokens)):
        groups.setdefault(np.ascontiguousarray(tokens[c]).tobytes(), []).append(c)
    members = list(groups.values())
    texts = [str(text[m[0]]) for m in members]
    found = []
    for m, words in zip(members, texts, strict=True):
        # Against the first text; the first one against all others: its earliest difference is marked.
        others = texts[:1] if m is not members[0] else texts[1:]
        shared = end = 0
        if others:
            shared = _word_start(words, min(_shared(words, other) for other in others))
            end = _word_end(words, shared)
        split = int(first_difference(tokens[m[0]], tokens[members[0][0]]))
        start = max(0, shared - SHARED)
        same = ("…" if start else "") + words[start:shared]
        rest = words[end : end + LONGEST] + ("…" if len(words) > end + LONGEST else "")
        found.append(Said([view.names[c] for c in m], same, words[shared:end], rest, split))
    return found


def _shared(a: str, b: str) -> int:
    """Characters that two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _word_start(text: str, at: int) -> int:
    """Return where the word at `at` begins; `at` itself in a script that has no spaces."""
    start = at
    while start > 0 and not text[start - 1].isspace() and at - start < LONGEST_WORD:
        start -= 1
    return start if start == 0 or text[start - 1].isspace() else at


def _word_end(text: str, start: int) -> int:
    end = start
    while end < len(text) and end - start < LONGEST_WORD and not (text[end].isspace() and end > start):
        end += 1
    return end
