"""Writes producers' files that lie, consistent with everything that a reader of the file checks.

A forger has an honest sweep, other checkpoints, and qdx itself: whatever she wants to publish as a row, she
can have computed. A `Producer` says which text a transcript has, whose rows stand beside it and whose prefill
before it, reference by reference; `forge` writes that as a ``sweep.nc`` and `commitments` as a file of
commitments. An `Edit` then changes what the file states: facts, what was captured, labels, references.

The rows come from `tests.verification.world.World`, which replays every text by every config once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from qdx.dataset import append_all

if TYPE_CHECKING:
    from tests.verification.world import World

Groups = dict[str, xr.Dataset]
Edit = Callable[[Groups], None]
Each = str | Sequence[str]  # of every reference, or of each
PHASES = ("prefill", "decode", "replay")
ROWS = ("prefill", "decode")
GARBAGE, ZEROS, NOT_NUMBERS, HUGE, NOISY = "garbage", "zeros", "nan", "huge", "noisy:"
FILLED = {ZEROS: 0.0, NOT_NUMBERS: np.nan, HUGE: 3e38}


@dataclass(frozen=True)
class Producer:
    """One label of a producers' file.

    Attributes
    ----------
    label : str
        A config of the honest sweep: its record (weights, kernel, machine) is what the file states.
    text : str or sequence of str
        Names of texts, see `World.texts`. Default: what the label's config generated.
    rows : str or sequence of str
        The config whose replay of that text stands as decode rows; ``garbage``: random bits, ``zeros``,
        ``nan`` or ``huge`` numbers with hashes of 0, or ``noisy:<amount>:<config>``: its sketches with noise,
        and random hashes. Default: the label.
    prefill : str or sequence of str
        The config whose prefill rows stand before it, or as in `rows`. Default: the label.
    edits : sequence of Edit
        Done last, in turn.
    seed : int
        Of what is random.
    """

    label: str
    text: Each = ""
    rows: Each = ""
    prefill: Each = ""
    edits: Sequence[Edit] = ()
    seed: int = 0


def some(share: float, count: int, false: str, true: str, seed: int = 0) -> tuple[str, ...]:
    """Return `false` for a share of references, at least one of them where the share is above 0."""
    number = round(share * count) if share in (0, 1) else max(1, round(share * count))
    chosen = np.random.default_rng(seed).permutation(count)[:number]
    return tuple(false if r in chosen else true for r in range(count))


def forge(world: World, producers: Sequence[Producer]) -> Groups:
    """Return the groups of the file that these producers publish."""
    groups = world.honest([p.label for p in producers])
    for c, producer in enumerate(producers):
        generator = np.random.default_rng([producer.seed, c])
        text = _each(world, producer.text or producer.label)
        rows = _each(world, producer.rows or producer.label)
        heads = _each(world, producer.prefill or producer.label)
        for r in range(world.count):
            tokens = world.texts[text[r]][r]
            groups["output"]["token_id"].values[c, :, r] = tokens
            groups["output"]["text"].values[c, :, r] = f"{text[r]} {r}"
            _put(groups["decode"], c, r, *_made(world.rows, rows[r], text[r]), r, generator)
            _put(groups["prefill"], c, r, *_made(world.prefill, heads[r], text[r]), r, generator)
    for producer in producers:
        for edit in producer.edits:
            edit(groups)
    return groups


def texts_of(world: World, producers: Sequence[Producer]) -> dict[str, list[str]]:
    """Every label's text, reference by reference, which the verifier replays."""
    return {p.label: _each(world, p.text or p.label) for p in producers}


def _each(world: World, what: Each) -> list[str]:
    return [what] * world.count if isinstance(what, str) else list(what)


def _made(
    rows: Callable[[str, str], Mapping[str, np.ndarray]], whose: str, text: str
) -> tuple[Mapping[str, np.ndarray], str, float]:
    """The rows that are copied, and what is done to them."""
    if whose == GARBAGE or whose in FILLED:
        return rows("", text), whose, 0.0
    if whose.startswith(NOISY):
        amount, config = whose.removeprefix(NOISY).split(":", 1)
        return rows(config, text), NOISY, float(amount)
    return rows(whose, text), "", 0.0


