"""Hold what a file states against what can be computed from it, number by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from qdx.legacy.reading import Floats

TOLERANCE = 1e-9  # relative: sums of float64 in another order
WITHIN = "within half a unit"  # how a note begins where the file's numbers are rounded
SMALLEST = 1e-12  # absolute: what such sums leave where the number is 0


@dataclass(frozen=True)
class Entry:
    """One stated quantity.

    Attributes
    ----------
    path : str
        In the file, such as ``decode_analysis.matrix``.
    stated, reproduced, differing, neither, uncomputed : int
        Numbers stated; of these equal to what was computed; unlike it; not finite in both; and for which
        nothing could be computed.
    worst : float
        Greatest absolute difference of those that are finite in both; NaN without any.
    note : str
        Why a number could not be computed, or how it was.
    """

    path: str
    stated: int
    reproduced: int
    differing: int
    neither: int
    uncomputed: int
    worst: float
    note: str = ""


@dataclass
class Ledger:
    """The comparisons of one file."""

    entries: list[Entry] = field(default_factory=list)

    def compare(
        self,
        path: str,
        stated: ArrayLike,
        computed: ArrayLike,
        note: str = "",
        tolerance: ArrayLike = TOLERANCE,
        relative: bool = True,
    ) -> None:
        """Compare numbers of one shape; infinity and NaN are "not measured", and both sides may say so.

        Parameters
        ----------
        path : str
        stated, computed : array
        note : str
        tolerance : array
            Greatest difference that counts as equal, as a share of the stated value where `relative`.
        relative : bool
        """
        theirs, own = np.broadcast_arrays(np.asarray(stated, float), np.asarray(computed, float))
        both = np.isfinite(theirs) & np.isfinite(own)
        # Infinite on both sides is one and the same ratio; NaN against infinity is "not measured" twice.
        neither = ~np.isfinite(theirs) & ~np.isfinite(own)
        with np.errstate(invalid="ignore"):
            difference = np.abs(theirs - own)
            limit = np.asarray(tolerance) * (np.abs(theirs) if relative else 1.0)
        equal = both & (difference <= np.maximum(limit, SMALLEST))
        missing = np.isfinite(theirs) & np.isnan(own)
        self.entries.append(
            Entry(
                path,
                theirs.size,
                int(equal.sum()),
                int((~equal & ~neither & ~missing).sum()),
                int(neither.sum()),
                int(missing.sum()),
                float(difference[both].max()) if both.any() else float("nan"),
                note,
            )
        )

    def same(self, path: str, equal: bool, note: str = "") -> None:
        """Record a comparison of something that is not a number, such as a list of pairs; it counts once."""
        self.entries.append(Entry(path, 1, int(equal), int(not equal), 0, 0, float("nan"), note))

    def cannot(self, path: str, count: int, why: str) -> None:
        """Record numbers that nothing in the file allows to compute."""
        self.entries.append(Entry(path, count, 0, 0, 0, count, float("nan"), why))

    def lines(self) -> list[str]:
        """Say for people how many numbers were reproduced, and name every one that was not."""
        if not self.entries:
            return ["the file states no number that could be computed from its others"]
        total = {
            name: sum(getattr(entry, name) for entry in self.entries)
            for name in ("stated", "reproduced", "differing", "neither", "uncomputed")
        }
        worst = [entry.worst for entry in self.entries if np.isfinite(entry.worst) and not entry.differing]
        line = f"{total['reproduced']:,} of {total['stated']:,} stated numbers and lists reproduced"
        if worst:
            rounding = sorted({entry.note for entry in self.entries if entry.note.startswith(WITHIN)})
            line += f" (greatest difference {max(worst):.1e}{''.join(f', {of}' for of in rounding)})"
        counts = (
            ("neither", "not finite in both"),
            ("differing", "DIFFERING"),
            ("uncomputed", "not computable"),
        )
        line += "".join(f", {total[key]:,} {words}" for key, words in counts if total[key])
        found = [line]
        for entry in self.entries:
            if entry.differing:
                size = f", by up to {entry.worst:.2g}" if np.isfinite(entry.worst) else ""
                found.append(
                    f"  {entry.path}: {entry.differing:,} of {entry.stated:,} differ{size}{_about(entry)}"
                )
            elif entry.uncomputed:
                found.append(
                    f"  {entry.path}: {entry.uncomputed:,} of {entry.stated:,} not computable{_about(entry)}"
                )
        return found

    def dataset(self) -> xr.Dataset:
        """The entries as a table over `entry`, for ``/analysis/legacy/reproduction``."""
        meaning = {
            "stated": "numbers that the file states",
            "reproduced": "of these equal to what was computed from the file's other numbers",
            "differing": "of these unlike what was computed",
            "neither": "of these infinite or NaN in the file, and not measured in the computation",
            "uncomputed": "of these not computable from the file",
        }
        data: dict[str, Any] = {
            name: (
                "entry",
                np.array([getattr(entry, name) for entry in self.entries], np.int64),
                {"units": "1", "long_name": words},
            )
            for name, words in meaning.items()
        }
        worst: Floats = np.array([entry.worst for entry in self.entries], float)
        data["worst"] = ("entry", worst, {"long_name": "greatest absolute difference, in the number's unit"})
        data["note"] = ("entry", [entry.note for entry in self.entries])
        return xr.Dataset(data, coords={"entry": [entry.path for entry in self.entries]})


def _about(entry: Entry) -> str:
    return f": {entry.note}" if entry.note else ""
