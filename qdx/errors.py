"""The one exception that a user's mistake raises."""

from __future__ import annotations


class QdxError(Exception):
    """An input or a machine that cannot be used, said in one line: what, got, limit, remedy.

    The command line prints it without a traceback (``HYDRA_FULL_ERROR=1`` shows the whole).
    """
