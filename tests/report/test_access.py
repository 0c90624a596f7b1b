"""What a reader needs who uses a keyboard, a screen reader or poor eyes: in a browser, and by axe-core."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qdx.report import build
from tests.helpers import small_references, write_sweep
from tests.report.test_html import browser, finished, pages  # noqa: F401 - fixtures
from tests.slowly import slow_but

AXE = Path(os.environ.get("QDX_AXE", "no/axe.min.js"))
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# Every look of the page of real files; the others, of the same style, narrow and dark, and wide and light.
LOOKS = [("real", width, dark) for width in (400, 1400) for dark in (False, True)]
LOOKS += [
    (case, width, dark)
    for case in ("single", "hostile", "sixteen", "nothing")
    for width, dark in ((400, True), (1400, False))
]
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"

# Text in charts stands on the page, or on the cell or bar that was drawn before it.
DRAWN = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = v => { const l = v.map(x => linear(x / 255));
    return .2126 * l[0] + .7152 * l[1] + .0722 * l[2]; };
  const paper = parse(getComputedStyle(document.body).backgroundColor);
  const bad = [];
  let seen = 0;
  for (const svg of document.querySelectorAll(".chart svg, svg.chart")) {
    const cells = [...svg.querySelectorAll(".mark-rect.role-mark path, .mark-rect.role-mark rect")]
      .map(e => [e.getBoundingClientRect(), getComputedStyle(e)]);
    for (const text of svg.querySelectorAll("text")) {
      if (!text.textContent.trim()) continue;
      const at = text.getBoundingClientRect(), x = at.x + at.width / 2, y = at.y + at.height / 2;
      let back = paper;
      for (const [box, style] of cells)
        if (box.left <= x && x <= box.right && box.top <= y && y <= box.bottom && style.fill !== "none") {
          const share = Number(style.fillOpacity);
          back = parse(style.fill).map((v, i) => share * v + (1 - share) * paper[i]);
        }
      const fill = getComputedStyle(text).fill;
      const [a, b] = [light(parse(fill)), light(back)];
      const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      seen += 1;
      if (ratio < 4.5) bad.push(`${text.textContent} ${fill} on ${back}: ${ratio.toFixed(2)}`);
    }
  }
  return {seen, bad: [...new Set(bad)].slice(0, 9)};
})()"""

# A figure, table, part or button without a name of its own; a part that shares its name with another one.
NAMELESS = """
(() => {
  const bad = [];
  const text = e => (e.getAttribute("aria-label") || e.textContent || "").trim();
  for (const e of document.querySelectorAll(".chart, svg"))
    if (!e.closest("[role=img][aria-label]")) bad.push("chart");
  for (const e of document.querySelectorAll("img")) if (!e.alt) bad.push("img");
  for (const e of document.querySelectorAll("table")) if (!e.caption || !text(e.caption)) bad.push("table");
  for (const e of document.querySelectorAll("th")) if (!e.scope || !text(e)) bad.push("th " + e.outerHTML);
  for (const e of document.querySelectorAll("summary, a, button")) if (!text(e)) bad.push(e.outerHTML);
  for (const e of document.querySelectorAll("section, nav")) {
    const by = e.getAttribute("aria-labelledby");
    if (!(by ? text(document.getElementById(by)) : e.getAttribute("aria-label"))) bad.push(e.tagName);
  }
  const parts = [...document.querySelectorAll("summary")].map(text);
  for (const name of new Set(parts)) if (parts.filter(p => p === name).length > 1) bad.push("twice: " + name);
  if (!document.documentElement.lang || !document.title) bad.push("language or title");
  return bad;
})()"""

