"""Log-probabilities that a provider lists, held against the rows here; greedy tokens where it lists none.

An API prints the greatest few log-probabilities of a position, rounded to some decimals. Known transcripts
are cut to as many and rounded alike, so that a judged answer and a known one are printed in one way before
anything is compared. A row's *energy* is then the mean squared difference, in nat², over the listed tokens,
the emitted token, and one bucket for all others. The bucket counts by its probability: rounding moves that by
no more than a listed value, while its logarithm means nothing where little is left.

Where the list has a token that is not among those kept of the row here, the least of these is taken, if that
is nearer: the energy is a lower bound then, for honest and false answers alike. Where values were printed
after temperature and truncation (`qdx.verification.processed`), a row here may cut off a listed token. Then
it counts by its probability, as the bucket does.

A greedy record without such lists has the squared margins of its tokens in the same place, so that the
profile, the likelihood and the pooled tests of `evidence` and `claims` take either, as they take sketches.

Axes: D producers, C configs, R references, T emitted tokens (the first one is prefill's), K listed values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.backends.sampling import plain_greedy
from qdx.statistics import Bools, Floats, Ints
from qdx.verification.kernel_noise import margin_allowed
from qdx.verification.likelihood import MANTISSA
from qdx.verification.processed import MODES, mode_of, printed

if TYPE_CHECKING:
    from qdx.verification.replays import Replays

MOST_DIGITS = 6  # decimals beyond which a float32 log-probability is its own rounding
LISTS, TOKENS = "listed log-probabilities", "margins of the greedy tokens"


@dataclass(frozen=True)
class Listed:
    """Hold what producers list of each emitted token, and what the rows here say of the same tokens.

    Attributes
    ----------
    stated_DRTK : array (producer, reference, token, rank)
        Listed log-probabilities in falling order, nat; NaN for none, and where the token is not known.
    here_DCRTK : array (producer, config, reference, token, rank)
        Of the same tokens by the rows here; −inf where truncation cuts one off here.
    emitted_DRTK : array of bool (producer, reference, token, rank)
        Whether the listed token is the emitted one.
    own_DRT, here_own_DCRT : array
        Of the emitted token, listed and here.
    rank_D : list of int
        Tokens that each producer lists at most; 0: none but the emitted one.
    digits_D : list of int
        Decimals that each producer prints; −1: it lists nothing, or the file does not say.
    floor_DCRT : array (producer, config, reference, token)
        Variance of a value by the rounding of the model's data type at the greatest logit's scale, nat².
    """

    stated_DRTK: Floats
    here_DCRTK: Floats
    emitted_DRTK: Bools
    own_DRT: Floats
    here_own_DCRT: Floats
    rank_D: list[int]
    digits_D: list[int]
    floor_DCRT: Floats
    _energies: dict[tuple[int, int, int], tuple[Floats, Ints]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls,
        producers_tree: xr.DataTree,
        verifier_tree: xr.DataTree,
        producers: Sequence[str],
        configs: Sequence[str],
        references: Sequence[str],
        emitted_DRO: Ints,
        *,
        recorded: bool,
        temperature_DR: Floats | None = None,
    ) -> Listed | None:
        """Read both sides.

        Parameters
        ----------
        producers_tree, verifier_tree : xarray.DataTree
        producers, configs, references : sequence of str
        emitted_DRO : array (producer, reference, output token)
            Emitted ids; −1 after the end.
        recorded : bool
            Whether the producers' file holds records of another program.
        temperature_DR : array (producer, reference), optional
            See `qdx.verification.processed.temperature_of`. None: all list raw values.

        Returns
        -------
        Listed or None
            None where the verifier's file lacks what the comparison needs.
        """
        length_R = _lengths(producers_tree, references)
        raw = temperature_DR is None or not np.isfinite(temperature_DR).any()
        cold_DR = None if raw else temperature_DR
        here = _Here.of(verifier_tree, producers, configs, references, length_R, emitted_DRO, cold_DR)
        if here is None:
            return None
        read = _of_records if recorded else _of_rows
        theirs = read(producers_tree, producers, references, length_R, emitted_DRO)
        order = np.argsort(-np.where(np.isfinite(theirs.values), theirs.values, -np.inf), -1, kind="stable")
        ids = np.take_along_axis(theirs.ids, order, -1)
        stated = np.take_along_axis(theirs.values, order, -1)
        stated[ids < 0] = np.nan
        at = np.stack([here.of_tokens(c, ids, stated) for c in range(len(configs))], 1)
        return cls(
            stated,
            at,
            (ids == emitted_DRO[..., None]) & (ids >= 0),
            theirs.own,
            here.own,
            theirs.rank,
            theirs.digits,
            here.floor,
        )

    def listed_R(self, d: int) -> Ints:
        """Tokens of each transcript of a producer for which it lists any log-probability."""
        there = np.isfinite(self.own_DRT[d]) | np.isfinite(self.stated_DRTK[d]).any(-1)
        return np.asarray(there.sum(-1), np.int64)

    def energies(self, d: int, rank: int, digits: int) -> tuple[Floats, Ints]:
        """Energy of every token of a producer under every config.

        Parameters
        ----------
        d : int
        rank : int
            Listed tokens that count, the greatest ones.
        digits : int
            Decimals to which both sides are rounded.

        Returns
        -------
        energy_CRT : array (config, reference, token)
            Nat²; NaN where nothing is listed.
        count_RT : array (reference, token)
            Values that were compared.
        """
        key = (d, rank, digits)
        if key not in self._energies:
            self._energies[key] = self._computed(*key)
        return self._energies[key]

    def _computed(self, d: int, rank: int, digits: int) -> tuple[Floats, Ints]:
        stated_RTK = np.round(self.stated_DRTK[d, ..., :rank], digits)
        there_RTK = np.isfinite(stated_RTK)
        apart_RT = ~(there_RTK & self.emitted_DRTK[d, ..., :rank]).any(-1) & np.isfinite(self.own_DRT[d])
        own_RT = np.round(self.own_DRT[d], digits)
        count_RT = there_RTK.sum(-1) + apart_RT
        found = []
        for here_RTK, here_own_RT in zip(self.here_DCRTK[d], self.here_own_DCRT[d], strict=True):
            pairs = (
                (stated_RTK, np.round(here_RTK[..., :rank], digits), there_RTK),
                (own_RT[..., None], np.round(here_own_RT, digits)[..., None], apart_RT[..., None]),
            )
            total_RT = np.zeros(count_RT.shape)
            masses = [np.zeros(count_RT.shape), np.zeros(count_RT.shape)]
            for a, b, use in pairs:
                both = use & ~np.isneginf(b)
                total_RT += (np.where(both, a - np.where(both, b, 0.0), 0.0) ** 2).sum(-1)
                total_RT += (np.where(use & ~both, np.exp(a), 0.0) ** 2).sum(-1)
                masses = [
                    m + np.where(use, np.exp(v), 0.0).sum(-1) for m, v in zip(masses, (a, b), strict=True)
                ]
            rest_RT = np.maximum(1 - masses[0], 0) - np.maximum(1 - masses[1], 0)
            energy_RT = (total_RT + rest_RT**2) / (count_RT + 1)
            found.append(np.where(count_RT > 0, energy_RT, np.nan))
        return np.stack(found), np.asarray(count_RT, np.int64)

    def equal_DCR(self, d: int) -> tuple[Ints, Ints]:
        """Count a producer's tokens whose every listed value is the one printed here, and all listed ones.

        Returns
        -------
        equal_CR : array (config, reference)
        tokens_R : array (reference,)
        """
        if self.digits_D[d] < 0:
            nothing = np.zeros(self.here_own_DCRT.shape[1:3], np.int64)
            return nothing, nothing[0]
        energy_CRT, _ = self.energies(d, self.rank_D[d], self.digits_D[d])
        tokens_R = np.isfinite(energy_CRT[0]).sum(-1)
        return np.asarray((energy_CRT == 0).sum(-1), np.int64), np.asarray(tokens_R, np.int64)


@dataclass(frozen=True)
class Comparable:
    """Judged answers and known transcripts whose energies are made alike.

    Attributes
    ----------
    judged, known : Replays
        With these energies in the place of those of sketches.
    what : str
        What the energies are of, in words.
    tokens : int
        Emitted tokens that count of each transcript, from the first.
    shorter : int
        Judged transcripts that have fewer, and count for nothing.
    """

    judged: Replays
    known: Replays
    what: str
    tokens: int
    shorter: int


def compared(data: Replays, known: Replays, d: int) -> Comparable | str:
    """Make the energies of a provider's answers and of known transcripts comparable.

    Parameters
    ----------
    data, known : Replays
    d : int
        A producer of records in `data`.

    Returns
    -------
    Comparable or str
        Why they cannot be compared.
    """
    made = [p for p in range(len(known.producers)) if same_sampling(data, d, known, p)]
    if not made:
        return "no known transcript was drawn by the sampling that the record states"
    listing = _listing(data, known, d, made)
    if isinstance(listing, str):
        if not plain_greedy(data.sampling_D[d]):
            return listing
        allowed = max(margin_allowed(one.get("dtype", "")) for one in data.record_C)
        judged = _with_energies(data, {d: margins(data, d, allowed)})
        beside = _with_energies(known, {p: margins(known, p, allowed) for p in made})
        what = TOKENS
    else:
        rank, digits = listing
        judged = _with_energies(data, {d: _lists(data, d, rank, digits)})
        beside = _with_energies(known, {p: _lists(known, p, rank, digits) for p in made})
        greatest = f"the {rank} greatest and the emitted one" if rank else "of the emitted token"
        what = f"{LISTS} ({greatest}, {digits} decimals)"
    tokens = _common_length(data.emitted_DR[d][data.there_DR[d]], known.emitted_DR[made].ravel())
    if not tokens:
        return "no known transcript has as many tokens as a judged one"
    shorter = int((data.emitted_DR[d][data.there_DR[d]] < tokens).sum())
    return Comparable(_cut(judged, tokens), _cut(beside, tokens), what, tokens, shorter)


def same_sampling(data: Replays, d: int, known: Replays, p: int) -> bool:
    """Return whether known transcripts were chosen as the judged ones are: rows of drawn text are flatter."""
    greedy = plain_greedy(data.sampling_D[d])
    if greedy or plain_greedy(known.sampling_D[p]):
        return bool(greedy and plain_greedy(known.sampling_D[p]))
    mine, theirs = data.records_D[d], known.records_D[p]
    if mine is None or theirs is None:
        return False
    here = [one.samplers_RP[np.isfinite(one.samplers_RP).all(-1)] for one in (mine, theirs)]
    return all(len(rows) for rows in here) and len(np.unique(np.concatenate(here), axis=0)) == 1


def _listing(data: Replays, known: Replays, d: int, made: Sequence[int]) -> tuple[int, int] | str:
    """Return how many listed values, of how many decimals, both sides have."""
    record = data.records_D[d]
    assert record is not None
    if data.listed is None or known.listed is None:
        return "a file here lacks the sums of its rows"
    digits = [data.listed.digits_D[d], *(known.listed.digits_D[p] for p in made)]
    if digits[0] < 0:
        return "the record lists no log-probabilities"
    if min(digits) < 0:
        return "the known transcripts list no log-probabilities"
    greedy = bool(plain_greedy(data.sampling_D[d]))
    if (mode := mode_of(record, greedy)) not in MODES:
        return mode
    for own in (known.records_D[p] for p in made):
        # What qdx recorded is raw, and greedy where it is compared at all.
        if own is not None and (other := mode_of(own, greedy)) != mode:
            stated = other if other in MODES else f"values of a mode that is not known ({other})"
            return f"the known transcripts list {stated}, and the record {mode}"
    ranks = [data.listed.rank_D[d], *(known.listed.rank_D[p] for p in made)]
    # Servers put a drawn token that is not among the greatest in the place of the last one.
    return max(0, min(ranks) - (0 if greedy else 1)), min(digits)


def _common_length(judged: Ints, known: Ints) -> int:
    """Tokens on which both sides are compared, chosen by lengths alone.

    A mean over fewer tokens scatters more by itself, so all that count have as many. The number is the one
    for which most judged tokens are left, while known transcripts are lost in no greater a share.
    """
    judged, known = judged[judged > 0], known[known > 0]
    most = int(min(judged.max(initial=0), known.max(initial=0)))
    kept = [t * min(float((judged >= t).mean()), float((known >= t).mean())) for t in range(1, most + 1)]
    return int(np.argmax(kept)) + 1 if kept else 0


Energies = tuple[Floats, Floats]  # (config, reference, token) and (reference, token), floor


def _lists(data: Replays, d: int, rank: int, digits: int) -> Energies:
    assert data.listed is not None
    energy_CRT, _ = data.listed.energies(d, rank, digits)
    rounding = 10.0 ** (-2 * digits) / 6  # of a difference of two values that are rounded to one step
    return energy_CRT, np.maximum(data.listed.floor_DCRT[d].min(0), rounding)


def margins(data: Replays, d: int, allowed: float = 0.0) -> Energies:
    """Squared margins of a producer's tokens beyond what is allowed, the first tokens first."""
    margin_CRT = np.maximum(first_ones(data.margin_DCRT[d]) - allowed, 0.0)
    least = float(np.finfo(np.float32).tiny)
    floor_RT = np.full((margin_CRT.shape[1], margin_CRT.shape[2]), least, np.float64)
    if data.listed is not None:
        count = min(data.listed.floor_DCRT.shape[-1], margin_CRT.shape[2])
        floor_RT[:, :count] = np.nan_to_num(data.listed.floor_DCRT[d].min(0)[:, :count], nan=least)
    return margin_CRT**2, floor_RT


