"""The report of real files: sections in order, the numbers of the files, and what is missing said first."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.analysis.view import View
from qdx.errors import QdxError
from qdx.report import build, markdown
from qdx.report.__main__ import main
from qdx.report.build import show
from qdx.report.state import Facts, next_command
from qdx.report.text import generation, prompts, render
from tests.helpers import write_sweep
from tests.synthetic import blank, sweep

ANALYSES = {"noise_floor", "consistency", "effects", "classes", "pairs", "snr", "cost"}
SECTIONS = [
    "Environment",
    "Configurations",
    "Prompts",
    "Reproducibility check",
    "Generation",
    "Token consistency",
    "Prefill effects",
    "Decode effects",
    "Signal to noise",
    "Cost of quantization",
    "Results",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep folder of four configs, not merged yet."""
    return write_sweep(tmp_path_factory.mktemp("finished") / "2026-01-31_12-00-00")


@pytest.fixture(scope="module")
def built(finished):
    return build(finished, console=False)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the unmerged folder, to break."""
    copy = tmp_path / "sweep"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("sweep.nc", "report.*", "summary.json"))
    settings(copy, metrics={"top1": {"_target_": "qdx.metrics.top1"}})
    return copy


CLASSES = {"classes": {"_target_": "qdx.analysis.classes"}}


def headings(text: str) -> list[str]:
    lines = text.splitlines()
    return [a for a, b in pairwise(lines) if b and set(b) == {"─"}]


def settings(folder: Path, **changes: object) -> None:
    path = folder / "sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_sections_come_in_the_order_of_the_original_report(built):
    assert headings(built.text) == SECTIONS


def test_no_line_is_wider_than_110_columns_but_paths_and_commands(built, finished):
    long = [line for line in built.text.splitlines() if len(line) > 110]
    assert all(str(finished) in line for line in long), long


def test_simulated_kernels_are_said_before_anything_else(built):
    before = built.text[: built.text.index("Environment")]
    assert "SIMULATED KERNELS" in before and "not by the real kernels" in " ".join(before.split())
    assert built.summary["simulated"] == ["awq", "awq_marlin", "gptq", "gptq_marlin"]


def test_what_was_given_is_printed(built):
    text = built.text
    assert "3 prefix + 12 snippet + 2 suffix = 17 tokens" in text and "from source token 100" in text
    assert "model:awq_gemm" in text and "exllama" in text
    assert "does not repeat: 6 of 6 reruns mismatch" in text  # gptq, replay
    assert "gptq does not repeat: a class by itself" in " ".join(text.split())
    assert "same format, other kernel" in text and "other format, other kernel" in text
    for formula in ("√ Σ_v (ln p_v − ln q_v)²", "Σ_v p_v (ln p_v − ln q_v)", "argmax_v p_v ≠ argmax_v q_v"):
        assert text.count(formula) == 1, "a formula stands at its metric's first matrix"


def test_matrices_hold_the_distances_that_the_file_holds(built, finished):
    values = xr.open_dataset(finished / "sweep.nc", group="metrics/l2/replay")["l2"]
    by_hand = float(values.sel(config="awq", config_b="gptq").mean("position", skipna=True).mean("reference"))
    stored = xr.open_dataset(finished / "sweep.nc", group="analysis/effects")["mean"]
    key = {"metric": "l2", "phase": "replay", "region": "content", "config": "awq", "config_b": "gptq"}
    assert float(stored.sel(key)) == pytest.approx(by_hand)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["analyses"]["effects"]["mean"]["l2"]["replay"]["content"]["awq"]["gptq"] == pytest.approx(
        by_hand
    )
    decode = built.text[built.text.index("Decode effects") :]
    assert 1 < by_hand < 100 and f" {by_hand:.3g}" in decode  # three digits, as a person writes them


def test_sizes_and_paths_are_those_on_disk(built, finished):
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("sweep.nc", "report.txt", "summary.json"):
        on_disk = (finished / name).stat().st_size if name != "summary.json" else None
        assert summary["files"][name] == {"path": str(finished / name), "bytes": on_disk}
        assert str(finished / name) in built.text
    assert summary["runs"]["awq"]["bytes"] == (finished / "awq/run.nc").stat().st_size
    assert (finished / "report.txt").read_text(encoding="utf-8") == built.text


def test_the_summary_is_strict_json_with_sorted_keys(built, finished):
    content = (finished / "summary.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads(content, parse_constant=refuse)
    assert summary == json.loads(json.dumps(built.summary))
    assert list(summary) == sorted(summary) and summary["schema_version"] == 2
    assert list(summary["analyses"]) == sorted(
        ["noise_floor", "consistency", "effects", "classes", "pairs", "snr", "cost"]
    )
    assert summary["analyses"]["classes"]["repeats"]["replay"]["gptq"] == "does not repeat"
    assert summary["analyses"]["noise_floor"]["mismatch_bound"]["gptq"]["replay"] is None
    assert summary["metrics"]["l2"]["units"] == "nat"


def test_the_sweep_file_opens_and_holds_every_analysis(built, finished):
    tree = qdx.open(finished / "sweep.nc")
    assert set(tree["analysis"].children) == {
        "noise_floor",
        "consistency",
        "effects",
        "classes",
        "pairs",
        "snr",
        "cost",
    }
    assert tree["analysis/snr/ratio"].attrs["units"] == "1"
    assert not list(finished.glob("*.part"))


def test_failed_and_missing_jobs_come_first_and_the_others_are_analysed(folder):
    shutil.rmtree(folder / "gptq")
    (folder / "awq_marlin/run.nc").unlink()
    status = {"status": "failed", "error": "kernel marlin refuses 576 columns", "traceback": "…"}
    (folder / "awq_marlin/status.json").write_text(json.dumps(status))
    settings(folder, resume="python -m qdx -m quant=awq,awq_marlin,gptq,gptq_marlin hydra.sweep.dir=x")
    report = build(folder, console=False)
    top = report.text[: report.text.index("Environment")]
    assert "INCOMPLETE: 2 of 4 configs finished" in top
    assert "failed   awq_marlin: kernel marlin refuses 576 columns" in top and "missing  gptq" in top
    assert (
        "python -m qdx -m quant=awq,awq_marlin,gptq,gptq_marlin " in top
        and f"hydra.sweep.dir={folder}" in top
    )
    assert report.failed == {"awq_marlin": "kernel marlin refuses 576 columns"} and report.missing == ["gptq"]
    assert headings(report.text) == SECTIONS
    assert list(xr.open_dataset(folder / "sweep.nc", group="replay")["config"].values) == [
        "awq",
        "gptq_marlin",
    ]
    assert report.summary["labels"]["missing"] == ["gptq"]


def test_without_a_finished_run_there_is_a_report_and_no_sweep_file(folder):
    for label in ("awq", "awq_marlin", "gptq", "gptq_marlin"):
        (folder / label / "run.nc").unlink()
        (folder / label / "status.json").write_text(
            json.dumps({"status": "failed", "error": f"{label} broke"})
        )
    report = build(folder, console=False)
    assert not (folder / "sweep.nc").exists() and "sweep.nc" not in report.paths
    assert "No run is finished" in report.text and headings(report.text) == ["Results"]
    assert "earlier report" not in report.text
    (folder / "sweep.nc").write_bytes(b"of an earlier sweep")
    again = build(folder, console=False, trust=True)
    assert "sweep.nc is what an earlier report merged" in again.text
    assert (folder / "sweep.nc").exists()
    assert "failed   gptq_marlin: gptq_marlin broke" in report.text
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["labels"]["failed"]) == 4 and summary["analyses"] == {}
    assert summary["files"]["report.txt"]["bytes"] == (folder / "report.txt").stat().st_size


def test_deleted_runs_do_not_cost_the_report_of_them(folder):
    build(folder, analyses=CLASSES, console=False)
    before = {name: (folder / name).read_bytes() for name in ("sweep.nc", "report.txt", "summary.json")}
    for run in folder.glob("*/run.nc"):
        run.unlink()
    with pytest.raises(QdxError, match=r"holds sweep\.nc but no run to merge again"):
        build(folder, console=False)
    assert before == {name: (folder / name).read_bytes() for name in before}


@pytest.mark.parametrize(("labels", "options"), [(["awq"], {"repeats": 1}), (["gptq", "awq"], {})], ids=str)
@pytest.mark.slow
def test_small_sweeps(tmp_path, labels, options):
    report = build(write_sweep(tmp_path / "s", labels, **options), console=False)
    assert headings(report.text) == SECTIONS
    assert not report.failed
    assert "nan" not in report.text.lower().replace(str(tmp_path), "")


@pytest.mark.slow
def test_top_k_sweeps_say_that_rows_were_coarsened(tmp_path):
    report = build(write_sweep(tmp_path / "s", ["awq", "gptq"], mode="topk"), console=False)
    assert "rows measured on shared top ids and one bucket for all others" in report.text
    assert "lower bound" in report.text and not report.failed


def test_chosen_metrics_and_analyses_are_taken_from_the_sweep_in_its_order(folder):
    settings(
        folder,
        metrics={"top1": {"_target_": "qdx.metrics.top1"}, "l2": {"_target_": "qdx.metrics.l2"}},
        analyses={"effects": {"_target_": "qdx.analysis.effects", "references_shown": 1}},
    )
    report = build(folder, console=False)
    assert list(report.summary["metrics"]) == ["top1", "l2"], (
        "the first is the one with matrices of references"
    )
    assert list(report.summary["analyses"]) == ["effects"]
    assert "Reproducibility check" not in report.text and "2 more references" in report.text


def test_an_analysis_that_raises_is_named_and_takes_nothing_with_it(folder, capsys):
    nodes = {
        "broken": {"_target_": f"{__name__}.broken"},
        "classes": {"_target_": "qdx.analysis.classes"},
        "words": {"_target_": f"{__name__}.words"},
    }
    report = build(folder, analyses=nodes, console=False)
    assert "ANALYSIS FAILED  broken: ZeroDivisionError: no luck" in report.text
    assert report.failed == {"broken": "ZeroDivisionError: no luck"}
    assert "Kernel equivalence classes" in report.text
    assert headings(report.text)[-2:] == ["Words of its own", "Results"] and "forty-two" in report.text
    assert report.summary["analyses"]["words"] == {"answer": 42.0, "gap": None}
    assert "no luck" in capsys.readouterr().err


@qdx.register("analysis", "broken")
def broken(tree):
    raise ZeroDivisionError("no luck")


@qdx.register("analysis", "words")
def words(tree):
    from qdx.analysis import Section

    return Section(
        "words", "Words of its own", xr.Dataset({"answer": 42.0, "gap": np.nan}), {"": "  forty-two"}
    )


METRICS = {"l2": {"_target_": "qdx.metrics.l2"}, "bad": {"_target_": f"{__name__}.bad"}}


@qdx.register("metric", "bad")
def bad(p, q):
    raise ZeroDivisionError("no distance")


def test_a_metric_that_raises_is_named_and_takes_nothing_with_it(folder):
    assert "metric bad" in build(folder, metrics=METRICS, console=False).failed
    written = (folder / "report.txt").read_text(encoding="utf-8")
    top = " ".join(written[: written.index("Environment")].split())
    assert "METRIC FAILED bad: metric 'bad' raised ZeroDivisionError: no distance" in top
    assert headings(written) == SECTIONS and "√ Σ_v (ln p_v − ln q_v)²" in written
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["metrics"]) == ["l2"] and set(summary["analyses"]) == ANALYSES
    assert list(summary["metrics_failed"]) == ["bad"] and not summary["analyses_failed"]
    assert "METRIC FAILED" in (folder / "report.html").read_text(encoding="utf-8")
    assert list(qdx.open(folder / "sweep.nc")["metrics"].children) == ["l2"]
    report = build(folder, metrics={"bad": METRICS["bad"]}, analyses=CLASSES, formats=["md"], console=False)
    assert list(report.failed) == ["metric bad"] and "Kernel equivalence classes" in report.text
    assert "METRIC FAILED" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "lost"),
    [
        ("qdx.report.html.render", ["report.html"]),
        pytest.param("qdx.report.markdown.table", ["report.md"], marks=pytest.mark.slow),
        ("qdx.report.figures.collect", ["figures", "report.html"]),
    ],
)
def test_a_page_that_cannot_be_made_is_named_and_takes_nothing_with_it(folder, monkeypatch, what, lost):
    def stumble(*_args, **_options):
        raise ZeroDivisionError("no page")

    settings(folder, analyses=CLASSES)
    monkeypatch.setattr(what, stumble)
    assert main([str(folder), "--formats", "html,md,txt"]) == 1
    text = (folder / "report.txt").read_text(encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["files_failed"]) == lost and (folder / "sweep.nc").exists()
    for name in lost:
        assert f"NOT WRITTEN  {name}: ZeroDivisionError: no page" in text
    for name in ("report.html", "report.md", "report.txt"):
        assert (folder / name).exists() == (name in summary["files"]) == (name not in lost)
        if name not in lost:
            assert summary["files"][name]["bytes"] == (folder / name).stat().st_size
            assert "NOT WRITTEN" in (folder / name).read_text(encoding="utf-8")


def test_no_metric_and_no_analysis_are_not_the_default_ones(folder):
    report = build(folder, metrics={}, analyses={}, formats=["txt"], console=False)
    assert report.summary["metrics"] == {} and report.summary["analyses"] == {} and not report.failed
    settings(folder, metrics={})
    again = build(folder, analyses=CLASSES, formats=["txt"], console=False)
    assert again.summary["metrics"] == {} and list(again.summary["analyses"]) == ["classes"]


def test_a_generated_control_character_does_not_reach_the_terminal():
    rows = blank(references=1)
    tree = sweep(rows)
    said = "two\x1b]0;owned\x07 \x9b2J\u202etfel 👩\u200d🔬 é"
    tree["output"]["text"].values[:] = said
    clean = "two�]0;owned� �2J�tfel 👩\u200d🔬 é"
    assert clean in generation(View(tree))
    facts = Facts(Path("s\x1b[2J"), ["c0", "c1"], [], {"c1": "broke\x1b[31m"}, {}, {})
    report = render(facts, tree, [], [])
    assert clean in report and "broke�[31m" in report and "\x1b" not in report and "\n" in report
    page = markdown.render(facts, tree, [], [])
    assert clean in page and "\x1b" not in page


def test_one_page_is_a_page():
    tree = sweep(blank(references=2))
    tree["references"]["pages"].values[:] = ["4", "16-17"]
    assert "ref_0  page 4, " in prompts(View(tree)) and "ref_1  pages 16-17, " in prompts(View(tree))


def test_an_interrupted_merge_leaves_the_earlier_files(folder, monkeypatch):
    build(folder, analyses=CLASSES, console=False)
    before = (folder / "sweep.nc").read_bytes()

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("qdx.distances.measure.compute", stop)
    with pytest.raises(KeyboardInterrupt):
        build(folder, console=False)
    assert (folder / "sweep.nc").read_bytes() == before and not list(folder.glob("*.part"))


def test_the_next_command_replays_this_sweep_and_leaves_prompts_to_the_file(folder):
    started = [
        "-m", "quant=awq,gptq", "repeats=2", "prompts=text", "prompts.path=a.txt", "generate.tokens=8",
        "batch_size=4", "metric=[l2,kl]", "model=local", "model.checkpoint.awq='/a b'",
    ]  # fmt: skip
    settings(folder, arguments=started, resume="python -m qdx resume")
    text = build(folder, analyses=CLASSES, console=False).text
    last = text.rstrip().splitlines()[-1].strip()
    assert shlex.split(last) == [
        "python", "-m", "qdx", "-m", "prompts=transcripts", "prompts.path=sweep.nc",
        "quant=awq,gptq", "metric=[l2,kl]", "model=local", "model.checkpoint.awq='/a b'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "labels", "expected"),
    [
        # labels of a swept batch size are what the claims name
        (["-m", "batch_size=1,4"], ["awq,batch_size=1", "awq,batch_size=4"], "quant=awq batch_size=1,4"),
        ([], ["awq", "gptq"], "quant=awq,gptq"),
    ],
)
def test_the_next_command_names_the_configs_that_ran(folder, arguments, labels, expected):
    facts = Facts(folder, labels, [], {}, {}, {"arguments": arguments})
    start = "python -m qdx -m prompts=transcripts prompts.path=sweep.nc "
    assert next_command(facts, labels)[1] == start + expected


def test_a_verifiers_sweep_has_no_next_command(folder):
    facts = Facts(folder, ["awq"], [], {}, {}, {"arguments": ["-m", "prompts=transcripts", "quant=awq"]})
    assert next_command(facts, ["awq"]) == ("", "")


@pytest.mark.slow
def test_the_command_line_redoes_everything(folder):
    command = [sys.executable, "-m", "qdx.report", str(folder), "--print", "full"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert headings(done.stdout) == SECTIONS
    assert done.stdout == (folder / "report.txt").read_text(encoding="utf-8")
    again = json.loads((folder / "summary.json").read_text())["analyses"]
    (folder / "gptq/run.nc").unlink()
    assert main([str(folder)]) == 1
    fewer = json.loads((folder / "summary.json").read_text())["analyses"]
    assert set(fewer) == set(again) == ANALYSES
    assert (
        "gptq" in again["classes"]["repeats"]["replay"]
        and "gptq" not in fewer["classes"]["repeats"]["replay"]
    )


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_is_no_sweep_is_one_line_and_status_2(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == "" and captured.err.startswith("qdx: error: ") and len(captured.err.splitlines()) == 1
    )
    with pytest.raises(QdxError):
        build(tmp_path / name, console=False)


def test_a_terminal_without_the_characters_still_gets_the_report(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", screen)
    show("Prefill effects\n─ √ Σ …\n")
    assert screen.buffer.getvalue() == b"Prefill effects\n- sqrt S ...\n"
