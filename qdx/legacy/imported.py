"""Hold what a reader makes of a file, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from qdx.legacy.ledger import Ledger

METRICS = {"logprobs": "seed_l2", "key_vectors": "key_vectors_l2"}  # by the signal's name in a file
SIGNALS = {
    "logprobs": ("nat", "L2 of log-probabilities of the ids that both rows list, mean over positions"),
    "key_vectors": ("1", "L2 of key vectors, mean over positions and layers"),
}


@dataclass(frozen=True)
class Imported:
    """A file's content.

    Attributes
    ----------
    form : str
        What kind of file it is, in a few words.
    groups : Mapping of str to xarray.Dataset
        By path in the file to write.
    said : list of str
        Lines for people: what was read.
    attributes : Mapping of str to Any
        Everything else in the file, by path.
    ledger : Ledger
        The file's own numbers against those computed from it.
    numbers : int
        Finite numbers that were read as data.
    facts : Mapping of str to Any
        Root attributes of the sweep: labels, failed, missing.
    """

    form: str
    groups: Mapping[str, xr.Dataset]
    said: list[str]
    attributes: Mapping[str, Any]
    ledger: Ledger
    numbers: int
    facts: Mapping[str, Any] = field(default_factory=dict)


def metric_of(signal: str) -> str:
    """The metric's name for a signal of a file."""
    return METRICS.get(signal, signal)


def facts_of(signal: str) -> dict[str, str]:
    """Attributes of a distance."""
    unit, meaning = SIGNALS.get(signal, ("1", f"distance of {signal}, as the file states it"))
    return {"units": unit, "higher_means": "less alike", "long_name": meaning}
