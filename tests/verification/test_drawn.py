"""Drawn tokens: what a row says of one, the e-value's level and power, the transform's uniform law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from qdx.capture.densities import Drawn
from qdx.capture.sampled import Sampler, drawn
from qdx.errors import QdxError
from qdx.verification.e_values import against, log_e
from qdx.verification.sampled import (
    KERNEL_KL,
    Alternatives,
    evidence_against,
    log_likelihood,
    not_told_apart,
    rational,
    uniform_p,
)
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


def distributions(rows_PV: np.ndarray, sampler: Sampler) -> np.ndarray:
    """`truncated` of many rows at once."""
    p = np.exp((rows_PV - rows_PV.max(1, keepdims=True)) / sampler.temperature)
    order = np.argsort(-p, axis=1, kind="stable")
    p = np.take_along_axis(p, order, 1)
    kept = p >= sampler.min_p * p[:, :1]
    if sampler.top_k > 0:
        kept[:, sampler.top_k :] = False
    p *= kept
    kept &= p.cumsum(1) - p < sampler.top_p * p.sum(1, keepdims=True)
    p = p * kept / (p * kept).sum(1, keepdims=True)
    out = np.empty_like(p)
    np.put_along_axis(out, order, p, 1)
    return out


def draw(logits: np.ndarray, sampler: Sampler, rng: np.random.Generator) -> np.ndarray:
    p = distributions(logits.reshape(-1, logits.shape[-1]), sampler)
    chosen = (p.cumsum(1) <= rng.random((len(p), 1))).sum(1)
    return np.asarray(np.minimum(chosen, logits.shape[-1] - 1)).reshape(logits.shape[:-1])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_numbers_of_a_row_are_those_of_the_sampler_written_out(sampler):
    logits = rows(20).astype(np.float16).astype(np.float64)
    logits[0, 3:9] = logits[0].max()  # ties at every edge
    assert np.allclose(distributions(logits, sampler), [truncated(row, sampler) for row in logits])
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
@pytest.mark.slow
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


@pytest.mark.parametrize(("share", "length"), [(0.1, 60), (0.3, 20), (0.6, 20)])
def test_a_hidden_share_of_false_answers_is_found_and_bounded(share, length):
    """40 answers: a part comes from another config, the rest is honest."""
    sampler, alpha, refuted, too_many, worlds = Sampler(), 0.05, 0, 0, 40
    false = round(40 * share)
    bounds = []
    for seed in range(worlds):
        claim, other, third = world(40, length, 0.6, 3000 + seed)
        rng = np.random.default_rng(60_000 + seed)
        tokens = draw(claim, sampler, rng)
        which = rng.permutation(40)[:false]
        tokens[which] = draw(other[which], sampler, rng)
        here = stacked([of(one, tokens, sampler, 0.125) for one in (claim, other, third)])
        found = evidence_against(here, range(40), 0, Alternatives([0], [1, 2]), alpha)
        refuted += found.p <= alpha
        too_many += found.false_at_least > false
        bounds.append(found.false_at_least)
    assert refuted >= 0.9 * worlds and too_many <= stats.binom.ppf(0.9975, worlds, alpha)
    assert np.mean(bounds) > 0.15 * false, "the bound says something"


@pytest.mark.slow
def test_no_honest_answer_is_called_false_more_often_than_the_level_says():
    alpha, wrong, worlds = 0.2, 0, 150
    for seed in range(worlds):
        claim, other, _ = world(10, 8, 0.6, 4000 + seed)
        tokens = draw(claim, Sampler(), np.random.default_rng(70_000 + seed))
        found = against(of(claim, tokens, Sampler()), [of(other, tokens, Sampler())], range(10), alpha)
        wrong += found.false_at_least > 0
    assert wrong <= stats.binom.ppf(0.9975, worlds, alpha)


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


def stacked(parts: list[Drawn]) -> Drawn:
    """One producer's tokens by several configs, (producer, config, reference, token)."""
    names = ("logprob", "before", "kept", "kept_least", "place")
    return Drawn(*(np.stack([getattr(one, name) for one in parts])[None] for name in names))


