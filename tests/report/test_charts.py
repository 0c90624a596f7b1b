"""Charts: what they hold is what their tables say, and what a stranger wrote in them stays text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import qdx
import qdx.accessor  # registers .qdx
from qdx.analysis import Chart, Section, Table, snr
from qdx.document import charts, html, markdown, text, vega
from qdx.errors import QdxError
from qdx.report import build, runtime
from tests import synthetic
from tests.helpers import small_references, write_sweep
from tests.report.test_html import browser, page, tree_of  # noqa: F401 - a fixture

# What ends a script or a comment, what JavaScript takes for a line's end, what Vega takes for a path of a
# field or for an expression, and a control character.
EVIL = [
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "a\u2028b\u2029c",
    "datum['x'].y[0]",
    '"+(window.hacked=2)+"',
    "{expr: 'window.hacked=3'}",
    "${window.hacked=4}",
    "<img src=x onerror=window.hacked=5>",
    "nul\x00 and \ud800",
    "\\'];window.hacked=6;//",
]
PLAIN = [f"label {i}" for i in range(len(EVIL))]


def every_chart(names: list[str]) -> list[Chart]:
    """One of each kind, with all its texts from outside."""
    rng = np.random.default_rng(1)
    a, b, c, d = names[:4]
    values = np.exp(rng.normal(0, 3, (4, 4)))
    values[0, 1], values[2, 3] = 0, np.nan
    lines = np.exp(rng.normal(0, 1, (4, 12)))
    lines[1, 3:5] = np.nan
    tokens = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 5, 6, 7], [1, 5, 6, 8]])
    title, note, metric, unit = names[4:8]
    found = [
        charts.matrix("m", title, [a, b, c, d], [a, b, c, d], values, unit=unit, note=note),
        charts.matrix("x", title, [a, b], [c, d], values[:2, :2], unit=unit, note=note, corner=metric),
        charts.positions(
            "p", title, np.arange(12), lines, [a, b, c, d], what=metric, unit=unit, noise_P=lines[0] / 3
        ),
        charts.curves("c", title, np.linspace(0, 1, 9), lines[:3, :9] / 9, [a, b, c], across=metric, up=unit),
        charts.signal_and_noise(
            "s", title, [(a, b), (c, d)], np.array([3.0, 300]), np.array([0, 2.0]), [note, metric], unit=unit
        ),
        charts.strips("d", title, [a, b, c, d], tokens, [-1, 2, -1, -1], note=note),
        charts.bars("b", title, [a, b, c, d], [0.1, -0.2, np.nan, 3], what=metric, unit=unit, note=note),
    ]
    return found


@pytest.mark.parametrize("chart", every_chart(PLAIN), ids=lambda chart: chart.name)
def test_a_chart_is_an_altair_chart_that_can_be_changed(chart: Chart) -> None:
    made = chart.altair().properties(width=640)
    assert made.to_dict()["width"] == 640  # to_dict holds it against Vega-Lite's schema
    assert made.to_dict()["title"]["text"] == [chart.title]
    assert set(chart._repr_mimebundle_()) and "[nat]" not in vega.svg(chart.drawing)


@pytest.mark.parametrize("chart", every_chart(PLAIN), ids=lambda chart: chart.name)
def test_text_and_markdown_show_the_table_of_a_chart(chart: Chart) -> None:
    for shown in (text.render([chart]), markdown.render([chart])):
        words = " ".join(shown.replace("\\", "").split())
        assert all(str(row[-1]) in words for row in chart.table.rows) and chart.table.rows
        assert str(chart.table.head[-1]) in words
        assert "$schema" not in shown and "mark" not in shown


def numbers_of(spec: vega.Spec) -> set[float]:
    return {
        one["value"]
        for one in _data(spec)
        if isinstance(one, dict) and isinstance(one.get("value"), float | int)
    }


def _data(spec: object) -> list[object]:
    if isinstance(spec, dict):
        here = spec.get("data", {}).get("values", []) if isinstance(spec.get("data"), dict) else []
        here = [*here, *(one for rows in spec.get("datasets", {}).values() for one in rows)]  # Altair's place
        return [*here, *(one for value in spec.values() for one in _data(value))]
    return [one for value in spec for one in _data(value)] if isinstance(spec, list) else []


@pytest.mark.parametrize("name", ["m", "x", "p", "c", "s", "b"])
def test_every_drawn_number_is_in_the_table(name: str) -> None:
    chart = next(chart for chart in every_chart(PLAIN) if chart.name == name)
    cells = {str(cell) for row in chart.table.rows for cell in row}
    drawn = numbers_of(chart.drawing)
    assert len(drawn) >= 3 and {charts.number(value) for value in drawn} <= cells


ACTING = (
    "field",
    "expr",
    "test",
    "filter",
    "calculate",
    "as",
    "labelExpr",
    "signal",
    "format",
    "param",
    "on",
)


def acting(spec: object, at: str = "") -> list[tuple[str, str]]:
    """Every text of a specification that Vega reads as a name or as an expression."""
    if isinstance(spec, dict):
        own = [(f"{at}.{k}", v) for k, v in spec.items() if k in ACTING and isinstance(v, str)]
        return own + [e for k, v in spec.items() if at[-7:] != ".values" for e in acting(v, f"{at}.{k}")]
    return [e for i, v in enumerate(spec) for e in acting(v, at)] if isinstance(spec, list) else []


def test_no_text_from_outside_is_the_name_of_a_field_or_part_of_an_expression() -> None:
    evil, plain = ([acting(c.drawing) for c in every_chart(names)] for names in (EVIL, PLAIN))
    assert evil == plain and all(evil)
    keys = [sorted(map(str, {k for one in _data(c.drawing) for k in one})) for c in every_chart(EVIL)]
    assert all(re.fullmatch("[a-z]+", key) for row in keys for key in row)


def test_a_specification_in_a_page_holds_nothing_that_html_or_javascript_know() -> None:
    for chart in every_chart(EVIL):
        spec = vega.specification(chart.drawing)
        written = vega.in_page(spec)
        assert written.isascii() and not re.search(r"[<>&\x00-\x1f]", written)
        assert json.loads(written) == spec
        assert "\x00" not in json.dumps(spec) and "\ud800" not in str(spec)


def of_charts(found: list[Chart], path: Path) -> str:
    """A page with nothing but charts."""
    drawn = {chart.name: vega.specification(chart.drawing) for chart in found}
    body = html.grid(found, drawn)
    here = Path(qdx.__file__).parent / "report"
    css, js = ((here / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    whole = html.page("p", "Charts", [], [], [html.Part("a", "Charts", body)], css, js, runtime.load())
    path.write_text(whole, encoding="utf-8")
    return whole


def test_strangers_labels_in_a_page_stay_text_that_the_pointer_reads(browser, tmp_path: Path) -> None:  # noqa: F811
    found = every_chart(EVIL)
    of_charts(found, tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.draw() == len(found)
    shown = browser.value("[...document.querySelectorAll('.chart text')].map(t => t.textContent).join(' ')")
    for label in ("</script>", "<!--<script>", "datum['x'].y[0]"):
        assert label in shown
    # The pointer over a cell, a line, a strip and a bar: Vega writes what it finds there into the page.
    seen = set()
    for kind in ("rect", "bar", "symbol"):
        marks = f"[...document.querySelectorAll('.mark-{kind}.role-mark path')]"
        for i in range(0, browser.value(f"{marks}.length"), 5):
            browser.value(f"{marks}[{i}].scrollIntoView({{block: 'center'}})")
            box = browser.value(
                f"(b => [b.x + b.width / 2, b.y + b.height / 2])({marks}[{i}].getBoundingClientRect())"
            )
            browser.point(*box)
            tip = "document.getElementById('vg-tooltip-element')"
            if browser.value(f"!!{tip} && {tip}.classList.contains('visible')"):
                seen.add(browser.value(f"{tip}.textContent"))
            assert browser.value(f"{tip} ? {tip}.querySelectorAll('script, img').length : 0") == 0
    assert sum("</script>" in one or "datum['x']" in one for one in seen) >= 2
    assert browser.value("window.hacked") is None
    assert browser.errors == [] and browser.requests == [(tmp_path / "page.html").as_uri()]


def test_a_page_runs_no_code_and_loads_no_data_of_a_chart(browser, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "page.html"
    away: vega.Spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"url": "http://127.0.0.1:9/data.json"},
        "mark": "bar",
        "usermeta": {"embedOptions": {"ast": False, "actions": True, "loader": {}}},
        "encoding": {"x": {"field": "a"}, "href": {"value": "http://127.0.0.1:9/"}},
    }
    whole = of_charts([every_chart(PLAIN)[0], Chart("away", away, Table("Away", ["a"], [["1"]]))], path)
    policy = re.search('Content-Security-Policy" content="(.*?)"', whole)
    assert policy and "unsafe-eval" not in policy[1] and "script-src &#39;sha256-" in policy[1]
    browser.open(path)
    browser.until("[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn)")
    assert browser.requests == [path.as_uri()]
    assert browser.value("document.querySelectorAll('.chart[data-drawn=light] svg').length") >= 1


def test_the_wheel_scrolls_the_page_and_zooms_a_line_chart_with_shift_alone(browser, tmp_path: Path) -> None:  # noqa: F811
    of_charts([every_chart(PLAIN)[2]], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    browser.draw()
    ticks = "[...document.querySelectorAll('.role-axis-label text')].map(t => t.textContent).join()"
    x, y = browser.value(
        "(b => [b.x + b.width / 2, b.y + 60])(document.querySelector('.chart svg').getBoundingClientRect())"
    )
    before = browser.value(ticks)
    for modifiers, changed in ((0, False), (8, True)):
        browser.call(
            "Input.dispatchMouseEvent",
            type="mouseWheel",
            x=x,
            y=y,
            deltaX=0,
            deltaY=-400,
            modifiers=modifiers,
        )
        if changed:
            browser.until(f"{ticks} !== {json.dumps(before)}")
        assert (browser.value(ticks) != before) is changed


def test_without_javascript_the_page_says_so_and_its_tables_open(browser, tmp_path: Path) -> None:  # noqa: F811
    of_charts(every_chart(PLAIN), tmp_path / "page.html")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(tmp_path / "page.html")
        said = browser.value("document.querySelector('noscript').textContent")
        assert html.NO_SCRIPT in said
        assert browser.value("document.querySelectorAll('figure details table').length") == 7
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_without_the_library_a_report_has_tables_and_says_how_to_get_charts(tmp_path, monkeypatch) -> None:
    runtime.load.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    folder = write_sweep(tmp_path / "s", ["awq", "gptq"], references=small_references(1))
    nodes = {"l2": {"_target_": "qdx.metrics.l2"}}
    done = build(folder, metrics=nodes, analyses={}, figures=["heatmap_l2_replay"], console=False)
    written = (folder / "report.html").read_text(encoding="utf-8")
    assert written.count("pip install &#39;qdx[charts]&#39;") == 2, "once for the page, once for the file"
    assert 'class="chart"' not in written and "vegaEmbed=" not in written
    heat = re.search("<figure><figcaption><strong>l2, replay.*?</figure>", written, re.S)
    assert heat and "<table>" in heat[0] and "<details" not in heat[0]
    assert "needs" not in done.failed.get("report.html", "") and list(done.failed) == ["report.figures"]
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(QdxError, match=r"Altair, which is not installed: pip install 'qdx\[charts\]'"):
        every_chart(PLAIN)[0].altair()


def test_nothing_of_the_library_is_loaded_before_a_chart_is_drawn(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", ["awq", "gptq"], references=small_references(1))
    script = f"""
