"""A sweep that is written and merged once."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdx.dataset import merge
from tests.helpers import write_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    directory = write_sweep(tmp_path_factory.mktemp("sweep"))
    merge(directory, directory / "sweep.nc")
    return directory
