"""How near the numerical models of `qdx.kernels` come to vLLM's real kernels: same inputs, same weights.

    python benchmarks/kernel_fidelity.py [--rows 1,8,49,…] [--shapes 768x1280,…]  # on a GPU: both
    python benchmarks/kernel_fidelity.py --record real.npz                        # on a GPU: real ones only
    python benchmarks/kernel_fidelity.py --recorded real.npz                      # anywhere: models and them

The real kernels need a GPU of compute capability 9.0 and vLLM 0.20.2 (its ops are called as its linear
methods call them). The models run on the CPU, with the very sums of tensor cores where those are known
(`KernelModel.exact`), or with ``--float32`` as they run in sweeps. For every real kernel, shape and number of
rows it prints, for each model of a kernel that reads the same weights: the share of bit-equal outputs, the
largest distance in ULPs of float16 and the mean absolute difference (of a model that draws, from its mean);
the last column names the model with the smallest mean difference. ``repeat`` is the real kernel against
itself, and ``own noise`` its mean absolute difference from itself. Compared are 8 of every 64 columns, and of
more than 256 rows every 32nd: a few of every tile. ``--launches`` prints which CUDA kernels were launched,
with their grids, instead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.kernels import KernelModel, QuantizedWeight, awq_gemm, exllama, make
from qdx.models import awq, gptq
from qdx.models.quantize import round_to_nearest

DEMO = ((768, 1280), (768, 768), (768, 3072), (1536, 768))  # qkv, o, gate_up, down as vLLM merges them
LARGE = ((4096, 6144), (12288, 4096))  # qkv and down of Qwen3-8B
ROWS = (1, 8, 49, 51, 255, 256, 2048)
MODELS = {True: ("dense", "exllama", "marlin", "machete"), False: ("dense", "awq_gemm", "marlin", "machete")}
Kernel = Callable[[Tensor], Tensor]


def weight_of(in_features: int, out_features: int, symmetric: bool) -> QuantizedWeight:
    """Quantize a Gaussian matrix, the same on every machine."""
    numbers = torch.Generator().manual_seed(in_features * 100003 + out_features)
    weight_NK = torch.randn(out_features, in_features, generator=numbers) * 0.02
    return round_to_nearest(weight_NK.half(), 128, symmetric=symmetric)


def input_of(rows: int, in_features: int) -> Tensor:
    """Draw activations, the same on every machine."""
    return torch.randn(rows, in_features, generator=torch.Generator().manual_seed(rows + in_features)).half()


def packed_rows(q_KN: Tensor) -> Tensor:
    """Pack eight rows of K into a word: int32 (K / 8, N), the layout that Marlin and Machete are given."""
    parts = q_KN.to(torch.int64).view(-1, 8, q_KN.shape[1])
    word = sum(parts[:, i] << (4 * i) for i in range(8))
    return torch.as_tensor(word).to(torch.int32)


def real_kernels(weight: QuantizedWeight) -> dict[str, Kernel]:
    """Return vLLM's kernels for a weight, prepared as its linear methods prepare them."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils as marlin
    from vllm.scalar_type import scalar_types

    size_k, size_n, group = weight.in_features, weight.out_features, weight.group_size
    kind = scalar_types.uint4b8 if weight.symmetric else scalar_types.uint4
    rows = packed_rows(weight.q_KN).cuda()
    scale, zero = weight.scale_GN.cuda(), weight.zero_GN.to(torch.int32).cuda()
    none = marlin.marlin_make_empty_g_idx(torch.device("cuda"))
    shape = {"size_k": size_k, "size_n": size_n}
    m_weight = ops.gptq_marlin_repack(rows, perm=none, **shape, num_bits=4, is_a_8bit=False)
    m_scale = marlin.marlin_permute_scales(scale, **shape, group_size=group, is_a_8bit=False)
    m_zero = none
    if not weight.symmetric:
        m_zero = marlin.marlin_zero_points(
            zero, size_k=size_k // group, size_n=size_n, num_bits=4, is_a_8bit=False
        )
    space = marlin.marlin_make_workspace_new(torch.device("cuda"))
    t_weight = ops.machete_prepack_B(
        rows.t().contiguous().t(), a_type=torch.float16, b_type=kind, group_scales_type=torch.float16
    )
    t_zero = None if weight.symmetric else (-1.0 * scale * zero.to(torch.float16)).contiguous()

    def run_marlin(x: Tensor) -> Tensor:
        return marlin.apply_gptq_marlin_linear(
            x, m_weight, m_scale, m_zero, none, none, space, kind, size_n, size_k, is_k_full=True
        )

    def run_machete(x: Tensor) -> Tensor:
        return ops.machete_mm(
            a=x, b_q=t_weight, b_type=kind, b_group_zeros=t_zero, b_group_scales=scale, b_group_size=group
        )

    found: dict[str, Kernel] = {"marlin": run_marlin, "machete": run_machete}
    if weight.symmetric:
        parts = {name: value.cuda() for name, value in gptq.pack(weight).items()}
        shuffled = parts["qweight"].clone()
        empty = torch.empty(0, dtype=torch.int, device="cuda")
        ops.gptq_shuffle(shuffled, empty, 4)
        found["exllama"] = lambda x: ops.gptq_gemm(
            x, shuffled, parts["qzeros"], parts["scales"], empty, True, False, 4
        )
    else:
        part = {name: value.cuda() for name, value in awq.pack(weight).items()}

        def run_awq(x: Tensor) -> Tensor:
            if x.shape[0] >= 256:
                return x @ ops.awq_dequantize(part["qweight"], part["scales"], part["qzeros"], 0, 0, 0)
            return ops.awq_gemm(x, part["qweight"], part["scales"], part["qzeros"], 8)

        found["awq_gemm"] = run_awq
    return found


