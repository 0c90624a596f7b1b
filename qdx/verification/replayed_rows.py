"""Turn aligned rows of producers and of their replays into arrays: energies, equality, margins, choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.errors import QdxError
from qdx.statistics import Bools, Floats, Ints
from qdx.verification.compare import NO_ROWS, OF_RECORDS, Compared, marks, own_repeats
from qdx.verification.exact import Repeating, pooled, repeating
from qdx.verification.likelihood import energy, row_mean, ulp_floor

REPLAY = ("producer", "config", "repeat", "reference", "position")
UNREAL = 1e250  # energy of a published row whose sketch is not finite: further off than any real one


def on_common_path(choice_RMT: Ints) -> Bools:
    """Tokens up to and including the first one in which two members differ: (reference, token)."""
    split_RT = (choice_RMT != choice_RMT[:, :1]).any(1)
    return np.asarray(np.cumsum(split_RT, -1) - split_RT == 0)


def own_rows(own: xr.Dataset, name: str, *more: str) -> NDArray[Any]:
    """The producers' first repeat, (producer, reference, token, …)."""
    return np.asarray(own[name].transpose("repeat", "config", "reference", "position", *more).values[0])


def transcripts(tree: xr.DataTree, producers: list[str], references: list[str]) -> Ints:
    """Emitted ids of the first repeat, (producer, reference, output token); −1 after the end."""
    output = tree["output"].to_dataset()["token_id"].sel(config=producers, reference=references)
    return np.asarray(
        output.transpose("config", "repeat", "reference", "output_token").values[:, 0], np.int64
    )


def equal_rows(found: tuple[xr.DataArray, xr.DataArray] | None, both_DCRT: Bools) -> Bools:
    """Return whether rows that both sides have are bit-equal, by `compare.marks`; nowhere without them.

    Only the first repeats are compared: the transcript is that of the producer's first one.
    """
    if found is None:
        return np.zeros_like(both_DCRT)
    order = (*REPLAY, "word")
    mine, theirs = (data.transpose(*(d for d in order if d in data.dims)) for data in found)
    same = (mine.isel(repeat=0).values[:, None] == theirs.isel(repeat=0).values).all(-1)
    return np.asarray(both_DCRT & same)


@dataclass(frozen=True)
class Energies:
    """Distances of sketches, see `Replays`; all NaN where the producers published none."""

    energy_DCRT: Floats
    floor_DRT: Floats
    between_DCRMM: Floats
    beside_DCRMV: Floats


def energies_of(
    own: xr.Dataset, replay: xr.Dataset, here_DRT: Bools, captured_DCQRT: Bools, choice_DCRMT: Ints
) -> Energies:
    producers, configs, repeats, references, _ = captured_DCQRT.shape
    members = repeats + 1
    # Member 0 is the producer, 1 … Q are the repeats here. The test that permutes the producer among the
    # repeats needs every pair of members, by one rule for all: a rule that treats him otherwise would refute
    # honest ones.
    energy_DCRT = np.full((producers, configs, *here_DRT.shape[1:]), np.nan)
    floor_DRT = np.full(here_DRT.shape, np.nan)
    between = np.full((producers, configs, references, members, members), np.nan)
    beside = np.full((producers, configs, references, members, configs), np.nan)
    sketched = "sketch" in own  # a file of commitments has none
    if sketched and own.sizes["component"] != replay.sizes["component"]:
        raise QdxError(
            f"sketches of {own.sizes['component']} and {replay.sizes['component']} components cannot be "
            "compared: use one capture.components"
        )
    dtypes = [str(v) for v in np.broadcast_to(replay["dtype"].values, (configs,))]
    shape = (*here_DRT.shape, replay.sizes["component"])
    mine_DRTK = own_rows(own, "sketch", "component").astype(np.float64) if sketched else np.zeros(shape)
    here_DRT = here_DRT & sketched
    for d in range(producers):  # one producer's sketches in memory at a time
        theirs = replay["sketch"].isel(producer=d).transpose(*REPLAY[1:], "component")
        theirs_CQRTK = theirs.values.astype(np.float64)
        # Of our rows, not his: the floor is the resolution of the dtype at a row's scale, and a producer who
        # scales his sketches would choose it.
        floors = [ulp_floor(theirs_CQRTK[c, 0], dtypes[c]) for c in range(configs)]
        floor_DRT[d] = np.where(here_DRT[d], np.min(floors, 0), np.nan)
        for c in range(configs):
            member_MRTK = np.concatenate([mine_DRTK[d][None], theirs_CQRTK[c]])
            there_MRT = np.concatenate([here_DRT[d][None], captured_DCQRT[d, c]])
            # Behind the first token in which two members choose differently, the path is the producer's alone
            # and the members are no longer exchangeable. (The first choice is prefill's, which has no decode
            # row.)
            common_RT = on_common_path(choice_DCRMT[d, c])[:, 1:]
            for i in range(members):
                for j in range(i):
                    values_RT = _energy(member_MRTK[i] - member_MRTK[j], there_MRT[i] & there_MRT[j])
                    shared_RT = np.where(common_RT, values_RT, np.nan)
                    between[d, c, :, i, j] = between[d, c, :, j, i] = row_mean(shared_RT)
                    if (i, j) == (1, 0):  # the first repeat here and the producer: the score of the profile
                        energy_DCRT[d, c] = values_RT  # of every row, not of the common path alone
                for v in range(configs):
                    both = there_MRT[i] & captured_DCQRT[d, v, 0] & common_RT
                    beside[d, c, :, i, v] = row_mean(_energy(member_MRTK[i] - theirs_CQRTK[v, 0], both))
    return Energies(energy_DCRT, floor_DRT, between, beside)


