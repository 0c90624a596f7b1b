"""The HTML report in a real browser, its markup, figures and edges; and the Markdown report beside it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import markupsafe
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from qdx.analysis import Section, classes, consistency, effects, noise_floor, pairs, snr
from qdx.analysis.view import View
from qdx.document import charts, vega
from qdx.document.blocks import Chart, Table
from qdx.document.charts import number
from qdx.document.markdown import fence
from qdx.document.vega import Scale, ink
from qdx.errors import QdxError
from qdx.report import build, figures, html
from qdx.report.__main__ import main
from qdx.report.front import verdict
from qdx.report.state import Facts
from qdx.report.texts import side_by_side
from tests import synthetic
from tests.helpers import write_sweep
from tests.report.browser import Browser
from tests.report.test_report import headings
from tests.slowly import slow_but

STEPS = (noise_floor, consistency, effects, classes, pairs, snr)
HOSTILE = (
    "</script><script>window.hacked = 1</script>"
    '<img src="http://127.0.0.1:9/x.png" onerror="window.hacked=2">'
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Four configs of real files, one job that failed, every format, every figure."""
    folder = write_sweep(tmp_path_factory.mktemp("html") / "sweep")
    (folder / "broken").mkdir()
    (folder / "broken/status.json").write_text(json.dumps({"status": "failed", "error": HOSTILE}))
    plan = json.loads((folder / "sweep.json").read_text())
    plan["labels"].append("broken")
    plan["metrics"] = {name: {"_target_": f"qdx.metrics.{name}"} for name in ("l2", "top1")}
    plan["report"] = {"formats": ["txt", "html", "md"], "figures": True}
    (folder / "sweep.json").write_text(json.dumps(plan))
    return folder, build(folder, console=False)


@pytest.fixture(scope="module")
def browser():
    opened = Browser()
    yield opened
    opened.close()


def tree_of(configs: int, references: int = 2, repeats: int = 3, **options):
    """Configs that all differ a little; the last one differs in tokens, and its rows are partly missing."""
    rows = synthetic.blank(configs, repeats, references)
    noise = np.random.default_rng(3)
    for phase in ("prefill", "replay", "decode"):
        rows[phase] += noise.normal(0, 1, (configs, 1, references, *rows[phase].shape[3:]))
    if configs > 1:
        rows["tokens"][-1, :, :, 3:] += 7
        captured = np.ones(rows["replay"].shape[:-1], bool)
        captured[-1] = False
        options.setdefault("captured", {"replay": captured})
    return synthetic.sweep(rows, **options)


def page(tree, path: Path, sections: list[Section] | None = None, **facts) -> str:
    """Render a tree and write the page."""
    sections = [step(tree) for step in STEPS] if sections is None else sections
    labels = View(tree).configs if tree is not None else []
    given = Facts(
        path.parent, facts.pop("labels", labels), facts.pop("missing", []), facts.pop("failed", {}), **facts
    )
    drawn = figures.collect(View(tree), sections) if tree is not None else figures.Figures()
    text = html.render(given, tree, sections, drawn, [(path, 0)])
    path.write_text(text, encoding="utf-8")
    return text


def hostile(tree):
    """The same tree with text in it that tries to be markup."""
    output = tree["output"].to_dataset()
    words = np.array([HOSTILE, "\x00\ud800 ‮gnihton", "é 漢字 " + "x" * 900, "<b>bold"], object)
    text = np.resize(words, output["text"].shape)
    tree["output"] = xr.DataTree(output.assign(text=(output["text"].dims, text)))
    return tree


LABELS = {
    "hostile": [
        "<b>awq</b>",
        'gptq"onload="x',
        "awq,model.checkpoint.awq=a_very_long_folder_name_indeed_" + "x" * 60,
        "&amp;",
    ],
    "sixteen": [f"gptq_marlin,batch_size={i},generate.tokens={i * 100}" for i in range(16)],
}


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    """Pages by what is special about them."""
    # Where pyarrow is, pandas would keep text as UTF-8, which has no halves of a surrogate pair.
    with pd.option_context("mode.string_storage", "python"):
        return _pages(finished, tmp_path_factory)


