"""What an analysis returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr


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
        Lines for the report by phase (``prefill``, ``replay``, ``decode``); ``""`` for what belongs to no
        phase.
    figures : Mapping of str to Any
        Figures by name, for the HTML report.
    """

    name: str
    title: str
    result: xr.Dataset
    text: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
