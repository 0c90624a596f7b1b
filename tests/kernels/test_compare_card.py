"""`compare_card.py` on an H200's recording, and on one whose bits were altered at a single operation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "gpu"))
import compare_card

LAYERS = Path(__file__).with_name("h200_layers.npz")
CONFIG = "awq_marlin_triton"


class Run:
    """The command on the shortest recorded case of one config, with one bit of one output turned if asked."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def record(self, altered: str = "") -> None:
        with np.load(LAYERS) as file:
            kept = {key: file[key] for key in file.files if key.startswith(f"{CONFIG}/short/")}
        kept[f"{CONFIG}/about"] = np.array(json.dumps({"device": "NVIDIA H200", "torch": "2.11.0"}))
        if altered:
            bits = kept[f"{CONFIG}/short/{altered}"].copy()
            bits.view(np.int16)[-1, 5] ^= 1
            kept[f"{CONFIG}/short/{altered}"] = bits
        np.savez(self.folder / "layers.npz", **kept)

    def __call__(self, *more: str) -> tuple[int, str]:
        self.monkeypatch.setattr(sys, "argv", ["compare_card.py", str(self.folder), "--recorded", *more])
        status = compare_card.main()
        return status, self.capsys.readouterr().out


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_an_equal_recording_has_no_difference_and_an_altered_one_is_named(run: Run) -> None:
    run.record()
    status, text = run()
    assert status == 0
    assert text.splitlines()[0].startswith("recorded on NVIDIA H200, torch 2.11.0; compared with")
    assert text.splitlines()[-1] == "Nothing differs."
    assert "by itself, short  3 of 3 rows equal" in text
    run.record("1/1.mlp.act_fn")
    status, text = run()
    assert status == 1
    first = text.split("First differences:")[1].splitlines()[1]
    assert first.strip().startswith(f"{CONFIG}, silu_and_mul: step 1, 1.mlp.act_fn, output (0, 5): ")
    assert "silu_and_mul                         24575 of     24576 outputs equal" in text


@pytest.mark.slow
def test_another_cards_sums_are_named_as_what_differs_first(run: Run) -> None:
    run.record()
    status, text = run("--card", "a100")
    assert status == 1
    assert "known of it before: nothing of how its cuBLAS cuts" in text
    first = text.split("First differences:")[1]
    assert f"{CONFIG}, qkv_proj, marlin: step 0, 0.self_attn.qkv_proj, output" in first
    assert f"{CONFIG}, rms_norm:" not in first  # it has no tensor core


def test_a_folder_without_a_recording_is_said_to_be_one(run: Run) -> None:
    status, text = run()
    assert status == 2 and "its log.txt says why" in text
