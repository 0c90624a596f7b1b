"""Conformal sets: which configs a transcript may be of, and what level so many references can have.

Sources: V. Vovk, A. Gammerman, G. Shafer, *Algorithmic Learning in a Random World* (2005), for p
(`p_values.conformal_p`) and its set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdx.statistics import Floats
from qdx.verification.p_values import level

_ROUNDING = 1e-9  # a p of several sources that should be α must not pass it by its last bit


def attainable_level(references: int, alpha: float) -> float:
    """⌊α(n + 1)⌋ / (n + 1): the probability that p ≤ α when the claim is true and no scores tie."""
    return math.floor(level(alpha) * (references + 1)) / (references + 1)


def fewest_references(alpha: float) -> int:
    """The least n at which p ≤ α is possible for one transcript: 1/α − 1, rounded up."""
    return math.ceil(1 / level(alpha)) - 1


@dataclass(frozen=True)
class Answer:
    """Hold which configs are plausible.

    Attributes
    ----------
    kind : str
        ``"verdict"`` (one), ``"one of"`` (several), ``"unknown"`` (none), ``"not calibrated"`` (no p at
        all).
    members : tuple of str
        {c : p_c > α}.
    """

    kind: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        if self.kind == "verdict":
            return self.members[0]
        return f"one of {', '.join(self.members)}" if self.kind == "one of" else self.kind


def answer(labels: Sequence[str], p_C: Sequence[float] | Floats, alpha: float) -> Answer:
    """The set {c : p_c > α}; it holds the true config with at least 1 − α if exchangeable.

    Parameters
    ----------
    labels : sequence of str
    p_C : sequence (configs,)
        NaN for a config without calibration, which cannot be a member.
    alpha : float
        Level of the error that the true config is left out.
    """
    p = np.asarray(p_C, float)
    members = tuple(label for label, value in zip(labels, p, strict=True) if value > alpha + _ROUNDING)
    if not np.isfinite(p).any():
        return Answer("not calibrated", ())
    return Answer({0: "unknown", 1: "verdict"}.get(len(members), "one of"), members)