def _put(
    data: xr.Dataset,
    c: int,
    r: int,
    values: Mapping[str, np.ndarray],
    how: str,
    amount: float,
    source: int,
    generator: np.random.Generator,
) -> None:
    for name, value in values.items():
        if name not in data:
            continue
        row = np.array(value[source])
        if how in FILLED and name not in ("token_id", "captured"):
            row = np.full_like(row, FILLED[how] if row.dtype.kind == "f" else 0)
        elif how in (GARBAGE, NOISY) and name in ("row_hash", "commitment"):
            high = 256 if name == "commitment" else 2**63
            row = generator.integers(0, high, row.shape).astype(row.dtype)
        elif how == GARBAGE and row.dtype.kind == "f":
            row = generator.normal(0, 5, row.shape).astype(row.dtype)
        elif how == NOISY and name == "sketch":
            row = (row + amount * generator.normal(0, 1, row.shape)).astype(row.dtype)
        data[name].values[c, :, r] = row


# What the file states ---------------------------------------------------------------------------------------


def state(label: str, **facts: object) -> Edit:
    """State facts of a label: coordinates where the file has them so, and the record."""

    def edit(groups: Groups) -> None:
        for name, value in facts.items():
            for group in (*PHASES, "output"):
                data = groups.get(group)
                if data is not None and name in data.coords:
                    _set(data, name, label, value)
            _set(groups["provenance"], name, label, str(value))

    return edit


def _set(data: xr.Dataset, name: str, label: str, value: object) -> None:
    c = data["config"].values.tolist().index(label)
    if name in data.variables:
        values = np.array(data[name].values)
        values = values.astype(object) if values.dtype.kind in "OUST" else values
        values[c] = value
        data[name] = (data[name].dims, values, data[name].attrs)
    else:
        values = np.array([""] * data.sizes["config"], object)
        values[c] = value
        data[name] = ("config", values)


def unstate(*names: str) -> Edit:
    """Leave facts out of all records, as an older file does."""

    def edit(groups: Groups) -> None:
        groups["provenance"] = groups["provenance"].drop_vars(list(names), errors="ignore")
        for group in (*PHASES, "output"):
            if group in groups:
                gone = [n for n in names if n in groups[group].coords]
                groups[group] = groups[group].drop_vars(gone)

    return edit


OTHER_CPU = {"cpu": "AMD EPYC 9654 96-Core Processor", "threads": "64"}
OTHER_GPU = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "compute_capability": "9.0",
    "cuda_version": "12.8",
    "driver_version": "570.86",
}
OTHER_THREADS = {"threads": "7", "backend_threads": "7"}
OTHER_TORCH = {"torch_version": "2.9.1+cpu"}
OTHER_BLAS = {"blas": "OpenBLAS 0.3.29"}
MACHINES: Mapping[str, Mapping[str, str]] = {
    "here": {},
    "cpu": OTHER_CPU,
    "gpu": OTHER_GPU,
    "threads": OTHER_THREADS,
    "torch": OTHER_TORCH,
    "blas": OTHER_BLAS,
}
# Of the second schema: a file of the first has none of them.
NEW = ("blas", "cpu_capability", "kernel_environment", "torch_switches", "model_runner")
MISSING = ("torch_version", "cpu", "threads", "code_sha256", "driver_version", "engine_version", *NEW)


def sampling(label: str, **parameters: object) -> Edit:
    """State other sampling parameters than the record's, such as ``temperature=1``."""

    def edit(groups: Groups) -> None:
        record = groups["provenance"]["sampling"].sel(config=label).item()
        state(label, sampling=json.dumps({**json.loads(record), **parameters}, sort_keys=True))(groups)

    return edit


def older(groups: Groups) -> None:
    """Make it a file of the first schema, which stated neither sampling nor libraries."""
    unstate("sampling", *NEW)(groups)
    groups["/"] = xr.Dataset(attrs={**groups["/"].attrs, "schema_version": 1})
    count = groups["provenance"].sizes["config"]
    stated = ("config", np.array(["1"] * count, object))
    groups["provenance"] = groups["provenance"].assign(schema_version=stated)


SAMPLINGS: Mapping[str, Callable[[str], Edit]] = {
    "missing": lambda label: unstate("sampling"),
    "sampled": lambda label: sampling(label, method="random", temperature=1),
    "penalties": lambda label: sampling(label, repetition_penalty=1.3),
    "older": lambda label: older,
}


# What was captured ------------------------------------------------------------------------------------------


