"""Compare `qdx.kernels.operations` with kernels on this card that add and round as vLLM's source does.

    python scripts/gpu/prove_operations.py

Needs a GPU, cupy and nvcc. The kernels here are written from vLLM's source (same vectors a thread, same
``cub::BlockReduce``, same roundings) and compiled by this machine's nvcc; vLLM's own binaries are not asked.
A line an operation says how many outputs differ in any bit. Every finite gate of silu is among them.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import cupy as cp
import numpy as np
import torch

from qdx.kernels import operations

SOURCE = r"""
#include <cub/cub.cuh>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
template <class T> struct alignas(16) Eight { T value[8]; };
__device__ float wide(__half x) { return __half2float(x); }
__device__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void narrow(__half& y, float x) { y = __float2half_rn(x); }
__device__ void narrow(__nv_bfloat16& y, float x) { y = __float2bfloat16(x); }

template <class T, bool FUSED>
__device__ void norm(T* out, const T* in, T* residual, const T* weight, float eps, int features) {
  __shared__ float shared;
  using Reduce = cub::BlockReduce<float, 1024>;
  __shared__ typename Reduce::TempStorage storage;
  int vectors = features / 8;
  long row = (long)blockIdx.x * vectors;
  auto x = reinterpret_cast<const Eight<T>*>(in) + row;
  auto r = reinterpret_cast<Eight<T>*>(residual) + row;
  auto w = reinterpret_cast<const Eight<T>*>(weight);
  auto y = reinterpret_cast<Eight<T>*>(out) + row;
  float sum = 0;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    Eight<T> v = x[i];
    if constexpr (FUSED) {
      Eight<T> other = r[i];
      float own = 0;
      for (int j = 0; j < 8; j++) narrow(v.value[j], wide(v.value[j]) + wide(other.value[j]));
      for (int j = 0; j < 8; j += 2) {
        float a = wide(v.value[j]), b = wide(v.value[j + 1]);
        own += a * a + b * b;
      }
      sum += own;
      r[i] = v;
    } else {
      for (int j = 0; j < 8; j++) { float a = wide(v.value[j]); sum += a * a; }
    }
  }
  sum = Reduce(storage).Reduce(sum, cuda::std::plus<>{}, blockDim.x);
  if (threadIdx.x == 0) shared = rsqrtf(sum / features + eps);
  __syncthreads();
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    Eight<T> v = FUSED ? r[i] : x[i], scale = w[i], z;
    for (int j = 0; j < 8; j++) narrow(z.value[j], wide(v.value[j]) * shared * wide(scale.value[j]));
    y[i] = z;
  }
}
template <class T> __device__ void silu(T* out, const T* in, int features) {
  const T* row = in + (long)blockIdx.x * 2 * features;
  for (int i = threadIdx.x; i < features; i += blockDim.x) {
    float x = wide(row[i]);
    T s, z;
    narrow(s, x / (1.0f + expf(-x)));
    narrow(z, wide(s) * wide(row[features + i]));
    out[(long)blockIdx.x * features + i] = z;
  }
}
template <class T> __device__ void rope(T* x, const T* cache, int half) {
  T* row = x + (long)blockIdx.x * 2 * half;
  const T* cs = cache + (long)blockIdx.x * 2 * half;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    float c = wide(cs[i]), s = wide(cs[half + i]), a = wide(row[i]), b = wide(row[half + i]);
    narrow(row[i], a * c - b * s);
    narrow(row[half + i], b * c + a * s);
  }
}
#define KERNELS(N, T) \
  extern "C" __global__ void rms_##N(T* o, T* i, T* r, T* w, float e, int f) { \
    norm<T, false>(o, i, r, w, e, f); } \
  extern "C" __global__ void fused_##N(T* o, T* i, T* r, T* w, float e, int f) { \
    norm<T, true>(o, i, r, w, e, f); } \
  extern "C" __global__ void silu_##N(T* o, T* i, int f) { silu<T>(o, i, f); } \
  extern "C" __global__ void rope_##N(T* x, T* c, int h) { rope<T>(x, c, h); }
