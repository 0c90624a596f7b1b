"""How fast a CPU computes a card's forward pass bit for bit: prefill and decode steps of the demo model.

    python benchmarks/emulator.py [--model demo:smollm2/awq] [--kernel marlin] [--prompt 294] [--steps 8]
        [--threads 2] [--attention FLASH_ATTN]

Prints seconds on the wall and of the processor. On a machine that is shared the processor's are nearer to
what an idle one takes; with more threads than one the wall's may be less.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import Tensor

from qdx.backends.emulator import EmulatorBackend
from qdx.models import resolve
from qdx.schema import Quant


class Nothing:
    """Takes the recorder's place and keeps nothing."""

    def wanted(self, item: int) -> np.ndarray:
        """Return the position of the first row, since one has to be kept."""
        return np.array([1])

    def rows(self, *_: object, **__: Tensor) -> None:
        """Keep nothing."""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo:smollm2/awq")
    parser.add_argument("--kernel", default="marlin")
    parser.add_argument("--prompt", type=int, default=294)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", default="FLASH_ATTN")
    options = parser.parse_args()
    form = options.model.rpartition("/")[2]
    checkpoint = resolve(options.model, format=form)
    marks = [(time.perf_counter(), time.process_time())]

    def lap() -> tuple[float, float]:
        marks.append((time.perf_counter(), time.process_time()))
        (wall, used), (wall_before, used_before) = marks[-1], marks[-2]
        return wall - wall_before, used - used_before

    engine = EmulatorBackend(
        checkpoint=checkpoint,
        quant=Quant(name=options.kernel, format=form, kernel=options.kernel),
        dtype="float16",
        threads=options.threads,
        attention_backend=options.attention,
        engine="0.20.2",
    )
    print(f"{options.model}, {options.kernel}, {options.attention}, {torch.get_num_threads()} threads")
    print("                                        wall   processor")
    print("load                              {:10.2f} s {:9.2f} s".format(*lap()))
    ids = [list(range(100, 100 + options.prompt))]
    nothing = Nothing()
    engine.prefill([ids[0][:20]], nothing)  # compiles, unpacks tables
    engine.replay([ids[0][:20]], [[1, 2]], nothing)
    print("first use: compiling, tables      {:10.2f} s {:9.2f} s".format(*lap()))
    engine.prefill(ids, nothing)
    wall, used = lap()
    print(f"prefill of {options.prompt} tokens             {wall:10.2f} s {used:9.2f} s")
    engine.replay(ids, [list(range(options.steps + 1))], nothing)
    wall, used = (value / options.steps for value in lap())
    print(f"a decode step, mean of {options.steps}          {wall:10.3f} s {used:9.3f} s")
    print(f"decode tokens a second            {1 / wall:10.2f}   {1 / used:9.2f}")


if __name__ == "__main__":
    main()
