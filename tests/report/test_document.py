"""One model of a report: a block says the same in text, page and Markdown, and is harmless in each."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.analysis import Chart, Details, Matrix, Section, Table, Text
from qdx.document import html, markdown, text
from qdx.document.format import part, probability
from qdx.errors import QdxError
from qdx.report import build
from tests.helpers import write_sweep

EVIL = "<b onclick=x>&\x1b[31m</b>|`*_\x00"


@qdx.register("analysis", "greatest")
def greatest(tree, rank: int = 0):
    """The greatest logit of every config, and how far two configs' are apart."""
    logit = tree["replay/top_logit"].isel(rank=rank).mean(["repeat", "reference", "position"])
    labels = [str(label) for label in logit["config"].values]
    apart = np.abs(logit.values[:, None] - logit.values[None, :])
    rows = list(zip(labels, logit.values, strict=True))
    table = Table("Mean greatest logit [1]", ["config", "logit"], rows)
    matrix = Matrix("How far they are apart [1]", labels, apart, phase="replay")
    result = xr.Dataset({"greatest": logit}, attrs={"units": "1"})
    return Section("greatest", "Greatest logits", result, blocks=[table, matrix])


class Tables(HTMLParser):
    """Every table of a page as its caption and rows of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.at = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append(("", []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        if tag in ("td", "th", "caption"):
            self.at = tag

    def handle_endtag(self, tag):
        if tag == self.at:
            self.at = ""

    def handle_data(self, data):
        if self.at == "caption":
            self.tables[-1] = (self.tables[-1][0] + data, self.tables[-1][1])
        elif self.at:
            self.tables[-1][1][-1][-1] += data


def of_page(page: str, caption: str) -> list[list[str]]:
    return next(rows for title, rows in Tables(page).tables if title.startswith(caption))


def of_markdown(page: str, caption: str) -> list[list[str]]:
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.replace("\\", "").startswith(caption)) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = [re.sub(r"\\(.)", r"\1", c.strip()) for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        rows.append(cells)
    return [rows[0], *rows[2:]]


def of_text(page: str, caption: str) -> list[list[str]]:
    """Rows of a table whose cells have no two spaces beside each other."""
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(caption)) + 1
    while lines[start].startswith("    ") is False:
        start += 1
    rows = []
    for line in lines[start:]:
        if not line.startswith("    "):
            break
        rows.append(re.split(r"  +", line.strip()))
    return rows


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = write_sweep(tmp_path_factory.mktemp("document") / "sweep", ["awq", "gptq"])
    nodes = {
        "greatest": {"_target_": f"{__name__}.greatest"},
        "pairs": {"_target_": "qdx.analysis.pairs"},
    }
    build(folder, analyses=nodes, formats=["txt", "html", "md"], console=False)
    return {
        suffix: (folder / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("txt", "html", "md")
    }


@pytest.mark.parametrize(
    ("caption", "size"), [("Mean greatest logit", (3, 2)), ("How far they are apart", (3, 3))]
)
def test_an_analysis_of_fifteen_lines_has_its_tables_in_all_three(reported, caption, size):
    read = {"txt": of_text, "html": of_page, "md": of_markdown}
    rows = {suffix: read[suffix](reported[suffix], caption) for suffix in read}
    if rows["txt"][0] == ["awq", "gptq"]:
        rows["txt"][0].insert(0, "")  # the corner of a matrix is empty
    assert rows["txt"] == rows["html"] == rows["md"]
    assert (len(rows["txt"]), len(rows["txt"][0])) == size
    assert any(re.fullmatch(r"[\d,.]+", cell) for row in rows["txt"] for cell in row[1:])


def test_a_page_shows_no_columns_of_spaces_for_what_has_blocks(reported):
    body = reported["html"].partition("Greatest logits")[2]
    assert "<pre" not in body.partition('id="repeats"')[0].partition('id="provenance"')[0]


def test_an_analysis_that_returns_lines_is_shown_as_it_is():
    section = Section("old", "Old", xr.Dataset(), {"": "  a   b", "replay": "  c   d"})
    assert text.render(section.content) == "  a   b\n\n  c   d"
    assert html.render(section.of_phase("replay")) == '<pre class="scroll">  c   d</pre>'
    assert markdown.render(section.of_phase("")) == "```text\n  a   b\n```"


BLOCKS = [
    Text(EVIL),
    Text(EVIL, verbatim=True),
    Table(EVIL, [EVIL, EVIL], [[EVIL, EVIL], ["x", 2.5]], note=EVIL),
    Matrix(EVIL, [EVIL, "b"], [[EVIL, EVIL], [EVIL, EVIL]], note=EVIL),
    Matrix(EVIL, [EVIL, "b"], [[EVIL], [EVIL]], note=EVIL, columns=[EVIL]),
    Chart("c", "<svg/>", Table(EVIL, [EVIL], [[EVIL]])),
    Details(EVIL, [Text(EVIL), Details(EVIL, [Table(EVIL, [EVIL], [[EVIL]])])]),
]


PART = html.Part("a", EVIL, "<p>own</p>")


def test_nothing_that_a_block_holds_is_markup_of_a_page():
    page = html.render(BLOCKS) + html.command(EVIL)
    page += html.page(EVIL, EVIL, [EVIL], [html.Banner(EVIL, EVIL, [EVIL], EVIL)], [PART], "", "")
    assert "<b " not in page and "\x1b" not in page and "\x00" not in page and "<p>own</p>" in page
    assert "&lt;b onclick=x&gt;&amp;�[31m" in page
    assert page.count("<table>") == page.count("</table>") == 5


def test_nothing_that_a_block_holds_is_markup_of_markdown():
    page = markdown.render([block for block in BLOCKS if not getattr(block, "verbatim", False)])
    assert "\x1b" not in page and not re.search(r"(?<!\\)[<&`_]", page)
    for block in re.findall(r"(?:^\|.*\n?)+", page, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1, block


def test_an_undefined_name_in_a_template_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        html.environment().from_string("{{ nobody }}").render()


@pytest.mark.parametrize("width", [60, 80, 110])
def test_text_keeps_its_width_and_wraps_the_last_column_of_a_table_of_text(width):
    long = "so many words that one line does not hold them all " * 3
    blocks = [Text(long), Table("Words", ["name", "meaning"], [["a", long], ["b", "short"]], 2)]
    shown = text.render(blocks, width=width)
    assert max(map(len, shown.splitlines())) <= width and "…" not in shown
    assert " ".join(shown.split()).count("hold them all") >= 3


@pytest.mark.parametrize("width", [60, 80, 110])
@pytest.mark.parametrize("columns", [3, 9, 16])
def test_a_number_is_never_cut_however_many_columns_there_are(width, columns):
    counts = [[f"{1000 + i + 20 * row:,} of 1,999" for i in range(columns)] for row in range(3)]
    names = [f"a config of a long name, number {row}" for row in range(3)]
    rows = [[name, "confirmed in prefill", *row] for name, row in zip(names, counts, strict=True)]
    head = [f"test {i}" for i in range(columns)]
    for block in (
        Table("Counts", ["claim", "verdict", *head], rows, 2),
        Matrix("Counts", names, counts, columns=[f"another config {i}" for i in range(columns)]),
    ):
        shown = text.render([block], width=width)
        assert max(map(len, shown.splitlines())) <= width
        assert [cell for row in counts for cell in row if cell not in shown] == []
        lines = [line for line in shown.splitlines() if "of 1,999" in line]
        begins = {line.strip()[:4] for line in lines}
        assert begins == {"a co"} and len(lines) % 3 == 0, "every line names its row"


def test_rows_and_columns_that_are_not_the_same_have_no_diagonal():
    apart = Matrix("Apart", ["awq", "gptq"], [[0.0, 2.5]] * 2, columns=["awq", "marlin"])
    rows = [["", "awq", "marlin"], ["awq", "0", "2.50"], ["gptq", "0", "2.50"]]
    assert of_page(html.render([apart]), "Apart") == rows
    assert of_markdown(markdown.render([apart]), "Apart") == rows
    assert [line.split() for line in text.render([apart]).splitlines()[1:]] == [rows[0][1:], *rows[1:]]
    same = Matrix("Apart", ["awq", "gptq"], [[0.0, 2.5]] * 2)
    assert "·" in text.render([same]) and "·" in html.render([same])


def test_a_p_and_a_part_of_a_whole_are_written_as_people_write_them():
    values = [1.0, 0.43, 0.0021, 1.1e-5, 2.2e-81, 0.0, float("nan")]
    assert [probability(p) for p in values] == ["1", "0.43", "0.0021", "1.1e-5", "2.2e-81", "0", "–"]
    assert part(36, 1024) == "36 of 1,024" and part(0, 0) == "–"


def test_numbers_counts_and_what_is_missing_are_written_once_for_all():
    row = ["x", 0.00003141, 1234, float("nan"), np.float32(2.5), np.int64(7), True]
    table = Table("", ["", *"abcdef"], [row])
    expected = ["x", "3.14e-5", "1,234", "–", "2.50", "7", "yes"]
    assert text.render([table]).splitlines()[1].split() == expected
    assert [re.sub(r"\\(.)", r"\1", c) for c in markdown.render([table]).splitlines()[-1].split(" | ")] == [
        "| x",
        *expected[1:-1],
        "yes |",
    ]
    assert of_page(html.render([table]), "")[1] == expected


def test_a_section_refuses_a_place_that_the_report_does_not_have():
    with pytest.raises(QdxError, match=r"place='top' of section 'a': must be one of front, phase, end"):
        Section("a", "A", xr.Dataset(), place="top")


@pytest.mark.slow
def test_a_chart_of_the_example_looks_as_the_shipped_ones_do_with_its_table(tmp_path: Path):
    folder = write_sweep(tmp_path / "sweep", ["awq", "gptq"])
    nodes = {"ties": {"_target_": "qdx_plugins.ties.ties"}}
    done = build(folder, analyses=nodes, formats=["txt", "html", "md"], figures=True, console=False)
    assert not done.failed and (folder / "figures/ties_ties.svg").exists()
    page = (folder / "report.html").read_text(encoding="utf-8")
    own = re.search("<figure><figcaption><strong>Gap under.*?</figure>", page, re.S)
    shipped = re.search("<figure><figcaption><strong>l2, replay: all.*?</figure>", page, re.S)
    assert own and shipped
    outline = [
        [part for part in re.findall("<[a-z]+", figure[0]) if part != "<span"][:7]
        for figure in (own, shipped)
    ]
    assert outline[0] == outline[1] and "<details" in outline[0] and 'class="chart" role="img"' in own[0]
    assert of_page(page, "Gap under")[1][0] == "awq"
    assert (
        of_markdown((folder / "report.md").read_text(encoding="utf-8"), "Gap under")[1:]
        == of_text(done.text, "Gap under")[1:]
    )


ANALYSES = ("noise_floor", "consistency", "effects", "classes", "pairs", "snr")
NUMBER = re.compile(r"[+-]?\d[\d,.]*(?:e-?\d+)?%?")
FIRST = "Reproducibility check"  # what stands before it is not an analysis's


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Four configs, one of which does not repeat, with every shipped analysis."""
    folder = write_sweep(tmp_path_factory.mktemp("three") / "sweep")
    nodes = {name: {"_target_": f"qdx.analysis.{name}"} for name in ANALYSES}
    nodes["cost"] = {"_target_": "qdx.analysis.cost", "baseline": "awq"}
    build(folder, analyses=nodes, formats=["txt", "html", "md"], console=False)
    return {name: (folder / f"report.{name}").read_text(encoding="utf-8") for name in ("txt", "html", "md")}


