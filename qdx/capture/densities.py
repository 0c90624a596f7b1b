"""Probabilities of drawn tokens: as a distribution to draw from, and as the most that a claim gives them.

Beside the stated sampling parameters there is a fixed list of others, which are hypotheses: "the temperature
was 0.7". What they give each token is computed at capture, since it needs the whole row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qdx.statistics import Floats, Ints

SHARE = 0.001  # of tokens that an honest producer may draw from the untruncated distribution
# Of 16 temperatures each is a claim of its own, and an alternative to the stated one.
TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0)
# Truncations that servers apply without saying so, in the place of what is stated.
TRUNCATIONS: tuple[Mapping[str, float], ...] = (
    {"top_p": 0.95},
    {"top_p": 0.9},
    {"top_p": 0.8},
    {"top_k": 50},
    {"top_k": 20},
    {"min_p": 0.05},
    {"min_p": 0.1},
    {"top_p": 1.0, "top_k": 0, "min_p": 0.0},
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
)
ALTERNATIVES: tuple[Mapping[str, float], ...] = (
    *({"temperature": value} for value in TEMPERATURES),
    *TRUNCATIONS,
)


def described(changes: Mapping[str, float]) -> str:
    """Return an alternative in words.

    Examples
    --------
    >>> described({"top_p": 1.0, "top_k": 0, "min_p": 0.0}), described({"temperature": 0.7})
    ('no truncation', 'temperature 0.7')
    """
    said = [
        f"{name.replace('_', '-')} {value:g}"
        for name, value in changes.items()
        if (name, value) not in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0))
    ]
    return ", ".join(said) or "no truncation"


@dataclass(frozen=True)
class Drawn:
    """Hold what one config's rows say of drawn tokens; arrays of one shape, tokens last.

    Attributes
    ----------
    logprob : ndarray
        Log-probability at the stated temperature, before truncation, nat; NaN where there is no row.
    before : ndarray
        Probability of all tokens that come before it in the order of truncation.
    kept, kept_least : ndarray
        Probability of what truncation keeps, and of the least that it may keep within the edge.
    place : ndarray of int
        2: the token is kept, 1: it is within the edge, 0: it is cut off.

    See `qdx.capture.sampled.drawn`.
    """

    logprob: Floats
    before: Floats
    kept: Floats
    kept_least: Floats
    place: Ints

    def log_density(self, share: float = SHARE) -> Floats:
        """Log-probability of every token as a distribution to draw from: (1 − share)·p + share·q, nat."""
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(self.place == 2, np.log1p(-share) + self.logprob - np.log(self.kept), -np.inf)
            return np.asarray(np.logaddexp(inside, np.log(share) + self.logprob))

    def log_bound(self, share: float = SHARE) -> Floats:
        """Log of the greatest probability that an honest producer of this config may give the token, nat.

        It is the greatest of p, of (1 − share)·p + share·q, and of the same for every truncation within the
        edge. p is the truncated and q the untruncated distribution. The mixture alone would not do: a
        producer who draws from p itself gives every kept token more than it.
        """
        with np.errstate(divide="ignore", invalid="ignore"):  # log of 0, and where there is no row
            # Whatever noise reorders near the edge, the shortest head is kept, and with it the token itself.
            own = np.exp(self.logprob)
            inside = self.before + own <= self.kept_least * (1 + 1e-12)
            head = np.minimum(np.where(inside, self.kept_least, self.kept_least + own), 1.0)
            most = np.where(self.place > 0, self.logprob - np.log(head), -np.inf)
            mixture = np.logaddexp(np.log1p(-share) + most, np.log(share) + self.logprob)
        return np.asarray(np.maximum(most, mixture))
