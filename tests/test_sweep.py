"""The whole program through its command line, on a tiny checkpoint: flow, labels, failure, kill, resume."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import netCDF4
import numpy as np
import pytest

import qdx as package
from tests import tiny
from tests.sweeping import PLAIN, SMALL, checkpoints, environment, qdx
from tests.test_harsh import SYNCHRONISED

CONFIGS = ["awq", "awq_marlin", "gptq", "gptq_marlin"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> tuple[Path, str]:
    """A finished sweep of four configs, run from a folder that is not the project's, and what it printed."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    done = qdx(
        "-m",
        f"quant={','.join(CONFIGS)}",
        *SMALL,
        *checkpoints(tiny_models),
        "hydra.sweep.dir='s w/ö'",
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd / "s w" / "ö", done.stdout


@pytest.mark.slow
def test_a_sweep_from_another_folder_leaves_every_file(sweep: tuple[Path, str]) -> None:
    folder, _ = sweep
    for name in ("sweep.nc", "report.txt", "summary.json", *(f"{config}/run.nc" for config in CONFIGS)):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*.part"))


def test_the_answer_is_printed_on_one_screen_and_says_simulated(sweep: tuple[Path, str]) -> None:
    folder, printed = sweep
    report = (folder / "report.txt").read_text()
    assert "SIMULATED KERNELS" in report.split("Environment")[0]
    answer = printed[printed.rindex("4 configs of 2 formats") :]
    assert "SIMULATED KERNELS" in answer and "yes in prefill, no in replay" in answer
    assert f"Files in {folder}:" in answer and len(answer.splitlines()) <= 40 < len(report.splitlines())


def test_kernels_of_one_checkpoint_are_nearer_than_formats(sweep: tuple[Path, str]) -> None:
    tree = package.open(sweep[0])
    l2 = tree["metrics/l2/replay/l2"].mean(["reference", "position"])
    kernels = max(float(l2.sel(config=c, config_b=f"{c}_marlin")) for c in ("awq", "gptq"))
    formats = min(float(l2.sel(config=a, config_b=g)) for a in CONFIGS[:2] for g in CONFIGS[2:])
    assert 0 < kernels < formats


def test_only_exllama_decode_does_not_repeat(sweep: tuple[Path, str]) -> None:
    tree = package.open(sweep[0])
    for phase in ("prefill", "replay"):
        hashes = tree[phase]["row_hash"]
        differ = (hashes.isel(repeat=0) != hashes.isel(repeat=1)).any(["reference", "position"])
        noisy = {c for c, d in zip(CONFIGS, differ.values.tolist(), strict=True) if d}
        assert noisy == (set() if phase == "prefill" else {"gptq"})


def test_stored_rows_are_float16_values_with_consistent_scalars(sweep: tuple[Path, str]) -> None:
    with netCDF4.Dataset(sweep[0] / "awq" / "run.nc") as file:
        file.set_auto_mask(False)
        group = file["replay"]
        rows = group["logit"][0, 0, 0]
        captured = group["captured"][0, 0, 0].astype(bool)
        assert captured.any()
        rows = rows[captured].astype(np.float64)
        assert (rows.astype(np.float16) == rows).all()
        expected = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
        np.testing.assert_allclose(group["logsumexp"][0, 0, 0][captured], expected, rtol=1e-12)
        target = group["token_id"][0, 0, 0][captured]
        logits = rows[np.arange(len(rows)), target]
        np.testing.assert_array_equal(group["target_logit"][0, 0, 0][captured], logits)
        np.testing.assert_array_equal(
            group["target_rank"][0, 0, 0][captured], (rows > logits[:, None]).sum(1)
        )


def test_generation_is_greedy_and_its_tokens_are_in_every_group(sweep: tuple[Path, str]) -> None:
    tree = package.open(sweep[0] / "awq_marlin" / "run.nc")
    for reference in ("ref_0", "ref_1"):
        at = {"config": "awq_marlin", "repeat": 0, "reference": reference}
        tokens = tree["output/token_id"].sel(at).values
        length = int(tree["references/length"].sel(reference=reference))
        prefill = tree["prefill"].sel(at | {"position": length})
        assert int(prefill["token_id"]) == tokens[0] == int(prefill["top_id"][0])
        decode = tree["decode"].sel(at)
        positions = range(length + 1, length + len(tokens))
        assert decode["token_id"].sel(position=list(positions)).values.tolist() == tokens[1:].tolist()
        assert (decode["target_rank"].sel(position=list(positions)) == 0).all()
        assert str(decode["region"].sel(position=length + 1).values) == "output"


