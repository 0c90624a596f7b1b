"""The list of tests of every claim, made from what the files contain before their values are looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol

import numpy as np

from qdx.backends.sampling import plain_greedy
from qdx.document.format import plural
from qdx.statistics import Floats, Ints
from qdx.verification.compare import Compared
from qdx.verification.environment import record_differs
from qdx.verification.environment_class import MACHINE, TITLES, Match, compare
from qdx.verification.likelihood import row_mean
from qdx.verification.listed import Comparable, compared
from qdx.verification.p_values import (
    bonferroni,
    false_share,
    fewest_calibration,
    fisher_equality_p,
    holm,
    own_repeats_false_share,
    own_repeats_p,
    pooled_p,
    split,
)
from qdx.verification.profile import fit_profile, symmetric_scores
from qdx.verification.recorded import Recorded, own_units
from qdx.verification.replays import Replays
from qdx.verification.sampled import (
    GROWTH,
    SMALLEST,
    UNIFORM,
    Alternatives,
    Shown,
    evidence_against,
    rational,
    readable_e,
    uniform_p,
)
from qdx.verification.units import greatest_of_units, least_of_units

FEWEST_PROCESSES = 3  # the first run here and two reruns, each in a process of its own
GREEDY_ONLY = 1  # files of this schema version and before could hold nothing but plain greedy output


@dataclass(frozen=True)
class Test:
    """One test of a claim.

    Attributes
    ----------
    name : str
        ``decode rows``, ``prefill rows``, ``distances``, ``text``, ``drawn tokens`` or ``uniformity``.
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


@dataclass(frozen=True)
class Claim:
    """What was tested of one claim.

    Attributes
    ----------
    tests : list of Test
    unlisted : dict of str to str
        Kind of test to why the files do not allow it.
    single : bool
        Whether a test's own p, unadjusted, is at most the level.
    p : Fraction or None
        min(1, T · min p) over the T listed tests.
    behind : bool
        Whether another config is nearer, beside the claimed one, than known transcripts of it show.
    p_holm : Fraction or None
        The same adjusted over all claims.
    config : int
        That was tested: of several that a provider may mean, the one that fits best.
    meant : tuple of int
        All of these.
    """

    tests: list[Test]
    unlisted: dict[str, str]
    single: bool
    p: Fraction | None
    behind: bool = False
    p_holm: Fraction | None = None
    config: int = -1
    meant: tuple[int, ...] = ()

    @property
    def false_at_least(self) -> int:
        """Lower bound of the units that are false of this config, of the test that finds most."""
        return max((test.false_at_least for test in self.tests), default=0)

    def test(self, name: str) -> Test | None:
        """The listed test of that name."""
        return next((test for test in self.tests if test.name == name), None)


@dataclass(frozen=True)
class Calibrated:
    """One set of known transcripts beside one claim.

    Attributes
    ----------
    data : Replays
    label : str
        The claimed config, which both its producers and its verifier have.
    made : Match
        The producer's class against that of these transcripts.
    dropped : list of int
        References of this set that are judged too, or share a unit with one: they count for nothing here.
    records : Comparable or str
        Of a claim about records, energies of both sides that are made alike, or why there are none; "" of a
        claim about a file that qdx recorded, whose sketches are compared.
    """

    data: Replays
    label: str
    made: Match
    dropped: list[int] = field(default_factory=list)
    records: Comparable | str = ""

    def energies(self, data: Replays) -> tuple[Replays, Replays]:
        """The judged transcripts and these, with energies that can be compared."""
        return (
            (self.records.judged, self.records.known)
            if isinstance(self.records, Comparable)
            else (data, self.data)
        )

    @property
    def machine(self) -> str:
        """What the transcripts were made on, in a few words."""
        facts = self.data.class_D[self.data.producers.index(self.label)]
        names = [name for name in (*MACHINE, "backend_version", "torch_version") if facts.get(name)]
        said = ", ".join(facts[n] if n == "gpu or cpu" else f"{TITLES[n]} {facts[n]}" for n in names)
        return said or "a machine that they do not state"


