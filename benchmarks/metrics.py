"""Time of the metric stage of a sweep, against a plain numpy loop over the same files.

    python benchmarks/metrics.py    # the README sweep: 4 configs × 4 references × 161 rows × 49,152
    python benchmarks/metrics.py --vocab 151936

The files are real (by the recorder, three repeats; one config does not repeat decode and replay), the logits
random. The plain loop is the obvious one with netCDF4 and numpy: the rows of one reference of every config
in float64, then every ordered pair, vectorized over positions. That both give the same is checked.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("awq", "awq_marlin", "gptq", "gptq_marlin")
PHASES = ("prefill", "decode", "replay")
METRICS = ("l2", "kl", "js", "top1")


@dataclass(frozen=True)
class RandomReference:
    """A reference of random tokens."""

    name: str
    token_ids: np.ndarray
    continuation: np.ndarray
    prefix_length: int
    content_length: int
    suffix_length: int
    text: str = ""
    source: str = "benchmark"
    pages: str = ""
    token_offset: int = 0
    sha256: str = ""


def write(folder: Path, options: argparse.Namespace) -> None:
    """Write the runs of a sweep and merge them."""
    import torch

    from qdx.capture import CaptureSettings, Recorder
    from qdx.dataset import layout, merge

    generator = torch.Generator().manual_seed(0)
    drawn = np.random.default_rng(0)
    lengths = {"prefix_length": 33, "content_length": 64, "suffix_length": 34}
    references = [
        RandomReference(
            f"ref_{i}",
            drawn.integers(0, options.vocab, sum(lengths.values())).astype(np.int32),
            drawn.integers(0, options.vocab, options.tokens).astype(np.int32),
            **lengths,
        )
        for i in range(options.references)
    ]
    coords: dict[str, Any] = dict.fromkeys(layout.CONFIG_COORDS, "")
    coords |= {"dtype": "float16", "batch_size": 1, "sm_count": 132, "simulated": True}
    base = {}
    for label in LABELS[: options.configs]:
        recorder = Recorder(
            folder / label / "run.nc",
            references=references,
            repeats=options.repeats,
            output_tokens=options.tokens,
            vocab=options.vocab,
            dtype=torch.float16,
            capture=CaptureSettings(),
            label=label,
            coords=coords,
            attrs={"tokenizer_sha256": "t"},
        )
        with recorder:
            for phase in PHASES:
                for i in range(len(references)):
                    for repeat in range(options.repeats):
                        recorder.begin(phase, repeat, [i])
                        positions = recorder.wanted(0)
                        shape = (len(positions), options.vocab)
                        if (phase, i) not in base:
                            base[phase, i] = 3 * torch.randn(shape, generator=generator)
                        if not repeat or (label == "gptq" and phase != "prefill"):
                            rows = (base[phase, i] + 0.01 * torch.randn(shape, generator=generator)).half()
                        recorder.rows(0, positions, rows, torch.zeros(len(positions), dtype=torch.int64))
            for i in range(len(references)):
                for repeat in range(options.repeats):  # the same tokens: every decode row is compared
                    recorder.output(repeat, i, [0] * options.tokens, "")
            recorder.finish()
    merge(folder, folder / "sweep.nc")


def plain(folder: Path, labels: tuple[str, ...]) -> dict[tuple[str, str], np.ndarray]:
    """Return the matrices (config, config_b, reference, position) by metric and phase, the plain way."""
    import netCDF4

    results: dict[tuple[str, str], list[np.ndarray]] = {}
    for phase in PHASES:
        files = [netCDF4.Dataset(folder / label / "run.nc") for label in labels]
        _, _, references, positions, _ = files[0][phase]["logit"].shape
        for i in range(references):
            found = {metric: np.zeros((len(labels), len(labels), positions)) for metric in METRICS}
            rows = []
            for file in files:
                logit_PV = np.asarray(file[phase]["logit"][0, 0, i], np.float64)
                shifted_PV = logit_PV - logit_PV.max(-1, keepdims=True)
                rows.append(shifted_PV - np.log(np.exp(shifted_PV).sum(-1, keepdims=True)))
            for a, p in enumerate(rows):
                for b, q in enumerate(rows):
                    mean = np.logaddexp(p, q) - np.log(2)
                    found["l2"][a, b] = np.sqrt(((p - q) ** 2).sum(-1))
                    found["kl"][a, b] = (np.exp(p) * (p - q)).sum(-1)
                    found["js"][a, b] = (np.exp(p) * (p - mean) + np.exp(q) * (q - mean)).sum(-1) / 2
                    found["top1"][a, b] = p.argmax(-1) != q.argmax(-1)
            for metric, values in found.items():
                results.setdefault((metric, phase), []).append(values)
        for file in files:
            file.close()
    return {key: np.stack(values, 2) for key, values in results.items()}


def main() -> None:
    """Write the files, time both ways, compare their matrices, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"configs": 4, "references": 4, "tokens": 16, "repeats": 3, "vocab": 49152}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--skip-plain", action="store_true", help="time the engine alone")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qdx-benchmark-"))
    try:
        # In a process of its own, so that the peak memory below is the metric stage's.
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(folder, options))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("the files could not be written")
        run(folder, options)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Time both ways."""
    import torch
    import xarray as xr

    from qdx.distances.measure import compute
    from qdx.plugins import build

    labels = LABELS[: options.configs]
    metrics = {name: build({"_target_": f"qdx.metrics.{name}"}) for name in METRICS}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    compute(folder, folder / "sweep.nc", metrics)
    engine, engine_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = 0
    for phase in PHASES:
        with xr.open_dataset(folder / "sweep.nc", group=phase) as data:
            rows += int(data["captured"][0, 0].sum())
    print(
        f"{len(labels)} configs × {rows} rows × {options.vocab} logits, {options.repeats} repeats, "
        f"{', '.join(METRICS)}; {torch.get_num_threads()} threads"
    )
    print(
        f"engine  {engine:6.1f} s ({engine_cpu:.1f} s of processor), peak memory {peak / 1024:.0f} MiB",
        end="",
    )
    print(f" ({before / 1024:.0f} before it)")
    if options.skip_plain:
        return
    start, start_cpu = time.perf_counter(), time.process_time()
    expected = plain(folder, labels)
    loop, loop_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(f"plain   {loop:6.1f} s ({loop_cpu:.1f} s of processor), first repeats only")
    print(f"plain / engine: {loop / engine:.1f} by the clock, {loop_cpu / engine_cpu:.1f} of processor")
    for (metric, phase), values in expected.items():
        with xr.open_dataset(folder / "sweep.nc", group=f"metrics/{metric}/{phase}") as data:
            np.testing.assert_allclose(
                data[metric].values, values, rtol=1e-7, atol=1e-13, err_msg=f"{metric} {phase}"
            )
    print("the matrices of both are equal (relative 1e-7)")


if __name__ == "__main__":
    main()
