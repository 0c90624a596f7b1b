"""Transcripts and their replays as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.analysis.numerics import Bools, Floats, Ints
from qdx.analysis.verification.compared import NO_ROWS, Compared, marks, own_repeats, prefill
from qdx.analysis.verification.exact import pooled, repeating
from qdx.analysis.verification.likelihood import Calibration, energy, row_mean, ulp_floor
from qdx.analysis.view import ENVIRONMENT, SETTINGS, settings_of, stated
from qdx.errors import QdxError

SHARED = {"tokenizer_sha256": "tokenizer", "vocab": "vocabulary size", "sketch_seed": "seed of the sketches"}
# On a CPU the arithmetic is torch's and, of modelled kernels, this program's.
MACHINE = ("cpu", "threads")
PROCESSOR = (*MACHINE, "torch_version", "code_sha256")
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
    again_DCVRT : array (producer, config, replaying config, reference, token)
        The energies of a config's second repeat here, as if it had been the producer.
    again_floor_DCRT : array (producer, config, reference, token)
    margin_DCRT : array (producer, config, reference, token)
        Greatest logit here − the emitted token's; the first token, which prefill predicts, comes first.
    decode : Compared
        The rows behind the energies.
    prefill : Compared or None
        The references' rows, which do not depend on the transcript.
    environment_D, environment_C : tuple of text for each
    reference_keys : list of str
        SHA-256 of each reference's token ids, in the order of `references`: two are the same when these are.
    """

    producers: list[str]
    configs: list[str]
    references: list[str]
    energy_DCRT: Floats
    floor_DRT: Floats
    components: int
    again_DCVRT: Floats
    again_floor_DCRT: Floats
    margin_DCRT: Floats
    decode: Compared
    prefill: Compared | None
    environment_D: list[tuple[str, ...]]
    environment_C: list[tuple[str, ...]]
    reference_keys: list[str]

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
        committed = "commitment" in own
        names = ("captured", "token_id", "row_hash", "sketch")
        needed_of = (
            ("producers'", own, ("captured",) if committed else names),
            ("verifier's", replay, names),
        )
        for tree, found, needed in needed_of:
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
    def margin_DCR(self) -> Floats:
        """Mean margin of a transcript's tokens, in nat; 0: all are greedy here.

        The score of Token-DiFR at temperature 0 (Karvonen et al. 2025): a greedy producer publishes tokens
        only, and the verifier's own logits say how far each was from being chosen.
        """
        return row_mean(self.margin_DCRT)

    @property
    def tokens_DCR(self) -> Ints:
        """Tokens judged by their margins."""
        return np.asarray(np.isfinite(self.margin_DCRT).sum(-1), np.int64)

    @property
    def greedy_DCR(self) -> Ints:
        """Those that are the greedy choice here."""
        return np.asarray((self.margin_DCRT == 0).sum(-1), np.int64)

    @property
    def phases(self) -> list[Compared]:
        """Decode, then prefill where it was compared."""
        return [self.decode] if self.prefill is None else [self.decode, self.prefill]

    def references_C(self, configs: Sequence[str]) -> Ints:
        """Calibration references that this has of each of these configs: tokens that it judged itself."""
        honest = self.honest(self.tokens_DCR.astype(float), configs)
        energies = self.calibration(configs).references_C
        return np.asarray(np.maximum(energies, (np.nan_to_num(honest) > 0).sum(-1)), np.int64)

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

    def of_repeats(self, producer: int) -> Calibration:
        """What honest configs of this very machine make of a producer's transcripts: their second repeats.

        The right null only where the producer's environment class is this one.
        """
        return Calibration(self.again_DCVRT[producer], self.again_floor_DCRT[producer], self.components)

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
    own = _with_tokens(tree, own)

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
    shape = captured_DCQRT.shape[:2] + captured_DCQRT.shape[3:]
    energy_DCRT, components = np.full(shape, np.nan), replay.sizes["component"]
    floor_DRT = np.full(here_DRT.shape, np.nan)
    again_DCVRT, again_floor_DCRT = _again(replay, captured_DCQRT)
    if "sketch" in own:  # a file of commitments has none
        sketch_DRTK, replayed = mine("sketch", "component"), theirs("sketch", "component")
        if sketch_DRTK.shape[-1] != components:
            raise QdxError(
                f"sketches of {sketch_DRTK.shape[-1]} and {components} components cannot be compared: "
                "use one capture.components"
            )
        energy_DCRT = energy(sketch_DRTK[:, None].astype(np.float64) - replayed)
        dtypes = np.broadcast_to(own["dtype"].values, (len(producers),))
        rows = zip(sketch_DRTK, dtypes, strict=True)
        floor_DRT = np.stack([ulp_floor(row, str(dtype)) for row, dtype in rows])
    energy_DCRT = np.where(both_DCRT, energy_DCRT, np.nan)
    margin_DCRT = np.full((*shape[:3], shape[3] + 1), np.nan)
    margin_DCRT[..., 0] = _first_margins(tree, verifier, producers, references, shape[:3])
    if "top_logit" in replay and "target_logit" in replay:
        margins = theirs("top_logit", "rank")[..., 0].astype(np.float64) - theirs("target_logit")
        margin_DCRT[..., 1:] = np.where(both_DCRT, margins, np.nan)
    configs = [str(label) for label in replay["config"].values]
    return Replays(
        producers,
        configs,
        references,
        energy_DCRT,
        np.where(here_DRT, floor_DRT, np.nan),
        components,
        again_DCVRT,
        again_floor_DCRT,
        margin_DCRT,
        _decode(tree, own, replay, both_DCRT, row_mean(np.sqrt(energy_DCRT * components))),
        prefill(tree, verifier, producers, references),
        _environment(tree, own, producers),
        _environment(verifier, replay, configs),
        _reference_keys(tree, references),
    )


