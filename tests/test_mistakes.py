"""What a new user gets wrong first, and the one line that says so: what, got, limit, remedy. Nothing runs.

`test_config.py` has the types and limits of every key, `tests/prompts` the broken documents.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import netCDF4
import pytest

import qdx as package
from qdx.errors import QdxError
from tests import tiny
from tests.slowly import slow_but
from tests.sweeping import SMALL, checkpoints, qdx

# arguments of `python -m qdx`, what the line must say (the wrong value), what it must offer (the remedy)
COMMAND_LINES = {
    "a group that does not exist": (["promt=pdf"], "promt: unknown key", "did you mean 'prompts'"),
    "a group below hydra that is not installed": (
        ["hydra/sweeper=optuna"],
        "hydra/sweeper=optuna",
        "install",
    ),
    "a misspelt option": (["model=smolm2"], "model=smolm2", "did you mean 'smollm2'"),
    "a space after the comma": (
        ["-m", "quant=awq,", "awq_marlin"],
        "'quant=awq,'",
        "without spaces after commas",
    ),
    "a value without its key": (["awq"], "'awq' is not an override", "write key=value"),
    "a metric list without brackets": (["-m", "metric=l2,kl"], "metric takes a list", "'metric=[a,b]'"),
    "an unknown metric": (["metric=[cosine]"], "metric=cosine: unknown metric", "total_variation"),
    "an option that a metric lacks": (
        ["metric=[l2]", "+metric.l2.k=3"],
        "metric.l2.k: unknown option",
        "it has none",
    ),
    "the same config twice": (["-m", "repeats=1,2,1"], "two jobs", "drop one"),
    "a bad value in the second job only": (["-m", "batch_size=1,0"], "batch_size=0", "at least 1"),
    "no checkpoint for the format": (["model=local"], "model.checkpoint.awq is empty", "set it to"),
    "a folder that is not there": (
        ["model=local", "model.checkpoint.awq=/no/model"],
        "'/no/model': no such folder",
        "give a checkpoint folder",
    ),
    "a hub id without a network": (
        ["model=local", "model.checkpoint.awq=nobody/nothing-awq"],
        "not to be had from the model hub",
        "choose model=smollm2",
    ),
    "an unknown demo model": (
        ["model=local", "model.checkpoint.awq=demo:smollm2/gguf"],
        "'demo:smollm2/gguf' is unknown",
        "one of demo:smollm2/none",
    ),
    "a PDF that is not there": (
        ["prompts.path=/no/such.pdf"],
        "/no/such.pdf: no such file",
        "check prompts.path",
    ),
    "a folder instead of files": (["prompts.path=/tmp"], "/tmp is a folder", "/tmp/*.pdf"),
    "a text file as a PDF": (["prompts.path=/etc/hostname"], "hostname: not a PDF", "use prompts=text"),
    "text prompts without a path": (["prompts=text"], "prompts.path is not set", "add prompts.path="),
    "transcripts without a path": (["prompts=transcripts"], "prompts.path is not set", "add prompts.path="),
    "a glob that matches nothing": (
        ["prompts=text", "prompts.path='*.nothing'"],
        "no file matches",
        "check prompts.path",
    ),
    "no text in inline prompts": (
        ["prompts=inline", "prompts.texts=[]"],
        "prompts.texts is empty",
        "at least one",
    ),
    "longer snippets than the source": (
        ["prompts.snippet_tokens=9000"],
        "too short",
        "lower prompts.snippet_tokens to at most",
    ),
    "a fraction of a repeat": (["repeats=2.5"], "repeats=2.5", "must be a whole number"),
    "a number in words": (["repeats=three"], "repeats=three", "must be a whole number"),
    "a number left out": (["repeats=null"], "repeats=null", "must be a whole number"),
    "a group left out": (["model=null"], "model=null", "one of local"),
    "a group taken out by a number": (["~model=4"], "~model=4", "write model=local"),
    "no metric, as null": (["-m", "metric=null"], "metric=null", "write 'metric=["),
    "a number for a choice of several": (["-m", "model=smollm2,3"], "model=smollm2,3", "one of local"),
    "a number for what has keys": (["generate=3"], "generate=3", "set one of them instead, generate.tokens="),
    "an option for what has keys": (["report=html"], "report=html", "report.formats="),
    "a mapping of metrics": (["metric={l2: 1}"], "metric.l2=1", "'metric=[l2]'"),
    "a number for a format": (["report.formats=[1]"], "report.formats=1", "not one of txt, html, md"),
    "a format without brackets": (["report.formats=pdf"], "report.formats=pdf", "in brackets"),
    "no format of the report": (["report.formats=[]"], "report.formats=[]", "one of txt, html, md"),
    "a key of nobody's": (["+foo=1"], "foo: unknown key", "one of label, repeats"),
    "a key of another backend": (
        ["backend=transformers", "backend.max_model_len=100"],
        "backend.max_model_len: unknown key, one of sm_count, threads;",
        "only backend=vllm has it",
    ),
    "a key of other prompts": (
        ["prompts.texts=[x]"],
        "prompts.texts: unknown key",
        "only prompts=inline has it",
    ),
    "a key of several other prompts": (
        ["prompts=pydoc", "prompts.path=a"],
        "prompts.path: unknown key",
        "only prompts=challenge or pdf or text or transcripts has it",
    ),
    "an option of a metric that is not chosen": (
        ["metric.topk_overlap.k=5"],
        "metric.topk_overlap: not chosen",
        "'metric=[l2,kl,js,top1,topk_overlap]'",
    ),
    "an option of a metric that there is not": (
        ["metric.l3.k=1"],
        "metric.l3: unknown metric, one of ",
        "did you mean 'l2'",
    ),
    "an option of a misspelt analysis": (
        ["analysis.effect.template=true"],
        "analysis.effect: unknown analysis, one of classes",
        "did you mean 'effects'",
    ),
    "a misspelt key of Hydra's": (["hydra.job.nam=x"], "hydra.job.nam: unknown key", "one of chdir"),
    "a label that is a path": (["label=a/b"], "label='a/b'", "a name without /"),
    "a label outside the sweep": (["label=.."], "label='..'", "leave label out"),
    "an empty label": (["label=''"], "label=''", "leave label out"),
    "a label of null": (["label=null"], "label=null", "must be text"),
    "folders by another name": (["hydra.sweep.subdir=x"], "hydra.sweep.subdir=x", "remove it"),
    "any kernel where one is modelled": (
        ["backend=transformers", "quant.kernel=any"],
        "quant.kernel=any",
        "awq_gemm or marlin or machete, or backend=vllm",
    ),
    "a level above 1": (["analysis.pairs.level=5"], "analysis.pairs.level=5", "above 0 and below 1"),
    "a level of null": (["analysis.cost.level=null"], "analysis.cost.level=", "above 0 and below 1"),
    "fewer draws than none": (["analysis.pairs.draws=-3"], "analysis.pairs.draws=-3", "at least 1"),
    "fewer words than none": (
        ["analysis.consistency.words=-1"],
        "analysis.consistency.words=-1",
        "at least 0",
    ),
    "an unknown phase": (
        ["analysis.snr.phases=[foo]"],
        "analysis.snr.phases=foo",
        "one of prefill, replay, decode",
    ),
    "a baseline that is not in the sweep": (
        ["-m", "quant=none,awq", "analysis.cost.baseline=non"],
        "analysis.cost.baseline=non: no config of this sweep, one of none, awq",
        "did you mean 'none'",
    ),
    "an analysis of a metric that is not measured": (
        ["metric=[l2]", "+analysis.pairs.metrics=[kl]"],
        "analysis.pairs.metrics=kl",
        "add it to metric",
    ),
    "one token, so no decode step": (["generate.tokens=1"], "generate.tokens=1", "at least 2"),
    "a kernel that cannot read the format": (
        ["quant=gptq", "quant.kernel=awq_gemm"],
        "quant.kernel=awq_gemm: not one of",
        "exllama",
    ),
    "a dtype that the kernel does not take": (
        ["-m", "quant=awq_marlin,awq", "model.dtype=bfloat16"],
        "kernel awq_gemm of quant=awq takes float16",
        "set model.dtype",
    ),
    "no metric at all": (["metric=[]"], "metric=[]: choose at least one", "metric=[l2]"),
    "a dtype that numpy has and models do not": (["model.dtype=float64"], "model.dtype=float64", "bfloat16"),
}


EVERY = 8  # of the command lines one of so many runs by default


@pytest.mark.parametrize("mistake", slow_but(list(COMMAND_LINES)[::EVERY], COMMAND_LINES))
def test_the_command_line_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, wrong, remedy = COMMAND_LINES[mistake]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = qdx(*arguments, "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("qdx: error: "), done.stderr
    assert wrong in lines[0] and remedy in lines[0], lines[0]
    assert not list(tmp_path.rglob("run.nc*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "wrong", "remedy"),
    [
        (["prompts.references=1,2"], "must share the references", "sweeps of their own"),
        (["batch_size=1,3"], "batch_size=3 does not divide 2 references", "choose a divisor"),
        (["metric=[topk_overlap]", "capture.k=10"], "metric.topk_overlap.k=20", "capture.k"),
        (["prompts.snippet_tokens=3000"], "the limit of", "lower prompts.snippet_tokens"),
    ],
)
def test_what_would_fail_after_all_runs_stops_before_the_first(
    tmp_path: Path, tiny_models: dict[str, Path], arguments: list[str], wrong: str, remedy: str
) -> None:
    done = qdx("-m", *SMALL, *checkpoints(tiny_models), *arguments, "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("qdx: error: ") and wrong in last and remedy in last, done.stderr
    assert not list(tmp_path.rglob("run.nc*")) and not (tmp_path / "out" / "sweep.json").exists()


@pytest.mark.slow
def test_the_whole_traceback_is_there_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import sweeping

    monkeypatch.setattr(sweeping, "environment", lambda: {**os.environ, "HYDRA_FULL_ERROR": "1"})
    done = qdx("quant=awqq", cwd=tmp_path)
    assert done.returncode != 0 and "Traceback" in done.stderr and "awqq" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_format_is_named(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    done = qdx(*SMALL, *checkpoints(tiny_models | {"awq": tiny_models["gptq"]}), cwd=tmp_path)
    assert done.returncode == 2
    assert "has format 'gptq'" in done.stderr and "choose quant=gptq" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_without_config_is_named(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    (tmp_path / "empty").mkdir()
    done = qdx(*SMALL, *checkpoints(tiny_models | {"awq": tmp_path / "empty"}), cwd=tmp_path)
    assert done.returncode == 2 and "has no config.json" in done.stderr


def test_a_report_of_a_folder_without_a_sweep_is_named(tmp_path: Path) -> None:
    done = qdx(str(tmp_path), cwd=tmp_path, module="qdx.report")
    assert done.returncode == 2
    assert done.stderr.startswith("qdx: error: ") and str(tmp_path) in done.stderr


@pytest.mark.parametrize(("name", "content"), [("no", None), ("text.nc", b"hello"), ("empty.nc", b"")])
def test_opening_what_is_no_result_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(QdxError, match=name):
        package.open(tmp_path / name)


@pytest.mark.parametrize("version", [0, 99])
def test_a_file_of_another_version_says_which_and_what_reads_it(tmp_path: Path, version: int) -> None:
    path = tmp_path / "run.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts({"kind": "run", "schema_version": version, "status": "complete"})
    with pytest.raises(
        QdxError, match=f"schema version {version}, this qdx reads 1 and 2: use the qdx that wrote"
    ):
        package.open(path)


def test_a_disk_that_is_too_small_stops_before_the_first_job(tmp_path: Path) -> None:
    from qdx.dataset.size import check_disk

    with pytest.raises(QdxError, match=r"free there.*capture=topk"):
        check_disk(tmp_path / "not" / "yet", 10**18)


def test_the_messages_of_a_failed_sweep_stay_in_its_folder(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_models["awq"], broken)
    tiny.spoil(broken)
    done = qdx(*SMALL, *checkpoints(tiny_models | {"awq": broken}), "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    said = json.loads((tmp_path / "out" / "awq" / "status.json").read_text())["error"]
    assert "scales" in said and said in done.stderr
    assert said[:60] in (tmp_path / "out" / "report.txt").read_text()
