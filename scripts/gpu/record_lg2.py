"""Record what this card's ``lg2.approx.ftz.f32`` gives, and what rule its results follow.

    python scripts/gpu/record_lg2.py OUT.npz

Needs a GPU and cupy; takes seconds. FlashAttention's log-sum-exp is made by it, which weighs the parts of a
sequence that were attended to apart. ``units`` holds, for each of the 2^23 numbers m from 1 to 2, by how many
units in the last place the result differs from log2 m rounded to float32, at most 32,767; ``near_one`` and
``below_one`` the words of results where that is not enough. What is printed says how results for m · 2^e
follow from those for m.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cupy as cp
import numpy as np

SOURCE = r"""
extern "C" __global__ void lg2(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y[i]) : "f"(x[i]));
}
"""
ENTRIES = 1 << 23


def main() -> None:
    """Write the file and print the rule."""
    kernel = cp.RawKernel(SOURCE, "lg2")

    def lg2(x: np.ndarray) -> np.ndarray:
        given, found = cp.asarray(x), cp.empty(len(x), cp.float32)
        kernel((-(-len(x) // 256),), (256,), (given, found, np.int32(len(x))))
        return np.asarray(cp.asnumpy(found))

    print(cp.cuda.runtime.getDeviceProperties(0)["name"].decode())
    m = (np.arange(ENTRIES, dtype=np.int32) + 0x3F800000).view(np.float32)
    base = lg2(m)
    exact = np.log2(m.astype(np.float64))
    error = np.rint((base - exact) * 2.0**26).astype(np.int64)
    print("lg2 m, m from 1 to 2: error in 2^-26 from", error.min(), "to", error.max())
    for bits in range(20, 30):
        scaled = base.astype(np.float64) * 2.0**bits
        print(f"  results that are whole multiples of 2^-{bits}: {int((scaled == np.rint(scaled)).sum())}")
    for power in (-20, -3, -2, -1, 1, 2, 3, 4, 7, 8, 12, 20, 100):
        card = lg2((m.astype(np.float64) * 2.0**power).astype(np.float32))
        total = base.astype(np.float64) + power
        nearest = total.astype(np.float32)
        toward = np.where(np.abs(nearest) > np.abs(total), np.nextafter(nearest, np.float32(0)), nearest)
        print(
            f"  m · 2^{power}: {int((card != nearest).sum())} differ from e + lg2 m rounded to nearest, "
            f"{int((card != toward).sum())} rounded toward zero"
        )
    half = lg2(m * np.float32(0.5))

    def units(card: np.ndarray, value: np.ndarray) -> np.ndarray:
        apart = card.view(np.int32).astype(np.int64) - value.astype(np.float32).view(np.int32)
        return np.clip(apart, -32768, 32767).astype(np.int16)

    np.savez_compressed(
        Path(sys.argv[1]),
        units=units(base, exact),
        half_units=units(half, exact - 1),
        near_one=base.view(np.uint32)[: 1 << 17],
        below_one=half.view(np.uint32)[-(1 << 17) :],
    )


if __name__ == "__main__":
    main()
