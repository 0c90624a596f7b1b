"""Group transcripts that are not independent into units: what a test counts and permutes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.numerics import Floats, Ints

Span = tuple[str, int, int]


def spans_of(tree: xr.DataTree, references: Sequence[str]) -> list[Span]:
    """Say which tokens of which document each reference is cut from, as the file states it.

    Returns
    -------
    list of (document's SHA-256, first token, token after the last)
        An empty document where the file does not say.
    """
    stored = tree["references"].to_dataset().sel(reference=list(references))
    names = ("sha256", "token_offset", "content_length")
    if any(name not in stored for name in names):
        return [("", 0, 0)] * len(references)
    columns = [stored[name].values for name in names]
    return [(str(s), int(a), int(a) + int(n)) for s, a, n in zip(*columns, strict=True)]


def units_of(keys: Sequence[str], spans: Sequence[Span], batch_size: int) -> Ints:
    """Number the unit that each reference belongs to.

    References are of one unit when they have the same token ids, ran in the same batch, or are cut from
    overlapping tokens of one document.

    Parameters
    ----------
    keys : sequence of str
        Hash of each reference's token ids, in the order in which they ran.
    spans : sequence of (document, first token, token after the last)
    batch_size : int
        References that ran together: the first ``batch_size`` ones, then the next, and so on.

    Returns
    -------
    array (reference,)
        Units are numbered from 0 by their first reference.
    """
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = sorted((root(i), root(j)))
        parent[b] = a

    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        join(first.setdefault(key, i), i)
        if i % max(1, batch_size):
            join(i - 1, i)
    order = sorted((i for i, span in enumerate(spans) if span[0]), key=lambda i: spans[i])
    furthest = -1  # of the document, the reference that reaches furthest so far
    for i in order:
        if furthest >= 0 and spans[i][0] == spans[furthest][0] and spans[i][1] < spans[furthest][2]:
            join(furthest, i)
        same = furthest >= 0 and spans[i][0] == spans[furthest][0]
        if not same or spans[i][2] > spans[furthest][2]:
            furthest = i
    roots = [root(i) for i in range(len(keys))]
    number = {r: n for n, r in enumerate(dict.fromkeys(roots))}
    return np.array([number[r] for r in roots], np.int64)


def greatest_of_units(score_R: Floats, unit_R: Ints) -> tuple[Floats, Ints]:
    """Take each unit's greatest score.

    Parameters
    ----------
    score_R : array (reference, …)
        NaN is not measured.
    unit_R : array (reference,)

    Returns
    -------
    score_U : array (unit, …)
        NaN where a member was not measured: a maximum over fewer members would be smaller by itself.
    size_U : array (unit,)
        Members of each unit.
    """
    units = int(unit_R.max(initial=-1)) + 1
    score = np.asarray(score_R, np.float64)
    found = np.full((units, *score.shape[1:]), -np.inf)
    np.maximum.at(found, unit_R, np.where(np.isnan(score), np.inf, score))
    missing = np.zeros(found.shape, bool)
    np.logical_or.at(missing, unit_R, np.isnan(score))
    return np.where(missing, np.nan, found), np.bincount(unit_R, minlength=units)
