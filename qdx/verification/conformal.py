"""Conformal p-values: how many calibration references fit a claim no better than the judged transcript.

Sources: V. Vovk, A. Gammerman, G. Shafer, *Algorithmic Learning in a Random World* (2005), for p and its
set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdx.statistics import Floats

_ROUNDING = 1e-9  # α(n + 1) such as 0.05 · 60 must not fall below 3 by its last bit


def conformal_p(score: float, null_N: Floats) -> float:
    """p = (1 + #{T₀ ≥ T}) / (n + 1).

    Parameters
    ----------
    score : float
        T of the judged transcript; greater means a worse fit to the claim.
    null_N : array (references,)
        T₀ of calibration references, one each; NaN (not measured) does not count.

    Returns
    -------
    float
        Under the claim, and if the n + 1 scores are exchangeable, P(p ≤ α) ≤ α for every α. NaN without a
        calibration reference or when `score` is NaN.
    """
    null = null_N[np.isfinite(null_N)]
    if not len(null) or not np.isfinite(score):
        return math.nan
    return (1 + int((null >= score).sum())) / (len(null) + 1)


def attainable_level(references: int, alpha: float) -> float:
    """⌊α(n + 1)⌋ / (n + 1): the probability that p ≤ α when the claim is true and no scores tie."""
    return math.floor(alpha * (references + 1) + _ROUNDING) / (references + 1)


def fewest_references(alpha: float, transcripts: int = 1) -> int:
    """The least n at which p ≤ α is possible at all: 1/α − 1, rounded up; 2/α − 1 for several transcripts.

    Twice the mean of p-values that are 1/(n + 1) at least (`combine`) is 2/(n + 1) at least.
    """
    return math.ceil((1 if transcripts < 2 else 2) / alpha - 1 - _ROUNDING)


@dataclass(frozen=True)
class Answer:
    """Which configs are plausible.

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
