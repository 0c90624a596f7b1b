"""The table of rules: each rule by hand, which of two is stronger, and what no evidence is ever called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qdx.verification import cases, verdicts
from qdx.verification.binding import Drawn
from qdx.verification.cases import Evidence
from qdx.verification.listed import LISTS, TOKENS
from qdx.verification.listed_tests import Test as Listed
from qdx.verification.verdicts import BAD, KINDS, NOT_REPLAYED, RECORDS, ROWS, by_rule, decide
from tests.verification.made_up import ALPHA, LEVELS, SAMPLED, Maker

Edit = Callable[[Evidence], Evidence | None]
COUNT = 4000  # of made-up claims
Made = list[tuple[Evidence, int, str]]


@pytest.fixture(scope="module")
def made() -> Made:
    """Thousands of claims, which no test changes."""
    return [Maker(seed).evidence() for seed in range(COUNT)]


@pytest.fixture(autouse=True)
def given_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which configs drawn tokens would not refute is drawn too, in place of their probabilities."""
    monkeypatch.setattr(cases.RecordsCase, "alike", property(lambda case: case.data.alike))


@pytest.mark.parametrize("rules", [NOT_REPLAYED, RECORDS, ROWS], ids=["not replayed", "records", "rows"])
def test_a_table_of_rules_says_what_it_does_and_decides_every_claim(rules) -> None:
    names = [rule.name for rule in rules]
    assert len(set(names)) == len(names)
    assert {rule.kind for rule in rules} <= set(KINDS)
    assert all(rule.why and rule.name for rule in rules)
    assert rules[-1].applies(None) is True, "the last rule decides what no other one did"
    assert not [rule.name for rule in rules if rule.kind == "confirmed"] or rules is ROWS


def test_every_rule_decides_some_claims_and_all_kinds_come_out(made: Made) -> None:
    rules: Counter[str] = Counter()
    kinds: set[str] = set()
    for evidence, c, claim in made:
        rules[by_rule(evidence, 0, c, claim)[0]] += 1
        kinds.add(decide(evidence, 0, c, claim).kind)
    never = [rule.name for of in (NOT_REPLAYED, RECORDS, ROWS) for rule in of if not rules[rule.name]]
    assert never == [] and kinds == set(KINDS)


def low(evidence: Evidence) -> bool:
    """Whether a test is low, by itself or after adjustment."""
    claim = evidence.claims[0]
    assert claim is not None
    return claim.single or (claim.p_holm is not None and claim.p_holm <= ALPHA)


def adjusted_low(evidence: Evidence) -> bool:
    """Whether the adjusted p is at most the level."""
    claim = evidence.claims[0]
    return claim is not None and claim.p_holm is not None and claim.p_holm <= ALPHA


def all_rows(evidence: Evidence, c: int) -> bool:
    """Whether both phases are there, whole and bit-equal."""
    data: Any = evidence.data
    return data.prefill is not None and all(
        not rows.missing
        and (rows.equal_DCR[0, c] == rows.compared_DCR[0, c]).all()
        and (rows.content_equal_DCR[0, c] == rows.expected_DCR[0, c]).all()
        and (rows.content_DCR[0, c] == rows.expected_DCR[0, c]).all()
        and rows.expected_DCR[0, c].any()
        for rows in (data.decode, data.prefill)
    )


def all_drawn_rows(evidence: Evidence, c: int) -> bool:
    """Whether rows of both phases were drawn, all of them were compared, and all are equal."""
    data: Any = evidence.data
    found = evidence.obligations_D[0].drawn
    return bool(found) and all(
        one.rows > 0
        and rows is not None
        and not rows.missing
        and rows.compared_DCR[0, c].sum() == rows.equal_DCR[0, c].sum() == one.rows
        for one in found
        for rows in [data.decode if one.phase == "decode" else data.prefill]
    )