def sampling_of(data: Replays, d: int) -> bool | None:
    """Whether a producer states plain greedy decoding; None where its record does not say."""
    recorded = data.records_D[d] is not None
    if not recorded and not data.sampling_D[d] and 0 < data.schema_D[d] <= GREEDY_ONLY:
        return True  # a file of that version could hold nothing else
    return plain_greedy(data.sampling_D[d])


def repeats_exactly(rows: Compared, c: int) -> bool:
    """Whether every rerun of a config here was bit-equal."""
    return rows.repeats_C[c].bit_equal


def why_no_rows(data: Replays, rows: Compared, match: Match, c: int) -> str:
    """Say why unequal rows of a phase do not refute; empty where they do."""
    if rows.missing:
        return rows.missing
    if not match.same:
        return f"the environment classes are not shown to be one ({match.why})"
    if not data.own_processes(c) or data.processes_C[c] < FEWEST_PROCESSES:
        return (
            "the config was not rerun here in two further processes of its own, so nothing shows that a "
            "start does not choose the kernel (repeats=3 repeat_scope=process)"
        )
    return "" if repeats_exactly(rows, c) else "the config does not repeat bit by bit here"


def weigh(
    data: Replays,
    known: Sequence[Replays],
    at: Sequence[Sequence[int]],
    alpha: Fraction,
) -> list[Claim | None]:
    """Test every claim.

    A provider that names a format may mean several configs. It is refuted where each of them is: the one with
    the greatest p stands for the claim, and one that no test can refute has the greatest there is.

    Parameters
    ----------
    data : Replays
    known : sequence of Replays
        Calibration: transcripts whose labels are known to be right.
    at : sequence of sequence of int
        The configs that every producer may claim to be; none: nothing was replayed of it.
    alpha : Fraction

    Returns
    -------
    list of Claim or None
        Of every producer; None where the claimed config was not replayed.
    """
    asked = sum(len(meant) > 0 for meant in at)
    starts = [_start_check(data, c) for c in range(len(data.configs))]
    found: list[Claim | None] = []
    for d, meant in enumerate(at):
        each = [
            replace(_claim(data, known, d, c, alpha, asked, starts[c]), config=c, meant=tuple(meant))
            for c in meant
        ]
        found.append(max(each, key=lambda one: 2 if one.p is None else one.p, default=None))
    listed = [claim for claim in found if claim is not None and claim.tests]
    adjusted = dict(zip(map(id, listed), holm([claim.p for claim in listed]), strict=True))
    return [claim and replace(claim, p_holm=adjusted.get(id(claim))) for claim in found]


def weigh_pairs(data: Replays, known: Sequence[Replays]) -> Floats:
    """T · min p of every producer as every config, without adjustment over them: (producer, config).

    NaN where the files allow no test.
    """
    found = np.full((len(data.producers), len(data.configs)), np.nan)
    starts = [_start_check(data, c) for c in range(len(data.configs))]
    for d, c in np.ndindex(*found.shape):
        p = bonferroni([listed.test(None).p for listed in _listed(data, known, d, c, starts[c])[0]])
        found[d, c] = np.nan if p is None else float(p)
    return found


def _claim(
    data: Replays, known: Sequence[Replays], d: int, c: int, alpha: Fraction, claims: int, start: str
) -> Claim:
    tests, unlisted = _listed(data, known, d, c, start)
    share = alpha / (max(1, len(tests)) * max(1, claims))
    done = [listed.test(share) for listed in tests]
    gap = [_gap_p(data, one, d, c) for one in _calibrated(data, known, d, c)]
    return Claim(
        done,
        unlisted,
        any(test.p is not None and test.p <= alpha for test in done),
        bonferroni([test.p for test in done]),
        any(p is not None and p <= alpha for p in gap),
    )


