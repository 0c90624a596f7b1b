"""Group transcripts that are not independent into units: what a test counts and permutes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.statistics import Floats, Ints, Joined

Span = tuple[str, int, Ints]


def spans_of(tree: xr.DataTree, references: Sequence[str]) -> list[Span]:
    """Say which tokens of which document each reference is cut from, as the file states it.

    Returns
    -------
    list of (document's SHA-256, first token, ids of the content)
        An empty document where the file does not say.
    """
    stored = tree["references"].to_dataset().sel(reference=list(references))
    names = ("sha256", "token_offset", "prefix_length", "content_length")
    if any(name not in stored for name in names):
        return [("", 0, np.empty(0, np.int64))] * len(references)
    ids_RN = stored["token_ids"].transpose("reference", "token").values.astype(np.int64)
    columns = [stored[name].values for name in names]
    return [
        (str(s), int(a), ids[int(p) : int(p) + int(n)])
        for s, a, p, n, ids in zip(*columns, ids_RN, strict=True)
    ]


def units_of(keys: Sequence[str], spans: Sequence[Span], batch_size: int, groups: Sequence[int] = ()) -> Ints:
    """Number the unit that each reference belongs to.

    References are of one unit when they have the same token ids, ran in the same batch, or are cut from
    overlapping tokens of one document. Where they are cut from is stated by whoever made the file, so the
    tokens that they would share have to be the same: nobody can make one unit of all by saying so.

    Parameters
    ----------
    keys : sequence of str
        Hash of each reference's token ids, in the order in which they ran.
    spans : sequence of (document, first token, ids of the content)
    batch_size : int
        References that ran together: the first ``batch_size`` ones, then the next, and so on.
    groups : sequence of int
        Answers of one number share a seed or are one cached answer; −1 shares with nobody.

    Returns
    -------
    array (reference,)
        Units are numbered from 0 by their first reference.
    """
    joined = Joined(len(keys))
    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        joined.join(first.setdefault(key, i), i)
        if i % max(1, batch_size):
            joined.join(i - 1, i)
    first_of: dict[int, int] = {}
    for i, group in enumerate(groups):
        if group >= 0:
            joined.join(first_of.setdefault(group, i), i)
    order = sorted((i for i, span in enumerate(spans) if span[0]), key=lambda i: spans[i][:2])
    open_ones: list[int] = []  # of the document, those that reach to the one at hand
    for i in order:
        document, start, _ = spans[i]
        open_ones = [o for o in open_ones if spans[o][0] == document and _end(spans[o]) > start]
        for other in open_ones:
            if _share(spans[other], spans[i]):
                joined.join(other, i)
        open_ones.append(i)
    return joined.numbers


def _end(span: Span) -> int:
    return span[1] + len(span[2])


def _share(one: Span, two: Span) -> bool:
    """Return whether two spans of a document hold the same tokens; the second does not begin earlier."""
    first = one[2][two[1] - one[1] :]
    count = min(len(first), len(two[2]))
    return count > 0 and bool((first[:count] == two[2][:count]).all())


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


def least_of_units(score_R: Floats, unit_R: Ints) -> Floats:
    """Take each unit's least score of those that were measured: of equal answers it is the score of each.

    The greatest of several that differ would be greater by itself than an honest single one.

    Parameters
    ----------
    score_R : array (reference,)
        NaN is not measured.
    unit_R : array (reference,)

    Returns
    -------
    array (unit,)
        NaN where no member was measured.
    """
    found = np.full(int(unit_R.max(initial=-1)) + 1, np.inf)
    np.minimum.at(found, unit_R, np.where(np.isnan(score_R), np.inf, score_R))
    return np.asarray(np.where(np.isinf(found), np.nan, found))
