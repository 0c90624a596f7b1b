"""Listed log-probabilities: what is compared, the level of honest ones and the power against false ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction as F
from typing import Any

import numpy as np
import pytest
from scipy import stats

from qdx.backends.sampling import greedy
from qdx.prompts._record_collect import digits_of
from qdx.records.decoding import RAW
from qdx.verification import known_transcripts
from qdx.verification import listed as module
from qdx.verification.environment_class import Match
from qdx.verification.evidence import weigh
from qdx.verification.format_names import NAMES, SPELLINGS, meant
from qdx.verification.kernel_noise import FACTOR, margin_allowed
from qdx.verification.known_transcripts import Calibrated, _profile_scores, _text_scores, why_one_arithmetic
from qdx.verification.listed import LISTS, TOKENS, Comparable, Listed, compared, first_ones
from qdx.verification.p_values import pooled_p
from qdx.verification.profile import fit_profile
from qdx.verification.recorded import Recorded
from qdx.verification.replays import Replays
from tests.analysis.replaying import trees

ALPHA, TRIALS, VOCAB, KEPT = F(1, 20), 120, 48, 20
MOST = int(stats.binom.ppf(0.999, TRIALS, float(ALPHA)))
SAMPLED = (
    greedy().replace('"method":"greedy"', '"method":"random"').replace('"temperature":0', '"temperature":1')
)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def listed_of(provider: np.ndarray, here: np.ndarray, rank: int, digits: int) -> Listed:
    """What a provider prints of its rows, (reference, token, vocab), beside those of configs here."""
    theirs = log_softmax(provider)
    ids = np.argsort(-theirs, -1, kind="stable")[..., :rank]
    stated = np.round(np.take_along_axis(theirs, ids, -1), digits)
    own = np.argmax(theirs, -1)[..., None]
    at = log_softmax(here)
    least = np.sort(at, -1)[..., -KEPT][..., None]
    taken = np.take_along_axis(at, np.broadcast_to(ids, (len(at), *ids.shape)), -1)
    kept = np.where(taken >= least, taken, np.minimum(stated[None], least))
    return Listed(
        stated[None],
        kept[None],
        (ids == own)[None],
        np.round(np.take_along_axis(theirs, own, -1), digits)[None, ..., 0],
        np.take_along_axis(at, np.broadcast_to(own, (len(at), *own.shape)), -1)[None, ..., 0],
        [rank],
        [digits],
        np.full((1, *at.shape[:3]), 1e-9),
    )


def world(
    generator: np.random.Generator, base: Replays, count: int, lengths: tuple[int, int], *,
    made_by: int = 0, noise: float = 0.02, spread: float = 0.2, rank: int = 5, digits: int = 4, records: bool,
) -> Replays:  # fmt: skip
    """Transcripts of a provider whose kernel has noise of its own, replayed by configs a and b."""
    tokens = lengths[1]
    a = generator.normal(0, 3, (count, tokens, VOCAB))
    here = np.stack([a, a + generator.normal(0, spread, a.shape)])
    provider = here[made_by] + generator.normal(0, noise, a.shape)
    emitted = generator.integers(lengths[0], lengths[1] + 1, count)
    inside = np.arange(tokens)[None] < emitted[:, None]
    found = listed_of(provider, here, rank, digits)
    own = np.argmax(provider, -1)[None, ..., None]
    margin = here.max(-1) - np.take_along_axis(here, np.broadcast_to(own, (2, *own.shape[1:])), -1)[..., 0]
    hidden = {
        "stated_DRTK": np.where(inside[None, ..., None], found.stated_DRTK, np.nan),
        "own_DRT": np.where(inside[None], found.own_DRT, np.nan),
    }
    answers = tuple(f"{i}" for i in range(count))
    known = Recorded(answers_R=answers, other_R=np.zeros(count, bool), open_R=np.zeros(count, bool))
    known = replace(known, samplers_RP=np.full((count, 4), np.nan))
    return replace(
        base,
        references=[f"r{i}" for i in range(count)],
        reference_keys=[f"{generator.integers(2**60)}" for _ in range(count)],
        units_DR=np.arange(count)[None],
        margin_DCRT=np.where(inside[None, None], margin[None], np.nan),
        emitted_DR=emitted[None],
        records_D=[known if records else None],
        groups_D=[tuple(range(count))],
        listed=replace(found, **hidden),
        between_DCRMM=generator.exponential(1.0, (1, 2, count, 4, 4)),
        beside_DCRMV=generator.exponential(1.0, (1, 2, count, 4, 2)),
    )


@pytest.fixture(scope="module")
def base() -> Replays:
    return Replays.of(*trees({"a": 0.3, "b": 0.3}, producers=["a"], references=2, tokens=3))


def rejected(
    base: Replays,
    lengths: tuple[int, int] = (6, 12),
    by: Callable[..., Any] = _profile_scores,
    count_judged: int = 6,
    **of_judged: object,
) -> int:
    """How often a claim of config a is refuted by distances, of `TRIALS`."""
    generator, count = np.random.default_rng(7), 0
    for _ in range(TRIALS):
        mine = world(generator, base, count_judged, lengths, records=True, **of_judged)  # type: ignore[arg-type]
        theirs = world(generator, base, 40, (12, 12), rank=KEPT, digits=6, records=False)
        alike = compared(mine, theirs, 0)
        assert isinstance(alike, Comparable)
        scores = by(mine, Calibrated(theirs, "a", Match(), [], alike), 0, 0)
        assert scores is not None
        judged_R, null_R, test = scores
        p = pooled_p(judged_R[np.isfinite(judged_R)], null_R[test])
        count += p is not None and p <= ALPHA
    return count


@pytest.mark.parametrize("digits", [1, 4])
def test_honest_lists_are_refuted_as_rarely_as_the_level_says(base: Replays, digits: int) -> None:
    assert rejected(base, digits=digits) <= MOST


def test_the_level_breaks_where_known_transcripts_are_not_rounded_as_the_judged_ones_are(
    base: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_listing", lambda *_: (5, 6))
    monkeypatch.setattr(known_transcripts, "FACTOR", 0.0)
    assert rejected(base, digits=1) > MOST


@pytest.mark.slow
@pytest.mark.parametrize("by", [_profile_scores, _text_scores])
def test_another_kernel_than_the_known_ones_is_refuted_as_rarely_as_the_level_says(
    base: Replays, by: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An honest kernel whose noise is 1.8 times that of the known answers, in 30 answers."""
    other = {"by": by, "count_judged": 30, "noise": 0.036, "lengths": (12, 12)}
    assert rejected(base, **other) <= MOST  # type: ignore[arg-type]
    if by is _profile_scores:
        monkeypatch.setattr(known_transcripts, "FACTOR", 0.0)
        assert rejected(base, **other) > MOST, "without the allowance"  # type: ignore[arg-type]


