"""What is confirmed from rows that a CPU computed: only where every recorded row is equal."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from results import script


@pytest.fixture(scope="module")
def verdicts() -> ModuleType:
    return script("scripts/gpu/emulated_verdicts.py")


PROMPT, ANSWER = list(range(10)), [3, 1, 4, 1]
ROWS = {
    config: {
        "prefill": {p: 100 * number + p for p in range(1, 11)},
        "decode": {p: 100 * number + p for p in range(11, 14)},
    }
    for number, config in enumerate(("marlin", "machete"), 1)
}


def judged(verdicts: ModuleType, made: object, rows: object = ROWS, tokens: object = None) -> tuple[str, str]:
    fed = np.array(PROMPT + ANSWER if tokens is None else tokens)
    counts = {config: verdicts.compare(made, own, fed) for config, own in rows.items()}  # type: ignore[attr-defined]
    outcome: tuple[str, str] = verdicts.verdict(counts)
    return outcome


def test_a_transcript_is_confirmed_by_every_row_and_not_by_all_but_one(verdicts: ModuleType) -> None:
    made = verdicts.Transcript(np.array(PROMPT + ANSWER), ROWS["machete"])
    assert judged(verdicts, made) == ("confirmed", "machete")
    for phase, position in (("prefill", 1), ("prefill", 10), ("decode", 13)):
        hashes = {name: dict(rows) for name, rows in ROWS["machete"].items()}
        hashes[phase][position] += 1
        assert judged(verdicts, replace(made, hashes=hashes)) == ("not confirmed", "")


def test_rows_that_were_not_computed_confirm_nothing(verdicts: ModuleType) -> None:
    made = verdicts.Transcript(np.array(PROMPT + ANSWER), ROWS["marlin"])
    prefill = {"marlin": {"prefill": ROWS["marlin"]["prefill"]}}
    assert judged(verdicts, made, prefill) == ("confirmed in prefill", "marlin")
    half = {"marlin": {"prefill": {p: h for p, h in ROWS["marlin"]["prefill"].items() if p < 6}}}
    assert judged(verdicts, made, half) == ("not confirmed", "")
    some = {"marlin": {**ROWS["marlin"], "decode": {11: ROWS["marlin"]["decode"][11]}}}
    assert judged(verdicts, made, some) == ("not confirmed", "")
    assert judged(verdicts, made, {"marlin": {}}) == ("unknown", "")


def test_rows_after_other_tokens_are_not_compared(verdicts: ModuleType) -> None:
    """The row that predicts position p has seen the tokens before p: one that differs at 11 leaves row 11."""
    made = verdicts.Transcript(np.array(PROMPT + ANSWER), ROWS["marlin"])
    other = [*PROMPT, ANSWER[0], 99, *ANSWER[2:]]
    assert verdicts.compare(made, ROWS["marlin"], np.array(other))["decode"] == (1, 1, 3)
    assert judged(verdicts, made, ROWS, other) == ("not confirmed", "")


def test_a_stranger_is_unknown(verdicts: ModuleType) -> None:
    hashes = {name: {p: h + 5000 for p, h in rows.items()} for name, rows in ROWS["marlin"].items()}
    made = verdicts.Transcript(np.array(PROMPT + ANSWER), hashes)
    assert judged(verdicts, made) == ("unknown", "")


def test_so_many_drawn_rows_bound_the_others_share(verdicts: ModuleType) -> None:
    """By simulation: where 1 % of rows are another's, 299 drawn ones are all equal in 5 % of draws."""
    assert verdicts.rows_for(0.01, 1) == 299
    numbers = np.random.default_rng(0)
    escaped = numbers.hypergeometric(1000, 99_000, 299, 20_000) == 0
    assert 0.04 < escaped.mean() < 0.055
    assert (numbers.hypergeometric(1000, 99_000, 200, 20_000) == 0).mean() > 0.1
