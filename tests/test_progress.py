"""Progress on a terminal and in a log file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from qdx.progress import Progress
from tests.programs import all_of

SCRIPT = """
from qdx.progress import Progress
with Progress("making", 2, every=0) as steps:
    steps.step("one"); steps.within(0.5); steps.note("waiting"); steps.step("two"); steps.done()
"""


def test_log_file_gets_a_plain_line_a_step() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = [line.rpartition(" [")[0] for line in done.stderr.splitlines()]
    assert lines == ["making: 0/2 done, one", "making: waiting", "making: 1/2 done, two", "making: done"]
    assert "\x1b" not in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to be had on this platform")
def test_terminal_gets_a_bar_that_counts_its_steps() -> None:
    parent, child = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=child, env=environment)
    os.close(child)
    shown = all_of(parent)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert "making: waiting" in text
    assert "1/2" in text
    assert "\x1b[" in text


def test_silenced_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("making", 1, shown=False) as steps:
        steps.step("one")
        steps.note("more")
        steps.done()
    assert capsys.readouterr() == ("", "")


def test_failure_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Progress("making", 1) as steps:
        steps.step("one")
        raise RuntimeError
    assert not capsys.readouterr().err.count("making: done")


def test_a_log_file_gets_few_lines_of_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("a job") as steps:
        steps.start("running", 500)
        for i in range(500):
            steps.step(f"step {i}")
        steps.done("complete")
    lines = [line.rpartition(" [")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["a job: running", "a job: complete"]


def test_the_first_steps_are_said_soon_and_later_ones_every_quarter_of_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("a job") as steps:
        for _ in range(2):  # each part of the work begins anew
            steps.start("running", 100)
            for i in range(100):
                steps.step(f"step {i}")
                now += 0.5
    said = re.findall(r"(\d+)/100 done", capsys.readouterr().err)
    assert said == ["2", "6", "14", "30", "60", "90"] * 2