def test_no_evidence_with_anything_against_it_is_ever_confirmed(made: Made) -> None:
    """What a verdict must not be, said without the rules, of thousands of claims."""
    seen: Counter[str] = Counter()
    for evidence, c, claim in made:
        data: Any = evidence.data
        found = decide(evidence, 0, c, claim)
        seen[found.kind] += 1
        demanded, record = evidence.obligations_D[0], data.records_D[0]
        greedy = cases.sampling_of(data, 0)
        if found.kind.startswith("confirmed") or found.kind == "not refuted":
            assert c >= 0 and not demanded.unmet
            tested = evidence.claims[0]
            assert tested is not None and not (tested.p_holm is not None and tested.p_holm <= ALPHA)
        if found.kind.startswith("confirmed"):
            assert record is None and greedy is True and not low(evidence) and not tested.behind
            assert not data.misfit_DCRT[0, c].any() and not demanded.misread
            batch = data.class_D[0]["batch_size"]
            assert np.bincount(data.units_DR[0]).max() <= max(1, int(batch or 1))
        if found.kind in ("confirmed", "confirmed in s drawn rows"):
            assert (data.greedy_DCR[0, c] == data.emitted_DR[0]).all()
        if found.kind == "confirmed":
            assert all_rows(evidence, c) and not demanded.drawn
        if found.kind == "confirmed in s drawn rows":
            assert all_drawn_rows(evidence, c)
        if found.kind == "confirmed in prefill":
            assert (data.prefill.content_equal_DCR[0, c] == data.prefill.expected_DCR[0, c]).all()
            assert {"distances", "text"} <= {test.name for test in tested.tests if test.least < ALPHA}
            assert not evidence.other_DC[0][c], "a record of another config is never good news"
        if found.kind == "refuted":
            assert (greedy and data.misfit_DCRT[0, c].any()) or demanded.misread or adjusted_low(evidence)
        if found.kind == "kernel confirmed":
            same = [
                v
                for v in range(len(data.configs))
                if v != c and data.record_C[v] == data.record_C[c] and data.class_C[v] != data.class_C[c]
            ]
            assert record is None and greedy and all(data.record_C[c].values()) and not demanded.unmet
            assert any(all_drawn_rows(evidence, v) or all_rows(evidence, v) for v in same)
            assert not evidence.other_DC[0][c] or claim != "awq", "its own record is stronger"
        if found.kind == "other config":
            others = [v for v in range(len(data.configs)) if v != c]
            rows = any(all_drawn_rows(evidence, v) or all_rows(evidence, v) for v in others)
            assert evidence.other_DC[0][c] or rows
        if demanded.unfit:
            assert found.kind == "obligation not met", "an edited file is evidence for nothing"
        if record is not None:
            assert not found.kind.startswith("confirmed")
    assert min(seen[kind] for kind in KINDS if "prefill" not in kind and "kernel" not in kind) > 100, seen


def honest(drawn: bool = False, recorded: bool = False) -> Evidence:
    """A claim of the first config that nothing speaks against, beside another config; made anew each time."""
    for seed in range(2000):
        evidence, c, claim = Maker(seed, rare=0.0).evidence()
        data: Any = evidence.data
        fits = (data.records_D[0] is not None) is recorded and bool(evidence.obligations_D[0].drawn) is drawn
        if (
            fits
            and c == 0
            and claim == "awq"
            and len(data.configs) > 1
            and (data.drawn is None or not recorded)
        ):
            listed = evidence.claims[0]
            if recorded and listed and listed.test("text"):  # that one alone
                listed = replace(listed, tests=[test for test in listed.tests if test.name == "text"])
                evidence = replace(evidence, claims=[listed, *evidence.claims[1:]])
            names = {test.name for test in listed.tests} if listed else set()
            alone = not data.decode.all_equal_DC[0, 1]  # the other config's rows are others
            if alone and names == ({"text"} if recorded else {"decode rows", "prefill rows", "text"}):
                kind = decide(evidence, 0, 0, "awq").kind
                if kind == ("not refuted" if recorded else f"confirmed{' in s drawn rows' if drawn else ''}"):
                    return evidence
    raise AssertionError("no such claim was made up")


def with_claim(**changes: Any) -> Edit:
    def edit(evidence: Evidence) -> Evidence:
        claim = evidence.claims[0]
        assert claim is not None
        return replace(evidence, claims=[replace(claim, **changes), *evidence.claims[1:]])

    return edit


def with_tests(*found: Listed, p_holm: Fraction = LEVELS[0]) -> Edit:
    """Another list of tests."""
    return with_claim(tests=list(found), unlisted={}, single=p_holm <= ALPHA, p=p_holm, p_holm=p_holm)


def with_data(**changes: Any) -> Edit:
    def edit(evidence: Evidence) -> None:
        vars(evidence.data).update(changes)

    return edit


def with_demands(**changes: Any) -> Edit:
    def edit(evidence: Evidence) -> Evidence:
        first, *rest = evidence.obligations_D
        return replace(evidence, obligations_D=[replace(first, **changes), *rest])

    return edit


def with_record(**changes: Any) -> Edit:
    def edit(evidence: Evidence) -> None:
        data: Any = evidence.data
        data.records_D[0] = replace(data.records_D[0], **changes)

    return edit