# Where Tab goes, in order; each place must show that it has the focus.
ORDER = """
(() => {
  const able = [...document.querySelectorAll("a[href], button, summary, [tabindex]")]
    .filter(e => e.checkVisibility());
  const bad = able.filter(e => e.tabIndex !== 0).map(e => e.outerHTML.slice(0, 80));
  const silent = able.filter(e => { e.focus({focusVisible: true}); return document.activeElement !== e
    || getComputedStyle(e).outlineStyle === "none"; }).map(e => e.outerHTML.slice(0, 80));
  const first = able.slice(0, 2).map(e => e.id || e.getAttribute("href"));
  return {bad, silent: silent.slice(0, 5), first, count: able.length};
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("case", slow_but(["real"], ["real", "hostile", "sixteen"]))
@pytest.mark.slow
def test_text_in_drawings_is_read_by_poor_eyes(browser, pages, case: str, dark: bool) -> None:  # noqa: F811
    browser.open(pages[case], dark=dark)
    browser.value(OPEN_ALL)
    assert browser.draw() > 3
    found = browser.value(DRAWN)
    assert found["seen"] > 50 and found["bad"] == []


@pytest.mark.parametrize("case", slow_but(["real", "nothing"], ["real", "single", "sixteen", "nothing"]))
@pytest.mark.slow
def test_everything_has_a_name_and_the_keyboard_gets_everywhere(browser, pages, case: str) -> None:  # noqa: F811
    browser.open(pages[case], width=400)
    browser.value(OPEN_ALL)
    browser.draw()
    assert browser.value(NAMELESS) == []
    order = browser.value(ORDER)
    assert order["bad"] == [] and order["silent"] == []
    assert order["first"] == ["#main", "theme"] and order["count"] > 2


def test_the_reader_chooses_the_metric_of_the_positions_by_keyboard(browser, tmp_path: Path) -> None:  # noqa: F811
    folder = write_sweep(tmp_path / "s", ["awq", "gptq"], references=small_references(6), repeats=2)
    nodes = {name: {"_target_": f"qdx.metrics.{name}"} for name in ("l2", "kl")}
    build(folder, metrics=nodes, analyses={}, console=False)
    browser.open(folder / "report.html")
    first, second = (
        f"[...document.querySelectorAll('summary')].find(s => s.textContent === '{name}, prefill: 1 pair')"
        for name in nodes
    )
    assert [browser.value(f"{part}.parentElement.open") for part in (first, second)] == [True, False]
    browser.value(f"{second}.focus()")
    browser.press("Enter", 13)
    drawn = browser.value(f"{second}.parentElement.querySelector('.chart').getAttribute('aria-label')")
    assert browser.value(f"{second}.parentElement.open") and ": kl from position" in drawn
    text = (folder / "report.html").read_text()
    # In the words above, and with each of the drawings of two metrics and three phases and its table.
    assert text.count("the first 4 of 6 references") == 1 + 2 * 3 * 2


@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason="QDX_AXE names no axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize(("case", "width", "dark"), LOOKS)
def test_axe_finds_nothing(browser, pages, case: str, width: int, dark: bool) -> None:  # noqa: F811
    browser.open(pages[case], width=width, dark=dark)
    browser.value(OPEN_ALL)
    browser.draw()
    browser.value(AXE.read_text(encoding="utf-8") + ";0")
    told = "r.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html, v.nodes[0].failureSummary])"
    answer = f"({{bad: {told}, passed: r.passes.length}})"
    found = browser.value(f"axe.run(document, {{runOnly: {json.dumps(WCAG)}}}).then(r => {answer})")
    assert found["bad"] == [] and found["passed"] > 15


def test_the_checks_find_what_they_look_for(browser, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "bad.html"
    path.write_text(
        "<html><body style='background:#fff'><svg class='chart'><text y='20' fill='#ccc'>pale</text></svg>"
        "<table><tr><th>x</th></tr></table>"
        "<details><summary>a</summary></details><details><summary>a</summary></details>"
        "<a href='#x' tabindex='3' style='outline:none'>y</a></body></html>"
    )
    browser.open(path)
    assert len(browser.value(DRAWN)["bad"]) == 1
    assert {str(b).split(" ")[0] for b in browser.value(NAMELESS)} == {
        "chart",
        "table",
        "th",
        "twice:",
        "language",
    }
    order = browser.value(ORDER)
    assert len(order["bad"]) == 1 and len(order["silent"]) == 1
