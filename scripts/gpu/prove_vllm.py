"""Prove the vllm backend on a GPU: the real sweep over kernels, and a short table read from its files.

    python scripts/gpu/prove_vllm.py OUT [key=value …]

Runs ``python -m qdx -m backend=vllm quant=none,awq,…`` with the demo model into OUT, copies report.txt,
summary.json and sweep.nc to OUT/result, and prints for every config: the kernel that was asked for and the
one that was observed, whether the rows of its repeats are bit-equal in each phase, and whether the replay of
its own first transcript is exact. Further arguments go to the sweep as they are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import xarray as xr

QUANTS = "none,awq,awq_marlin,awq_machete,gptq,gptq_marlin,gptq_machete"


def table(path: Path) -> list[str]:
    """Return one line for each config of a ``sweep.nc``."""
    provenance = xr.open_dataset(path, group="provenance")
    phases = {name: _rows(path, name) for name in ("prefill", "decode", "replay")}
    lines = [
        f"{'config':13} {'asked':9} {'observed':9} "
        f"{'prefill':>16} {'decode':>16} {'replay':>16}  replay_exact",
    ]
    for label in phases["prefill"].config.values:
        cells = []
        for data in phases.values():
            one = data.sel(config=label)
            captured = one.captured.values.all(0)
            hashes = one.row_hash.values
            equal = (hashes == hashes[:1]).all(0)
            cells.append(f"{int((equal & captured).sum())}/{int(captured.sum())} rows")
        one = phases["prefill"].sel(config=label)
        exact = str(provenance.replay_exact.sel(config=label).values)
        lines.append(
            f"{label!s:13} {one.requested_kernel.values!s:9} {one.observed_kernel.values!s:9} "
            + " ".join(f"{cell:>16}" for cell in cells)
            + f"  {exact}"
        )
    lines.append("rows that are bit-equal in all repeats / rows captured")
    return lines


def classes(path: Path) -> list[str]:
    """Return which configs' replayed rows are bit-equal to another config's."""
    data = _rows(path, "replay")
    found = []
    labels = [str(label) for label in data.config.values]
    first = data.isel(repeat=0)
    for i, one in enumerate(labels):
        for two in labels[i + 1 :]:
            a, b = first.sel(config=one), first.sel(config=two)
            both = (a.captured & b.captured).values
            equal = (a.row_hash.values == b.row_hash.values) & both
            if equal.any():
                found.append(
                    f"{one} ~ {two}: {int(equal.sum())} of {int(np.sum(both))} replayed rows bit-equal"
                )
    return found or ["no two configs share a bit-equal replayed row"]


@cache
def _rows(path: Path, phase: str) -> xr.Dataset:
    """Return what is compared of a phase, in memory: lazily, every `sel` would read its chunks again."""
    with xr.open_dataset(path, group=phase) as data:
        return data[["captured", "row_hash"]].load()


def main() -> None:
    """Run the sweep and print the table."""
    out = Path(sys.argv[1])
    overrides = sys.argv[2:]
    if not any(argument.startswith("quant=") for argument in overrides):
        overrides.append(f"quant={QUANTS}")
    command = [
        sys.executable,
        "-m",
        "qdx",
        "-m",
        "backend=vllm",
        *overrides,
        f"hydra.sweep.dir={out / 'sweep'}",
    ]
    print(" ".join(command), flush=True)
    code = subprocess.run(command).returncode
    result = out / "result"
    result.mkdir(parents=True, exist_ok=True)
    for name in ("report.txt", "summary.json", "sweep.nc"):
        if (out / "sweep" / name).exists():
            shutil.copy(out / "sweep" / name, result / name)
    if (result / "sweep.nc").exists():
        lines = [*table(result / "sweep.nc"), *classes(result / "sweep.nc")]
        (result / "kernels.txt").write_text("\n".join(lines) + "\n")
        print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