@pytest.mark.slow
def test_resuming_keeps_finished_runs_and_redoes_the_killed_one(
    sweep: tuple[Path, str], tiny_models: dict[str, Path]
) -> None:
    folder, _ = sweep
    before = {c: (folder / c / "run.nc").stat().st_mtime_ns for c in CONFIGS}
    (folder / "gptq" / "run.nc").rename(folder / "gptq" / "run.nc.part")
    done = qdx(
        "-m",
        f"quant={','.join(CONFIGS)}",
        *SMALL,
        *checkpoints(tiny_models),
        "hydra.sweep.dir='s w/ö'",
        cwd=folder.parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("complete already, kept") == 3
    after = {c: (folder / c / "run.nc").stat().st_mtime_ns for c in CONFIGS}
    assert {c for c in CONFIGS if before[c] != after[c]} == {"gptq"}
    assert not list(folder.rglob("*.part"))


def test_report_can_be_redone_and_is_the_same(sweep: tuple[Path, str]) -> None:
    folder, _ = sweep
    before = (folder / "summary.json").read_text()
    done = qdx(str(folder), cwd=folder, module="qdx.report")
    assert done.returncode == 0, done.stderr
    old, new = (json.loads(text) for text in (before, (folder / "summary.json").read_text()))
    assert old["analyses"] == new["analyses"] if "analyses" in old else old.keys() == new.keys()


@pytest.mark.slow
def test_labels_name_every_swept_key_and_a_failed_job_is_named(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_models["gptq"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tiny.spoil(broken)
    paths = tiny_models | {"gptq": broken}
    done = qdx(
        "-m",
        "quant=awq,gptq",
        "batch_size=1,2",
        *SMALL,
        *PLAIN,
        *checkpoints(paths),
        "hydra.sweep.dir=out",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "qdx: failed: gptq,batch_size=1: " in done.stderr
    for label in ("awq,batch_size=1", "awq,batch_size=2"):
        assert (tmp_path / "out" / label / "run.nc").is_file()
    status = json.loads((tmp_path / "out" / "gptq,batch_size=2" / "status.json").read_text())
    assert status["status"] == "failed" and status["traceback"]
    assert "gptq,batch_size=1" in (tmp_path / "out" / "report.txt").read_text().split("Environment")[0]
    tree = package.open(tmp_path / "out")
    assert tree["replay"].config.values.tolist() == ["awq,batch_size=1", "awq,batch_size=2"]
    assert tree["replay"].batch_size.values.tolist() == [1, 2]


@pytest.mark.slow
def test_killing_the_sweep_leaves_finished_runs_and_no_process(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    command = [
        *("-m", "quant=awq,awq_marlin", *SMALL, *checkpoints(tiny_models)),
        *("repeats=300", "hydra.sweep.dir=out"),
    ]
    log = tmp_path / "log"
    with log.open("w") as stream:
        parent = subprocess.Popen(
            [sys.executable, "-m", "qdx", *command], cwd=tmp_path, env=environment(), stderr=stream
        )
    part = tmp_path / "out" / "awq" / "run.nc.part"
    _wait(lambda: bool(re.search(SYNCHRONISED, log.read_text())), "the first batches are synchronised")
    children = _children(parent.pid)
    assert children
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait(lambda: not any(_alive(pid) for pid in children), "the child process dies with its parent")
    # The first thread of a process that ends can be gone while others still hold its files, and HDF5's lock.
    _wait(lambda: _unlocked(part), "the lock of the dead process is gone")
    tree = package.open(part)  # what was synchronised is readable
    captured = tree["replay"]["captured"].values
    assert 0 < captured.sum() < captured.size
    assert tree.attrs["status"] == "running"


@pytest.mark.slow
def test_repeats_in_fresh_processes_are_joined_bit_equal(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = ["quant=gptq", *SMALL, *PLAIN, *checkpoints(tiny_models)]
    for scope in ("engine", "process"):
        done = qdx(*arguments, f"repeat_scope={scope}", f"hydra.sweep.dir={scope}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    engine, process = (package.open(tmp_path / scope / "gptq" / "run.nc") for scope in ("engine", "process"))
    for phase in ("prefill", "decode", "replay"):
        assert (engine[phase]["row_hash"].values == process[phase]["row_hash"].values).all()
        np.testing.assert_array_equal(engine[phase]["logit"].values, process[phase]["logit"].values)
    assert process["replay"].repeat.values.tolist() == [0, 1]
    assert not list((tmp_path / "process" / "gptq").glob("repeat_*"))


def _wait(condition: object, what: str, seconds: float = 120) -> None:
    assert callable(condition)
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def _unlocked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):  # it may go between the two
        return False
