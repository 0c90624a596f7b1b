"""A fork of `tests.warm` says and does what a new interpreter does, or the tests that use it show nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import qdx as package
from tests import warm, warm_shell
from tests.slowly import slow_but
from tests.sweeping import SMALL, checkpoints, environment, qdx, qdx_anew


@pytest.mark.parametrize(
    "argument", slow_but(["quant=nonsense"], ["quant=nonsense", "--help", "prompts.path=/no/such.pdf"])
)
def test_a_fork_ends_and_prints_as_a_new_interpreter_does(argument: str, tmp_path: Path) -> None:
    fork, anew = (run(argument, cwd=tmp_path) for run in (qdx, qdx_anew))
    assert (fork.returncode, fork.stdout, fork.stderr) == (anew.returncode, anew.stdout, anew.stderr)
    assert fork.stdout + fork.stderr


@pytest.mark.slow
def test_a_shells_command_ends_and_prints_as_a_new_interpreter_does(tmp_path: Path) -> None:
    anew = qdx_anew("quant=nonsense", cwd=tmp_path)
    with warm_shell.serving() as client:
        line = f"{client} -m qdx quant=nonsense 2> said; echo $? >> said; {client} -m qdx --version | head -1"
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
    assert (tmp_path / "said").read_text() == f"{anew.stderr}{anew.returncode}\n"
    assert done.stdout.strip() and done.stderr == ""


@pytest.mark.slow
def test_a_fork_has_its_own_folder_and_environment_and_ends_when_its_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(
        "import os, pathlib, sys, time\n"
        "print(pathlib.Path.cwd(), os.environ['PYTHONPATH'], sys.argv[1], flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
        "raise SystemExit(7)\n"
    )
    (tmp_path / "below").mkdir()
    variables = {**environment(), "PYTHONPATH": str(tmp_path)}
    done = warm.run("here", ["0"], tmp_path / "below", variables, timeout=60)
    assert (done.returncode, done.stdout) == (7, f"{tmp_path}/below {tmp_path} 0\n"), done.stderr
    with pytest.raises(subprocess.TimeoutExpired) as late:
        warm.run("here", ["600"], tmp_path, variables, timeout=5)
    assert late.value.output == f"{tmp_path} {tmp_path} 600\n"


@pytest.mark.slow
def test_a_sweep_of_forks_has_the_rows_of_one_of_new_interpreters(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    trees = []
    for name, run in (("fork", qdx), ("anew", qdx_anew)):
        done = run(
            "-m", "quant=awq,gptq", *SMALL, *checkpoints(tiny_models), f"hydra.sweep.dir={name}", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        trees.append(package.open(tmp_path / name))
    for phase in ("prefill", "decode", "replay"):
        fork, anew = (tree[phase]["row_hash"].values for tree in trees)
        np.testing.assert_array_equal(fork, anew)
        assert len(np.unique(fork)) > 10
    facts = [{k: v.values.tolist() for k, v in tree["provenance"].data_vars.items()} for tree in trees]
    changing = {"time_utc", "history", "command_line"}  # when it ran, and the folder that it was told
    assert {k for k in facts[0] if facts[0][k] != facts[1][k]} <= changing


def test_a_quick_case_that_was_renamed_is_an_error() -> None:
    cases = slow_but(["a"], ["a", "b"])
    assert cases[0] == "a" and [mark.name for mark in cases[1].marks] == ["slow"]
    with pytest.raises(ValueError, match="quick cases \\['c'\\] are not among"):
        slow_but(["c"], ["a", "b"])
