"""What happens to a sweep from outside: a full disk, a folder that cannot be written, Ctrl-C, odd paths."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import qdx as package
from qdx.locking import locked
from tests.helpers import write_sweep
from tests.sweeping import PLAIN, SMALL, checkpoints, environment, qdx
from tests.test_api import PLUGIN

# A line of a log file, not of a terminal, that names how many batches are synchronised.
SYNCHRONISED = r"[1-9]\d*/\d+ done, repeat"


def started(*arguments: str, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start ``python -m qdx`` in a process group of its own, as a terminal does."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "qdx", *arguments],
            cwd=cwd,
            env=environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_heeding_signals,
        )


def _heeding_signals() -> None:
    """Undo what a background job or nohup, as the tests may be run by, passes on: signals to be ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_sweep_in_one_line_and_it_can_be_resumed(
    small_disk: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = ["-m", "quant=awq,gptq", *SMALL, *PLAIN, *checkpoints(tiny_models)]
    arguments += [f"hydra.sweep.dir={small_disk}/s"]
    log = tmp_path / "log"
    process = started(*arguments, cwd=tmp_path, log=log)
    until(lambda: (small_disk / "s" / "sweep.json").exists(), process, log)
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(4096))
    assert process.wait() == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said and "hydra.sweep.dir" in said.splitlines()[-1], said
    assert not list(small_disk.rglob("run.nc"))
    assert all(json.loads(path.read_text()) for path in small_disk.rglob("status.json"))
    (small_disk / "filler").unlink()
    done = qdx(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [*small_disk.rglob("*.part"), *small_disk.rglob("*.lock")]
    assert package.open(small_disk / "s")["replay"].config.values.tolist() == ["awq", "gptq"]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A function that makes ``closed/`` read-only: root may write anywhere but on a read-only disk."""
    path, root = tmp_path / "closed", os.getuid() == 0
    path.mkdir()
    if root and subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("this root can neither mount a disk nor be kept from writing")

    def close() -> None:
        if root:
            subprocess.run(["mount", "-o", "remount,ro", path], check=True)
        else:
            path.chmod(0o555)

    yield close
    if root:
        subprocess.run(["umount", "-l", path], check=True)
    else:
        path.chmod(0o755)


@pytest.mark.parametrize("module", ["qdx", "qdx.report"])
def test_a_folder_that_cannot_be_written_is_named(
    module: str, closed: Callable[[], None], tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    folder = tmp_path / "closed"
    arguments = [*SMALL, *checkpoints(tiny_models), f"hydra.sweep.dir={folder}/out"]
    if module == "qdx.report":
        arguments = [str(write_sweep(folder, ["awq"], repeats=1))]
    closed()
    done = qdx(*arguments, cwd=tmp_path, module=module)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and last.startswith("qdx: error: ") and str(folder) in last, (
        done.stderr
    )


@pytest.mark.slow
def test_a_second_sweep_into_the_folder_is_refused_and_the_first_one_is_whole(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = ["quant=awq", *SMALL, *PLAIN, *checkpoints(tiny_models), "hydra.sweep.dir=out"]
    log = tmp_path / "log"
    first = started(*arguments, cwd=tmp_path, log=log)
    until(lambda: (tmp_path / "out" / "sweep.json").exists(), first, log)
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is not at its end before the second one comes
    plan = (tmp_path / "out" / "sweep.json").read_text()
    second = qdx("quant=gptq", *arguments[1:], cwd=tmp_path)
    assert first.poll() is None, "the first sweep was to wait"
    assert second.returncode == 2 and "another sweep is running in" in second.stderr, second.stderr
    assert (tmp_path / "out" / "sweep.json").read_text() == plan
    os.killpg(first.pid, signal.SIGCONT)
    assert first.wait() == 0, log.read_text()
    assert package.open(tmp_path / "out")["replay"].sizes["repeat"] == 2
    assert not list((tmp_path / "out").glob("*.lock"))


HOLDER = """
import sys, time
from pathlib import Path
from qdx.locking import locked
with locked(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, env=environment())
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert path.exists()
    with locked(path, wait=False):
        pass
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading the model", SYNCHRONISED])
def test_ctrl_c_ends_cleanly_and_leaves_the_unfinished_run_marked(
    moment: str, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = ["-m", "quant=awq,gptq", *SMALL, *PLAIN, *checkpoints(tiny_models), "hydra.sweep.dir=out"]
    log = tmp_path / "log"
    process = started(*arguments, "repeats=2000", cwd=tmp_path, log=log)
    until(lambda: bool(re.search(moment, log.read_text())), process, log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    said = log.read_text()
    assert "Traceback" not in said and said.splitlines()[-1].startswith("qdx: interrupted"), said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # the child is gone too
    out = tmp_path / "out"
    assert not list(out.rglob("run.nc")) and not list(out.rglob("*.lock"))
    if "done" in moment:
        tree = package.open(out / "awq" / "run.nc.part")
        assert tree.attrs["status"] != "complete" and tree["replay"]["captured"].values.any()
        tree.close()
    done = qdx(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert package.open(out)["replay"].sizes["repeat"] == 2 and not list(out.rglob("*.part"))


STUBBORN = """
import time, qdx
from qdx.backends.transformers import TransformersBackend

@qdx.register("backend", "stubborn")
class Stubborn(TransformersBackend):
    def __init__(self, checkpoint, quant, dtype, seed=0):
        print("waiting", flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ValueError("a library made something else of it") from None
"""


@pytest.mark.slow
def test_ctrl_c_is_one_also_where_a_library_raises_something_else(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "stubborn.py").write_text(STUBBORN)
    small = [s for s in SMALL if not s.startswith("backend")]
    log = tmp_path / "log"
    arguments = ["-m", "backend=stubborn", "quant=awq", *small, *checkpoints(tiny_models)]
    process = started(*arguments, "hydra.sweep.dir=out", cwd=tmp_path, log=log)
    until(lambda: "waiting" in log.read_text(), process, log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    said = log.read_text()
    assert "Traceback" not in said and "something else" not in said, said
    assert said.splitlines()[-1].startswith("qdx: interrupted"), said


ODD = "a b 'ö' $x 文,=[1]"


@pytest.mark.slow
def test_every_path_may_hold_spaces_quotes_and_unicode(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdx.commands import quoted

    odd = tmp_path / ODD
    (odd / "plugins").mkdir(parents=True)
    (odd / "plugins" / "tripled.py").write_text(PLUGIN)
    shutil.copytree(tiny_models["awq"], odd / ODD)
    shutil.copy(Path(package.__file__).with_name("prompts") / "handbook.pdf", odd / f"{ODD}.pdf")
    monkeypatch.setenv("QDX_CACHE", str(odd / "cache"))
    monkeypatch.setenv("TMPDIR", str(odd))
    small = [s for s in SMALL if not s.startswith("repeats")]
    done = qdx(
        *small,
        "repeats=1",
        "model=local",
        f"model.checkpoint.awq={quoted(str(odd / ODD))}",
        f"prompts.path={quoted(f'{ODD}.pdf')}",
        "metric=[l2,tripled]",
        f"hydra.sweep.dir={quoted(f'out {ODD}')}",
        cwd=odd,
    )
    assert done.returncode == 0, done.stderr
    tree = package.open(odd / f"out {ODD}")
    assert set(tree["metrics"].children) == {"l2", "tripled"}
    assert f"{ODD}.pdf" in str(tree["references/source"].values[0])
    again = qdx(f"out {ODD}", cwd=odd, module="qdx.report")
    assert again.returncode == 0, again.stderr