def first_ones(values_XT: Floats) -> Floats:
    """Move what is measured to the front of the last axis, in its order; NaN follows.

    The tokens of references of unequal lengths stand at positions of their own.
    """
    order = np.argsort(~np.isfinite(values_XT), -1, kind="stable")
    return np.asarray(np.take_along_axis(values_XT, order, -1))


def _with_energies(data: Replays, of: dict[int, Energies]) -> Replays:
    producers, configs = len(data.producers), len(data.configs)
    shape = next(iter(of.values()))[0].shape[1:]
    energy = np.full((producers, configs, *shape), np.nan)
    floor = np.full((producers, *shape), np.nan)
    for d, (energy_CRT, floor_RT) in of.items():
        energy[d], floor[d] = energy_CRT, floor_RT
    return replace(data, energy_DCRT=energy, floor_DRT=floor, components=1)


def _cut(data: Replays, tokens: int) -> Replays:
    """The first tokens of each transcript that has as many."""
    whole_DR1 = (data.emitted_DR >= tokens)[..., None]
    energy = np.where(whole_DR1[:, None], data.energy_DCRT[..., :tokens], np.nan)
    return replace(
        data, energy_DCRT=energy, floor_DRT=np.where(whole_DR1, data.floor_DRT[..., :tokens], np.nan)
    )