def a_row_differs(evidence: Evidence) -> None:
    evidence.data.decode.equal_DCR[0, 0, 0] -= 1
    evidence.data.decode.content_equal_DCR[0, 0, 0] -= 1


def a_row_is_left_out(evidence: Evidence) -> None:
    for name in ("compared", "equal", "content", "content_equal"):
        getattr(evidence.data.decode, f"{name}_DCR")[0, 0, 0] -= 1


def a_token_misfits(evidence: Evidence) -> None:
    evidence.data.misfit_DCRT[0, 0, 0, 0] = True


def a_token_is_not_greedy(evidence: Evidence) -> None:
    evidence.data.greedy_DCR[0, 0, 0] -= 1


def the_rows_are_anothers(evidence: Evidence) -> None:
    for rows in (evidence.data.decode, evidence.data.prefill):
        assert rows is not None
        rows.equal_DCR[0, 1] = rows.compared_DCR[0, 1] = rows.compared_DCR[0, 0]
        rows.content_DCR[0, 1] = rows.content_equal_DCR[0, 1] = rows.expected_DCR[0, 1]
    evidence.data.record_C[1]["weights_sha256"] = "of another checkpoint"
    a_row_differs(evidence)


def only_the_setting_is_another(evidence: Evidence) -> None:
    data = evidence.data
    data.record_C[0] = {"weights_sha256": "w", "dtype": "half", "observed_kernel": "k"}
    data.record_C[1] = dict(data.record_C[0])
    data.class_C[:2] = [{"batch_size": "1"}, {"batch_size": "2"}]


def the_record_is_anothers(evidence: Evidence) -> Evidence:
    return replace(evidence, other_DC=[["weights (a; here b)", ""], *evidence.other_DC[1:]])


def prefill_is_left_out(evidence: Evidence) -> None:
    vars(evidence.data).update(prefill=None, phases=[evidence.data.decode])


def no_row_of_prefill_was_drawn(evidence: Evidence) -> Evidence:
    rows = evidence.data.prefill
    assert rows is not None
    for values in (rows.compared_DCR, rows.equal_DCR, rows.content_DCR, rows.content_equal_DCR):
        values[0] = 0
    first, *rest = evidence.obligations_D
    drawn = tuple(Drawn(one.phase, 0 if one.phase == "prefill" else one.rows, one.of) for one in first.drawn)
    return replace(evidence, obligations_D=[replace(first, drawn=drawn), *rest])


def two_of_a_unit(evidence: Evidence) -> None:
    evidence.data.units_DR[0] = [0, 0, 1]
    evidence.data.class_D[0]["batch_size"] = "1"


refuted = with_claim(p_holm=Fraction(1, 25), tests=[Listed("text", Fraction(1, 5000), LEVELS[-1], "…", 3)])
single = with_claim(single=True, tests=[Listed("text", ALPHA, LEVELS[-1], "…", 3)])
misread = with_demands(misread=("ref_0 decode 3",))
unmet = with_demands(demands=("threads: got 1, wanted 2",))
unfit = with_demands(unfit=("the root is another",))
unstated = with_data(sampling_D=["", ""])
sampled = with_data(sampling_D=[SAMPLED, ""])
behind = with_claim(behind=True)
lists = Listed("distances", LEVELS[0], LEVELS[-1], f"{LISTS} of known transcripts", 3)
margins = replace(lists, null=f"{TOKENS} of known transcripts")
low_lists, low_margins = (replace(one, p=LEVELS[-1]) for one in (lists, margins))
high_text = Listed("text", LEVELS[0], LEVELS[-1], "known transcripts", 3)
weak_text = replace(high_text, least=LEVELS[0])
no_test = with_claim(tests=[], p_holm=None, p=None, unlisted={"text": "no calibration: give one"})


