"""Sampling parameters as hypotheses: level, power, and how often a temperature is left out of its set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from qdx.capture.densities import ALTERNATIVES, TEMPERATURES, Drawn, described
from qdx.capture.sampled import EDGE, Sampler, drawn, hypotheses
from qdx.verification.e_values import against
from qdx.verification.parameters import Fit, Hypotheses, _Told, confidence_set, fit
from qdx.verification.sampled import GROWTH, Family, Shown
from tests.verification.test_drawn import draw, of, other_kernel

STATED = Sampler()


def hypotheses_of(logits: np.ndarray, tokens: np.ndarray, sampler: Sampler) -> Hypotheses:
    flat = torch.from_numpy(logits.reshape(-1, logits.shape[-1]))
    found = hypotheses(flat, torch.from_numpy(tokens.reshape(-1)), sampler, edge=EDGE)
    other, most = (found[f"drawn_{name}"].numpy() for name in ("other", "most"))
    return Hypotheses(other.reshape(*tokens.shape, -1), most.reshape(*tokens.shape, -1))


def fitted(
    rows: np.ndarray, tokens: np.ndarray, stated: Sampler, alpha: float, *, interval: bool = True
) -> Fit:
    shown = Shown.whole(len(tokens), stated.temperature)
    claim = Family([of(rows, tokens, stated, EDGE)], GROWTH * shown.noise_R)
    return fit(
        claim,
        hypotheses_of(rows, tokens, stated),
        list(range(len(tokens))),
        alpha,
        shown,
        truncates=stated.truncates,
        interval=interval,
    )


def world(seed: int, answers: int, tokens: int, true: Sampler, noise: str = "chance"):
    """Rows of the verifier, and tokens that an honest other kernel drew."""
    rng = np.random.default_rng([seed, 77])
    rows = rng.normal(0, 2, (answers, tokens, 60))
    # Noise that leans toward what a sharper temperature does is the worst that an honest kernel can have.
    theirs = other_kernel(rows, None if noise == "chance" else 1.5 * rows, rng)
    return rows, draw(theirs, true, rng)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.7, 0, 0.9), Sampler(1.0, 20, 1.0, 0.02)], ids=str)
def test_what_alternatives_give_tokens_is_what_their_own_samplers_give(sampler: Sampler) -> None:
    rows, tokens = world(0, 2, 9, sampler)
    found = hypotheses_of(rows, tokens, sampler)
    for a, changes in enumerate(ALTERNATIVES):
        values = {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p,
                  "min_p": sampler.min_p, **changes}  # fmt: skip
        one = Sampler(values["temperature"], int(values["top_k"]), values["top_p"], values["min_p"])
        assert np.allclose(found.other_RTA[..., a], of(rows, tokens, one).log_density(), atol=1e-5)
        if a < len(TEMPERATURES):
            assert np.allclose(found.most_RTK[..., a], of(rows, tokens, one, EDGE).log_bound(), atol=1e-5)


def test_a_long_row_is_cut_no_otherwise_than_a_short_one() -> None:
    """Only the tokens that can be inside are looked at: equal to looking at all, whatever the sampler."""
    from qdx.capture.sampled import _count, _head

    rng = np.random.default_rng(2)
    for _ in range(60):
        sampler = Sampler(
            1.0,
            int(rng.choice([0, 3, 50])),
            float(rng.choice([1.0, 0.5, 0.9, 0.99])),
            float(rng.choice([0, 0.1])),
        )
        rows = torch.from_numpy(rng.normal(0, rng.choice([0.5, 2, 6]), (4, 300)))
        rows = rows.round(decimals=1).sort(dim=1, descending=True, stable=True).values  # ties
        rows = rows - rows.logsumexp(1, keepdim=True)
        total = rows.exp().cumsum(1)
        for moved in (0.0, 0.25, -0.25, 2.0, -2.0):
            for of_all in (False, True):
                whole = _head(rows, total, sampler, moved, of_all=of_all)
                assert torch.equal(_count(rows, total, sampler, moved, of_all=of_all), whole)


@pytest.mark.parametrize(
    ("true", "said"),
    [(Sampler(0.7), "temperature 0.7"), (Sampler(1.3), "temperature 1.3"), (Sampler(top_k=20), "top-k 20"),
     (Sampler(top_p=0.8), "top-p 0.8")],
    ids=str,
)  # fmt: skip
def test_other_parameters_than_stated_are_found_and_named(true: Sampler, said: str) -> None:
    for seed in range(3):
        rows, tokens = world(seed, 5, 120, true)
        found = fitted(rows, tokens, STATED, 0.05)
        assert found.weighed.p < 1e-3 and found.best == said
        if not true.truncates:
            assert found.low <= true.temperature <= found.high and not found.low <= 1.0 <= found.high


def test_what_was_truncated_less_than_stated_is_found() -> None:
    rows, tokens = world(5, 5, 120, Sampler())
    found = fitted(rows, tokens, Sampler(top_p=0.5), 0.05)
    assert found.weighed.p < 1e-3 and found.best == "no truncation" and not found.every


@pytest.mark.parametrize(
    ("stated", "noise"),
    [(Sampler(), "chance"), (Sampler(), "sharper"), (Sampler(0.7), "sharper"),
     (Sampler(1.0, 0, 0.9), "chance"), (Sampler(0.6, 20, 0.95), "sharper")],
    ids=str,
)  # fmt: skip
@pytest.mark.slow
def test_stated_parameters_are_refuted_as_rarely_as_the_level_says(stated: Sampler, noise: str) -> None:
    alpha, worlds = 0.1, 40
    refuted = sum(
        fitted(*world(100 + seed, 4, 100, stated, noise), stated, alpha, interval=False).weighed.p <= alpha
        for seed in range(worlds)
    )
    assert refuted <= stats.binom.ppf(0.9975, worlds, alpha)


@pytest.mark.parametrize("true", [0.45, 0.87, 1.0, 1.4])
@pytest.mark.slow
def test_the_temperature_is_in_its_set_also_between_the_listed_ones(true: float) -> None:
    alpha, worlds, missed, lengths = 0.2, 24, 0, []
    for seed in range(worlds):
        noise = "chance" if seed % 2 else "sharper"
        found = fitted(*world(300 + seed, 6, 100, Sampler(true), noise), STATED, alpha)
        missed += not found.low <= true <= found.high
        lengths.append(found.high - found.low)
    assert missed <= stats.binom.ppf(0.9975, worlds, alpha)
    assert np.median(lengths) < 0.75 * true, "the set says something"


def log_e_exact(rows: np.ndarray, tokens: np.ndarray, temperature: float, others: list[_Told]) -> float:
    one = of(rows, tokens, Sampler(temperature))
    return against(one, others, range(len(tokens)), 0.05).log_e


def test_an_exact_e_value_against_a_temperature_holds_its_level_and_breaks_when_seeds_are_multiplied() -> (
    None
):
    """Without any allowance, so that the level is a test: one draw that is given ten times is one unit."""
    alpha, worlds, averaged, multiplied = 0.1, 60, 0, 0
    for seed in range(worlds):
        rows = np.random.default_rng([seed, 5]).normal(0, 2, (1, 6, 60))
        tokens = draw(rows, STATED, np.random.default_rng([seed, 6]))
        again, ten = np.repeat(rows, 10, 0), np.repeat(tokens, 10, 0)
        told = hypotheses_of(again, ten, STATED)
        others = [_Told(told.other_RTA[..., a]) for a in range(len(ALTERNATIVES))]
        own = of(again, ten, STATED)
        averaged += against(own, others, [0] * 10, alpha).crossed >= 0
        multiplied += against(own, others, range(10), alpha).crossed >= 0
    assert averaged <= stats.binom.ppf(0.9975, worlds, alpha) < multiplied


def test_between_listed_temperatures_nothing_is_left_out_that_an_exact_look_keeps() -> None:
    """400 temperatures by their own rows: whichever is not refuted lies between the ends."""
    for seed, true in enumerate((0.33, 0.87, 1.27)):
        rows, tokens = world(900 + seed, 6, 60, Sampler(true))
        told = hypotheses_of(rows, tokens, STATED)
        others = [_Told(told.other_RTA[..., a]) for a in range(len(TEMPERATURES))]
        listed = np.array([log_e_exact(rows, tokens, t, others) for t in TEMPERATURES])
        low, high = confidence_set(np.array([listed, listed]), 0.05, every=True)
        for t in np.linspace(0.12, 1.9, 30):
            if log_e_exact(rows, tokens, float(t), others) < -math.log(0.05):
                assert low <= t <= high
        assert low <= true <= high < 2 * true


def test_the_ends_of_the_list_are_no_bounds_and_nothing_may_fit() -> None:
    none = np.full((2, len(TEMPERATURES)), 50.0)
    assert np.isnan(confidence_set(none, 0.05, every=False)).all()
    first, last = none.copy(), none.copy()
    first[:, 0] = last[:, -1] = 0.0
    assert confidence_set(first, 0.05, every=False) == (0.0, 0.1)
    assert confidence_set(last, 0.05, every=False) == (2.0, math.inf)
    convex = np.array([2000 * (1 / t - 1) ** 2 for t in TEMPERATURES])
    low, high = confidence_set(np.array([convex, convex]), 0.05, every=True)
    assert 0.9 < low < 0.97 and 1.03 < high < 1.1
    between = np.array([2000 * (1 / t - 1 / 1.05) ** 2 for t in TEMPERATURES])  # no listed temperature fits
    low, high = confidence_set(np.array([between, between]), 0.05, every=True)
    assert 1.0 <= low < 1.03 and 1.07 < high <= 1.1


def test_several_stated_temperatures_have_no_interval() -> None:
    rows, tokens = world(3, 2, 20, STATED)
    shown = Shown.whole(2)
    claim = Family([of(rows, tokens, STATED, EDGE)])
    found = fit(
        claim, hypotheses_of(rows, tokens, STATED), [0, 1], 0.05, shown, truncates=False, interval=False
    )
    assert math.isnan(found.low) and found.weighed.p > 0.05


def test_alternatives_have_names() -> None:
    names = [described(one) for one in ALTERNATIVES]
    assert len(set(names)) == len(names) == len(TEMPERATURES) + 10
    assert names[-1] == "temperature 0.7, top-p 0.8, top-k 20" and "no truncation" in names


def test_drawn_and_its_hypotheses_agree_on_the_stated_temperature() -> None:
    rows, tokens = world(8, 1, 30, STATED)
    flat, ids = torch.from_numpy(rows[0]), torch.from_numpy(tokens[0])
    own = drawn(flat, ids, STATED, edge=EDGE)
    here = Drawn(*(own[f"drawn_{n}"].numpy() for n in ("logprob", "before", "kept", "kept_least", "place")))
    told = hypotheses(flat, ids, STATED, edge=EDGE)
    at = TEMPERATURES.index(1.0)
    assert np.allclose(told["drawn_other"][:, at], here.log_density())
    assert np.allclose(told["drawn_most"][:, at], here.log_bound())
