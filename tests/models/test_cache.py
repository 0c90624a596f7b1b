"""Exactly one of many processes builds a model, and a dead one blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdx.errors import QdxError
from qdx.models.cache import cache_folder, prepare

# A real process that prepares `target`: its build logs who builds, writes, takes its time, and writes again.
BUILDER = """
import os, sys, time
from pathlib import Path
from qdx.models.cache import prepare
target, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def build(folder):
    with log.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    (folder / "first").write_text("whole")
    time.sleep(seconds)
    (folder / "second").write_text("whole")
prepare(target, build, waiting=lambda: print("waiting", flush=True))
print(sorted(path.name for path in target.iterdir()), flush=True)
"""


def start(target: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(target), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_two_processes_that_start_at_once_build_once_and_both_get_it_whole(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    processes = [start(target, log, 1.0) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert all(out.endswith("['first', 'second']\n") for out, _ in outputs)
    assert len(log.read_text().splitlines()) == 1


def test_killed_builder_leaves_nothing_that_blocks_or_counts_as_built(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    victim = start(target, log, 600)
    wait_for(log)
    follower = start(target, log, 0)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "waiting\n"
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    out, err = follower.communicate(timeout=30)
    assert (follower.returncode, out) == (0, "['first', 'second']\n"), err
    assert log.read_text().split() == [str(victim.pid), str(follower.pid)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "model", "model.lock"]


def test_failed_build_is_an_error_and_the_next_one_starts_afresh(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise QdxError("no index")

    with pytest.raises(QdxError, match="no index"):
        prepare(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]
    prepare(tmp_path / "model", lambda folder: (folder / "file").touch())
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["file"]


def test_what_is_there_is_not_built_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert prepare(tmp_path / "model", lambda folder: pytest.fail("built again")) == tmp_path / "model"


def test_without_locks_the_loser_of_the_rename_takes_the_winner_s_result(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def overtaken(folder: Path) -> None:
        (folder / "loser").touch()
        target.mkdir()
        (target / "winner").touch()

    prepare(target, overtaken)
    assert [path.name for path in target.iterdir()] == ["winner"]
    assert not list(tmp_path.glob("*.building-*"))


def test_others_may_read_a_shared_cache(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "none").mkdir(mode=0o700)
        (folder / "none" / "model.safetensors").touch(mode=0o600)

    target = prepare(tmp_path / "model", build)
    modes = [
        path.stat().st_mode & 0o777
        for path in (target, target / "none", target / "none" / "model.safetensors")
    ]
    assert modes == [0o755, 0o755, 0o644]


def test_too_little_space_is_an_error_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(QdxError, match=r"1000000000\.0 GB are needed: free some or set QDX_CACHE"):
        prepare(tmp_path / "model", lambda folder: pytest.fail("was built"), needs_bytes=10**18)


def test_cache_that_cannot_be_written_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QdxError, match="set QDX_CACHE to another folder"):
        prepare(tmp_path / "file" / "model", lambda folder: None)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QDX_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("QDX_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "qdx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "qdx"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "qdx"
