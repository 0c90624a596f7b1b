"""Say what distances mean. An analysis takes a sweep and returns a `Section` of numbers and blocks.

The statistics are functions of plain arrays (`qdx.statistics`); `qdx.analysis.view` finds the arrays
in a sweep.
"""

from __future__ import annotations

from qdx.analysis.classes import classes
from qdx.analysis.consistency import consistency
from qdx.analysis.cost import cost
from qdx.analysis.effects import effects
from qdx.analysis.noise_floor import noise_floor
from qdx.analysis.pairs import pairs
from qdx.analysis.section import Section
from qdx.analysis.snr import snr
from qdx.document.blocks import Chart, Details, Matrix, Table, Text

__all__ = [
    "Chart",
    "Details",
    "Matrix",
    "Section",
    "Table",
    "Text",
    "classes",
    "consistency",
    "cost",
    "effects",
    "noise_floor",
    "pairs",
    "snr",
]
