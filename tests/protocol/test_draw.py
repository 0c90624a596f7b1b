"""The draw: uniform, the same again, of drawable rows alone, and the bound that it gives holds."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy import stats

from qdx.verification.binding import Row, draw

ROOT = "ab" * 32


def rows(count: int, template: int = 0) -> list[Row]:
    return [Row("ref_0", "prefill", i, drawable=i >= template) for i in range(count + template)]


def seeds(count: int) -> list[bytes]:
    return [hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(count)]


def test_every_row_is_drawn_equally_often() -> None:
    """A chi-square test over 4,000 seeds; 3 of 12 rows each."""
    counts = np.zeros(12)
    for seed in seeds(4_000):
        counts[draw(seed, ROOT, "awq", rows(12), 3)] += 1
    assert counts.sum() == 12_000
    # Rows of one draw are not independent: without replacement the variance is smaller than the test's.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_pairs_of_rows_are_drawn_equally_often() -> None:
    pairs = np.zeros((6, 6))
    for seed in seeds(6_000):
        i, j = draw(seed, ROOT, "awq", rows(6), 2)
        pairs[i, j] += 1
    assert stats.chisquare(pairs[np.triu_indices(6, 1)]).pvalue > 1e-3


def test_a_draw_depends_on_seed_root_and_config_and_is_the_same_again() -> None:
    own = draw(b"s" * 32, ROOT, "awq", rows(1_000), 20)
    assert own == draw(b"s" * 32, ROOT, "awq", rows(1_000), 20)
    assert own == sorted(set(own))
    assert own != draw(b"t" * 32, ROOT, "awq", rows(1_000), 20)
    assert own != draw(b"s" * 32, "cd" * 32, "awq", rows(1_000), 20)
    assert own != draw(b"s" * 32, ROOT, "gptq", rows(1_000), 20)


def test_rows_of_the_template_are_never_drawn_and_few_rows_are_all_drawn() -> None:
    for seed in seeds(50):
        assert min(draw(seed, ROOT, "awq", rows(10, template=90), 5)) >= 90
    assert draw(b"", ROOT, "awq", rows(4, template=3), 59) == [3, 4, 5, 6]


def test_a_share_of_false_rows_at_the_bound_is_missed_by_at_most_five_in_a_hundred_draws() -> None:
    """With s rows drawn and all right, "under 1 − 0.05^(1/s)" is false in at most 5 % of exchanges.

    The share is at the bound itself, where the claim fails most often. A smaller one is missed more
    often: the bound is not loose.
    """
    drawn, total, trials = 20, 400, 3_000
    bound = 1 - 0.05 ** (1 / drawn)

    def missed(share: float) -> float:
        false = int(np.ceil(share * total))
        all_rows = rows(total)
        return float(
            np.mean([min(draw(seed, ROOT, "awq", all_rows, drawn)) >= false for seed in seeds(trials)])
        )

    expected = float(stats.hypergeom.pmf(0, total, int(np.ceil(bound * total)), drawn))
    assert expected <= 0.05
    error = 3 * np.sqrt(0.05 * 0.95 / trials)
    assert abs(missed(bound) - expected) < error
    assert missed(bound / 2) > 0.15
