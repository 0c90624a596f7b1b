"""A sweep is logged to a real MLflow store, and a store that cannot be reached takes no result away."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import qdx
from qdx.errors import QdxError
from qdx.report import build
from qdx.sweep import callback, tracking
from tests.helpers import write_sweep

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_sweep(tmp_path_factory.mktemp("tracking") / "s", ["awq", "gptq"], repeats=2)
    build(made, console=False, trust=True, formats=["txt"])
    return made


@pytest.fixture(autouse=True)
def nothing_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "_afterwards", [])


def numbers(summary: Any, path: str) -> float:
    for key in path.split("/"):
        summary = summary[key]
    return float(summary)


def test_every_metric_is_a_number_of_the_summary(folder: Path) -> None:
    analyses = json.loads((folder / "summary.json").read_text())["analyses"]
    with qdx.open(folder / "sweep.nc", trust=True) as tree:
        of_sweep, of_configs = tracking.metrics(tree)
    assert set(of_configs) == {"awq", "gptq"} and len(of_configs["awq"]) > 50
    assert of_configs["awq"]["effects.mean/l2/replay/content/gptq"] == numbers(
        analyses, "effects/mean/l2/replay/content/awq/gptq"
    )
    assert of_configs["gptq"]["noise_floor.mean/l2/replay/content"] == numbers(
        analyses, "noise_floor/mean/l2/replay/content/gptq"
    )
    assert of_sweep["effects.off_diagonal_mean/kl/prefill/content"] == numbers(
        analyses, "effects/off_diagonal_mean/kl/prefill/content"
    )
    assert not any("/awq/" in f"{key}/" for key in of_configs["awq"] if key.startswith("effects"))
    assert not any("ref_0" in key for key in (*of_sweep, *of_configs["awq"]))


def test_names_are_what_mlflow_takes_and_never_alike() -> None:
    taken: dict[str, str] = {}
    raw = ["a.b/awq,x=1", "a.b/awq_x_1", "a.b/awq,x=1", "a.b/" + "é" * 400, "a.b/" + "é" * 401, "\x1b[2J"]
    names = [tracking._key(one, taken) for one in raw]
    assert names[0] == names[2] and len(set(names)) == 5
    for name in names:
        assert len(name) <= 250 and name.isascii() and name.isprintable()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///{}", "cannot be a file"),
        ("sqlite:///{}/none/a.db", "cannot be a file"),
        ("http://127.0.0.1:1", ""),
    ],
)
def test_an_address_that_cannot_be_used_ends_the_sweep_before_it_starts(
    uri: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = uri.format(tmp_path)
    with pytest.raises(SystemExit) as ended:
        tracking.MLflow(address).on_multirun_start(None)  # type: ignore[arg-type]
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.startswith(f"qdx: error: MLflow at {address}: ")
    assert said in printed and printed.count("\n") == 1
    assert callback._afterwards == []


def test_passwords_are_not_shown() -> None:
    with pytest.raises(QdxError) as said, tracking._told("https://me:secret@host:5000/x"):
        raise RuntimeError("no\nsecond line")
    assert str(said.value) == "MLflow at https://host:5000/x: no"


def test_without_mlflow_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(QdxError, match=r"pip install 'qdx\[mlflow\]'"):
        tracking.log(folder)


def test_what_fails_afterwards_is_said_and_takes_the_place_of_success_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Built:
        failed: dict[str, str] = {}  # noqa: RUF012
        missing: list[str] = []  # noqa: RUF012
        verdict_status = 0

    monkeypatch.setattr("qdx.report.build", lambda *_, **__: Built)

    def fails(_: Path) -> None:
        raise QdxError("the store is gone")

    callback.finish(folder, {})
    callback.when_reported(fails)
    for status, expected in ((0, 1), (3, 3), (4, 4)):
        Built.verdict_status = status
        with pytest.raises(SystemExit) as ended:
            callback.finish(folder, {})
        assert ended.value.code == expected
        assert "qdx: error: the store is gone" in capsys.readouterr().err


@pytest.mark.slow  # MLflow makes its tables in seconds on a quiet disk, in a minute on a busy one
def test_a_sweep_is_in_the_store_with_a_run_for_each_config_and_its_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    chosen = tracking.MLflow(uri, "trial", ["summary.json", "report.txt", "not there"])
    chosen.on_multirun_start(None)  # type: ignore[arg-type]
    (step,) = callback._afterwards
    step(folder)
    assert "logged to MLflow: experiment trial, run " in capsys.readouterr().out
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    (parent,) = parents
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {"awq", "gptq"} and parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    with qdx.open(folder / "sweep.nc", trust=True) as tree:
        of_sweep, of_configs = tracking.metrics(tree)
    assert parent.data.metrics == pytest.approx(of_sweep)
    assert children["gptq"].data.metrics == pytest.approx(of_configs["gptq"])
    assert children["gptq"].data.params["observed_kernel"] == "model:exllama"
    assert parent.data.tags["qdx.simulated"] == "true"
    there = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert there == {"summary.json", "report.txt"}