def _listed(
    data: Replays, known: Sequence[Replays], d: int, c: int, start: str
) -> tuple[list[_Listed], dict[str, str]]:
    """The tests that the files allow, and why they do not allow the others; `start` is of `_start_check`."""
    match = compare(data.class_D[d], data.class_C[c])
    tests, unlisted = list[_Listed](), dict[str, str]()
    for rows in data.phases:
        name = f"{rows.phase} rows"
        if why := why_no_rows(data, rows, match, c):
            unlisted[name] = why
        elif not rows.compared_DCR[d, c].any():
            unlisted[name] = "no row was published"
        else:
            tests.append(_rows_test(data, rows, d, c, name))
    sets = _calibrated(data, known, d, c)
    greedy = sampling_of(data, d)
    for name, why in (
        ("distances", _why_no_distances(data, d, c)),
        ("text", _why_no_text(greedy, data.records_D[d])),
    ):
        if why:
            unlisted[name] = why
            continue
        made = _noisy_test(data, sets, match, d, c, name, start)
        if isinstance(made, str):
            unlisted[name] = made
        else:
            tests.append(made)
    if greedy is False and _any_drawn(data, d, c):
        if Alternatives.of(weights_of(data), c).others:
            tests.append(_Against(data, d, c))
        else:
            unlisted["drawn tokens"] = "no config of other weights was replayed: add one to quant=…"
        tests.append(_Uniform(data, d, c))
    return tests, unlisted


def _any_drawn(data: Replays, d: int, c: int) -> bool:
    drawn = data.drawn
    return drawn is not None and bool(np.isfinite(drawn.logprob[d, c][data.there_DR[d]]).any())


def judged_groups(data: Replays, d: int) -> list[int]:
    """Group of every transcript of a producer of records; −1 for one that is not judged."""
    pairs = zip(data.groups_D[d], data.there_DR[d], strict=True)
    return [group if there else -1 for group, there in pairs]


def shown_of(data: Replays, d: int) -> Shown:
    """What is known of a producer's answers beside their tokens."""
    record = data.records_D[d]
    assert record is not None
    return Shown(record.samplers_RP[:, 0], record.open_R, record.lost_answers)


def weights_of(data: Replays) -> list[str]:
    """SHA-256 of every config's weights, as its record here states them."""
    return [record.get("weights_sha256", "") for record in data.record_C]


class _Listed(Protocol):
    """A test that the files allow; its values come when the number of tests is known.

    ``share`` is the level at which the false share is bounded; None leaves the bound out.
    """

    def test(self, share: Fraction | None) -> Test: ...


@dataclass(frozen=True)
class _Fisher:
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
class _Within:
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
class _Pooled:
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
class _Against:
    """An e-value of drawn tokens, against an average over the configs of other weights."""

    data: Replays
    d: int
    c: int

    def test(self, share: Fraction | None) -> Test:
        data, claim = self.data, Alternatives.of(weights_of(self.data), self.c)
        assert data.drawn is not None
        groups, shown = judged_groups(data, self.d), shown_of(data, self.d)
        found = evidence_against(data.drawn, groups, self.d, claim, float(share or 0.05), shown)
        assert found is not None
        others = ", ".join(data.configs[v] for v in claim.others)
        kernels = " and ".join(data.configs[v] for v in claim.family)
        noise = f"{GROWTH:.3f} nat a token at temperature 1 are allowed for the noise of kernels"
        if len(claim.family) > 1:
            noise += f", beside the greatest probability that {kernels} give"
        null = (
            f"{others}, E = {readable_e(found.log_e)} at its greatest, after {plural(found.tokens, 'token')} "
            f"({noise})"
        )
        false = 0 if share is None else found.false_at_least
        return Test("drawn tokens", rational(found.p), SMALLEST, null, _units(data, self.d), false)


