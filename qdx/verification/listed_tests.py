"""The tests that a claim may have: what each takes, and the p and the bound that it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import numpy as np

from qdx.capture.densities import ALTERNATIVES
from qdx.document.format import plural
from qdx.statistics import Floats, Joined
from qdx.verification.p_values import (
    false_share,
    fisher_equality_p,
    own_repeats_false_share,
    own_repeats_p,
    pooled_p,
)
from qdx.verification.parameters import Fit, Hypotheses, fit
from qdx.verification.replays import Replays
from qdx.verification.sampled import (
    GROWTH,
    SMALLEST,
    UNIFORM,
    Alternatives,
    Family,
    Shown,
    evidence_against,
    of_configs,
    rational,
    readable_e,
    uniform_p,
)


@dataclass(frozen=True)
class Test:
    """One test of a claim.

    Attributes
    ----------
    name : str
        ``decode rows``, ``prefill rows``, ``distances``, ``text``, ``drawn tokens``, ``uniformity``,
        ``parameters`` or ``seeded tokens``.
    p : Fraction or None
        None where the list has the test and its value could not be computed.
    least : Fraction
        The smallest p that it can have with so many units: what it can refute at all.
    null : str
        What the producer was held against.
    judged : int
        Units that were judged.
    false_at_least : int
        Lower bound of the units that are false, at the level that `Claim` shares out.
    known : int
        Known transcripts that the producer was held against; 0 where the null is another one.
    """

    name: str
    p: Fraction | None
    least: Fraction
    null: str
    judged: int
    false_at_least: int = 0
    known: int = 0


class ListedTest(Protocol):
    """A test that the files allow; its values come when the number of tests is known.

    ``share`` is the level at which the false share is bounded; None leaves the bound out.
    """

    def test(self, share: Fraction | None) -> Test: ...


@dataclass(frozen=True)
class Fisher:
    name: str
    differ_U: np.ndarray
    reruns: int
    null: str

    def test(self, share: Fraction | None) -> Test:
        judged, differ = len(self.differ_U), int(self.differ_U.sum())
        p = fisher_equality_p(differ, judged, self.reruns)
        least = fisher_equality_p(judged, judged, self.reruns) or Fraction(1)
        j = 0  # closed testing: the others, without the j that differ and are false, are tested again
        while share is not None and j < differ and _fisher(differ - j, judged - j, self.reruns) <= share:
            j += 1
        return Test(self.name, p, least, self.null, judged, j)


def _fisher(differ: int, judged: int, reruns: int) -> Fraction:
    return fisher_equality_p(differ, judged, reruns) or Fraction(1)


@dataclass(frozen=True)
class Within:
    name: str
    score_UM: Floats
    null: str

    def test(self, share: Fraction | None) -> Test:
        units, members = self.score_UM.shape
        least = min(Fraction(1), Fraction(2 if members == 2 else 3, members**units))
        return Test(
            self.name,
            own_repeats_p(self.score_UM),
            least,
            self.null,
            units,
            0 if share is None else own_repeats_false_share(self.score_UM, share),
        )


@dataclass(frozen=True)
class Pooled:
    """Against calibration; of several sets the greatest p counts, and the smallest share."""

    name: str
    judged_SU: list[Floats]
    null_SN: list[Floats]
    null: str

    def test(self, share: Fraction | None) -> Test:
        p_S, least_S, share_S = [], [], []
        for judged_U, null_N in zip(self.judged_SU, self.null_SN, strict=True):
            m, n = (int(np.isfinite(values).sum()) for values in (judged_U, null_N))
            p_S.append(pooled_p(judged_U, null_N))
            factor = 1 if m == 1 else 2
            least_S.append(min(Fraction(1), Fraction(factor, math.comb(m + n, m))))
            share_S.append(0 if share is None else false_share(judged_U, null_N, share))
        p = None if any(one is None for one in p_S) else max(one for one in p_S if one is not None)
        known = min(int(np.isfinite(null_N).sum()) for null_N in self.null_SN)
        return Test(self.name, p, max(least_S), self.null, len(self.judged_SU[0]), min(share_S), known)


@dataclass(frozen=True)
class Against:
    """An e-value of drawn tokens, against an average over the configs of other weights."""

    data: Replays
    d: int
    c: int

    def test(self, share: Fraction | None) -> Test:
        data, claim = self.data, Alternatives.of(weights_of(self.data), self.c)
        assert data.drawn is not None
        shown, alpha, ways = shown_of(data, self.d), float(share or 0.05), groupings(data, self.d)
        each = [evidence_against(data.drawn, way, self.d, claim, alpha, shown) for way in ways]
        groups, found = max(
            ((way, one) for way, one in zip(ways, each, strict=True) if one is not None),
            key=lambda pair: pair[1].p,
        )
        others = ", ".join(data.configs[v] for v in claim.others)
        kernels = " and ".join(data.configs[v] for v in claim.family)
        noise = f"{GROWTH:.3f} nat a token at temperature 1 are allowed for the noise of kernels"
        if len(claim.family) > 1:
            noise += f", beside the greatest probability that {kernels} give"
        null = (
            f"{others}, E = {readable_e(found.log_e)} at its greatest, after {plural(found.tokens, 'token')} "
            f"({noise})"
        )
        false = 0 if share is None else min(one.false_at_least for one in each if one is not None)
        return Test("drawn tokens", rational(found.p), SMALLEST, null, _count(groups), false)


@dataclass(frozen=True)
class Uniform:
    """The randomized transform of drawn tokens, against the uniform law."""

    data: Replays
    d: int
    c: int

    def test(self, share: Fraction | None) -> Test:
        data = self.data
        assert data.drawn is not None
        salt = f"{data.producers[self.d]} {data.configs[self.c]}"
        shown = shown_of(data, self.d)
        p, tokens, groups = max(
            (
                (*uniform_p(data.drawn, way, self.d, self.c, salt, shown), way)
                for way in groupings(data, self.d)
            ),
            key=lambda found: found[0],
        )
        null = (
            f"the uniform law, {plural(tokens, 'token')} ({UNIFORM:.3f} at temperature 1 are allowed for the "
            "noise of kernels)"
        )
        return Test("uniformity", p, SMALLEST, null, _count(groups))


@dataclass(frozen=True)
class Parameters:
    """An e-value of drawn tokens against other sampling parameters than the stated ones."""

    data: Replays
    d: int
    c: int

    def test(self, share: Fraction | None) -> Test:
        found = parameters_of(self.data, self.d, self.c, float(share or 0.05))
        weighed = found.weighed
        null = (
            f"{len(ALTERNATIVES)} other settings of the parameters, E = {readable_e(weighed.log_e)} at its "
            f"greatest, after {plural(weighed.tokens, 'token')}"
        )
        if weighed.crossed >= 0:
            null += f" (most weight: {found.best})"
        judged = _count(judged_groups(self.data, self.d))
        return Test("parameters", rational(weighed.p), SMALLEST, null, judged)


def parameters_of(data: Replays, d: int, c: int, alpha: float, *, interval: bool = False) -> Fit:
    """Hold a producer's drawn tokens against other sampling parameters, by one config's rows.

    Parameters
    ----------
    data : Replays
        With drawn tokens.
    d, c : int
    alpha : float
    interval : bool
        Whether the temperature is bounded too, where all answers state one.
    """
    assert data.drawn is not None and data.other_DCRTA is not None and data.most_DCRTK is not None
    record, shown = data.records_D[d], shown_of(data, d)
    assert record is not None
    stated = record.samplers_RP[data.there_DR[d]]
    stated = stated[np.isfinite(stated).all(-1)]
    claim = Family(
        [of_configs(data.drawn, d, v) for v in Alternatives.of(weights_of(data), c).family],
        GROWTH * shown.noise_R,
    )
    each = [
        fit(
            claim,
            Hypotheses(data.other_DCRTA[d, c], data.most_DCRTK[d, c]),
            way,
            alpha,
            shown,
            truncates=bool(((stated[:, 1] > 0) | (stated[:, 2] < 1) | (stated[:, 3] > 0)).any()),
            interval=interval and len(set(stated[:, 0].tolist())) == 1,
        )
        for way in groupings(data, d)
    ]
    found = max(each, key=lambda one: one.weighed.p)
    ends = [np.array([getattr(one, end) for one in each]) for end in ("low", "high")]
    if np.isnan(ends[0]).all():
        return found
    return replace(found, low=float(np.nanmin(ends[0])), high=float(np.nanmax(ends[1])))


def explained(data: Replays, d: int) -> tuple[int, float, int]:
    """Count the tokens that the seeds draw here, under the config that has most of them.

    Returns
    -------
    right : int
    chance : float
        As many would be right if the noise had nothing to do with the tokens: their probabilities, and four
        standard deviations of their sum.
    total : int
    """
    assert data.drawn is not None and data.seeded_DCRT is not None
    found = []
    for c in range(len(data.configs)):
        margin_RT = data.seeded_DCRT[d, c][data.there_DR[d]]
        here = np.isfinite(margin_RT)
        p = np.exp(of_configs(data.drawn, d, c).log_density()[data.there_DR[d]][here])
        chance = float(p.sum() + 4 * np.sqrt((p * (1 - p)).sum()))
        found.append((int((margin_RT[here] == 0).sum()), chance, int(here.sum())))
    return max(found, key=lambda one: one[0] - one[1])


@dataclass(frozen=True)
class Silent:
    """A listed test without a value: the seeds have nothing to do with the tokens, under any config here."""

    made: ListedTest
    right: int
    chance: float
    total: int

    def test(self, share: Fraction | None) -> Test:
        null = (
            f"nothing, since the seeds explain {self.right:,} of {plural(self.total, 'token')}, and up to "
            f"{self.chance:,.0f} by chance: the noise is another engine's or version's than prompts.noise "
            "says, or the seeds were not used"
        )
        return replace(self.made.test(share), p=None, null=null, false_at_least=0)


def _count(groups: Sequence[int]) -> int:
    return len(set(groups) - {-1})


def judged_groups(data: Replays, d: int) -> list[int]:
    """Group of every transcript of a producer of records; −1 for one that is not judged."""
    pairs = zip(data.groups_D[d], data.there_DR[d], strict=True)
    return [group if there else -1 for group, there in pairs]


def groupings(data: Replays, d: int) -> list[list[int]]:
    """Ways to say which drawn answers of a producer of records are one; every one has to refute.

    Answers with seeds of their own are independent, unless something before the engine keeps answers whatever
    the seed. Such a cache gives equal answers to one prompt. Where there are any, all answers to a prompt are
    one unit in a second way. An average over them holds its level whatever the cache did, and the first way
    does where there is none, so that the greater p holds it in either case. (Counting equal answers once
    would count the improbable ones too often.)
    """
    groups, record = judged_groups(data, d), data.records_D[d]
    assert record is not None
    seen: dict[str, int] = {}
    pairs = zip(record.answers_R, groups, strict=True)
    if all(group < 0 or seen.setdefault(answer, group) == group for answer, group in pairs):
        return [groups]
    joined = Joined(len(groups))
    first: dict[tuple[str, object], int] = {}
    for r, (key, group) in enumerate(zip(data.reference_keys, groups, strict=True)):
        for one in (("prompt", key), ("group", group)) if group >= 0 else ():
            joined.join(first.setdefault(one, r), r)
    return [groups, [int(n) if g >= 0 else -1 for n, g in zip(joined.numbers, groups, strict=True)]]


def shown_of(data: Replays, d: int) -> Shown:
    """Return what is known of a producer's answers beside their tokens."""
    record = data.records_D[d]
    assert record is not None
    return Shown(record.samplers_RP[:, 0], record.open_R, record.lost_answers)


def weights_of(data: Replays) -> list[str]:
    """SHA-256 of every config's weights, as its record here states them."""
    return [record.get("weights_sha256", "") for record in data.record_C]
