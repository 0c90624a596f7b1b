"""The parts of a verifier's report: its figures and tables hold the sections' numbers."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from qdx.analysis.section import Section
from qdx.document.blocks import Block, Details, Matrix, Table
from qdx.document.charts import number
from qdx.document.format import NOT_MEASURED
from qdx.report import html, markdown, text
from qdx.report.figures import Figures
from qdx.report.parts import verification
from qdx.report.state import Facts
from qdx.verification import attribution, crossing, environment_validation, figures, verify
from tests.analysis.replaying import trees, words
from tests.report.test_document import differences, tables_of_markdown

NOISE = {"awq": 0.0, "marlin": 0.05, "g<b>ptq": 1.5}


@pytest.fixture(scope="module")
def judged():
    producers, verifier = trees(NOISE, references=100, tokens=4)
    own = {label: label for label in NOISE}
    sections = [
        environment_validation(producers, verifier, own),
        verify(producers, verifier),
        crossing(producers, verifier),
        attribution(producers, verifier, draws=20),
    ]
    return {section.name: section for section in sections}


def test_a_heatmap_has_every_distance_in_its_table(judged):
    found = [f for f in figures.figures(list(judged.values())) if f.name == "crossing_decode"]
    values = judged["crossing"].result["distance"].sel(phase="decode").values
    assert found[0].table.rows == [
        [name, *(number(float(v)) for v in row)] for name, row in zip(NOISE, values, strict=True)
    ]
    assert values[0, 0] == 0 and (values[0, 1:] > 1).all()


def test_curves_run_from_none_to_all_and_end_at_the_shares_of_the_section(judged):
    drawn = {f.name: f for f in figures.figures(list(judged.values()))}
    assert {"roc_awq", "rows_awq", "tokens_awq"} <= set(drawn)
    last = drawn["roc_awq"].table.rows[-1]
    result = judged["attribution"].result
    step = -(-result.sizes["false_positive_rate"] // 32)
    at = np.arange(result.sizes["false_positive_rate"])[::step][-1]
    shares = result["roc"].sel(producer="awq", config=["marlin", "g<b>ptq"]).values[:, at]
    assert last[1:] == [number(float(v)) for v in shares]
    assert drawn["rows_awq"].table.head == ["published rows", "marlin", "g<b>ptq"]
    assert drawn["tokens_awq"].table.head == ["tokens", "marlin", "g<b>ptq"]
    # one token more than rows: prefill predicts the first one
    assert [len(drawn[f"{kind}_awq"].table.rows) for kind in ("rows", "tokens")] == [4, 5]
    assert "threshold of 5% false alarms" in drawn["rows_awq"].note


def test_too_few_references_for_a_split_give_no_curve():
    producers, verifier = trees(NOISE, references=9, tokens=4)
    section = attribution(producers, verifier, draws=20)
    assert not figures.figures([section])
    assert "is an identity then" in words(section)
    answers, ranks = tables(section)
    assert np.asarray(answers.cells).sum(-1).tolist() == [9, 9, 9]
    assert ranks.head == ["made by", "named", "wrongly", "likeliest", "nearest", "bit-equal"]


def test_a_distance_that_nobody_measured_says_so(judged):
    section = judged["crossing"]
    blank = section.result.copy(deep=True)
    blank["distance"].values[:, 1, 2] = np.nan
    figure = figures.figures([type(section)("crossing", "", blank)])[-1]
    assert figure.table.rows[1][3] == NOT_MEASURED


def test_every_section_has_a_part_and_names_are_only_text(judged):
    drawn = Figures(verifying=figures.figures(list(judged.values())))
    drawn.drawn = {chart.name: chart.drawing for chart in drawn.verifying}
    found = verification(list(judged.values()), drawn)
    assert [anchor for anchor, _, _ in found] == [
        "verify",
        "environment_validation",
        "crossing",
        "attribution",
    ]
    page = "".join(body for _, _, body in found)
    assert "g<b>ptq" not in page and "g&lt;b&gt;ptq" in page
    assert page.count('class="chart"') == len(drawn.verifying)


def test_tables_hold_verdicts_and_counts(judged):
    claims = tables(judged["verify"])[0]
    assert [row[1] for row in claims.rows] == judged["verify"].result["verdict"].values.tolist()
    assert claims.rows[0] == ["awq", "confirmed", "400 of 400", "300 of 300", "500 of 500", "–", "1", "1"]
    equal = tables(judged["crossing"])[-1]
    assert equal.labels == equal.columns == list(NOISE)
    assert equal.cells[0] == ["400 of 400", "0 of 400", "0 of 400"]
    answers, single, refuted, by_tokens, greedy, separation = tables(judged["attribution"])
    assert answers.labels == list(NOISE)
    assert np.asarray(answers.cells)[0].sum() == 50, "half of 100 references are judged"
    assert single.rows[0][-1] == "100 of 100"
    assert refuted.cells[0][0] == "0 of 50 (0% to 7.1%)", "rows that are all equal are not a false alarm"
    assert refuted.cells[0][1] == "50 of 50 (92.9% to 100%)"
    assert "tokens alone" in by_tokens.caption and greedy.cells[0][0] == "250 of 250"
    assert separation.rows[0][2] == "1.00 (0.863 to 1.00)"


def tables(of: Section | Details) -> list[Table | Matrix]:
    """Every table of a section, those that a page folds away too."""
    blocks: list[Block] = list(of.blocks)
    found = [tables(block) if isinstance(block, Details) else [block] for block in blocks]
    return [block for part in found for block in part if isinstance(block, Table | Matrix)]


FORMS = ("txt", "html", "md")


@pytest.fixture(scope="module")
def forms():
    """The three reports of a verifier's sweep, with claims that stand and one that does not."""
    producers, verifier = trees(NOISE, references=100, tokens=4)
    verifier = xr.DataTree.from_dict(
        {name: child.to_dataset() for name, child in verifier.children.items() if name != "references"}
    )
    lie = {"awq": "marlin"}
    sections = [
        environment_validation(producers, verifier, {**{label: label for label in NOISE}, **lie}),
        verify(producers, verifier, claims=lie),
        crossing(producers, verifier),
        attribution(producers, verifier, draws=20),
    ]
    given = Facts(Path("/sweeps/one"), list(NOISE), [], {})
    return {
        "txt": text.render(given, verifier, sections, []),
        "html": html.render(given, verifier, sections, Figures(), []),
        "md": markdown.render(given, verifier, sections, []),
    }


