"""Are rows bit-equal? Of two sweeps (two cards, two versions of vLLM), or along the axes of one.

    python scripts/gpu/compare_hashes.py ONE/sweep.nc TWO/sweep.nc
    python scripts/gpu/compare_hashes.py AXIS/sweep.nc

Prints for every config that both sweeps have, and every phase, how many rows both captured after the same
tokens and how many of them have equal hashes; of one sweep, the same for every two configs of one format that
ran one kernel, and in how many rows a config's repeats agree. First repeats are compared. Free generations
are compared up to the row that predicts the first token that differs.
"""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import xarray as xr

PHASES = ("prefill", "decode", "replay")
READ = ("captured", "row_hash", "token_id")


def lines(one: str, two: str) -> list[str]:
    """Return the table."""
    found = [_what(path) for path in (one, two)]
    for phase in PHASES:
        a, b = (rows(path, phase) for path in (one, two))
        for label in [name for name in a.config.values if name in set(b.config.values)]:
            sides = (data.sel(config=label).isel(repeat=0) for data in (a, b))
            first, second = xr.align(*sides, join="inner")
            equal, both = _counts(phase, (label, label), first, second, (one, two))
            kernels = f"{first.observed_kernel.item()} ~ {second.observed_kernel.item()}"
            found.append(f"{label!s:14} {phase:8} {equal:6} of {both:6} rows  {kernels}")
    return found


def within(path: str) -> list[str]:
    """Return the table of one sweep."""
    found = [_what(path)]
    for phase in PHASES:
        data = rows(path, phase)
        kind = list(zip(data.format.values, data.observed_kernel.values, strict=True))
        for i, label in enumerate(data.config.values):
            own = data.sel(config=label)
            kept = own.captured.values.all(0)
            same = int(((own.row_hash.values == own.row_hash.values[:1]).all(0) & kept).sum())
            repeats = own.sizes["repeat"]
            said = f"{same} of {int(kept.sum())} rows equal in all {repeats} repeats"
            found.append(f"{phase:8} {label}: {said if repeats > 1 else 'not run again'}")
            for j in [j for j in range(i + 1, len(kind)) if kind[j] == kind[i]]:
                other = data.config.values[j]
                first, second = (data.sel(config=name).isel(repeat=0) for name in (label, other))
                equal, both = _counts(phase, (label, other), first, second, (path, path))
                found.append(f"{phase:8} {label} ~ {other}: {equal} of {both} rows equal")
    return found


@cache
def rows(path: str, phase: str) -> xr.Dataset:
    """Return what is compared of a phase, in memory: lazily, every `sel` would read its chunks again."""
    with xr.open_dataset(path, group=phase) as data:
        names = [name for name in READ if name in data]
        return data[names].load()


def _counts(
    phase: str,
    labels: tuple[object, object],
    first: xr.Dataset,
    second: xr.Dataset,
    paths: tuple[str, str],
) -> tuple[int, int]:
    """Return how many rows are equal, and how many can be compared."""
    both = (first.captured & second.captured).values
    if phase == "decode":
        both &= _shared(labels, first, second, paths)
    equal = (first.row_hash.values == second.row_hash.values) & both
    return int(equal.sum()), int(both.sum())


def _shared(
    labels: tuple[object, object], first: xr.Dataset, second: xr.Dataset, paths: tuple[str, str]
) -> np.ndarray:
    """Return which decode rows come after the same tokens; the first one is prefill's to choose."""
    begun = []
    for label, path in zip(labels, paths, strict=True):
        data = rows(path, "prefill").sel(config=label).isel(repeat=0)
        last = data.captured.values.cumsum(-1).argmax(-1)
        begun.append(np.take_along_axis(data.token_id.values, last[:, None], -1))
    captured = (first.captured & second.captured).values
    same = (first.token_id.values == second.token_id.values) | ~captured
    before = np.concatenate([begun[0] == begun[1], same[:, :-1]], axis=1)
    return np.logical_and.accumulate(before, axis=1)


def _what(path: str) -> str:
    data = xr.open_dataset(path, group=PHASES[0]).isel(config=0)
    parts = [str(data[name].item()) for name in ("backend", "backend_version", "gpu", "sm_count")]
    return f"{path}: {' '.join(parts)}"


def main() -> None:
    """Print the table."""
    paths = sys.argv[1:]
    if len(paths) not in (1, 2):
        sys.exit(__doc__)
    print("\n".join(within(*paths) if len(paths) == 1 else lines(*paths)))


if __name__ == "__main__":
    main()
