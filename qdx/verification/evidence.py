"""The list of tests of every claim, made from what the files contain before their values are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from qdx.backends.sampling import plain_greedy
from qdx.document.format import plural
from qdx.statistics import Floats
from qdx.verification.calibration_size import fewest_calibration
from qdx.verification.compare import Compared
from qdx.verification.environment_class import Match, compare
from qdx.verification.known_transcripts import (
    Calibrated,
    calibrated,
    floor_of,
    gap_p,
    pooled_test,
    seeded_test,
    why_one_arithmetic,
    why_one_value,
)
from qdx.verification.listed_tests import (
    Against,
    Fisher,
    ListedTest,
    Parameters,
    Test,
    Uniform,
    Within,
    weights_of,
)
from qdx.verification.p_values import bonferroni, holm, own_repeats_p
from qdx.verification.profile import symmetric_scores
from qdx.verification.recorded import Recorded
from qdx.verification.replays import Replays
from qdx.verification.sampled import Alternatives
from qdx.verification.units import greatest_of_units

FEWEST_PROCESSES = 3  # the first run here and two reruns, each in a process of its own
GREEDY_ONLY = 1  # files of this schema version and before could hold nothing but plain greedy output


@dataclass(frozen=True)
class Claim:
    """Hold what was tested of one claim.

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
    most_false : int or None
        What `false_at_least` may be at most: the least that is shown of any config that is meant.
    """

    tests: list[Test]
    unlisted: dict[str, str]
    single: bool
    p: Fraction | None
    behind: bool = False
    p_holm: Fraction | None = None
    config: int = -1
    meant: tuple[int, ...] = ()
    most_false: int | None = None

    @property
    def false_at_least(self) -> int:
        """Lower bound of the units that are false of the claim, of the test that finds most.

        A provider that names a format ran one of its configs. An answer is false of the claim where it is
        false of each, so that the least bound counts.
        """
        found = max((test.false_at_least for test in self.tests), default=0)
        return found if self.most_false is None else min(found, self.most_false)

    def judged(self, units: int) -> int:
        """Units of the test that bounds the false ones; `units` where none does."""
        most = max(self.tests, key=lambda test: test.false_at_least, default=None)
        return units if most is None or not most.false_at_least else most.judged

    def test(self, name: str) -> Test | None:
        """The listed test of that name."""
        return next((test for test in self.tests if test.name == name), None)


def sampling_of(data: Replays, d: int) -> bool | None:
    """Return whether a producer states plain greedy decoding; None where its record does not say."""
    recorded = data.records_D[d] is not None
    if not recorded and not data.sampling_D[d] and 0 < data.schema_D[d] <= GREEDY_ONLY:
        return True  # a file of that version could hold nothing else
    return plain_greedy(data.sampling_D[d])


def repeats_exactly(rows: Compared, c: int) -> bool:
    """Return whether every rerun of a config here was bit-equal."""
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
        best = max(each, key=lambda one: 2 if one.p is None else one.p, default=None)
        least = min((one.false_at_least for one in each), default=0)
        found.append(best and replace(best, most_false=least))
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
    gap = [gap_p(data, one, d, c) for one in calibrated(data, known, d, c)]
    return Claim(
        done,
        unlisted,
        any(test.p is not None and test.p <= alpha for test in done),
        bonferroni([test.p for test in done]),
        any(p is not None and p <= alpha for p in gap),
    )


def _listed(
    data: Replays, known: Sequence[Replays], d: int, c: int, start: str
) -> tuple[list[ListedTest], dict[str, str]]:
    """The tests that the files allow, and why they do not allow the others; `start` is of `_start_check`."""
    match = compare(data.class_D[d], data.class_C[c])
    tests, unlisted = list[ListedTest](), dict[str, str]()
    for rows in data.phases:
        name = f"{rows.phase} rows"
        if why := why_no_rows(data, rows, match, c):
            unlisted[name] = why
        elif not rows.compared_DCR[d, c].any():
            unlisted[name] = "no row was published"
        else:
            tests.append(_rows_test(data, rows, d, c, name))
    sets = calibrated(data, known, d, c)
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
            tests.append(Against(data, d, c))
        else:
            unlisted["drawn tokens"] = "no config of other weights was replayed: add one to quant=…"
        tests.append(Uniform(data, d, c))
        if data.other_DCRTA is not None:
            tests.append(Parameters(data, d, c))
        seeded = seeded_test(data, sets, d, c, start)
        if isinstance(seeded, str):
            unlisted["seeded tokens"] = seeded
        else:
            tests.append(seeded)
    return tests, unlisted


def _any_drawn(data: Replays, d: int, c: int) -> bool:
    drawn = data.drawn
    return drawn is not None and bool(np.isfinite(drawn.logprob[d, c][data.there_DR[d]]).any())


def _rows_test(data: Replays, rows: Compared, d: int, c: int, name: str) -> ListedTest:
    differ_R = (rows.compared_DCR[d, c] > rows.equal_DCR[d, c]).astype(float)
    differ_R[rows.compared_DCR[d, c] == 0] = np.nan
    here = np.isfinite(differ_R)
    differ_U, _ = greatest_of_units(np.where(here, differ_R, 0.0), data.units_DR[d])
    judged_U, _ = greatest_of_units(here.astype(float), data.units_DR[d])
    reruns = (data.repeats - 1) * int(judged_U.sum())
    null = f"{plural(reruns, 'rerun')} here in {data.repeats - 1} further processes, all bit-equal"
    return Fisher(name, differ_U[judged_U > 0], reruns, null)


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
        score_RM = symmetric_scores(pair, np.empty((*pair.shape[:2], 0)), float(floor_of(data, d)))
        score_UM, _ = greatest_of_units(score_RM, data.units_DR[d])
        for member in range(score_UM.shape[1]):
            order = [member, *(i for i in range(score_UM.shape[1]) if i != member)]
            worst.append(own_repeats_p(score_UM[:, order]) or Fraction(1))
    if worst and len(worst) * min(worst) <= Fraction(1, 100):
        return "one engine start here differs from the others as a whole, so that starts are not alike"
    return ""


def _noisy_test(
    data: Replays, sets: Sequence[Calibrated], match: Match, d: int, c: int, name: str, start: str
) -> ListedTest | str:
    """The test of a score that honest runs do not have equal; else why there is none."""
    if sets:
        if start:
            return start
        recorded = data.records_D[d] is not None
        if one_value := why_one_arithmetic(sets) if recorded else why_one_value(sets):
            return one_value
        if name == "distances" and (
            why := next((one.records for one in sets if isinstance(one.records, str)), "")
        ):
            return why
        made = pooled_test(data, sets, d, c, name)
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
        score_RM = symmetric_scores(data.between_DCRMM[d, c], beside_RMV, floor_of(data, d))
    score_UM, _ = greatest_of_units(score_RM, data.units_DR[d])
    score_UM = score_UM[np.isfinite(score_UM).all(-1)]
    if not len(score_UM):
        return "no transcript could be scored"
    null = f"the config's own {plural(data.repeats, 'repeat')} here, each in a process of its own"
    return Within(name, score_UM, null)


def _exact_text(data: Replays, d: int, c: int) -> ListedTest | str:
    """Texts with a token that is not greedy, where every rerun here has equal rows and so equal choices."""
    score_R = data.text_scores()[d, c]
    score_U, _ = greatest_of_units(score_R, data.units_DR[d])
    score_U = score_U[np.isfinite(score_U)]
    if not len(score_U):
        return "no transcript could be scored"
    reruns = (data.repeats - 1) * len(score_U)
    null = f"{plural(reruns, 'rerun')} here, all of which choose the same tokens"
    return Fisher("text", (score_U >= 1).astype(float), reruns, null)


def counts_needed(alpha: Fraction, claims: int, tests: int, judged: int) -> int:
    """References of a calibration, beside the fitting part, at which this many transcripts can be refuted."""
    return fewest_calibration(alpha, max(1, claims), max(1, tests), max(1, judged))
