"""Fills ``/metrics/<metric>/<phase>``: every metric between every two configs, and between repeats of each.

Every row is read once: a block of positions of all configs is in memory, turned into float64
log-probabilities (and probabilities) once a config, and handed to the metrics a pair and a few rows at a
time, all metrics one after the other, so that what they read stays in the processor's cache. Two rows with
the same hash take the metric's value on itself without being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qdx.dataset.layout import PHASES
from qdx.distances.blocks import Broken, Damaged, Limits, measure_full, present
from qdx.distances.coarse import coarsen, shared
from qdx.distances.pairs import Measure, MetricError, Pair, PhaseRows, Source, dataset_of, pairs_of
from qdx.statistics import Ints

if TYPE_CHECKING:
    import xarray as xr

    from qdx.dataset import RunReader


def compute(
    directory: Path,
    target: Path,
    metrics: Mapping[str, Callable[..., Any]],
    **options: Any,
) -> None:
    """Measure every pair of configs and of repeats; append ``/metrics/<metric>/<phase>`` to the sweep file.

    Takes what `measure` takes and raises what it raises.
    """
    from qdx.dataset import append_all

    append_all(Path(target), measure(directory, target, metrics, **options))


def measure(
    directory: Path,
    target: Path,
    metrics: Mapping[str, Callable[..., Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
    broken: dict[str, str] | None = None,
    damaged: dict[str, str] | None = None,
    block_positions: int | None = None,
    memory_mib: int = 512,
    device: str | None = None,
) -> Iterator[tuple[str, xr.Dataset]]:
    """Measure every pair of configs and of repeats.

    Parameters
    ----------
    directory : Path
        Sweep folder with ``<label>/run.nc`` of every config in `target`.
    target : Path
        The merged sweep file. It is closed when the first group is yielded, and not opened again.
    metrics : Mapping
        Name → what `qdx.plugins.build` made of its node.
    progress : callable, optional
        Called with (positions done, positions in all).
    broken : dict, optional
        Where a metric that raises or breaks its contract is noted, name → error, and measured no further: the
        groups of phases that it had been through stay. Without it that error is raised.
    damaged : dict, optional
        Where files with damaged full rows are noted, ``<label>/run.nc`` → the rows: these are not measured,
        all others are. Without it the first one is an error.
    block_positions : int, optional
        Positions whose rows are in memory together. Default: eight, by which full rows are written; on a GPU,
        which is idle between small blocks, as many eights as `memory_mib` holds.
    memory_mib : int
        Upper bound of what rows and metrics take in memory (of the GPU, where one is used), MiB: fewer
        positions are taken together where they would need more, but never less than one of all configs.
    device : str, optional
        Where the arithmetic is done, a torch device. Default: the GPU when torch finds one, else all cores.

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
    DamageError
        When a row is not what was written, and `damaged` was not given. The rows of a file that has no
        checksums are held against their ``row_hash``.

    Notes
    -----
    Distances are of the first repeat of each config; ``repeat_distance`` is of every two repeats of one, from
    the earlier to the later. In ``/decode`` a pair is measured up to and including the row that predicts the
    first differing output token. If that is the very first token, which prefill predicts, no decode row is
    measured. Without full rows (``capture=topk``) a pair is measured on coarsened rows, see
    `qdx.distances.coarse`. An infinite distance (a token impossible in one row only) becomes NaN, counted
    in the attribute ``infinite``.
    """
    from qdx.dataset import RunReader

    directory, target = Path(directory), Path(target)
    found, rows = Broken(broken), Damaged(damaged)
    measures: list[Measure] = []
    for name, call in metrics.items():
        with found.noting(name):
            measures.append(Measure.of(name, call))
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    phases = [PhaseRows.read(target, name) for name in _phases_in(target)]
    phases = [phase for phase in phases if phase.captured_CDRP.any()]
    total = sum(len(present(phase, r)) for phase in phases for r in range(len(phase.length_R)))
    done = 0
    with ExitStack() as stack:
        labels = [str(label) for label in phases[0].coords["config"].values] if phases else []
        readers = [RunReader(directory / label / "run.nc") for label in labels]
        for reader in readers:
            stack.callback(reader.close)
        for phase in phases:
            rows.note_broken(readers, phase)
            # A metric that breaks in one phase is not tried in the next.
            measures = _that_have_rows(phase, measures, labels, readers, found)
            pairs = pairs_of(
                phase,
                [reader.phase(phase.name).has_rows for reader in readers],
                [reader.phase(phase.name).has_hidden for reader in readers],
                measures,
            )
            for pair in pairs:
                _measure_top(phase, pair, measures, found)
            limits = Limits(block_positions, memory_mib * 2**20, where)
            for positions in measure_full(phase, pairs, measures, readers, limits, found, rows):
                done += positions
                if progress is not None:
                    progress(done, total)
            for each in measures:
                if each.name not in found:
                    yield f"metrics/{each.name}/{phase.name}", dataset_of(phase, pairs, each)


def _that_have_rows(
    phase: PhaseRows,
    measures: Sequence[Measure],
    labels: Sequence[str],
    readers: Sequence[RunReader],
    broken: Broken,
) -> list[Measure]:
    """Return the metrics that are not broken and find the hidden states that they ask for."""
    has_hidden_C = [reader.phase(phase.name).has_hidden for reader in readers]
    for each in measures:
        with broken.noting(each.name):
            _check_hidden(each, labels, has_hidden_C)
    return [each for each in measures if each.name not in broken]


def _check_hidden(measure: Measure, labels: Sequence[str], has_hidden_C: Sequence[bool]) -> None:
    """Refuse a metric on hidden states where no two configs, nor a config's repeats, could be compared."""
    if measure.on == "hidden" and not any(has_hidden_C):
        raise MetricError(
            f"metric {measure.name!r} compares hidden states, which none of {', '.join(labels)} kept: "
            f"run them with capture=hidden"
        )


