"""Equal answers to one prompt under different seeds: an honest claim keeps its level, whatever gave them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import stats

from qdx.capture.sampled import Sampler
from qdx.verification.e_values import against
from qdx.verification.listed_tests import groupings
from tests.verification.test_drawn import draw, of

ALPHA, TRIALS = 0.05, 200
MOST = int(stats.binom.ppf(0.999, TRIALS, ALPHA))
PROMPTS, COPIES, TOKENS = 3, 6, 5
PLAIN = Sampler()


def data_of(answers: list[str], prompts: list[int], groups: list[int]) -> Any:
    """What `groupings` looks at, of one provider."""
    return SimpleNamespace(
        records_D=[SimpleNamespace(answers_R=answers)],
        groups_D=[groups],
        there_DR=np.array([[group >= 0 for group in groups]]),
        reference_keys=[f"prompt {one}" for one in prompts],
    )


def crossed(generator: np.random.Generator, cache: bool) -> tuple[bool, bool]:
    """Whether an honest claim is refuted by seeds alone, and by both ways together."""
    count = 1 if cache else COPIES
    logits = generator.normal(0, 1.5, (PROMPTS, 1, TOKENS, 30)).repeat(count, 1)
    other = logits + generator.normal(0, 0.7, (PROMPTS, 1, TOKENS, 30))
    tokens = draw(logits, PLAIN, generator)
    if cache:
        logits, other, tokens = (one.repeat(COPIES, 1) for one in (logits, other, tokens))
    logits, other = (one.reshape(-1, TOKENS, 30) for one in (logits, other))
    tokens = tokens.reshape(-1, TOKENS)
    prompts = np.repeat(np.arange(PROMPTS), COPIES).tolist()
    answers = [f"{prompt} {own.tolist()}" for prompt, own in zip(prompts, tokens, strict=True)]
    ways = groupings(data_of(answers, prompts, list(range(len(answers)))), 0)
    p = [against(of(logits, tokens, PLAIN), [of(other, tokens, PLAIN)], way, ALPHA).p for way in ways]
    return p[0] <= ALPHA, max(p) <= ALPHA


def test_a_cache_does_not_refute_an_honest_provider_and_would_if_seeds_were_believed() -> None:
    generator = np.random.default_rng(5)
    found = np.array([crossed(generator, cache=True) for _ in range(TRIALS)])
    by_seeds, by_both = found.sum(0)
    assert by_seeds > MOST >= by_both


def test_answers_that_are_independent_keep_their_level_too() -> None:
    generator = np.random.default_rng(6)
    found = np.array([crossed(generator, cache=False) for _ in range(TRIALS)])
    assert found[:, 1].sum() <= MOST


def test_different_answers_are_as_many_units_as_they_have_seeds() -> None:
    assert groupings(data_of(["a", "b", "c"], [0, 0, 1], [0, 1, 2]), 0) == [[0, 1, 2]]


def test_equal_answers_join_all_answers_to_their_prompt_and_what_shares_a_seed() -> None:
    first, second = groupings(data_of(["a", "a", "b", "c", "d"], [0, 0, 0, 1, 1], [0, 1, 2, 2, 3]), 0)
    assert first == [0, 1, 2, 2, 3] and len(set(second)) == 1, "the third shares a seed with prompt 1"


def test_an_answer_that_is_not_judged_joins_nothing() -> None:
    first, second = groupings(data_of(["a", "a", "", "b"], [0, 0, 0, 1], [0, 1, -1, 2]), 0)
    assert first[2] == second[2] == -1 and len(set(second)) == 3
