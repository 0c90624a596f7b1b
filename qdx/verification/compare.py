"""Producers' rows beside the verifier's, phase by phase: how many are equal, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.analysis.view import View, masks
from qdx.errors import QdxError
from qdx.statistics import Bools, Floats, Ints
from qdx.verification.exact import Repeating, repeating
from qdx.verification.likelihood import row_mean

ORDER = ("config", "repeat", "reference", "position")
NO_ROWS = "the verifier kept no full rows to make commitments of (capture=full, and run.nc beside the report)"
OF_RECORDS = "the records of other programs have no rows"


@dataclass(frozen=True)
class Compared:
    """One phase of every producer and every config.

    Attributes
    ----------
    phase : str
        The producers' name of it: prefill, or decode (the verifier's replay).
    distance_DCR : array (producer, config, reference)
        Mean over content rows of the distance of two sketches, ‖sketch − sketch‖: an estimate of the L2
        distance of the two rows' centred logits. NaN where there is no sketch.
    compared_DCR, equal_DCR : array (producer, config, reference)
        Rows compared, and those that are bit-equal (by hash or commitment).
    repeats_D, repeats_C : list of Repeating
        Of the producers' own repeats, and of each config's own here.
    missing : str
        Why no rows can be compared for equality; empty when they can.
    content_DCR, content_equal_DCR : array (producer, config, reference)
        The same of content rows alone. A template row is the same for every prompt of one length, so that it
        says nothing about whose prompt it was computed from.
    expected_DCR : array (producer, config, reference)
        Content rows that the verifier captured: the producer's have to be there, all of them.
    reruns_DC : array (producer, config)
        References of this producer that the config reran here.
    """

    phase: str
    distance_DCR: Floats
    compared_DCR: Ints
    equal_DCR: Ints
    repeats_D: list[Repeating]
    repeats_C: list[Repeating]
    missing: str
    content_DCR: Ints
    content_equal_DCR: Ints
    expected_DCR: Ints
    reruns_DC: Ints

    @property
    def covered_DC(self) -> Bools:
        """Return whether the producer published every row that the verifier has: (producer, config)."""
        return np.asarray((self.content_DCR == self.expected_DCR).all(-1) & self.expected_DCR.any(-1))

    @property
    def all_equal_DC(self) -> Bools:
        """Return whether every row that the verifier has is published and bit-equal, also the template's."""
        whole = (self.equal_DCR == self.compared_DCR).all(-1)
        return np.asarray(self.covered_DC & whole & (self.content_equal_DCR == self.expected_DCR).all(-1))


def marks(own: xr.Dataset, replay: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray] | None:
    """Return both sides' commitments, or else their row hashes, with a trailing axis ``word``.

    A file with commitments is judged by these alone: a hash that stands beside them could be copied from
    anywhere, and binds nothing.

    Raises
    ------
    QdxError
        For commitments of another length than those here.
    """
    name = "commitment" if "commitment" in own else "row_hash"
    if name not in own or name not in replay:
        return None
    sizes = [side[name].sizes.get("byte", 8) for side in (own, replay)]
    if sizes[0] != sizes[1]:
        raise QdxError(f"commitments of {sizes[0]} bytes, here {sizes[1]}: it was changed, or made by others")
    return _words(own[name]), _words(replay[name])


def _words(data: xr.DataArray) -> xr.DataArray:
    if "byte" not in data.dims:
        return data.astype(np.uint64).expand_dims("word", -1)
    data = data.transpose(..., "byte")
    words = np.ascontiguousarray(data.values).view(np.uint64)
    return data.isel(byte=slice(words.shape[-1])).rename(byte="word").copy(data=words)


def own_repeats(tree: xr.DataTree, phase: str, labels: list[str]) -> list[Repeating]:
    """Return how a sweep's configs repeat in a phase: by their hashes, or as a commitments file states it."""
    data = tree[phase].to_dataset()
    if "row_hash" not in data:
        stated = data.sel(config=labels)
        pairs = zip(stated["reruns"].values, stated["reruns_equal"].values, strict=True)
        return [Repeating(int(n), min(int(n), int(k))) for n, k in pairs]
    view = View(tree)
    hashes, found = view.hashes(phase), []
    for label in labels:
        c = view.configs.index(label)
        rows = [view.comparable(phase, (c, 0), (c, q)) for q in range(hashes.shape[1])]
        found.append(repeating(hashes[c], np.stack(rows).astype(bool)))
    return found


def prefill(
    producer_tree: xr.DataTree, verifier_tree: xr.DataTree, producers: list[str], references: list[str]
) -> Compared | None:
    """Compare prefill rows, first repeat of each; None where either side has none."""
    if any("prefill" not in tree.children for tree in (producer_tree, verifier_tree)):
        return None
    own, here = (tree["prefill"].to_dataset() for tree in (producer_tree, verifier_tree))
    positions = np.intersect1d(own["position"].values, here["position"].values)
    whole = here.sel(reference=references)
    expected_CR = (_first(whole["captured"]).astype(bool) & _content(whole)[None]).sum(-1)
    own = own.sel(config=producers, reference=references, position=positions)
    here = whole.sel(position=positions)
    configs = [str(label) for label in here["config"].values]
    both_DCRP = _first(own["captured"]).astype(bool)[:, None] & _first(here["captured"]).astype(bool)[None]
    shape = (len(producers), len(configs), len(references))
    found, equal_DCRP = marks(own, here), np.zeros((*shape, len(positions)), bool)
    if found is not None:
        same = (_first(found[0], "word")[:, None] == _first(found[1], "word")[None]).all(-1)
        equal_DCRP = both_DCRP & same
    # The verifier's own regions: the producer's would let her call a template row content.
    content = _content(here) & both_DCRP
    distance = np.full(shape, np.nan)
    if "sketch" in own and "sketch" in here:
        mine, theirs = (_first(side["sketch"], "component").astype(np.float64) for side in (own, here))
        difference = mine[:, None] - theirs[None]
        norm = np.sqrt(np.einsum("...k,...k->...", difference, difference))
        distance = row_mean(np.where(content, norm, np.nan))
    comparable = found is not None
    repeats_C = own_repeats(verifier_tree, "prefill", configs)
    return Compared(
        "prefill",
        distance,
        both_DCRP.sum(-1) if comparable else np.zeros(shape, np.int64),
        equal_DCRP.sum(-1),
        own_repeats(producer_tree, "prefill", producers),
        repeats_C,
        "" if comparable else NO_ROWS,
        content_DCR=content.sum(-1) if comparable else np.zeros(shape, np.int64),
        content_equal_DCR=(content & equal_DCRP).sum(-1),
        expected_DCR=np.broadcast_to(expected_CR[None], shape),
        reruns_DC=np.broadcast_to([r.reruns for r in repeats_C], shape[:2]),
    )


def _first(data: xr.DataArray, *more: str) -> NDArray[Any]:
    """The first repeat, (config, reference, position, …)."""
    return np.asarray(data.isel(repeat=0).transpose("config", "reference", "position", *more).values)


def _content(data: xr.Dataset) -> Bools:
    """Content rows, (reference, position)."""
    region = np.asarray(data["region"].transpose("reference", "position").values, dtype=str)
    return masks(region)["content"]
