"""Marks most cases of a table as slow: `pytest` runs a few of them, `pytest -m slow` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Return the cases for ``pytest.mark.parametrize``; all but the quick ones are marked ``slow``.

    A case is the value of one argument, or a tuple of those of several.

    Raises
    ------
    ValueError
        A quick case is none of the cases: it was renamed, and nothing of its table would run by default.
    """
    quick, cases = list(quick), list(cases)
    if unknown := [case for case in quick if case not in cases]:
        raise ValueError(f"quick cases {unknown} are not among the cases {cases}")
    return [
        case if case in quick else pytest.param(*_arguments(case), marks=pytest.mark.slow) for case in cases
    ]


def _arguments(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