def _energy(residual_RTK: Floats, there_RT: Bools) -> Floats:
    """Energies of rows that are there; a sketch that is not finite is further off than any real one."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = energy(residual_RTK)
    values = np.where(np.isfinite(values), np.minimum(values, UNREAL), UNREAL)
    return np.asarray(np.where(there_RT, values, np.nan))


def margins(replay: xr.Dataset, captured_DCRT: Bools) -> tuple[Floats, Bools]:
    """Margins of the emitted tokens by the verifier's own rows, and where several logits are greatest."""

    def first(name: str, *more: str) -> NDArray[Any]:
        data = replay[name].isel(repeat=0)
        return np.asarray(data.transpose("producer", "config", "reference", "position", *more).values)

    if "top_logit" not in replay or "target_logit" not in replay:
        return np.full(captured_DCRT.shape, np.nan), np.zeros(captured_DCRT.shape, bool)
    top = first("top_logit", "rank")[..., :2].astype(np.float64)
    margin = np.where(captured_DCRT, top[..., 0] - first("target_logit"), np.nan)
    tied = captured_DCRT & (top[..., 0] == top[..., 1]) if top.shape[-1] > 1 else np.zeros_like(captured_DCRT)
    return margin, tied


def choices(replay: xr.Dataset, captured_DCQRT: Bools, output_DRT: Ints) -> Ints:
    """Emitted tokens and every repeat's greatest logit, (producer, config, reference, member, token)."""
    producers, configs, repeats, references, tokens = captured_DCQRT.shape
    found = np.full((producers, configs, references, repeats + 1, tokens), -1, np.int64)
    if "top_id" in replay:
        top = replay["top_id"].isel(rank=0).transpose(*REPLAY).values
        found[..., 1:, :] = np.moveaxis(np.where(captured_DCQRT, top, -1), 2, 3)
        found[..., 0, :] = output_DRT[:, None]
    return found


