"""Two jobs at once under real launchers: the basic launcher's numbers, one folder, nothing left running.

The launchers are started as docs/howto says: their settings are read from its pages, where they do not run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

import qdx as package
from qdx.errors import QdxError
from qdx.plugins import conf_dir
from qdx.sweep.launchers import gpu, require
from tests import tiny
from tests.programs import lacking
from tests.sweeping import PLAIN, SMALL, checkpoints, environment
from tests.sweeping import qdx as forked
from tests.sweeping import qdx_anew as qdx

PHASES = ("prefill", "decode", "replay")
HOWTO = Path(__file__).parents[2] / "docs" / "howto"
PAGES = {"joblib": ("ray.md", "joblib"), "submitit": ("slurm.md", "submitit_local"), "ray": ("ray.md", "ray")}


def on_the_page(name: str) -> list[str]:
    """How a page starts two jobs at once on this machine under a launcher: the settings of the launcher."""
    page, launcher = PAGES[name]
    start = f"python -m qdx -m quant=awq,gptq hydra/launcher={launcher} "
    (line,) = (s for s in (HOWTO / page).read_text(encoding="utf-8").splitlines() if s.startswith(start))
    return [
        word
        for word in shlex.split(line)
        if word.startswith(("hydra/launcher", "hydra.launcher", "hydra.sweeper"))
    ]


def needs(name: str) -> None:
    for module in (name, f"hydra_plugins.hydra_{name}_launcher"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            lacking(f"{module} is not installed: docs/howto/ray.md and the extras of pyproject.toml say how")


@pytest.fixture(autouse=True)
def quiet_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray report nothing to its makers and leave no token in the user's folder."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, Path]:
    """Checkpoints whose dense one gives no numbers, so that its job fails."""
    broken = tmp_path_factory.mktemp("broken")
    for file in tiny_models["none"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tiny.spoil(broken)
    return tiny_models | {"none": broken}


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory, paths: dict[str, Path]) -> Path:
    """The sweep of two configs, one after the other."""
    cwd = tmp_path_factory.mktemp("basic")
    arguments = [*SMALL, *PLAIN, *checkpoints(paths), "hydra.sweep.dir='s w/ö'"]
    done = forked("-m", "quant=awq,gptq", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "s w" / "ö"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_launchers_sweep_is_the_basic_ones_after_a_kill_and_a_failed_job(
    name: str, basic: Path, paths: dict[str, Path], tmp_path: Path
) -> None:
    needs(name)
    launcher = on_the_page(name)
    arguments = [*SMALL, *PLAIN, *checkpoints(paths), "hydra.sweep.dir='s w/ö'"]
    folder = tmp_path / "s w" / "ö"
    _kill_while_two_run(["quant=awq,gptq", *arguments, *launcher, "repeats=300"], folder, tmp_path)

    done = qdx("-m", "quant=awq,none,gptq", *arguments, *launcher, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "qdx: failed: none: " in done.stderr
    assert json.loads((folder / "none" / "status.json").read_text())["traceback"]
    if name != "submitit":  # whose jobs print into files
        assert "gptq: complete" in done.stderr
    assert (folder / ".submitit").is_dir() == (name == "submitit")
    _same(basic, folder)
    with package.open(folder / "gptq" / "run.nc") as run:
        assert "quant=awq,none,gptq" in run.attrs["command_line"] and name in run.attrs["command_line"]

    done = forked(
        "-m", "quant=awq,gptq", *arguments, cwd=tmp_path
    )  # the launcher is not part of the identity
    assert done.stderr.count("complete already, kept") == 2


@pytest.mark.slow
def test_jobs_run_on_a_ray_cluster_that_was_there_before_and_end_with_their_sweep(
    basic: Path, paths: dict[str, Path], tmp_path: Path, cluster: str
) -> None:
    arguments = ["quant=awq,gptq", *SMALL, *PLAIN, *checkpoints(paths), "hydra.sweep.dir='s w/ö'"]
    arguments += ["hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address='{cluster}'"]
    folder = tmp_path / "s w" / "ö"
    _kill_while_two_run([*arguments, "repeats=300"], folder, tmp_path)
    done = qdx("-m", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    _same(basic, folder)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray cluster whose workers have another working folder."""
    needs("ray")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import ray, sys; c = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8); "
        "print(c.address_info['gcs_address'], flush=True); sys.stdin.read()"
    )
    head = subprocess.Popen(
        [sys.executable, "-c", code], cwd=elsewhere, stdin=-1, stdout=-1, text=True, env=environment()
    )
    assert head.stdin is not None and head.stdout is not None
    yield head.stdout.readline().strip()
    head.stdin.close()
    head.wait()


