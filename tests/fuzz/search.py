"""Runs a number of inputs of a kind and counts what came of them."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.kinds import MAKERS, Bases
from tests.fuzz.pool import Worker

FINE = ("accepted", "refused", "hang in HDF5", "crash in HDF5")


def search(
    kind: str, count: int, bases: Bases, worker: Worker, start: int, found: Callable[[str, str, Path], None]
) -> Counter[str]:
    """Try `count` inputs.

    Parameters
    ----------
    found : callable
        Called with what came of it, the message and the folder of the input, for each that is not `FINE`.
    """
    counts: Counter[str] = Counter()

    # Each finding is told and the search goes on, so nothing raises and nothing is shrunk or remembered.
    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        folder = Path(tempfile.mkdtemp(dir=bases.folder))
        try:
            options = MAKERS[kind](data.draw, bases, folder)
            outcome, said = worker.ask(kind, folder, options)
            counts[outcome] += 1
            if outcome not in FINE:
                found(outcome, f"{options}\n{said}", folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    one()
    return counts
