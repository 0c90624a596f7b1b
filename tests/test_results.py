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


def printed(path: Path) -> dict[str, dict[str, int]]:
    """Return what a report's table of single transcripts states of each producer, by the pages' columns."""
    text = path.read_text(encoding="utf-8")
    head, *lines = re.search(r"^  made by .*bit-equal\n(  \S.*\n)+", text, re.MULTILINE)[0].splitlines()  # type: ignore[index]
    columns = re.split(r" {2,}", head.strip().replace("made by ", "made by  ", 1))
    configs = columns[1 : next(i for i, name in enumerate(columns) if name in ("one of", "unknown"))]
    of_letters = dict(re.findall(r"\b([A-F]) = (\w+)", text))
    found = {}
    for line in lines:
        cells = re.split(r" {2,}", line.strip())
        of = dict(zip(columns, cells, strict=True))
        named = {of_letters.get(name, name): int(of[name]) for name in configs}
        right = named.pop(cells[0], 0)
        found[cells[0]] = {"named alone, rightly": right, "named wrongly": sum(named.values())}
        found[cells[0]]["named alone, wrongly"] = sum(named.values())
        if "one of" in of:
            found[cells[0]]["one of several"] = int(of["one of"])
        for name, title in (("likeliest", "is right"), ("nearest", "is right"), ("bit-equal", "")):
            if of[name] != "–":
                key = f"{name} {title}" if title else "transcripts bit-equal"
                found[cells[0]][key] = int(of[name].partition("/")[0])
    return found


def test_tables_of_a_hundred_references_have_the_numbers_of_the_printed_text() -> None:
    page = (results.RESULTS / "attribution.md").read_text(encoding="utf-8")
    compared = 0
    for above, table in re.findall(
        r"This table rests on ([^\n]*)\n\n(\| made by \|.*?)\n\n", page, re.DOTALL
    ):
        head, _, *rows = (
            [cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        folder = (re.findall(r"in `(\S+)/`", above) or [""])[0]
        for name in re.findall(r"`([\w/]+\.txt)`", above):
            stated = printed(results.RESULTS / folder / name)
            for row in rows:
                of = dict(zip(head, row, strict=True))
                own = stated[of["made by"].partition(" ")[0]]
                for column, cell in of.items():
                    key = column.partition(" (")[0]
                    if key in own and cell != "–":
                        assert int(re.match(r"\d+", cell)[0]) == own[key], (name, row, column)  # type: ignore[index]
                        compared += 1
    assert compared > 100
