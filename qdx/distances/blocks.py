"""The arithmetic of all pairs: blocks of positions of all configs, read once, on all cores or a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.capture.fingerprints import row_hash
from qdx.dataset.checksums import DamageError, damage
from qdx.distances.pairs import Measure, MetricError, Pair, PhaseRows
from qdx.errors import QdxError
from qdx.statistics import Bools, Ints

if TYPE_CHECKING:
    from qdx.dataset import RunReader

# Elements of one tensor that a metric gets at once. One row of 49,152 (384 KiB) at a time is up to twice as
# fast as eight on a core with 2 MiB of L2; of short rows many, or the calls themselves would cost most.
CALL_ELEMENTS = 2**16
GPU_CALL_ELEMENTS = 2**24  # a GPU needs a few million to be busy for longer than a kernel's launch
TEMPORARIES = 6  # tensors of its rows' size that a metric makes, at most, and those it is given a copy of
CHUNK = 8  # full rows are written, and read best, by so many positions


class Broken:
    """Metrics that raised, when one must not take the others with it."""

    def __init__(self, errors: dict[str, str] | None) -> None:
        self._errors = errors

    def __contains__(self, name: str) -> bool:
        return self._errors is not None and name in self._errors

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note what the metric raises in here; raise it when nobody asked for notes."""
        try:
            yield
        except MetricError as error:
            if self._errors is None:
                raise
            self._errors.setdefault(name, str(error))


class Damaged:
    """Full rows that are not what was written, when they must not take the others with them."""

    def __init__(self, files: dict[str, str] | None) -> None:
        self._files = files
        self._first: dict[str, str] = {}
        self._count: dict[str, int] = {}

    def note(
        self, reader: RunReader, phase: str, repeat: int, reference: int, indices: Ints, *, hidden: bool
    ) -> None:
        """Note damaged rows of a file, at indices of its position axis; raise when nobody asked for notes."""
        if self._files is None:
            raise reader.damage(phase, repeat, reference, indices, hidden=hidden)
        self._add(reader, reader.damage(phase, repeat, reference, indices[:1], hidden=hidden), len(indices))

    def note_broken(self, readers: Sequence[RunReader], phase: PhaseRows) -> None:
        """Note rows whose small values are not numbers, before a metric is blamed for its result."""
        for c, reader in enumerate(readers):
            where = np.argwhere(phase.broken_CDRP[c])
            if not len(where):
                continue
            repeat, reference, position = where[0]
            at = (
                f"repeat {phase.coords['repeat'].values[repeat]}, "
                f"reference {phase.coords['reference'].values[reference]}, "
                f"position {phase.position_P[position]}"
            )
            error = damage(reader.path, f"/{phase.name}/top_logit or logsumexp of {at}", "is not a number")
            if self._files is None:
                raise error
            self._add(reader, error, len(where))

    def _add(self, reader: RunReader, error: DamageError, rows: int) -> None:
        assert self._files is not None
        name = f"{reader.label}/{reader.path.name}"
        first = self._first.setdefault(name, str(error))
        self._count[name] = self._count.get(name, 0) + rows
        more = f" ({self._count[name] - 1} further rows too)" if self._count[name] > 1 else ""
        self._files[name] = f"{first}{more}"


def present(phase: PhaseRows, reference: int) -> Ints:
    """Indices on the position axis of the rows that any config has of a reference."""
    return np.flatnonzero(phase.captured_CDRP[:, :, reference].any((0, 1)))


