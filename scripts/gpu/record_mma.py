"""Record what this card's ``mma.sync`` instructions give for numbers of every size.

    python scripts/gpu/record_mma.py OUT.npz

Needs a GPU, cupy and nvcc; takes seconds. Factors and accumulators are drawn from four ranges: of ordinary
size, spread over 12 powers of two, around the least numbers of the format, and around the largest ones, so
that sums overflow. Keys ``<factors>_<accumulator>/<range>/{a,b,c,d}`` hold 32-bit words: a (tiles, 16, 8) the
rows of the left matrix, b (tiles, 8, 8) the columns of the right one, c and d (tiles, 16, 8) accumulators
before and after.
``tests/kernels/test_tensor_core.py`` compares them with `qdx.kernels.tensor_core`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import cupy as cp
import numpy as np

KINDS = ("fp16", "fp16", "bf16", "tf32", "e4m3", "e4m3", "e5m2", "e5m2")
SUMS = ("float32", "float16", "float32", "float32", "float32", "float16", "float32", "float16")
TILES = 12
SOURCE = r"""
extern "C" __global__ void mma(int op, const unsigned* A, const unsigned* B, const unsigned* C, unsigned* D) {
  int g = threadIdx.x / 4, q = threadIdx.x % 4;
  A += blockIdx.x * 128; B += blockIdx.x * 64; C += blockIdx.x * 128; D += blockIdx.x * 128;
  unsigned a0 = A[g * 8 + q], a1 = A[(g + 8) * 8 + q], a2 = A[g * 8 + q + 4], a3 = A[(g + 8) * 8 + q + 4];
  unsigned b0 = B[g * 8 + q], b1 = B[g * 8 + q + 4];
  unsigned c0 = C[g * 8 + 2 * q], c1 = C[g * 8 + 2 * q + 1];
  unsigned c2 = C[(g + 8) * 8 + 2 * q], c3 = C[(g + 8) * 8 + 2 * q + 1];
  unsigned h0 = (c0 & 0xffff) | (c1 << 16), h1 = (c2 & 0xffff) | (c3 << 16);
#define FLOAT32(TEXT) asm volatile(TEXT " {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};" \
  : "+r"(c0), "+r"(c1), "+r"(c2), "+r"(c3) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#define FLOAT16(TEXT) asm volatile(TEXT " {%0,%1},{%2,%3,%4,%5},{%6,%7},{%0,%1};" \
  : "+r"(h0), "+r"(h1) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1)); \
  c0 = h0 & 0xffff; c1 = h0 >> 16; c2 = h1 & 0xffff; c3 = h1 >> 16;
  switch (op) {
    case 0: FLOAT32("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") break;
    case 1: FLOAT16("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16") break;
    case 2: FLOAT32("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") break;
    case 3: FLOAT32("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") break;
    case 4: FLOAT32("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32") break;
    case 5: FLOAT16("mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16") break;
    case 6: FLOAT32("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32") break;
    case 7: FLOAT16("mma.sync.aligned.m16n8k32.row.col.f16.e5m2.e5m2.f16") break;
  }
  D[g * 8 + 2 * q] = c0; D[g * 8 + 2 * q + 1] = c1;
  D[(g + 8) * 8 + 2 * q] = c2; D[(g + 8) * 8 + 2 * q + 1] = c3;
}
"""
# Logarithm of the middle size and its spread, of factors and of accumulators.
RANGES = ((0, 0, 0, 2), (0, 6, 0, 8), (-9, 7, -18, 6), (6, 7, 10, 6))
WIDE_RANGES = (*RANGES[:2], (-62, 12, -130, 12), (55, 12, 110, 12))


def drawn(numbers: np.random.Generator, shape: tuple[int, ...], middle: float, spread: float) -> np.ndarray:
    """Draw normal numbers times a power of two; 6 % are zero."""
    value = numbers.standard_normal(shape) * np.exp2(middle + spread * (2 * numbers.random(shape) - 1))
    value[numbers.random(shape) < 0.06] = 0
    return value.astype(np.float32)


def words(numbers: np.random.Generator, kind: str, rows: int, size: int) -> np.ndarray:
    """Return finite factors as (tiles, rows, 8) words."""
    if kind in ("e4m3", "e5m2"):
        code = numbers.integers(0, 256, (TILES, rows, 32), dtype=np.uint8)
        if size == 0:
            code = (code & 0x80) | ((code & 0x1F) + 0x28)
        elif size == 2:
            code &= 0x8F if kind == "e4m3" else 0x9F
        beyond = (code & 0x7F) == 0x7F if kind == "e4m3" else (code & 0x7F) >= 0x7C
        return np.where(beyond, np.uint8(0x30), code).view(np.uint32).reshape(TILES, rows, 8)
    middle, spread = (WIDE_RANGES if kind in ("bf16", "tf32") else RANGES)[size][:2]
    value = drawn(numbers, (TILES, rows, 8 if kind == "tf32" else 16), middle, spread)
    if kind == "tf32":
        return value.view(np.uint32) & np.uint32(0xFFFFE000)
    if kind == "fp16":
        code = value.astype(np.float16).view(np.uint16)
        code = np.where(code & 0x7C00 == 0x7C00, np.uint16(0x3C01), code)
    else:
        code = ((value.view(np.uint32).astype(np.uint64) + 0x8000) >> 16).astype(np.uint16)
        code = np.where(code & 0x7F80 == 0x7F80, np.uint16(0x3F81), code)
    return np.ascontiguousarray(code).view(np.uint32)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    (folder / "mma.cu").write_text(SOURCE)
    arch = f"-arch=sm_{cp.cuda.Device().compute_capability}"
    subprocess.run(["nvcc", arch, "-cubin", "-o", "mma.cubin", "mma.cu"], cwd=folder, check=True)
    kernel = cp.RawModule(path=str(folder / "mma.cubin")).get_function("mma")
    numbers, found = np.random.default_rng(7), {}
    np.seterr(all="ignore")
    for op, (kind, sums) in enumerate(zip(KINDS, SUMS, strict=True)):
        for size in range(4):
            a, b = words(numbers, kind, 16, size), words(numbers, kind, 8, size)
            middle, spread = (WIDE_RANGES if kind in ("bf16", "tf32") else RANGES)[size][2:]
            held = drawn(numbers, (TILES, 16, 8), middle, spread)
            half = sums == "float16"
            c = held.astype(np.float16).view(np.uint16).astype(np.uint32) if half else held.view(np.uint32)
            d = cp.zeros((TILES, 16, 8), cp.uint32)
            kernel((TILES,), (32,), (np.int32(op), *map(cp.asarray, (a, b, c)), d))
            for key, value in zip("abcd", (a, b, c, cp.asnumpy(d)), strict=True):
                found[f"{kind}_{sums}/{size}/{key}"] = value
    np.savez_compressed(arguments.out, **found)
    print(f"{cp.cuda.runtime.getDeviceProperties(0)['name'].decode()}: {arguments.out}")


if __name__ == "__main__":
    main()
