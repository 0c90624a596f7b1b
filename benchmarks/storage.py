"""Bytes and speed of a stored logit, against `np.save` and one netCDF4 call of the same rows.

    python benchmarks/storage.py [--run RUN.nc] [--rows 256] [--vocab 151936] [--rounds 7] [--folder DIR]

Rows come from a run's replay and prefill (``--run``), or are made: logits of a language model are roughly a
normal distribution (σ = 2.5 here) whose upper tail is heavier. Ways take turns within a round, so that
whatever else the machine does falls on all of them; the table has medians over rounds.

``netCDF4, …`` widens the whole array to float32, which NetCDF has and float16 not, and writes it in one
call, in chunks of one row; reading it is one call, too. ``recorder, rows`` is what a run does: it writes rows
to the journal as they come, by eights, and compresses them at the end, both timed, without what is derived of
them (``deriving`` is that alone: hash, sketch, top-k, logsumexp; it is done where the rows are, on a GPU) and
without what every run costs, however short, which the last line says. It is read by `RunReader`, and through
`qdx.open` as the dask array that an analysis script gets. ``no checks`` is the same without checksums (see
`qdx.dataset.checksums`): the lines below the table say what they cost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import netCDF4
import numpy as np
import torch

import qdx
import qdx.capture.recorder as recording
from qdx.capture import CaptureSettings, Recorder
from qdx.dataset import RunReader, checksums, layout
from qdx.dataset.encoding import FAST, PORTABLE

FEW = 8
# glibc: memory that was freed stays with the process, for all of its threads. On a virtual machine to touch
# 100 MB anew can take longer than to decompress them, and which way pays for it would be chance.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}
PEER = "netCDF4, blosc_lz4, bits shuffled"  # the encoding that the recorder chooses for float16
ENCODINGS: dict[str, dict[str, Any]] = {
    PEER: FAST,
    "netCDF4, zlib 1, bytes shuffled": PORTABLE,
    "netCDF4, uncompressed": {},
}


def made(rows: int, vocab: int) -> np.ndarray:
    """Logits as float16, (row, vocab)."""
    generator = np.random.default_rng(0)
    logits_PV = generator.normal(-1, 2.5, (rows, vocab))
    logits_PV[:, :200] += generator.exponential(3, (rows, 200))
    return logits_PV.astype(np.float16)


def recorded(path: Path, rows: int) -> np.ndarray:
    """Rows that a run kept, as float16: half of its prefill, half of its replay."""
    reader = RunReader(path)
    found = []
    for phase in ("replay", "prefill"):
        kept = [(r, f) for r in range(reader.repeats) for f in range(len(reader.references))]
        need = rows // 2 if phase == "replay" else rows - sum(len(block) for block in found)
        for repeat, reference in kept:
            own = np.flatnonzero(reader.phase(phase).captured[repeat, reference])[: max(0, need)]
            found.append(reader.rows(phase, repeat, reference, own).astype(np.float16))
            need -= len(own)
    return np.concatenate(found)


def write(path: Path, half_PV: np.ndarray, storage: dict[str, Any]) -> None:
    path.unlink(missing_ok=True)
    rows, vocab = half_PV.shape
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("row", rows)
        file.createDimension("vocab", vocab)
        variable = file.createVariable("logit", "f4", ("row", "vocab"), chunksizes=(1, vocab), **storage)
        variable.set_var_chunk_cache(2**20)
        variable[:] = half_PV.astype(np.float32)


def read(path: Path) -> np.ndarray:
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        file["logit"].set_var_chunk_cache(2**20)
        return file["logit"][:]


def timed(action: Callable[[], Any], *, settled: bool = True) -> tuple[float, Any]:
    """Return the seconds of an action; what was written before it is on the disk when it begins."""
    if settled:
        os.sync()
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


class Prompt:
    """A reference whose prefill has as many rows as are to be written."""

    name, text, source, pages, sha256 = "ref_0", "", "", "", ""
    prefix_length = suffix_length = token_offset = 0

    def __init__(self, rows: int) -> None:
        self.token_ids = np.zeros(rows, np.int32)
        self.continuation = np.zeros(0, np.int32)
        self.content_length = rows


def record(path: Path, logits_PV: torch.Tensor) -> float:
    """Record rows as a backend does; return the seconds that deriving took."""
    rows, vocab = logits_PV.shape
    deriving = 0.0

    def derive(*arguments: Any, **keywords: Any) -> Any:
        nonlocal deriving
        took, derived = timed(lambda: plain_derive(*arguments, **keywords), settled=False)
        deriving += took
        return derived

    coords = {name: 0 if v.dtype in ("i4", "bool") else "" for name, v in layout.CONFIG_COORDS.items()}
    plain_derive = vars(recording)["derive"]
    with patch.object(recording, "derive", derive):
        _record(path, rows, vocab, coords, logits_PV)
    return deriving


def _record(path: Path, rows: int, vocab: int, coords: dict[str, Any], logits_PV: torch.Tensor) -> None:
    with Recorder(
        path,
        references=[Prompt(rows)],
        repeats=1,
        output_tokens=1,
        vocab=vocab,
        dtype=torch.float16,
        capture=CaptureSettings(prefill_positions="all"),
        label="benchmark",
        coords=coords,
    ) as recorder:
        recorder.begin("prefill", 0, [0])
        recorder.rows(0, recorder.wanted(0), logits_PV)
        recorder.output(0, 0, [0], "")
        recorder.finish()


@contextmanager
def unchecked() -> Iterator[None]:
    """Let the recorder make no checksums."""
    store, sums_of = checksums.store, checksums.sums_of
    checksums.store = lambda *_: None
    checksums.sums_of = lambda _, count: np.zeros(count, np.uint64)
    try:
        yield
    finally:
        checksums.store, checksums.sums_of = store, sums_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="take the rows of this run.nc")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=151_936, help="of made rows")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    if options.rows <= FEW:
        parser.error(f"--rows {options.rows}: more than {FEW}")
    half_PV = recorded(options.run, options.rows) if options.run else made(options.rows, options.vocab)
    wide_PV = half_PV.astype(np.float32)
    torch_PV = torch.from_numpy(half_PV)
    seconds: dict[str, list[tuple[float, float]]] = {}
    size: dict[str, int] = {}
    fixed: list[float] = []

    def note(name: str, path: Path, writing: float, reading: float) -> None:
        seconds.setdefault(name, []).append((writing, reading))
        size[name] = path.stat().st_size

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        raw, path, run = Path(folder) / "x.npy", Path(folder) / "x.nc", Path(folder) / "run.nc"
        for turn in range(options.rounds + 1):
            if turn == 1:  # the first one warms up
                seconds, fixed = {}, []
            raw.unlink(missing_ok=True)
            writing, _none = timed(lambda: np.save(raw, half_PV))
            reading = timed(lambda: np.load(raw))[0]
            note("np.save, float16", raw, writing, reading)
            for name, storage in ENCODINGS.items():
                writing, _none = timed(lambda storage=storage: write(path, half_PV, storage))
                reading, back_PV = timed(lambda: read(path))
                same(name, back_PV, wide_PV)
                del back_PV
                note(name, path, writing, reading)
            for kind in ("", ", no checks"):
                with unchecked() if kind else nullcontext():
                    run.unlink(missing_ok=True)
                    few, deriving = timed(lambda: record(run, torch_PV[:FEW]))
                    own_fixed = few - deriving
                    run.unlink()
                    whole, deriving = timed(lambda: record(run, torch_PV))
                reader = RunReader(run)
                reader.phase("prefill")
                reading, back_PV = timed(lambda reader=reader: reader.rows("prefill", 0, 0, slice(None)))
                reader.close()
                same("recorder", back_PV, wide_PV)
                del back_PV
                # The few rows' own time went with the fixed part: what is left is of the others.
                rows_alone = (whole - deriving - own_fixed) * len(half_PV) / (len(half_PV) - FEW)
                note(f"recorder, rows{kind}", run, rows_alone, reading)
                if not kind:
                    fixed.append(own_fixed)
                    note("deriving", run, deriving, float("nan"))
                with warnings.catch_warnings(action="ignore"), qdx.open(run) as tree:
                    lazy = tree["prefill"]["logit"]
                    reading, back_PV = timed(lambda lazy=lazy: lazy.values)
                same("qdx.open", back_PV[0, 0, 0], wide_PV)
                del back_PV
                note(f"qdx.open, dask{kind}", run, float("nan"), reading)
    megabytes = half_PV.nbytes / 1e6
    kind = f"rows of {options.run}" if options.run else "made rows"
    print(f"{len(half_PV)} × {half_PV.shape[1]} float16 logits, {kind}, {options.rounds} rounds")
    print("MB are of float16; speed over that of the named peer in the same round, median of the rounds\n")
    print(f"{'':34}{'':>12}{'write':>8}{'of':>9}{'of':>9}{'read':>8}{'of':>9}{'of':>9}")
    print(f"{'':34}{'bytes/logit':>12}" + f"{'MB/s':>8}{'np.save':>9}{'netCDF4':>9}" * 2)
    for name, times in seconds.items():
        cells = [f"{name:34}{size[name] / half_PV.size:12.3f}"]
        for i in (0, 1):
            own = [pair[i] for pair in times]
            cells.append(_cell(megabytes / median(own), 8, 0))
            for peer in ("np.save, float16", PEER):
                cells.append(_cell(median(p[i] / o for p, o in zip(seconds[peer], own, strict=True)), 9, 2))
        print("".join(cells))
    for name, i, what in (
        ("recorder, rows", 0, "writing"),
        ("recorder, rows", 1, "reading by RunReader"),
        ("qdx.open, dask", 1, "reading through qdx.open"),
    ):
        times = zip(seconds[name], seconds[f"{name}, no checks"], strict=True)
        more = [checked[i] / plain[i] - 1 for checked, plain in times]
        print(
            f"\nchecks cost {median(more):+.1%} in {what} (rounds: {min(more):+.1%} to {max(more):+.1%})",
            end="",
        )
    print(f"\na run of {FEW} rows takes {median(fixed):.2f} s beside deriving: its files and small variables")


def same(name: str, back_PV: np.ndarray, wide_PV: np.ndarray) -> None:
    """Stop unless the rows came back bit-equal."""
    if not np.array_equal(back_PV.view(np.uint32), wide_PV.view(np.uint32)):
        raise SystemExit(f"{name} is not lossless")


def _cell(value: float, width: int, digits: int) -> str:
    return f"{'–' if np.isnan(value) else format(value, f'.{digits}f'):>{width}}"


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    main()
