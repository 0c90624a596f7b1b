"""Programs that are not Python's and that some tests need."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str, package: str) -> str:
    """Return a program's path; without it skip the test, or fail where ``QDX_NEEDS=all`` forbids that."""
    found = shutil.which(name)
    if found:
        return found
    reason = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("QDX_NEEDS") == "all":
        pytest.fail(reason + " (QDX_NEEDS=all)")
    pytest.skip(reason)
