"""Names of configs in tables: short, what differs, and never two alike."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qdx.document import labels, text
from qdx.document.blocks import Matrix, Table
from qdx.document.labels import cut_all, short_labels

KEYS = ("backend.tensor_parallel_size", "batch_size", "generate.tokens", "model.checkpoint.awq", "a.n", "b.n")
WIDTHS = (80, 110)
part = st.text("abcxyz_.-0123456789", min_size=1, max_size=30)
swept = st.builds(
    lambda quant, chosen: ",".join([quant, *(f"{key}={value}" for key, value in chosen.items())]),
    part,
    st.dictionaries(st.sampled_from(KEYS), part, max_size=4),
)
anything = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=90)
sixteen = st.lists(st.one_of(swept, anything), min_size=16, max_size=16, unique=True)
TP = [f"awq_marlin,backend.tensor_parallel_size={n},model.name=demo" for n in range(1, 17)]
ALIKE = ["a" * 60 + str(i) + "b" * 60 for i in range(16)]


def test_the_examples_of_the_docstring_hold():
    assert doctest.testmod(labels).failed == 0


@given(sixteen)
@example(TP)
@example(ALIKE)
def test_short_names_are_as_many_as_labels(names):
    short = short_labels(names)
    assert len(set(short)) == len(names) == len(short)


def test_what_is_shared_is_left_out_and_keys_that_end_alike_are_told_apart():
    assert short_labels(TP)[:2] == ["awq_marlin tp=1", "awq_marlin tp=2"]
    assert short_labels(["q,a.size=1,b.size=1", "q,a.size=2,b.size=1", "q,a.size=2,b.size=2"]) == [
        "q a.size=1 b.size=1",
        "q a.size=2 b.size=1",
        "q a.size=2 b.size=2",
    ]
    assert short_labels(["q,x=[1,2]", "q,x=[1,3]"]) == ["q x=[1,2]", "q x=[1,3]"]
    assert short_labels(["q", "q,batch_size=4"]) == ["q", "q batch=4"]
    assert short_labels(["q batch=4", "q,batch_size=4", "q,batch_size=5"])[0] == "q batch=4"


def test_labels_that_would_be_named_alike_keep_their_own():
    names = ["q,x=1,x=2", "q,x=2", "q,x=3"]  # nobody can write the first one with qdx
    assert short_labels(names) == ["q,x=1,x=2", "q,x=2", "q x=3"]


@pytest.mark.parametrize("width", WIDTHS)
@given(names=sixteen)
@example(names=TP)
@example(names=ALIKE)
@settings(deadline=None)
def test_no_two_cut_labels_of_sixteen_configs_are_equal(width, names):
    short = short_labels(names)
    wide = ["same format, other kernel", "1.23", "4.56", "1.11 to 2.22", "16"]
    pairs = [f"{a} ~ {b}" for a in short[:6] for b in short[6:] if " ~ " not in a + b]
    for column in (short, pairs):
        head = ["pair", "type", "mean", "median", "95 % interval", "references"]
        lines = text.table(head, [[name, *wide] for name in column], left=2, width=width).splitlines()[1:]
        shown = [line[: line.rindex("same")].strip() if "same" in line else line for line in lines]
        assert len({*shown}) == len(column), "two rows of a table look alike"
        assert max(map(len, lines)) <= width
    cells = [["1.23"] * len(short)] * len(short)
    matrix = text.render([Matrix("m", short, cells)], width=width)
    assert max(map(len, matrix.splitlines())) <= width
    listed = text.legend(short, width)
    if listed:
        entries = listed.replace("\n", "   ").split("   ")
        entries = [entry.split(" = ", 1)[1].strip() for entry in entries if " = " in entry]
        assert len({*entries}) == len(short)


@given(st.lists(st.text("ab", min_size=1, max_size=40), max_size=40), st.integers(8, 30))
def test_cut_texts_fit_and_stay_as_different_as_they_were(texts, width):
    cut = cut_all(texts, width)
    assert all(len(one) <= width for one in cut)
    assert len({*cut}) == len({*texts})
    assert all(a == b for a, b in zip(texts, cut, strict=True) if len(a) <= width)


def test_both_names_of_a_pair_are_cut_not_the_mark_between_them():
    pairs = [f"gptq_marlin batch={i} tokens={i}00 ~ gptq_marlin batch={i + 1} tokens=9" for i in range(9)]
    rows = [[pair, "1.00"] for pair in pairs]
    lines = text.table(["pair", "mean"], rows, width=60).splitlines()[1:]
    assert all(" ~ " in line for line in lines) and len({line.split("  ")[1] for line in lines}) == len(pairs)


def test_a_table_of_numbers_keeps_its_columns():
    table = Table("t", ["config", "n"], [[name, 1234] for name in ALIKE])
    assert text.render([table], width=80).count("1,234") == 16
