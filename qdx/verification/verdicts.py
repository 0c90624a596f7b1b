"""Decide a claim: rules in the order of their strength, of which the first that applies decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from qdx.document.format import plural
from qdx.verification.cases import Case, Evidence, RecordsCase, RowsCase, part_of
from qdx.verification.evidence import other_prompts

KINDS: Mapping[str, str] = {
    "confirmed": "every row is bit-equal, and the text is what these rows say",
    "confirmed in prefill": "every prefill row is bit-equal; decode, which does not repeat, passed its tests",
    "confirmed in s drawn rows": "every row that the verifier drew of each phase, fixed before, is bit-equal",
    "not refuted": "the claim is plausible, and others may be",
    "kernel confirmed": "rows and text are those of the claimed kernel, under another setting",
    "undecided": "no test could have refuted the claim, or too little was published",
    "obligation not met": "the record is not what the verifier demanded",
    "other config": "rows or record are those of another config than the claimed one",
    "refuted": "an honest claim would be refuted so with at most the level's probability",
}
GOOD = ("confirmed", "confirmed in prefill", "confirmed in s drawn rows", "not refuted")
BAD = ("other config", "refuted")
C = TypeVar("C", bound=Case)


@dataclass(frozen=True)
class Verdict:
    """Hold what is decided of one claim.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    concerns : str
        The part of the claim that it concerns: ``rows``, ``text``, ``record``, ``decode``, …
    because : str
        What it rests on, in a sentence.
    false_at_least : int
        Lower bound of the transcripts (units) that are false; 0 where nothing is shown.
    """

    kind: str
    concerns: str
    because: str
    false_at_least: int = 0


@dataclass(frozen=True)
class Rule(Generic[C]):
    """One row of the table of rules.

    Attributes
    ----------
    name : str
        When it applies, in words.
    applies : callable
        The condition, of a case that no earlier rule applies to.
    kind : str
        The verdict.
    concerns : str or callable
        The part of the claim that it concerns.
    because : callable
        The sentence that says what it rests on.
    why : str
        Why the condition has this outcome, and why here.
    false_at_least : callable
        Lower bound of the transcripts that are false.
    """

    name: str
    applies: Callable[[C], object]
    kind: str
    concerns: str | Callable[[C], str]
    because: Callable[[C], str]
    why: str
    false_at_least: Callable[[C], int] = lambda _: 0

    def verdict(self, case: C) -> Verdict:
        """Return what is decided where it applies."""
        concerns = self.concerns if isinstance(self.concerns, str) else self.concerns(case)
        return Verdict(self.kind, concerns, self.because(case), self.false_at_least(case))


def _of_tests(case: Case) -> int:
    return case.tested.false_at_least


NOT_REPLAYED: tuple[Rule[Case], ...] = (
    Rule(
        "records that nobody gave a config",
        lambda case: case.record is not None and case.own_label,
        "undecided",
        "config",
        lambda case: case.unclaimed,
        "what a provider calls its model is not the label of a config: the verifier says which one it is",
    ),
    Rule(
        "the claimed config was not replayed",
        lambda case: True,
        "undecided",
        "config",
        lambda case: f"config {case.claim} was not replayed: add it to quant=…",
        "there is nothing here that the claim could be held against",
    ),
)

# Tokens and no rows, which end at most in not refuted. A greedy text is held against known transcripts, and
# drawn tokens against the probabilities of the rows here; a record that leaves open how its tokens were
# chosen is neither.
RECORDS: tuple[Rule[RecordsCase], ...] = (
    Rule(
        "neither greedy nor drawn as far as is known",
        lambda case: not case.greedy and not case.drawn and not case.stated.other_prompts,
        "undecided",
        "sampling",
        lambda case: f"{case.unknown_sampling}; {case.judged_as}",
        "no test is about tokens that were chosen in an unknown way",
    ),
    Rule(
        "drawn tokens that are not uniform, and nothing else",
        lambda case: case.refuted and case.drawn and case.only_not_uniform,
        "undecided",
        "sampling",
        lambda case: f"{case.only_not_uniform}; {case.about}; {case.tests_text}{case.lost}",
        "honest tokens are not uniform where a truncation was in force that is not stated",
    ),
    Rule(
        "the tests refute the claim",
        lambda case: case.refuted and not case.stated.from_text,
        "refuted",
        lambda case: case.strongest,
        lambda case: case.refutation(f"{case.about}{case.lost}"),
        "what can be read refutes whatever was left out",
        _of_tests,
    ),
    Rule(
        "another prompt than the one that was asked",
        lambda case: case.stated.other_prompts,
        "undecided",
        "prompt",
        lambda case: f"{other_prompts(case.stated)}{case.lost}",
        "answers to other prompts are not judged, so that too little may be left",
    ),
    Rule(
        "tokens without a row here",
        lambda case: case.tokens_without_row,
        "undecided",
        "coverage",
        lambda case: (
            f"{plural(case.tokens_without_row, 'token')} without a row here; {case.about}{case.lost}"
        ),
        "nobody knows how the tokens that are not judged would have come out",
    ),
    Rule(
        "the tests refute ids that were made from text",
        lambda case: case.refuted,
        "undecided",
        "text",
        lambda case: (
            f"{case.tests_text}, which refutes only where the ids are those that were emitted; "
            f"{case.about}{case.lost}"
        ),
        "one text has several sequences of ids, and an honest one may have been another",
    ),
    Rule(
        "answers that were lost",
        lambda case: case.stated.lost,
        "undecided",
        "coverage",
        lambda case: f"not judged: {case.stated.lost}; {case.summary}",
        "whoever writes the records chooses what cannot be read of them",
    ),
    Rule(
        "some tokens are known to be drawn, and others are not",
        lambda case: case.drawn and case.chosen_otherwise,
        "undecided",
        "coverage",
        lambda case: (
            f"how {plural(case.chosen_otherwise, 'token')} were chosen is not known, or not computed here; "
            f"{case.summary}"
        ),
        "the others are not judged by any test",
    ),
    Rule(
        "drawn tokens, one test of which is low by itself",
        lambda case: case.drawn and case.tested.single,
        "undecided",
        "drawn tokens",
        lambda case: case.summary,
        "good news is only given where nothing speaks against it",
    ),
    Rule(
        "drawn tokens that would not refute another config either",
        lambda case: case.drawn and case.alike,
        "undecided",
        "evidence",
        lambda case: f"so few tokens would not refute {case.alike} beside it; {case.summary}",
        "a test that cannot tell configs apart says nothing by being passed",
    ),
    Rule(
        "drawn tokens that passed",
        lambda case: case.drawn,
        "not refuted",
        "drawn tokens",
        lambda case: case.summary,
        "they would have refuted every config of other weights",
    ),
    Rule(
        "several answers to one prompt differ",
        lambda case: case.answers_differ,
        "undecided",
        "units",
        lambda case: (
            "several answers to one prompt differ, so that a false one may stand behind an honest one; "
            f"{case.summary}"
        ),
        "a unit counts once, by one of its answers",
    ),
    Rule(
        "a greedy text that passed",
        lambda case: case.strong,
        "not refuted",
        lambda case: ", ".join(dict.fromkeys(map(part_of, case.strong))),
        lambda case: case.summary,
        "its tests could have refuted the claim",
    ),
    Rule(
        "no test could have refuted the claim",
        lambda case: True,
        "undecided",
        "evidence",
        lambda case: case.summary,
        "passing a test that cannot fail says nothing",
    ),
)

# What no noise can explain, then rows that are all equal, then the listed tests.
ROWS: tuple[Rule[RowsCase], ...] = (
    Rule(
        "tokens that are not greedy on a bit-equal row",
        lambda case: case.greedy and case.misfits[0],
        "refuted",
        "text",
        lambda case: (
            f"the text does not fit the rows: {plural(case.misfits[0], 'token')} in "
            f"{plural(case.misfits[1], 'transcript')}, each on a row that is bit-equal to the one here and "
            f"has a greater logit; {case.rows}"
        ),
        "plain greedy decoding takes the greatest logit of the row, whatever the machine",
        lambda case: max(case.misfits[1], case.tested.false_at_least),
    ),
    Rule(
        "opened rows that do not say the token that follows",
        lambda case: case.greedy and case.demanded.misread,
        "refuted",
        "text",
        lambda case: (
            f"the text does not fit the rows: {plural(len(case.demanded.misread), 'token')} not among the "
            f"greatest logits of the row that the producer bound and opened ({case.demanded.misread[0]}); "
            f"{case.rows}"
        ),
        "the row is the producer's own, bound before it was drawn",
        _of_tests,
    ),
    Rule(
        "its own record is another config's than its label",
        lambda case: not case.fits and case.other_record and case.own_label,
        "other config",
        "record",
        lambda case: f"its own record states other {case.other_record}; {case.rows}",
        "the producer says so herself; equal rows would be stronger than a record",
        _of_tests,
    ),
    Rule(
        "every row is the claimed kernel's under another setting",
        lambda case: not case.fits and case.greedy and case.other_setting,
        "kernel confirmed",
        "kernel",
        lambda case: case.of_other_setting,
        "weights and kernel are the claimed ones; the batch or another setting is not what was said",
    ),
    Rule(
        "every row is another config's",
        lambda case: not case.fits and case.fitting_others,
        "other config",
        "rows",
        lambda case: (
            f"{'every drawn row' if case.drawn else 'every row'} is bit-equal to that of "
            f"{case.fitting_others}, and not to that of {case.label}: {case.rows}"
        ),
        "rows are equal by no accident, and name what made them",
    ),
    Rule(
        "the tests refute the claim",
        lambda case: case.refuted_by_tests,
        "refuted",
        lambda case: case.strongest,
        lambda case: case.refutation(case.rows),
        "an honest claim would be refuted so with at most the level's probability",
        _of_tests,
    ),
    Rule(
        "its own record is another config's than the verifier says",
        lambda case: not case.fits and case.other_record,
        "other config",
        "record",
        lambda case: f"its own record states other {case.other_record}; {case.rows}",
        "another claim than the label is tested first, and never good news",
        _of_tests,
    ),
    Rule(
        "every row is bit-equal",
        lambda case: case.fits and not case.drawn and not case.blocked,
        "confirmed",
        "rows and text",
        lambda case: f"{case.equal_rows}; {case.greedy_text(case.c)}",
        "equal rows say what computed them, and the text is what these rows say",
    ),
    Rule(
        "every drawn row is bit-equal",
        lambda case: case.fits and not case.blocked,
        "confirmed in s drawn rows",
        lambda case: f"drawn rows of {' and '.join(one.phase for one in case.drawn)}, and text",
        lambda case: f"{case.equal_rows}: {case.false_shares}; {case.greedy_text(case.c)}",
        "the same of the rows that were drawn; the bound of the others belongs to the verdict",
    ),
    Rule(
        "too little was published",
        lambda case: case.too_little,
        "undecided",
        "coverage",
        lambda case: f"too little is published: {case.too_little}; {case.rows}",
        "a producer may leave out what would speak against the claim",
    ),
    Rule(
        "not plain greedy, or not stated",
        lambda case: not case.greedy,
        "undecided",
        "text",
        lambda case: "; ".join(part for part in (case.blocked, case.rows) if part),
        "nothing tests its text: whoever has the weights can make rows that fit any text",
    ),
    Rule(
        "prefill is bit-equal, and decode passed its tests",
        lambda case: case.prefill_confirms and not case.blocked,
        "confirmed in prefill",
        "prefill rows",
        lambda case: f"{case.rows}; {case.tests_text}",
        "rows of a decode that does not repeat can be equal to nobody's",
    ),
    Rule(
        "rows differ where those of every rerun here are equal",
        lambda case: case.unequal,
        "undecided",
        lambda case: f"{case.unequal[0]} rows",
        lambda case: (
            f"rows of {' and '.join(case.unequal)} differ where those of every rerun here are equal: "
            f"{case.about}{case.open_end}"
        ),
        "too few differ to refute, and none would be expected to",
    ),
    Rule(
        "the tests of noisy values passed",
        lambda case: case.passed,
        "not refuted",
        lambda case: ", ".join(test.name for test in case.passed),
        lambda case: case.about,
        "they could have refuted the claim",
    ),
    Rule(
        "no test could have refuted the claim",
        lambda case: True,
        "undecided",
        "evidence",
        lambda case: f"{case.about}{case.open_end}",
        "passing a test that cannot fail says nothing",
    ),
)


def exit_status(kinds: Sequence[str]) -> int:
    """Exit status of a verifier's sweep: 3 with bad news, 4 where something is open, 0 otherwise.

    Examples
    --------
    >>> exit_status(["confirmed", "not refuted"]), exit_status(["confirmed", "undecided"])
    (0, 4)
    >>> exit_status(["confirmed", "kernel confirmed"]), exit_status(["undecided", "refuted"])
    (4, 3)
    """
    if any(kind in BAD for kind in kinds):
        return 3
    return 0 if all(kind in GOOD for kind in kinds) else 4


def decide(evidence: Evidence, d: int, c: int, claim: str) -> Verdict:
    """Decide producer d's claim of config c.

    The order is the order of strength; good news is only given where nothing speaks against it. What the
    verifier demanded and did not get makes the verdict "obligation not met", unless the evidence refutes the
    claim anyway. Where the file is not what was bound, there is no evidence: whoever edited it could have an
    honest prover refuted.

    Parameters
    ----------
    evidence : Evidence
    d : int
    c : int
        −1: it was not replayed.
    claim : str
        The claimed label.
    """
    demanded = evidence.obligations_D[d]
    if demanded.unfit:
        return Verdict("obligation not met", "obligations", "; ".join(demanded.unmet))
    _, found = by_rule(evidence, d, c, claim)
    if demanded.said:
        found = replace(found, because=f"{found.because}; {demanded.said}")
    if not demanded.unmet:
        return found
    unmet = "; ".join(demanded.unmet)
    if found.kind in BAD:
        return replace(found, because=f"{found.because}; obligation not met: {unmet}")
    return Verdict("obligation not met", "obligations", unmet)


def by_rule(evidence: Evidence, d: int, c: int, claim: str) -> tuple[str, Verdict]:
    """The name of the rule that decides a claim, and its verdict, whatever else was demanded."""
    if c < 0:
        return _first(NOT_REPLAYED, Case(evidence, d, c, claim))
    if evidence.data.records_D[d] is not None:
        return _first(RECORDS, RecordsCase(evidence, d, c, claim))
    return _first(ROWS, RowsCase(evidence, d, c, claim))


def _first(rules: Sequence[Rule[C]], case: C) -> tuple[str, Verdict]:
    rule = next(rule for rule in rules if rule.applies(case))
    return rule.name, rule.verdict(case)


def headline(kinds: Sequence[str]) -> str:
    """All verdicts in one sentence."""
    counts = [(kind, kinds.count(kind)) for kind in KINDS if kind in kinds]
    return f"{plural(len(kinds), 'claim')}: {', '.join(f'{count} {kind}' for kind, count in counts)}"
