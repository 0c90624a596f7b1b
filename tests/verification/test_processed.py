"""Log-probabilities after temperature and truncation: what a row prints, and the tests of lists of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qdx.capture.sampled import Sampler, drawn
from qdx.records.decoding import PROCESSED, RAW
from qdx.verification.environment_class import Match
from qdx.verification.known_transcripts import Calibrated, _profile_scores
from qdx.verification.listed import Comparable, compared
from qdx.verification.p_values import pooled_p
from qdx.verification.processed import mode_of, printed, temperature_of
from qdx.verification.recorded import Recorded
from qdx.verification.replays import Replays
from tests.analysis.replaying import trees
from tests.verification.test_drawn import SAMPLERS, distributions
from tests.verification.test_drawn import draw as draw_tokens
from tests.verification.test_listed import ALPHA, MOST, SAMPLED, TRIALS, VOCAB, world

COLD = Sampler(temperature=0.7, top_p=0.9)


def after(
    logits: np.ndarray, tokens: np.ndarray, sampler: Sampler, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """What rows (row, vocab) print, by the numbers that a sweep keeps of them."""
    found = drawn(torch.from_numpy(logits), torch.from_numpy(tokens), sampler)
    greatest = -np.sort(-logits, -1)[:, :rank]
    own = np.take_along_axis(logits, tokens[:, None], -1)[:, 0]
    columns = [found[f"drawn_{name}"].numpy() for name in ("logprob", "kept", "place")]
    return printed(
        greatest, own, columns[0], columns[1], columns[2] == 2, np.full(len(own), sampler.temperature)
    )


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_row_prints_the_samplers_distribution_and_nothing_for_what_it_cuts_off(sampler: Sampler) -> None:
    logits = np.random.default_rng(3).normal(0, 2, (40, 60))
    tokens = np.random.default_rng(4).integers(0, 60, 40)
    top, own = after(logits, tokens, sampler, 12)
    p = distributions(logits, sampler)
    with np.errstate(divide="ignore"):
        wanted = np.log(np.take_along_axis(p, np.argsort(-logits, -1, kind="stable")[:, :12], -1))
        wanted_own = np.log(p[np.arange(40), tokens])
    assert np.array_equal(np.isneginf(top), np.isneginf(wanted))
    assert np.allclose(np.exp(top), np.exp(wanted), atol=1e-12) and np.allclose(
        np.exp(own), np.exp(wanted_own)
    )


def test_a_row_that_is_not_there_prints_nothing() -> None:
    nothing = np.full(1, np.nan)
    top, own = printed(np.full((1, 3), np.nan), nothing, nothing, nothing, np.array([False]), np.ones(1))
    assert np.isnan(top).all() and np.isnan(own).all()


@pytest.mark.parametrize(
    ("mode", "sampler", "greedy", "found"),
    [
        (RAW, [0.7, 0, 0.9, 0], False, RAW),
        ("", [1, 0, 1, 0], False, RAW),
        (PROCESSED, [1, 0, 1, 0], False, RAW),
        (PROCESSED, [0.7, 0, 0.9, 0], False, PROCESSED),
        ("", [0.7, 0, 1, 0], False, "prompts.assume={logprobs_mode: raw_logprobs}"),
        ("raw_logits", [1, 0, 1, 0], False, "the record lists raw_logits"),
        (f"{PROCESSED}, {RAW}", [0.7, 0, 1, 0], False, "of all answers"),
        ("", [np.nan] * 4, True, RAW),
        (PROCESSED, [np.nan] * 4, True, "may have been truncated"),
    ],
)
def test_how_values_were_made_is_stated_or_asked_for(
    mode: str, sampler: list[float], greedy: bool, found: str
) -> None:
    record = Recorded(logprobs_mode=mode, samplers_RP=np.array([sampler, sampler]))
    assert found in mode_of(record, greedy)
    cold = temperature_of(record, greedy, 2)
    assert np.isfinite(cold).all() if found == PROCESSED else np.isnan(cold).all()


def cold_world(
    generator: np.random.Generator, base: Replays, count: int, *, made_by: int = 0, noise: float = 0.02
) -> Replays:
    """Sampled answers whose listed values are those after temperature and top-p, on both sides."""
    made = world(generator, base, count, (12, 12), records=True)
    a = generator.normal(0, 2, (count, 12, VOCAB))
    here = np.stack([a, a + generator.normal(0, 0.15, a.shape)])
    provider = here[made_by] + generator.normal(0, noise, a.shape)
    tokens = draw_tokens(provider, COLD, generator)
    flat = tokens.reshape(-1)

    def of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = distributions(rows.reshape(-1, VOCAB), COLD)
        with np.errstate(divide="ignore"):
            return np.log(p), np.log(p[np.arange(len(p)), flat])

    theirs, own = of(provider)
    ids = np.argsort(-theirs, -1, kind="stable")[:, :5]
    stated = np.round(np.take_along_axis(theirs, ids, -1), 4)
    stated[np.isneginf(stated)] = np.nan  # as −9999.0 is read
    at, at_own = [], []
    for rows in here:
        values, value = of(rows)
        at.append(np.take_along_axis(values, ids, -1).reshape(count, 12, 5))
        at_own.append(value.reshape(count, 12))
    assert made.listed is not None
    listed = replace(
        made.listed,
        stated_DRTK=stated.reshape(1, count, 12, 5),
        here_DCRTK=np.stack(at)[None],
        emitted_DRTK=(ids == flat[:, None]).reshape(1, count, 12, 5),
        own_DRT=np.round(own, 4).reshape(1, count, 12),
        here_own_DCRT=np.stack(at_own)[None],
    )
    record = made.records_D[0]
    assert record is not None
    cold = np.tile([COLD.temperature, 0.0, COLD.top_p, 0.0], (count, 1))
    record = replace(record, samplers_RP=cold, logprobs_mode=PROCESSED)
    return replace(made, listed=listed, records_D=[record], sampling_D=[SAMPLED])


@pytest.fixture(scope="module")
def base() -> Replays:
    return Replays.of(*trees({"a": 0.3, "b": 0.3}, producers=["a"], references=2, tokens=3))


def refuted(base: Replays, **of_judged: float) -> int:
    generator, count = np.random.default_rng(17), 0
    for _ in range(TRIALS):
        mine = cold_world(generator, base, 6, **of_judged)  # type: ignore[arg-type]
        theirs = cold_world(generator, base, 40)
        alike = compared(mine, theirs, 0)
        assert isinstance(alike, Comparable), alike
        scores = _profile_scores(mine, Calibrated(theirs, "a", Match(), [], alike), 0, 0)
        assert scores is not None
        judged_R, null_R, test = scores
        p = pooled_p(judged_R[np.isfinite(judged_R)], null_R[test])
        count += p is not None and p <= ALPHA
    return count


@pytest.mark.slow
def test_honest_lists_after_truncation_are_refuted_as_rarely_as_the_level_says(base: Replays) -> None:
    """Kernels that cut off other tokens than the verifier's are among them: no energy is infinite."""
    assert refuted(base) <= MOST


