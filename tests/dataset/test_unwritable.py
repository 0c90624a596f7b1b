"""A folder that takes no files is named with a remedy that works there: not with free space."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qdx.dataset.writing import disk_errors
from qdx.errors import UnwritableError


@pytest.mark.parametrize(
    ("number", "writable", "remedy"),
    [
        (errno.EROFS, False, "its folder takes no files: copy the folder to a place that can be written"),
        (errno.EACCES, False, "its folder takes no files: copy the folder to a place that can be written"),
        (errno.EACCES, True, "GB free there: free some, choose another"),  # netCDF4, of a full disk
        (errno.ENOSPC, True, "GB free there: free some, choose another"),
    ],
)
def test_remedy_fits_the_reason(
    tmp_path: Path, number: int, writable: bool, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: writable)  # root may write everywhere
    with pytest.raises(UnwritableError, match=f"cannot write .*{remedy}"), disk_errors(tmp_path / "x.nc"):
        raise OSError(number, "no", str(tmp_path / "x.nc"))
