"""Tables: their figures, and that nothing is wider than a terminal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdx.document import format, text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0399, "0.0399"),
        (5.1, "5.10"),
        (0, "0"),
        (math.nan, "–"),
        (1e-12, "1.00e-12"),
        (268.04, "268"),
        (0.00099996, "0.00100"),
        (99999.6, "1.00e5"),
        (99949.0, "99,900"),
        (-12345.0, "-12,300"),
        (3.2e9, "3.20e9"),
    ],
)
def test_figures(value, said):
    assert format.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(1.0, "100%"), (0.9999, "99.9%"), (0.0001, "0.1%"), (0.0, "0%"), (0.625, "62.5%")]
)
def test_a_share_is_whole_only_when_exact(value, said):
    assert format.percent(value) == said


names = st.lists(st.text("abc,=_.", min_size=1, max_size=60), min_size=1, max_size=30, unique=True)


@given(names)
def test_a_matrix_of_any_labels_fits_and_shows_every_cell(labels):
    cells = [[f"{a}x{b}" for b in range(len(labels))] for a in range(len(labels))]
    said = text.matrix(labels, cells, indent="    ")
    assert max(map(len, said.splitlines())) <= text.WIDTH
    assert all(said.split().count(cell) == 1 for row in cells for cell in row)


@given(names)
def test_a_legend_names_every_label_and_fits(labels):
    said = text.legend(labels)
    if text.needs_letters(labels):
        entries = zip(text.letters(len(labels)), labels, strict=True)
        assert all(f"{letter} = {label}" in said for letter, label in entries)
        assert max(map(len, said.splitlines())) <= text.WIDTH
    else:
        assert said == "" and max(map(len, labels)) <= text.LONGEST_LABEL


@given(st.lists(st.lists(st.text("ab ", max_size=90), min_size=4, max_size=4), min_size=1, max_size=5))
def test_a_table_fits(rows):
    assert max(map(len, text.table(list("wxyz"), rows, left=2).splitlines())) <= text.WIDTH


def test_columns_line_up():
    lines = text.matrix(["awq", "gptq_marlin"], [["·", "1.00e-2"], ["3.00e-12", "·"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].index("1.00e-2") + len("1.00e-2") == len(lines[1])
