"""What is released: the wheel runs from an empty folder, the source distribution makes it, versions agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import qdx
from tests.sweeping import SMALL, checkpoints, environment

PROJECT = Path(__file__).parent.parent


def built(target: str, source: Path, folder: Path) -> Path:
    """Return what hatchling makes of a folder of sources, ``wheel`` or ``sdist``."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (path,) = folder.glob("qdx-*")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", PROJECT, tmp_path_factory.mktemp("wheel"))


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


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel_and_installs(wheel: Path, tmp_path: Path) -> None:
    archive = built("sdist", PROJECT, tmp_path / "sdist")
    with tarfile.open(archive) as members:
        members.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    for name in ("CONTRIBUTING.md", "CITATION.cff", "mkdocs.yml", "scripts/strangers.py", "tests/helpers.py"):
        assert (source / name).is_file(), name
    again = built("wheel", source, tmp_path / "wheel")
    one, two = ({i.filename: i.CRC for i in zipfile.ZipFile(path).infolist()} for path in (wheel, again))
    records = {name for name in one if name.endswith(".dist-info/RECORD")}
    assert {name: crc for name, crc in one.items() if name not in records} == {
        name: crc for name, crc in two.items() if name not in records
    }
    target = tmp_path / "target"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*install, str(again)], check=True, capture_output=True)
    asked = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import qdx; print(qdx.__version__, qdx.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [qdx.__version__, str(target / "qdx" / "__init__.py")]


def test_the_version_is_the_same_wherever_it_is_stated(wheel: Path) -> None:
    assert wheel.name == f"qdx-{qdx.__version__}-py3-none-any.whl"
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == qdx.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # those that the format requires
    changes = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", changes, re.MULTILINE)
    assert sections[0] == "Unreleased" and len(sections) == len(re.findall(r"^## ", changes, re.MULTILINE))


def test_contributing_gives_a_reason_for_every_package_that_the_core_depends_on() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"]]  # type: ignore[index]
    page = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("## What the core depends on")[2].partition("\n## ")[0]
    reasons = dict(re.findall(r"^\| ([\w-]+) \| (.+) \|$", table, re.MULTILINE))
    assert set(reasons) - {"package"} == set(named)
    assert all(len(reason.split()) > 3 for reason in reasons.values() if reason != "reason")
