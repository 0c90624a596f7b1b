"""The page on how qdx is built names the rooms that there are, in the layers that the linter checks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import qdx

ROOT = Path(qdx.__file__).parent
PAGE = (ROOT.parent / "docs" / "how-it-is-built.md").read_text(encoding="utf-8")


def test_the_table_of_rooms_is_the_linters_layers() -> None:
    contract = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ][0]
    layers = [re.split(r" [:|] ", layer) for layer in contract["layers"]]
    table = PAGE.partition("## Rooms")[2].partition("\n## ")[0]
    shown = [
        re.findall(r"`(\w+)`", row.split("|")[1]) for row in re.findall(r"^\| `.*$", table, re.MULTILINE)
    ]
    assert shown == layers
    assert len(layers) <= 14


def test_every_room_has_a_layer_or_is_said_to_stand_beside_them() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {room for room in rooms if f"`{room}`" not in PAGE and f"`qdx.{room}`" not in PAGE} == {"__init__"}


def at(name: str) -> Path:
    """Return where a file is that the page names: from the root, or within the package."""
    return (ROOT.parent if name.startswith(("docs/", "tests/")) else ROOT) / name.removeprefix("qdx/")


def test_every_file_that_the_page_names_is_there() -> None:
    in_prose = re.findall(r"`((?:qdx/|docs/|tests/)?[a-z_/]+\.py)`", PAGE)
    in_the_drawing = re.findall(r"^[^a-z\n]*([a-z]+/[a-z_]+) {3}", PAGE, re.MULTILINE)
    named = {*in_prose, *(f"{name}.py" for name in in_the_drawing)}
    assert len(in_prose) > 8 and len(in_the_drawing) > 4
    assert [name for name in sorted(named) if not at(name).is_file()] == []


def test_every_analysis_is_a_module_of_its_name() -> None:
    names = {path.stem for path in (ROOT.parent / "conf" / "analysis").glob("*.yaml")}
    assert len(names) >= 7
    assert [name for name in names if not (ROOT / "analysis" / f"{name}.py").is_file()] == []
