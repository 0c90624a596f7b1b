"""Plot how far every config is from one of them along the replayed positions, with its noise floor as a band.

    python examples/load_and_plot.py outputs/2026-01-31_12-00-00 --against awq --to distance.svg

Writes an SVG, a PNG or a page with everything in it, as the name ends. In a notebook `chart` draws the same,
and the charts of the report are `tree.qdx.plot.matrix("l2")` and its siblings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import xarray as xr

import qdx


def curves(tree: xr.DataTree, against: str, metric: str) -> xr.Dataset:
    """Mean distance from one config, and noise floor, over references: (config, step of the replay)."""
    start = tree["references/length"]
    found = {}
    for name, rows in {
        "distance": tree.qdx.against(against, metric),
        "floor": tree.qdx.noise_floor(metric).mean("repeat_pair"),
    }.items():
        # References differ in length, so a position is another step of each: count from where replay begins.
        steps = [rows.sel(reference=r).dropna("position", how="all") for r in rows["reference"].values]
        first = [int(start.sel(reference=r)) + 1 for r in rows["reference"].values]
        aligned = [s.assign_coords(position=s["position"] - f) for s, f in zip(steps, first, strict=True)]
        keep = [s.reset_coords(drop=True) for s in aligned]
        found[name] = xr.concat(keep, "reference", join="outer").mean("reference").rename(position="step")
    return xr.Dataset(found)


def chart(frame: xr.Dataset, title: str, metric: str, units: str) -> qdx.analysis.Chart:
    """Draw the curves, with the greatest noise floor of all configs as a band."""
    return qdx.charts.positions(
        "distance",
        title,
        frame["step"].values,
        frame["distance"].transpose("config", "step").values,
        [str(label) for label in frame["config"].values],
        what=metric,
        unit=units,
        line="config",
        noise_P=frame["floor"].max("config").values,
    )


def main() -> None:
    """Read the command line, write the figure, print the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="a sweep folder, or its sweep.nc")
    parser.add_argument("--against", help="label of the config to measure from (default: the first)")
    parser.add_argument("--metric", default="l2")
    parser.add_argument("--to", type=Path, default=Path("distance.svg"))
    chosen = parser.parse_args()
    tree = qdx.open(chosen.sweep)
    against = chosen.against or str(tree["replay"].to_dataset()["config"].values[0])
    frame = curves(tree, against, chosen.metric)
    units = tree.qdx.pairs(chosen.metric).attrs["units"]
    drawn = chart(frame, f"mean {chosen.metric} from {against}", chosen.metric, "" if units == "1" else units)
    everything = {"inline": True} if chosen.to.suffix == ".html" else {}  # no request leaves the page
    drawn.altair().save(chosen.to, **everything)
    print(f"mean {chosen.metric} from {against} over the replay, and between repeats")
    for config in frame["config"].values:
        mean = frame.sel(config=config).mean("step")
        print(f"  {config!s:<16} {float(mean['distance']):10.3g} {float(mean['floor']):10.3g}")
    print(f"wrote {chosen.to}")


if __name__ == "__main__":
    main()
