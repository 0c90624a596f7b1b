"""Which operations of a card does the emulator reproduce bit for bit? One command for whoever owns the card.

    PYTHONPATH=.:scripts/gpu python scripts/gpu/compare_card.py OUT [--card a100] [--recorded]

Records every operation of a small model on this machine's GPU into OUT (``record_layers.py``, which needs
vLLM 0.33.0 and takes two to four minutes), then compares each with `qdx.kernels`, given the card's inputs,
and the model by itself from the token ids. With ``--recorded`` OUT is there already and no GPU is needed.
``--card`` is whose constants the emulator takes.

Prints a line for each operation of each config, then the first difference of each operation that has one.
Ends with status 1 when something differs, and 2 when nothing was recorded that could be compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import compare_layers
import numpy as np
import record_layers
from numpy.typing import NDArray

from qdx.backends.emulator.cards import CARDS
from qdx.errors import QdxError

FILES = ("layers.npz", "others.npz")


def compared(
    file: Mapping[str, NDArray[Any]], name: str, card: str
) -> tuple[compare_layers.Counts, dict[str, str], list[tuple[str, int, int, str]]]:
    """Compare one config that was recorded.

    Returns
    -------
    tuple
        Equal and all outputs of each operation; each one's first difference; of each case of the model by
        itself its name, equal rows, all rows and the first difference.
    """
    config = record_layers.CONFIGS[name]
    model = compare_layers.llama(config["form"], config["kernel"], config["attention"], card)
    counts: compare_layers.Counts = {}
    firsts: dict[str, str] = {}
    rows = []
    for case in record_layers.CASES:
        steps = compare_layers.steps_of(file, name, case)
        if not steps:
            continue
        if "embed_tokens" in steps[0]:  # of long prompts hashes alone were recorded
            compare_layers.by_operation(model, steps, counts, config["attention"], firsts)
        rows.append((case, *compare_layers.by_itself(model, steps)))
    return counts, firsts, rows


def lines(files: Sequence[Mapping[str, NDArray[Any]]], card: str, found: list[str]) -> Iterator[str]:
    """Make the table; `found` gets what differs."""
    configs = [(file, name) for file in files for name in record_layers.CONFIGS if f"{name}/about" in file]
    if configs:
        about = json.loads(str(configs[0][0][f"{configs[0][1]}/about"]))
        unknown = CARDS[card].unknown
        yield f"recorded on {about['device']}, torch {about['torch']}; compared with backend.card={card}"
        yield f"known of it before: {f'nothing of {unknown}' if unknown else 'whole rows'}"
    for file, name in configs:
        yield name
        try:
            counts, firsts, rows = compared(file, name, card)
        except QdxError as error:
            found.append(f"{name}: not emulated: {error}")
            yield f"  not emulated: {error}"
            continue
        for operation, (equal, total) in counts.items():
            yield f"  {operation:32} {equal:9} of {total:9} outputs equal"
        for case, equal, total, first in rows:
            yield f"  by itself, {case:6} {equal} of {total} rows equal {first}"
        found.extend(f"{name}, {operation}: {first}" for operation, first in firsts.items())
        for case, equal, total, first in rows:
            if equal < total or first:
                found.append(f"{name}, by itself, {case}: {total - equal} of {total} rows; {first}")


def main() -> int:
    """Record unless it is done, compare, and say what differs first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--card", default="h100", choices=sorted(CARDS))
    parser.add_argument("--recorded", action="store_true", help="OUT is there already; needs no GPU")
    options = parser.parse_args()
    if not options.recorded:
        command = [sys.executable, str(Path(record_layers.__file__)), str(options.out)]
        subprocess.run(command, check=True)
    files = [dict(np.load(options.out / name)) for name in FILES if (options.out / name).is_file()]
    found: list[str] = []
    said = 0
    for line in lines(files, options.card, found):
        said += 1
        print(line, flush=True)
    if not said:
        print(
            f"{options.out} has no config of {', '.join(record_layers.CONFIGS)}: its log.txt says why",
            flush=True,
        )
        return 2
    print("\nFirst differences:" if found else "\nNothing differs.", *found, sep="\n  ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