@dataclass(frozen=True)
class _Theirs:
    """Lists of producers, over (producer, reference, token, rank)."""

    ids: Ints
    values: Floats
    own: Floats
    rank: list[int]
    digits: list[int]


def _of_records(
    tree: xr.DataTree, producers: Sequence[str], references: Sequence[str], _: Ints, emitted_DRO: Ints
) -> _Theirs:
    stated = tree["stated"].to_dataset()
    about = stated.sel(config=list(producers), reference=list(references))
    first, count = (
        about[name].transpose("config", "reference").values.astype(np.int64)
        for name in ("listed_first", "listed_count")
    )
    token_T = np.arange(emitted_DRO.shape[-1])
    here = (token_T < count[..., None]) & (emitted_DRO >= 0)
    row = np.where(here, first[..., None] + token_T, 0)
    own, ids, values = (stated[name].values for name in ("logprob", "top_id", "top_logprob"))
    if not len(own):
        own, ids, values = np.full(1, np.nan), np.full((1, 1), -1), np.full((1, 1), np.nan)
    top = np.where(here[..., None], values[row], np.nan).astype(np.float64)
    digits_DR = (
        about["digits"].transpose("config", "reference").values if "digits" in about else -1 + 0 * count
    )
    listed = np.isfinite(top).sum(-1)
    return _Theirs(
        np.where(here[..., None], ids[row], -1).astype(np.int64),
        top,
        np.where(here, own[row], np.nan).astype(np.float64),
        [int(one.max(initial=0)) for one in listed],
        # The finest: trailing zeros are not printed, and an answer may end in several by chance.
        [min(MOST_DIGITS, int(one.max(initial=-1))) for one in digits_DR],
    )