KERNELS(float16, __half)
KERNELS(bfloat16, __nv_bfloat16)
"""
SHAPES = (
    (1, 768),
    (4, 768),
    (49, 1536),
    (255, 768),
    (256, 768),
    (300, 4096),
    (7, 4096),
    (2, 12288),
    (513, 576),
)
EPSILON = 1e-5


def raw(value: torch.Tensor) -> np.ndarray:
    """Return the bits."""
    return value.contiguous().view(torch.int16).numpy()


def main() -> None:
    """Print the table."""
    folder = Path(tempfile.mkdtemp())
    (folder / "run.cu").write_text(SOURCE)
    arch = f"-arch=sm_{cp.cuda.Device().compute_capability}"
    subprocess.run(
        ["nvcc", arch, "-std=c++17", "-cubin", "-o", "run.cubin", "run.cu"], cwd=folder, check=True
    )
    module = cp.RawModule(path=str(folder / "run.cubin"))
    print(cp.cuda.runtime.getDeviceProperties(0)["name"].decode())
    numbers = torch.Generator().manual_seed(0)

    def compare(name: str, dtype: torch.dtype, pairs: list[tuple[np.ndarray, torch.Tensor]]) -> None:
        count = sum(raw(own).size for _, own in pairs)
        wrong = sum(int((card != raw(own)).sum()) for card, own in pairs)
        print(
            f"{name:20} {str(dtype).removeprefix('torch.'):9} {count:9} outputs, {wrong} differ", flush=True
        )

    for dtype in (torch.float16, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        plain, fused = [], []
        for tokens, features in SHAPES:
            x = (
                torch.randn(tokens, features, generator=numbers)
                * torch.exp2(3 * torch.randn(tokens, 1, generator=numbers))
            ).to(dtype)
            residual = torch.randn(tokens, features, generator=numbers).to(dtype)
            weight = torch.rand(features, generator=numbers).to(dtype)
            most = 1024 if tokens < 256 else 256
            for fuse in (False, True):
                y, r = cp.zeros((tokens, features), cp.int16), cp.asarray(raw(residual))
                module.get_function(f"{'fused' if fuse else 'rms'}_{kind}")(
                    (tokens,),
                    (min(features if fuse else features // 8, most),),
                    (
                        y,
                        cp.asarray(raw(x)),
                        r,
                        cp.asarray(raw(weight)),
                        np.float32(EPSILON),
                        np.int32(features),
                    ),
                )
                if fuse:
                    out, added = operations.fused_add_rms_norm(x, residual, weight, EPSILON)
                    fused += [(cp.asnumpy(y), out), (cp.asnumpy(r), added)]
                else:
                    plain.append((cp.asnumpy(y), operations.rms_norm(x, weight, EPSILON)))
        compare("rms_norm", dtype, plain)
        compare("fused_add_rms_norm", dtype, fused)

        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).nan_to_num(1.0, 2.0, 3.0)
        x = torch.cat((every.view(64, -1), torch.randn(64, 1024, generator=numbers).to(dtype)), dim=1)
        y = cp.zeros((64, 1024), cp.int16)
        module.get_function(f"silu_{kind}")((64,), (256,), (y, cp.asarray(raw(x)), np.int32(1024)))
        compare("silu_and_mul", dtype, [(cp.asnumpy(y), operations.silu_and_mul(x))])

        x = torch.randn(4096, 64, generator=numbers).to(dtype)
        cache = (2 * torch.rand(4096, 64, generator=numbers) - 1).to(dtype)
        y = cp.asarray(raw(x))
        module.get_function(f"rope_{kind}")((4096,), (32,), (y, cp.asarray(raw(cache)), np.int32(32)))
        compare(
            "rotary_embedding", dtype, [(cp.asnumpy(y), operations.rotary_embedding(x[:, None], cache)[:, 0])]
        )


if __name__ == "__main__":
    main()
