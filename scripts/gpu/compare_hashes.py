"""Are the rows of two sweeps bit-equal, kernel by kernel? For two cards, or two versions of vLLM.

    python scripts/gpu/compare_hashes.py ONE/sweep.nc TWO/sweep.nc

Prints for every config that both have, and every phase, how many rows both captured after the same tokens and
how many of them have equal hashes. Free generations are compared up to the row that predicts the first token
that differs.
"""

from __future__ import annotations

import sys

import numpy as np
import xarray as xr

PHASES = ("prefill", "decode", "replay")


def lines(one: str, two: str) -> list[str]:
    """Return the table."""
    found = [_what(path) for path in (one, two)]
    for phase in PHASES:
        a, b = (xr.open_dataset(path, group=phase) for path in (one, two))
        for label in [name for name in a.config.values if name in set(b.config.values)]:
            first, second = xr.align(
                a.sel(config=label).isel(repeat=0), b.sel(config=label).isel(repeat=0), join="inner"
            )
            both = (first.captured & second.captured).values
            if phase == "decode":
                both &= _shared(label, first, second, (one, two))
            equal = (first.row_hash.values == second.row_hash.values) & both
            kernels = f"{first.observed_kernel.item()} ~ {second.observed_kernel.item()}"
            found.append(
                f"{label!s:14} {phase:8} {int(equal.sum()):6} of {int(both.sum()):6} rows  {kernels}"
            )
    return found


def _shared(label: object, first: xr.Dataset, second: xr.Dataset, paths: tuple[str, str]) -> np.ndarray:
    """Return which decode rows come after the same tokens; the first one is prefill's to choose."""
    begun = []
    for path in paths:
        data = xr.open_dataset(path, group="prefill").sel(config=label).isel(repeat=0)
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
    print("\n".join(lines(*sys.argv[1:3])))


if __name__ == "__main__":
    main()