def _reference_keys(tree: xr.DataTree, references: list[str]) -> list[str]:
    stored = tree["references"].to_dataset().sel(reference=references)
    ids_RT = stored["token_ids"].transpose("reference", "token").values.astype("<i8")
    lengths_R = stored["length"].values
    return [sha256(ids_T[:n].tobytes()).hexdigest() for ids_T, n in zip(ids_RT, lengths_R, strict=True)]


def _again(replay: xr.Dataset, captured_DCQRT: Bools) -> tuple[Floats, Floats]:
    """Energies and floors of every config's second repeat against every config's first; NaN without one."""
    producers, configs, repeats, *rest = captured_DCQRT.shape
    again_DCVRT = np.full((producers, configs, configs, *rest), np.nan)
    floor_DCRT = np.full((producers, configs, *rest), np.nan)
    if repeats < 2:
        return again_DCVRT, floor_DCRT
    pair = replay["sketch"].isel(repeat=slice(2)).transpose(*REPLAY, "component").values.astype(np.float64)
    dtypes = np.broadcast_to(replay["dtype"].values, (configs,))
    for c in range(configs):
        floor_DCRT[:, c] = ulp_floor(pair[:, c, 1], str(dtypes[c]))
        for v in range(configs):
            both = captured_DCQRT[:, c, 1] & captured_DCQRT[:, v, 0]
            again_DCVRT[:, c, v] = np.where(both, energy(pair[:, c, 1] - pair[:, v, 0]), np.nan)
    return again_DCVRT, floor_DCRT


def _with_tokens(tree: xr.DataTree, own: xr.Dataset) -> xr.Dataset:
    """The rows with the ids of their tokens, which a file of commitments has in ``/output`` only."""
    if "token_id" in own:
        return own
    references = own["reference"].values
    length_R = tree["references"].to_dataset()["length"].sel(reference=references).values
    output = tree["output"].to_dataset()["token_id"].sel(config=own["config"].values, reference=references)
    output_CQRT = output.transpose("config", "repeat", "reference", "output_token").values
    index_RP = own["position"].values[None, :] - length_R[:, None]
    inside_RP = (index_RP >= 0) & (index_RP < output_CQRT.shape[-1])
    at = np.where(inside_RP, index_RP, 0)[None, None]
    ids = np.where(inside_RP, np.take_along_axis(output_CQRT, at, -1), -1)
    return own.assign(token_id=(("config", "repeat", "reference", "position"), ids))


