"""Tests that need a program of the system skip without it, except where nothing may be skipped."""

from __future__ import annotations

import shutil

import pytest

from tests.programs import program
from tests.report.browser import Browser


def test_a_program_that_is_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDX_NEEDS", "all")
    assert program("sh", "dash") == shutil.which("sh")


def test_a_test_without_its_program_is_skipped_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDX_NEEDS", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="chromium is not installed: apt-get install chromium"):
        Browser()


def test_the_continuous_integration_fails_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDX_NEEDS", "all")
    with pytest.raises(pytest.fail.Exception, match=r"no-such-program is not installed: .*QDX_NEEDS=all"):
        program("no-such-program", "nothing")
