"""What qdx's commands and analyses make of an import: they work, or say in one line what the file lacks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qdx
from qdx import analysis
from qdx.errors import QdxError
from qdx.kernel_names import another_kernel, pair_type
from qdx.legacy import convert
from qdx.report.__main__ import main
from qdx.verification import attribution_by_distance
from qdx.verification.by_distance import name_by_distance
from tests import sweeping
from tests.legacy import files


@pytest.fixture(scope="module")
def imports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imports")
    for form, make in files.FORMS.items():
        (folder / f"{form}.json").write_text(json.dumps(make()), encoding="utf-8")
        convert(folder / f"{form}.json", folder / f"{form}.nc")
    return folder


def command(module: str, *words: object):
    return sweeping.qdx(*map(str, words), cwd=Path.cwd(), module=module)


@pytest.mark.parametrize("form", files.FORMS)
def test_report_prints_what_there_is_and_names_what_is_missing(imports, form, capsys):
    assert main([str(imports / f"{form}.nc")]) == 0
    done = capsys.readouterr()
    printed = " ".join(done.out.split())  # lines are wrapped
    assert "0 differing" in printed
    assert "Not available from this file" in printed
    assert "nan" not in printed
    if form in (
        "generations",
        "batch_measurements_vllm",
        "batch_measurements_transformers",
        "tp_measurements",
    ):
        assert "noise_floor, classes, snr: /prefill has no row_hash" in printed
        assert "Prefill effects" in printed
    else:
        assert "classes, snr: nothing to analyse: none of the groups /prefill, /replay, /decode" in printed
    if "verification" in form and form != "attention_verification":
        assert "Two machines, seed_l2, prefill" in printed
    if form == "verification":
        assert "gpu name NVIDIA A100 NVIDIA H100 differs" in printed


def test_report_of_a_folder_with_an_import_and_of_another_file(imports, tmp_path, capsys):
    (tmp_path / "sweep.nc").write_bytes((imports / "verification.nc").read_bytes())
    assert "Two machines" in command("qdx.report", tmp_path).stdout
    (tmp_path / "other.nc").write_text("x")
    for words, said in (
        ([str(tmp_path), "--formats", "html"], "is an import: its report is printed as text"),
        ([str(tmp_path / "other.nc")], "other.nc"),
        ([str(tmp_path / "absent")], "absent"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_report_claims_nothing_of_kernels_that_the_file_does_not_state(imports, capsys):
    """The file has requested kernels only: two of them were printed as the same kernel."""
    assert main([str(imports / "generations.nc")]) == 0
    text = capsys.readouterr().out
    assert "same format, kernel not observed" in text
    assert "same kernel" not in text and "loaded another kernel" not in text
    assert main([str(imports / "tp_measurements.nc")]) == 0
    assert "format not stated" in capsys.readouterr().out
    assert pair_type("awq", "awq", "", "marlin") == "same format, kernel not observed"
    assert pair_type("", "awq", "a", "a") == "format not stated"
    assert not another_kernel("marlin", "")


@pytest.mark.parametrize("form", files.FORMS)
@pytest.mark.parametrize("name", ["noise_floor", "snr", "classes", "consistency", "effects", "pairs", "cost"])
def test_every_analysis_works_or_says_in_one_line_why_not(imports, form, name):
    with qdx.open(imports / f"{form}.nc") as tree:
        try:
            section = getattr(analysis, name)(tree)
        except QdxError as error:
            assert "\n" not in str(error)
            assert name != "pairs" or "prefill" not in tree.children
        else:
            assert section.name == name


@pytest.mark.parametrize("form", files.FORMS)
def test_an_import_cannot_be_replayed_and_that_is_said(imports, form, tmp_path):
    from qdx.prompts._transcript_file import read

    with pytest.raises(
        QdxError, match="an import of the original experiment's file: it lacks the size of the voc"
    ):
        read(imports / f"{form}.nc")


def test_transcripts_of_an_import_are_refused_by_the_command_in_one_line(imports, tmp_path):
    file = f"prompts.path={imports / 'generations.nc'}"
    done = sweeping.qdx("-m", "prompts=transcripts", file, "quant=awq", "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode != 0
    assert "it lacks the size of the vocabulary" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_kernels_prints_the_same_counts_as_the_analysis(imports):
    done = command("qdx.legacy", "--kernels", imports / "verification.json")
    assert done.returncode == 0
    with qdx.open(imports / "verification.nc") as tree:
        for phase in ("prefill", "decode"):
            result = attribution_by_distance(tree, "seed_l2", phase).result
            for name, way in (("likeliest", "by likelihood"), ("nearest", "by least distance")):
                right = int(result[f"{name}_right"].sum())
                assert f"{phase}, named {way}: {right} of 16 right" in done.stdout
    # gptq lies further from its own replay than from gptq_marlin's: only the likelihood allows for its noise.
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  gptq ")]
    assert " ".join(rows[0]) == "gptq 4 of 4 0 of 4 4 of 4 0 of 4"


def test_kernels_refuses_what_compares_no_two_machines(imports):
    done = command("qdx.legacy", "--kernels", imports / "generations.json")
    assert done.returncode == 2
    assert "it compares configs of one machine" in done.stderr


def test_likelihood_names_a_noisy_config_that_the_least_distance_never_names():
    """Simulated: b is ten times as noisy as a, and both are as far from each other as b's noise."""
    generator = np.random.default_rng(0)
    scale = np.array([[1.0, 10.0], [10.0, 10.0]])
    distance = np.abs(generator.normal(size=(2, 2, 200))) * scale[:, :, None]
    named = name_by_distance(distance, ["a", "b"], ["a", "b"])
    likely = (named.likeliest_DR == np.array([[0], [1]])).mean(-1)
    near = (named.nearest_DR == np.array([[0], [1]])).mean(-1)
    assert (
        likely[0] > 0.9 and likely[1] > 0.8
    )  # P(|N| > threshold of the likelihood ratio) is 0.83 at most here
    assert near[1] < 0.6


def test_likelihood_is_at_chance_where_labels_say_nothing():
    """Both configs have one scale: which is the likelier is a coin, whatever the labels."""
    generator = np.random.default_rng(1)
    distance = np.abs(generator.normal(size=(2, 2, 2000)))
    named = name_by_distance(distance, ["a", "b"], ["a", "b"])
    right = (named.likeliest_DR == np.array([[0], [1]])).mean()
    assert abs(right - 0.5) < 0.03


def test_a_transcripts_own_reference_is_not_in_its_calibration():
    """One reference of c is far off: with it in the calibration it would be likely, without it is not."""
    distance = np.array([[[0.1] * 9 + [5.0], [1.0] * 9 + [5.1]], [[1.0] * 10, [1.0] * 10]])
    named = name_by_distance(distance, ["a", "b"], ["a", "b"])
    assert named.likeliest_DR[0].tolist() == [0] * 9 + [1]
    assert np.isnan(name_by_distance(np.full((1, 2, 3), np.nan), ["a"], ["a", "b"]).log_likelihood_DCR).all()
