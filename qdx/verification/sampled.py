"""Test a claim by drawn tokens, with a noise allowance that covers other kernels of the same weights.

The verifier's row gives p_c, and an honest producer drew from p′, which another kernel or card computed. On
H100s, kernels of one checkpoint were at most `KERNEL_KL` nats a token apart (8B, awq, gptq and their Marlin
kernels; formats are 0.02 to 0.4 apart). Both tests allow for as much:

- An e-value's expected growth a token under p′ is Σ p′·d/p_c = 1 + Σ d·(p′ − p_c)/p_c, at most
  1 + √(χ²(d‖p_c)·χ²(p′‖p_c)) by Cauchy and Schwarz, with χ²(p′‖p_c) about 2·KL and χ²(d‖p_c) of formats
  under 1. `GROWTH` is taken off every token's logarithm. Where kernels of the claimed weights were replayed
  beside the claimed one, the denominator is the greatest probability that any of them gives the token.
- The law of u is off by at most the total variation between p′ and p_c on average, which Pinsker's inequality
  bounds by √(KL/2): `UNIFORM` is taken off the distance from the uniform law.

Both grow with 1/temperature below 1: a difference δ of two logits is δ/temperature in the distribution, so
its KL is at most the variance of δ/2 over temperature². An alternative with χ²(d‖p_c) above 1 can break the
first bound where the noise leans toward it; noise that does not has no mean effect.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
import scipy  # its `stats` is imported where it is used, which takes a second

from qdx.capture.densities import Drawn
from qdx.capture.plan import LEAST_TEMPERATURE
from qdx.statistics import Bools, Floats
from qdx.verification.e_values import Weighed, against
from qdx.verification.uniforms import distance_from_uniform, uniforms

KERNEL_KL = 5e-4
GROWTH = math.sqrt(2 * KERNEL_KL)  # 0.032
UNIFORM = math.sqrt(KERNEL_KL / 2)  # 0.016
_DIGITS = 10**12  # p-values are rationals: rounded up to so many parts
SMALLEST = Fraction(1, _DIGITS)


@dataclass(frozen=True)
class Alternatives:
    """The configs that a claim is held against, and those that show its kernels' noise.

    Attributes
    ----------
    family : list of int
        Configs of the claimed weights, the claimed one first.
    others : list of int
        All further ones.
    """

    family: list[int]
    others: list[int]

    @classmethod
    def of(cls, weights_C: Sequence[str], c: int) -> Alternatives:
        """Part configs by the hash of their weights; one that states none is of no family but its own."""
        same = [v for v, one in enumerate(weights_C) if v == c or (one and one == weights_C[c])]
        return cls(sorted(same, key=lambda v: v != c), [v for v in range(len(weights_C)) if v not in same])


def of_configs(drawn: Drawn, d: int, v: int) -> Drawn:
    """One producer's tokens by one config's rows, (reference, token)."""
    return Drawn(**{one.name: getattr(drawn, one.name)[d, v] for one in fields(Drawn)})


class Family:
    """Several kernels of one checkpoint as one claim: whichever of them it was, it gave no token more."""

    def __init__(self, members: Sequence[Drawn], growth_R: Floats | float = GROWTH) -> None:
        self._members, self._growth = members, np.asarray(growth_R)[..., None]
        lacking = np.any([~np.isfinite(one.logprob) for one in members], axis=0)
        self.logprob = np.where(lacking, np.nan, members[0].logprob)

    def log_bound(self, share: float) -> Floats:
        """See `Drawn.log_bound`."""
        # The allowance stays with several members: nothing says that they differ as an honest one may.
        most = np.max([one.log_bound(share) for one in self._members], axis=0)
        return np.asarray(most + self._growth)


@dataclass(frozen=True)
class Shown:
    """Hold what is known of a producer's answers beside their tokens.

    Attributes
    ----------
    temperature_R : ndarray
        At which each was drawn; NaN where it was not, or nobody knows.
    open_R : ndarray of bool
        Whether a token was drawn after the last one here that is not among them, such as one that ends an
        answer. It selects what is shown, so that nothing is left of the answer's evidence but its path.
    lost : int
        Answers that are not here at all.
    """

    temperature_R: Floats
    open_R: Bools
    lost: int = 0

    @classmethod
    def whole(cls, count: int, temperature: float = 1.0) -> Shown:
        """So many answers of which everything is shown."""
        return cls(np.full(count, temperature), np.zeros(count, bool))

    @property
    def noise_R(self) -> Floats:
        """By how much a difference of logits grows in each answer's distribution, at least 1."""
        known = np.where(np.isfinite(self.temperature_R), self.temperature_R, 1.0)
        return np.asarray(1 / np.clip(known, LEAST_TEMPERATURE, 1.0))


