"""`compare_card.py` on an H200's recording, and on one whose bits were altered at a single operation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LAYERS = Path(__file__).with_name("h200_layers.npz")
CONFIG = "awq_marlin_triton"


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/gpu/compare_card.py"), str(folder), "--recorded", *more],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts/gpu'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )


def recording(folder: Path, altered: str = "") -> Path:
    """Write the shortest case of one config, with one bit of one output turned if asked."""
    with np.load(LAYERS) as file:
        kept = {key: file[key] for key in file.files if key.startswith(f"{CONFIG}/short/")}
    kept[f"{CONFIG}/about"] = np.array(json.dumps({"device": "NVIDIA H200", "torch": "2.11.0"}))
    if altered:
        bits = kept[f"{CONFIG}/short/{altered}"].copy()
        bits.view(np.int16)[-1, 5] ^= 1
        kept[f"{CONFIG}/short/{altered}"] = bits
    folder.mkdir()
    np.savez(folder / "layers.npz", **kept)
    return folder


@pytest.mark.slow
def test_an_equal_recording_has_no_difference_and_an_altered_one_is_named(tmp_path: Path) -> None:
    good = run(recording(tmp_path / "good"))
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.splitlines()[0].startswith("recorded on NVIDIA H200")
    assert good.stdout.splitlines()[-1] == "Nothing differs."
    assert "by itself, short  3 of 3 rows equal" in good.stdout
    bad = run(recording(tmp_path / "bad", "1/1.mlp.act_fn"))
    assert bad.returncode == 1
    first = bad.stdout.split("First differences:")[1].splitlines()[1]
    assert first.strip().startswith(f"{CONFIG}, silu_and_mul: step 1, 1.mlp.act_fn, output (0, 5): ")
    assert "silu_and_mul                         24575 of     24576 outputs equal" in bad.stdout


@pytest.mark.slow
def test_another_cards_sums_are_named_as_what_differs_first(tmp_path: Path) -> None:
    other = run(recording(tmp_path / "a100"), "--card", "a100")
    assert other.returncode == 1
    assert "known of it before: nothing of how its cuBLAS cuts" in other.stdout
    first = other.stdout.split("First differences:")[1]
    assert f"{CONFIG}, qkv_proj, marlin: step 0, 0.self_attn.qkv_proj, output" in first
    assert "rms_norm:" not in first.replace("fused_add_rms_norm:", "")


def test_a_folder_without_a_recording_is_said_to_be_one(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2 and "its log.txt says why" in done.stdout
