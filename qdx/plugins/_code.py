"""Which code a plug-in is: a metric or an analysis changes no output, so that no run's hash covers it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

UNREADABLE = "no file"


def code_of(member: Callable[..., Any]) -> dict[str, str]:
    """Return where the code of a plug-in is, and the SHA-256 of that file.

    Parameters
    ----------
    member : callable
        Registered, or what `qdx.plugins.build` made of it.

    Returns
    -------
    dict
        ``plugin_source`` and ``plugin_sha256`` as attributes of what it computed, both "no file" for code
        that is in none (a notebook's); empty for what ships with qdx, whose version says it.
    """
    while isinstance(member, partial):
        member = member.func
    if member.__module__.split(".")[0] == "qdx":
        return {}
    try:
        path = Path(inspect.getfile(inspect.unwrap(member)))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, TypeError):
        return {"plugin_source": UNREADABLE, "plugin_sha256": UNREADABLE}
    return {"plugin_source": str(path), "plugin_sha256": digest}