@dataclass(frozen=True)
class First:
    """Hold what the verifier's prefill says of the producers' first tokens; NaN and −1 where nothing."""

    margin_DCR: Floats
    tied_DCR: Bools
    same_DCR: Bools
    choice_DCRM: Ints

    @classmethod
    def of(
        cls,
        tree: xr.DataTree,
        verifier: xr.DataTree,
        producers: list[str],
        configs: list[str],
        references: list[str],
        repeats: int,
    ) -> First:
        shape = (len(producers), len(configs), len(references))
        found = cls(
            np.full(shape, np.nan),
            np.zeros(shape, bool),
            np.zeros(shape, bool),
            np.full((*shape, repeats + 1), -1, np.int64),
        )
        here = verifier["prefill"].to_dataset() if "prefill" in verifier.children else xr.Dataset()
        if "first_logit" not in here:
            return found
        here = here.sel(reference=references, producer=producers)
        emitted_DR = transcripts(tree, producers, references)[..., 0]
        fed = here["first_token_id"].isel(repeat=0).transpose("producer", "config", "reference").values
        if (fed != emitted_DR[:, None]).any():
            raise QdxError("the verifier judged other first tokens: give the file that was replayed")
        length = tree["references"].to_dataset()["length"].sel(reference=references)
        last = here[["top_logit", "top_id", "row_hash"]].sel(position=length)
        top = last["top_logit"].isel(repeat=0).transpose("config", "reference", "rank").values
        chosen = here["first_logit"].isel(repeat=0).transpose("producer", "config", "reference").values
        found.margin_DCR[:] = top[None, ..., 0].astype(np.float64) - chosen  # NaN where nothing was emitted
        if top.shape[-1] > 1:
            found.tied_DCR[:] = (top[..., 0] == top[..., 1])[None]
        choice = last["top_id"].isel(rank=0).transpose("config", "reference", "repeat").values
        # One prefill of the reference serves all producers: its row depends on the prompt alone, so only the
        # margin of each one's own first token differs between them.
        found.choice_DCRM[..., 0] = emitted_DR[:, None]
        found.choice_DCRM[..., 1:] = choice[None]
        found.same_DCR[:] = _same_first(tree, here, producers, length)
        return found


def _same_first(
    tree: xr.DataTree, here: xr.Dataset, producers: list[str], length: xr.DataArray
) -> Bools | bool:
    """Return whether prefill's last row, which predicts the first token, is bit-equal.

    Returns
    -------
    array (producer, config, reference), or False where no such row was published
    """
    if "prefill" not in tree.children:
        return False
    own = tree["prefill"].to_dataset()
    found = marks(own, here)
    positions = own["position"].values
    if found is None or not np.isin(length.values, positions).all():
        return False
    at = {"config": producers, "reference": length["reference"], "position": length}
    order = ("config", "reference", "word")
    mine = found[0].isel(repeat=0).sel(at).transpose(*order).values
    there = own["captured"].isel(repeat=0).sel(at).transpose(*order[:2]).values.astype(bool)
    theirs = found[1].isel(repeat=0).sel(position=length).transpose(*order).values
    return np.asarray(there[:, None] & (mine[:, None] == theirs[None]).all(-1))


def _repeats_of(tree: xr.DataTree, own: xr.Dataset) -> list[Repeating]:
    """Return how the producers repeat; records of other programs say nothing of it."""
    if "row_hash" not in own and "commitment" not in own:
        return [Repeating(0, 0)] * own.sizes["config"]
    return own_repeats(tree, "decode", [str(label) for label in own["config"].values])


def decode_rows(
    tree: xr.DataTree,
    own: xr.Dataset,
    replay: xr.Dataset,
    comparable: bool,
    both_DCRT: Bools,
    equal_DCRT: Bools,
    energies: Energies,
) -> Compared:
    """The equality of decode rows and of their repeats."""
    hash_DCQRT = replay["row_hash"].transpose(*REPLAY).values
    captured = replay["captured"].transpose(*REPLAY).values.astype(bool)
    repeats_DC = [
        [repeating(hash_DCQRT[d, c], captured[d, c] & captured[d, c, :1]) for c in range(captured.shape[1])]
        for d in range(len(captured))
    ]
    distance = row_mean(np.sqrt(energies.energy_DCRT * replay.sizes["component"]))
    compared = both_DCRT.sum(-1) if comparable else np.zeros(both_DCRT.shape[:3], np.int64)
    return Compared(
        "decode",
        np.where(np.isfinite(distance), distance, np.nan),
        compared,
        equal_DCRT.sum(-1),
        _repeats_of(tree, own),
        [pooled(list(of)) for of in zip(*repeats_DC, strict=True)],
        "" if comparable else OF_RECORDS if "row_hash" not in own and "commitment" not in own else NO_ROWS,
        content_DCR=compared,
        content_equal_DCR=equal_DCRT.sum(-1),
        expected_DCR=captured[:, :, 0].sum(-1),
        reruns_DC=np.array([[r.reruns for r in row] for row in repeats_DC], np.int64),
    )
