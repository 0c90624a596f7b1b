"""Which config answered each request: what posteriors are worth when their prior is true."""

from __future__ import annotations

import numpy as np

from qdx.verification.sampled import log_likelihood
from qdx.verification.shares import likeliest, posteriors
from tests.verification.test_drawn import SAMPLERS, draw, of, stacked, world


def test_of_answers_with_a_posterior_of_so_much_so_many_are_right() -> None:
    """Three configs answer equally often: among the probabilities near 0.9, nine of ten are right."""
    said, right = [], []
    for seed in range(40):
        rows = world(30, 12, 0.5, 700 + seed)
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 3, 30)
        tokens = np.stack([draw(rows[truth[r]][r], SAMPLERS[0], rng) for r in range(30)])
        here = stacked([of(one, tokens, SAMPLERS[0]) for one in rows])
        found = posteriors(log_likelihood(here), ["a", "b", "c"])[0]
        assert np.allclose(found.sum(0), 1)
        said += found.ravel().tolist()
        right += (truth == np.arange(3)[:, None]).ravel().tolist()
    edges = np.array([0.02, 0.1, 0.3, 0.6, 0.9, 1.0])
    bins = np.digitize(said, edges[:-1])
    for b in range(1, 6):
        here = bins == b
        p, share, count = np.array(said)[here].mean(), np.array(right)[here].mean(), here.sum()
        assert count > 20 and abs(share - p) < 4 * np.sqrt(p * (1 - p) / count) + 0.01


def test_kernels_of_one_checkpoint_share_its_prior() -> None:
    found = posteriors(np.zeros((1, 4, 2)), ["a", "a", "b", ""])
    assert np.allclose(found[0, :, 0], [1 / 6, 1 / 6, 1 / 3, 1 / 3])


def test_an_answer_that_nobody_gave_has_no_posterior() -> None:
    likelihood = np.array([[[-1.0, np.nan], [-3.0, np.nan]]])
    found = posteriors(likelihood, ["a", "b"])
    assert np.isnan(found[0, :, 1]).all() and likeliest(found[0]) == [1, 0]


def test_a_hidden_part_is_seen_request_by_request() -> None:
    claim, other, third = world(40, 90, 0.6, 31)
    rng = np.random.default_rng(32)
    tokens = draw(claim, SAMPLERS[0], rng)
    tokens[:10] = draw(other[:10], SAMPLERS[0], rng)
    here = stacked([of(one, tokens, SAMPLERS[0]) for one in (claim, other, third)])
    counts = likeliest(posteriors(log_likelihood(here), ["a", "b", "c"])[0])
    assert np.abs(np.array(counts) - [30, 10, 0]).max() <= 2
