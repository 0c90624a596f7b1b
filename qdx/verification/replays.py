"""Read transcripts and their replays, and align them as plain arrays.

A transcript of T tokens has T rows. The first token is predicted by the last row of prefill, which both sides
store in ``/prefill``; the others by the T − 1 rows of ``/decode`` (the producer's) and of ``/replay`` (the
verifier's). Margins, ties, bit-equality and choices have all T, prefill's first. Energies have the T − 1.

As much as possible is the verifier's own. The emitted tokens are read from the transcript and have to be
those that the replay was fed; margins, ties and the floor under an energy come from the verifier's rows
alone. Only energies and bit-equality read the producer's rows, where he published them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.analysis.view import stated
from qdx.backends.sampling import plain_greedy
from qdx.capture.densities import Drawn
from qdx.dataset.lacking import versions
from qdx.dataset.layout import RECORDS
from qdx.errors import QdxError
from qdx.statistics import Bools, Floats, Ints
from qdx.verification.compare import Compared, marks, prefill
from qdx.verification.environment import facts_of
from qdx.verification.environment_class import class_of
from qdx.verification.likelihood import Calibration, row_mean
from qdx.verification.listed import Listed, first_ones
from qdx.verification.processed import temperature_of
from qdx.verification.recorded import (
    Recorded,
    notes_of,
    record_of,
    shared_groups,
    stated_text,
    there_only,
)
from qdx.verification.replayed_rows import (
    REPLAY,
    First,
    choices,
    decode_rows,
    energies_of,
    equal_rows,
    margins,
    on_common_path,
    own_rows,
    transcripts,
)
from qdx.verification.units import spans_of, units_of

SHARED = {"tokenizer_sha256": "tokenizer", "vocab": "vocabulary size", "sketch_seed": "seed of the sketches"}
MARGIN_MOST = 1.0  # nats that one drawn token counts for at most: one outlier is not a pattern


@dataclass(frozen=True)
class Replays:
    """Every producer's free generation and every config's replay of it.

    Energies and bit-equality are of rows that both sides have; margins, ties and choices are the verifier's
    own, at every emitted token, whatever rows the producer published.

    Attributes
    ----------
    producers, configs, references : list of str
    reference_keys : list of str
        SHA-256 of each reference's token ids: two references are the same when these are.
    units_DR : array (producer, reference)
        Number of the unit that a transcript belongs to, see `units.units_of`.
    energy_DCRT : array (producer, config, reference, token)
        ‖r‖²/k of the sketches, NaN where a row is missing.
    floor_DRT : array (producer, reference, token)
        See `likelihood.ulp_floor`; of the verifier's own rows, which a producer cannot scale.
    components : int
    between_DCRMM : array (producer, config, reference, member, member)
        Mean energies between the members of a config: 0 is the producer, 1 … Q are the repeats here. Rows
        count up to the one that predicts the first token in which two members differ.
    beside_DCRMV : array (producer, config, reference, member, config)
        Mean energies of those members against every config's first repeat.
    margin_DCRT : array (producer, config, reference, token)
        Greatest logit here − the emitted token's; the first token, which prefill predicts, comes first. NaN
        where there is no token.
    tied_DCRT : array (producer, config, reference, token)
        Whether several logits here are the greatest.
    same_DCRT : array (producer, config, reference, token)
        Whether the producer published the row that predicts the token and it is bit-equal to the one here.
    choice_DCRMT : array (producer, config, reference, member, token)
        Emitted token, then the greatest logit's id in every repeat here; −1 where unknown.
    emitted_DR : array (producer, reference)
        Tokens of each transcript.
    decode : Compared
        The rows behind the energies.
    prefill : Compared or None
        The references' rows, which do not depend on the transcript.
    class_D, class_C : list of dict
        Environment classes, see `environment_class.class_of`.
    record_D, record_C : list of dict
        Every other fact that the records state, see `environment.facts_of`.
    processes_C : list of int
        Processes that the repeats of each config here ran in; 0 where the file does not say.
    repeats : int
        Of each config here.
    sampling_D : list of str
        What each producer states of its decoding; "" where it does not.
    schema_D : list of int
        Schema version that each producer's run was written with; 0 where the file does not say.
    records_D : list of Recorded or None
        What is known of a producer's records of another program; None of a file that qdx recorded.
    notes : list of str
        How such records were read, and what of them was not.
    drawn : Drawn or None
        What the rows here say of tokens that were drawn, (producer, config, reference, token); the first
        token comes first, and NaN stands where nothing was drawn. None where no record states sampling.
    groups_D : list of tuple of int
        Of each producer of records, the group of each transcript: one seed or one cached answer; −1: none.
    seeded_DCRT : array (producer, config, reference, token), or None
        Margin of a drawn token after the noise that its request's seed makes; NaN where it is not known.
    other_DCRTA, most_DCRTK : array (producer, config, reference, token, …), or None
        What other sampling parameters give drawn tokens, see `parameters.Hypotheses`.
    listed : Listed or None
        Log-probabilities that the producers list of each token, and the rows' here. None where none are read.
    formats_C : list of str
        Weight format of each config here; "" where the file does not state it.
    """

    producers: list[str]
    configs: list[str]
    references: list[str]
    reference_keys: list[str]
    units_DR: Ints
    energy_DCRT: Floats
    floor_DRT: Floats
    components: int
    between_DCRMM: Floats
    beside_DCRMV: Floats
    margin_DCRT: Floats
    tied_DCRT: Bools
    same_DCRT: Bools
    choice_DCRMT: Ints
    emitted_DR: Ints
    decode: Compared
    prefill: Compared | None
    class_D: list[dict[str, str]]
    class_C: list[dict[str, str]]
    record_D: list[dict[str, str]]
    record_C: list[dict[str, str]]
    processes_C: list[int]
    repeats: int
    sampling_D: list[str]
    schema_D: list[int]
    records_D: list[Recorded | None]
    notes: list[str]
    drawn: Drawn | None = None
    groups_D: list[tuple[int, ...]] = field(default_factory=list)
    seeded_DCRT: Floats | None = None
    other_DCRTA: Floats | None = None
    most_DCRTK: Floats | None = None
    listed: Listed | None = None
    formats_C: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, producer_tree: xr.DataTree, verifier_tree: xr.DataTree, *, lists: bool = False) -> Replays:
        """Read both trees and align producers, references and positions.

        Parameters
        ----------
        producer_tree : xarray.DataTree
            The producers' sweep: ``/decode``, first repeat, are the rows behind each transcript.
        verifier_tree : xarray.DataTree
            The verifier's sweep of ``prompts=transcripts``: ``/replay`` with a dimension ``producer``.
        lists : bool
            Whether the greatest log-probabilities of each token are read: beside records of other programs,
            which always have theirs read.

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
        recorded = str(producer_tree.attrs.get("kind", "")) == RECORDS
        if not recorded and not len(np.intersect1d(own["position"].values, replay["position"].values)):
            raise QdxError("transcripts and replays share no position: give the file that was replayed")
        committed = "commitment" in own
        names = ("captured", "token_id", "row_hash", "sketch")
        needed_of = (
            ("producers'", own, ("captured",) if committed or recorded else names),
            ("verifier's", replay, names),
        )
        for tree, found, needed in needed_of:
            missing = [name for name in needed if name not in found]
            if missing:
                raise QdxError(
                    f"the {tree} file has no {missing[0]}: only a sweep that qdx recorded can be judged"
                )
        # The verifier's positions are those of every emitted token; the producer's rows are fitted to them.
        kept = [name for name in (*names, "commitment") if name in own]
        mine = own[kept].drop_vars("region", errors="ignore").sel(config=producers, reference=references)
        mine = mine.reindex(position=replay["position"].values, fill_value=_FILL)
        aligned = _align(producer_tree, verifier_tree, mine, replay, producers, references)
        if not (recorded or lists):
            return aligned
        emitted = transcripts(producer_tree, producers, references)
        alike = (producer_tree, verifier_tree, producers, aligned.configs, references, emitted)
        pairs = zip(aligned.records_D, aligned.sampling_D, strict=True)
        cold_DR = np.stack([temperature_of(r, bool(plain_greedy(s)), len(references)) for r, s in pairs])
        listed = Listed.of(*alike, recorded=recorded, temperature_DR=cold_DR)
        return replace(aligned, listed=listed)

    @property
    def there_DR(self) -> Bools:
        """Transcripts that can be judged: there, and of records answers to the prompt that was asked."""
        there = self.emitted_DR > 0
        for d, record in enumerate(self.records_D):
            if record is not None:
                there[d] &= ~record.other_R
        return np.asarray(there, bool)

    @property
    def margin_DCR(self) -> Floats:
        """Mean margin of a transcript's tokens, in nat; 0: all are greedy here.

        The score of Token-DiFR at temperature 0 (Karvonen et al. 2025): a greedy producer publishes tokens
        only, and the verifier's own logits say how far each was from being chosen.
        """
        return row_mean(self.margin_DCRT)

    @property
    def tokens_DCR(self) -> Ints:
        """Tokens judged by their margins: every emitted one that was replayed."""
        return np.asarray(np.isfinite(self.margin_DCRT).sum(-1), np.int64)

    @property
    def greedy_DCR(self) -> Ints:
        """Those that are the greedy choice here; a tie with the greatest logit passes."""
        return np.asarray((self.margin_DCRT == 0).sum(-1), np.int64)

    @property
    def ties_DCR(self) -> Ints:
        """Those among the greedy ones that share the greatest logit with another id."""
        return np.asarray(((self.margin_DCRT == 0) & self.tied_DCRT).sum(-1), np.int64)

    @property
    def misfit_DCRT(self) -> Bools:
        """Tokens that are not greedy on a row that is bit-equal to the producer's.

        Of a plain greedy producer there is none: the row that it published says another token.
        """
        return np.asarray(self.same_DCRT & (self.margin_DCRT > 0))

    @property
    def phases(self) -> list[Compared]:
        """Decode, then prefill where it was compared."""
        return [self.decode] if self.prefill is None else [self.decode, self.prefill]

    @property
    def honest_C(self) -> list[int]:
        """The producer that has the label of config c; −1: none."""
        return [self.producers.index(c) if c in self.producers else -1 for c in self.configs]

    def own_processes(self, config: int) -> bool:
        """Return whether every repeat of a config here ran in a process of its own."""
        return self.processes_C[config] >= self.repeats > 1

    def text_scores(self, most: int | None = None, *, whole: bool = False, allowed: float = 0.0) -> Floats:
        """Score each text by its tokens that are not greedy here, ties excepted.

        Equal numbers of them are ordered by the mean margin m: the score is their number + m/(1 + m).

        Parameters
        ----------
        most : int, optional
            Tokens that count, from the first; a shorter text counts for what it has.
        whole : bool
            NaN for a text that is shorter than `most`: fewer tokens give smaller scores by themselves, which
            known transcripts must not have beside longer judged ones.
        allowed : float
            Margin up to which a token is an honest kernel's greedy choice, nat; see `kernel_noise`.

        Returns
        -------
        array (producer, config, reference)
        """
        # Tokens of references of unequal lengths stand at positions of their own.
        margin_DCRT = np.maximum(first_ones(self.margin_DCRT)[..., :most] - allowed, 0.0)
        wrong = np.nansum((margin_DCRT > 0).astype(float), -1)
        mean_DCR = row_mean(margin_DCRT)
        margin = np.where(np.isfinite(mean_DCR), mean_DCR, 0.0)
        score = wrong + margin / (1 + margin)
        least = most if whole and most is not None else 1
        known = (self.tokens_DCR == self.emitted_DR[:, None]) & (self.emitted_DR[:, None] >= least)
        return np.asarray(np.where(known, score, np.nan))

    def seed_scores(self, most: int | None = None, *, whole: bool = False, allowed: float = 0.0) -> Floats:
        """Score drawn tokens by their margins after the noise of the seed, each cut off at `MARGIN_MOST`.

        `most`, `whole` and `allowed` as in `text_scores`: a sum over fewer tokens is smaller by itself.

        Returns
        -------
        array (producer, config, reference)
            Nat; NaN where the noise of an answer is not known.
        """
        assert self.seeded_DCRT is not None
        margin_DCRT = np.maximum(first_ones(self.seeded_DCRT)[..., :most] - allowed, 0.0)
        counts_DCR = np.isfinite(self.seeded_DCRT).sum(-1)
        least = most if whole and most is not None else 1
        known = (counts_DCR == self.emitted_DR[:, None]) & (self.emitted_DR[:, None] >= least)
        score = np.nansum(np.minimum(margin_DCRT, MARGIN_MOST), -1)
        return np.asarray(np.where(known, score, np.nan))

    def text_members(self, d: int, c: int) -> Floats:
        """Score the producer's text beside this machine's own choices on it: (reference, member).

        A member's score is the number of its tokens that another member did not choose, over all others, up
        to and including the first token in which any two differ: until then all members chose one path,
        afterwards it is the producer's alone. The rule is the same for every member, so that an honest
        producer's place among the repeats is uniform.
        """
        choice_RMT = self.choice_DCRMT[d, c]
        counted = (choice_RMT >= 0).all(1) & on_common_path(choice_RMT)
        differ = choice_RMT[:, :, None] != choice_RMT[:, None]
        score = (differ & counted[:, None, None]).sum((2, 3)).astype(float)
        known = (self.tokens_DCR[d, c] == self.emitted_DR[d]) & (self.emitted_DR[d] > 0)
        score[~known] = np.nan
        return np.asarray(score)

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


