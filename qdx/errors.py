"""The one exception that a user's mistake raises, and the hint that goes with a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QdxError(Exception):
    """An input or a machine that cannot be used, said in one line: what, got, limit, remedy.

    The command line prints it without a traceback (``HYDRA_FULL_ERROR=1`` shows the whole).
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the choice most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