@pytest.mark.parametrize(
    ("edits", "kind", "concerns"),
    [
        ((), "confirmed", "rows and text"),
        ((a_token_misfits,), "refuted", "text"),
        ((misread,), "refuted", "text"),
        ((the_record_is_anothers,), "confirmed", "rows and text"),  # equal rows are stronger than a record
        ((the_record_is_anothers, a_row_differs), "other config", "record"),
        ((the_rows_are_anothers,), "other config", "rows"),
        ((the_rows_are_anothers, the_record_is_anothers), "other config", "record"),
        ((the_rows_are_anothers, only_the_setting_is_another), "kernel confirmed", "kernel"),
        ((the_rows_are_anothers, only_the_setting_is_another, a_token_misfits), "refuted", "text"),
        ((the_rows_are_anothers, only_the_setting_is_another, unmet), "obligation not met", "obligations"),
        ((the_rows_are_anothers, refuted), "other config", "rows"),
        ((the_rows_are_anothers, a_token_misfits), "refuted", "text"),
        ((refuted,), "refuted", "text"),
        ((refuted, unstated), "refuted", "text"),
        ((refuted, a_row_is_left_out), "refuted", "text"),
        ((single,), "not refuted", "text"),
        ((behind,), "not refuted", "text"),
        ((two_of_a_unit,), "undecided", "evidence"),
        ((a_token_is_not_greedy,), "not refuted", "text"),
        ((a_row_differs,), "undecided", "decode rows"),
        ((a_row_is_left_out,), "undecided", "coverage"),
        ((prefill_is_left_out,), "undecided", "coverage"),
        ((unstated,), "undecided", "text"),
        ((sampled,), "undecided", "text"),
        ((sampled, a_token_misfits), "undecided", "text"),  # a drawn token need not be the greatest
        ((no_test, a_token_is_not_greedy), "undecided", "evidence"),
        ((unmet,), "obligation not met", "obligations"),
        ((unmet, refuted), "refuted", "text"),
        ((unmet, the_rows_are_anothers), "other config", "rows"),
        ((unmet, single), "obligation not met", "obligations"),
        ((unfit, refuted, a_token_misfits), "obligation not met", "obligations"),
    ],
)
def test_of_two_things_the_stronger_one_decides_about_rows(edits, kind, concerns) -> None:
    found = decide(edited(honest(), edits), 0, 0, "awq")
    assert (found.kind, found.concerns) == (kind, concerns), found.because


@pytest.mark.parametrize(
    ("edits", "kind"),
    [
        ((), "confirmed in s drawn rows"),
        ((a_token_misfits,), "refuted"),
        ((misread,), "refuted"),
        ((refuted,), "refuted"),
        ((single,), "not refuted"),
        ((behind,), "not refuted"),
        ((a_row_is_left_out,), "undecided"),
        ((a_token_is_not_greedy,), "not refuted"),
        ((prefill_is_left_out,), "undecided"),
        ((with_demands(not_numbers=("ref_0 decode 4",)), a_token_is_not_greedy), "undecided"),
        ((no_row_of_prefill_was_drawn,), "undecided"),
        ((unstated,), "undecided"),
        ((unmet,), "obligation not met"),
        ((unfit,), "obligation not met"),
    ],
)
def test_of_two_things_the_stronger_one_decides_about_drawn_rows(edits, kind) -> None:
    found = decide(edited(honest(drawn=True), edits), 0, 0, "awq")
    assert found.kind == kind, found.because


@pytest.mark.parametrize(
    ("edits", "kind", "concerns"),
    [
        ((), "not refuted", "text"),
        ((refuted,), "refuted", "text"),
        ((refuted, with_record(unreadable=1)), "refuted", "text"),
        ((refuted, with_record(from_text=1)), "undecided", "text"),
        ((refuted, with_record(from_text=1, other_prompts=1)), "undecided", "prompt"),
        ((with_record(other_prompts=1),), "undecided", "prompt"),
        ((with_record(unreadable=1),), "undecided", "coverage"),
        ((with_record(duplicates=1),), "undecided", "coverage"),
        ((with_record(stated=False),), "undecided", "coverage"),
        ((unstated,), "undecided", "sampling"),
        ((sampled,), "undecided", "sampling"),
        ((no_test,), "undecided", "evidence"),
        ((unmet,), "obligation not met", "obligations"),
        ((unmet, refuted), "refuted", "text"),
        ((with_tests(lists, high_text),), "not refuted", "distances, text"),
        (
            (with_tests(margins, high_text),),
            "not refuted",
            "text",
        ),  # margins of greedy tokens are of the text
        ((with_tests(lists, weak_text),), "not refuted", "distances"),  # what could not refute is not named
        ((with_tests(weak_text),), "undecided", "evidence"),
        ((with_tests(low_lists, high_text, p_holm=Fraction(1, 25)),), "refuted", "distances"),
        ((with_tests(low_margins, high_text, p_holm=Fraction(1, 25)),), "refuted", "text"),
        (
            (with_tests(low_lists, high_text, p_holm=Fraction(1, 25)), with_record(from_text=1)),
            "undecided",
            "text",
        ),
    ],
)
def test_of_two_things_the_stronger_one_decides_about_records(edits, kind, concerns) -> None:
    found = decide(edited(honest(recorded=True), edits), 0, 0, "awq")
    assert (found.kind, found.concerns) == (kind, concerns), found.because


