"""Bytes and speed of a stored logit, against `np.save` of the same float16 rows in the same rounds.

    python benchmarks/storage.py [--run RUN.nc] [--rows 256] [--rounds 5] [--folder DIR]

Rows come from a run's replay and prefill (``--run``), or are made: logits of a language model are roughly a
normal distribution (σ = 2.5 here) whose upper tail is heavier. Encodings take turns within a round, so that
whatever else the machine does falls on all of them; the table has medians over rounds. The last line is the
whole recorder: hash, sketch, top-k, logsumexp and the write.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import netCDF4
import numpy as np
import torch

from qdx.capture import CaptureSettings, Recorder
from qdx.dataset import RunReader, layout
from qdx.dataset.encoding import FAST, PORTABLE

EIGHT = 8  # rows that the recorder writes together
ENCODINGS: dict[str, dict[str, Any]] = {
    "blosc_lz4, bits shuffled": FAST,
    "zlib 1, bytes shuffled": PORTABLE,
    "none": {},
}


def made(rows: int, vocab: int = 49_152) -> np.ndarray:
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


def write(path: Path, wide_PV: np.ndarray, storage: dict[str, Any]) -> None:
    rows, vocab = wide_PV.shape
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("row", rows)
        file.createDimension("vocab", vocab)
        variable = file.createVariable("logit", "f4", ("row", "vocab"), chunksizes=(1, vocab), **storage)
        variable.set_var_chunk_cache(2**20)
        for start in range(0, rows, EIGHT):
            variable[start : start + EIGHT] = wide_PV[start : start + EIGHT]


def read(path: Path) -> np.ndarray:
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        file["logit"].set_var_chunk_cache(2**20)
        return file["logit"][:]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
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


def record(path: Path, logits_PV: torch.Tensor) -> None:
    rows, vocab = logits_PV.shape
    coords = {name: 0 if v.dtype in ("i4", "bool") else "" for name, v in layout.CONFIG_COORDS.items()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="take the rows of this run.nc")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    half_PV = recorded(options.run, options.rows) if options.run else made(options.rows)
    wide_PV = half_PV.astype(np.float32)
    torch_PV = torch.from_numpy(half_PV)
    seconds: dict[str, list[tuple[float, float]]] = {}
    size: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        raw, path, run = Path(folder) / "x.npy", Path(folder) / "x.nc", Path(folder) / "run.nc"
        for _ in range(options.rounds):
            save, _none = timed(lambda: np.save(raw, half_PV))
            load, _rows = timed(lambda: np.load(raw))
            seconds.setdefault("np.save, float16", []).append((save, load))
            size["np.save, float16"] = raw.stat().st_size
            for name, storage in ENCODINGS.items():
                writing, _none = timed(lambda storage=storage: write(path, wide_PV, storage))
                reading, back_PV = timed(lambda: read(path))
                assert np.array_equal(back_PV.view(np.uint32), wide_PV.view(np.uint32)), (
                    f"{name} is not lossless"
                )
                seconds.setdefault(name, []).append((writing, reading))
                size[name] = path.stat().st_size
            whole, _none = timed(lambda: record(run, torch_PV))
            reader = RunReader(run)
            reading, _rows = timed(lambda reader=reader: reader.rows("prefill", 0, 0, slice(None)))
            seconds.setdefault("recorder (all numbers)", []).append((whole, reading))
            size["recorder (all numbers)"] = run.stat().st_size
            reader.close()
    megabytes = half_PV.nbytes / 1e6
    kind = f"rows of {options.run}" if options.run else "made rows"
    print(f"{len(half_PV)} × {half_PV.shape[1]} float16 logits, {kind}, {options.rounds} rounds")
    print("MB are of float16; × is time over that of np.save or np.load in the same round\n")
    print(f"{'':26}{'bytes/logit':>12}{'write MB/s':>12}{'×':>7}{'read MB/s':>12}{'×':>7}")
    for name, times in seconds.items():
        base = seconds["np.save, float16"]
        speed = [megabytes / median(t[i] for t in times) for i in (0, 1)]
        ratio = [median(t[i] / b[i] for t, b in zip(times, base, strict=True)) for i in (0, 1)]
        each = size[name] / half_PV.size
        print(f"{name:26}{each:12.3f}{speed[0]:12.0f}{ratio[0]:7.1f}{speed[1]:12.0f}{ratio[1]:7.1f}")


if __name__ == "__main__":
    main()