@dataclass(frozen=True)
class _Uniform:
    """The randomized transform of drawn tokens, against the uniform law."""

    data: Replays
    d: int
    c: int

    def test(self, share: Fraction | None) -> Test:
        data = self.data
        assert data.drawn is not None
        salt = f"{data.producers[self.d]} {data.configs[self.c]}"
        groups, shown = judged_groups(data, self.d), shown_of(data, self.d)
        p, tokens = uniform_p(data.drawn, groups, self.d, self.c, salt, shown)
        null = (
            f"the uniform law, {plural(tokens, 'token')} ({UNIFORM:.3f} at temperature 1 are allowed for the "
            "noise of kernels)"
        )
        return Test("uniformity", p, SMALLEST, null, _units(data, self.d))


def _units(data: Replays, d: int) -> int:
    return own_units(data.units_DR[d], data.there_DR[d])


def _rows_test(data: Replays, rows: Compared, d: int, c: int, name: str) -> _Listed:
    differ_R = (rows.compared_DCR[d, c] > rows.equal_DCR[d, c]).astype(float)
    differ_R[rows.compared_DCR[d, c] == 0] = np.nan
    here = np.isfinite(differ_R)
    differ_U, _ = greatest_of_units(np.where(here, differ_R, 0.0), data.units_DR[d])
    judged_U, _ = greatest_of_units(here.astype(float), data.units_DR[d])
    reruns = (data.repeats - 1) * int(judged_U.sum())
    null = f"{plural(reruns, 'rerun')} here in {data.repeats - 1} further processes, all bit-equal"
    return _Fisher(name, differ_U[judged_U > 0], reruns, null)


def _why_no_distances(data: Replays, d: int, c: int) -> str:
    if (record := data.records_D[d]) is not None:
        if not any(answer and not other for answer, other in _judged(record)):
            return other_prompts(record)
        if sampling_of(data, d) is None:
            return _not_stated(record)
        lists = data.listed is not None and data.listed.digits_D[d] >= 0
        return "" if lists or sampling_of(data, d) else "the record lists no log-probabilities of its tokens"
    if not np.isfinite(data.energy_DCRT[d, c]).any():
        return "the producer published no sketches"
    if not data.decode.covered_DC[d, c] and not data.decode.missing:
        return "the producer left out rows of its choice, so that the others say nothing"
    return ""


def _why_no_text(greedy: bool | None, record: Recorded | None) -> str:
    if record is not None and not any(answer and not other for answer, other in _judged(record)):
        return other_prompts(record)
    if greedy:
        return ""
    if greedy is None:
        return _not_stated(record)
    return "the record states another decoding than plain greedy, which other tests judge"


def _not_stated(record: Recorded | None) -> str:
    if record is not None and record.asked:
        return (
            f"the record does not state {record.asked}, which 'prompts.assume={{…}}' can say (of a field "
            "of the request that changes no token 'prompts.harmless=[…]')"
        )
    return "the record does not state how its tokens were chosen"


def _judged(record: Recorded) -> list[tuple[str, bool]]:
    return list(zip(record.answers_R, record.other_R.tolist(), strict=True))


def other_prompts(record: Recorded) -> str:
    """Say that a provider's prompt is not the one that was asked."""
    return (
        f"{record.prompt_said} (so in {plural(record.other_prompts, 'answer')}): another template or a "
        "hidden system prompt"
    )


def _start_check(data: Replays, c: int) -> str:
    """Say why engine starts are not shown to be alike here; empty where they are.

    A start is shared by a whole run, so that no number of references averages its effect out. Kernels that
    repeat show it by equal rows of all processes; of others no process may stand out from the rest.
    """
    if not data.own_processes(c) or data.processes_C[c] < FEWEST_PROCESSES:
        return "engine starts were not compared here (repeats=3 repeat_scope=process)"
    if all(repeats_exactly(rows, c) for rows in data.phases):
        return ""
    worst: list[Fraction] = []
    for d in range(len(data.producers)):
        pair = data.between_DCRMM[d, c][:, 1:, 1:]
        score_RM = symmetric_scores(pair, np.empty((*pair.shape[:2], 0)), float(_floor(data, d)))
        score_UM, _ = greatest_of_units(score_RM, data.units_DR[d])
        for member in range(score_UM.shape[1]):
            order = [member, *(i for i in range(score_UM.shape[1]) if i != member)]
            worst.append(own_repeats_p(score_UM[:, order]) or Fraction(1))
    if worst and len(worst) * min(worst) <= Fraction(1, 100):
        return "one engine start here differs from the others as a whole, so that starts are not alike"
    return ""