@pytest.mark.parametrize(
    ("low_one", "assumed", "mode", "kind", "concerns"),
    [
        ("uniformity", "top_p", "", "undecided", "sampling"),
        ("parameters", "top_p", "", "undecided", "sampling"),
        ("seeded tokens", "top_p", "", "undecided", "sampling"),
        ("drawn tokens", "top_p", "", "refuted", "drawn tokens"),
        ("distances", "top_p", "raw_logprobs", "refuted", "distances"),
        ("distances", "top_p", "", "undecided", "sampling"),  # what is listed may be cut off, too
        ("uniformity", "", "", "refuted", "uniformity"),
        ("parameters", "seed", "", "refuted", "parameters"),  # a seed cuts off no token
    ],
)
def test_what_a_hidden_truncation_explains_refutes_nobody(low_one, assumed, mode, kind, concerns) -> None:
    names = ("distances", "drawn tokens", "uniformity", "parameters", "seeded tokens")
    each = [Listed(n, LEVELS[-1 if n == low_one else 0], LEVELS[-1], f"{LISTS} of others", 3) for n in names]
    evidence = honest(recorded=True)
    data: Any = evidence.data
    drawn = np.where(np.arange(3) < data.emitted_DR[:, None, :, None], -1.0, np.nan)
    known = SimpleNamespace(logprob=np.broadcast_to(drawn, (2, len(data.configs), 3, 3)))
    edits = (
        sampled,
        with_data(drawn=known, seeded_DCRT=None),
        with_record(assumed=assumed, logprobs_mode=mode),
        with_tests(*each, p_holm=Fraction(1, 25)),
    )
    found = decide(edited(evidence, edits), 0, 0, "awq")
    assert (found.kind, found.concerns) == (kind, concerns), found.because


def test_a_claim_of_a_format_says_which_configs_it_may_mean_and_which_one_stands() -> None:
    found = decide(edited(honest(recorded=True), (with_claim(config=0, meant=(0,)),)), 0, 0, "awq")
    assert "judged as awq, as verify.claims says" in found.because
    found = decide(edited(honest(recorded=True), (with_claim(config=0, meant=(0, 1)),)), 0, 0, "int4")
    assert "judged as any of awq, marlin, which verify.claims may mean: awq fits best" in found.because
    assert "not covered: any other kernel, setting or card" in found.because


@pytest.mark.parametrize(
    ("digits", "said"),
    [(4, "of 3 of 6 listed tokens equal to 4 decimals"), (16, "equal to 6 decimals"), (-1, "")],
)
def test_a_verdict_counts_the_lists_that_are_equal_here(digits: int, said: str) -> None:
    counts = (np.array([[1, 2, 0], [0, 0, 0], [0, 0, 0]]), np.array([2, 2, 2]))
    listed = SimpleNamespace(digits_D=[digits, -1], equal_DCR=lambda _: counts)
    found = decide(edited(honest(recorded=True), (with_data(listed=listed),)), 0, 0, "awq")
    assert said in found.because and ("all log-probabilities" in found.because) is bool(said)


def test_a_config_that_was_not_replayed_is_undecided_whatever_the_tests_say() -> None:
    for edits in ((), (refuted,), (a_token_misfits,)):
        found = decide(edited(honest(), edits), 0, -1, "llama")
        assert (found.kind, found.concerns) == ("undecided", "config")
        assert "config llama was not replayed" in found.because
    found = decide(honest(recorded=True), 0, -1, "awq")
    assert found.kind == "undecided" and "'verify.claims={awq: …}'" in found.because


def edited(evidence: Evidence, edits: tuple[Edit, ...]) -> Evidence:
    for edit in edits:
        evidence = edit(evidence) or evidence
    return evidence


@pytest.mark.parametrize("rules", ["ROWS", "RECORDS"])
def test_a_rule_in_another_place_of_the_table_decides_otherwise(
    rules: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is what the tables say, so a rule that is moved must be seen by some made-up claim."""
    kept = [decide(evidence, 0, c, claim) for evidence, c, claim in made]
    table = getattr(verdicts, rules)
    good = next(i for i, rule in enumerate(table) if rule.kind == "not refuted")
    monkeypatch.setattr(verdicts, rules, (table[good], *table[:good], *table[good + 1 :]))
    changed = [decide(evidence, 0, c, claim) for evidence, c, claim in made]
    lost = [(a, b) for a, b in zip(kept, changed, strict=True) if a != b]
    assert any(a.kind in BAD and b.kind not in BAD for a, b in lost)