def judged_part(forms: dict[str, str]) -> dict[str, str]:
    """What the pages say of transcripts; the text has it in the same order, with other parts between."""
    page = forms["md"]
    start = page.index("## Environment validation")
    return {**forms, "md": page[start : page.index("\n## ", page.index("## Which of N"))]}


def sentences(page: str) -> list[str]:
    """Every paragraph of Markdown that is neither a table nor a title, without escapes."""
    lines = [line for line in page.splitlines() if line and line[0] not in "|#*"]
    return [re.sub(r"\\(.)", r"\1", line) for line in lines]


def test_every_number_about_transcripts_is_the_same_in_text_page_and_markdown(forms):
    found, agreed = differences(judged_part(forms), "Environment validation")
    assert found == [] and agreed > 300
    assert {"Claims at level 5%", "Rows that are bit-equal in decode"} <= {
        caption[: len(start)]
        for caption, _ in tables_of_markdown(forms["md"])
        for start in ("Claims at level 5%", "Rows that are bit-equal in decode")
    }


def test_every_sentence_about_transcripts_is_the_same_in_text_page_and_markdown(forms):
    shown = {
        "txt": " ".join(forms["txt"].split()),
        "html": " ".join(unescape(re.sub(r"<[a-z/!][^>]*>", " ", forms["html"])).split()),
    }
    told = [" ".join(line.split()) for line in sentences(judged_part(forms)["md"])]
    assert [(name, line) for line in told for name, page in shown.items() if line not in page] == []
    assert any(line.startswith("awq as marlin: OTHER CONFIG (rows). Every row is bit-equal") for line in told)
    assert sum("p = 1 against the config's own 3 repeats here" in line for line in told) == 2


@pytest.mark.parametrize("name", FORMS)
def test_a_number_about_transcripts_that_one_of_the_three_writes_otherwise_is_found(forms, name):
    assert "300 of 300" in forms[name]
    changed = {**forms, name: forms[name].replace("300 of 300", "77 of 300")}
    assert differences(judged_part(changed), "Environment validation")[0]


def test_no_part_of_a_verifiers_page_has_columns_of_spaces(forms):
    body = forms["html"]
    part = body[body.index('id="verify"') : body.index('id="configs"')]
    assert "<pre" not in part and part.count("<table>") >= 14
    assert "```" not in judged_part(forms)["md"]


def test_environment_names_what_differs_and_whose():
    producers, verifier = trees(NOISE, verifier_facts={"sm_count": 114, "backend_version": "2"})
    kernels = {
        "observed_kernel": ("config", ["x", "y", "z"]),
        "backend_kv_cache_dtype": ("config", ["auto", "auto", "fp8"]),
    }
    decode = producers["decode"].to_dataset().assign_coords(kernels)
    own = {k: v.to_dataset() for k, v in producers.children.items()} | {"decode": decode}
    replay = (
        verifier["replay"]
        .to_dataset()
        .assign_coords(
            observed_kernel=("config", ["x", "m", "z"]),
            backend_kv_cache_dtype=("config", ["auto", "fp8", "fp8"]),
        )
    )
    here = {k: v.to_dataset() for k, v in verifier.children.items()} | {"replay": replay}
    claims = {label: label for label in NOISE}
    section = environment_validation(xr.DataTree.from_dict(own), xr.DataTree.from_dict(here), claims)
    told = words(section)
    assert "✗ engine version 1; here 2" in told
    assert "✓ kernel x, z (awq, g<b>ptq)" in told
    assert "✗ kernel y; here m (marlin)" in told
    assert "✗ kv-cache dtype auto; here fp8 (marlin)" in told
    assert "→ SMs 132; here 114" in told
    assert "✓ dtype float32" in told
    assert not bool(section.result["agrees"].sel(producer="awq", fact="sm_count"))
