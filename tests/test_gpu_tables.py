"""Tables of docs/results are what their scripts make of the recorded files; nothing here needs a GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


def script(place: str) -> ModuleType:
    """Return a script of the repository as a module."""
    path = ROOT / place
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def capture(path: Path) -> list[str]:
    found = json.loads(path.read_text())
    lines = script("benchmarks/capture.py").lines
    return [line for engine in found if engine != "model" for line in lines(engine, found[engine])]


TABLES: dict[str, tuple[str, Callable[[Path], Iterable[str]]]] = {
    "h100_vllm_0_33_0/versions.txt": ("versions.nc", lambda p: script("scripts/gpu/versions.py").table(p)),
    "h100_vllm_0_33_0/runners.txt": ("runners/rows.nc", lambda p: script("scripts/gpu/runners.py").table(p)),
    "h100_vllm_0_33_0/capture_graphs_v2.txt": ("capture_graphs_v2.json", capture),
    "h200_vllm_0_33_0/capture_graphs_v2.txt": ("capture_graphs_v2.json", capture),
    **{
        f"h200_vllm_0_33_0/{name}.txt": (
            f"{name}.json",
            lambda p: script("scripts/gpu/own_time.py").table(json.loads(p.read_text())),
        )
        for name in ("own_time", "own_time_three_repeats")
    },
    "h100_emulator/demo_verdicts.txt": (
        "demo_rows.npz",
        lambda p: script("scripts/gpu/emulated_verdicts.py").lines(
            RESULTS / "h100_vllm_0_20_2/demo/sweep.nc", p, RESULTS / "h100_vllm_0_20_2/formats/sweep.nc"
        ),
    ),
    "h200_vllm_0_33_0/settings.txt": ("settings.nc", lambda p: script("scripts/gpu/settings.py").table(p)),
    "h200_vllm_0_33_0/formats.txt": ("formats.nc", lambda p: script("scripts/gpu/formats.py").table(p)),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_what_its_script_makes_of_the_recorded_file(table: str) -> None:
    recorded, make = TABLES[table]
    path = RESULTS / table
    made = "\n".join(make(path.parent / recorded)) + "\n"
    assert made == path.read_text(encoding="utf-8")