def ordered(y: Tensor) -> Tensor:
    """Map float16 to integers whose difference is the distance in ULPs."""
    bits = y.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def compare(real: Tensor, other: Tensor, expected: Tensor | None = None) -> tuple[float, int, float]:
    """Return the share of bit-equal outputs, the largest ULP distance and the mean absolute difference.

    The difference is from `expected` where it is given: what the model gives on average.
    """
    ulps = (ordered(real) - ordered(other)).abs()
    return (
        float((ulps == 0).double().mean()),
        int(ulps.max()),
        float((real.double() - (other if expected is None else expected).double()).abs().mean()),
    )


def branch(kernel: str, rows: int) -> str:
    """Say which of its two ways a kernel goes."""
    most = {"exllama": exllama.MOST_ROWS, "awq_gemm": awq_gemm.DEQUANTIZE_FROM_ROWS - 1}.get(kernel)
    return "" if most is None else f", {'up to' if rows <= most else 'over'} {most} rows"


def modelled(model: KernelModel, x: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
    """Return the sampled outputs of a model, and the mean of 16 if it draws: one would count its noise twice.

    `exact`: by the sums of the tensor cores where they are known.
    """
    if exact and model.exact_known(len(x)):
        rows, columns = sampled(len(x), model.out_features)
        y = model.exact(x, rows, columns)
        return y, y
    first, second = (sample(model(x)).clone() for _ in range(2))
    if torch.equal(first, second):
        return first, first
    total = first.double() + second.double()
    for _ in range(14):
        total += sample(model(x)).double()
    return first, total / 16


def sampled(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the indices of 8 of every 64 columns, and of more than 256 rows every 32nd."""
    n = torch.arange(columns)
    return torch.arange(0, rows, 1 if rows <= 256 else 32), n[n // 8 % 8 == 0]


def sample(y: Tensor) -> Tensor:
    """Pick those outputs."""
    rows, columns = sampled(*y.shape)
    return y[rows[:, None], columns]


def weights(arguments: argparse.Namespace) -> Iterator[tuple[str, QuantizedWeight, list[int]]]:
    """Yield what is multiplied: the shape and form of its name, the weight, and the numbers of rows."""
    for size in arguments.shapes.split(","):
        in_features, out_features = map(int, size.split("x"))
        for form in ("awq", "gptq"):
            weight = weight_of(in_features, out_features, symmetric=form == "gptq")
            yield f"{size}/{form}", weight, [int(rows) for rows in arguments.rows.split(",")]


def record(arguments: argparse.Namespace) -> dict[str, NDArray[Any]]:
    """Run the real kernels twice on every case; return both outputs by name, and what the machine is."""
    import vllm

    machine = torch.cuda.get_device_properties(0)
    what = {
        "gpu": machine.name,
        "sm_count": machine.multi_processor_count,
        "torch": str(torch.__version__),
        "vllm": vllm.__version__,
    }
    found = {"what": np.array(json.dumps(what))}
    for case, weight, all_rows in weights(arguments):
        for name, kernel in real_kernels(weight).items():
            for rows in all_rows:
                x = input_of(rows, weight.in_features).cuda()
                y, again = (sample(kernel(x).cpu()) for _ in range(2))
                found[f"{case}/{rows}/{name}"] = y.numpy()
                if not torch.equal(y, again):
                    found[f"{case}/{rows}/{name}/again"] = again.numpy()
    return found


def launches(arguments: argparse.Namespace) -> None:
    """Print the CUDA kernels behind every case, with their grids."""
    from torch.profiler import ProfilerActivity, profile

    for case, weight, all_rows in weights(arguments):
        for name, kernel in real_kernels(weight).items():
            for rows in all_rows:
                x = input_of(rows, weight.in_features).cuda()
                kernel(x)
                torch.cuda.synchronize()
                with profile(activities=[ProfilerActivity.CUDA]) as trace:
                    kernel(x)
                    torch.cuda.synchronize()
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "trace.json"
                    trace.export_chrome_trace(str(file))
                    events = json.loads(file.read_text())["traceEvents"]
                for event in events:
                    if event.get("cat") == "kernel":
                        grid, block = (event["args"][key] for key in ("grid", "block"))
                        print(*case.split("/"), rows, name, "grid", grid, "block", block, event["name"][:160])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--shapes", default=",".join(f"{k}x{n}" for k, n in DEMO + LARGE))
    parser.add_argument("--record", type=Path, help="write the real kernels' outputs here, and stop")
    parser.add_argument("--recorded", type=Path, help="take the real kernels' outputs from here")
    parser.add_argument(
        "--float32", action="store_true", help="models sum in float32, as backend=transformers does"
    )
    parser.add_argument("--launches", action="store_true", help="print the CUDA kernels, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if arguments.launches:
        return launches(arguments)
    if arguments.recorded:
        with np.load(arguments.recorded) as file:
            real = dict(file)
    else:
        real = record(arguments)
    if arguments.record:
        return np.savez_compressed(arguments.record, **real)
    what = json.loads(str(real["what"]))
    print(", ".join(f"{key} {value}" for key, value in what.items()))
    how = "float32 sums" if arguments.float32 else "the sums of tensor cores where they are known"
    print(f"models with {how}; share bit-equal / largest ULPs / mean |difference|")
    agreed: Counter[str] = Counter()
    shares: dict[str, list[float]] = {}
    for case, weight, all_rows in weights(arguments):
        size, form = case.split("/")
        generator = torch.Generator().manual_seed(0)
        dense = weight.dequantize().t().contiguous()
        models = {
            name: make(
                name, dense if name == "dense" else weight, sm_count=what["sm_count"], generator=generator
            )
            for name in MODELS[weight.symmetric]
        }
        for rows in all_rows:
            x = input_of(rows, weight.in_features)
            outputs = {
                name: modelled(model, x, exact=not arguments.float32) for name, model in models.items()
            }
            for name in sorted(set(models) - {"dense"}):
                key = f"{case}/{rows}/{name}"
                if key not in real:
                    parser.error(f"{arguments.recorded} lacks {key}: name what it has by --shapes and --rows")
                y = torch.from_numpy(real[key])
                again = compare(y, torch.from_numpy(real.get(f"{key}/again", real[key])))
                found = {other: compare(y, *value) for other, value in outputs.items()}
                # its own, if tied
                nearest = min(found, key=lambda other: (found[other][2], other != name))
                group = f"{name}, {form} weights{branch(name, rows)}"
                agreed[group] += nearest == name
                shares.setdefault(group, []).append(found[name][0])
                cells = "  ".join(f"{k} {s:.4f}/{u}/{d:.1e}" for k, (s, u, d) in found.items())
                print(
                    f"{size:>11} {form:4} {rows:4} rows  {name:8}  repeat {again[0]:.4f}  "
                    f"own noise {again[2]:.1e}  {cells}  nearest: {nearest}"
                    f"{'' if nearest == name else '  <-- not its own'}",
                    flush=True,
                )
    print("\nthe real kernel's own model: how often it is the nearest, and its share of bit-equal outputs")
    for group, values in sorted(shares.items()):
        print(
            f"{group:36} nearest in {agreed[group]:2} of {len(values):2}   "
            f"median {statistics.median(values):.4f}   least {min(values):.4f}"
        )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