def tables_of_markdown(page: str) -> list[tuple[str, list[list[str]]]]:
    """Every table as its caption and its rows of cells, without escapes."""
    lines, tables = page.splitlines(), []
    for i, line in enumerate(lines):
        if not re.fullmatch(r"\|(?:-+:?\|)+", line):
            continue
        end = next(j for j in range(i, len(lines) + 1) if j == len(lines) or not lines[j].startswith("|"))
        cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in (lines[i - 1], *lines[i + 1 : end])]
        rows = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in cells]
        tables.append((re.sub(r"\\(.)", r"\1", lines[i - 3]), rows))
    return tables


def differences(pages: dict[str, str], first: str = FIRST) -> tuple[list[tuple[str, str]], int]:
    """Where a table of the Markdown, from a heading on, is not the page's or the text's; how many agree."""
    on_page: dict[str, list[list[list[str]]]] = {}
    for title, rows in Tables(pages["html"]).tables:
        on_page.setdefault(" ".join(title.split()), []).append(rows)
    in_text = NUMBER.findall(pages["txt"][pages["txt"].index(f"\n{first}\n") :])
    at = agreed = 0
    found = []
    for caption, rows in tables_of_markdown(pages["md"][pages["md"].index(f"## {first}") :]):
        if rows not in on_page.get(caption, []):
            found.append(("html", caption))
        for row in rows[1:]:
            numbers = [number for cell in row[1:] for number in NUMBER.findall(cell)]
            # Both pages have the same order, so what was passed is not looked at again.
            here = next(
                (i for i in range(at, len(in_text)) if in_text[i : i + len(numbers)] == numbers), None
            )
            if here is None:
                found.append(("txt", caption))
            else:
                at, agreed = here + len(numbers), agreed + len(numbers)
    return found, agreed


@pytest.mark.slow
def test_every_number_is_the_same_in_text_page_and_markdown(everything):
    found, agreed = differences(everything)
    assert found == [] and agreed > 400


@pytest.mark.parametrize("name", ["txt", "html", "md"])
@pytest.mark.slow
def test_a_number_that_one_of_the_three_writes_otherwise_is_found(everything, name):
    value = next(
        rows[1][-1] for title, rows in tables_of_markdown(everything["md"]) if title.startswith("Mean over")
    )
    assert re.fullmatch(r"[\d.]+", value)
    assert differences({**everything, name: everything[name].replace(value, "77.7")})[0]
