"""Fixtures that every part uses."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.costs import by_cost


class _Deprecations(logging.Handler):
    """Makes an error of what transformers only logs: that it will take away what qdx uses."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise, in the line that is to be changed."""
        message = record.getMessage()
        if re.search(r"deprecat|will be removed|no longer be supported", message, re.IGNORECASE):
            raise AssertionError(f"transformers will take this away: {message}")


logging.getLogger("transformers").addHandler(_Deprecations(logging.WARNING))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that open a program which pip does not install; put what takes longest first."""
    if not config.getoption("loadscopereorder", True):  # else xdist goes by the number of tests
        items.sort(key=by_cost)
    for item in items:
        if {"browser", "ncdump"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.extra)


def pytest_collection_finish() -> None:
    """Leave what is there by now, modules and thousands of tests, out of every search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo_model() -> Callable[[str], Path]:
    """Return a function from "none", "awq" or "gptq" to that form's checkpoint folder of the demo model.

    It lies in the normal cache, so a machine prepares it once.
    """
    from qdx.models import resolve

    return lambda form: resolve(f"demo:smollm2/{form}", format=form).path


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of a tiny random checkpoint in each format."""
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture(autouse=True)
def limits_of_received_files() -> Iterator[None]:
    """Undo what a test allows this process to read."""
    from qdx.dataset import guarding

    before = guarding._limits
    yield
    if guarding._limits is not before:
        guarding._limits = before
        guarding._passed.clear()
