"""Damaged and made-up inputs: ``python scripts/fuzz.py N`` tries N of every kind and prints the counts.

An input may be accepted, or refused by a `QdxError` of one line. Anything else is a finding: another
exception, a crash of the process, no answer within three minutes. Each distinct one is printed and kept below
--keep; the exit status is 1 then. Crashes and hangs inside HDF5 are counted apart: qdx cannot prevent them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere, also as a file

from tests.fuzz.kinds import MAKERS, Bases
from tests.fuzz.pool import Worker
from tests.fuzz.search import search
from tests.fuzz.worker import MEMORY, MEMORY_GIB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, metavar="N", help="inputs of each kind")
    parser.add_argument(
        "--kind", action="append", choices=list(MAKERS), help="only this kind; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="folder for inputs of findings"
    )
    parser.add_argument(
        "--memory", type=float, default=MEMORY_GIB, metavar="GIB", help="address space of the tried program"
    )
    options = parser.parse_args()
    os.environ[MEMORY] = str(int(options.memory * 2**30))
    total: Counter[str] = Counter()
    seen: dict[str, int] = {}

    def found(outcome: str, said: str, folder: Path) -> None:
        key = f"{kind}: {outcome}: {_place(said)}"
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 1:
            kept = options.keep / f"{len(seen):03}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept)
            (kept / "finding.txt").write_text(f"{key}\n{said}\n", errors="replace")
            print(f"FINDING {kept}: {key}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        bases, worker = Bases.build(Path(name)), Worker()
        try:
            for kind in options.kind or MAKERS:
                started = time.monotonic()
                counts = search(kind, options.count, bases, worker, options.seed, found)
                total += counts
                said = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
                print(
                    f"{kind:>13}: {counts.total()} inputs: {said} ({time.monotonic() - started:.0f} s)",
                    flush=True,
                )
        finally:
            worker.close()
    print(f"{total.total()} inputs in all: " + ", ".join(f"{n} {what}" for what, n in sorted(total.items())))
    for key, times in seen.items():
        print(f"{times:>5} × {key}")
    return 1 if seen else 0


def _place(said: str) -> str:
    """Where in qdx an exception came from, and its type: what tells findings apart."""
    lines = said.strip().splitlines()
    at = [line.strip() for line in lines if "/qdx/" in line and line.strip().startswith("File")]
    where = at[-1].rpartition("/qdx/")[2] if at else ""
    return f"{where} {lines[-1][:150]}"


if __name__ == "__main__":
    sys.exit(main())