import sys, qdx
from qdx.report import build
build({str(folder)!r}, formats=["txt", "md"], console=False)
tree = qdx.open({str(folder / "sweep.nc")!r})
tree.qdx.plot, qdx.charts.bars
print(sorted({{"altair", "vl_convert", "matplotlib", "narwhals"}} & set(sys.modules)))
tree.qdx.plot.matrix()
print("altair" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["[]", "True"], done.stderr


def test_the_javascript_is_kept_between_reports_and_a_lost_cache_costs_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("QDX_CACHE", str(tmp_path))
    runtime.load.cache_clear()
    script = runtime.load()
    kept = tmp_path / "charts" / f"{vega.versions()}.js"
    assert kept.read_text(encoding="utf-8") == script and "vegaEmbed" in script
    assert len(script) < 1_000_000 and "</script" not in script.lower()
    runtime.load.cache_clear()
    monkeypatch.setattr(vega, "runtime", lambda: pytest.fail("it was there"))
    assert runtime.load() == script
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QDX_CACHE", str(tmp_path / "file"))  # no folder can be made there
    runtime.load.cache_clear()
    assert runtime.load() == script
    runtime.load.cache_clear()


def test_the_page_of_a_sweep_like_the_default_one_is_under_3_mb(tmp_path: Path, monkeypatch) -> None:
    """Four configs and references, 64 prompt positions and 16 tokens, four metrics, three repeats."""
    for name, value in (("CONTENT", 64), ("LENGTH", 70)):
        monkeypatch.setattr(synthetic, name, value)
    monkeypatch.setitem(synthetic.FACTS, "kl", synthetic.FACTS["l2"])
    monkeypatch.setitem(synthetic.FACTS, "js", synthetic.FACTS["l2"])
    rows = synthetic.blank(4, 3, 4, 16)
    noise = np.random.default_rng(3)
    for phase in ("prefill", "replay", "decode"):
        rows[phase] += noise.normal(0, 1, rows[phase].shape)
    first = synthetic.distance

    def distance(metric: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (
            first("l2", a, b) * np.exp(noise.normal(0, 3, a.shape[:-1]))
            if metric in ("kl", "js")
            else first(metric, a, b)
        )

    monkeypatch.setattr(synthetic, "distance", distance)
    tree = synthetic.sweep(rows, metrics=("l2", "skew", "kl", "js"))
    written = page(tree, tmp_path / "page.html")
    assert written.count('class="chart"') > 120
    assert 1_500_000 < len(written.encode()) < 3_000_000


@pytest.fixture(scope="module")
def stored() -> xr.DataTree:
    """A sweep in memory with the result of ``snr``, as ``sweep.nc`` has it."""
    tree = tree_of(3)
    tree["analysis/snr"] = xr.DataTree(snr(tree).result)
    return tree


def test_the_charts_of_the_report_are_drawn_in_a_notebook(stored: xr.DataTree) -> None:
    plot = stored.qdx.plot
    made = [
        plot.matrix("l2"),
        plot.matrix("skew", "prefill", "ref_1"),
        plot.positions("c0", "c1", "l2", "prefill"),
    ]
    made += [plot.signal("l2", "prefill"), plot.strips(), plot.strips("ref_1")]
    titles = [" ".join(chart.to_dict()["title"]["text"]) for chart in made]
    assert titles == [
        "l2, replay: all 2 references",
        "skew, prefill: ref_1",
        "l2, prefill: c0 ~ c1",
        "l2, prefill",
        "ref_0",
        "ref_1",
    ]
    # The means of the matrix are those of the stored distances.
    mean = stored.qdx.pairs("skew", "prefill").sel(config="c0", config_b="c1", reference="ref_1")
    content = stored["prefill"]["region"].sel(reference="ref_1").isin(["content", "output"])
    cell = next(c for c in _data(made[1].to_dict()) if (c["p"], c["q"]) == ("c0", "c1"))
    assert cell["value"] == pytest.approx(float(mean.where(content).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("matrix", "l3"), r"metric 'l3' was not measured, only l2, skew"),
        (("matrix", "l2", "reply"), r"no phase 'reply' here.*did you mean 'replay'"),
        (("matrix", "l2", "replay", "ref_7"), r"reference 'ref_7' is not drawn, only ref_0, ref_1"),
        (("positions", "c0", "c9"), r"no config 'c9' here, only c0, c1, c2"),
        (("signal", "skeew"), r"metric 'skeew' was not measured"),
        (("signal", "l2", "decode"), r"signal and noise of l2 in decode were not measured here"),
        (("strips", "ref_9"), r"reference 'ref_9' is not drawn, only ref_0, ref_1"),
        (("roc", "awq"), r"the analysis 'attribution' was not run here, only snr"),
        (("crossing",), r"the analysis 'crossing' was not run here, only snr"),
    ],
)
def test_a_chart_that_cannot_be_drawn_says_what_is_there(stored: xr.DataTree, call, message: str) -> None:
    with pytest.raises(QdxError, match=message):
        getattr(stored.qdx.plot, call[0])(*call[1:])


def test_a_sweep_of_a_verifier_has_its_charts_too() -> None:
    from qdx.verification import attribution, crossing
    from tests.analysis.replaying import trees

    producers, verifier = trees({"awq": 0.0, "gptq": 1.5}, references=100, tokens=4)
    tree = xr.DataTree.from_dict(
        {
            f"analysis/{one.name}": one.result
            for one in (crossing(producers, verifier), attribution(producers, verifier, draws=20))
        }
    )
    plot = tree.qdx.plot
    assert [type(c).__name__ for c in (plot.crossing(), plot.roc("awq"))] == ["LayerChart"] * 2
    tokens, rows = plot.tokens_needed("awq").to_dict(), plot.rows_needed("awq").to_dict()
    assert {one["at"] for one in _data(tokens)} == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert {one["at"] for one in _data(rows)} == {1.0, 2.0, 3.0, 4.0}
    with pytest.raises(QdxError, match="no producer 'gpt' here, only awq, gptq"):
        plot.roc("gpt")


def test_a_chart_that_is_none_is_named_and_costs_no_report() -> None:
    from qdx.analysis.view import View
    from qdx.report import figures

    table = Table("t", ["a"], [["1"]])
    section = Section(
        "own", "Own", xr.Dataset(), blocks=[Chart("a", {"mark": "bar"}, table), Chart("b", {}, table)]
    )
    found = figures.collect(View(tree_of(2)), [section])
    assert list(found.errors) == ["own_b"] and "own_a" in found.drawn
    with pytest.raises(QdxError, match="Vega-Lite refuses a chart"):
        vega.svg({"mark": {"type": "no such mark"}, "data": {"values": []}})
