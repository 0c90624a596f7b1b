"""Transcripts and their replays as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.analysis.numerics import Bools, Floats
from qdx.analysis.verification.exact import Repeating, mean_margin, repeating
from qdx.analysis.verification.likelihood import Calibration, energy, ulp_floor
from qdx.analysis.view import ENVIRONMENT, View
from qdx.errors import QdxError

SHARED = {"tokenizer_sha256": "tokenizer", "vocab": "vocabulary size", "sketch_seed": "seed of the sketches"}
PROCESSOR = ("cpu", "threads")
REPLAY = ("producer", "config", "repeat", "reference", "position")


@dataclass(frozen=True)
class Replays:
    """Every producer's free generation and every config's replay of it, at the rows that both have.

    Attributes
    ----------
    producers, configs, references : list of str
    energy_DCRT : array (producer, config, reference, token)
        ‖r‖²/k of the sketches, NaN where a row is missing.
    floor_DRT : array (producer, reference, token)
    components : int
    margin_DCR : array (producer, config, reference)
        See `exact.mean_margin`.
    compared_DCR, equal_DCR : array (producer, config, reference)
        Rows compared and rows of equal hashes.
    repeats_D, repeats_DC : Repeating of each producer; of each config's replay of each producer
    environment_D, environment_C : tuple of text for each
    """

    producers: list[str]
    configs: list[str]
    references: list[str]
    energy_DCRT: Floats
    floor_DRT: Floats
    components: int
    margin_DCR: Floats
    compared_DCR: NDArray[np.int64]
    equal_DCR: NDArray[np.int64]
    repeats_D: list[Repeating]
    repeats_DC: list[list[Repeating]]
    environment_D: list[tuple[str, ...]]
    environment_C: list[tuple[str, ...]]

    @classmethod
    def of(cls, producer_tree: xr.DataTree, verifier_tree: xr.DataTree) -> Replays:
        """Read both trees and align producers, references and positions.

        Parameters
        ----------
        producer_tree : xarray.DataTree
            The producers' sweep: ``/decode``, first repeat, are the rows behind each transcript.
        verifier_tree : xarray.DataTree
            The verifier's sweep of ``prompts=transcripts``: ``/replay`` with a dimension ``producer``.

        Raises
        ------
        QdxError
            When a group, a producer, a reference or a variable is missing, nothing overlaps, the replay was
            fed other tokens than the transcript's, or the sketches are not comparable.
        """
        own, replay = _group(producer_tree, "decode"), _group(verifier_tree, "replay")
        _one_vocabulary(producer_tree, verifier_tree)
        if "producer" not in replay.dims:
            raise QdxError(
                "the verifier's /replay has no dimension producer: run it with prompts=transcripts"
            )
        if "repeat" not in replay.dims:
            replay = replay.expand_dims("repeat")
        producers = [str(label) for label in replay["producer"].values]
        references = [str(label) for label in replay["reference"].values]
        for name, wanted in (("config", producers), ("reference", references)):
            known = [str(label) for label in own[name].values]
            lacking = [label for label in wanted if label not in known]
            if lacking:
                raise QdxError(
                    f"the producers' file lacks {name} {lacking[0]!r} that the verifier replayed; it has "
                    f"{', '.join(known[:8])}: give the file that was replayed"
                )
        shared = np.intersect1d(own["position"].values, replay["position"].values)
        if not len(shared):
            raise QdxError("transcripts and replays share no position: give the file that was replayed")
        names = ("captured", "token_id", "row_hash", "sketch")
        for tree, found, needed in (("producers'", own, names), ("verifier's", replay, names)):
            missing = [name for name in needed if name not in found]
            if missing:
                raise QdxError(
                    f"the {tree} file has no {missing[0]}: only a sweep that qdx recorded can be judged"
                )
        positions = np.isin(own["position"].values, shared)
        mine = own.sel(config=producers, reference=references).isel(position=positions)
        theirs = replay.sel(position=mine["position"].values)
        return _align(producer_tree, verifier_tree, mine, theirs, producers, references)

    @property
    def honest_C(self) -> list[int]:
        """The producer that has the label of config c; −1: none."""
        return [self.producers.index(c) if c in self.producers else -1 for c in self.configs]

    def calibration(self, configs: Sequence[str]) -> Calibration:
        """Transcripts of these configs replayed by these; NaN for one that is not both here."""
        energy_CVNT = np.full((len(configs), len(configs), *self.energy_DCRT.shape[2:]), np.nan)
        floor_CNT = np.full((len(configs), *self.floor_DRT.shape[1:]), np.nan)
        for c, label in enumerate(configs):
            if label in self.producers and label in self.configs:
                d = self.producers.index(label)
                floor_CNT[c] = self.floor_DRT[d]
                for v, other in enumerate(configs):
                    if other in self.configs:
                        energy_CVNT[c, v] = self.energy_DCRT[d, self.configs.index(other)]
        return Calibration(energy_CVNT, floor_CNT, self.components)

    def honest(self, score_DCR: Floats, configs: Sequence[str]) -> Floats:
        """A score of honest pairs, (config, reference); NaN for a config that has none."""
        null_CN = np.full((len(configs), len(self.references)), np.nan)
        for c, label in enumerate(configs):
            if label in self.producers and label in self.configs:
                null_CN[c] = score_DCR[self.producers.index(label), self.configs.index(label)]
        return null_CN


def same_machines(data: Replays, known: Replays) -> Bools:
    """Whether config c's calibration is the right null for producer d: (producer, config).

    It was made on producer d's kind of machine (compute capability and SM count, or processor and threads;
    the engine and batch are part of the claim) and replayed in the environment class in which c replays now.
    """
    found = np.zeros((len(data.producers), len(data.configs)), bool)
    for c, label in enumerate(data.configs):
        if label not in known.producers or label not in known.configs:
            continue
        made = known.environment_D[known.producers.index(label)]
        replayed = known.environment_C[known.configs.index(label)]
        for d, environment in enumerate(data.environment_D):
            found[d, c] = _hardware(environment) == _hardware(made) and data.environment_C[c] == replayed
    return found


def _group(tree: xr.DataTree, name: str) -> xr.Dataset:
    if name not in tree.children:
        raise QdxError(f"no group /{name} in the file: it is no sweep with that phase")
    return tree[name].to_dataset()


def _one_vocabulary(producer_tree: xr.DataTree, verifier_tree: xr.DataTree) -> None:
    """Refuse trees whose tokens or sketches mean different things, where they say so."""
    for name, noun in SHARED.items():
        found = []
        for tree in (producer_tree, verifier_tree):
            stored = tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()
            found.append({str(value) for value in stored[name].values} if name in stored else set())
        if all(found) and len(found[0] | found[1]) > 1:
            of = [", ".join(sorted(values)) for values in found]
            raise QdxError(
                f"{noun} differs: {of[0]} of the producers, {of[1]} of the verifier: "
                "replay with the producers' model and capture settings"
            )


def _align(
    tree: xr.DataTree,
    verifier: xr.DataTree,
    own: xr.Dataset,
    replay: xr.Dataset,
    producers: list[str],
    references: list[str],
) -> Replays:
    def mine(name: str, *more: str) -> NDArray[Any]:
        data = own[name].transpose("repeat", "config", "reference", "position", *more)
        return np.asarray(data.values[0])

    def theirs(name: str, *more: str) -> NDArray[Any]:
        first = replay[name].isel(repeat=0).transpose("producer", "config", "reference", "position", *more)
        return np.asarray(first.values)

    here_DRT = mine("captured").astype(bool)
    captured_DCQRT = replay["captured"].transpose(*REPLAY).values.astype(bool)
    both_DCRT = here_DRT[:, None] & captured_DCQRT[:, :, 0]
    tokens = theirs("token_id")
    wrong = both_DCRT & (tokens != mine("token_id")[:, None])
    if wrong.any():
        d, c, r, t = (int(i[0]) for i in np.nonzero(wrong))
        raise QdxError(
            f"the replay of producer {producers[d]!r} by {replay['config'].values[c]!s}, {references[r]}, "
            f"fed other tokens than the transcript has (position {own['position'].values[t]}): "
            "give the file that was replayed"
        )
    sketch_DRTK, replayed = mine("sketch", "component"), theirs("sketch", "component")
    components = sketch_DRTK.shape[-1]
    if replayed.shape[-1] != components:
        raise QdxError(
            f"sketches of {components} and {replayed.shape[-1]} components cannot be compared: "
            "use one capture.components"
        )
    energy_DCRT = energy(sketch_DRTK[:, None].astype(np.float64) - replayed)
    dtypes = np.broadcast_to(own["dtype"].values, (len(producers),))
    floor_DRT = np.stack(
        [ulp_floor(rows, str(dtype)) for rows, dtype in zip(sketch_DRTK, dtypes, strict=True)]
    )
    hash_DRT, hash_DCQRT = mine("row_hash"), replay["row_hash"].transpose(*REPLAY).values
    compared = both_DCRT.sum(-1)
    equal = (both_DCRT & (hash_DRT[:, None] == hash_DCQRT[:, :, 0])).sum(-1)
    margin = np.full(compared.shape, np.nan)
    if "top_logit" in replay and "target_logit" in replay:
        greatest = theirs("top_logit", "rank")[..., 0]
        margin = mean_margin(np.where(both_DCRT, greatest, np.nan), theirs("target_logit"))
    reruns_DC = [
        [
            repeating(hash_DCQRT[d, c], captured_DCQRT[d, c] & captured_DCQRT[d, c, :1])
            for c in range(compared.shape[1])
        ]
        for d in range(len(producers))
    ]
    return Replays(
        producers,
        [str(label) for label in replay["config"].values],
        references,
        np.where(both_DCRT, energy_DCRT, np.nan),
        np.where(here_DRT, floor_DRT, np.nan),
        components,
        margin,
        compared,
        equal,
        _reruns(tree, producers),
        reruns_DC,
        _environment(tree, own, producers),
        _environment(verifier, replay, [str(label) for label in replay["config"].values]),
    )


def _reruns(tree: xr.DataTree, producers: list[str]) -> list[Repeating]:
    """Repeats of each producer's free generation, compared up to the first differing token."""
    view = View(tree)
    hashes = view.hashes("decode")
    found = []
    for label in producers:
        c = view.configs.index(label)
        rows = [view.comparable("decode", (c, 0), (c, q)) for q in range(hashes.shape[1])]
        found.append(repeating(hashes[c], _bools(rows)))
    return found


def _bools(rows: Sequence[Bools]) -> Bools:
    return np.stack(rows).astype(bool)


def _environment(tree: xr.DataTree, dataset: xr.Dataset, labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Environment class of each config: `ENVIRONMENT`, and on a CPU the processor and its threads."""
    stored = tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()

    def of(name: str, label: str) -> str:
        if name in dataset.coords:
            column = dataset[name]
            return str(column.sel(config=label).values if "config" in column.dims else column.values)
        return str(stored[name].sel(config=label).values) if name in stored else ""

    found = []
    for label in labels:
        facts = tuple(of(name, label) for name in ENVIRONMENT)
        on_cpu = facts[ENVIRONMENT.index("compute_capability")] in ("", "cpu", "0", "none")
        found.append((*facts, *(of(name, label) if on_cpu else "" for name in PROCESSOR)))
    return found


def _hardware(environment: tuple[str, ...]) -> tuple[str, ...]:
    """The part of an environment class that is the machine's: not the engine's, nor the batch."""
    names = (*ENVIRONMENT, *PROCESSOR)
    machine = ("compute_capability", "sm_count", *PROCESSOR)
    return tuple(value for name, value in zip(names, environment, strict=True) if name in machine)
