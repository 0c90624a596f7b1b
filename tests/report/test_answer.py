"""What the terminal shows at the end of a sweep: the answer on one screen, whatever went wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qdx.analysis.view import View
from qdx.errors import QdxError
from qdx.report import build
from qdx.report.answer import MOST_LINES, answer
from qdx.report.state import Facts
from qdx.verification import verify
from tests.analysis.replaying import trees
from tests.helpers import write_sweep
from tests.report.test_html import LABELS, STEPS, tree_of

TEXT = (Path("/sweeps/one/report.txt"), 1000)


def facts(labels: list[str], **given) -> Facts:
    return Facts(Path("/sweeps/one"), labels, given.pop("missing", []), given.pop("failed", {}), **given)


@pytest.mark.slow
def test_a_finished_sweep_prints_its_answer_and_the_file_has_everything(tmp_path, capsys):
    folder = write_sweep(tmp_path / "sweep")
    report = build(folder)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= MOST_LINES and len(report.text.splitlines()) > 2 * MOST_LINES
    assert "4 configs of 2 formats: 4 kernel classes in every phase" in shown
    mean = report.summary["analyses"]["effects"]["mean"]["l2"]["replay"]["content"]["awq"]["gptq"]
    matrix = shown[shown.index("l2 [nat] in replay") : shown.index("Pairs by l2")]
    assert f" {mean:.3g}" in matrix and "gptq_marlin" in matrix
    assert "yes in prefill, no in replay and decode" in shown, "gptq does not repeat"
    assert "exact" in shown and "same format, other kernel" in shown
    assert f"Files in {folder}:" in shown and "report.html" in shown
    assert shown.rstrip().splitlines()[-1].startswith("  python -m qdx -m prompts=transcripts ")
    build(folder, shown="full")
    assert capsys.readouterr().out == (folder / "report.txt").read_text(encoding="utf-8")
    with pytest.raises(QdxError, match=r"report.print=all: not one of answer, full"):
        build(folder, shown="all")


@pytest.mark.parametrize("configs", [1, 2, 3, 8, 9, 16])
@pytest.mark.parametrize("failures", [0, 3, 40])
def test_no_sweep_prints_more_than_a_screen(configs, failures):
    labels = (LABELS["sixteen"] if configs > 3 else ["awq", "gptq_marlin", "none"])[:configs]
    tree = tree_of(configs, labels=labels, formats=(["awq", "gptq"] * 8)[:configs])
    sections = [step(tree) for step in STEPS]
    broken = {f"job{i}": "an error of many words " * 9 for i in range(failures)}
    given = facts([*labels, *broken], failed=broken, settings={"resume": "python -m qdx " + "x" * 300})
    files = [(Path("/sweeps/one/sweep.nc"), 1000), (Path("/sweeps/one/report.html"), 1000)]
    shown = answer(given, tree, sections, files)
    lines = shown.splitlines()
    assert len(lines) <= MOST_LINES
    assert all(len(line) <= 110 for line in lines if "python -m qdx" not in line)
    assert shown.count("job") == min(failures, 5) and ("further: report.html" in shown) == (failures > 5)
    assert "report.txt" not in shown, "it was not written"
    assert all(name in shown for name in View(tree).names[: 8 if configs <= 8 else 3])


def test_without_a_finished_run_it_says_what_failed_and_how_to_go_on():
    given = facts(["awq"], failed={"awq": "kernel marlin refuses 576 columns"}, settings={})
    shown = answer(given, None, [], [])
    assert "No run is finished" in shown and "failed   awq: kernel marlin refuses 576 columns" in shown
    assert "INCOMPLETE: 0 of 1 config finished" in shown


@pytest.fixture(scope="module")
def judged():
    producers, verifier = trees({"awq": 0.0, "marlin": 0.05, "gptq": 1.5}, references=40, tokens=4)
    return verifier, verify(producers, verifier)


def test_a_verifiers_sweep_prints_a_verdict_a_claim_with_evidence_p_and_assumptions(judged):
    verifier, section = judged
    given = facts(["awq", "marlin", "gptq"], settings={"arguments": ["prompts=transcripts"]})
    shown = answer(given, verifier, [section], [])
    said = " ".join(shown.split())
    assert said.startswith(section.result.attrs["headline"])
    for producer in ("awq", "marlin", "gptq"):
        one = section.result.sel(producer=producer)
        assert f"{producer}: {str(one['verdict'].item()).upper()} ({one['concerns'].item()})." in said
        assert f"all claims p = {float(one['p_test_holm']):.2g}." in said
    assert "160 of 160 rows bit-equal" in said and "a p assumes that" in said
    assert len(shown.splitlines()) <= MOST_LINES


def test_more_claims_than_fit_a_screen_are_counted(judged):
    verifier, section = judged
    many = section.result.isel(producer=np.arange(60) % 3)
    many = many.assign_coords(producer=[f"prover {i}" for i in range(60)])
    shown = answer(facts([]), verifier, [dataclasses.replace(section, result=many)], [TEXT])
    assert len(shown.splitlines()) <= MOST_LINES
    told = sum(line.startswith("  prover ") for line in shown.splitlines())
    assert told >= 3 and f"… {60 - told} more claims: report.txt" in shown


def test_what_an_error_or_a_label_holds_does_not_reach_the_terminal():
    given = facts(["a"], failed={"a\x1b[2J": "broke\x1b[31m\nSECOND LINE"})
    shown = answer(given, None, [], [])
    assert "\x1b" not in shown and "\nSECOND" not in shown
