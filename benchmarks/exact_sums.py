"""How many products a second the exact sums of tensor cores add, beside float32 sums by the BLAS.

    python benchmarks/exact_sums.py [--threads 1] [--rounds 7] [--rows 1,4,49,300] [--shape 1536x768]

The three ways take turns within a round, so that whatever else the machine does falls on all of them. The
table gives each way's best speed in 10^9 products a second, and the median over rounds of the compiled sums'
time divided by the BLAS's in the same round. ``torch`` is what runs without numba, on at most 4 rows. Results
of the two exact ways are compared, bit for bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from qdx.kernels import compiled_sums, tensor_core
from qdx.kernels.cards import rule_of

TORCH_ROWS = 4


def seconds(run: Callable[[], Tensor]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", default="1,4,49,300")
    parser.add_argument("--shape", default="1536x768")
    options = parser.parse_args()
    if not compiled_sums.available():
        parser.error('numba is not installed: pip install "qdx[exact]"')
    torch.set_num_threads(options.threads)
    length, columns = map(int, options.shape.split("x"))
    numbers = torch.Generator().manual_seed(0)
    weight_KN = (torch.randn(length, columns, generator=numbers) * 0.02).half().float()
    print(f"K {length}, {columns} columns, {options.threads} threads, {options.rounds} rounds")
    print(
        "rows  sums        10^9 products a second: compiled   torch    BLAS   times the BLAS's time: compiled"
    )
    for rows in map(int, options.rows.split(",")):
        x_MK = torch.randn(rows, length, generator=numbers).half().float()
        few_MK = x_MK[:TORCH_ROWS]
        for accumulator in ("float32", "float16"):
            rule = rule_of("h100", "fp16", accumulator)
            zeros = torch.zeros(len(few_MK), columns)
            ways: dict[str, tuple[int, Callable[[], Tensor]]] = {
                "compiled": (rows, lambda x=x_MK, r=rule: tensor_core.chain(x, weight_KN, r)),
                "torch": (
                    len(few_MK),
                    lambda x=few_MK, r=rule, z=zeros: tensor_core.by_torch(x, weight_KN, r, z),
                ),
                "BLAS": (rows, lambda x=x_MK: x @ weight_KN),
            }
            results = {name: run() for name, (_, run) in ways.items()}
            if not torch.equal(results["compiled"][:TORCH_ROWS], results["torch"]):
                raise SystemExit(f"{rows} rows, {accumulator}: compiled sums differ from torch's")
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, (_, run) in ways.items():
                    times[name].append(seconds(run))
            speed = {
                name: count * length * columns / min(times[name]) / 1e9 for name, (count, _) in ways.items()
            }
            ratio = median(own / blas for own, blas in zip(times["compiled"], times["BLAS"], strict=True))
            print(
                f"{rows:4}  {accumulator}{speed['compiled']:34.2f}{speed['torch']:8.3f}{speed['BLAS']:8.1f}"
                f"{ratio:34.1f}",
                flush=True,
            )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