def test_an_allowed_margin_is_an_honest_choice_and_a_greater_one_is_not(base: Replays) -> None:
    margin = np.zeros_like(base.margin_DCRT)
    margin[..., 0], margin[..., 1] = 0.09, 0.3
    one = replace(base, margin_DCRT=margin)
    assert (one.text_scores() >= 2).all() and (one.text_scores() < 3).all()
    assert (one.text_scores(allowed=0.1) >= 1).all() and (one.text_scores(allowed=0.1) < 2).all()
    assert (one.text_scores(allowed=0.5) == 0).all()


def test_an_allowance_of_a_profile_reaches_as_far_as_another_kernel_may_be() -> None:
    known = np.exp(np.random.default_rng(0).normal(0, 0.1, (3, 60)) + np.array([[-9.0], [-9.0], [0.0]]))
    profile = fit_profile(known, 0, 0.0)
    assert profile is not None

    def scores(*times: float) -> tuple[float, float]:
        energy = np.median(known, 1)[:, None] * np.array(times)[:, None]
        return float(profile.score(energy, FACTOR)[0]), float(profile.score(energy)[0])

    allowed, plain = scores(3.5, 3.5, 1.0)
    assert allowed < 1 and plain > 5, "a kernel that is a little further"
    assert scores(1.0, 1 / 50, 1.0)[0] > 10, "it is the other kernel"
    assert scores(1.0, 1.0, 1.5)[0] > 2, "other weights do not move by so little noise"


