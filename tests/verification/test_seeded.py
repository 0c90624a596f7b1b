"""Tokens drawn with known seeds: level and power of their margins, and when the test says nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from qdx.capture.densities import ALTERNATIVES, TEMPERATURES, Drawn
from qdx.capture.sampled import EDGE, Sampler, drawn, hypotheses
from qdx.capture.seeded import margins
from qdx.verification.evidence import Claim, weigh
from qdx.verification.p_values import false_share, pooled_p
from qdx.verification.replays import Replays
from tests.records.test_greedy_text import Trees, records

SAMPLER, VOCAB = Sampler(), 60
KERNEL, FORMAT = 0.02, 0.3  # deviation of a logit of another kernel, and of another format


def answers(
    count: int, tokens: int, spread: float, seed: int, sampler: Sampler = SAMPLER, *, seeded: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows here, tokens that an engine with other logits drew, and their margins by the engine's noise."""
    rng = np.random.default_rng([seed, count])
    rows = rng.normal(0, 2, (count, tokens, VOCAB))
    added = rng.gumbel(size=rows.shape)
    theirs = (rows + rng.normal(0, spread, rows.shape)) / sampler.temperature
    ids = (theirs + (added if seeded else rng.gumbel(size=rows.shape))).argmax(-1)
    flat, at = torch.from_numpy(rows.reshape(-1, VOCAB)), torch.from_numpy(ids.ravel())
    found = margins(flat, at, sampler, torch.from_numpy(added.reshape(-1, VOCAB))).numpy()
    return rows, ids, found.reshape(ids.shape)


def scores(margin_RT: np.ndarray) -> np.ndarray:
    few = SimpleNamespace(
        seeded_DCRT=margin_RT[None, None], emitted_DR=np.full((1, len(margin_RT)), margin_RT.shape[1])
    )
    return Replays.seed_scores(few)[0, 0]


def test_a_third_of_another_formats_tokens_are_not_those_that_the_seeds_draw_here() -> None:
    assert 0.001 < (answers(50, 100, KERNEL, 1)[2] > 0).mean() < 0.04
    assert 0.1 < (answers(50, 100, FORMAT, 2)[2] > 0).mean() < 0.4
    assert (answers(50, 100, 0.0, 3)[2] == 0).all()


def test_one_far_token_counts_for_a_nat() -> None:
    margin = np.zeros((2, 10))
    margin[0, 3], margin[1, 4:8] = 40.0, 0.3
    assert np.allclose(scores(margin), [1.0, 1.2])


def test_the_first_tokens_are_scored_wherever_a_longer_prompt_puts_them() -> None:
    margin = np.full((1, 1, 2, 10), np.nan)
    margin[0, 0, 0, :4] = margin[0, 0, 1, 6:] = [0.0, 0.5, 0.0, 0.25]
    two: Any = SimpleNamespace(seeded_DCRT=margin, emitted_DR=np.full((1, 2), 4))
    for most, total in ((1, 0.0), (2, 0.5), (3, 0.5), (4, 0.75), (None, 0.75)):
        assert np.allclose(Replays.seed_scores(two, most)[0, 0], total)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_honest_answers_of_another_kernel_are_refuted_as_rarely_as_the_level_says(temperature: float) -> None:
    """8 answers of 40 tokens against 60 known ones; the same with known ones of the verifier's own kernel."""
    alpha, worlds, refuted, own = Fraction(1, 10), 150, 0, 0
    sampler = Sampler(temperature)
    for seed in range(worlds):
        judged = scores(answers(8, 40, KERNEL, seed, sampler)[2])
        known = scores(answers(60, 40, KERNEL, 10_000 + seed, sampler)[2])
        refuted += pooled_p(judged, known) <= alpha
        own += pooled_p(judged, np.zeros(60)) <= alpha
    assert refuted <= stats.binom.ppf(0.9975, worlds, float(alpha)) < own


def test_another_format_is_refuted_by_three_hundred_tokens_and_a_part_of_it_is_counted() -> None:
    refuted, counted, too_many = 0, 0, 0
    for seed in range(30):
        known = scores(answers(60, 40, KERNEL, 20_000 + seed)[2])
        refuted += pooled_p(scores(answers(8, 40, FORMAT, seed)[2]), known) <= Fraction(1, 100)
        mixed = np.r_[
            scores(answers(15, 40, KERNEL, 40_000 + seed)[2]), scores(answers(5, 40, FORMAT, seed)[2])
        ]
        share = false_share(mixed, known, Fraction(1, 20))
        counted += share > 0
        too_many += share > 5
    assert refuted == 30 and counted >= 25
    assert too_many <= stats.binom.ppf(0.9975, 30, 0.05)