def drop(label: str, phase: str, keep: Callable[[xr.Dataset], np.ndarray]) -> Edit:
    """Leave rows of a phase out; `keep` returns (reference, position)."""

    def edit(groups: Groups) -> None:
        data = groups[phase]
        c = data["config"].values.tolist().index(label)
        data["captured"].values[c] &= keep(data)[None]

    return edit


def _shape(data: xr.Dataset) -> tuple[int, int]:
    return data.sizes["reference"], data.sizes["position"]


def first_row(data: xr.Dataset) -> np.ndarray:
    """The first row of every reference."""
    captured = data["captured"].values.any((0, 1))
    return np.asarray(captured & (captured.cumsum(-1) == 1))


def nothing(data: xr.Dataset) -> np.ndarray:
    return np.zeros(_shape(data), bool)


def only_first_reference(data: xr.Dataset) -> np.ndarray:
    kept = first_row(data)
    kept[1:] = False
    return kept


def one_reference(data: xr.Dataset) -> np.ndarray:
    kept = np.zeros(_shape(data), bool)
    kept[0] = True
    return kept


def template(data: xr.Dataset) -> np.ndarray:
    """One row of the template before the content, which is the same for every prompt."""
    region = data["region"].transpose("reference", "position").values.astype(str)
    kept = region == "prefix"
    return np.asarray(kept & (kept.cumsum(-1) == 1))


def all_template(data: xr.Dataset) -> np.ndarray:
    region = data["region"].transpose("reference", "position").values.astype(str)
    return np.isin(region, ("prefix", "suffix"))


def a_share(share: float, seed: int = 0) -> Callable[[xr.Dataset], np.ndarray]:
    """A random share of all rows."""
    return lambda data: np.random.default_rng(seed).random(_shape(data)) < share


def but_last(data: xr.Dataset) -> np.ndarray:
    """All but each reference's last row."""
    captured = data["captured"].values.any((0, 1))
    return np.asarray(captured & (captured[:, ::-1].cumsum(-1)[:, ::-1] > 1))


DROPS: Mapping[str, Mapping[str, Callable[[xr.Dataset], np.ndarray]]] = {
    "nothing": {},
    "all but the first rows": {"decode": first_row, "prefill": first_row},
    "all but one reference": {"decode": one_reference, "prefill": one_reference},
    "all but two rows": {"decode": only_first_reference, "prefill": only_first_reference},
    "all but a template row": {"decode": nothing, "prefill": template},
    "all but the template": {"prefill": all_template},
    "decode": {"decode": nothing},
    "half": {"decode": a_share(0.5), "prefill": a_share(0.5, 1)},
    "the last decode row": {"decode": but_last},
}


def drops(label: str, name: str) -> list[Edit]:
    """The edits of one of `DROPS`."""
    return [drop(label, phase, keep) for phase, keep in DROPS[name].items()]


# Labels and references --------------------------------------------------------------------------------------


def relabel(**names: str) -> Edit:
    """Give labels other names; their records stay."""

    def edit(groups: Groups) -> None:
        for name, data in groups.items():
            if "config" in data.dims:
                new = [names.get(str(label), str(label)) for label in data["config"].values]
                groups[name] = data.assign_coords(config=np.array(new, object))

    return edit


def take_references(indices: Sequence[int], names: Sequence[str] | None = None) -> Edit:
    """Keep these references, in this order, under these names, and make their hash fit."""

    def edit(groups: Groups) -> None:
        for name, data in groups.items():
            if "reference" not in data.dims:
                continue
            data = data.isel(reference=list(indices))
            if names is not None:
                data = data.assign_coords(reference=np.array(list(names), object))
            groups[name] = data
        rehash(groups)

    return edit


def duplicate_reference(source: int, target: int) -> Edit:
    """Put one reference, with its transcript and rows, in the place of another."""

    def edit(groups: Groups) -> None:
        count = groups["references"].sizes["reference"]
        chosen = [source if r == target else r for r in range(count)]
        take_references(chosen, [str(n) for n in groups["references"]["reference"].values])(groups)

    return edit


def truncate(tokens: int) -> Edit:
    """Publish the first tokens only, with their rows."""

    def edit(groups: Groups) -> None:
        length = groups["references"]["length"].values
        groups["output"] = groups["output"].isel(output_token=slice(tokens))
        data = groups["decode"]
        inside = data["position"].values[None] < length[:, None] + tokens
        data["captured"].values[:] &= inside[None, None]
        groups["decode"] = data.isel(position=data["captured"].values.any((0, 1, 2)))

    return edit