@dataclass(frozen=True)
class Limits:
    """Say how much is done at once, and where."""

    positions: int | None  # None: a chunk's; on a GPU as many as the memory holds
    memory: int  # bytes
    device: torch.device

    @property
    def call_elements(self) -> int:
        """Elements of one tensor that a metric gets at once."""
        if self.device.type == "cpu":
            return CALL_ELEMENTS
        return min(GPU_CALL_ELEMENTS, self.memory // (2 * TEMPORARIES * 8))  # half of it is for the rows

    def block(self, sources: int, width: int, kinds: int) -> int:
        """Positions of `sources` sources whose rows of `width` elements, in `kinds` forms, fit in memory."""
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        called = threads * TEMPORARIES * 8 * max(width, self.call_elements)
        # float32 of the block that is read while the one before is measured, and that one in float64.
        a_position = max(1, sources) * width * (4 + 8 * max(1, kinds))
        fit = (self.memory - called) // a_position
        fit -= fit % CHUNK if fit > CHUNK else 0
        wanted = self.positions or (CHUNK if self.device.type == "cpu" else fit)
        return max(1, min(wanted, fit))


@dataclass(frozen=True)
class _Job:
    """Metrics of a pair that look at the same rows (reference, position)."""

    pair: Pair
    measures: list[Measure]
    todo_RP: Bools
    hidden: bool


def _jobs(pairs: Sequence[Pair], measures: Sequence[Measure]) -> list[_Job]:
    jobs = []
    for pair in pairs:
        groups: dict[tuple[bool, bool], list[Measure]] = {}
        for measure in measures:
            hidden = measure.on == "hidden"
            if measure.on != "top" and (pair.hidden if hidden else not pair.coarse):
                groups.setdefault((hidden, measure.on_self is None), []).append(measure)
        jobs += [_Job(pair, own, pair.todo(own[0]), hidden) for (hidden, _), own in groups.items()]
    return jobs


def measure_full(
    phase: PhaseRows,
    pairs: Sequence[Pair],
    measures: Sequence[Measure],
    readers: Sequence[RunReader],
    limits: Limits,
    broken: Broken,
    damaged: Damaged,
) -> Iterator[int]:
    """Measure full rows and hidden states block by block; yield the number of its positions after each."""
    jobs = _jobs(pairs, measures)
    kinds = {measure.on for job in jobs for measure in job.measures}
    kinds |= {"prob" for job in jobs for measure in job.measures if "prob" in measure.needs}
    running: list[Future[None]] = []
    with _workers(limits.device) as pool:
        for reference in range(len(phase.length_R)):
            needed = _needed(jobs, reference)
            width = max(
                (readers[config].width(phase.name, hidden=hidden) for config, _, hidden in needed), default=1
            )
            size = limits.block(len(needed), width, len(kinds))
            there = present(phase, reference)
            for start in range(0, len(there), size):
                block = there[start : start + size]
                read = {
                    source: _read(phase, readers[source[0]], source, reference, wanted, damaged)
                    for source, need_P in needed.items()
                    if len(wanted := block[need_P[block]])
                }
                for before in running:
                    before.result()
                running.clear()  # and with it the rows of the block before
                running += _begin(phase, jobs, reference, block, read, kinds, limits, pool, broken)
                yield len(block)
        for last in running:
            last.result()


def _begin(
    phase: PhaseRows,
    jobs: Sequence[_Job],
    reference: int,
    block: Ints,
    read: dict[_Key, tuple[Ints, NDArray[np.float32]]],
    kinds: Set[str],
    limits: Limits,
    pool: ThreadPoolExecutor,
    broken: Broken,
) -> Iterator[Future[None]]:
    """Convert what was read of a block, and have its pairs measured; only they hold its rows."""
    convert = partial(_converted, phase, reference, kinds, limits.device)
    rows = dict(zip(read, pool.map(convert, read, read.values()), strict=True))
    read.clear()
    for job in jobs:
        index = block[job.todo_RP[reference, block]]
        if not len(index):
            continue
        a, b = (rows[(*source, job.hidden)] for source in (job.pair.a, job.pair.b))
        index = index[np.isin(index, a.index) & np.isin(index, b.index)]  # all but damaged rows
        step = max(1, limits.call_elements // a.width)
        for at in range(0, len(index), step):
            yield pool.submit(_measure_rows, phase, job, reference, index[at : at + step], a, b, broken)


@contextmanager
def _workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use, each of which uses one; a single one to feed a GPU.

    Rows are too short for torch's own threads: they meet after every operation of 0.1 ms, and where another
    process has one of the cores, each meeting waits for a time slice (on 2 shared cores 144 s instead of 8).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = threads if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qdx-distances")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


_Key = tuple[int, int, bool]  # config, repeat, whether of hidden states


def _needed(jobs: Sequence[_Job], reference: int) -> dict[_Key, Bools]:
    """Return which rows (position,) of which source are needed."""
    needed: dict[_Key, Bools] = {}
    for job in jobs:
        todo_P = job.todo_RP[reference]
        if todo_P.any():
            for source in (job.pair.a, job.pair.b):
                key = (*source, job.hidden)
                needed[key] = needed.get(key, np.zeros(len(todo_P), bool)) | todo_P
    return needed


@dataclass(frozen=True)
class _Rows:
    """Rows of one source in memory, by what they hold, and their indices on the position axis."""

    index: Ints
    on: Mapping[str, Tensor]

    @property
    def width(self) -> int:
        """Elements of a row."""
        return int(next(iter(self.on.values())).shape[-1])


def _read(
    phase: PhaseRows, reader: RunReader, key: _Key, reference: int, wanted: Ints, damaged: Damaged
) -> tuple[Ints, NDArray[np.float32]]:
    """Read rows at indices of the sweep's position axis: the whole ones, and their indices."""
    _, number, hidden = key
    repeat = int(phase.coords["repeat"].values[number])
    own_reference = reader.references.index(str(phase.coords["reference"].values[reference]))
    own = reader.phase(phase.name)
    own_index = np.searchsorted(own.positions, phase.position_P[wanted])
    rows_PV, bad_P = reader.marked_rows(phase.name, repeat, own_reference, own_index, hidden=hidden)
    if not reader.checked and not hidden:  # an old file: what it has of a row's bits is their hash
        bad_P |= hashes(rows_PV, reader.dtype) != own.row_hash[repeat, own_reference, own_index]
    if not reader.checked and hidden:
        bad_P |= np.isnan(rows_PV).any(-1)
    if not bad_P.any():
        return wanted, rows_PV
    damaged.note(reader, phase.name, repeat, own_reference, own_index[bad_P], hidden=hidden)
    return wanted[~bad_P], rows_PV[~bad_P]


def hashes(rows_PV: NDArray[np.float32], dtype: str) -> NDArray[np.uint64]:
    """Return the ``row_hash`` (position,) of rows of logits of a data type, such as ``float16``."""
    rows = torch.from_numpy(np.ascontiguousarray(rows_PV)).to(getattr(torch, dtype))
    return np.asarray(row_hash(rows).numpy().view(np.uint64))


def _converted(
    phase: PhaseRows,
    reference: int,
    kinds: Set[str],
    device: torch.device,
    key: _Key,
    read: tuple[Ints, NDArray[np.float32]],
) -> _Rows:
    """Return rows as float64 in every form that a metric takes."""
    index, values = read
    row_PV = torch.from_numpy(values).to(device).to(torch.float64)
    if key[2]:
        return _Rows(index, {"hidden": row_PV})
    on = {"logit": row_PV} if "logit" in kinds else {}
    if "logprob" in kinds:
        # The recorder's sum, of the same float64 logits: no row is exponentiated for it again.
        logsumexp_P = torch.from_numpy(phase.logsumexp_CDRP[(*key[:2], reference)][index]).to(device)
        on["logprob"] = row_PV - logsumexp_P[:, None] if on else row_PV.sub_(logsumexp_P[:, None])
    if "prob" in kinds:
        on["prob"] = on["logprob"].exp()
    return _Rows(index, on)


def _measure_rows(
    phase: PhaseRows, job: _Job, reference: int, index: Ints, a: _Rows, b: _Rows, broken: Broken
) -> None:
    """Measure a few rows of a pair by every metric while they are in the cache."""
    if a.width != b.width:
        what = "hidden states of {} and {} elements" if job.hidden else "rows of {} and {} logits"
        remedy = "compare configs of one model" if job.hidden else "use one tokenizer"
        raise QdxError(f"{what.format(a.width, b.width)} cannot be compared: {remedy}")
    places = [np.searchsorted(rows.index, index) for rows in (a, b)]
    for measure in job.measures:
        if measure.name in broken:
            continue
        sides = []
        for rows, source, at in zip((a, b), (job.pair.a, job.pair.b), places, strict=True):
            row_PV = _take(rows.on[measure.on], at)
            beside = phase.beside(source, reference, index, row_PV.device)
            if "prob" in measure.needs:
                beside["prob"] = _take(rows.on["prob"], at)
            sides.append((row_PV, beside))
        with broken.noting(measure.name):
            job.pair.fill(measure, reference, index, sides[0], sides[1])


def _take(rows_PV: Tensor, at: Ints) -> Tensor:
    """Return the rows at sorted indices, without a copy where they lie together."""
    first, last = int(at[0]), int(at[-1]) + 1
    return (
        rows_PV[first:last] if last - first == len(at) else rows_PV[torch.from_numpy(at).to(rows_PV.device)]
    )
