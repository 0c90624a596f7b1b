"""The wheel: it holds the config groups and the handbook, and runs a sweep from a folder that has neither."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.sweeping import SMALL, checkpoints, environment

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_config_and_the_handbook(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (PROJECT / "conf").rglob("*.yaml"):
        assert f"qdx/conf/{file.relative_to(PROJECT / 'conf').as_posix()}" in names
    assert "qdx/prompts/handbook.pdf" in names
    assert not [name for name in names if name.startswith(("tests/", "plugins/", "outputs/"))]


@pytest.mark.slow
def test_an_installed_wheel_runs_a_sweep_from_an_empty_folder(
    wheel: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)  # what installing a pure wheel does
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["quant=gptq_marlin", *SMALL, *checkpoints(tiny_models), "hydra.sweep.dir=out"]
    done = subprocess.run(
        [sys.executable, "-m", "qdx", *arguments],
        cwd=work,
        env={**environment(), "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "out" / "gptq_marlin" / "run.nc").is_file()
    report = (work / "out" / "report.txt").read_text()
    assert "gptq_marlin" in report and "handbook.pdf" in report
