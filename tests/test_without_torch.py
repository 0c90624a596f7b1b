"""With the declared dependencies alone: files are read, and what needs torch says which extra brings it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdx.errors import lacking
from tests.helpers import write_sweep

EXTRA = "pip install 'qdx[cpu]'"
READING = """
import sys
import qdx
from qdx.errors import QdxError
tree = qdx.open(sys.argv[1])
replay = tree["replay"].to_dataset()
print(float(replay.qdx.margin().min()) >= 0, float(replay.qdx.logprob().max()) <= 0, len(str(tree)) > 100)
try:
    replay.qdx.pairs("l2")
except QdxError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def lacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process in which nothing that the extras bring can be imported."""
    folder = tmp_path_factory.mktemp("lacks")
    for name in ("torch", "transformers", "safetensors", "tokenizers", "gguf"):
        (folder / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
        )
    kept = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "PYTHONPATH")}
    return {**kept, "PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parent.parent}"}


@pytest.fixture(scope="module")
def small_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep's folder that holds runs alone and its sweep.nc."""
    from qdx.dataset import merge

    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder)
    merge(folder, folder / "sweep.nc")
    return folder


def python(*arguments: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_sweep_is_opened_and_read_and_a_metric_names_the_extra(
    small_sweep: Path, lacks: dict[str, str], tmp_path: Path
) -> None:
    ended = python("-c", READING, str(small_sweep), environment=lacks, cwd=tmp_path)
    first, second = ended.stdout.splitlines()
    assert (ended.returncode, first) == (0, "True True True"), ended.stderr
    assert "needs torch" in second and EXTRA in second


@pytest.mark.parametrize(
    "module", ["qdx", "qdx.report", "qdx.plan", "qdx.commit", "qdx.challenge", "qdx.open_rows"]
)
def test_help_needs_nothing_more(lacks: dict[str, str], tmp_path: Path, module: str) -> None:
    ended = python("-m", module, "--help", environment=lacks, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout) > 200


@pytest.mark.parametrize(
    "arguments", [("qdx", "-m", "quant=none", "model=synthetic"), ("qdx.report", "SWEEP")]
)
def test_what_needs_torch_says_so_in_one_line(
    small_sweep: Path, lacks: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    module, *rest = [str(small_sweep) if one == "SWEEP" else one for one in arguments]
    ended = python("-m", module, *rest, environment=lacks, cwd=tmp_path)
    lines = [line for line in ended.stderr.splitlines() if "error" in line]
    assert ended.returncode == 2 and len(lines) == 1, ended.stderr
    assert "needs torch, which is not installed" in lines[0] and EXTRA in lines[0]


def test_other_missing_modules_are_not_blamed_on_the_extra() -> None:
    assert lacking(ModuleNotFoundError("No module named 'torchlike.x'")) is None
    assert lacking(ModuleNotFoundError("No module named 'mine'")) is None
    assert lacking(ValueError("No module named 'torch'")) is None
    assert EXTRA in str(lacking(ModuleNotFoundError("No module named 'torch.nn'")))