def _pages(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    found = {"real": finished[0] / "report.html"}
    made = {
        "single": (tree_of(1, references=1, repeats=1), {}),
        "hostile": (
            hostile(tree_of(4, labels=LABELS["hostile"])),
            {"failed": {HOSTILE: HOSTILE}, "broken": {"x": HOSTILE}},
        ),
        "sixteen": (
            tree_of(16, labels=LABELS["sixteen"], formats=["awq", "gptq"] * 8),
            {"missing": ["m" * 120]},
        ),
        "nothing": (None, {"failed": {"awq": "kernel marlin refuses 576 columns"}, "labels": ["awq"]}),
    }
    for name, (tree, facts) in made.items():
        found[name] = folder / f"{name}.html"
        page(tree, found[name], [] if tree is None else None, **facts)
    return found


CASES = ("real", "single", "hostile", "sixteen", "nothing")
CONTRAST = """
(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const linear = x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = c => { const v = c.slice(0, 3).map(x => linear(x / 255));
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const bad = [];
  for (const e of document.querySelectorAll("main *, nav *, header *")) {
    if (e.closest("svg, .unseen")) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    let at = e, back = [0, 0, 0, 0];
    while (at && back[3] === 0) { back = parse(getComputedStyle(at).backgroundColor); at = at.parentElement; }
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(back)];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return [...new Set(bad)];
})()"""


@pytest.mark.parametrize("case", slow_but(["nothing"], CASES))
@pytest.mark.slow
def test_the_page_fits_its_window_asks_for_nothing_and_reports_no_error(browser, pages, case):
    for dark in (False, True):
        browser.open(pages[case], width=400, dark=dark)
        background = browser.value("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        for opened in (False, True):
            browser.value(
                f"document.querySelectorAll('details').forEach(d => d.open = {str(opened).lower()})"
            )
            for width in (400, 1400):
                browser.resize(width, dark)
                size = browser.value("[document.scrollingElement.scrollWidth, innerWidth]")
                assert size[1] == width and size[0] <= width, (case, dark, opened, size)
        assert browser.value(CONTRAST) == [], f"text of too little contrast, dark={dark}"
        assert browser.value("window.hacked") is None
        assert browser.requests == [pages[case].as_uri()]
        assert browser.errors == []


def test_the_keyboard_reaches_skip_link_theme_and_tables(browser, pages):
    browser.open(pages["real"], width=400)
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.getAttribute('href')") == "#main"
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.id") == "theme"
    browser.press("Enter", 13)
    assert browser.value("document.documentElement.dataset.theme") == "dark"
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert browser.draw() > 0
    label = "getComputedStyle(document.querySelector('.chart .role-axis-label text')).fill"
    assert browser.value(label) == "rgb(230, 237, 243)"
    browser.value("document.getElementById('theme').focus()")
    browser.press("Enter", 13)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.until("!document.querySelector('.chart[data-drawn=dark]')")
    assert browser.value(label) == "rgb(27, 31, 36)"
    browser.value("document.querySelector('figure summary').focus()")
    browser.press("Enter", 13)
    assert browser.value("document.querySelector('figure details').open")
    wide = "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth + 1)"
    assert browser.value(f"{wide}.length") > 0
    assert browser.value(f"{wide}.every(b => b.tabIndex === 0 && b.getAttribute('aria-label'))")


def test_a_saved_figure_opens_alone_without_error(browser, finished):
    folder, report = finished
    saved = sorted((folder / "figures").glob("*.svg"))
    assert {f"figures/{p.name}" for p in saved} == {n for n in report.paths if n.startswith("figures/")}
    for path in saved:
        ElementTree.parse(path)
    root = ElementTree.parse(folder / "figures/heatmap_l2_replay.svg").getroot()
    words = " ".join(root.itertext())
    assert "l2, replay: all 3 references" in words and "Mean over references" in words
    browser.open(folder / "figures/heatmap_l2_replay.svg")
    paper = "getComputedStyle(document.querySelector('path.background, rect')).fill"
    assert browser.value(paper) == "rgb(255, 255, 255)"
    assert browser.errors == [] and len(browser.requests) == 1


class Outline(HTMLParser):
    """Collects what a reader who does not see the page depends on, and whether tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.links: list[str] = []
        self.problems: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()
        if self.stack:
            self.problems.append(f"not closed: {self.stack}")

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.seen.append(tag)
        if tag not in VOID:
            self.stack.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "a":
            self.links.append(given["href"])
        if given.get("class") == "chart" and not (given.get("role") == "img" and given.get("aria-label")):
            self.problems.append("chart without a label")
        if tag == "img" and not (given.get("alt") and given["src"].startswith("data:")):
            self.problems.append("img without alt, or from elsewhere")
        if tag == "th" and given.get("scope") not in ("row", "col"):
            self.problems.append("th without scope")
        if any(name.startswith("on") for name in given):
            self.problems.append(f"event handler in {tag}")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.stack or self.stack.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")


@pytest.mark.parametrize("case", CASES)
def test_markup_is_sound_and_every_figure_has_words_and_a_table(pages, case):
    text = pages[case].read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.problems == []
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(outline.headings))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    for tag in ("main", "nav", "header"):
        assert outline.seen.count(tag) == 1
    found = re.findall(r"<figure.*?</figure>", text, re.S)
    assert len(found) == outline.seen.count("figure")
    for part in found:
        assert 'class="chart"' in part and "<table>" in part and "<caption" in part
    assert text.startswith("<!DOCTYPE html>") and not re.search(r"""(src|href)=["']?(https?:)?//""", text)


def test_the_verdict_comes_first_then_simulated_and_what_failed(pages):
    text = pages["real"].read_text(encoding="utf-8")
    at = [
        text.index(s)
        for s in (
            "4 configs of 2 formats: 4 kernel classes in every phase",
            "SIMULATED KERNELS",
            "INCOMPLETE",
            "<h2",
        )
    ]
    assert at == sorted(at)
    assert str(markupsafe.escape(HOSTILE)) in text and HOSTILE not in text


def test_the_verdict_is_what_the_distances_say(finished):
    folder, _ = finished
    stored = xr.open_dataset(folder / "sweep.nc", group="analysis/effects")["mean"]
    mean = stored.sel(metric="l2", phase="replay", region="content").to_pandas()
    across = min(mean.loc[a, b] for a in ("awq", "awq_marlin") for b in ("gptq", "gptq_marlin"))
    within = max(mean.loc["awq", "awq_marlin"], mean.loc["gptq", "gptq_marlin"])
    text = (folder / "report.html").read_text(encoding="utf-8")
    head = re.search("<h1>(.*?)</h1>", text)[1]
    assert f"are {number(across / within)}× as far apart as the furthest two of one format" in head
    assert (
        number(float(mean.loc["awq", "gptq"]))
        in re.search("l2, replay: all 3 references.*?</table>", text, re.S)[0]
    )


def test_no_verdict_where_nothing_can_be_compared():
    tree = tree_of(1, references=1, repeats=1)
    said = verdict(View(tree), [step(tree) for step in STEPS])
    assert said[0] == "1 config: nothing to compare it with." and said[1].startswith(
        "No config was run again"
    )
    equal = synthetic.sweep(synthetic.blank(3), formats=["awq", "awq", "gptq"])
    assert "all of one format 0" in verdict(View(equal), [classes(equal)])[0]


def test_what_was_not_measured_is_said_and_not_a_number(pages):
    text = pages["sixteen"].read_text(encoding="utf-8")
    heat = re.search(r"l2, replay: all 2 references.*?</figure>", text, re.S)[0]
    assert '"kind":"missing"' in heat and "not measured" in heat and "NaN" not in heat
    assert not re.search(r"\bnan\b", re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S))


def test_sizes_are_those_on_disk_and_a_page_does_not_state_its_own(finished):
    from qdx.report.state import size

    folder, report = finished
    text = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("report.html", "report.md", "report.txt", "sweep.nc"):
        on_disk = (folder / name).stat().st_size
        assert report.summary["files"][name]["bytes"] == on_disk
        shown = size(on_disk) if name == "sweep.nc" else size(None)
        assert re.search(rf"{name}</th><td( class=\"num\")?>{shown}<", text), name
    assert report.summary["files"]["summary.json"]["bytes"] is None


def test_markdown_has_the_sections_and_no_markup_of_strangers(finished):
    text = (finished[0] / "report.md").read_text(encoding="utf-8")
    heads = re.findall("^## (.*)$", text, re.M)
    assert heads == headings(finished[1].text)
    assert "<script>" not in text.replace("\\<", "") and "\\<script\\>" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1, block
    assert fence("a ```` b").startswith("`````text")


def test_an_unknown_figure_costs_no_report_and_a_format_is_checked(finished, capsys):
    folder, _ = finished
    report = build(folder, formats=["html"], figures=["heatmap_l2_reply"], console=False)
    assert set(report.paths) == {"report.html", "summary.json", "sweep.nc"}
    assert "did you mean 'heatmap_l2_replay'" in report.failed["report.figures"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "did you mean &#39;heatmap_l2_replay&#39;" in page
    assert main([str(folder), "--formats", "pdf"]) == 2
    assert "report.formats=pdf: not one of txt, html, md" in capsys.readouterr().err


def test_a_figure_of_an_analysis_is_an_image_that_cannot_run(tmp_path, browser):
    inside = '<script>parent.hacked=1</script><image href="http://127.0.0.1:9/y.png"/>'
    evil = f'<svg width="40" height="20">{inside}</svg>'
    tree = tree_of(2)
    table = Table("Numbers", ["a"], [["1"]])
    blocks = [Chart("one", evil, table, "One"), Chart("two", 3, table, "Two")]
    section = Section("mine", "Mine & others", xr.Dataset(), {"": "says <this>"}, blocks=blocks)
    drawn = figures.collect(View(tree), [section])
    assert (
        "two" in next(iter(drawn.errors)) and "must be a Vega-Lite specification" in drawn.errors["mine_two"]
    )
    page(tree, tmp_path / "own.html", [section])
    browser.open(tmp_path / "own.html")
    assert browser.value("document.querySelector('img').naturalWidth") == 40
    assert browser.value("window.hacked") is None and browser.errors == []
    assert [r[:5] for r in browser.requests] == ["file:", "data:"]
    with pytest.raises(QdxError, match="no such figure"):
        drawn.save(tmp_path / "figures", ["mine_none"])
    assert drawn.save(tmp_path / "figures", ["mine_one"])[0].read_text().count("xmlns") == 1


def test_branches_keep_their_number_on_the_side_of_more_configs():
    tokens = np.array([[1, 2, 3, 4], [1, 2, 3, -1], [1, 5, 3, 4], [1, 5, 6, 4], [1, 5, 3, 4]])
    wanted = [[0, 1, 1, 1], [0, 1, 1, -1], [0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0]]
    assert charts.branch(tokens).tolist() == wanted


def test_texts_are_cut_at_the_first_differing_word():
    tree = tree_of(3)
    output = tree["output"].to_dataset()
    text = output["text"].values.copy()
    text[:2], text[2] = "the same words", "the some words"
    tree["output"] = xr.DataTree(output.assign(text=(output["text"].dims, text)))
    first, second = side_by_side(View(tree), 0)
    assert (first.same, first.mark, first.rest) == ("the ", "same", " words") and list(first.configs) == [
        "c0",
        "c1",
    ]
    assert (second.same, second.mark, second.rest, second.token) == ("the ", "some", " words", 3)


def test_a_scale_is_logarithmic_where_values_span_much_and_zero_has_a_place_below_them():
    log = Scale([0.0, 0.02, 30.0, float("nan")], tight=True)
    assert log.log and log.spec() == {"type": "symlog", "constant": 0.02, "domain": [0.0, 30.0]}
    assert (
        log.ticks() == [0.0, 0.1, 1.0, 10.0] and log.legend() == [0.0, 0.1, 1.0, 30.0][:1] + log.legend()[1:]
    )
    assert log.share(0.0) == 0 and log.share(30.0) == 1 and 0 < log.share(0.02) < log.share(0.1)
    assert Scale([0.02, 30.0], tight=True).spec() == {"type": "log", "domain": [0.02, 30.0]}
    edge = Scale([0.02, 30.0])
    assert edge.low < 0.02 and edge.high > 30, "a dot at the end of an axis is not cut"
    linear = Scale([1.0, 7.0])
    assert not linear.log and linear.ticks() is None and linear.spec()["domain"] == [0.0, 7.0]
    assert Scale([1.5, 7.0], tight=True).spec()["domain"] == [1.5, 7.0]
    assert Scale([-3.0, 7.0]).low == -3 and Scale([-3.0, 700.0]).log is False
    for values in ([], [0.0, 0.0], [2.0], [float("nan")]):
        one = Scale(values, tight=True)
        assert one.low < one.high and all(0 <= one.share(v) <= 1 for v in values if v == v)


def test_ink_is_read_on_every_colour_and_numbers_are_as_in_tables():
    assert [ink(c) for c in ("#00224e", "#fee838", "#ffffff", "#000000")] == [
        "#ffffff",
        "#000000",
        "#000000",
        "#ffffff",
    ]
    assert [number(v) for v in (0.0, 2.754, 12345.0, 3.69e-5, 0.0399, -1.5)] == [
        "0",
        "2.75",
        "12,300",
        "3.69e-5",
        "0.0399",
        "-1.50",
    ]
    assert number(float("nan")) == "not measured" and number(999.9) == "1,000"


def test_a_long_line_is_drawn_by_means_of_neighbours():
    position = np.arange(1000)
    lines = np.vstack([np.ones(1000), np.where(position < 500, np.nan, 3.0)])
    noise = np.where(position == 7, 2.0, 0.0)
    chart = charts.positions("n", "t", position, lines, ["a", "b"], what="m", noise_P=noise)
    assert len(chart.table.rows) <= charts.MOST_POINTS and "mean of up to 11 rows" in chart.note
    assert chart.table.rows[0] == ["0", "1.00", "not measured", "2.00"]
    assert chart.table.rows[-1][1:] == ["1.00", "3.00", "0"]


OVERLAPS = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
  const boxes = texts.map(t => t.getBoundingClientRect());
  return texts.flatMap((t, i) => texts.slice(0, i).filter((_, j) => boxes[i].left < boxes[j].right - 1
    && boxes[j].left < boxes[i].right - 1 && boxes[i].top < boxes[j].bottom - 4
    && boxes[j].top < boxes[i].bottom - 4).map(u => u.textContent + ' | ' + t.textContent))
})"""


def test_no_label_of_a_heatmap_is_drawn_over_another(tmp_path, browser) -> None:
    """The ends of the colours are data: how near a round number comes to them is up to the distances."""
    drawn = []
    # Distances between formats, and between kernels of one: what the README's sweep gave is the first.
    for i, (least, most) in enumerate(
        [(8.07e-6, 0.0814), (3.2e-5, 0.4), (2.19, 330), (0, 0.4), (1e-9, 1.1e5)]
    ):
        domain = np.array([least, max(least, most / 300), most])
        values = np.array([[np.nan, most], [least, np.nan]])
        two = ["awq", "gptq"]
        drawn.append(
            vega.svg(charts.matrix(f"m{i}", "js", two, two, values, unit="nat", domain=domain).drawing)
        )
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><meta charset=utf-8>" + "".join(drawn), encoding="utf-8")
    browser.open(path)
    assert browser.value("document.querySelectorAll('svg text').length") > 40
    assert browser.value(OVERLAPS) == []
