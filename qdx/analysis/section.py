"""Define `Section`, which an analysis returns, and the values that options of shipped analyses may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from qdx.dataset.layout import REPORT_ORDER
from qdx.document.blocks import Block, from_text, of_phase
from qdx.errors import QdxError, nearest

PLACES = ("front", "phase", "end")


@dataclass(frozen=True)
class Section:
    """One analysis: its numbers and what the report prints of them.

    Attributes
    ----------
    name : str
        Name of the analysis; its numbers are stored as ``/analysis/<name>``.
    title : str
        Heading in the report.
    result : xarray.Dataset
        Every number, with units and meaning in attributes.
    text : Mapping of str to str
        Lines by phase, as `blocks` replace them: they are printed as they are, and a page shows them in
        columns. An analysis that has blocks needs none.
    blocks : sequence of Block
        What the report says: sentences, tables, matrices, charts, each with a phase or without one.
    place : "front", "phase" or "end"
        Where the report shows it: before the phases, or after them. Blocks that have a phase stand with that
        phase, unless the place is ``front`` or ``end``.

    Raises
    ------
    QdxError
        For another place.
    """

    name: str
    title: str
    result: xr.Dataset
    text: Mapping[str, str] = field(default_factory=dict)
    blocks: Sequence[Block] = ()
    place: str = "phase"

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise QdxError(
                f"place={self.place!r} of section {self.name!r}: must be one of {', '.join(PLACES)}"
            )

    @property
    def content(self) -> list[Block]:
        """All that the report says: the blocks, then the lines of `text`."""
        return [*self.blocks, *from_text(self.text)]

    def of_phase(self, phase: str) -> list[Block]:
        """Return what stands with a phase; of ``""`` what belongs to none."""
        if self.place == "phase":
            return of_phase(self.content, phase)
        return self.content if phase == "" else []


LEAST = {"draws": 1, "seed": 0, "shown": 0, "references_shown": 0, "words": 0}


def check(options: Mapping[str, Any]) -> None:
    """Refuse a value that an analysis could not use.

    Parameters
    ----------
    options : Mapping
        By name, which means the same in every shipped analysis; their types are right or they are None.

    Raises
    ------
    QdxError
        Beginning with ``option=value``.
    """
    for name, value in options.items():
        if name in LEAST and (value is None or value < LEAST[name]):
            raise QdxError(f"{name}={value}: must be a whole number, at least {LEAST[name]}")
        if name == "level" and (value is None or not 0 < value < 1):
            raise QdxError(f"level={value}: must be above 0 and below 1, such as 0.95")
        if name == "phases":
            _check_phases(value)


def _check_phases(phases: Any) -> None:
    if not phases:
        raise QdxError(f"phases={phases}: choose at least one of {', '.join(REPORT_ORDER)}")
    for phase in phases:
        if phase not in REPORT_ORDER:
            close = nearest(str(phase), REPORT_ORDER)
            raise QdxError(f"phases={phase}: no phase, one of {', '.join(REPORT_ORDER)}{close}")
