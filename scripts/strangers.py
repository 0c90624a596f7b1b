"""Is a config that was never calibrated called unknown? ``python scripts/strangers.py PRODUCERS VERIFIER``.

PRODUCERS and VERIFIER are sweep folders, the second made with ``prompts=transcripts`` of the first. Every
config in turn is taken out of the calibration and of the answers, and its transcripts are attributed: on
references that did not calibrate, where there are enough for a split, else each by all the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import xarray as xr

import qdx
from qdx.verification import attribution
from qdx.verification.roc import clopper_pearson


def without(tree: xr.DataTree, label: str) -> xr.DataTree:
    """A verifier's sweep in which a config replayed nothing."""
    groups = {}
    for name in ("replay", "provenance", "references"):
        data = tree[name].to_dataset()
        kept = [one for one in data["config"].values if one != label] if "config" in data.dims else None
        groups[name] = data if kept is None else data.sel(config=kept)
    return xr.DataTree.from_dict(groups)


def lines(made: xr.DataTree, verifier: xr.DataTree, alpha: float) -> Iterator[str]:
    """Judge each config's transcripts without it; what was replayed with and made none is only an answer."""
    producers = {str(value) for value in verifier["replay"]["producer"].values}
    for label in (str(value) for value in verifier["replay"]["config"].values):
        if label not in producers:
            continue
        result = attribution(made, without(verifier, label), alpha, draws=2).result
        held_out = "answers" in result
        counts = result["answers" if held_out else "confusion"].sel(producer=label)
        total, unknown = int(counts.sum()), int(counts.sel(answer="unknown"))
        low, high = clopper_pearson(unknown, total)
        how = f"held out; {low:.1%}…{high:.1%} at 95 %" if held_out else "leave one reference out"
        named = {str(a): int(counts.sel(answer=a)) for a in counts["answer"].values}
        said = ", ".join(f"{name} {count}" for name, count in named.items() if count)
        yield f"{label}: unknown {unknown} of {total} ({how}): {said}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("producers", type=Path)
    parser.add_argument("verifier", type=Path)
    parser.add_argument("--alpha", type=float, default=0.05)
    options = parser.parse_args()
    with qdx.open(options.producers / "sweep.nc") as made, qdx.open(options.verifier / "sweep.nc") as tree:
        for line in lines(made, tree, options.alpha):
            print(line)


if __name__ == "__main__":
    main()
