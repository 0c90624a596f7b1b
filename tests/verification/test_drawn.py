"""Drawn tokens: what a row says of one, the e-value's level and power, the transform's uniform law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from qdx.capture.sampled import Sampler, drawn
from qdx.errors import QdxError
from qdx.verification.e_values import Drawn, against, log_e
from qdx.verification.uniforms import distance_from_uniform, uniforms

SAMPLERS = [
    Sampler(),
    Sampler(temperature=0.7),
    Sampler(top_k=5),
    Sampler(temperature=1.3, top_p=0.8),
    Sampler(min_p=0.1),
    Sampler(temperature=0.6, top_k=20, top_p=0.95, min_p=0.02),
]
VOCAB = 60


def truncated(row: np.ndarray, sampler: Sampler) -> np.ndarray:
    """The sampler's distribution, token by token as its documentation says it."""
    p = np.exp(row / sampler.temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    kept = [i for i in order if p[i] >= sampler.min_p * p[order[0]]]
    if sampler.top_k > 0:
        kept = kept[: sampler.top_k]
    reached, head = 0.0, []
    for i in kept:
        if reached >= sampler.top_p * p[kept].sum():
            break
        head.append(i)
        reached += p[i]
    out = np.zeros_like(p)
    out[head] = p[head] / p[head].sum()
    return out


def rows(count: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (count, VOCAB))


def of(logits: np.ndarray, tokens: np.ndarray, sampler: Sampler, edge: float = 0.0) -> Drawn:
    """`Drawn` over (answer, token) of logits (answer, token, vocab)."""
    flat = drawn(
        torch.from_numpy(logits.reshape(-1, logits.shape[-1])),
        torch.from_numpy(tokens.reshape(-1)),
        sampler,
        edge=edge,
    )
    names = ("logprob", "before", "kept", "kept_least", "place")
    return Drawn(*(flat[f"drawn_{name}"].numpy().reshape(tokens.shape) for name in names))


def draw(logits: np.ndarray, sampler: Sampler, rng: np.random.Generator) -> np.ndarray:
    flat = logits.reshape(-1, logits.shape[-1])
    p = (
        np.exp(flat / sampler.temperature)
        if not sampler.truncates
        else np.array([truncated(r, sampler) for r in flat])
    )
    chosen = (p.cumsum(1) < rng.random((len(p), 1)) * p.sum(1, keepdims=True)).sum(1)
    return np.asarray(chosen).reshape(logits.shape[:-1])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_numbers_of_a_row_are_those_of_the_sampler_written_out(sampler):
    logits = rows(20).astype(np.float16).astype(np.float64)
    logits[0, 3:9] = logits[0].max()  # ties at every edge
    for token in range(0, VOCAB, 3):
        found = drawn(torch.from_numpy(logits), torch.full((20,), token), sampler)
        for i, row in enumerate(logits):
            p = truncated(row, sampler)
            q = truncated(row, Sampler(temperature=sampler.temperature))
            own = {name: float(value[i]) for name, value in found.items()}
            assert math.isclose(math.exp(own["drawn_logprob"]), q[token], rel_tol=1e-12)
            before = sum(q[j] for j in range(VOCAB) if (-q[j], j) < (-q[token], token))
            assert math.isclose(own["drawn_before"], before, rel_tol=1e-9, abs_tol=1e-12)
            assert math.isclose(own["drawn_kept"], q[p > 0].sum(), rel_tol=1e-12)
            assert own["drawn_kept_least"] == own["drawn_kept"]
            assert own["drawn_place"] == (2 if p[token] else 0)
            here = p[p > 0]
            entropy = -(here * np.log(here)).sum()
            assert math.isclose(own["drawn_entropy"], entropy, rel_tol=1e-9, abs_tol=1e-12)
            variance = (here * (-np.log(here) - entropy) ** 2).sum()
            assert math.isclose(own["drawn_variance"], variance, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS[2:], ids=str)
def test_no_honest_producer_within_the_edge_gives_a_token_more_than_the_bound(sampler):
    rng, edge = np.random.default_rng(1), 0.05
    cut, moved = 0, 0
    for row in rows(40, seed=2):
        tokens = np.arange(VOCAB)
        bound = of(np.tile(row, (VOCAB, 1))[:, None], tokens[:, None], sampler, edge)
        plain = truncated(row, sampler)
        for _ in range(20):
            noisy = row + rng.choice([-edge, edge], VOCAB)
            theirs = truncated(noisy, sampler)
            # The head moves as the bound allows for; within it, probabilities differ by the noise itself.
            slack = math.exp(2 * edge / sampler.temperature)
            limit = np.exp(bound.log_bound(0.0)[:, 0]) * slack * (1 + 1e-9)
            assert (theirs <= limit).all()
            moved += int(((theirs > 0) != (plain > 0)).sum())
        cut += int((bound.place[:, 0] == 0).sum())
    assert moved and cut  # the edge did matter, and some tokens stay cut off


@pytest.mark.parametrize("value", [{"temperature": 0}, {"top_p": 0}, {"min_p": 1}, {"top_k": -2}])
def test_a_sampler_that_cannot_draw_is_refused(value):
    with pytest.raises(QdxError, match=f"{next(iter(value))}="):
        Sampler(**value)


def world(answers: int, length: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a claim, of an alternative, and of a third config nobody replays."""
    rng = np.random.default_rng(seed)
    claim = rng.normal(0, 2.0, (answers, length, VOCAB))
    return claim, claim + rng.normal(0, spread, claim.shape), claim + rng.normal(0, spread, claim.shape)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_an_honest_claim_is_crossed_as_rarely_as_the_level_says_however_often_one_looks(sampler):
    alpha, crossed, worlds = 0.2, 0, 100
    for seed in range(worlds):
        claim, other, third = world(3, 12, 0.6, seed)
        tokens = draw(claim, sampler, np.random.default_rng(10_000 + seed))
        found = against(
            of(claim, tokens, sampler),
            [of(other, tokens, sampler), of(third, tokens, sampler)],
            range(3),
            alpha,
        )
        crossed += found.crossed >= 0
    # 20 are expected at most; 32 or more would come by chance in under 1 of 400 such tests
    assert crossed <= stats.binom.ppf(0.9975, worlds, alpha)


@pytest.mark.parametrize("sampler", [SAMPLERS[0], SAMPLERS[3]], ids=str)
def test_a_false_claim_is_crossed(sampler):
    crossed = 0
    for seed in range(20):
        claim, other, third = world(4, 60, 0.6, seed)
        tokens = draw(other, sampler, np.random.default_rng(20_000 + seed))
        found = against(
            of(claim, tokens, sampler),
            [of(other, tokens, sampler), of(third, tokens, sampler)],
            range(4),
            0.01,
        )
        crossed += found.crossed >= 0
        assert found.weights[0] > 0.9  # and it says which alternative
        assert math.isclose(found.p, math.exp(-found.log_e))
    assert crossed == 20


def test_answers_that_share_a_seed_do_not_break_the_level_and_would_if_they_were_multiplied():
    """One draw that is repeated ten times: whoever multiplies takes one surprise for ten."""
    sampler, alpha, worlds = Sampler(), 0.1, 300
    averaged = multiplied = 0
    for seed in range(worlds):
        claim, other, _ = world(1, 6, 0.6, seed)
        tokens = draw(claim, sampler, np.random.default_rng(30_000 + seed))
        again = [np.repeat(values, 10, axis=0) for values in (claim, other, tokens)]
        own, alternative = of(again[0], again[2], sampler), of(again[1], again[2], sampler)
        averaged += against(own, [alternative], [0] * 10, alpha).crossed >= 0
        multiplied += against(own, [alternative], range(10), alpha).crossed >= 0
    assert averaged <= stats.binom.ppf(0.9975, worlds, alpha) < multiplied


def test_a_token_without_a_row_counts_for_nothing():
    claim, other, _ = world(1, 5, 0.6, 0)
    tokens = draw(claim, Sampler(), np.random.default_rng(0))
    own, alternative = of(claim, tokens, Sampler()), of(other, tokens, Sampler())
    path = log_e(own, alternative)
    own.logprob[0, 2] = np.nan
    assert np.allclose(np.delete(np.diff(log_e(own, alternative)[0]), 1), np.delete(np.diff(path[0]), 1))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_u_of_honest_tokens_is_uniform_and_independent(sampler):
    claim = rows(4000, seed=5)[:, None]
    tokens = draw(claim, sampler, np.random.default_rng(6))
    u = uniforms(of(claim, tokens, sampler), seed=7, share=0.0)[:, 0]
    assert distance_from_uniform(u)[1] > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.06  # 0.016 is one standard error
    assert ((u >= 0) & (u <= 1)).all()


@pytest.mark.parametrize(
    "false",
    [Sampler(temperature=0.7), Sampler(temperature=1.3), Sampler(top_k=5), Sampler(top_p=0.8)],
    ids=str,
)
def test_u_of_tokens_that_were_drawn_otherwise_is_not_uniform(false):
    claim = rows(600, seed=8)[:, None]
    tokens = draw(claim, false, np.random.default_rng(9))
    assert distance_from_uniform(uniforms(of(claim, tokens, Sampler()), seed=1)[:, 0])[1] < 1e-6


def test_u_of_another_model_is_not_uniform():
    claim = rows(600, seed=8)[:, None]
    tokens = draw(rows(600, seed=88)[:, None], Sampler(), np.random.default_rng(9))
    assert distance_from_uniform(uniforms(of(claim, tokens, Sampler()), seed=1)[:, 0])[1] < 1e-6


def test_the_level_of_one_answers_test_of_uniformity():
    """200 honest answers of 20 tokens: p is under 0.05 in about 10 of them."""
    claim, _, _ = world(200, 20, 0.1, 11)
    tokens = draw(claim, SAMPLERS[3], np.random.default_rng(12))
    u = uniforms(of(claim, tokens, SAMPLERS[3]), seed=13, share=0.0)
    low = sum(distance_from_uniform(one)[1] <= 0.05 for one in u)
    assert stats.binom.ppf(0.001, 200, 0.05) <= low <= stats.binom.ppf(0.999, 200, 0.05)
    assert distance_from_uniform(np.array([np.nan]))[1] == 1.0
