"""Records until it is killed, a line after each sync: ``python -m tests.capture.victim PATH PORTABLE``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from tests.helpers import TOKENS, recorder, small_references

VOCAB, REPEATS, REFERENCES = 20_000, 4, 25


def row(phase: str, repeat: int, reference: int, position: int) -> np.ndarray:
    seed = [len(phase) + ord(phase[0]), repeat, reference, position]
    return np.random.default_rng(seed).integers(-3000, 3000, VOCAB).astype(np.float16) / np.float16(128)


def main(path: str, portable: str) -> None:
    references = small_references(REFERENCES)
    with recorder(
        Path(path), references=references, repeats=REPEATS, vocab=VOCAB, portable=portable == "1"
    ) as record:
        print("open", flush=True)
        for repeat in range(REPEATS):
            for i in range(REFERENCES):
                for phase in ("prefill", "decode", "replay"):
                    record.begin(phase, repeat, [i])
                    for position in record.wanted(0):
                        logits = torch.from_numpy(row(phase, repeat, i, int(position)))[None]
                        record.rows(0, np.array([position]), logits)
                record.output(repeat, i, list(range(TOKENS)), f"text {repeat} {i}", -1)
                record.sync()
                print(repeat, i, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