def of(
    pair: Trees, margin_RT: np.ndarray, rows: np.ndarray, ids: np.ndarray, first: int, **facts: object
) -> Replays:
    """Records with drawn tokens, as a verifier's replay has them."""
    data, count = Replays.of(*pair), len(margin_RT)
    flat, at = torch.from_numpy(rows.reshape(-1, VOCAB)), torch.from_numpy(ids.ravel())
    own = drawn(flat, at, SAMPLER, edge=EDGE)
    told = hypotheses(flat, at, SAMPLER, edge=EDGE)
    shape = (1, 1, count, -1)
    names = ("logprob", "before", "kept", "kept_least", "place")
    record = data.records_D[0]
    assert record is not None
    samplers = np.tile([1.0, 0.0, 1.0, 0.0], (count, 1))
    stated = {"samplers_RP": samplers, "noise": "vllm-0.33.0-v2", "open_R": np.zeros(count, bool), **facts}
    return replace(
        data,
        reference_keys=[f"prompt {first + r}" for r in range(count)],
        drawn=Drawn(*(own[f"drawn_{name}"].numpy().reshape(shape) for name in names)),
        seeded_DCRT=margin_RT[None, None],
        other_DCRTA=told["drawn_other"].numpy().reshape(1, 1, count, -1, len(ALTERNATIVES)),
        most_DCRTK=told["drawn_most"].numpy().reshape(1, 1, count, -1, len(TEMPERATURES)),
        records_D=[replace(record, **stated)],
    )


SAMPLED = json.dumps({
    "method": "random", "temperature": 1.0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1,
    "presence_penalty": 0, "frequency_penalty": 0, "min_tokens": 0, "logit_bias": {}, "ignore_eos": False,
})  # fmt: skip


def judge(
    spread: float,
    known: float | None = KERNEL,
    *,
    seeded: bool = True,
    known_facts: dict[str, object] | None = None,
    **facts: object,
) -> Claim:
    pair = records(0.0, sampling=SAMPLED)
    length = Replays.of(*pair).margin_DCRT.shape[-1]
    rows, ids, margin = answers(8, length, spread, 5, seeded=seeded)
    sets = []
    if known is not None:
        rows_K, ids_K, margin_K = answers(60, length, known, 6)
        sets = [
            of(records(0.0, sampling=SAMPLED, judged=60), margin_K, rows_K, ids_K, 100, **(known_facts or {}))
        ]
    found = weigh(of(pair, margin, rows, ids, 0, **facts), sets, [[0]], Fraction(1, 20))[0]
    assert found is not None
    return found


def test_seeded_answers_are_held_against_known_ones() -> None:
    honest, false = judge(KERNEL), judge(FORMAT)
    assert (
        honest.test("seeded tokens").p > 0.05 and "60 known transcripts" in honest.test("seeded tokens").null
    )
    assert false.test("seeded tokens").p < 1e-3
    assert [test.name for test in honest.tests] == ["uniformity", "parameters", "seeded tokens"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"known": None}, "no calibration"),
        ({"noise": ""}, "prompts.noise"),
        ({"known": 0.0}, "every known answer is the one that its seed draws"),
        ({"known_facts": {"samplers_RP": np.tile([0.7, 0.0, 1.0, 0.0], (60, 1))}}, "sampled otherwise"),
    ],
)
def test_without_what_it_needs_the_test_is_not_listed(options: dict[str, object], said: str) -> None:
    found = judge(KERNEL, **options)
    assert found.test("seeded tokens") is None and said in found.unlisted["seeded tokens"]


def test_seeds_that_have_nothing_to_do_with_the_tokens_refute_nobody() -> None:
    """Another version's noise than the verifier named: the test is listed, counts in T, and has no value."""
    found = judge(KERNEL, seeded=False)
    test = found.test("seeded tokens")
    assert test is not None and test.p is None and "by chance" in test.null
    assert not found.single and len(found.tests) == 3
