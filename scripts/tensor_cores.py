"""Print how many published results of each card's tensor cores `qdx.kernels.tensor_core` reproduces.

    python scripts/tensor_cores.py                       # the 1,000 a card and format of tests/kernels
    python scripts/tensor_cores.py CLONE/model_validation  # all of a clone of MATLAB-tensor-core: 5,000 each

A line a card, format and accumulator: results equal in every bit, of how many. The exit status is 1 if one
differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qdx.kernels import tensor_core
from qdx.kernels.cards import rule_of

VECTORS = Path(__file__).parents[1] / "tests" / "kernels" / "tensor_cores" / "vectors.npz"
BATCH = 50
Results = tuple[str, str, str, Tensor, Tensor, Tensor, Tensor]  # card, format, accumulator, a, b, c, d


def floats(bits: np.ndarray) -> Tensor:
    """Read float32 numbers from their bits."""
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.float32))


def packaged() -> Iterator[Results]:
    """Yield what is in tests/kernels."""
    with np.load(VECTORS) as file:
        for key in sorted(key for key in file.files if key.rsplit("/", 1)[1].startswith("d")):
            card, kind, name = key.split("/")
            a, b, c, d = (floats(file[f"{card}/{kind}/{part}"]) for part in ("a", "b", "c", name))
            yield card, kind, "float32" if name == "d" else "float16", a, b, c, d


def words(path: Path) -> np.ndarray:
    """Read a text file of numbers, in 8 hexadecimal digits or 32 binary ones."""
    return np.array([int(word, 2 if len(word) > 8 else 16) for word in path.read_text().split()], np.uint32)


def cloned(folder: Path) -> Iterator[Results]:
    """Yield what is in a clone."""
    for path in sorted(folder.glob("*/*/a_*.txt")):
        card, kind = path.parent.parent.name, path.parent.name
        c = floats(words(path.with_name(f"c_{card}_fp32.txt")))
        a, b = (
            floats(words(path.with_name(f"{side}_{card}_{kind}.txt")).reshape(len(c), -1)) for side in "ab"
        )
        for accumulator, suffix in (("float32", "fp32"), ("float16", "fp16")):
            file = path.with_name(f"d_{card}_{suffix}.txt")
            if file.exists():
                yield card, kind, accumulator, a, b, c, floats(words(file))


def reproduced(results: Results) -> int:
    """Count equal results; those of wgmma started from zero."""
    card, kind, accumulator, a, b, c, d = results
    from_zero = card in ("H100", "H200") and kind.startswith("E") and accumulator == "float32"
    rule = rule_of(card.lower(), kind.lower(), accumulator, "wgmma" if from_zero else "mma")
    held = torch.zeros_like(c) if from_zero else c.half().float() if accumulator == "float16" else c
    equal = 0
    for first in range(0, len(c), BATCH):  # a matrix of them, of which the diagonal is compared
        m = slice(first, first + BATCH)
        square = held[m, None].expand(-1, len(held[m])).contiguous()
        found = tensor_core.chain(a[m], b[m].t().contiguous(), rule, square).diagonal()
        equal += int((found == d[m]).sum())
    return equal


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, nargs="?", help="model_validation of a clone")
    arguments = parser.parse_args()
    total = wrong = 0
    for results in cloned(arguments.folder) if arguments.folder else packaged():
        equal, count = reproduced(results), len(results[5])
        print(f"{results[0]:5} {results[1]:5} {results[2]}  {equal} of {count}", flush=True)
        total, wrong = total + count, wrong + count - equal
    print(f"{total - wrong} of {total}")
    return 1 if wrong or not total else 0


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
