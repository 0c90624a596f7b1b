"""Which config made each row, judged by a second repeat: ``python scripts/reruns.py SWEEP``.

SWEEP is a folder or file of an ordinary sweep with two repeats or more. All configs replay the same shared
continuations there, so the first repeat of each stands for a transcript and the second ones of all for the
replays of it: what ``prompts=transcripts`` would give on the same machine, without another start of the
engine and with the shared continuation in place of generated tokens. ``--strangers`` leaves each config out
in turn, as ``strangers.py`` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import strangers
import xarray as xr

import qdx
from qdx.analysis.verification import attribution


def as_verified(tree: xr.DataTree) -> tuple[xr.DataTree, xr.DataTree]:
    """Split a sweep into producers (first repeat) and a verifier (second repeat)."""
    repeats = tree["replay"].sizes["repeat"]
    if repeats < 2:
        raise SystemExit(f"the sweep has {repeats} repeat, 2 are needed: run it with repeats=2")
    phases = {name: tree[name].to_dataset() for name in ("prefill", "replay")}
    shared = {name: tree[name].to_dataset() for name in ("references", "provenance")}
    made = {"prefill": phases["prefill"].isel(repeat=[0]), "decode": phases["replay"].isel(repeat=[0])}
    again = phases["replay"].isel(repeat=[1])
    labels = again["config"].values
    rows = [name for name, variable in again.data_vars.items() if "config" in variable.dims]
    replay = again.assign({name: again[name].expand_dims(producer=len(labels)) for name in rows})
    replay = replay.assign_coords(producer=labels)
    return (
        xr.DataTree.from_dict(made | shared),
        xr.DataTree.from_dict({"prefill": phases["prefill"].isel(repeat=[1]), "replay": replay} | shared),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--strangers", action="store_true")
    options = parser.parse_args()
    with qdx.open(options.sweep) as tree:
        made, verifier = as_verified(tree)
        if options.strangers:
            print("\n".join(strangers.lines(made, verifier, options.alpha)))
        else:
            print("\n\n".join(attribution(made, verifier, options.alpha, draws=options.draws).text.values()))


if __name__ == "__main__":
    main()