def other_kernel(logits: np.ndarray, toward: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """The logits of another kernel, KERNEL_KL away on average: by chance, or toward another config."""
    step = rng.normal(0, 1, logits.shape) if toward is None else toward - logits
    size = 0.03
    for _ in range(3):  # the divergence is nearly quadratic
        p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in (logits + size * step, logits))
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        size *= math.sqrt(KERNEL_KL / float((p * np.log(p / q)).sum(-1).mean()))
    return np.asarray(logits + size * step)


@pytest.mark.parametrize("on_purpose", [False, True])
@pytest.mark.parametrize("sampler", [SAMPLERS[0], SAMPLERS[5]], ids=str)
@pytest.mark.slow
def test_an_honest_producer_with_another_kernel_is_refuted_as_rarely_as_the_level_says(sampler, on_purpose):
    """600 tokens a world, of a kernel as far away as any measured one, at worst toward another config."""
    worlds, alpha, by_e, by_u = 60, 0.1, 0, 0
    for seed in range(worlds):
        claim, other, third = world(4, 150, 0.6, 500 + seed)
        rng = np.random.default_rng(40_000 + seed)
        tokens = draw(other_kernel(claim, other if on_purpose else None, rng), sampler, rng)
        here = stacked([of(one, tokens, sampler, 0.125) for one in (claim, other, third)])
        found = evidence_against(here, range(4), 0, Alternatives([0], [1, 2]), alpha)
        by_e += found is not None and found.p <= alpha
        by_u += uniform_p(here, list(range(4)), 0, 0, str(seed))[0] <= alpha
    assert by_e <= stats.binom.ppf(0.9975, worlds, alpha)
    assert by_u <= stats.binom.ppf(0.9975, worlds, alpha)


@pytest.mark.slow
def test_without_the_allowance_a_kernel_toward_another_config_would_be_refuted_too_often():
    """So the test above could fail: 6,000 tokens, no allowance, one alternative that is the noise itself."""
    sampler, crossed = Sampler(), 0
    for seed in range(10):
        claim, other, _ = world(1, 6000, 0.6, 900 + seed)
        rng = np.random.default_rng(50_000 + seed)
        noisy = other_kernel(claim, other, rng)
        tokens = draw(noisy, sampler, rng)
        crossed += against(of(claim, tokens, sampler), [of(noisy, tokens, sampler)], [0], 0.1).crossed >= 0
    assert crossed >= 4  # 1 is expected of an exact claim


def test_a_claim_of_two_kernels_is_refuted_only_beyond_both():
    claim, other, third = world(2, 40, 0.6, 77)
    tokens = draw(claim, Sampler(), np.random.default_rng(78))
    here = stacked([of(one, tokens, Sampler()) for one in (other, claim, third)])
    alone = evidence_against(here, [0, 1], 0, Alternatives([0], [1, 2]), 0.05)
    both = evidence_against(here, [0, 1], 0, Alternatives([0, 1], [2]), 0.05)
    assert alone.log_e > 5 > 1 > both.log_e
    assert Alternatives.of(["a", "b", "a", ""], 0) == Alternatives([0, 2], [1, 3])
    assert Alternatives.of(["a", "b", "a", ""], 3) == Alternatives([3], [0, 1, 2])
    assert Alternatives.of(["", ""], 1) == Alternatives([1], [0])


def test_what_few_tokens_do_not_tell_apart_is_named():
    for length, found in ((1, [1, 2]), (120, [])):
        claim, other, third = world(2, length, 0.6, 79)
        tokens = draw(claim, Sampler(), np.random.default_rng(80))
        here = stacked([of(one, tokens, Sampler()) for one in (claim, other, third)])
        assert not_told_apart(here, [0, 1], 0, 0, ["a", "b", "c"], 0.01) == found
    likelihood = log_likelihood(here)
    assert likelihood.shape == (1, 3, 2) and (likelihood[0, 0] > likelihood[0, 1]).all()


def test_a_p_value_is_never_smaller_as_a_fraction_and_never_nothing():
    assert float(rational(0.05)) >= 0.05 and rational(0.0) > 0 and rational(3.0) == 1
