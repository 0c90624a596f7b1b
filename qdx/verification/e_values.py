"""E-values of drawn tokens: evidence against a claim that may be looked at after every token.

Against the claim that tokens were drawn from config c, E_t = Π d(x_s) / D_c(x_s), where d is another
distribution that was fixed before the token was seen, and D_c is at least everything that an honest producer
may have drawn from. Then E is a nonnegative supermartingale with E_0 = 1, and P(sup E ≥ 1/α) ≤ α (Ville
1939; Shafer 2021): whoever looks after every token and stops when he has seen enough is wrong as rarely as
who looks once. An average of such E is one too, over alternatives as over answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import logsumexp

from qdx.capture.densities import SHARE
from qdx.statistics import Bools, Floats

MIXED = (1.0, 0.5, 0.2, 0.1, 0.05)  # shares of answers that may be false: an average over them


def log_e(claim: Bound, other: Density, share: float = SHARE) -> Floats:
    """Logarithm of the e-value after every token of each answer, against one alternative.

    Parameters
    ----------
    claim : Bound
    other : Density
        Of one shape (…, token). A token that either lacks counts for nothing.
    share : float
        Of tokens that may come from the untruncated distribution.

    Returns
    -------
    ndarray
        (…, token), nat: natural logarithm of E.
    """
    step = other.log_density(share) - claim.log_bound(share)
    return np.asarray(np.cumsum(np.where(np.isfinite(step), step, 0.0), axis=-1))


class Bound(Protocol):
    """A claim: what it may give a token at most."""

    @property
    def logprob(self) -> Floats:
        """NaN where a token has no row."""

    def log_bound(self, share: float) -> Floats:
        """Log of at least the greatest probability that an honest producer gives the token, nat."""


class Density(Protocol):
    """An alternative: a distribution to draw from, that was fixed before the tokens were seen."""

    def log_density(self, share: float) -> Floats:
        """Log-probability of every token, nat; NaN where it has no row."""


@dataclass(frozen=True)
class Weighed:
    """Hold what drawn tokens say against a claim.

    Attributes
    ----------
    log_e : float
        Natural logarithm of the greatest E that was reached.
    tokens : int
        Tokens until then, of all answers in their order.
    crossed : int
        Tokens until E first reached 1/α; −1: never.
    p : float
        1 / sup E, at most 1: a p-value whatever the number of tokens.
    weights : ndarray
        Share of each alternative in the last E.
    false_at_least : int
        Groups that are false, at least: an honest provider of the others has a smaller number of them with
        probability 1 − alpha.
    """

    log_e: float
    tokens: int
    crossed: int
    p: float
    weights: Floats
    false_at_least: int = 0


def against(
    claim: Bound,
    others: Sequence[Density],
    groups: Sequence[int],
    alpha: float,
    share: float = SHARE,
    *,
    open_A: Bools | None = None,
    lost: int = 0,
) -> Weighed:
    """Weigh answers in their order against a claim, by an average over alternatives.

    A provider may answer a part of the requests with another config. So E is a product over answers of
    (1 − π) + π·E of the answer, averaged over the shares π of `MIXED` and over the alternatives: each factor
    has an expectation of at most 1 for honest answers, whatever π is.

    Answers of a group (one seed, or one cached answer) are not independent: their E-values are averaged
    before they are multiplied with those of other groups, which an average of e-values allows. The order is
    that of each group's first answer. A group of several counts when all its answers are read.

    A draw that is not shown has a factor of at least 0, so 0 is taken for it: an honest answer that ends in
    a token nobody sees was selected by that token, and leaving the factor out would let E grow by itself.

    Parameters
    ----------
    claim : Bound
        Such as a `Drawn` over (answer, token).
    others : sequence of Drawn
        Alternatives of the same shape, all given the same weight before the first token.
    groups : sequence of int
        Group of every answer; −1: it counts for nothing.
    alpha : float
    share : float
    open_A : ndarray of bool, optional
        Answers after whose last token here one more was drawn that is not shown. None: none.
    lost : int
        Further answers of which nothing is shown.

    Returns
    -------
    Weighed

    Raises
    ------
    ValueError
        Without an alternative.
    """
    if not others:
        raise ValueError("an e-value needs an alternative: replay one more config")
    here = np.isfinite(claim.logprob)
    lengths = here.sum(-1)
    paths = np.stack([log_e(claim, other, share) for other in others])  # alternative, answer, token
    numbers = np.asarray(groups)
    shares = np.array(MIXED)[:, None, None]
    unseen_A = np.zeros(len(lengths), bool) if open_A is None else open_A
    with np.errstate(divide="ignore"):  # π = 1
        nothing = np.log1p(-shares[..., 0])  # log of (1 − π) + π·0
    base, tokens, best = np.zeros((len(shares), len(others))), 0, (0.0, 0)
    if lost:
        base = base + lost * nothing
    crossed, ends = -1, list[float]()
    limit, count_of = -np.log(alpha), np.log(base.size)
    for group in dict.fromkeys(groups):
        members = np.flatnonzero((numbers == group) & (lengths > 0))
        if group < 0 or not len(members):
            continue
        if len(members) == 1:
            own = paths[:, members[0]][:, here[members[0]]]
        else:
            last = np.where(unseen_A[members], -np.inf, paths[:, members, -1])
            own = logsumexp(last, axis=1, keepdims=True) - np.log(len(members))
        unseen = bool(unseen_A[members].all())
        ends.append(-np.inf if unseen else float(logsumexp(own[:, -1]) - np.log(len(others))))
        with np.errstate(divide="ignore"):  # π = 1
            path = base[..., None] + np.logaddexp(np.log1p(-shares), np.log(shares) + own)
        mixed = logsumexp(path, axis=(0, 1)) - count_of
        count = int(lengths[members].sum())
        at = int(np.argmax(mixed))
        seen = np.arange(1, count + 1) if len(members) == 1 else np.array([count])
        if mixed[at] > best[0]:
            best = (float(mixed[at]), tokens + int(seen[at]))
        if crossed < 0 and (mixed >= limit).any():
            crossed = tokens + int(seen[int(np.argmax(mixed >= limit))])
        base, tokens = base + nothing if unseen else path[..., -1], tokens + count
    by_other = logsumexp(base, axis=0)
    weights = np.exp(by_other - logsumexp(by_other))
    false = _false_at_least(np.sort(ends), limit, lost)
    return Weighed(best[0], best[1], crossed, float(np.exp(-best[0])), weights, false)


def _false_at_least(log_e_G: Floats, limit: float, lost: int = 0) -> int:
    """Lower bound of the false groups, by closed testing.

    That j are false means that the others are honest; it is rejected when even those with the smallest E
    refute that. Every set of as many has at least their E.

    Parameters
    ----------
    log_e_G : ndarray
        E-value of every group, averaged over the alternatives, in rising order; nat.
    limit : float
        Log of what an e-value refutes at.
    lost : int
        Groups of which nothing is shown.
    """
    shares = np.array(MIXED)[:, None]
    with np.errstate(divide="ignore"):
        factors = np.logaddexp(np.log1p(-shares), np.log(shares) + log_e_G)
        before = lost * np.log1p(-shares) if lost else 0.0
    refutes = logsumexp(before + np.cumsum(factors, 1), axis=0) - np.log(len(MIXED)) >= limit
    # refutes[k − 1]: that the k smallest are all honest.
    return int(len(log_e_G) - np.argmax(refutes)) if refutes.any() else 0
