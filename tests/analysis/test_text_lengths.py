"""Texts of their own lengths are held against known ones on as many tokens as both have: level and power."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction as F

import numpy as np
import pytest
from scipy import stats

from qdx.verification.environment_class import Match
from qdx.verification.known_transcripts import Calibrated, _text_scores
from qdx.verification.p_values import pooled_p
from qdx.verification.replays import Replays
from tests.analysis.replaying import trees

ALPHA, TRIALS, TOKENS = F(1, 20), 300, 16


def replays(generator: np.random.Generator, base: Replays, misfit: float, lengths: np.ndarray) -> Replays:
    """Texts of these lengths, each token of which is not greedy here with this probability."""
    count = len(lengths)
    wrong = generator.random((1, 1, count, TOKENS)) < misfit
    margin = np.where(wrong, generator.exponential(1.0, wrong.shape), 0.0)
    margin[0, 0, np.arange(TOKENS)[None] >= lengths[:, None]] = np.nan
    return replace(
        base,
        references=[f"r{i}" for i in range(count)],
        reference_keys=[f"{generator.integers(2**60)}" for _ in range(count)],
        units_DR=np.arange(count)[None],
        margin_DCRT=margin,
        emitted_DR=lengths[None],
    )


def rejected(misfit: float, judged: tuple[int, int], known: tuple[int, int], *, matched: bool = True) -> int:
    """How often texts are refuted, of `TRIALS`; lengths are drawn between two bounds."""
    generator = np.random.default_rng(5)
    base = Replays.of(*trees({"a": 0.0}, references=2, tokens=3))
    count = 0
    for _ in range(TRIALS):
        mine = replays(generator, base, misfit, generator.integers(judged[0], judged[1] + 1, 6))
        theirs = replays(generator, base, 0.2, generator.integers(known[0], known[1] + 1, 60))
        if matched:
            scores = _text_scores(mine, Calibrated(theirs, "a", Match()), 0, 0)
            assert scores is not None
            judged_R, null_R, kept = scores
            null_R = null_R[kept]
        else:
            judged_R, null_R = (one.text_scores()[0, 0] for one in (mine, theirs))
        p = pooled_p(judged_R, null_R[np.isfinite(null_R)])
        count += p is not None and p <= ALPHA
    return count


MOST = int(stats.binom.ppf(0.999, TRIALS, float(ALPHA)))


@pytest.mark.parametrize("judged", [(4, 16), (8, 8), (16, 16)])
@pytest.mark.parametrize("known", [(16, 16), (4, 16)])
def test_honest_texts_of_any_lengths_are_refuted_with_at_most_the_levels_share(
    judged: tuple[int, int], known: tuple[int, int]
) -> None:
    assert rejected(0.2, judged, known) <= MOST


def test_without_matched_lengths_long_honest_texts_would_be_refuted_for_their_length() -> None:
    assert rejected(0.2, (16, 16), (4, 10), matched=False) > 5 * MOST


@pytest.mark.parametrize("judged", [(8, 16), (16, 16)])
def test_false_texts_are_refuted_although_they_are_shorter(judged: tuple[int, int]) -> None:
    assert rejected(0.6, judged, (16, 16)) > 0.9 * TRIALS


def test_a_reference_that_somebody_did_not_answer_has_no_score() -> None:
    base = Replays.of(*trees({"a": 0.0}, references=2, tokens=3))
    one = replays(np.random.default_rng(1), base, 0.2, np.array([0, 5, 16]))
    assert np.isnan(one.text_scores()[0, 0, 0]) and np.isfinite(one.text_scores()[0, 0, 1:]).all()
    assert np.isnan(one.text_scores(8, whole=True)[0, 0, :2]).all()


def test_the_first_tokens_are_counted_wherever_a_longer_prompt_puts_them() -> None:
    """Positions are those of all references together: a longer prompt's answer begins further on."""
    base = Replays.of(*trees({"a": 0.0}, references=2, tokens=3))
    margins = np.array([0.0, 2.0, 0.0, 3.0])
    margin = np.full((1, 1, 2, 10), np.nan)
    margin[0, 0, 0, :4] = margin[0, 0, 1, 6:] = margins
    data = replace(base, margin_DCRT=margin, emitted_DR=np.full((1, 2), 4))
    for most, wrong in ((1, 0), (2, 1), (3, 1), (None, 2)):
        scores = data.text_scores(most)[0, 0]
        assert scores[0] == scores[1] and int(scores[0]) == wrong
