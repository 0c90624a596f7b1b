"""Generated texts of a reference beside each other, cut where they first differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import numpy as np

from qdx.analysis.numerics import first_difference
from qdx.analysis.view import View

LONGEST = 1500  # characters shown of a text after its first difference
SHARED = 600  # and before it


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
        # Against the first text; the first one against its nearest other, so that its difference is marked too.
        others = texts[:1] if m is not members[0] else texts[1:]
        shared = max((len(commonprefix([words, other])) for other in others), default=len(words))
        if others:
            shared = _word_start(words, shared)
        split = int(first_difference(tokens[m[0]], tokens[members[0][0]]))
        end = shared
        while end < len(words) and not (words[end].isspace() and end > shared):
            end += 1
        start = max(0, shared - SHARED)
        same = ("…" if start else "") + words[start:shared]
        rest = words[end : end + LONGEST] + ("…" if len(words) > end + LONGEST else "")
        found.append(Said([view.configs[c] for c in m], same, words[shared:end], rest, split))
    return found


def _word_start(text: str, at: int) -> int:
    while at > 0 and not text[at - 1].isspace():
        at -= 1
    return at
