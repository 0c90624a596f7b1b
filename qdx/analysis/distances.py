"""Fills ``/metrics/<metric>/<phase>``: every metric between every two configs, and between repeats of each.

Rows are read once a block of positions, turned into float64 log-probabilities once, and handed to the metrics
a row or a few at a time, so that what a metric makes of them stays in the processor's cache. Two rows with
the same hash take the metric's value on itself without being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qdx.analysis.coarse import coarsen, shared
from qdx.analysis.measuring import Measure, MetricError, Pair, PhaseRows, Source, dataset_of, pairs_of
from qdx.analysis.numerics import Bools, Ints
from qdx.errors import QdxError

if TYPE_CHECKING:
    import xarray as xr

    from qdx.dataset import RunReader

PHASES = ("prefill", "decode", "replay")

# Elements of one tensor that a metric gets at once. One row of 49,152 (384 KiB) at a time is up to twice as
# fast as eight on a core with 2 MiB of L2; of short rows many, or the calls themselves would cost most.
CALL_ELEMENTS = 2**16


def compute(
    directory: Path,
    target: Path,
    metrics: Mapping[str, Callable[..., Any]],
    **options: Any,
) -> None:
    """Measure every pair of configs and of repeats; append ``/metrics/<metric>/<phase>`` to the sweep file.

    Takes what `measure` takes and raises what it raises.
    """
    from qdx.dataset import append

    for group, dataset in measure(directory, target, metrics, **options):
        append(Path(target), group, dataset)


def measure(
    directory: Path,
    target: Path,
    metrics: Mapping[str, Callable[..., Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
    broken: dict[str, str] | None = None,
    block_positions: int = 8,
    block_mib: int = 256,
) -> Iterator[tuple[str, xr.Dataset]]:
    """Measure every pair of configs and of repeats.

    Parameters
    ----------
    directory : Path
        Sweep folder with ``<label>/run.nc`` of every config in `target`.
    target : Path
        The merged sweep file. It is closed whenever a group is yielded.
    metrics : Mapping
        Name → what `qdx.plugins.build` made of its node.
    progress : callable, optional
        Called with (positions done, positions in all).
    broken : dict, optional
        Where a metric that raises or breaks its contract is noted, name → error, and measured no further: the
        groups of phases that it had been through stay. Without it that error is raised.
    block_positions : int
        Positions whose rows are in memory together; full rows are written, and read best, by eights.
    block_mib : int
        Upper bound of the rows in memory, MiB: fewer positions are taken together where they would need more,
        but never less than one position of all configs.

    Yields
    ------
    group : str
        ``metrics/<metric>/<phase>``.
    dataset : xarray.Dataset
        ``<metric>`` (config, config_b, reference, position) and ``repeat_distance`` (config, repeat_pair,
        reference, position), NaN where not measured; ``shared_ids`` like the first where rows were coarsened.

    Raises
    ------
    QdxError
        When a metric breaks its contract or asks for what was not kept, and `broken` was not given; the
        message names it.

    Notes
    -----
    Distances are of the first repeat of each config; ``repeat_distance`` is of every two repeats of one, from
    the earlier to the later. In ``/decode`` a pair is measured up to and including the row that predicts the
    first differing output token. If that is the very first token, which prefill predicts, no decode row is
    measured. Without full rows (``capture=topk``) a pair is measured on coarsened rows, see
    `qdx.analysis.coarse`. An infinite distance (a token impossible in one row only) becomes NaN, counted
    in the attribute ``infinite``.
    """
    from qdx.dataset import RunReader

    directory, target = Path(directory), Path(target)
    found = _Broken(broken)
    measures = []
    for name, call in metrics.items():
        with found.noting(name):
            measures.append(Measure.of(name, call))
    phases = [PhaseRows.read(target, name) for name in _phases_in(target)]
    phases = [phase for phase in phases if phase.captured_CDRP.any()]
    total = sum(len(_present(phase, r)) for phase in phases for r in range(len(phase.length_R)))
    done = 0
    with ExitStack() as stack:
        labels = [str(label) for label in phases[0].coords["config"].values] if phases else []
        readers = [RunReader(directory / label / "run.nc") for label in labels]
        for reader in readers:
            stack.callback(reader.close)
        for phase in phases:
            has_rows_C = [reader.phase(phase.name).has_rows for reader in readers]
            measures = [each for each in measures if each.name not in found]
            pairs = pairs_of(phase, has_rows_C, measures)
            for pair in pairs:
                _measure_top(phase, pair, measures, found)
            for positions in _measure_full(
                phase, pairs, measures, readers, block_positions, block_mib, found
            ):
                done += positions
                if progress is not None:
                    progress(done, total)
            for each in measures:
                if each.name in found:
                    continue
                yield f"metrics/{each.name}/{phase.name}", dataset_of(phase, pairs, each)


class _Broken:
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


def _phases_in(target: Path) -> list[str]:
    import netCDF4

    with netCDF4.Dataset(target) as file:
        here = [file[name] for name in PHASES if name in file.groups]
        return [
            group.name
            for group in here
            if group.dimensions["position"].size and "producer" not in group["captured"].dimensions
        ]


def _present(phase: PhaseRows, reference: int) -> Ints:
    """Indices on the position axis of the rows that any config has of a reference."""
    return np.flatnonzero(phase.captured_CDRP[:, :, reference].any((0, 1)))


def _measure_top(phase: PhaseRows, pair: Pair, measures: Sequence[Measure], broken: _Broken) -> None:
    """Measure what the greatest logits suffice for: metrics of them, and coarsened rows."""
    wanted = [
        measure for measure in measures if measure.on == "top" or (pair.coarse and measure.meta["coarse"])
    ]
    for reference in np.flatnonzero(pair.rows_RP.any(-1)).tolist() if wanted or pair.coarse else ():
        (p, p_id, p_sum), (q, q_id, q_sum) = (phase.top(source, reference) for source in (pair.a, pair.b))
        rank_in_q = shared(p_id, q_id) if pair.coarse else None
        if rank_in_q is not None and pair.shared_RP is not None:
            rows = pair.rows_RP[reference]
            pair.shared_RP[reference, rows] = (rank_in_q >= 0).sum(-1).numpy()[rows]
        for measure in wanted:
            index = np.flatnonzero(pair.todo(measure)[reference])
            if not len(index) or measure.name in broken:
                continue
            with broken.noting(measure.name):
                if measure.on == "top":
                    kept = int(torch.minimum((p_id[index] >= 0).sum(-1), (q_id[index] >= 0).sum(-1)).min())
                    first = [x[index, :kept] for x in (p, q, p_id, q_id)]
                    pair.fill(measure, reference, index, first[0], first[1], p_id=first[2], q_id=first[3])
                elif rank_in_q is not None:
                    for group, p_GS, q_GS in coarsen(p[index], q[index], rank_in_q[index]):
                        at = index[group.numpy()]
                        if measure.on == "logit":
                            p_GS, q_GS = p_GS + p_sum[at][:, None], q_GS + q_sum[at][:, None]
                        pair.fill(measure, reference, at, p_GS, q_GS)


def _measure_full(
    phase: PhaseRows,
    pairs: Sequence[Pair],
    measures: Sequence[Measure],
    readers: Sequence[RunReader],
    block_positions: int,
    block_mib: int,
    broken: _Broken,
) -> Iterator[int]:
    """Measure full rows block by block; yield the number of its positions after each."""
    full = [measure for measure in measures if measure.on != "top"]
    scales = {measure.on for measure in full}
    jobs = [(pair, measure, pair.todo(measure)) for pair in pairs if not pair.coarse for measure in full]
    running: list[Future[None]] = []
    with _workers() as pool:
        for reference in range(len(phase.length_R)):
            needed = _needed(jobs, reference)
            vocab = max((readers[config].vocab for config, _ in needed), default=1)
            # Twice: a block is read while the one before is measured.
            bytes_a_position = 2 * 8 * vocab * max(1, len(needed)) * max(1, len(scales))
            size = max(1, min(block_positions, block_mib * 2**20 // bytes_a_position))
            present = _present(phase, reference)
            for start in range(0, len(present), size):
                block = present[start : start + size]
                rows = {
                    source: _load(phase, readers[source[0]], source, reference, wanted, scales)
                    for source, need_P in needed.items()
                    if len(wanted := block[need_P[block]])
                }
                for before in running:
                    before.result()
                running = [
                    pool.submit(
                        _measure_rows, pair, measure, reference, index, rows[pair.a], rows[pair.b], broken
                    )
                    for pair, measure, todo_RP in jobs
                    if len(index := block[todo_RP[reference, block]])
                ]
                yield len(block)
        for last in running:
            last.result()


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use, each of which uses one.

    Rows are too short for torch's own threads: they meet after every operation of 0.1 ms, and where another
    process has one of the cores, each meeting waits for a time slice (on 2 shared cores 144 s instead of 8).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="qdx-distances")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _needed(jobs: Sequence[tuple[Pair, Measure, Bools]], reference: int) -> dict[Source, Bools]:
    """Return which full rows (position,) of which source are needed."""
    needed: dict[Source, Bools] = {}
    for pair, _, todo_RP in jobs:
        if todo_RP[reference].any():
            for source in (pair.a, pair.b):
                needed[source] = needed.get(source, np.zeros(todo_RP.shape[1], bool)) | todo_RP[reference]
    return needed


@dataclass(frozen=True)
class _Rows:
    """Rows of one source in memory, by what they hold, and their indices on the position axis."""

    index: Ints
    on: Mapping[str, Tensor]


def _load(
    phase: PhaseRows, reader: RunReader, source: Source, reference: int, wanted: Ints, scales: set[str]
) -> _Rows:
    """Read rows at indices of the sweep's position axis, as float64 logits, log-probabilities or both."""
    repeat = int(phase.coords["repeat"].values[source[1]])
    own_reference = reader.references.index(str(phase.coords["reference"].values[reference]))
    own_index = np.searchsorted(reader.phase(phase.name).positions, phase.position_P[wanted])
    logit_PV = torch.from_numpy(reader.rows(phase.name, repeat, own_reference, own_index)).to(torch.float64)
    on = {"logit": logit_PV} if "logit" in scales else {}
    if "logprob" in scales:
        on["logprob"] = torch.log_softmax(logit_PV, -1)
    return _Rows(wanted, on)


def _measure_rows(
    pair: Pair, measure: Measure, reference: int, index: Ints, a: _Rows, b: _Rows, broken: _Broken
) -> None:
    """Measure full rows, as many at once as stay in the cache."""
    p_PV, q_PV = a.on[measure.on], b.on[measure.on]
    if p_PV.shape[-1] != q_PV.shape[-1]:
        raise QdxError(
            f"rows of {p_PV.shape[-1]} and {q_PV.shape[-1]} logits cannot be compared: use one tokenizer"
        )
    step = max(1, CALL_ELEMENTS // p_PV.shape[-1])
    for start in range(0, len(index), step):
        some = index[start : start + step]
        p, q = (_take(x_PV, np.searchsorted(x.index, some)) for x, x_PV in ((a, p_PV), (b, q_PV)))
        if measure.name in broken:
            return
        with broken.noting(measure.name):
            pair.fill(measure, reference, some, p, q)


def _take(rows_PV: Tensor, at: Ints) -> Tensor:
    """Return the rows at sorted indices, without a copy where they lie together."""
    first, last = int(at[0]), int(at[-1]) + 1
    return rows_PV[first:last] if last - first == len(at) else rows_PV[torch.from_numpy(at)]