def _first_margins(
    tree: xr.DataTree,
    verifier: xr.DataTree,
    producers: list[str],
    references: list[str],
    shape: tuple[int, ...],
) -> Floats:
    """Margins of the producers' first tokens, which the verifier's prefill predicts: NaN where unknown."""
    here = verifier["prefill"].to_dataset() if "prefill" in verifier.children else xr.Dataset()
    if "first_logit" not in here or "output" not in tree.children:
        return np.full(shape, np.nan)
    here = here.isel(repeat=0).sel(reference=references, producer=producers)
    own = tree["output"].to_dataset()["token_id"].isel(repeat=0, output_token=0)
    own = own.sel(config=producers, reference=references)
    fed = here["first_token_id"].transpose("producer", "config", "reference").values
    if (fed != own.transpose("config", "reference").values[:, None]).any():
        raise QdxError("the verifier judged other first tokens: give the file that was replayed")
    length = tree["references"].to_dataset()["length"].sel(reference=references)
    greatest = here["top_logit"].isel(rank=0).sel(position=length).transpose("config", "reference").values
    chosen = here["first_logit"].transpose("producer", "config", "reference").values
    return np.asarray(greatest[None].astype(np.float64) - chosen)


def _decode(
    tree: xr.DataTree, own: xr.Dataset, replay: xr.Dataset, both_DCRT: Bools, distance_DCR: Floats
) -> Compared:
    """The equality of decode rows and of their repeats."""
    order = (*REPLAY, "word")
    found = marks(own, replay)
    equal_DCR = np.zeros(both_DCRT.shape[:3], np.int64)
    if found is not None:
        mine, theirs = (data.transpose(*(d for d in order if d in data.dims)) for data in found)
        same = mine.isel(repeat=0).values[:, None] == theirs.isel(repeat=0).values
        equal_DCR = (both_DCRT & same.all(-1)).sum(-1)
    hash_DCQRT = replay["row_hash"].transpose(*REPLAY).values
    captured = replay["captured"].transpose(*REPLAY).values.astype(bool)
    reruns = [
        pooled(
            [repeating(hash_DCQRT[d, c], captured[d, c] & captured[d, c, :1]) for d in range(len(captured))]
        )
        for c in range(captured.shape[1])
    ]
    return Compared(
        "decode",
        distance_DCR,
        both_DCRT.sum(-1) if found is not None else np.zeros_like(equal_DCR),
        equal_DCR,
        own_repeats(tree, "decode", [str(label) for label in own["config"].values]),
        reruns,
        "" if found is not None else NO_ROWS,
    )


def _environment(tree: xr.DataTree, dataset: xr.Dataset, labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Environment class of each config: `ENVIRONMENT`, on a CPU its processor and threads, and `SETTINGS`.

    A setting that one side does not state makes two classes: nothing is refuted by what is not known.
    """
    stored = tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()
    found = []
    for label in labels:
        of = partial(stated, dataset, stored, label=label)
        facts = tuple(of(name) for name in ENVIRONMENT)
        on_cpu = facts[ENVIRONMENT.index("compute_capability")] in ("", "cpu", "0", "none")
        found.append((*facts, *(of(name) if on_cpu else "" for name in PROCESSOR), *settings_of(of)))
    return found


def _hardware(environment: tuple[str, ...]) -> tuple[str, ...]:
    """The part of an environment class that is the machine's: not the engine's, nor the batch."""
    names = (*ENVIRONMENT, *PROCESSOR, *SETTINGS)
    machine = ("compute_capability", "sm_count", *MACHINE)
    return tuple(value for name, value in zip(names, environment, strict=True) if name in machine)
