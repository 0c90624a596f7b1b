"""What is not shown of drawn answers, and how else an honest engine draws: the level, with and without."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from qdx.capture.densities import Drawn
from qdx.capture.sampled import Sampler, drawn
from qdx.prompts._record_collect import groups_of
from qdx.prompts._record_ids import BYTES, GIVEN, TEXT, Answer, Ids
from qdx.records.record import Record, Sampling
from qdx.verification.e_values import against
from qdx.verification.recorded import Recorded
from qdx.verification.sampled import Alternatives, Shown, evidence_against, not_told_apart, uniform_p

ALPHA = 0.05


def told(p: np.ndarray, x: np.ndarray) -> Drawn:
    """`Drawn` of tokens from one law at every place; −1: no token. Its ids are in falling order of p."""
    before = np.concatenate([[0.0], np.cumsum(p)])[np.maximum(x, 0)]
    ones = np.ones(x.shape)
    logprob = np.where(x < 0, np.nan, np.log(p[np.maximum(x, 0)]))
    return Drawn(logprob, before, ones, ones, np.full(x.shape, 2))


def stacked(*parts: Drawn) -> Drawn:
    names = ("logprob", "before", "kept", "kept_least", "place")
    return Drawn(*(np.stack([getattr(one, name) for one in parts])[None] for name in names))


def ending(
    rng: np.random.Generator, p: np.ndarray, answers: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Answers of a model whose token 0 ends them, which is not among their tokens."""
    x = rng.choice(len(p), (answers, length), p=p)
    ended = (np.cumsum(x == 0, 1) > 0).astype(bool)
    return np.where(ended, -1, x), ended.any(1)


def test_answers_without_the_token_that_ended_them_refute_an_honest_claim_only_if_that_is_not_told():
    claim, other = np.array([0.3, 0.3, 0.25, 0.15]), np.array([0.2, 0.35, 0.28, 0.17])
    by_e = by_u = naive_e = naive_u = 0
    for seed in range(100):
        x, ended = ending(np.random.default_rng(seed), claim, 60, 20)
        groups = [i if (row >= 0).any() else -1 for i, row in enumerate(x)]
        lost = groups.count(-1)  # an answer that ended at once is not even there
        here = stacked(told(claim, x), told(other, x))
        shown = Shown(np.ones(60), ended, lost)
        by_e += evidence_against(here, groups, 0, Alternatives([0], [1]), ALPHA, shown).p <= ALPHA
        by_u += uniform_p(here, groups, 0, 0, "", shown)[0] <= ALPHA
        naive_e += evidence_against(here, groups, 0, Alternatives([0], [1]), ALPHA).p <= ALPHA
        naive_u += uniform_p(here, groups, 0, 0, "")[0] <= ALPHA
    most = stats.binom.ppf(0.9975, 100, ALPHA)
    assert by_e <= most < naive_e and by_u <= most < naive_u


def test_answers_that_were_lost_for_what_is_in_them_do_not_break_the_level():
    claim, other, counted, ignored = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3]), 0, 0
    for seed in range(100):
        x = np.random.default_rng(seed).choice(3, (80, 5), p=claim)
        there = (x == 0).sum(1) < 3  # what holds a certain token often cannot be read
        groups = np.where(there, np.arange(80), -1).tolist()
        own, alternative = told(claim, x), told(other, x)
        counted += against(own, [alternative], groups, ALPHA, lost=int((~there).sum())).p <= ALPHA
        ignored += against(own, [alternative], groups, ALPHA).p <= ALPHA
    assert counted <= stats.binom.ppf(0.9975, 100, ALPHA) < ignored


def test_a_false_claim_is_still_refuted_with_some_answers_open_and_one_lost():
    claim, other = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    x = np.random.default_rng(1).choice(3, (20, 30), p=other)
    here = stacked(told(claim, x), told(other, x))
    shown = Shown(np.ones(20), np.arange(20) < 5, 1)
    found = evidence_against(here, range(20), 0, Alternatives([0], [1]), ALPHA, shown)
    assert found.p < 1e-6 and 10 < found.false_at_least <= 20
    every = Shown(np.ones(20), np.ones(20, bool))
    alone = evidence_against(here, range(20), 0, Alternatives([0], [1]), ALPHA, every)
    assert alone.false_at_least == 0 and alone.log_e < found.log_e
    assert uniform_p(here, list(range(20)), 0, 0, "", shown)[0] < 1e-6


def test_a_low_temperature_widens_what_is_allowed_for_the_noise_of_kernels():
    claim, other = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
    x = np.random.default_rng(2).choice(3, (20, 30), p=other)
    here = stacked(told(claim, x), told(other, x))
    log_e = [
        evidence_against(here, range(20), 0, Alternatives([0], [1]), ALPHA, Shown.whole(20, t)).log_e
        for t in (2.0, 1.0, 0.5, 0.01)
    ]
    assert log_e[0] == log_e[1] > log_e[2] > log_e[3] and log_e[3] < 1
    assert uniform_p(here, list(range(20)), 0, 0, "", Shown.whole(20, 0.01))[0] == 1
    assert not_told_apart(here, range(20), 0, 1, ["a", "b"], ALPHA, Shown.whole(20, 0.01)) == [0]


def test_one_kernel_that_is_replayed_twice_shows_no_noise():
    claim, other = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
    x = np.random.default_rng(3).choice(3, (5, 30), p=other)
    here = stacked(told(claim, x), told(claim, x), told(other, x))
    once = evidence_against(here, range(5), 0, Alternatives([0], [2]), ALPHA)
    assert evidence_against(here, range(5), 0, Alternatives([0, 1], [2]), ALPHA).log_e == once.log_e


