"""The tables and the figure of what each kind of evidence is worth are made of the committed numbers."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "results" / "evidence.csv"
PAGES = ("docs/howto/providers.md",)


@pytest.fixture(scope="module")
def tables() -> Any:
    spec = importlib.util.spec_from_file_location(
        "evidence_tables", ROOT / "benchmarks" / "evidence_tables.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence_tables"] = module
    spec.loader.exec_module(module)
    return module


def test_the_text_holds_the_tables_that_the_numbers_make(tables: Any) -> None:
    text = (ROOT / "docs" / "results" / "evidence.txt").read_text()
    assert text.endswith(tables.everything(tables.read(NUMBERS)) + "\n")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_table_beside_the_figure(tables: Any, page: str) -> None:
    from qdx.document.markdown import table

    text = (ROOT / page).read_text()
    assert table(tables.needed(tables.read(NUMBERS), tables.DRAWN)).strip() in text
    assert re.search(r"!\[[^\]]{60,}\]\(\S*images/evidence\.svg\)", text), (
        "a figure with words for who sees none"
    )


def test_the_figure_shows_the_numbers_and_is_light(tables: Any) -> None:
    pytest.importorskip("vl_convert")
    path = ROOT / "docs" / "images" / "evidence.svg"
    drawn, again = path.read_text(), tables.svg(tables.chart(tables.read(NUMBERS)).drawing)

    def words(text: str) -> list[str]:
        return re.findall(r"<text[^>]*>([^<]*)</text>", text)

    assert words(drawn) == words(again), (
        "python benchmarks/evidence_tables.py docs/results/evidence.csv --figure …"
    )
    cells = {(row.what, row.pair): row for row in tables.read(NUMBERS) if row.kind == tables.NEEDED}
    needed = [f"{row.tokens:,}" for row in cells.values() if row.tokens > 0 and row.what in tables.DRAWN]
    assert len(needed) > 25 and not set(needed) - set(words(drawn))
    assert (
        path.stat().st_size < 60_000
        and "<script" not in drawn
        and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawn)
    )


def test_every_level_was_measured_and_no_test_of_qdx_refutes_more_honest_records(tables: Any) -> None:
    """2,000 redraws: a level of 1 % has a standard error of 0.22 %, and so has its threshold."""
    rows = [row for row in tables.read(NUMBERS) if row.kind == tables.NEEDED]
    assert {row.what for row in rows} == set(tables.ORDER) and len({row.pair for row in rows}) == 6
    for row in rows:
        assert math.isfinite(row.level) and math.isfinite(row.level_most), row
        if row.what in tables.DRAWN:
            assert max(row.level, row.level_most) <= 0.01 + 3 * 0.0031, row
    held = [row for row in tables.read(NUMBERS) if row.kind == tables.HELD]
    assert held and all(row.value <= 0.01 for row in held), "Ville's bound"


def test_numbers_are_read_as_they_were_written(tables: Any, tmp_path: Path) -> None:
    rows = tables.read(NUMBERS)
    tables.write(rows, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == NUMBERS.read_bytes()
