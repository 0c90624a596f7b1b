"""What drawn tokens say of a claim: two tests whose noise allowance covers other kernels of the same weights.

The verifier's row gives p_c, and an honest producer drew from p′, which another kernel or card computed. On
H100s, kernels of one checkpoint were at most `KERNEL_KL` nats a token apart (8B, awq, gptq and their Marlin
kernels; formats are 0.02 to 0.4 apart). Both tests allow for as much:

- An e-value's expected growth a token under p′ is Σ p′·d/p_c = 1 + Σ d·(p′ − p_c)/p_c, at most
  1 + √(χ²(d‖p_c)·χ²(p′‖p_c)) by Cauchy and Schwarz, with χ²(p′‖p_c) about 2·KL and χ²(d‖p_c) of formats
  under 1. `GROWTH` is taken off every token's logarithm, unless kernels that were replayed show the noise
  themselves: then the greatest probability that any of them gives the token is the denominator.
- The law of u is off by at most the total variation between p′ and p_c on average, which Pinsker's inequality
  bounds by √(KL/2): `UNIFORM` is taken off the distance from the uniform law.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
from scipy import stats

from qdx.statistics import Floats
from qdx.verification.e_values import Drawn, Evidence, against
from qdx.verification.uniforms import uniforms

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

    def __init__(self, members: Sequence[Drawn]) -> None:
        self._members = members
        lacking = np.any([~np.isfinite(one.logprob) for one in members], axis=0)
        self.logprob = np.where(lacking, np.nan, members[0].logprob)

    def log_bound(self, share: float) -> Floats:
        """See `Drawn.log_bound`."""
        most = np.max([one.log_bound(share) for one in self._members], axis=0)
        return np.asarray(most + (GROWTH if len(self._members) == 1 else 0.0))


def evidence_against(
    drawn: Drawn, groups: Sequence[int], d: int, claim: Alternatives, alpha: float
) -> Evidence | None:
    """E-value of a producer's tokens against a claim; None where no other weights were replayed.

    `alpha` is the level of its lower bound of false answers.
    """
    if not claim.others:
        return None
    members = [of_configs(drawn, d, v) for v in claim.family]
    return against(Family(members), [of_configs(drawn, d, v) for v in claim.others], groups, alpha)


def log_likelihood(drawn: Drawn) -> Floats:
    """Log-probability of every answer's drawn tokens, (producer, config, reference), nat; NaN: none.

    A share of `e_values.SHARE` of the tokens may come from the untruncated distribution.
    """
    values = drawn.log_density()
    return np.where(np.isfinite(values).any(-1), np.nansum(values, -1), np.nan)


def not_told_apart(
    drawn: Drawn, groups: Sequence[int], d: int, c: int, weights_C: Sequence[str], alpha: float
) -> list[int]:
    """Configs of other weights than c's that this producer's tokens would not refute beside c.

    Tokens that fit c say nothing where they could not have told it from what else was replayed.
    """
    claim = Alternatives.of(weights_C, c)
    found = []
    for v in claim.others:
        other = Family([of_configs(drawn, d, u) for u in Alternatives.of(weights_C, v).family])
        beside = [of_configs(drawn, d, u) for u in claim.family]
        if against(other, beside, groups, alpha).crossed < 0:
            found.append(v)
    return found


def uniform_p(drawn: Drawn, groups: Sequence[int], d: int, c: int, salt: str) -> tuple[Fraction, int]:
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
    known = np.sort(u[np.isfinite(u)])
    count = len(known)
    if not count:
        return Fraction(1), 0
    steps = np.arange(count + 1) / count
    distance = max(float((steps[1:] - known).max()), float((known - steps[:-1]).max()))
    p = float(stats.kstwo.sf(max(0.0, distance - UNIFORM), count)) if distance > UNIFORM else 1.0
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