def key_of(token_ids: NDArray[Any]) -> str:
    """SHA-256 of a reference's token ids: what makes two references the same."""
    return hashlib.sha256(np.ascontiguousarray(token_ids, "<i4").tobytes()).hexdigest()


_FILL = {"captured": False, "token_id": -1, "row_hash": 0, "commitment": 0}


def _group(tree: xr.DataTree, name: str) -> xr.Dataset:
    if name not in tree.children:
        raise QdxError(f"no group /{name} in the file: it is not a sweep with that phase")
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
    """Align what `Replays.of` has checked; `own` has the producers' rows at the replay's positions."""
    configs = [str(label) for label in replay["config"].values]
    here_DRT = own_rows(own, "captured").astype(bool)
    captured_DCQRT = replay["captured"].transpose(*REPLAY).values.astype(bool)
    both_DCRT = here_DRT[:, None] & captured_DCQRT[:, :, 0]
    output_DRT = _emitted(tree, own, producers, references)
    _same_tokens(own, replay, output_DRT, captured_DCQRT[:, :, 0], producers)
    first = First.of(tree, verifier, producers, configs, references, replay.sizes["repeat"])
    choice_DCRMT = np.concatenate(
        [first.choice_DCRM[..., None], choices(replay, captured_DCQRT, output_DRT)], -1
    )
    energies = energies_of(own, replay, here_DRT, captured_DCQRT, choice_DCRMT)
    found = marks(own, replay)
    equal_DCRT = equal_rows(found, both_DCRT)
    margin_DCRT, tied_DCRT = margins(replay, captured_DCQRT[:, :, 0])
    keys = _keys(tree, references)
    emitted_DR = (transcripts(tree, producers, references) >= 0).sum(-1)
    recorded = str(tree.attrs.get("kind", "")) == RECORDS
    nobody: list[tuple[int, ...]] = [()] * len(producers)
    shared = shared_groups(tree, producers, references) if recorded else nobody
    stored = tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()
    shown = verifier["provenance"].to_dataset() if "provenance" in verifier.children else xr.Dataset()
    return Replays(
        producers=producers,
        configs=configs,
        references=references,
        reference_keys=keys,
        units_DR=_units(tree, own, keys, emitted_DR, references, shared),
        energy_DCRT=energies.energy_DCRT,
        floor_DRT=energies.floor_DRT,
        components=replay.sizes["component"],
        between_DCRMM=energies.between_DCRMM,
        beside_DCRMV=energies.beside_DCRMV,
        margin_DCRT=np.concatenate([first.margin_DCR[..., None], margin_DCRT], -1),
        tied_DCRT=np.concatenate([first.tied_DCR[..., None], tied_DCRT], -1),
        same_DCRT=np.concatenate([first.same_DCR[..., None], equal_DCRT], -1),
        choice_DCRMT=choice_DCRMT,
        emitted_DR=emitted_DR,
        decode=decode_rows(tree, own, replay, found is not None, both_DCRT, equal_DCRT, energies),
        prefill=prefill(tree, verifier, producers, references),
        class_D=[class_of(tree, own, label) for label in producers],
        class_C=[class_of(verifier, replay, label) for label in configs],
        record_D=[facts_of(tree, "decode", label) for label in producers],
        record_C=[facts_of(verifier, "replay", label) for label in configs],
        processes_C=[_count(shown, "repeat_processes", label) for label in configs],
        repeats=replay.sizes["repeat"],
        sampling_D=[stated_text(stored, "sampling", label) for label in producers],
        records_D=[record_of(tree, stored, label, references) if recorded else None for label in producers],
        notes=notes_of(tree) if recorded else [],
        schema_D=[versions(tree).get(label, 0) for label in producers],
        groups_D=shared,
        formats_C=[stated(replay, shown, "format", label) for label in configs],
        **(_drawn(verifier, replay, producers, references) if recorded else {}),
    )