@pytest.mark.slow
def test_a_killed_worker_ends_the_sweep_with_what_is_finished(paths: dict[str, Path], tmp_path: Path) -> None:
    needs("joblib")
    arguments = [*SMALL, *PLAIN, *checkpoints(paths), "repeats=2,300", "hydra/launcher=joblib"]
    log, folder = tmp_path / "log", tmp_path / "out"
    with log.open("w") as stream, _sweep([*arguments, "hydra.sweep.dir=out"], tmp_path, stream) as sweep:
        _wait((folder / "awq,repeats=2" / "run.nc").exists, "the short job", sweep)
        _wait((folder / "awq,repeats=300" / "run.nc.part").exists, "the long one runs", sweep)
        os.kill(_parent(_children(tmp_path)[0]), signal.SIGKILL)
        assert sweep.wait(120) == 1
    said = log.read_text()
    assert "the launcher stopped: TerminatedWorkerError" in said and "python -m qdx.report" in said
    assert package.open(folder)["replay"].config.values.tolist() == ["awq,repeats=2"]
    assert "awq,repeats=300" in (folder / "report.txt").read_text().split("Environment")[0]


@pytest.mark.slow
def test_each_of_two_jobs_at_once_gets_a_gpu_of_its_own(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("joblib")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "seen.py").write_text(
        "import os, qdx\n"
        "from qdx.prompts import Pydoc\n"
        "def see():\n"
        "    with open('seen', 'a') as file:\n"
        "        print(os.environ.get('CUDA_VISIBLE_DEVICES'), file=file)\n"
        "@qdx.register('prompts', 'seen')\n"
        "class Prompts:\n"
        "    '''Write down which GPUs the preparation may use: it makes the references for all jobs.'''\n"
        "    def __init__(self, references: int = 2, continuation_tokens: int = 5): pass\n"
        "    def load(self, tokenizer):\n"
        "        see()\n"
        "        return Pydoc(references=2, snippet_tokens=60, continuation_tokens=5).load(tokenizer)\n"
        "@qdx.register('backend', 'seen')\n"
        "class Backend:\n"
        "    '''Write down which GPU a job may use.'''\n"
        "    def __init__(self, checkpoint, quant, dtype, seed):\n"
        "        see()\n"
        "        raise RuntimeError('seen')\n"
        "    def observe(self): pass\n"
        "    def prefill(self, batch, recorder): pass\n"
        "    def generate(self, batch, count, recorder): pass\n"
        "    def replay(self, batch, forced, recorder): pass\n"
        "    def reseed(self, seed): pass\n"
    )
    arguments = ["-m", "quant=awq,awq_marlin,gptq", "prompts=seen", "generate.tokens=5", "repeats=1"]
    arguments += ["backend=seen", *checkpoints(paths), "hydra/launcher=joblib", "hydra/sweeper=gpus"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    done = qdx(*arguments, "hydra.sweep.dir=out", cwd=tmp_path)
    ended = [line for line in done.stderr.splitlines() if line.startswith("qdx: failed: ")]
    assert [line.endswith(": RuntimeError: seen") for line in ended] == [True] * 3, done.stderr
    seen = (tmp_path / "seen").read_text().split()
    assert seen[0] == "4,7"  # preparation
    assert (sorted(seen[1:3]), seen[3]) == (["4", "7"], "4")


@pytest.mark.extra
@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [
        (["backend=transformers"], 0),
        (["backend=vllm"], 1),
        (["backend=vllm", "backend.tensor_parallel_size=2", "backend.pipeline_parallel_size=3"], 6),
    ],
)
@pytest.mark.parametrize("launcher", ["ray", "ray_cluster", "submitit_slurm"])
def test_a_launcher_is_asked_for_the_backends_gpus(launcher: str, overrides: list[str], gpus: int) -> None:
    needs(launcher.partition("_")[0])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        arguments = [f"hydra/launcher={launcher}", *overrides]
        node = compose("config", overrides=arguments, return_hydra_config=True).hydra.launcher
    asked = node.ray.remote.num_gpus if launcher.startswith("ray") else node.gpus_per_node
    assert asked == gpus


