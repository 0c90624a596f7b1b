"""Time of all pairs of N configs over the number of positions, against plain code and the machine's memory.

    python benchmarks/analysis.py
    python benchmarks/analysis.py --configs 4 --vocab 151936 --positions 16,64,256

The files are real (`benchmarks/metrics.py` writes them), the logits random. Printed for every number of
positions: seconds of `qdx.distances.measure.measure`, logits read a second, the same as a share of what
copying memory reaches in this run, and the ratio against the plain numpy loop of `benchmarks/metrics.py`.
That loop measures first repeats only; here there is one repeat, so that both do the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import metrics as plain_way


def bandwidth(mib: int = 512, times: int = 5) -> float:
    """Return bytes read and written a second by copying an array: the best of several."""
    source = np.ones(mib * 2**17)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def main() -> None:
    """Write a sweep for every number of positions, time both ways, print the curve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--positions", default="32,64,128", help="decode steps, a list")
    parser.add_argument("--memory", type=int, default=512, help="report.memory, MiB")
    parser.add_argument("--skip-plain", action="store_true")
    options = parser.parse_args()
    # In a process of its own: a child's peak memory begins with what its parent's was.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory = pool.apply(bandwidth)
    print(f"memory: {memory / 1e9:.1f} GB/s copied, one thread")
    print(" rows/config   engine s   Mlogits/s   % of memory   plain s   plain/engine   peak MiB")
    for count in map(int, options.positions.split(",")):
        options.references, options.repeats, options.tokens = 1, 1, count
        folder = Path(tempfile.mkdtemp(prefix="qdx-benchmark-"))
        try:
            context = multiprocessing.get_context("spawn")
            for step in (plain_way.write, report):  # each in a process of its own: its peak memory is its own
                child = context.Process(
                    target=step,
                    args=(folder, options) if step is plain_way.write else (folder, options, memory),
                )
                child.start()
                child.join()
                if child.exitcode:
                    sys.exit(f"{step.__name__} failed")
        finally:
            shutil.rmtree(folder)


def report(folder: Path, options: argparse.Namespace, memory: float) -> None:
    """Time the engine and the plain loop on one sweep and print a line."""
    import xarray as xr

    from qdx.distances.measure import measure
    from qdx.plugins import build

    built = {name: build({"_target_": f"qdx.metrics.{name}"}) for name in plain_way.METRICS}
    rows = 0
    for phase in plain_way.PHASES:
        with xr.open_dataset(folder / "sweep.nc", group=phase) as data:
            rows += int(data["captured"][0, 0].sum())
    start = time.perf_counter()
    found = dict(measure(folder, folder / "sweep.nc", built, memory_mib=options.memory))
    engine = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    logits = rows * options.configs * options.vocab
    line = f"{rows:12,}{engine:11.2f}{logits / engine / 1e6:12.1f}{400 * logits / engine / memory:14.1f}"
    if not options.skip_plain:
        start = time.perf_counter()
        expected = plain_way.plain(folder, plain_way.LABELS[: options.configs])
        plain = time.perf_counter() - start
        for (metric, phase), values in expected.items():
            got = found[f"metrics/{metric}/{phase}"][metric].values
            np.testing.assert_allclose(got, values, rtol=1e-7, atol=1e-13, err_msg=f"{metric} {phase}")
        line += f"{plain:10.2f}{plain / engine:15.1f}"
    else:
        line += " " * 25
    print(f"{line}{peak:11.0f}", flush=True)


if __name__ == "__main__":
    main()
