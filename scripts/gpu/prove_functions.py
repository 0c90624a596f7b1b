"""Compare the elementary functions of `qdx.kernels.elementary` with this card's for all 2^32 arguments.

    python scripts/gpu/prove_functions.py [--functions ex2_approx_ftz,expf] [--write FOLDER]

Needs a GPU, cupy and nvcc; the functions run on the CPU, a thread a core: 5 to 70 s each on 16 cores. A line
a function says how many of 4,294,967,296 results differ in any bit, and shows the first. With ``--write`` it
first measures the four tables and writes them, as they are packed in ``qdx/kernels/tables``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cupy as cp
import numpy as np

from qdx.kernels import elementary

SOURCE = r"""
extern "C" __global__ void run(int function, unsigned first, float* y, long n) {
  long i = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = __uint_as_float(first + (unsigned)i), r = 0;
  switch (function) {
    case 0: asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); break;
    case 1: asm("ex2.approx.f32 %0, %1;" : "=f"(r) : "f"(x)); break;
    case 2: asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); break;
    case 3: r = rsqrtf(x); break;
    case 4: asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); break;
    case 5: asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(x)); break;
    case 6: r = expf(x); break;
    case 7: r = 1.0f / x; break;
    case 8: { unsigned b = 2654435769u * (first + (unsigned)i) ^ 0x5bd1e995u; r = __uint_as_float(b) / x; }
  }
  y[i] = r;
}
"""


def quotient(x: np.ndarray) -> np.ndarray:
    """Divide numbers of scrambled bits by x."""
    bits = np.uint32(2654435769) * x.view(np.uint32) ^ np.uint32(0x5BD1E995)
    return bits.view(np.float32) / x


FUNCTIONS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "ex2_approx_ftz": (0, elementary.ex2_approx_ftz),
    "ex2_approx": (1, elementary.ex2_approx),
    "rsqrt_approx_ftz": (2, elementary.rsqrt_approx_ftz),
    "rsqrt_approx": (3, elementary.rsqrt_approx),
    "rcp_approx_ftz": (4, elementary.rcp_approx_ftz),
    "rcp_approx": (5, elementary.rcp_approx),
    "expf": (6, elementary.expf),
    "reciprocal": (7, lambda x: np.float32(1) / x),
    "division": (8, quotient),
}
ONE, TWO = 0x3F800000, 0x40000000
CHUNK = 1 << 20


def compiled() -> cp.RawKernel:
    """Compile with nvcc: cupy's own compiler flushes subnormal numbers to zero."""
    folder = Path(tempfile.mkdtemp())
    (folder / "run.cu").write_text(SOURCE)
    capability = cp.cuda.Device().compute_capability
    subprocess.run(
        ["nvcc", f"-arch=sm_{capability}", "-cubin", "-o", "run.cubin", "run.cu"], cwd=folder, check=True
    )
    return cp.RawModule(path=str(folder / "run.cubin")).get_function("run")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--functions", default=",".join(FUNCTIONS))
    parser.add_argument("--write", type=Path, help="measure the tables first, and write them to this folder")
    arguments = parser.parse_args()
    kernel = compiled()

    def on_card(function: int, first: int, count: int) -> np.ndarray:
        with cp.cuda.Stream(non_blocking=True):
            y = cp.empty(count, cp.float32)
            kernel((-(-count // 256),), (256,), (np.int32(function), np.uint32(first), y, np.int64(count)))
            return cp.asnumpy(y)

    if arguments.write:
        arguments.write.mkdir(parents=True, exist_ok=True)
        for name, function, first in (
            ("ex2", 0, ONE),
            ("rcp", 4, ONE),
            ("rsqrt1", 2, ONE),
            ("rsqrt2", 2, TWO),
        ):
            values = on_card(function, first, elementary.ENTRIES) / np.float32(2 if name == "ex2" else 1)
            residual = values.view(np.int32).astype(np.int64) - elementary.PREDICTED[name]().view(np.int32)
            data = elementary.packed(residual)
            (arguments.write / f"{name}.xz").write_bytes(data)
            same = np.array_equal(values, elementary.table(name))
            print(
                f"table {name}: {len(data)} bytes, {'the packaged one' if same else 'NOT the packaged one'}"
            )

    print(cp.cuda.runtime.getDeviceProperties(0)["name"].decode())
    for name in arguments.functions.split(","):
        number, function = FUNCTIONS[name]
        start = time.perf_counter()

        def compare(chunk: int, number: int = number, function: Callable = function) -> tuple[int, str]:
            x = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK, dtype=np.uint32).view(np.float32)
            card = on_card(number, chunk * CHUNK, CHUNK).view(np.uint32)
            with np.errstate(all="ignore"):
                own = function(x).view(np.uint32)
            if number >= 7:  # a CPU gives other NaNs
                own = np.where(np.isnan(own.view(np.float32)), np.uint32(0x7FFFFFFF), own)
            wrong = np.flatnonzero(card != own)
            if not len(wrong):
                return 0, ""
            i = wrong[0]
            return len(wrong), f"x {x.view(np.uint32)[i]:08x}: card {card[i]:08x}, here {own[i]:08x}"

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            results = list(pool.map(compare, range((1 << 32) // CHUNK)))
        differing = sum(count for count, _ in results)
        first = next((example for _, example in results if example), "")
        print(
            f"{name:17} {1 << 32} arguments, {differing} differ {first} "
            f"({time.perf_counter() - start:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