def _floor(data: Replays, d: int) -> float:
    floor = row_mean(row_mean(data.floor_DRT[d])[None])[0]
    return float(floor) if np.isfinite(floor) else 0.0


def _calibrated(data: Replays, known: Sequence[Replays], d: int, c: int) -> list[Calibrated]:
    """Sets of known transcripts that can be the null of this claim."""
    label, found = data.configs[c], []
    for one in known:
        if label not in one.producers or label not in one.configs:
            continue
        replayed = compare(one.class_C[one.configs.index(label)], data.class_C[c])
        made = compare(data.class_D[d], one.class_D[one.producers.index(label)])
        if replayed.differs or made.differs:
            continue
        records = (one.record_D[one.producers.index(label)], one.record_C[one.configs.index(label)])
        if any(record_differs(record, data.record_C[c]) for record in records):
            continue  # known transcripts of other weights or kernels under the same label
        judged = set(data.reference_keys)
        dropped = [i for i, key in enumerate(one.reference_keys) if key in judged]
        alike = compared(data, one, d) if data.records_D[d] is not None else ""
        found.append(Calibrated(one, label, made, dropped, alike))
    return found


def _noisy_test(
    data: Replays, sets: Sequence[Calibrated], match: Match, d: int, c: int, name: str, start: str
) -> _Listed | str:
    """The test of a score that honest runs do not have equal; else why there is none."""
    if sets:
        if start:
            return start
        recorded = data.records_D[d] is not None
        if one_value := _of_one_arithmetic(sets) if recorded else _of_one_value(sets):
            return one_value
        if name == "distances" and (
            why := next((one.records for one in sets if isinstance(one.records, str)), "")
        ):
            return why
        made = _pooled(data, sets, d, c, name)
        if made is not None:
            return made
        return "the calibration has too few references that are not judged themselves"
    if not match.same and data.records_D[d] is not None:
        return (
            "no calibration, and the provider states nothing of its machine: known transcripts of another "
            "kernel, setting or machine say how many tokens of an honest one are not greedy here, and how "
            "far its log-probabilities are"
        )
    if not match.same:
        return f"no calibration, and the environment classes are not shown to be one ({match.why})"
    if start:
        return start
    exact = all(repeats_exactly(rows, c) for rows in data.phases)
    if exact and name == "distances":
        return "the config repeats bit by bit here, where rows say more than distances"
    if exact:
        return _exact_text(data, d, c)
    if name == "text":
        score_RM = data.text_members(d, c)
    else:
        others = [v for v in range(len(data.configs)) if v != c]
        beside_RMV = data.beside_DCRMV[d, c][..., others]
        score_RM = symmetric_scores(data.between_DCRMM[d, c], beside_RMV, _floor(data, d))
    score_UM, _ = greatest_of_units(score_RM, data.units_DR[d])
    score_UM = score_UM[np.isfinite(score_UM).all(-1)]
    if not len(score_UM):
        return "no transcript could be scored"
    null = f"the config's own {plural(data.repeats, 'repeat')} here, each in a process of its own"
    return _Within(name, score_UM, null)


def _of_one_value(sets: Sequence[Calibrated]) -> str:
    """Say which fact the producer does not state, and of which the known transcripts have one value only.

    Where an exact config's known transcripts are all alike, any rounding of another library is the greatest
    score: an honest producer would be refuted for what she did not state.
    """
    for title in dict.fromkeys(title for one in sets for title in one.made.unstated):
        names = [name for name, own in TITLES.items() if own == title]
        facts = [one.data.class_D[one.data.producers.index(one.label)] for one in sets]
        if len({own[name] for own in facts for name in names if own.get(name)}) < 2:
            return (
                f"the producer does not state its {title}, and the calibration covers one value of it: give "
                "sets of two or more"
            )
    return ""


