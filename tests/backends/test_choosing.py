"""``backend=auto``: what it takes where, and that deciding loads nothing."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qdx
from qdx.backends import auto


def test_the_drivers_count_is_torchs() -> None:
    assert auto.gpus() == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("cards", "installed", "name", "why"),
    [
        (0, True, "transformers", "no NVIDIA GPU"),
        (0, False, "transformers", "no NVIDIA GPU"),
        (2, False, "transformers", "pip install vllm==0.20.2"),
        (2, True, "vllm", "GPUs: 2"),
    ],
)
def test_vllm_is_taken_where_a_gpu_and_vllm_are(
    cards: int, installed: bool, name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("vllm", None) if installed else None
    monkeypatch.setattr(auto, "gpus", lambda: cards)
    monkeypatch.setattr(auto, "find_spec", lambda _: spec)
    assert auto.choose()[0] == name
    assert auto.explanation().startswith(f"backend: {name} (") and why in auto.explanation()
    for overrides in ([], ["backend=auto"]):
        (cfg,) = qdx.compose(overrides)
        assert cfg.backend.name == name and cfg.label == "awq"  # what ran is in the config, not what chose it


def test_the_default_takes_options_of_what_it_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "choose", lambda: ("vllm", ""))
    (cfg,) = qdx.compose(["backend.max_model_len=512"])
    assert cfg.backend.max_model_len == 512
    labels = [cfg.label for cfg in qdx.compose(["backend=auto,transformers"])]
    assert labels == ["awq,backend=vllm", "awq,backend=transformers"]


def test_composing_imports_neither_torch_nor_vllm(tmp_path: Path) -> None:
    code = (
        "import sys, qdx.__main__ as m; sys.argv = ['qdx', '--cfg', 'job']\n"
        "try:\n    m.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print([name for name in ('torch', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-500:] + done.stderr