def evidence_against(
    drawn: Drawn, groups: Sequence[int], d: int, claim: Alternatives, alpha: float, shown: Shown | None = None
) -> Weighed | None:
    """E-value of a producer's tokens against a claim; None where no other weights were replayed.

    `alpha` is the level of its lower bound of false answers.
    """
    if not claim.others:
        return None
    return _against(drawn, groups, d, claim.family, claim.others, alpha, shown)


def _against(
    drawn: Drawn,
    groups: Sequence[int],
    d: int,
    claim: Sequence[int],
    others: Sequence[int],
    alpha: float,
    shown: Shown | None,
) -> Weighed:
    shown = shown or Shown.whole(len(groups))
    family = Family([of_configs(drawn, d, v) for v in claim], GROWTH * shown.noise_R)
    beside = [of_configs(drawn, d, v) for v in others]
    return against(family, beside, groups, alpha, open_A=shown.open_R, lost=shown.lost)


def log_likelihood(drawn: Drawn) -> Floats:
    """Log-probability of every answer's drawn tokens, (producer, config, reference), nat; NaN: none.

    A share of `e_values.SHARE` of the tokens may come from the untruncated distribution.
    """
    values = drawn.log_density()
    return np.where(np.isfinite(values).any(-1), np.nansum(values, -1), np.nan)


def not_told_apart(
    drawn: Drawn,
    groups: Sequence[int],
    d: int,
    c: int,
    weights_C: Sequence[str],
    alpha: float,
    shown: Shown | None = None,
) -> list[int]:
    """Configs of other weights than c's that this producer's tokens would not refute beside c.

    Tokens that fit c say nothing where they could not have told it from what else was replayed.
    """
    claim = Alternatives.of(weights_C, c)
    found = []
    for v in claim.others:
        family = Alternatives.of(weights_C, v).family
        if _against(drawn, groups, d, family, claim.family, alpha, shown).crossed < 0:
            found.append(v)
    return found


def uniform_p(
    drawn: Drawn, groups: Sequence[int], d: int, c: int, salt: str, shown: Shown | None = None
) -> tuple[Fraction, int]:
    """p of the claim that tokens were drawn from config c's rows, by their distance from the uniform law.

    One answer of each group counts, the first: answers with one seed share their noise.

    Parameters
    ----------
    drawn : Drawn
        (producer, config, reference, token).
    groups : sequence of int
        Of the producer's references; −1: no transcript.
    d, c : int
    salt : str
        What the seed of the transform is made of, beside the tokens' own numbers.
    shown : Shown, optional
        Without it, all is shown, at temperature 1. A draw that is not shown may have any u, and an answer
        that is lost is taken for as long as the longest one here.

    Returns
    -------
    p : Fraction
    tokens : int
        That were counted.
    """
    own = of_configs(drawn, d, c)
    first = [groups.index(g) for g in dict.fromkeys(groups) if g >= 0]
    chosen = Drawn(**{one.name: getattr(own, one.name)[first] for one in fields(Drawn)})
    digest = hashlib.sha256(f"{salt} {c}".encode() + np.ascontiguousarray(chosen.logprob).tobytes()).digest()
    u = uniforms(chosen, int.from_bytes(digest[:8], "little"))
    count = int(np.isfinite(u).sum())
    if not count:
        return Fraction(1), 0
    shown = shown or Shown.whole(len(groups))
    lengths = np.isfinite(u).sum(-1)
    unseen = int((shown.open_R[first] & (lengths > 0)).sum()) + shown.lost * int(lengths.max())
    noise = float((shown.noise_R[first] * lengths).sum()) / count
    distance = distance_from_uniform(u)[0] - UNIFORM * noise - unseen / (count + unseen)
    p = float(scipy.stats.kstwo.sf(distance, count + unseen)) if distance > 0 else 1.0
    return rational(p), count


def rational(p: float) -> Fraction:
    """A p-value as a fraction that is not smaller than it, and never 0."""
    return min(Fraction(1), Fraction(max(1, math.ceil(p * _DIGITS)), _DIGITS))


def readable_e(log_e: float) -> str:
    """An e-value from its natural logarithm, which may be beyond any float.

    Examples
    --------
    >>> readable_e(0.0), readable_e(5.0), readable_e(2000.0)
    ('1', '148', '10^868')
    """
    return f"{math.exp(log_e):.3g}" if log_e < math.log(1e6) else f"10^{int(log_e / math.log(10))}"