def _of_one_arithmetic(sets: Sequence[Calibrated]) -> str:
    """Say that no known transcript was made by other arithmetic than the one that replayed it.

    A provider states nothing of its machine, so the null has to hold what an honest other kernel does.
    Transcripts that the replay's own arithmetic made are all greedy here, and any near-tie that another
    kernel decides otherwise would be the greatest score.
    """
    for one in sets:
        d, c = one.data.producers.index(one.label), one.data.configs.index(one.label)
        rows = one.data.decode
        if rows.compared_DCR[d, c].any() and not rows.all_equal_DC[d, c]:
            return ""
        if one.data.listed is not None and not rows.compared_DCR[d, c].any():
            equal_CR, listed_R = one.data.listed.equal_DCR(d)
            if (equal_CR[c] < listed_R).any() or (one.data.margin_DCRT[d, c] > 0).any():
                return ""
    return (
        "the provider states nothing of its machine, and the calibration holds no transcript of another "
        "kernel, setting or machine than the replay's (verify.calibration)"
    )


def _exact_text(data: Replays, d: int, c: int) -> _Listed | str:
    """Texts with a token that is not greedy, where every rerun here has equal rows and so equal choices."""
    score_R = data.text_scores()[d, c]
    score_U, _ = greatest_of_units(score_R, data.units_DR[d])
    score_U = score_U[np.isfinite(score_U)]
    if not len(score_U):
        return "no transcript could be scored"
    reruns = (data.repeats - 1) * len(score_U)
    null = f"{plural(reruns, 'rerun')} here, all of which choose the same tokens"
    return _Fisher("text", (score_U >= 1).astype(float), reruns, null)


def _pooled(data: Replays, sets: Sequence[Calibrated], d: int, c: int, name: str) -> _Listed | None:
    judged_SU, null_SN = [], []
    for one in sets:
        scores = _text_scores(data, one, d, c) if name == "text" else _profile_scores(data, one, d, c)
        if scores is None:
            return None
        judged_R, null_R, kept = scores
        if data.records_D[d] is None:
            judged_U, size_U = greatest_of_units(judged_R, data.units_DR[d])
        else:  # several answers to one prompt count as one
            judged_U, size_U = least_of_units(judged_R, data.units_DR[d]), np.ones(1, np.int64)
        producer = one.data.producers.index(one.label)
        null_U, null_size_U = greatest_of_units(null_R[kept], _renumbered(one.data.units_DR[producer][kept]))
        # A maximum over fewer transcripts is smaller by itself, and would make an honest unit stand out.
        null_U = null_U[null_size_U >= size_U.max(initial=1)]
        judged_U, null_U = judged_U[np.isfinite(judged_U)], null_U[np.isfinite(null_U)]
        if not len(judged_U) or not len(null_U):
            return None
        judged_SU.append(judged_U)
        null_SN.append(null_U)
    count = min(len(null) for null in null_SN)
    null = f"{plural(count, 'known transcript')} of it made on {'; '.join(one.machine for one in sets)}"
    if name == "distances" and isinstance(alike := sets[0].records, Comparable):
        null = f"{alike.what}, first {plural(alike.tokens, 'token')}, against {null}"
        if alike.shorter:
            null += f"; {plural(alike.shorter, 'answer')} with fewer tokens not counted"
    unstated = sorted({title for one in sets for title in one.made.unstated})
    if unstated:
        null += (
            f"; the producer's class is not fully stated ({', '.join(unstated)}), so p is the greatest over "
            f"{plural(len(sets), 'set')} of calibration; not covered: any other"
        )
    return _Pooled(name, judged_SU, null_SN, null)


def _renumbered(unit_R: Ints) -> Ints:
    number = {unit: n for n, unit in enumerate(dict.fromkeys(unit_R.tolist()))}
    return np.array([number[unit] for unit in unit_R.tolist()], np.int64)


Scores = tuple[Floats, Floats, list[int]]


