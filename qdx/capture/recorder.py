"""Streams what a run computes into its file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.capture.derive import derive, finite
from qdx.capture.fingerprints import Sketcher
from qdx.capture.noise import noise_of
from qdx.capture.plan import SKETCH_SEED
from qdx.capture.sampled import EDGE, Sampler, drawn, hypotheses
from qdx.capture.seeded import margins
from qdx.capture.structure import Structure
from qdx.dataset import checksums, encoding, layout, writing
from qdx.dataset.journal import ATTRIBUTES, Journal
from qdx.errors import QdxError
from qdx.schema import DTYPES, KERNEL_DTYPES, CaptureSettings

_EIGHT = 8  # rows that are derived and written together
_ON_GPU = 64  # most such rows on a GPU, where it is starting kernels and waiting for them that takes time
_Key = tuple[str, tuple[int, ...]]  # phase; repeat, producer where the phase has one, reference
_Rows = tuple[NDArray[np.int32], Tensor, Tensor, Tensor]  # positions, logits, targets, what is kept in full


@dataclass
class _Taken:
    """Hold what was handed over.

    Attributes
    ----------
    pending : dict
        Rows of a batch item that wait for others, since eight are written together.
    scalars : dict
        Derived numbers that wait for a `Recorder.sync`, in blocks of positions and columns.
    firsts : list
        What prefill's last row says of the producers' first tokens: repeat, reference, columns.
    texts : dict
        Decoded outputs, by repeat and reference: written at the end, when the longest is known.
    seen : dict
        Which of the wanted positions came.
    outputs : set
        Repeats and references whose output came.
    """

    pending: dict[int, list[_Rows]] = field(default_factory=dict)
    scalars: dict[_Key, list[tuple[NDArray[np.int32], dict[str, NDArray[Any]]]]] = field(default_factory=dict)
    firsts: list[tuple[int, int, dict[str, NDArray[Any]]]] = field(default_factory=list)
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    seen: dict[_Key, NDArray[np.bool_]] = field(default_factory=dict)
    outputs: set[tuple[int, int]] = field(default_factory=set)


class Recorder:
    """Writes ``run.nc.part`` while the model runs, and ``run.nc`` when everything is there.

    A context manager. A backend says what it runs with `begin` and hands over rows of logits with `rows`, in
    any split and order of items. After every batch it calls `sync`: what was handed over before is on disk
    then and survives ``kill -9``. Full rows wait in ``run.nc.rows`` until they are compressed at the
    end. At most eight rows of an item are copied for it, besides the derived numbers of the batch.

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
    producers : sequence of Producer
        Whose transcripts are replayed. With any, prefill and replay are recorded and nothing is generated.
    hidden : int
        Values of a hidden state, for ``capture.mode == "hidden"``.
    settings : Mapping of str to str, optional
        Observed values of the backend's options, which become coordinates ``backend_<option>``.

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
        producers: Sequence[layout.Producer] = (),
        hidden: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        if set(coords) != set(layout.CONFIG_COORDS):
            raise ValueError(f"coords must be exactly {sorted(layout.CONFIG_COORDS)}, got {sorted(coords)}")
        self.path, self.part = Path(path), Path(f"{path}.part")
        self._journal_path, self._new = Path(f"{path}.rows"), Path(f"{path}.new")
        self._dtype, self._layers, self._portable = dtype, dict(layers or {}), portable
        self._run = Structure.of(
            capture,
            label=label,
            references=list(references),
            repeats=repeats,
            output_tokens=output_tokens,
            vocab=vocab,
            hidden=hidden,
            coords=dict(coords),
            producers=list(producers),
            settings=dict(settings or {}),
        )
        self._axis = {phase: self._run.axis(phase) for phase in self._run.phases}
        self._sketcher = Sketcher(vocab, capture.components, SKETCH_SEED)
        self._attrs: dict[str, Any] = {
            **layout.conventions(f"qdx run {label}", attrs or {}),
            "kind": "run",
            "schema_version": layout.SCHEMA_VERSION,
            "label": label,
            "status": "running",
            "vocab": vocab,
            "capture_mode": capture.mode,
            "sketch_seed": SKETCH_SEED,
            **(attrs or {}),
        }
        self._now: tuple[str, int, list[int], int | None] | None = None
        self._taken = _Taken()
        self._file: Any = None
        self._journal: Journal | None = None

    @property
    def wants_hidden(self) -> bool:
        """Return whether `rows` needs the hidden states."""
        return self._run.wide == "hidden"

    def __enter__(self) -> Recorder:
        import netCDF4

        chunk = self._run.smallest_chunk()
        dtype = str(self._dtype).removeprefix("torch.")
        self._filters = encoding.choose(self.part.parent, portable=self._portable, dtype=dtype, values=chunk)
        with writing.disk_errors(self.part):
            if self._run.wide:
                shapes = {phase: self._run.shape(phase) for phase in self._run.phases}
                self._journal = Journal(self._journal_path, shapes, self._run.width, dtype)
                self._attrs |= {
                    "rows_dtype": dtype,
                    "rows_name": self._run.wide,
                    "rows_width": self._run.width,
                }
            self._put(small=None, wide=None)
            self._file = netCDF4.Dataset(self.part, "r+")
            self._file.set_auto_maskandscale(False)
            self._file.set_auto_chartostring(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        failure = error if error is not None else RuntimeError("the recorder was left without finish()")
        with contextlib.suppress(QdxError, RuntimeError, OSError):  # the first error is the one to show
            self._flush_scalars()
            self._rewrite({"status": "failed", "error": f"{type(failure).__name__}: {failure}"}, whole=False)
        self._shut()
        if error is None:
            raise failure

    def begin(self, phase: str, repeat: int, references: Sequence[int], producer: int | None = None) -> None:
        """Say what the next rows belong to.

        Parameters
        ----------
        phase : {"prefill", "decode", "replay"}
        repeat : int
        references : sequence of int
            Index of the reference of every batch item.
        producer : int, optional
            Index of the producer whose transcripts are replayed.
        """
        if phase not in self._run.plan or not 0 <= repeat < self._run.repeats:
            phases = ", ".join(self._run.plan)
            raise ValueError(
                f"begin({phase!r}, {repeat}): phases are {phases}, repeats 0…{self._run.repeats - 1}"
            )
        known = range(len(self._run.producers)) if phase == "replay" and self._run.producers else (None,)
        if producer not in known:
            raise ValueError(f"begin({phase!r}, producer={producer}): expected one of {list(known)}")
        self._flush_rows()
        self._now = (phase, repeat, list(references), producer)

    def wanted(self, item: int) -> NDArray[np.int32]:
        """Return the sorted positions whose rows are to be handed over for a batch item."""
        phase, _, references, producer = self._current()
        return self._run.plan[phase][(producer or 0) * len(self._run.references) + references[item]]

    def rows(
        self,
        item: int,
        positions: NDArray[np.int32],
        logits_PV: Tensor,
        targets: Tensor | None = None,
        hidden_PH: Tensor | None = None,
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
        hidden_PH : Tensor, optional
            (position, hidden) in the model's data type: what the rows were computed from; needed when
            `wants_hidden`.
        """
        key = self._key(item)
        phase = key[0]
        positions = np.asarray(positions, np.int32)
        if logits_PV.dtype != self._dtype or tuple(logits_PV.shape) != (len(positions), self._run.vocab):
            raise ValueError(
                f"rows must be {self._dtype} of shape {(len(positions), self._run.vocab)}, "
                f"got {logits_PV.dtype} of shape {tuple(logits_PV.shape)}"
            )
        if self.wants_hidden:
            size = (len(positions), self._run.hidden)
            if hidden_PH is None or hidden_PH.dtype != self._dtype or tuple(hidden_PH.shape) != size:
                got = "none" if hidden_PH is None else f"{hidden_PH.dtype} of shape {tuple(hidden_PH.shape)}"
                raise ValueError(f"hidden states must be {self._dtype} of shape {size}, got {got}")
        wide_PW = hidden_PH if self.wants_hidden and hidden_PH is not None else logits_PV
        wanted = self.wanted(item)
        seen = self._taken.seen.setdefault(key, np.zeros(len(wanted), np.bool_))
        at = np.searchsorted(wanted, positions)
        known = at < len(wanted)
        known[known] = wanted[at[known]] == positions[known]
        if not known.all() or seen[at].any() or len(np.unique(at)) < len(at):
            raise ValueError(
                f"{phase}, {self._said(key)}: positions {positions.tolist()} twice or not wanted"
            )
        seen[at] = True
        if targets is None:
            targets = torch.full((len(positions),), -1, dtype=torch.int64)
        targets_P = targets.to(logits_PV.device, torch.int64)
        pending = self._taken.pending.setdefault(item, [])
        # Whole eights need no copy; on a GPU several of them go together.
        whole = 0 if pending else len(positions) - len(positions) % _EIGHT
        together = _ON_GPU if logits_PV.is_cuda else _EIGHT
        for start in range(0, whole, together):
            block = slice(start, min(start + together, whole))
            self._write(key, positions[block], logits_PV[block], targets_P[block], wide_PW[block])
        for start in range(whole, len(positions), _EIGHT):
            block = slice(start, start + _EIGHT)
            rows, wide = logits_PV[block].clone(), wide_PW[block]
            wide = wide.clone() if self.wants_hidden else rows
            pending.append((positions[block], rows, targets_P[block].clone(), wide))
            if sum(len(rows[0]) for rows in pending) >= _EIGHT:
                self._flush_item(item)
                pending = self._taken.pending.setdefault(item, [])

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
        if len(token_ids) != self._run.output_tokens:
            raise ValueError(
                f"{self._name(reference)}: {len(token_ids)} output tokens, expected {self._run.output_tokens}"
            )
        group = self._file["output"]
        with writing.disk_errors(self.part):
            group["token_id"][0, repeat, reference, :] = np.asarray(token_ids, np.int32)
            group["eos_index"][0, repeat, reference] = eos_index
        self._taken.texts[repeat, reference] = text
        self._taken.outputs.add((repeat, reference))

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
            self._rewrite({**(attrs or {}), "status": "complete"}, whole=True)
            self._shut()
            self.part.replace(self.path)
            self._journal_path.unlink(missing_ok=True)

    def _current(self) -> tuple[str, int, list[int], int | None]:
        if self._now is None:
            raise ValueError("call begin(phase, repeat, references) first")
        return self._now

    def _key(self, item: int) -> _Key:
        phase, repeat, references, producer = self._current()
        middle = () if producer is None else (producer,)
        return phase, (repeat, *middle, references[item])

    def _overflow(self) -> str:
        """Return what makes a logit overflow in this dtype, and what may help with this kernel."""
        if self._dtype != torch.float16:
            return "the checkpoint is broken: download it again, or use another one"
        kernel = str(self._run.coords["requested_kernel"])
        allowed = KERNEL_DTYPES.get(kernel, DTYPES)
        remedy = (
            "try model.dtype=bfloat16, which tells the two apart"
            if "bfloat16" in allowed
            else f"kernel {kernel} takes no other dtype: use another checkpoint, or another quant"
        )
        return f"the checkpoint is broken or overflows float16: {remedy}"

    def _said(self, key: _Key) -> str:
        _, (repeat, *producer, reference) = key
        of = f", transcript of {self._run.producers[producer[0]].name}" if producer else ""
        return f"repeat {repeat}{of}, {self._name(reference)}"

    def _name(self, reference: int) -> str:
        return self._run.references[reference].name

    def _flush_rows(self) -> None:
        for item in list(self._taken.pending):
            self._flush_item(item)

    def _flush_item(self, item: int) -> None:
        pending = self._taken.pending.pop(item)
        if not pending:
            return
        positions, logits, targets, wide = zip(*pending, strict=True)
        rows_PV = torch.cat(logits)
        wide_PW = torch.cat(wide) if self.wants_hidden else rows_PV
        self._write(self._key(item), np.concatenate(positions), rows_PV, torch.cat(targets), wide_PW)

    def _write(
        self,
        key: _Key,
        positions: NDArray[np.int32],
        logits_PV: Tensor,
        targets_P: Tensor,
        wide_PW: Tensor,
    ) -> None:
        phase, at = key
        finite_P = finite(logits_PV)
        if not bool(finite_P.all()):
            position = positions[int((~finite_P).nonzero()[0])]
            raise QdxError(
                f"{self._run.label}: {phase}, {self._said(key)}, position {position}: "
                f"a logit is NaN or infinite; {self._overflow()}"
            )
        order = np.argsort(positions)
        if (np.diff(order) != 1).any():
            index = torch.from_numpy(order).to(logits_PV.device)
            positions, logits_PV, targets_P = positions[order], logits_PV[index], targets_P[index]
            wide_PW = wide_PW[index]
        derived = derive(logits_PV, targets_P, k=self._run.k, sketcher=self._sketcher)
        if phase == "replay" and self._run.producers:
            derived |= self._drawn(at[1], at[2], positions, logits_PV, targets_P)
        if self._run.producers and phase == "prefill" and positions[-1] == self._end(at[-1]):
            self._judge_first(at, logits_PV[-1])
            # Each producer has its own token there: see FIRST.
            derived["token_id"][-1], derived["target_rank"][-1] = -1, -1
            derived["target_logit"][-1] = float("nan")
        self._taken.scalars.setdefault(key, []).append(
            (positions, {name: value.cpu().numpy() for name, value in derived.items()})
        )
        if self._journal is not None:
            rows_PW = wide_PW.to("cpu")
            with writing.disk_errors(self.part):
                for axis, values in writing.runs_of(np.searchsorted(self._axis[phase], positions)):
                    self._journal.write(phase, (*at, axis.start), rows_PW[values])

    def _end(self, reference: int) -> int:
        return len(self._run.references[reference].token_ids)

    def _judge_first(self, at: tuple[int, ...], logits_V: Tensor) -> None:
        """Keep what prefill's last row says of the first token of every producer's transcript."""
        repeat, reference = at
        ids = np.array([producer.token_ids[reference, 0] for producer in self._run.producers], np.int32)
        there = ids >= 0  # who answered nothing to this prompt has no first token
        at_D = torch.from_numpy(np.where(there, ids, 0)).to(logits_V.device, torch.int64)
        chosen_D = logits_V[at_D]
        ranks_D = (logits_V[None, :] > chosen_D[:, None]).sum(1)
        values = {
            "first_token_id": ids,
            "first_logit": np.where(there, chosen_D.to("cpu", torch.float32).numpy(), np.float32(np.nan)),
            "first_rank": np.where(there, ranks_D.cpu().numpy(), -1).astype(np.int32),
        }
        values |= self._first_drawn(reference, ids, logits_V)
        self._taken.firsts.append((repeat, reference, values))

    def _first_drawn(
        self, reference: int, ids_D: NDArray[np.int32], logits_V: Tensor
    ) -> dict[str, NDArray[Any]]:
        """Return what the row says of first tokens that were drawn from it, by producer."""
        if not any(self._sampler(d, reference) for d in range(len(self._run.producers))):
            return {}
        sizes = self._run.sizes("prefill")
        found = {
            name: np.full(
                (len(ids_D), *(sizes[dim] for dim in variable.dims[len(layout.ROW_DIMS) :])),
                variable.fill,
                np.float64,
            )
            for name, variable in layout.FIRST_DRAWN.items()
        }
        at = np.array([self._end(reference)], np.int32)
        for d in np.flatnonzero(ids_D >= 0):
            target = torch.tensor([ids_D[d]], dtype=torch.int64, device=logits_V.device)
            for name, value in self._drawn(int(d), reference, at, logits_V[None], target).items():
                found[f"first_{name}"][d] = value[0].cpu().numpy()
        return found

    def _drawn(
        self,
        producer: int,
        reference: int,
        positions: NDArray[np.int32],
        logits_PV: Tensor,
        targets_P: Tensor,
    ) -> dict[str, Tensor]:
        """Return what rows say of the tokens that were drawn from them; nothing where nobody knows how."""
        sampler = self._sampler(producer, reference)
        if sampler is None:
            return {}
        who = self._run.producers[producer]
        found = drawn(logits_PV, targets_P, sampler, edge=EDGE)
        found |= hypotheses(logits_PV, targets_P, sampler, edge=EDGE)
        seed = who.seeds[reference] if who.noise and who.seeds else None
        if seed is None:
            found["drawn_margin"] = torch.full_like(found["drawn_logprob"], torch.nan)
            return found
        noise_PV = noise_of(who.noise)(
            seed, torch.from_numpy(positions), self._end(reference), self._run.vocab, logits_PV.device
        )
        found["drawn_margin"] = margins(logits_PV, targets_P, sampler, noise_PV)
        return found

    def _sampler(self, producer: int, reference: int) -> Sampler | None:
        """Return how a transcript was drawn; None where it was not, or nobody knows."""
        samplers = self._run.producers[producer].samplers
        if samplers is None or np.isnan(samplers[reference]).any():
            return None
        temperature, top_k, top_p, min_p = samplers[reference]
        return Sampler(float(temperature), int(top_k), float(top_p), float(min_p))

    def _flush_scalars(self) -> None:
        """Write the derived numbers and, when rows and numbers are on disk, the marks that they are there."""
        marks: list[tuple[Any, tuple[int, ...], slice]] = []
        with writing.disk_errors(self.part):
            for repeat, reference, values in self._taken.firsts:
                for name, value in values.items():
                    self._file["prefill"][name][0, repeat, :, reference] = value
            for (phase, at), blocks in self._taken.scalars.items():
                group = self._file[phase]
                positions = np.concatenate([block[0] for block in blocks])
                order = np.argsort(positions)
                indices = np.searchsorted(self._axis[phase], positions[order])
                columns = {
                    name: np.concatenate([block[1][name] for block in blocks])[order] for name in blocks[0][1]
                }
                columns["row_hash"] = columns["row_hash"].view(np.uint64)
                for axis, chosen in writing.runs_of(indices):
                    for name, column in columns.items():
                        group[name][(0, *at, axis)] = column[chosen].astype(group[name].dtype)
                    marks.append((group["captured"], at, axis))
            self._file.sync()
            for captured, at, axis in marks:
                captured[(0, *at, axis)] = np.int8(1)
            self._file.sync()
        self._taken.scalars.clear()
        self._taken.firsts.clear()

    def _missing(self) -> list[str]:
        missing = []
        for phase in self._run.plan:
            for at, positions in self._run.places(phase):
                seen = self._taken.seen.get((phase, at))
                if len(positions) and (seen is None or not seen.all()):
                    missing.append(f"{phase}, {self._said((phase, at))}")
        if not self._run.producers:
            outputs = [(r, f) for r in range(self._run.repeats) for f in range(len(self._run.references))]
            missing += [
                f"output, {self._said(('output', at))}" for at in outputs if at not in self._taken.outputs
            ]
        return missing

    def _rewrite(self, attrs: Mapping[str, Any], *, whole: bool) -> None:
        """Put the whole file in the place of ``.part``, or the same one with its last attributes."""
        self._attrs.update(attrs)
        if not whole:
            self._put(small=None, wide=None)
            return
        self._attrs = {name: value for name, value in self._attrs.items() if name not in ATTRIBUTES}
        self._put(small=encoding.PORTABLE, wide=self._filters)

    def _put(self, *, small: Mapping[str, Any] | None, wide: Mapping[str, Any] | None) -> None:
        """Write everything recorded so far to a new file and rename it to ``.part``.

        The filters are as `Structure.create` takes them.

        Only a file that is closed takes the name, so that a process that dies here leaves one that opens. It
        is a new file, not the old one emptied: somebody may be reading what a killed job left.
        """
        import netCDF4

        self._new.unlink(missing_ok=True)
        sums: dict[str, checksums.Sums] = {}
        with netCDF4.Dataset(self._new, "w", format="NETCDF4") as file:
            writing.set_attributes(file, self._attrs)
            self._run.create(file, small=small, wide=wide)
            if self._file is not None:
                sums = self._run.copy(self._file, file, self._journal if wide is not None else None)
                self._run.put_text(file, self._taken.texts)
            writing.put_provenance(file, self._run.label, self._attrs, self._layers)
        if wide is not None:  # a whole file: an unfinished one is still written to
            checksums.store(self._new, sums)
        self._new.replace(self.part)

    def _shut(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self._file.close()
        self._file = None
