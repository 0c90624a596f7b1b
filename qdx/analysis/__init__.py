"""What the distances mean: an analysis takes a sweep and returns a `Section` of numbers and report lines.

The statistics are functions of plain arrays (`qdx.analysis.numerics`); `qdx.analysis.view` finds the arrays
in a sweep.
"""

from __future__ import annotations

from qdx.analysis.cost import cost
from qdx.analysis.effect import effects
from qdx.analysis.equality import classes
from qdx.analysis.floor import noise_floor
from qdx.analysis.pairwise import pairs
from qdx.analysis.section import Section
from qdx.analysis.signal import snr
from qdx.analysis.tokens import consistency

__all__ = ["Section", "classes", "consistency", "cost", "effects", "noise_floor", "pairs", "snr"]