def _usable(one: Calibrated) -> tuple[list[int], list[int]]:
    """References of a calibration set that fit centre and scale, and those that test.

    A unit is never divided between the two.
    """
    units_R = one.data.units_DR[one.data.producers.index(one.label)]
    dropped = {int(units_R[i]) for i in one.dropped}
    kept = [i for i in range(len(one.data.references)) if int(units_R[i]) not in dropped]
    first: dict[int, list[int]] = {}
    for i in kept:
        first.setdefault(int(units_R[i]), []).append(i)
    units = list(first.values())
    fit, test = split([min(one.data.reference_keys[i] for i in unit) for unit in units])
    return [i for u in fit for i in units[u]], [i for u in test for i in units[u]]


def _text_scores(data: Replays, one: Calibrated, d: int, c: int) -> Scores | None:
    """Scores of judged and known texts; nothing is fitted, and all known ones test."""
    fit, test = _usable(one)
    known = one.data
    producer = known.producers.index(one.label)
    # The judged texts may be shorter and then count for less, which refutes nobody; the known ones may not.
    most = int(min(known.emitted_DR[producer].max(initial=0), data.emitted_DR[d].max(initial=0)))
    null_R = known.text_scores(most, whole=True)[producer, known.configs.index(one.label)]
    kept = sorted([*fit, *test])
    judged_R = np.where(data.there_DR[d], data.text_scores(most)[d, c], np.nan)
    return (judged_R, null_R, kept) if kept else None


def _profile_scores(data: Replays, one: Calibrated, d: int, c: int) -> Scores | None:
    data, known = one.energies(data)
    fit, test = _usable(one)
    if not test:
        return None
    labels = [label for label in data.configs if label in known.configs]
    claim = labels.index(one.label)
    producer = known.producers.index(one.label)
    energy_VN = np.stack([row_mean(known.energy_DCRT[producer, known.configs.index(v)]) for v in labels])
    floor = row_mean(row_mean(known.floor_DRT[producer])[None, fit])[0]
    profile = fit_profile(energy_VN[:, fit], claim, float(floor) if np.isfinite(floor) else 0.0)
    if profile is None:
        return None
    judged_VR = np.stack([row_mean(data.energy_DCRT[d, data.configs.index(v)]) for v in labels])
    judged_VR[:, ~data.there_DR[d]] = np.nan
    return profile.score(judged_VR), profile.score(energy_VN), test


def _gap_p(data: Replays, one: Calibrated, d: int, c: int) -> Fraction | None:
    """P of how much nearer another config's replay lies than the claimed one's; not in the list of tests.

    Of a transcript it is the greatest x_c − x_v over the other configs v: a likelihood ratio.
    """
    (data, known), (fit, test) = one.energies(data), _usable(one)
    labels = [label for label in data.configs if label in known.configs]
    claim, producer = labels.index(one.label), known.producers.index(one.label)
    if len(labels) < 2 or not test:
        return None
    floor = row_mean(row_mean(known.floor_DRT[producer])[None, fit])[0]

    def gaps(energy_VR: Floats) -> Floats:
        least = floor if np.isfinite(floor) else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            x_VR = np.log(np.maximum(energy_VR, least))
            gap_R = (x_VR[claim] - np.delete(x_VR, claim, 0)).max(0)
        return np.asarray(np.where(energy_VR[claim] <= least, np.minimum(gap_R, 0.0), gap_R))

    judged = gaps(np.stack([row_mean(data.energy_DCRT[d, data.configs.index(v)]) for v in labels]))
    judged[~data.there_DR[d]] = np.nan
    null = gaps(np.stack([row_mean(known.energy_DCRT[producer, known.configs.index(v)]) for v in labels]))
    return pooled_p(judged, null[sorted([*fit, *test])])


def counts_needed(alpha: Fraction, claims: int, tests: int, judged: int) -> int:
    """References of a calibration, beside the fitting part, at which this many transcripts can be refuted."""
    return fewest_calibration(alpha, max(1, claims), max(1, tests), max(1, judged))