def _drawn(
    verifier: xr.DataTree, replay: xr.Dataset, producers: list[str], references: list[str]
) -> dict[str, Any]:
    """Return what the first repeat's rows say of drawn tokens, see `Replays`; prefill's of first tokens."""
    if "drawn_logprob" not in replay or "prefill" not in verifier.children:
        return {}
    here = verifier["prefill"].to_dataset().sel(reference=references, producer=producers).isel(repeat=0)
    order = ("producer", "config", "reference")

    def column(name: str, *more: str) -> NDArray[Any]:
        later = replay[f"drawn_{name}"].isel(repeat=0).transpose(*order, "position", *more).values
        first = here[f"first_drawn_{name}"].transpose(*order, *more).values
        return np.concatenate([np.expand_dims(first, 3), later], 3)

    found: dict[str, Any] = {"drawn": Drawn(*(column(one.name) for one in fields(Drawn)))}
    if "drawn_margin" in replay:  # a sweep of an earlier version has none of these
        found["seeded_DCRT"] = column("margin")
        found["other_DCRTA"] = column("other", "alternative")
        found["most_DCRTK"] = column("most", "temperature")
    return found


def _units(
    tree: xr.DataTree,
    own: xr.Dataset,
    keys: list[str],
    emitted_DR: Ints,
    references: list[str],
    groups_D: list[tuple[int, ...]],
) -> Ints:
    """Number of the unit of every transcript, (producer, reference).

    What makes transcripts one unit differs between producers: the batch in which each ran his, and of records
    of other programs the seeds and cached answers that requests share. A prompt that a producer did not
    answer joins no unit of his, so it cannot tie two others together.
    """
    batch_D = [str(v) for v in np.broadcast_to(own["batch_size"].values, (len(groups_D),))]
    spans = spans_of(tree, references)
    return np.array(
        [
            units_of(*there_only(keys, spans, there_R), int(batch or 1), groups)
            for batch, groups, there_R in zip(batch_D, groups_D, emitted_DR, strict=True)
        ]
    )