def cut(row: np.ndarray, sampler: Sampler, order: str) -> np.ndarray:
    """Another engine's distribution, as its documentation says it."""
    z = row if order == "temperature last" else row / sampler.temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    by = np.argsort(-p, kind="stable")
    kept = np.ones(len(p), bool)
    if sampler.top_k > 0:
        kept[sampler.top_k :] = False
    own = p[by] if order == "of all tokens" else p[by] * kept / (p[by] * kept).sum()
    kept &= own.cumsum() - own < sampler.top_p
    kept &= p[by] >= sampler.min_p * p.max()  # last in all of these
    last = np.exp((row - row.max()) / sampler.temperature)[by] * kept
    found = np.zeros_like(p)
    found[by] = last / last.sum()
    return found


@pytest.mark.parametrize("order", ["temperature last", "of all tokens", "min-p last"])
@pytest.mark.parametrize(
    "sampler",
    [Sampler(0.7, 0, 0.9), Sampler(1.3, 0, 0.9), Sampler(0.6, 8, 0.95, 0.05), Sampler(1.0, 5, 0.8)],
    ids=str,
)
def test_no_engine_gives_a_token_more_than_the_bound_whatever_its_order_of_truncation(order, sampler):
    rows = np.random.default_rng(4).normal(0, 2, (40, 30))
    p = np.array([cut(row, sampler, order) for row in rows])
    for token in range(30):
        found = drawn(torch.from_numpy(rows), torch.full((40,), token), sampler, edge=1e-9)
        names = ("logprob", "before", "kept", "kept_least", "place")
        own = Drawn(*(found[f"drawn_{name}"].numpy() for name in names))
        assert (np.exp(own.log_bound(0.001)) >= p[:, token] * (1 - 1e-9)).all()
        assert (own.place[p[:, token] > 0] > 0).all()


@pytest.mark.parametrize(
    ("sampler", "matters"),
    [
        ((1.0, 0, 0.9, 0), False), ((0.7, 0, 1, 0), False), ((0.7, 20, 1, 0), False),
        ((1.0, 20, 1, 0.1), False),
        ((0.7, 0, 0.9, 0), True), ((1.0, 20, 0.9, 0), True), ((1.0, 0, 0.9, 0.1), True),
        ((0.7, 0, 1, 0.1), True),
    ],
)  # fmt: skip
def test_whether_engines_draw_alike_is_known_from_the_parameters(sampler, matters):
    samplers = np.array([[np.nan] * 4, sampler])
    assert Recorded(samplers_RP=samplers).order_matters is matters
    assert not Recorded(samplers_RP=samplers, fingerprint="vllm-0.32.0-523d7c03").order_matters


def answer(prompt: int, ids: tuple[int, ...], seed: str = "", temperature: float = 1.0) -> SimpleNamespace:
    stated = {"seed": seed, "temperature": temperature, "response_id": ""}
    return SimpleNamespace(
        who=("", "m", ""),
        prompt=SimpleNamespace(ids=(prompt,)),
        answer=SimpleNamespace(ids=ids),
        stated=stated,
    )


def test_answers_to_one_prompt_are_one_group_whether_or_not_they_are_equal():
    long, short = tuple(range(9)), (1, 2)
    drawn_ones = [answer(1, long), answer(1, long), answer(1, short), answer(2, long)]
    assert groups_of(drawn_ones).tolist() == [0, 0, 0, 1]
    seeded = [answer(1, long, "7"), answer(1, long, "8"), answer(2, short, "7")]
    assert groups_of(seeded).tolist() == [0, 1, 0]
    second = answer(2, long, "7")
    second.stated["noise_seed"] = "8"
    assert groups_of([answer(1, long, "7"), second, answer(3, long, "8")]).tolist() == [0, 0, 0]
    greedy = [answer(1, long, "7", 0.0), answer(1, long, "8", 0.0), answer(1, short, "7", 0.0)]
    assert groups_of(greedy).tolist() == [0, 0, 1]


def test_counting_each_different_answer_once_would_refute_an_honest_provider():
    """One prompt with a likely and some unlikely answers: the unlikely ones would count as often."""
    claim, once, grouped = np.array([0.85, 0.05, 0.04, 0.03, 0.03]), 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.choice(5, (10, 30), p=claim)  # prompt, answer of one token
        different = [np.unique(row) for row in x]
        own = told(claim, np.concatenate(different)[:, None])
        here = stacked(own)
        once += uniform_p(here, list(range(len(own.place))), 0, 0, "")[0] <= ALPHA
        here = stacked(told(claim, x.reshape(-1, 1)))
        grouped += uniform_p(here, (np.arange(300) // 30).tolist(), 0, 0, "")[0] <= ALPHA
    assert grouped <= stats.binom.ppf(0.9975, 60, ALPHA) < once


def test_an_answer_is_open_unless_its_last_token_is_the_last_that_was_chosen():
    tokenizer = SimpleNamespace(all_special_ids=[9])
    ids = Ids(tokenizer, 20)

    def is_open(finish: str, *own: int, how: str = GIVEN, left_out: int = 0, most: int | None = None) -> bool:
        record = Record("line 1", finish_reason=finish, sampling=Sampling(max_tokens=most))
        return ids.open(record, Answer(own, how, left_out))

    assert not is_open("length", 1, 2) and not is_open("stop", 1, 9) and not is_open("length", 1, how=BYTES)
    assert is_open("stop", 1, 2) and is_open("", 1, 2) and is_open("tool_calls", 1, 2, how=BYTES)
    assert not is_open("", 1, 2, most=2) and is_open("", 1, 2, most=3)
    assert is_open("length", 1, 2, left_out=1) and is_open("length", 1, 2, how=TEXT)
    assert math.isclose(Shown.whole(1, 0.5).noise_R[0], 2)
