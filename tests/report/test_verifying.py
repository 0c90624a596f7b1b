"""The parts of a verifier's report: its figures and tables hold the sections' numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from qdx.document.charts import number
from qdx.document.format import NOT_MEASURED
from qdx.report import tables
from qdx.report.figures import Figures
from qdx.report.parts import verification
from qdx.verification import attribution, crossing, environment_validation, figures, verify
from tests.analysis.replaying import trees

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
    found = tables.attribution(section.result)
    assert len(found) == 1 and "identity and no error rate" in found[0].caption
    assert [sum(map(int, row[1:])) for row in found[0].rows] == [9, 9, 9]


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
    rows = tables.claims(judged["verify"].result).rows
    assert [row[2] for row in rows] == judged["verify"].result["verdict"].values.tolist()
    assert rows[0][2] == "confirmed"
    equal = tables.crossing(judged["crossing"].result)[-1].rows
    assert equal[0] == ["awq", "400 of 400", "0 of 400", "0 of 400"]
    answers, refuted, by_tokens = tables.attribution(judged["attribution"].result)
    assert [row[0] for row in answers.rows] == list(NOISE)
    assert sum(int(cell) for cell in answers.rows[0][1:-2]) == 50, "half of 100 references are judged"
    assert refuted.rows[0][1].startswith("0 of 50 (0% to 7.1%)"), "rows that are all equal are no false alarm"
    assert refuted.rows[0][2].startswith("50 of 50 (92.9% to 100%)")
    assert "tokens alone" in by_tokens.caption


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
    text = " ".join(section.text[""].split())
    assert "✗ engine version 1; here 2" in text
    assert "✓ kernel x, z (awq, g<b>ptq)" in text
    assert "✗ kernel y; here m (marlin)" in text
    assert "✗ kv-cache dtype auto; here fp8 (marlin)" in text
    assert "→ SMs 132; here 114" in text
    assert "✓ dtype float32" in text
    assert not bool(section.result["agrees"].sel(producer="awq", fact="sm_count"))
