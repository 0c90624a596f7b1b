"""Lays out a run's file, so that a killed run leaves every synchronised row readable.

HDF5 has no journal: a process that dies while HDF5 writes its own structures leaves a file that cannot be
opened. The unfinished file is therefore whole before the first row is computed (it gets its name after it was
closed), everything in it is contiguous, and afterwards only values change in place. Full rows wait in a plain
file (`qdx.dataset.journal`). What changes the structure, such as compression, is done in a new file that
takes the other's name when it is closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdx.capture.densities import ALTERNATIVES, TEMPERATURES
from qdx.capture.plan import Plan, plan, union
from qdx.dataset import checksums, layout, writing
from qdx.errors import QdxError
from qdx.schema import CaptureSettings

if TYPE_CHECKING:
    from qdx.dataset.journal import Journal

BLOCK_BYTES = 8 * 2**20  # that are copied at once
_Block = tuple[tuple[int, ...], int, int]  # place of a stretch of rows, its first and its last position + 1


@dataclass(frozen=True)
class Structure:
    """Collect what decides the groups, dimensions and variables of one run's file.

    Attributes
    ----------
    label : str
        The config's.
    references : sequence of Reference
    repeats : int
        Of every phase.
    output_tokens : int
        Generated for each reference.
    vocab : int
        Logits of a row, without padding.
    components : int
        Values of a sketch.
    k : int
        Greatest logits of a row that are kept.
    wide : str
        Which full rows are kept: ``logit``, ``hidden``, or none where it is empty.
    hidden : int
        Values of a hidden state; 0 where the backend gives none.
    plan : Mapping
        The captured positions of every phase, see `qdx.capture.plan.plan`.
    coords : dict
        Value of every coordinate of `qdx.dataset.layout.CONFIG_COORDS`.
    producers : sequence of Producer
        Whose transcripts are replayed, if any.
    settings : Mapping
        Observed values of the backend's options.
    """

    label: str
    references: Sequence[layout.ReferenceLike]
    repeats: int
    output_tokens: int
    vocab: int
    components: int
    k: int
    wide: str
    hidden: int
    plan: Plan
    coords: dict[str, Any]
    producers: Sequence[layout.Producer] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, capture: CaptureSettings, **run: Any) -> Structure:
        """Return the structure of a run of which so much is kept.

        Parameters
        ----------
        capture : CaptureSettings
        **run
            The attributes that the settings do not decide.

        Raises
        ------
        QdxError
            When hidden states are to be kept and there are none.
        """
        if capture.mode == "hidden" and run["hidden"] < 1:
            raise QdxError("capture.mode=hidden: this backend gives no hidden states: choose full or topk")
        planned = plan(
            run["references"],
            prefill_positions=capture.prefill_positions,
            output_tokens=run["output_tokens"],
            producers=run["producers"],
        )
        wide = {"full": "logit", "hidden": "hidden"}.get(capture.mode, "")
        k = min(capture.k, run["vocab"])
        return cls(components=capture.components, k=k, wide=wide, plan=planned, **run)

    @property
    def config_coords(self) -> dict[str, layout.Variable]:
        """The coordinates on ``config``."""
        return layout.CONFIG_COORDS | layout.settings(self.settings)

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that are recorded."""
        return tuple(self.plan)

    @property
    def width(self) -> int:
        """Values of a full row."""
        return self.hidden if self.wide == "hidden" else self.vocab

    def axis(self, phase: str) -> NDArray[np.int32]:
        """Return the coordinate ``position`` of a phase: the union over references."""
        return union(self.plan[phase])

    def sizes(self, phase: str) -> dict[str, int]:
        """Return the length of every dimension of a phase."""
        return {
            "config": 1,
            "repeat": self.repeats,
            "producer": len(self.producers),
            "reference": len(self.references),
            "position": len(self.axis(phase)),
            "component": self.components,
            "rank": self.k,
            "vocab": self.vocab,
            "element": self.hidden,
            "output_token": self.output_tokens,
            "alternative": len(ALTERNATIVES),
            "temperature": len(TEMPERATURES),
        }

    def variables(self, phase: str) -> dict[str, layout.Variable]:
        """Return the variables of a phase."""
        drawn = any(producer.samplers is not None for producer in self.producers)
        return layout.phase_variables(phase, wide=self.wide, producers=bool(self.producers), drawn=drawn)

    def shape(self, phase: str) -> tuple[int, ...]:
        """Return the length of every dimension that names a row: all of `layout.row_dims` but config."""
        sizes = self.sizes(phase)
        return tuple(sizes[dim] for dim in layout.row_dims(phase, bool(self.producers))[1:])

    def places(self, phase: str) -> Iterator[tuple[tuple[int, ...], NDArray[np.int32]]]:
        """Iterate over what is recorded in one go: (repeat, producer if any, reference) and its positions."""
        outer = self.shape(phase)[:-1]
        for repeat in range(self.repeats):
            for place, positions in enumerate(self.plan[phase]):
                yield (repeat, *map(int, np.unravel_index(place, outer[1:]))), positions

    def smallest_chunk(self) -> int:
        """Return the values of the smallest chunk of full rows."""
        rows = layout.WIDE[self.wide or "logit"]
        return min(math.prod(layout.chunk_sizes(rows, self.sizes(phase))) for phase in self.phases)

    def create(self, file: Any, *, small: Mapping[str, Any] | None, wide: Mapping[str, Any] | None) -> None:
        """Create every group but ``/provenance``.

        Parameters
        ----------
        file : netCDF4.Dataset
        small : Mapping, optional
            Filters of the small variables; None stores them contiguously, filled.
        wide : Mapping, optional
            Filters of the full rows; None leaves them out.
        """
        writing.put_references(file, self.references)
        for phase in self.phases:
            self._create_phase(file.createGroup(phase), phase, small, wide)
        if self.producers:
            return
        group, sizes = file.createGroup("output"), self.sizes("prefill")
        self._put_index(group, sizes)
        for variable in layout.OUTPUT.values():
            if variable.dtype != "str":
                _create(group, variable, sizes, " ".join(self.config_coords), small)

    def put_text(self, file: Any, texts: Mapping[tuple[int, int], str]) -> None:
        """Write the generated texts; at the end, when the longest is known."""
        if self.producers:
            return
        table = [[texts.get((r, f), "") for f in range(len(self.references))] for r in range(self.repeats)]
        letters = writing.characters([table])
        sizes, width = self.sizes("prefill"), letters.shape[-1]
        coordinates = " ".join(self.config_coords)
        created = writing.create(
            file["output"], layout.OUTPUT["text"], sizes, coordinates=coordinates, width=width
        )
        created[...] = letters

    def copy(self, source: Any, target: Any, journal: Journal | None) -> dict[str, checksums.Sums]:
        """Copy what was recorded from the unfinished file and its journal into the whole one.

        Returns
        -------
        dict
            Path of a variable of full rows to the checksums of its rows: made of what is written, and not of
            what the file gives back.
        """
        sums: dict[str, checksums.Sums] = {}
        for phase in self.phases:
            for name in self.variables(phase).keys() - {self.wide}:
                for block in _blocks(source[phase][name]):
                    target[phase][name][block] = source[phase][name][block]
            if journal is not None and self.wide:
                rows = target[phase][self.wide]
                sums[checksums.join(f"/{phase}", self.wide)] = self._copy_rows(journal, rows, phase)
        if not self.producers:
            for name, variable in layout.OUTPUT.items():
                if variable.dtype != "str":
                    target["output"][name][...] = source["output"][name][...]
        return sums

    def _copy_rows(self, journal: Journal, variable: Any, phase: str) -> checksums.Sums:
        empty = np.full((1, variable.shape[-1]), variable.getncattr("_FillValue"), np.float32)
        sums: checksums.Sums = np.full(variable.shape[:-1], checksums.sums_of(empty, 1)[0])
        if not variable.size:
            return sums
        # netCDF would keep 64 MiB of such a variable in memory, and no row is read or written twice.
        variable.set_var_chunk_cache(max(2**20, 4 * math.prod(variable.chunking())))
        axis = self.axis(phase)
        step = max(1, BLOCK_BYTES // (4 * self.width))
        blocks = (
            (place, start, min(start + step, stretch.stop))
            for place, positions in self.places(phase)
            for stretch, _ in writing.runs_of(np.searchsorted(axis, positions))
            for start in range(stretch.start, stretch.stop, step)
        )

        def read(block: _Block) -> NDArray[np.float32]:
            place, start, stop = block
            return journal.read(phase, (*place, start), stop - start)

        for (place, start, stop), rows_PV in _ahead(read, blocks):
            at: Any = (0, *place, slice(start, stop))
            variable[at] = rows_PV
            sums[at] = checksums.sums_of(rows_PV, len(rows_PV))
        return sums

    def _put_index(self, group: Any, sizes: Mapping[str, int]) -> None:
        names = [r.name for r in self.references]
        writing.put_index(group, sizes, config=[self.label], repeat=np.arange(self.repeats), reference=names)
        values = self.coords | {f"{layout.SETTING}{name}": value for name, value in self.settings.items()}
        for name, variable in self.config_coords.items():
            writing.put(group, variable, sizes, [values[name]])

    def _create_phase(
        self, group: Any, phase: str, small: Mapping[str, Any] | None, wide: Mapping[str, Any] | None
    ) -> None:
        axis, sizes = self.axis(phase), self.sizes(phase)
        self._put_index(group, sizes)
        writing.put_index(group, sizes, position=axis)
        region = np.full((len(self.references), len(axis)), "", object)
        for index, reference in enumerate(self.references):  # of all producers
            own = np.isin(axis, union(self.plan[phase][index :: len(self.references)]))
            region[index, own] = layout.region_of(reference, axis[own])
        writing.put(group, layout.REGION, sizes, region)
        coordinates = " ".join([*self.config_coords, "region"])
        by_producer = coordinates
        if self.producers:
            writing.put(group, layout.PRODUCER, sizes, [producer.name for producer in self.producers])
            for name, variable in layout.PRODUCER_COORDS.items():
                own_name = name.removeprefix("producer_")
                values = [producer.coords[own_name] for producer in self.producers]
                writing.put(group, variable, sizes, values)
            by_producer = " ".join([*self.config_coords, *layout.PRODUCER_COORDS, "region"])
        for name, variable in self.variables(phase).items():
            told = by_producer if "producer" in variable.dims else coordinates
            if name != self.wide:
                _create(group, variable, sizes, told, small)
            elif wide is not None:
                writing.create(group, variable, sizes, filters=wide, coordinates=told)


def _create(
    group: Any,
    variable: layout.Variable,
    sizes: Mapping[str, int],
    coordinates: str,
    filters: Mapping[str, Any] | None,
) -> None:
    created = writing.create(group, variable, sizes, filters=filters, coordinates=coordinates)
    if filters is None:
        for block in _blocks(created):
            shape = [part.stop - part.start for part in block]
            created[block] = np.full([*shape, *created.shape[len(block) :]], variable.fill, created.dtype)


def _blocks(variable: Any) -> Iterator[tuple[slice, ...]]:
    """Cut a small variable, (config, repeat, producer or reference, …), into blocks that are read at once.

    As many repeats as fit, or one repeat and as many producers or references: a call of netCDF4 for each
    repeat of each variable would be most of the time of a run of many short ones.
    """
    if not variable.size:
        return
    _, repeats, inner = variable.shape[:3]
    row = max(1, variable.dtype.itemsize * math.prod(variable.shape[3:]))
    per_repeat = max(1, BLOCK_BYTES // (row * inner))
    per_inner = max(1, min(inner, BLOCK_BYTES // row))
    for first in range(0, repeats, per_repeat):
        for start in range(0, inner, per_inner):
            yield (
                slice(0, 1),
                slice(first, min(first + per_repeat, repeats)),
                slice(start, min(start + per_inner, inner)),
            )


def _ahead(
    read: Callable[[_Block], NDArray[np.float32]], blocks: Iterable[_Block]
) -> Iterator[tuple[_Block, NDArray[np.float32]]]:
    """Read every block, in a thread of its own, while the caller compresses the one before it."""
    with ThreadPoolExecutor(1, thread_name_prefix="qdx-journal") as pool:
        before: tuple[_Block, Future[NDArray[np.float32]]] | None = None
        for block in blocks:
            coming = block, pool.submit(read, block)
            if before is not None:
                yield before[0], before[1].result()
            before = coming
        if before is not None:
            yield before[0], before[1].result()
