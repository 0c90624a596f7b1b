"""How much slower the kernel models are than float32 dense, over a whole decoder's linears.

    python benchmarks/kernels.py [--threads 2] [--rounds 7] [--layers 30] [--rows 1,4,49,…]

Kernels take turns within a round, so that whatever else the machine does falls on all of them; the table
gives the median over rounds of each kernel's time divided by dense's time in the same round, and the best
time.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from qdx.kernels import KernelModel, QuantizedWeight, make

HIDDEN, KV, MLP = 768, 256, 1536
SHAPES = (  # (in, out): q, k, v, o, gate, up, down
    (HIDDEN, HIDDEN),
    (HIDDEN, KV),
    (HIDDEN, KV),
    (HIDDEN, HIDDEN),
    (HIDDEN, MLP),
    (HIDDEN, MLP),
    (MLP, HIDDEN),
)
ROWS = (1, 4, 49, 51, 255, 256, 323)
NAMES = ("dense", "awq_gemm", "marlin", "machete", "exllama")


def random_weight(
    in_features: int, out_features: int, symmetric: bool, numbers: torch.Generator
) -> QuantizedWeight:
    """Draw int4 weights, group size 128."""
    groups = in_features // 128
    q_KN = torch.randint(0, 16, (in_features, out_features), dtype=torch.uint8, generator=numbers)
    zero_GN = torch.randint(0, 16, (groups, out_features), dtype=torch.uint8, generator=numbers)
    scale_GN = torch.rand(groups, out_features, generator=numbers).mul_(0.02).add_(0.005).half()
    return QuantizedWeight(
        q_KN, torch.full_like(zero_GN, 8) if symmetric else zero_GN, scale_GN, 128, symmetric
    )


def decoder(name: str, layers: int) -> list[KernelModel]:
    """Make one kernel's linears of a decoder, each with weights of its own."""
    numbers = torch.Generator().manual_seed(0)
    found = []
    for in_features, out_features in SHAPES * layers:
        weight = random_weight(in_features, out_features, name == "exllama", numbers)
        found.append(make(name, weight.dequantize().t() if name == "dense" else weight, generator=numbers))
    return found


def seconds(linears: list[KernelModel], inputs: dict[int, torch.Tensor]) -> float:
    """Time one pass through all linears."""
    start = time.perf_counter()
    for linear in linears:
        linear(inputs[linear.in_features])
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {name: decoder(name, options.layers) for name in NAMES}
    print(
        f"{options.layers} layers, {options.threads} threads, {options.rounds} rounds: median ratio (best ms)"
    )
    print("rows" + "".join(f"{name:>18}" for name in NAMES))
    for rows in map(int, options.rows.split(",")):
        inputs = {size: torch.randn(rows, size).half() for size in (HIDDEN, MLP)}
        for linears in models.values():
            seconds(linears, inputs)
        times: dict[str, list[float]] = {name: [] for name in NAMES}
        for _ in range(options.rounds):
            for name, linears in models.items():
                times[name].append(seconds(linears, inputs))
        cells = []
        for name in NAMES:
            ratio = median(mine / dense for mine, dense in zip(times[name], times["dense"], strict=True))
            cells.append(f"{ratio:.2f} ({1000 * min(times[name]):.0f})")
        print(f"{rows:4}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
