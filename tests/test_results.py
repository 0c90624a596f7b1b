"""Tables of docs/results are what their scripts make of the recorded files; nothing here needs a GPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import results  # noqa: E402 - a script, not a package

PAGES = sorted(results.RESULTS.glob("*.md"))
CASES = [
    pytest.param(name, marks=[pytest.mark.slow] if table.slow else [])
    for name, table in results.TABLES.items()
]


@pytest.mark.parametrize("name", CASES)
def test_a_table_is_what_its_script_makes_of_the_recorded_files(name: str) -> None:
    table = results.TABLES[name]
    text = (results.RESULTS / (table.page or name)).read_text(encoding="utf-8")
    stands = results.shown(text, name) if table.page else text.splitlines()
    assert stands and table.lines() == stands, f"python scripts/results.py --write {name}"


def test_another_number_in_a_page_is_noticed() -> None:
    text = (results.RESULTS / "equal_rows.md").read_text(encoding="utf-8")
    table = results.shown(text, "runners")
    assert len(table) == 8 and results.shown(text.replace("119/136", "120/136", 1), "runners") != table


def test_every_text_file_is_made_again_or_says_why_not() -> None:
    made = {name for name in results.TABLES if name.endswith(".txt")}
    for path in results.RESULTS.rglob("*.txt"):
        name = path.relative_to(results.RESULTS).as_posix()
        printed = [key for key in results.PRINTED if name == key or name.startswith(f"{key}/")]
        assert (name in made) + len(printed) == 1, name
    assert all((results.RESULTS / name).exists() for name in results.PRINTED)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_above_each_table_stands_what_it_rests_on(page: Path) -> None:
    """The line that marks it, which a test makes it again by, or a sentence on what was only printed."""
    paragraphs = re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
    for above, paragraph in zip(["", *paragraphs], paragraphs, strict=False):
        if not re.search(r"^\|", paragraph, re.MULTILINE):
            continue
        first = paragraph.splitlines()[0]
        if first.startswith("<!-- table: "):
            assert first.removeprefix("<!-- table: ").removesuffix(" -->") in results.TABLES
        elif first != "<!-- index -->":
            assert first.startswith("|") and re.search(r"rests on\s", above), f"{page.name}: {first}"


def test_the_first_page_has_every_table_that_stands_in_a_page() -> None:
    index = (results.RESULTS / "README.md").read_text(encoding="utf-8")
    for name, table in results.TABLES.items():
        if table.page:
            assert re.search(rf"\]\({table.page}#.*\| `{name}` \|", index), name
    for command in re.findall(r"\| `(\w[\w/.]*)` \|$", index, re.MULTILINE):
        assert command in results.TABLES