@pytest.mark.slow
def test_lists_after_truncation_of_another_format_are_refuted(base: Replays) -> None:
    assert refuted(base, made_by=1) >= 0.9 * TRIALS


def test_a_listed_token_that_is_cut_off_here_counts_by_its_probability(base: Replays) -> None:
    mine = cold_world(np.random.default_rng(1), base, 6)
    assert mine.listed is not None
    gone = mine.listed.here_DCRTK.copy()
    gone[..., 1] = -np.inf
    one = replace(mine.listed, here_DCRTK=gone, _energies={})
    before, after_ = (each.energies(0, 5, 4)[0] for each in (mine.listed, one))
    there = np.isfinite(mine.listed.stated_DRTK[0, ..., 1])
    assert there.sum() > 40 and np.isfinite(after_).all(), "nothing is infinite"
    assert (after_[0, there] > 0).all() and after_[0, there].mean() > 3 * before[0, there].mean()


def test_lists_of_two_modes_are_never_compared(base: Replays) -> None:
    generator = np.random.default_rng(2)
    mine, theirs = (cold_world(generator, base, 6) for _ in range(2))

    def listing(data: Replays, mode: str) -> Replays:
        record = data.records_D[0]
        assert record is not None
        return replace(data, records_D=[replace(record, logprobs_mode=mode)])

    assert isinstance(compared(mine, theirs, 0), Comparable)
    assert "known transcripts list raw_logprobs" in str(compared(mine, listing(theirs, RAW), 0))
    assert "known transcripts list values of a mode" in str(
        compared(listing(mine, RAW), listing(theirs, ""), 0)
    )