def _of_rows(
    tree: xr.DataTree,
    producers: Sequence[str],
    references: Sequence[str],
    length_R: Ints,
    emitted_DRO: Ints,
) -> _Theirs:
    """Return what the API of a producer that qdx recorded would have listed."""
    shape = emitted_DRO.shape
    at = {"config": list(producers), "reference": list(references)}
    parts = [
        tree[name].to_dataset() if name in tree.children else xr.Dataset() for name in ("prefill", "decode")
    ]
    needed = ("top_id", "top_logit", "logsumexp", "target_logit", "captured")
    width = max([1, *(part.sizes["rank"] for part in parts if "rank" in part.sizes)])
    ids, values = np.full((*shape, width), -1, np.int64), np.full((*shape, width), np.nan)
    own = np.full(shape, np.nan)
    for which, part in enumerate(parts):
        if any(name not in part for name in needed):
            continue
        rows = part[list(needed)].isel(repeat=0).sel(at)
        columns = [rows[name].transpose("config", "reference", "position", ...).values for name in needed]
        position = rows["position"].values
        for token in (0,) if which == 0 else range(1, shape[-1]):
            slot_R = np.searchsorted(position, length_R + token)
            found_R = slot_R < len(position)
            slot_R = np.where(found_R, slot_R, 0)
            found_R &= position[slot_R] == length_R + token
            r = np.arange(len(length_R))
            top_id, top_logit, total, target, captured = (column[:, r, slot_R] for column in columns)
            use = captured.astype(bool) & found_R & (emitted_DRO[..., token] >= 0)
            wide = top_id.shape[-1]
            ids[..., token, :wide] = np.where(use[..., None], top_id, -1)
            values[..., token, :wide] = np.where(use[..., None], top_logit - total[..., None], np.nan)
            own[..., token] = np.where(use, target - total, np.nan)
    there = np.isfinite(own).any((1, 2))
    return _Theirs(
        ids,
        values,
        own,
        [width if one else 0 for one in there],
        [MOST_DIGITS if one else -1 for one in there],
    )


