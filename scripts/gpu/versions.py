"""One table of vLLM's versions: which rows are equal, kernel by kernel. Nothing here needs a GPU.

    python scripts/gpu/versions.py gather OUT.nc SWEEP.nc …   the hashes of several sweeps, in one small file
    python scripts/gpu/versions.py table OUT.nc               the table

The sweeps are those of ``versions.sh``, one for each version of vLLM, and of ``verdicts.sh``, whose producers
have the same references and weights. A row's key is its phase, reference, position and the tokens before it,
so free generations are compared for as long as they agree.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

PHASES = ("prefill", "decode", "replay")
COLUMNS = {
    "config": "u1",
    "phase": "u1",
    "reference": "u1",
    "position": "i4",
    "before": "u4",
    "row_hash": "u8",
}
FACTS = (
    "format",
    "observed_kernel",
    "backend_version",
    "model_runner",
    "batch_size",
    "gpu",
    "compute_capability",
    "sm_count",
    "dtype",
    "backend_attention_backend",
    "backend_enforce_eager",
    "torch_version",
    "cublas_version",
    "driver_version",
    "weights_sha256",
    "references_sha256",
    "code_sha256",
)
BASE = "0.20.2"  # the version that the others are compared with


def gather(out: Path, sweeps: Sequence[Path]) -> None:
    """Write every config's hashes, with what it ran, into one file."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    configs: list[dict[str, str]] = []
    for sweep in sweeps:
        provenance = xr.open_dataset(sweep, group="provenance")
        groups = {phase: xr.open_dataset(sweep, group=phase) for phase in PHASES}
        for label in groups["prefill"].config.values:
            stated = {"label": str(label), "sweep": f"{sweep.parent.name}/{sweep.name}"}
            for name in FACTS:
                data = next(d for d in (groups["prefill"], provenance) if name in d.variables)
                stated[name] = str(data[name].sel(config=label).values)
            configs.append(stated)
            first = _first_output(groups["prefill"], label)
            for phase, data in groups.items():
                _rows(columns, len(configs) - 1, phase, data.sel(config=label).isel(repeat=0), first)
    data = xr.Dataset(
        {name: ("row", np.concatenate(values).astype(COLUMNS[name])) for name, values in columns.items()},
        attrs={"configs": json.dumps(configs), "phases": json.dumps(PHASES)},
    )
    data.to_netcdf(out, encoding={name: {"zlib": True, "complevel": 9, "shuffle": True} for name in COLUMNS})


def _first_output(prefill: xr.Dataset, label: str) -> np.ndarray:
    """Return the token that each reference's last prefill row chose."""
    one = prefill.sel(config=label).isel(repeat=0)
    last = one.captured.values.cumsum(-1).argmax(-1)
    chosen: np.ndarray = np.take_along_axis(one.token_id.values, last[:, None], -1)[:, 0]
    return chosen


def _rows(columns: dict[str, list[Any]], config: int, phase: str, one: xr.Dataset, first: np.ndarray) -> None:
    captured = one.captured.values
    reference, at = np.nonzero(captured)
    tokens = one.token_id.values
    before = np.zeros(len(at), np.int64)
    if phase == "decode":
        for row, (r, a) in enumerate(zip(reference.tolist(), at.tolist(), strict=True)):
            path = [int(first[r]), *tokens[r, :a][captured[r, :a]].tolist()]
            before[row] = zlib.crc32(np.array(path, np.int64).tobytes())
    found = {
        "config": np.full(len(at), config),
        "phase": np.full(len(at), PHASES.index(phase)),
        "reference": reference,
        "position": one.position.values[at],
        "before": before,
        "row_hash": one.row_hash.values[reference, at],
    }
    for name, values in found.items():
        columns[name].append(values)


def table(path: Path) -> Iterator[str]:
    """Return the table, in lines."""
    with xr.open_dataset(path) as data:
        configs = json.loads(data.attrs["configs"])
        columns = {name: data[name].values for name in COLUMNS}
    if len({one["references_sha256"] for one in configs}) > 1:
        raise SystemExit("the sweeps have different references: nothing can be compared")
    hashes: dict[int, dict[int, dict[tuple[int, ...], int]]] = defaultdict(lambda: defaultdict(dict))
    names = ("config", "phase", "reference", "position", "before", "row_hash")
    for config, phase, *key, value in zip(*(columns[name].tolist() for name in names), strict=True):
        hashes[config][phase][tuple(key)] = value
    where = {(one["backend_version"], one["gpu"], one["torch_version"]) for one in configs}
    yield "; ".join(f"{version} on {gpu}, torch {torch}" for version, gpu, torch in sorted(where))
    yield "Rows equal / rows compared in prefill, free decode, replay, against runner v1 of the last column"
    head = ["kernel", "format", "batch", "version", "runner", *PHASES, "against"]
    lines = []
    for index, one in sorted(enumerate(configs), key=_order):
        base = next((i for i, other in enumerate(configs) if _same(one, other, BASE)), None)
        against = f"{BASE}"
        if base is None:  # that version was not run with this kernel here: against the oldest that was
            base = next(i for i, other in sorted(enumerate(configs), key=_order) if _same(one, other, ""))
            against = configs[base]["backend_version"]
        if configs[base]["weights_sha256"] != one["weights_sha256"]:
            raise SystemExit(f"{one['label']}: other weights than {configs[base]['label']}'s")
        cells = [_equal(hashes[base][p], hashes[index][p]) for p in range(len(PHASES))]
        compared = f"{against} on {configs[base]['gpu'].split()[1]}"
        if base == index:
            cells, compared = ["–"] * len(PHASES), "(compared with)"
        lines.append(
            [
                one["observed_kernel"],
                one["format"],
                one["batch_size"],
                one["backend_version"],
                one["model_runner"],
                *cells,
                compared,
            ]
        )
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _order(pair: tuple[int, dict[str, str]]) -> tuple[Any, ...]:
    one = pair[1]
    version = tuple(int(part) for part in one["backend_version"].partition("+")[0].split("."))
    return one["observed_kernel"], one["format"], int(one["batch_size"]), version, one["model_runner"]


def _same(one: dict[str, str], other: dict[str, str], version: str) -> bool:
    """Whether `other` is the same kernel, format and batch in this version ("": any), with runner v1."""
    alike = all(one[name] == other[name] for name in ("observed_kernel", "format", "batch_size"))
    return (
        alike
        and other["model_runner"] == "v1"
        and version in ("", other["backend_version"].partition("+")[0])
    )


def _equal(one: dict[tuple[int, ...], int], two: dict[tuple[int, ...], int]) -> str:
    both = one.keys() & two.keys()
    return f"{sum(one[key] == two[key] for key in both)}/{len(both)}"


def main() -> None:
    """Run what the command line says."""
    what, *paths = sys.argv[1:] or [""]
    if what == "gather" and len(paths) > 1:
        gather(Path(paths[0]), [Path(path) for path in paths[1:]])
    elif what == "table" and len(paths) == 1:
        print("\n".join(table(Path(paths[0]))))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
