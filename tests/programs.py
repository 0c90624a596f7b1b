"""What some tests need and not every machine has: programs, and packages that are installed on request."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def program(name: str, package: str) -> str:
    """Return a program's path; without it skip the test, or fail where ``QDX_NEEDS=all`` forbids that."""
    found = shutil.which(name)
    if found:
        return found
    lacking(f"{name} is not installed: apt-get install {package}")


def lacking(reason: str) -> NoReturn:
    """Skip the test for this reason, or fail where ``QDX_NEEDS=all`` forbids that."""
    if os.environ.get("QDX_NEEDS") == "all":
        pytest.fail(reason + " (QDX_NEEDS=all)")
    pytest.skip(reason)


def all_of(terminal: int) -> bytes:
    """Read what a program writes on a terminal until it ends, and close this side of it."""
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # Linux says so when the other end closes
        pass
    os.close(terminal)
    return shown