def _phases_in(target: Path) -> list[str]:
    import netCDF4

    with netCDF4.Dataset(target) as file:
        here = [file[name] for name in PHASES if name in file.groups]
        return [
            group.name
            for group in here
            if group.dimensions["position"].size and "producer" not in group["captured"].dimensions
        ]


def _measure_top(phase: PhaseRows, pair: Pair, measures: Sequence[Measure], broken: Broken) -> None:
    """Measure what the greatest logits suffice for: metrics of them, and coarsened rows."""
    wanted = [measure for measure in measures if measure.on == "top" or (pair.coarse and measure.coarse)]
    if not (wanted or pair.coarse):
        return
    for reference in np.flatnonzero(pair.rows_RP.any(-1)).tolist():
        tops = _Tops.read(phase, pair, reference)
        if tops.rank_in_q is not None and pair.shared_RP is not None:
            rows = pair.rows_RP[reference]
            pair.shared_RP[reference, rows] = (tops.rank_in_q >= 0).sum(-1).numpy()[rows]
        for measure in wanted:
            index = np.flatnonzero(pair.todo(measure)[reference])
            if not len(index) or measure.name in broken:
                continue
            with broken.noting(measure.name):
                if measure.on == "top":
                    tops.fill_top(measure, index)
                else:
                    tops.fill_coarse(measure, index)


@dataclass(frozen=True)
class _Tops:
    """The greatest logits of one reference in both configs of a pair: ids, values, log-sum-exp."""

    phase: PhaseRows
    pair: Pair
    reference: int
    p: tuple[Tensor, Tensor, Tensor]
    q: tuple[Tensor, Tensor, Tensor]
    rank_in_q: Tensor | None  # of p's ids, −1 where q's top lacks one; None: rows are compared whole

    @classmethod
    def read(cls, phase: PhaseRows, pair: Pair, reference: int) -> _Tops:
        p, q = phase.top(pair.a, reference), phase.top(pair.b, reference)
        return cls(phase, pair, reference, p, q, shared(p[1], q[1]) if pair.coarse else None)

    def fill_top(self, measure: Measure, index: Ints) -> None:
        """Measure the top ids themselves, as many as both rows have."""
        kept = int(min((ids[index] >= 0).sum(-1).min() for _, ids, _ in (self.p, self.q)))
        a, b = (
            (values[index, :kept], {**self._beside(source, index), "id": ids[index, :kept]})
            for source, (values, ids, _) in zip((self.pair.a, self.pair.b), (self.p, self.q), strict=True)
        )
        self.pair.fill(measure, self.reference, index, a, b)

    def fill_coarse(self, measure: Measure, index: Ints) -> None:
        """Measure rows of the shared ids and one bucket for all others."""
        assert self.rank_in_q is not None
        for group, *rows_GS in coarsen(self.p[0][index], self.q[0][index], self.rank_in_q[index]):
            at = index[group.numpy()]
            if measure.on == "logit":
                sums = self.p[2], self.q[2]
                rows_GS = [row + total[at][:, None] for row, total in zip(rows_GS, sums, strict=True)]
            a, b = (
                (row, {**self._beside(source, at), **_prob(measure, row)})
                for source, row in zip((self.pair.a, self.pair.b), rows_GS, strict=True)
            )
            self.pair.fill(measure, self.reference, at, a, b)

    def _beside(self, source: Source, index: Ints) -> dict[str, Tensor]:
        return self.phase.beside(source, self.reference, index, torch.device("cpu"))


def _prob(measure: Measure, row_PV: Tensor) -> dict[str, Tensor]:
    return {"prob": row_PV.exp()} if "prob" in measure.needs else {}
