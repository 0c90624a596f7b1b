"""The draw: uniform, the same again, of drawable rows alone, and the bound that it gives holds."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy import stats

from qdx.verification.binding import Drawn, Row, draw, drawn_of

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


def test_the_draw_is_what_the_page_says() -> None:
    """The least SHA-256(seed ‖ root ‖ line of JSON with config and index), computed by hand."""
    seed, label = b"s" * 32, "awq,batch_size=4"

    def key(index: int) -> bytes:
        line = f'{{"config":"{label}","index":{index},"nonce":"","what":"draw"}}\n'
        return hashlib.sha256(seed + bytes.fromhex(ROOT) + line.encode()).digest()

    assert draw(seed, ROOT, label, rows(500, template=5), 7) == sorted(sorted(range(5, 505), key=key)[:7])


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


def both(prefill: int, decode: int) -> list[Row]:
    """Rows of two phases, decode last."""
    return [*rows(prefill), *(Row("ref_0", "decode", prefill + i) for i in range(decode))]


def test_rows_are_drawn_of_each_phase_and_few_rows_of_a_phase_are_all_drawn() -> None:
    assert drawn_of(both(400, 16), 20) == (Drawn("prefill", 20, 400), Drawn("decode", 16, 16))
    for seed in seeds(50):
        chosen = draw(seed, ROOT, "awq", both(400, 16), 20)
        assert sum(i < 400 for i in chosen) == 20
        assert [i for i in chosen if i >= 400] == [*range(400, 416)]


def test_false_decode_rows_are_missed_no_more_often_than_their_own_bound_says() -> None:
    """Drawn of both phases together, they would be missed in most exchanges: few rows are of decode."""
    drawn, prefill, decode, trials = 20, 600, 30, 2_000
    all_rows = both(prefill, decode)
    false = int(np.ceil(Drawn("decode", drawn, decode).false_share() * decode))
    expected = float(stats.hypergeom.pmf(0, decode, false, drawn))
    pooled = float(stats.hypergeom.pmf(0, prefill + decode, false, 2 * drawn))
    assert expected <= 0.05
    assert pooled > 0.6
    missed = np.mean(
        [not any(i >= prefill + decode - false for i in draw(seed, ROOT, "awq", all_rows, drawn))
         for seed in seeds(trials)]
    )  # fmt: skip
    assert abs(float(missed) - expected) < 3 * np.sqrt(0.05 * 0.95 / trials)


def test_of_many_configs_under_one_root_false_ones_pass_in_at_most_five_of_a_hundred_exchanges() -> None:
    """Who binds eight configs has eight chances: the bound of one would be wrong in a third of them."""
    configs, drawn, total, trials = 8, 20, 200, 600
    labels, all_rows = [f"awq_{i}" for i in range(configs)], rows(total)

    def passed(share: float) -> float:
        false = int(np.ceil(share * total))
        return float(
            np.mean(
                [
                    any(min(draw(seed, ROOT, label, all_rows, drawn)) >= false for label in labels)
                    for seed in seeds(trials)
                ]
            )
        )

    error = 3 * np.sqrt(0.05 * 0.95 / trials)
    one = Drawn("prefill", drawn, total)
    assert passed(one.false_share(configs)) <= 0.05 + error
    assert passed(one.false_share()) > 0.2


def test_a_phase_that_was_not_drawn_is_not_bounded_and_one_drawn_whole_is_exact() -> None:
    assert Drawn("decode", 0, 16).false_share() == 1
    assert Drawn("decode", 16, 16).false_share() == Drawn("decode", 16, 16).false_share(configs=9) == 0
