"""Streams what a run computes into its file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.capture.derive import derive
from qdx.capture.positions import CaptureSettings, plan
from qdx.capture.sketching import Sketcher
from qdx.capture.structure import Structure
from qdx.dataset import encoding, layout, writing
from qdx.errors import QdxError

_EIGHT = 8  # rows that are derived and written together


class Recorder:
    """Writes ``run.nc.part`` while the model runs and renames it to ``run.nc`` when everything is there.

    A context manager. A backend says what it runs with `begin`, hands over rows of logits with `rows` in any
    split and order of items, and calls `sync` after every batch: what was handed over before a `sync` is on
    disk then and survives ``kill -9``. At most eight rows of an item are in memory, besides the derived
    numbers of the batch.

    Parameters
    ----------
    path : Path
        Where the finished file goes.
    references : sequence of Reference
    repeats : int
        Repeats of every phase.
    output_tokens : int
        Generated tokens a reference.
    vocab : int
        Logits of a row, without padding.
    dtype : torch.dtype
        Data type of the logits: float16, bfloat16 or float32.
    capture : CaptureSettings
    label : str
        The config's label.
    coords : Mapping
        Value of every coordinate of `qdx.dataset.layout.CONFIG_COORDS`.
    layers : Mapping
        Layer type → (class name in the engine, normalized kernel name).
    attrs : Mapping
        Root attributes; None becomes "", a bool 0 or 1, a mapping or list JSON.
    portable : bool
        Compress full rows with zlib instead of blosc.

    Raises
    ------
    QdxError
        When the folder cannot be written, the disk is full, or a logit is NaN or infinite.
    ValueError
        When a backend breaks the contract: rows nobody asked for, twice, of another length or type.
    """

    def __init__(
        self,
        path: Path,
        *,
        references: Sequence[layout.ReferenceLike],
        repeats: int,
        output_tokens: int,
        vocab: int,
        dtype: torch.dtype,
        capture: CaptureSettings,
        label: str,
        coords: Mapping[str, Any],
        layers: Mapping[str, tuple[str, str]] | None = None,
        attrs: Mapping[str, Any] | None = None,
        portable: bool = False,
    ) -> None:
        if set(coords) != set(layout.CONFIG_COORDS):
            raise ValueError(f"coords must be exactly {sorted(layout.CONFIG_COORDS)}, got {sorted(coords)}")
        self.path, self.part = Path(path), Path(f"{path}.part")
        self._references, self._repeats, self._vocab = list(references), repeats, vocab
        self._output_tokens, self._dtype, self._label = output_tokens, dtype, label
        self._capture, self._layers, self._portable = capture, dict(layers or {}), portable
        self._k = min(capture.k, vocab)
        self._sketcher = Sketcher(vocab, capture.components, capture.seed)
        self._plan = plan(
            references, prefill_positions=capture.prefill_positions, output_tokens=output_tokens
        )
        self._structure = Structure(
            label=label,
            references=self._references,
            repeats=repeats,
            output_tokens=output_tokens,
            vocab=vocab,
            components=capture.components,
            k=self._k,
            full=capture.mode == "full",
            plan=self._plan,
            coords=dict(coords),
        )
        self._axis = {phase: self._structure.axis(phase) for phase in layout.PHASES}
        self._attrs: dict[str, Any] = {
            "kind": "run",
            "schema_version": layout.SCHEMA_VERSION,
            "label": label,
            "status": "running",
            "vocab": vocab,
            "capture_mode": capture.mode,
            "sketch_seed": capture.seed,
            **(attrs or {}),
        }
        self._now: tuple[str, int, list[int]] | None = None
        self._pending: dict[int, list[tuple[NDArray[np.int32], Tensor, Tensor]]] = {}
        self._scalars: dict[
            tuple[str, int, int], list[tuple[NDArray[np.int32], dict[str, NDArray[Any]]]]
        ] = {}
        self._texts: dict[tuple[int, int], str] = {}
        self._seen: dict[tuple[str, int, int], set[int]] = {}
        self._file: Any = None

    def __enter__(self) -> Recorder:
        import netCDF4

        chunk = self._structure.smallest_chunk()
        dtype = str(self._dtype).removeprefix("torch.")
        filters = encoding.choose(self.part.parent, portable=self._portable, dtype=dtype, values=chunk)
        with writing.disk_errors(self.part):
            # A new file, not the old one emptied: somebody may be reading what a killed job left.
            self.part.unlink(missing_ok=True)
            self._file = netCDF4.Dataset(self.part, "w", format="NETCDF4")
            writing.set_attributes(self._file, self._attrs)
            self._structure.create(self._file, filters)
            self._file.sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        failure = error if error is not None else RuntimeError("the recorder was left without finish()")
        with contextlib.suppress(QdxError, RuntimeError, OSError):  # the first error is the one to show
            self._flush_scalars()
            self._close({"status": "failed", "error": f"{type(failure).__name__}: {failure}"})
        self._file = None
        if error is None:
            raise failure

    def begin(self, phase: str, repeat: int, references: Sequence[int]) -> None:
        """Say what the next rows belong to.

        Parameters
        ----------
        phase : {"prefill", "decode", "replay"}
        repeat : int
        references : sequence of int
            Index of the reference of every batch item.
        """
        if phase not in layout.PHASES or not 0 <= repeat < self._repeats:
            raise ValueError(
                f"begin({phase!r}, {repeat}): phases are {layout.PHASES}, repeats 0…{self._repeats - 1}"
            )
        self._flush_rows()
        self._now = (phase, repeat, list(references))

    def wanted(self, item: int) -> NDArray[np.int32]:
        """Return the sorted positions whose rows are to be handed over for a batch item."""
        phase, _, references = self._current()
        return self._plan[phase][references[item]]

    def rows(
        self, item: int, positions: NDArray[np.int32], logits_PV: Tensor, targets: Tensor | None = None
    ) -> None:
        """Take rows of logits.

        Parameters
        ----------
        item : int
            Index in the batch.
        positions : ndarray
            Position of every row (the token that it predicts); some of `wanted`, each once.
        logits_PV : Tensor
            (position, vocab) in the model's data type, on any device. It may be overwritten afterwards.
        targets : Tensor, optional
            (position,) ids of the tokens that are at those positions; None or −1 is the row's own greatest
            logit.
        """
        phase, repeat, references = self._current()
        key = (phase, repeat, references[item])
        positions = np.asarray(positions, np.int32)
        if logits_PV.dtype != self._dtype or tuple(logits_PV.shape) != (len(positions), self._vocab):
            raise ValueError(
                f"rows must be {self._dtype} of shape {(len(positions), self._vocab)}, "
                f"got {logits_PV.dtype} of shape {tuple(logits_PV.shape)}"
            )
        seen = self._seen.setdefault(key, set())
        new = set(positions.tolist())
        if len(new) < len(positions) or new & seen or not new <= set(self.wanted(item).tolist()):
            raise ValueError(
                f"{phase}, repeat {repeat}, {self._name(key[2])}: positions {sorted(new)} twice or not wanted"
            )
        seen |= new
        if targets is None:
            targets = torch.full((len(positions),), -1, dtype=torch.int64)
        targets_P = targets.to(logits_PV.device, torch.int64)
        pending = self._pending.setdefault(item, [])
        if not pending:  # whole eights need no copy
            whole = len(positions) - len(positions) % _EIGHT
            for start in range(0, whole, _EIGHT):
                block = slice(start, start + _EIGHT)
                self._write(key, positions[block], logits_PV[block], targets_P[block])
            positions, logits_PV, targets_P = positions[whole:], logits_PV[whole:], targets_P[whole:]
        for start in range(0, len(positions), _EIGHT):
            block = slice(start, start + _EIGHT)
            pending.append((positions[block], logits_PV[block].clone(), targets_P[block].clone()))
            if sum(len(rows[0]) for rows in pending) >= _EIGHT:
                self._flush_item(item)
                pending = self._pending.setdefault(item, [])

    def output(
        self, repeat: int, reference: int, token_ids: Sequence[int], text: str, eos_index: int = -1
    ) -> None:
        """Write what a reference's free generation gave.

        Parameters
        ----------
        repeat, reference : int
        token_ids : sequence of int
            All generated ids, `output_tokens` of them.
        text : str
            The same decoded; written when the file is closed.
        eos_index : int
            Index among them of the first end-of-sequence token, −1 if there is none.
        """
        if len(token_ids) != self._output_tokens:
            raise ValueError(
                f"{self._name(reference)}: {len(token_ids)} output tokens, expected {self._output_tokens}"
            )
        group = self._file["output"]
        with writing.disk_errors(self.part):
            group["token_id"][0, repeat, reference, :] = np.asarray(token_ids, np.int32)
            group["eos_index"][0, repeat, reference] = eos_index
        self._texts[repeat, reference] = text
        self._seen[("output", repeat, reference)] = set()

    def sync(self) -> None:
        """Put everything that was handed over on disk: call it after every batch of references."""
        self._flush_rows()
        self._flush_scalars()

    def finish(self, attrs: Mapping[str, Any] | None = None) -> None:
        """Check that nothing is missing, write the last attributes, close the file and give it its name.

        Raises
        ------
        QdxError
            When a planned row or output was not handed over; the file keeps its ``.part`` and its status
            becomes "failed".
        """
        self.sync()
        missing = self._missing()
        if missing:
            raise QdxError(
                f"{self.part}: the backend did not hand over {missing[0]} ({len(missing)} such gaps)"
            )
        with writing.disk_errors(self.part):
            self._close({**(attrs or {}), "status": "complete"})
            self._file = None
            self.part.replace(self.path)

    def _current(self) -> tuple[str, int, list[int]]:
        if self._now is None:
            raise ValueError("call begin(phase, repeat, references) first")
        return self._now

    def _name(self, reference: int) -> str:
        return self._references[reference].name

    def _flush_rows(self) -> None:
        for item in list(self._pending):
            self._flush_item(item)

    def _flush_item(self, item: int) -> None:
        pending = self._pending.pop(item)
        if not pending:
            return
        phase, repeat, references = self._current()
        positions, logits, targets = zip(*pending, strict=True)
        self._write(
            (phase, repeat, references[item]),
            np.concatenate(positions),
            torch.cat(logits),
            torch.cat(targets),
        )

    def _write(
        self, key: tuple[str, int, int], positions: NDArray[np.int32], logits_PV: Tensor, targets_P: Tensor
    ) -> None:
        phase, repeat, reference = key
        finite_P = torch.isfinite(logits_PV).all(1)
        if not bool(finite_P.all()):
            position = positions[int((~finite_P).nonzero()[0])]
            raise QdxError(
                f"{self._label}: {phase}, repeat {repeat}, {self._name(reference)}, position {position}: "
                "a logit is NaN or infinite; the checkpoint is broken or overflows: try model.dtype=bfloat16"
            )
        order = np.argsort(positions)
        if (np.diff(order) != 1).any():
            index = torch.from_numpy(order).to(logits_PV.device)
            positions, logits_PV, targets_P = positions[order], logits_PV[index], targets_P[index]
        derived = derive(logits_PV, targets_P, k=self._k, sketcher=self._sketcher)
        self._scalars.setdefault(key, []).append(
            (positions, {name: value.cpu().numpy() for name, value in derived.items()})
        )
        if self._capture.mode == "full":
            rows_PV = logits_PV.to("cpu").to(torch.float32).numpy()  # widening changes no value
            variable = self._file[phase]["logit"]
            with writing.disk_errors(self.part):
                for axis, values in writing.runs_of(np.searchsorted(self._axis[phase], positions)):
                    variable[0, repeat, reference, axis, :] = rows_PV[values]

    def _flush_scalars(self) -> None:
        """Write the derived numbers and, when rows and numbers are on disk, the marks that they are there."""
        marks: list[tuple[Any, int, int, slice]] = []
        with writing.disk_errors(self.part):
            for (phase, repeat, reference), blocks in self._scalars.items():
                group = self._file[phase]
                positions = np.concatenate([block[0] for block in blocks])
                order = np.argsort(positions)
                indices = np.searchsorted(self._axis[phase], positions[order])
                columns = {
                    name: np.concatenate([block[1][name] for block in blocks])[order] for name in blocks[0][1]
                }
                columns["row_hash"] = columns["row_hash"].view(np.uint64)
                for axis, values in writing.runs_of(indices):
                    for name, column in columns.items():
                        group[name][0, repeat, reference, axis] = column[values].astype(group[name].dtype)
                    marks.append((group["captured"], repeat, reference, axis))
            self._file.sync()
            for captured, repeat, reference, axis in marks:
                captured[0, repeat, reference, axis] = np.int8(1)
            self._file.sync()
        self._scalars.clear()

    def _missing(self) -> list[str]:
        missing = []
        for phase in (*layout.PHASES, "output"):
            for repeat in range(self._repeats):
                for reference in range(len(self._references)):
                    seen = self._seen.get((phase, repeat, reference))
                    rows = 0 if phase == "output" else len(self._plan[phase][reference])
                    if (phase == "output" and seen is None) or len(seen or ()) < rows:
                        missing.append(f"{phase}, repeat {repeat}, {self._name(reference)}")
        return missing

    def _close(self, attrs: Mapping[str, Any]) -> None:
        self._attrs.update(attrs)
        writing.set_attributes(self._file, self._attrs)
        self._structure.put_text(self._file, self._texts)
        writing.put_provenance(self._file, self._label, self._attrs, self._layers)
        self._file.close()