@dataclass(frozen=True)
class _Here:
    """The verifier's greatest log-probabilities, first repeat, over (producer, config, reference, token)."""

    ids: NDArray[Any]
    values: NDArray[Any]
    own: Floats
    floor: Floats

    @classmethod
    def of(
        cls,
        tree: xr.DataTree,
        producers: Sequence[str],
        configs: Sequence[str],
        references: Sequence[str],
        length_R: Ints,
        emitted_DRO: Ints,
        cold_DR: Floats | None,
    ) -> _Here | None:
        if "prefill" not in tree.children:
            return None
        replay, prefill = (
            tree[name].to_dataset().isel(repeat=0)
            if "repeat" in tree[name].to_dataset().dims
            else tree[name].to_dataset()
            for name in ("replay", "prefill")
        )
        needed = ("top_id", "top_logit", "logsumexp")
        if (
            any(name not in part for part in (replay, prefill) for name in needed)
            or "target_logit" not in replay
        ):
            return None
        if "first_logit" not in prefill:
            return None
        if cold_DR is not None and ("drawn_kept" not in replay or "first_drawn_kept" not in prefill):
            return None
        at = {"config": list(configs), "reference": list(references)}
        shape = (len(producers), len(configs), *emitted_DRO.shape[1:])
        width = replay.sizes["rank"]
        ids, values = np.full((*shape, width), -1, np.int32), np.full((*shape, width), np.nan, np.float32)
        own, top = np.full(shape, np.nan), np.full(shape, np.nan)
        length = xr.DataArray(length_R, dims="reference", coords={"reference": list(references)})
        last = prefill.sel(at).sel(position=length)
        here_DR = emitted_DRO[..., 0] >= 0
        total = last["logsumexp"].transpose("config", "reference").values
        greatest = last["top_logit"].transpose("config", "reference", "rank").values
        first_id = last["top_id"].transpose("config", "reference", "rank").values
        chosen = (
            prefill["first_logit"]
            .sel(at)
            .sel(producer=list(producers))
            .transpose("producer", "config", "reference")
            .values
        )
        wide = min(width, first_id.shape[-1])
        ids[..., 0, :wide] = np.where(here_DR[:, None, :, None], first_id[None, ..., :wide], -1)
        values[..., 0, :wide] = (greatest - total[..., None])[None, ..., :wide]
        own[..., 0] = np.where(here_DR[:, None], chosen - total[None], np.nan)
        if cold_DR is not None:
            stored = prefill.sel(at).sel(producer=list(producers))
            drawn = [
                stored[f"first_{name}"].transpose("producer", "config", "reference").values for name in _DRAWN
            ]
            of_all = np.broadcast_to(greatest[None, ..., :wide], (*chosen.shape, wide))
            _cool(values[..., 0, :wide], own[..., 0], of_all, chosen, drawn, cold_DR)
        top[..., 0] = np.abs(greatest[..., 0])[None]
        rows = replay.sel(at).sel(producer=list(producers))
        order = ("producer", "config", "reference", "position")
        names = (*needed, "target_logit", "captured", *(_DRAWN if cold_DR is not None else ()))
        columns = [rows[name].transpose(*order, ...).values for name in names]
        position, r = rows["position"].values, np.arange(len(length_R))
        for token in range(1, shape[-1]):
            slot_R = np.searchsorted(position, length_R + token)
            found_R = slot_R < len(position)
            slot_R = np.where(found_R, slot_R, 0)
            found_R &= position[slot_R] == length_R + token
            top_id, top_logit, sums, target, captured, *drawn = (
                column[:, :, r, slot_R] for column in columns
            )
            use = captured.astype(bool) & found_R & (emitted_DRO[:, None, :, token] >= 0)
            ids[..., token, :] = np.where(use[..., None], top_id, -1)
            values[..., token, :] = np.where(use[..., None], top_logit - sums[..., None], np.nan)
            own[..., token] = np.where(use, target - sums, np.nan)
            if cold_DR is not None:
                _cool(values[..., token, :], own[..., token], top_logit, target, drawn, cold_DR)
            top[..., token] = np.where(use, np.abs(top_logit[..., 0]), np.nan)
        mantissa = [MANTISSA.get(str(v), 23) for v in np.broadcast_to(rows["dtype"].values, (len(configs),))]
        with np.errstate(divide="ignore"):
            exponent = np.maximum(np.floor(np.log2(top)), -14.0)
        ulp = np.exp2(exponent - np.array(mantissa)[None, :, None, None])
        return cls(ids, values, own, ulp**2 / 12)

    def of_tokens(self, c: int, ids_DRTK: Ints, stated_DRTK: Floats) -> Floats:
        """Log-probabilities of listed tokens by a config's rows.

        A token that is not kept has at most the least one that is, and is as near to the stated value as that
        allows.
        """
        here_id, here = self.ids[:, c], self.values[:, c].astype(np.float64)
        least = here.min(-1)
        found = np.full(ids_DRTK.shape, np.nan)
        for k in range(ids_DRTK.shape[-1]):
            same = (here_id == ids_DRTK[..., k, None]) & (here_id >= 0)
            value = np.where(same, here, -np.inf).max(-1)
            found[..., k] = np.where(same.any(-1), value, np.minimum(stated_DRTK[..., k], least))
        found[(ids_DRTK < 0) | np.isnan(least)[..., None]] = np.nan
        return found


_DRAWN = ("drawn_logprob", "drawn_kept", "drawn_place")


def _cool(
    values_DCRK: Floats,
    own_DCR: Floats,
    greatest_DCRK: Floats,
    target_DCR: Floats,
    drawn: Sequence[NDArray[Any]],
    cold_DR: Floats,
) -> None:
    """Put what rows would have printed after temperature and truncation in the place of raw values."""
    logprob_DCR, kept_DCR, place_DCR = drawn
    after = np.broadcast_to(np.isfinite(cold_DR)[:, None], own_DCR.shape) & np.isfinite(own_DCR)
    with np.errstate(invalid="ignore"):
        head, own = printed(
            greatest_DCRK.astype(np.float64),
            target_DCR.astype(np.float64),
            logprob_DCR,
            kept_DCR,
            place_DCR == 2,
            np.broadcast_to(cold_DR[:, None], own_DCR.shape),
        )
    values_DCRK[...] = np.where(after[..., None], head, values_DCRK)
    own_DCR[...] = np.where(after, own, own_DCR)


def _lengths(tree: xr.DataTree, references: Sequence[str]) -> Ints:
    stored = tree["references"].to_dataset()["length"].sel(reference=list(references))
    return np.asarray(stored.values, np.int64)
