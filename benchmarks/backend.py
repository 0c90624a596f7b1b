"""Slowdown of the demo model by each kernel model against the same model with dense float32 weights, in one
run.

    python benchmarks/backend.py

Times a prefill of 294 tokens and decode steps after it, through the transformers backend as a sweep runs
them. The configs take turns, so that a drifting machine hits all alike; the medians of the rounds and their
ratios to dense are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from qdx.backends.transformers import TransformersBackend
from qdx.models import resolve
from qdx.schema import Quant

CONFIGS = [
    Quant("none", "none", "dense"),
    Quant("awq", "awq", "awq_gemm"),
    Quant("awq_marlin", "awq", "marlin"),
    Quant("awq_machete", "awq", "machete"),
    Quant("gptq", "gptq", "exllama"),
    Quant("gptq_marlin", "gptq", "marlin"),
]


class Nothing:
    """Wants the last row of a prefill and drops every row: the model is timed, not the recorder."""

    def __init__(self, length: int) -> None:
        self._length = length

    def wanted(self, item: int) -> np.ndarray:
        return np.array([self._length])

    def rows(self, *_: Any) -> None:
        pass


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=294)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    prompt = [list(range(1000, 1000 + arguments.tokens))]
    forced = [list(range(2000, 2001 + arguments.steps))]
    recorder: Any = Nothing(arguments.tokens)
    times: dict[str, list[tuple[float, float]]] = {quant.name: [] for quant in CONFIGS}
    engines = {}
    for quant in CONFIGS:
        checkpoint = resolve(f"demo:smollm2/{quant.format}", format=quant.format)
        engines[quant.name] = TransformersBackend(checkpoint, quant, "float16", threads=arguments.threads)
    for turn in range(arguments.rounds + 1):
        for name, engine in engines.items():
            begun = time.perf_counter()
            engine.prefill(prompt, recorder)
            between = time.perf_counter()
            engine.replay(prompt, forced, recorder)
            ended = time.perf_counter()
            if turn:  # the first turn warms up
                times[name].append((between - begun, (ended - between) / arguments.steps))
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)]
        for name, pairs in times.items()
    }
    # What a sweep does with a reference: one prefill, then the steps of generation and those of replay.
    whole = {name: prefill + 2 * arguments.steps * step for name, (prefill, step) in medians.items()}
    print(
        f"{'config':<13} {'prefill s':>9} {'ratio':>6} {'step ms':>8} {'ratio':>6} {'sum s':>11} {'ratio':>6}"
    )
    dense = medians["none"]
    for name, (prefill, step) in medians.items():
        print(
            f"{name:<13} {prefill:9.3f} {prefill / dense[0]:6.2f} {step * 1e3:8.1f} {step / dense[1]:6.2f} "
            f"{whole[name]:11.2f} {whole[name] / whole['none']:6.2f}"
        )


if __name__ == "__main__":
    main()
