"""Write a number for a person: once, the same in every form of a report."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from qdx.document.blocks import Cell

DASH = "–"  # what a table's cell shows of what was not measured; its legend or title says what it means
NOT_MEASURED = "not measured"  # where there is room for words


def number(value: float, digits: int = 3, missing: str = DASH) -> str:
    """Write a number in so many significant digits: ``2.75``, ``0.0399``, ``12,300``, ``3.69e-5``."""
    if not math.isfinite(value):
        return missing
    if value == 0:
        return "0"
    scientific = f"{value:.{digits - 1}e}"
    rounded = float(scientific)
    if not 1e-3 <= abs(rounded) < 1e5:
        mantissa, exponent = scientific.split("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def cell(value: Cell) -> str:
    """Write what a table's cell holds: text as it is, a count whole, another number in three digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{int(value):,}" if isinstance(value, int | np.integer) else number(float(value))


def signed(value: float, decimals: int = 3) -> str:
    """Write a change with its sign: ``+0.125``."""
    return f"{value:+,.{decimals}f}" if math.isfinite(value) else DASH


def span(low: float, high: float, write: Callable[[float], str] = number) -> str:
    """Write an interval: ``0.51 to 0.63``."""
    return f"{write(low)} to {write(high)}" if math.isfinite(low) else DASH


def probability(value: float) -> str:
    """Write a p in at most two digits: ``1``, ``0.43``, ``0.0021``, ``1.1e-5``."""
    if not math.isfinite(value):
        return DASH
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def part(count: int, of: int) -> str:
    """Write a count of a whole: ``36 of 1,024``; a dash where there is nothing to be counted."""
    return f"{int(count):,} of {int(of):,}" if of else DASH


def percent(value: float) -> str:
    """Write a share as per cent; 100 % and 0 % only when exact."""
    if not math.isfinite(value):
        return DASH
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    return f"{min(max(value, 0.001), 0.999):.1%}"


def plural(count: int, noun: str) -> str:
    """``1 row``, ``2 rows``, ``1,024 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
