"""Plot how far every config is from one of them along the replayed positions, with its noise floor as a band.

    python examples/load_and_plot.py outputs/2026-01-31_12-00-00 --against awq --to distance.svg

Writes an SVG with plain Python. With matplotlib, `frame["distance"].plot.line(x="step")` is the short way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

import qdx

WIDTH, HEIGHT, LEFT = 640, 320, 70
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito (2008)


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


def draw(frame: xr.Dataset, title: str, units: str) -> str:
    """Return the curves as an SVG, on a logarithmic axis."""
    values = np.concatenate([frame[name].values.ravel() for name in ("distance", "floor")])
    shown = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log10(shown.min()) - 0.5, np.log10(shown.max())) if shown.size else (0.0, 1.0)
    steps = frame["step"].values

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 130) * (step - steps[0]) / max(1, steps[-1] - steps[0])
        return x, 30 + (HEIGHT - 70) * (high - max(np.log10(value), low)) / max(1e-9, high - low)

    parts = [
        f'<text x="{LEFT}" y="16">{title}</text><text x="{LEFT}" y="{HEIGHT - 8}">step of the replay</text>'
    ]
    parts += [
        f'<text x="{LEFT - 6}" y="{at(steps[0], 10**v)[1]:.0f}" text-anchor="end">{10**v:.2g} {units}</text>'
        for v in (low, high)
    ]
    for i, config in enumerate(frame["config"].values):
        line, floor = frame["distance"].sel(config=config).values, frame["floor"].sel(config=config).values
        colour = COLOURS[i % len(COLOURS)]
        band = [at(s, v) for s, v in zip(steps, floor, strict=True) if v > 0]
        if band:
            edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in band)
            base = f"{band[-1][0]:.1f},{HEIGHT - 40} {band[0][0]:.1f},{HEIGHT - 40}"
            parts.append(f'<polygon points="{edge} {base}" fill="{colour}" opacity="0.15"/>')
        points = [at(s, v) for s, v in zip(steps, line, strict=True) if v > 0]
        if points:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = str(config) if points else f"{config} (0: bit-equal)"
        parts.append(f'<text x="{WIDTH - 124}" y="{40 + 18 * i}" fill="{colour}">{label}</text>')
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(parts)}</svg>\n'


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
    chosen.to.write_text(draw(frame, f"mean {chosen.metric} from {against}", "" if units == "1" else units))
    print(f"mean {chosen.metric} from {against} over the replay, and between repeats")
    for config in frame["config"].values:
        mean = frame.sel(config=config).mean("step")
        print(f"  {config!s:<16} {float(mean['distance']):10.3g} {float(mean['floor']):10.3g}")
    print(f"wrote {chosen.to}")


if __name__ == "__main__":
    main()