def one_unit(indices: Sequence[int]) -> Edit:
    """State references as cut from the same tokens of one document, and the others from others.

    The hash of the references does not cover it.
    """

    def edit(groups: Groups) -> None:
        data = groups["references"]
        documents = [f"{r + 1:064x}" for r in range(data.sizes["reference"])]
        for r in indices:
            documents[r] = "f" * 64
        offset = np.zeros(len(documents), data["token_offset"].dtype)
        groups["references"] = data.assign(
            sha256=("reference", np.array(documents, object)), token_offset=("reference", offset)
        )

    return edit


def loud(label: str, reference: int, value: float = 1e30) -> Edit:
    """Give one transcript sketches of huge numbers, from which a scale of rounding may be taken."""

    def edit(groups: Groups) -> None:
        data = groups["decode"]
        c = data["config"].values.tolist().index(label)
        sketch = data["sketch"].transpose("config", "repeat", "reference", "position", "component")
        values = sketch.values.copy()
        values[c, :, reference] = value
        groups["decode"] = data.assign(sketch=(sketch.dims, values))

    return edit


def rehash(groups: Groups) -> None:
    """State the hash of the references as they are now."""
    data = groups["references"]
    digest = hashlib.sha256()
    for r in range(data.sizes["reference"]):
        at = data.isel(reference=r)
        length = int(at["length"])
        ids, following = at["token_ids"].values[:length], at["continuation"].values
        following = following[following >= 0]
        counts = [int(at[f"{part}_length"]) for part in ("prefix", "content", "suffix")]
        digest.update(f"{(str(at['reference'].item()), *counts, len(following))}".encode())
        for part in (ids, following):
            digest.update(np.ascontiguousarray(part, np.int32).tobytes())
    own = groups["provenance"]
    stated = np.array([digest.hexdigest()] * own.sizes["config"], object)
    groups["provenance"] = own.assign(references_sha256=("config", stated))


# Files ------------------------------------------------------------------------------------------------------


def read(path: Path) -> Groups:
    """Return a file's groups, loaded, without metrics and analyses; ``/`` has its attributes."""
    import qdx

    with qdx.open(path) as tree:
        wanted = ("provenance", "references", *PHASES, "output")
        groups = {n: tree[n].to_dataset().load() for n in wanted if n in tree.children}
        groups["/"] = xr.Dataset(attrs=tree.attrs)
    return groups


def write(groups: Groups, target: Path) -> Path:
    """Write a file that says that it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    groups["/"].to_netcdf(target, engine="netcdf4")
    append_all(target, ((name, data) for name, data in groups.items() if name != "/"))
    return target


def commitments(world: World, producers: Sequence[Producer]) -> Groups:
    """Return the groups of the commitments file that these producers publish.

    It is what ``python -m qdx.commit`` makes of rows like these: digests, and no hash, sketch or logit.
    """
    groups = forge(world, producers)
    labels = [p.label for p in producers]
    for phase in ROWS:
        data = groups[phase]
        shape = data["captured"].transpose("config", "repeat", "reference", "position").shape
        committed = data[["captured"]].assign(
            commitment=(
                ("config", "repeat", "reference", "position", "byte"),
                np.zeros((*shape, 16), np.uint8),
            )
        )
        source = world.rows if phase == "decode" else world.prefill
        for c, producer in enumerate(producers):
            generator = np.random.default_rng([producer.seed, c])
            whose = producer.rows if phase == "decode" else producer.prefill
            rows, texts = _each(world, whose or producer.label), _each(world, producer.text or producer.label)
            for r in range(world.count):
                values, how, amount = _made(partial(source, committed=True), rows[r], texts[r])
                found = {"commitment": values["commitment"]}
                _put(committed, c, r, found, how, amount, r, generator)
        number = np.array([0] * len(labels), np.int32)
        groups[phase] = committed.assign(
            commitment=committed["commitment"].where(committed["captured"], 0).astype(np.uint8),
            reruns=("config", number),
            reruns_equal=("config", number),
        )
    groups.pop("replay", None)
    groups["references"] = groups["references"].drop_vars("text", errors="ignore")
    groups["output"] = groups["output"][["token_id"]]
    stated: dict[str, Any] = {**groups["/"].attrs, "kind": "commitments"}
    groups["/"] = xr.Dataset(attrs=stated)
    return groups
