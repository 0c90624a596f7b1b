"""Compute rows of a sweep that a card recorded on this CPU, and count those whose hashes are the card's.

    python scripts/gpu/emulated_rows.py SWEEP.nc OUT.npz [--configs awq_marlin,…] [--references 0,1]

Needs no GPU: `qdx.backends.emulator` computes each reference's prefill as one step, then one step a token of
the answer that the sweep has. A line says for each config, reference and phase how many of the recorded rows
have the hash that was computed here, and the first position that has another. OUT keeps the hashes,
``<config>/<reference>/<phase>``, one for each of ``…/positions``, and the processor's seconds for a prefill
and for a step; what is in it already is not computed again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from qdx.backends.emulator import EmulatorBackend
from qdx.capture import row_hash
from qdx.errors import QdxError
from qdx.models import resolve
from qdx.schema import Quant


@dataclass
class Hashes:
    """Takes the recorder's place: keeps nothing of a row but its hash."""

    positions: NDArray[np.int64]
    found: dict[int, int] = field(default_factory=dict)

    def wanted(self, item: int) -> NDArray[np.int64]:
        """Return the positions of the rows to keep."""
        return self.positions

    def rows(self, item: int, positions: NDArray[np.int64], logits_PV: Tensor, *_: Any, **__: Any) -> None:
        """Hash rows."""
        values = row_hash(logits_PV).numpy().view(np.uint64)
        self.found.update(zip(positions.tolist(), values.tolist(), strict=True))


def recorded(phase: xr.Dataset, config: str, reference: int) -> dict[int, int]:
    """Return the recorded hash of each position, of the first repeat."""
    own = phase.sel(config=config).isel(repeat=0, reference=reference)
    there = own.captured.values
    return dict(zip(own.position.values[there].tolist(), own.row_hash.values[there].tolist(), strict=True))


def main() -> None:
    """Compute and count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--configs", default="")
    parser.add_argument("--references", default="0")
    parser.add_argument("--decode", type=int, default=31, help="most steps after the prefill")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    tree = xr.open_datatree(options.sweep)
    labels = [str(one) for one in tree["prefill"].config.values]
    chosen = options.configs.split(",") if options.configs else labels
    references = tree["references"].to_dataset()
    about = tree["provenance"].to_dataset()
    kept: dict[str, NDArray[Any]] = dict(np.load(options.out)) if options.out.exists() else {}
    for config in chosen:
        engine: EmulatorBackend | None = None
        for reference in map(int, options.references.split(",")):
            ids = references.token_ids.values[reference][: int(references.length[reference])].tolist()
            answer = tree["output"].token_id.sel(config=config).values[0, reference]
            answer = answer[answer >= 0][: options.decode + 1].tolist()
            card = {
                name: recorded(tree[name].to_dataset(), config, reference) for name in ("prefill", "decode")
            }
            key = f"{config}/{reference}"
            if f"{key}/prefill" not in kept:
                if engine is None:
                    engine = load(about.sel(config=config), tree["prefill"].coords, options.threads)
                rows = {name: Hashes(np.array(sorted(card[name]))) for name in card}
                times = compute(engine, ids, answer, rows)
                print(
                    f"{config} {reference}: {times[0]:.1f} s of a processor for the prefill, "
                    f"{times[1]:.2f} s for a step after it",
                    flush=True,
                )
                kept[f"{key}/seconds"] = np.array(times)
                for name, own in rows.items():
                    kept[f"{key}/{name}/positions"] = np.array(sorted(own.found), np.int64)
                    kept[f"{key}/{name}"] = np.array([own.found[p] for p in sorted(own.found)], np.uint64)
                np.savez_compressed(options.out, **kept)  # type: ignore[arg-type]
            for name, theirs in card.items():
                mine = dict(
                    zip(kept[f"{key}/{name}/positions"].tolist(), kept[f"{key}/{name}"].tolist(), strict=True)
                )
                other = [p for p in mine if mine[p] != theirs[p]]
                first = f", the first other one at position {other[0]}" if other else ""
                print(
                    f"{config} {reference} {name:8} {len(mine) - len(other)} of {len(mine)} rows "
                    f"equal{first}",
                    flush=True,
                )


def compute(
    engine: EmulatorBackend, ids: list[int], answer: list[int], rows: dict[str, Hashes]
) -> tuple[float, float]:
    """Compute a prefill and the steps after it; returns the processor's seconds for it and for each of these.

    Where the kernel leaves a step's sums to chance (exllama), there are no steps, and their seconds are NaN.
    """
    start = time.process_time()
    engine.prefill([ids], rows["prefill"])
    middle = time.process_time()
    try:
        engine.replay([ids], [answer], rows["decode"])
    except QdxError as error:
        print(f"no decode: {error}", flush=True)
        return middle - start, float("nan")
    return middle - start, (time.process_time() - middle) / max(1, len(answer) - 1)


def load(about: xr.Dataset, coordinates: Any, threads: int | None) -> EmulatorBackend:
    """Return the emulator of a recorded config."""
    own = {name: coordinates[name].sel(config=about.config) for name in ("format", "observed_kernel")}
    form, kernel = str(own["format"].values), str(own["observed_kernel"].values)
    source = str(about.model_source.values)
    torch.set_num_threads(threads or torch.get_num_threads())
    return EmulatorBackend(
        checkpoint=resolve(source, format=form),
        quant=Quant(name=kernel, format=form, kernel=kernel),
        dtype="float16",
        threads=threads,
        engine=str(about.engine_version.values),
    )


if __name__ == "__main__":
    main()