@pytest.mark.slow
def test_the_level_breaks_where_means_are_over_unequal_numbers_of_tokens(
    base: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_cut", lambda data, _tokens: data)
    monkeypatch.setattr(known_transcripts, "FACTOR", 0.0)
    assert rejected(base, (1, 3), noise=0.02) > MOST


@pytest.mark.parametrize(("rank", "spread"), [(5, 0.05), (0, 0.2)])
def test_lists_of_another_format_are_refuted(base: Replays, rank: int, spread: float) -> None:
    """With a rank of 0 only the emitted token's own log-probability is printed."""
    assert rejected(base, made_by=1, spread=spread, rank=rank) >= 0.9 * TRIALS


def test_lists_that_are_rounded_to_a_whole_number_refute_nearly_nobody(base: Replays) -> None:
    assert rejected(base, made_by=1, spread=0.05, digits=0) < 0.5 * TRIALS


def test_the_energy_of_a_row_is_the_mean_square_over_list_emitted_token_and_rest() -> None:
    stated = np.log(np.array([0.5, 0.25]))
    here = np.log(np.array([0.4, 0.3]))
    one = Listed(
        stated[None, None, None], here[None, None, None, None], np.zeros((1, 1, 1, 2), bool),
        np.log([[[0.05]]]), np.log([[[[0.1]]]]), [2], [6], np.zeros((1, 1, 1, 1)),
    )  # fmt: skip
    energy, count = one.energies(0, 2, 12)
    wanted = sum(float(np.log(a / b)) ** 2 for a, b in ((0.5, 0.4), (0.25, 0.3), (0.05, 0.1)))
    wanted += ((1 - 0.8) - (1 - 0.8)) ** 2
    assert count.item() == 3 and np.isclose(energy.item(), wanted / 4, rtol=1e-9)
    energy, count = one.energies(0, 1, 12)
    wanted = np.log(0.5 / 0.4) ** 2 + np.log(0.05 / 0.1) ** 2 + (0.45 - 0.5) ** 2
    assert count.item() == 2 and np.isclose(energy.item(), wanted / 3, rtol=1e-9)


def test_equal_rows_print_equal_lists_and_other_kernels_do_not() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(0, 3, (10, 8, VOCAB))
    here = np.stack([rows, rows + generator.normal(0, 0.01, rows.shape)])
    equal_CR, tokens_R = listed_of(rows, here, 5, 4).equal_DCR(0)
    assert (tokens_R == 8).all() and (equal_CR[0] == 8).all() and equal_CR[1].sum() == 0
    coarse, _ = listed_of(rows, here, 5, 1).equal_DCR(0)
    assert (coarse[0] == 8).all() and coarse[1].sum() > 20, "one decimal hides a kernel"


def test_tokens_that_are_not_kept_here_are_taken_for_as_near_as_they_may_be() -> None:
    rows = np.random.default_rng(1).normal(0, 3, (3, 4, VOCAB))
    upside_down = -rows
    found = listed_of(rows, np.stack([upside_down]), 5, 6)
    least = np.sort(log_softmax(upside_down), -1)[..., -KEPT][..., None]
    assert (found.here_DCRTK[0, 0] <= np.maximum(least, found.stated_DRTK[0])).all()


def test_greedy_records_without_lists_take_the_profile_of_their_margins(base: Replays) -> None:
    generator = np.random.default_rng(3)
    mine = world(generator, base, 8, (12, 12), records=True, made_by=1, spread=1.0)
    assert mine.listed is not None
    mine = replace(mine, listed=replace(mine.listed, digits_D=[-1], rank_D=[0]))
    theirs = world(generator, base, 50, (12, 12), records=False)
    assert mine.sampling_D == [greedy()]
    alike = compared(mine, theirs, 0)
    assert isinstance(alike, Comparable) and alike.what == TOKENS
    beyond = np.maximum(first_ones(mine.margin_DCRT) - margin_allowed(""), 0)
    assert np.allclose(alike.judged.energy_DCRT, beyond**2, equal_nan=True)
    unstated = replace(mine, class_D=[{**mine.class_D[0], "gpu or cpu": ""}])
    (claim,) = weigh(unstated, [theirs], [[0]], ALPHA)
    assert claim is not None and {test.name for test in claim.tests} == {"distances", "text"}
    assert claim.p is not None and claim.p <= ALPHA


def test_sampled_records_are_compared_with_transcripts_of_the_same_sampling_alone(base: Replays) -> None:
    generator = np.random.default_rng(4)

    def drawn(data: Replays, temperature: float, mode: str = "") -> Replays:
        record = data.records_D[0]
        assert record is not None
        rows = np.tile([temperature, 0.0, 1.0, 0.0], (len(data.references), 1))
        record = replace(record, samplers_RP=rows, logprobs_mode=mode)
        return replace(data, records_D=[record], sampling_D=[SAMPLED])

    mine = world(generator, base, 8, (12, 12), records=True)
    theirs = world(generator, base, 40, (12, 12), records=True)
    greedy_ones = world(generator, base, 40, (12, 12), records=False)
    assert "no known transcript was drawn" in str(compared(drawn(mine, 1.0), greedy_ones, 0))
    assert "no known transcript was drawn" in str(compared(drawn(mine, 1.0), drawn(theirs, 0.7), 0))
    alike = compared(drawn(mine, 1.0), drawn(theirs, 1.0), 0)
    assert isinstance(alike, Comparable) and alike.what.startswith(LISTS) and "4 greatest" in alike.what
    assert "does not state logprobs_mode" in str(compared(drawn(mine, 0.7), drawn(theirs, 0.7), 0))
    assert isinstance(compared(drawn(mine, 0.7, RAW), drawn(theirs, 0.7, RAW), 0), Comparable)
    assert "known transcripts" in str(compared(drawn(mine, 0.7, RAW), drawn(theirs, 0.7), 0))


@pytest.mark.parametrize(
    ("sampling", "noise", "makes_a_null"),
    [(SAMPLED, 0.0, False), (SAMPLED, 0.02, True), (greedy(), 0.0, False), (greedy(), 0.02, True)],
)
def test_known_answers_of_the_replays_own_arithmetic_are_no_null(
    base: Replays, sampling: str, noise: float, makes_a_null: bool
) -> None:
    """Drawn tokens are not the greatest ones, which shows nothing of another kernel: their lists do."""
    theirs = world(np.random.default_rng(8), base, 12, (12, 12), records=True, noise=noise)
    rows = replace(theirs.decode, compared_DCR=np.zeros_like(theirs.decode.compared_DCR))
    margin = theirs.margin_DCRT + (1.0 if sampling == SAMPLED else 0.0)
    known = replace(theirs, sampling_D=[sampling], decode=rows, margin_DCRT=margin)
    why = why_one_arithmetic([Calibrated(known, "a", Match())])
    assert (why == "") is makes_a_null, why


def test_a_format_is_refuted_where_each_of_its_kernels_is(base: Replays) -> None:
    """The provider ran config b: a claim that may be b is not refuted, and one of a alone is."""
    generator = np.random.default_rng(5)
    mine = world(generator, base, 8, (12, 12), records=True, made_by=1)
    theirs = world(generator, base, 50, (12, 12), records=False)
    both = replace(theirs, producers=["a", "b"])
    names = (
        "emitted_DR", "margin_DCRT", "units_DR", "energy_DCRT", "floor_DRT", "between_DCRMM", "beside_DCRMV",
    )  # fmt: skip
    other = world(np.random.default_rng(6), base, 50, (12, 12), records=False, made_by=1)
    assert theirs.listed is not None and other.listed is not None
    lists = {
        n: np.concatenate([getattr(theirs.listed, n), getattr(other.listed, n)])
        for n in ("stated_DRTK", "here_DCRTK", "emitted_DRTK", "own_DRT", "here_own_DCRT", "floor_DCRT")
    }
    both = replace(
        both,
        **{n: np.concatenate([getattr(theirs, n), getattr(other, n)]) for n in names},
        **{n: getattr(theirs, n) * 2 for n in ("class_D", "record_D", "sampling_D", "schema_D", "records_D")},
        listed=Listed(**lists, rank_D=[5, 5], digits_D=[4, 4]),
        decode=replace(
            theirs.decode,
            **{
                n: np.concatenate([getattr(theirs.decode, n)] * 2)
                for n in ("compared_DCR", "equal_DCR", "expected_DCR", "content_DCR", "content_equal_DCR")
            },
        ),
    )
    unstated = replace(mine, class_D=[{**mine.class_D[0], "gpu or cpu": ""}])
    one, any_of_two = (weigh(unstated, [both], [members], ALPHA)[0] for members in ([0], [0, 1]))
    assert one is not None and any_of_two is not None and one.p is not None and any_of_two.p is not None
    assert one.p <= ALPHA < any_of_two.p and any_of_two.config == 1 and any_of_two.meant == (0, 1)
    assert one.false_at_least > 0 == any_of_two.false_at_least, "false of a is not of the format"
    assert replace(one, most_false=1).false_at_least == 1


def test_names_of_formats_are_those_of_the_market() -> None:
    labels, formats = ["none", "awq", "awq_marlin", "gptq", "fp8"], ["none", "awq", "awq", "gptq", "fp8"]
    dtypes = ["bfloat16"] * 5
    assert meant("awq", labels, formats, dtypes) == [1, 2]
    assert meant("int4", labels, formats, dtypes) == [1, 2, 3]
    assert meant("BF16", labels, formats, dtypes) == meant("bfloat16", labels, formats, dtypes) == [0]
    assert meant("fp16", labels, formats, dtypes) == [] and meant("unknown", labels, formats, dtypes) == []
    assert meant("awq", labels, [""] * 5, dtypes) == [1], "a file without formats has labels"
    assert set(SPELLINGS.values()) <= set(NAMES)


def test_decimals_are_those_that_were_printed() -> None:
    assert digits_of([-0.1234, -1.5]) == 4 and digits_of([-1.0001931190490723]) == 16
    assert digits_of([float("nan")]) == -1 and digits_of([-2.0, -0.0]) == 0