@pytest.mark.extra
@pytest.mark.parametrize("launcher", [path.stem for path in (conf_dir() / "hydra/launcher").glob("*.yaml")])
def test_every_launcher_file_names_a_class_that_is_there(launcher: str) -> None:
    needs(launcher.partition("_")[0])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = [f"hydra/launcher={launcher}", "backend=transformers"]
        node = compose("config", overrides=overrides, return_hydra_config=True).hydra.launcher
    require(node)
    module, _, name = node._target_.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_a_launcher_that_is_not_installed_is_named_with_its_remedy(tmp_path: Path) -> None:
    blocker = tmp_path / "blocked"
    (blocker / "joblib").mkdir(parents=True)
    (blocker / "joblib" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'joblib'\")")
    code = (
        f"import sys; sys.path.insert(0, {str(blocker)!r}); "
        "sys.argv = ['qdx', '-m', 'hydra/launcher=joblib']; from qdx.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'qdx[joblib]'" in done.stderr and done.stderr.count("\n") == 1


def test_fewer_gpus_than_jobs_at_once_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu(job, 2) for job in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(QdxError, match="2 jobs at once and CUDA_VISIBLE_DEVICES=3"):
        gpu(0, 2)


def _kill_while_two_run(command: list[str], folder: Path, cwd: Path) -> None:
    """Kill a sweep while two jobs write, and see its processes go."""
    with _sweep(command, cwd) as sweep:
        parts = [folder / label / "run.nc.part" for label in ("awq", "gptq")]
        _wait(lambda: all(path.exists() for path in parts), "two jobs run at once", sweep)
        jobs = _children(cwd)
        workers = [_parent(job) for job in jobs]
        assert len(set(workers)) == 2 and sweep.pid not in workers
    _wait(lambda: not any(map(_alive, (*jobs, *workers))), "jobs and their workers die with the sweep")
    assert not any((folder / label / "run.nc").exists() for label in ("awq", "gptq"))


@contextmanager
def _sweep(arguments: list[str], cwd: Path, log: IO[str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep that runs, and is killed at the end."""
    command = [sys.executable, "-m", "qdx", "-m", *arguments]
    sweep = subprocess.Popen(command, cwd=cwd, env=environment(), stderr=log)
    try:
        yield sweep
    finally:
        sweep.kill()
        sweep.wait()


def _same(one: Path, other: Path) -> None:
    """Assert that two configs have the same rows, hashes and distances in both sweeps."""
    a, b = package.open(one), package.open(other)
    configs = ["awq", "gptq"]
    for phase in PHASES:
        for variable in ("row_hash", "token_id", "logsumexp", "logit"):
            x, y = (t[phase][variable].sel(config=configs).values for t in (a, b))
            np.testing.assert_array_equal(x, y, err_msg=f"{phase}/{variable}")
        x, y = (t[f"metrics/l2/{phase}/l2"].sel(config=configs, config_b=configs).values for t in (a, b))
        np.testing.assert_array_equal(x, y)
    assert np.asarray(a["replay"]["captured"]).any()


def _children(cwd: Path) -> list[int]:
    """Processes that run a job for a sweep that was started in `cwd`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if b"qdx.sweep.job" in (entry / "cmdline").read_bytes() and (entry / "cwd").readlink() == cwd:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _wait(
    condition: Callable[[], bool],
    what: str,
    sweep: subprocess.Popen[bytes] | None = None,
    seconds: float = 180,
) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        assert sweep is None or sweep.poll() is None, f"the sweep ended before: {what}"
        time.sleep(0.1)