def _count(stored: xr.Dataset, name: str, label: str) -> int:
    text = stated_text(stored, name, label)
    return int(text) if text.isdigit() else 0


def _keys(tree: xr.DataTree, references: Sequence[str]) -> list[str]:
    stored = tree["references"].to_dataset()
    if "token_ids" not in stored:
        raise QdxError("/references has no token_ids: only a sweep that qdx recorded can be judged")
    ids_RN = stored["token_ids"].sel(reference=list(references)).transpose("reference", "token").values
    lengths = stored["length"].sel(reference=list(references)).values
    return [key_of(ids[: int(n)]) for ids, n in zip(ids_RN, lengths, strict=True)]


def _emitted(tree: xr.DataTree, own: xr.Dataset, producers: list[str], references: list[str]) -> Ints:
    """Emitted id at every position, (producer, reference, position); −1 for none."""
    ids_DRO = transcripts(tree, producers, references)
    # A position counts from the start of its reference, an output token from its end. References differ in
    # length, so a position that is a token of one may lie before or after those of another: there it is −1.
    length_R = tree["references"].to_dataset()["length"].sel(reference=references).values
    index_RT = own["position"].values[None, :] - length_R[:, None]
    inside_RT = (index_RT >= 0) & (index_RT < ids_DRO.shape[-1])
    at = np.broadcast_to(np.where(inside_RT, index_RT, 0)[None], (len(producers), *index_RT.shape))
    return np.where(inside_RT[None], np.take_along_axis(ids_DRO, at, -1), -1)


def _same_tokens(
    own: xr.Dataset, replay: xr.Dataset, output_DRT: Ints, captured_DCRT: Bools, producers: list[str]
) -> None:
    """Refuse a replay that was not fed the transcript: at any row of either side."""
    fed = replay["token_id"].isel(repeat=0).transpose("producer", "config", "reference", "position").values
    wrong = captured_DCRT & (fed != output_DRT[:, None])
    if "token_id" in own:
        wrong |= (own_rows(own, "captured").astype(bool) & (own_rows(own, "token_id") != output_DRT))[:, None]
    if wrong.any():
        d, c, r, t = (int(i[0]) for i in np.nonzero(wrong))
        raise QdxError(
            f"the replay of producer {producers[d]!r} by {replay['config'].values[c]!s}, "
            f"{replay['reference'].values[r]!s}, fed other tokens than the transcript has (position "
            f"{own['position'].values[t]}): give the file that was replayed"
        )
