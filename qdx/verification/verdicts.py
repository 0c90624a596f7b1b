"""Decide a claim from its listed tests, the rows that are equal and the text that fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from qdx.document.format import plural
from qdx.verification.binding import Drawn, share_text
from qdx.verification.compare import Compared
from qdx.verification.evidence import (
    Claim,
    Test,
    counts_needed,
    judged_groups,
    other_prompts,
    sampling_of,
    shown_of,
    weights_of,
)
from qdx.verification.listed import MOST_DIGITS, TOKENS
from qdx.verification.obligations import Obligations
from qdx.verification.recorded import Recorded, own_units
from qdx.verification.replays import Replays
from qdx.verification.sampled import Alternatives, not_told_apart

KINDS: Mapping[str, str] = {
    "confirmed": "every row is bit-equal, and the text is what these rows say",
    "confirmed in prefill": "every prefill row is bit-equal; decode, which does not repeat, passed its tests",
    "confirmed in s drawn rows": "every row that the verifier drew of each phase, fixed before, is bit-equal",
    "not refuted": "the claim is plausible, and others may be",
    "undecided": "no test could have refuted the claim, or too little was published",
    "obligation not met": "the record is not what the verifier demanded",
    "other config": "rows or record are those of another config than the claimed one",
    "refuted": "an honest claim would be refuted so with at most the level's probability",
}
# Sampling parameters that change which tokens are drawn: a server may set one that nobody states.
SHAPING = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
GOOD = ("confirmed", "confirmed in prefill", "confirmed in s drawn rows", "not refuted")
BAD = ("other config", "refuted")
MOST_SAID = 2  # rows that a reason names


@dataclass(frozen=True)
class Verdict:
    """What is decided of one claim.

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
class Evidence:
    """What verdicts rest on.

    Attributes
    ----------
    data : Replays
    claims : list of Claim or None
    alpha : Fraction
    calibrated : bool
        Whether known transcripts were given.
    likeliest_DC : array (producer, config)
        References whose greatest likelihood is the config's; zeros without a calibration.
    other_DC : list of list of str
        What of a producer's own record is not the config's, such as its weights.
    obligations_D : list of Obligations
        What the verifier demanded of each producer.
    """

    data: Replays
    claims: list[Claim | None]
    alpha: Fraction
    calibrated: bool
    likeliest_DC: np.ndarray
    other_DC: list[list[str]]
    obligations_D: list[Obligations]


def exit_status(kinds: Sequence[str]) -> int:
    """Exit status of a verifier's sweep: 3 with bad news, 4 where something is open, 0 otherwise.

    Examples
    --------
    >>> exit_status(["confirmed", "not refuted"]), exit_status(["confirmed", "undecided"])
    (0, 4)
    >>> exit_status(["undecided", "refuted"])
    3
    """
    if any(kind in BAD for kind in kinds):
        return 3
    return 0 if all(kind in GOOD for kind in kinds) else 4


def text_misfits(data: Replays, d: int, c: int) -> tuple[int, int]:
    """Count tokens that are not greedy on a bit-equal row, and the transcripts that have one."""
    misfit_RT = data.misfit_DCRT[d, c]
    return int(misfit_RT.sum()), int(misfit_RT.any(-1).sum())


def every_row_equal(data: Replays, d: int, v: int) -> bool:
    """Whether every row that config v has here is published and bit-equal, and the text fits them."""
    return (
        all(bool(rows.all_equal_DC[d, v]) for rows in data.phases)
        and data.prefill is not None
        and not text_misfits(data, d, v)[0]
        and bool((data.greedy_DCR[d, v] == data.emitted_DR[d]).all())
    )


def every_drawn_row_equal(data: Replays, d: int, v: int, drawn: Sequence[Drawn]) -> bool:
    """Whether every drawn row is bit-equal to config v's here, and all text is greedy by the rows here.

    A phase of which no row was drawn is not confirmed, and nothing is without it.
    """
    counts = [(one.rows, *_counts(data, d, v, one.phase)) for one in drawn]
    return (
        bool(drawn)
        and all(0 < rows == compared == equal for rows, compared, equal in counts)
        and not text_misfits(data, d, v)[0]
        and bool((data.greedy_DCR[d, v] == data.emitted_DR[d]).all())
    )


def _counts(data: Replays, d: int, v: int, phase: str) -> tuple[int, int]:
    """Rows of a phase that both sides have, and those that are bit-equal."""
    of = [rows for rows in data.phases if rows.phase == phase and not rows.missing]
    return sum(int(r.compared_DCR[d, v].sum()) for r in of), sum(int(r.equal_DCR[d, v].sum()) for r in of)


def decide(evidence: Evidence, d: int, c: int, claim: str) -> Verdict:
    """Decide producer d's claim of config c.

    The order is the order of strength: what no noise can explain, then rows that are all equal, then the
    listed tests; good news is only given where nothing speaks against it. What the verifier demanded and did
    not get makes the verdict "obligation not met", unless the evidence refutes the claim anyway. Where the
    file is not what was bound, there is no evidence: whoever edited it could have an honest prover refuted.

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
    found = _decide(evidence, d, c, claim)
    if demanded.said:
        found = replace(found, because=f"{found.because}; {demanded.said}")
    if not demanded.unmet:
        return found
    unmet = "; ".join(demanded.unmet)
    if found.kind in BAD:
        return replace(found, because=f"{found.because}; obligation not met: {unmet}")
    return Verdict("obligation not met", "obligations", unmet)


def _decide(evidence: Evidence, d: int, c: int, claim: str) -> Verdict:
    data = evidence.data
    record = data.records_D[d]
    if c < 0 and record is not None and claim == data.producers[d]:
        why = (
            "records of other programs claim no config: say which one it is, "
            f"'verify.claims={{{claim}: …}}', one of {', '.join(data.configs)}"
        )
        if record.other_prompts:
            why = f"{other_prompts(record)}; {why}"
        elif sampling_of(data, d):  # greedy tokens say nothing of sampled output
            each = [f"{label} {_greedy_text(data, d, v)}" for v, label in enumerate(data.configs)]
            why = f"{'; '.join(each)}; {why}"
        return Verdict("undecided", "config", why)
    if c < 0:
        return Verdict("undecided", "config", f"config {claim} was not replayed: add it to quant=…")
    tested = evidence.claims[d]
    assert tested is not None
    if record is not None:
        return _of_records(evidence, tested, d, c, record)
    demanded = evidence.obligations_D[d]
    drawn, misread = demanded.drawn, demanded.misread
    greedy, rows = sampling_of(data, d), _rows_text(data, d, c, drawn)
    tokens, transcripts = text_misfits(data, d, c)
    if greedy and tokens:
        return Verdict(
            "refuted",
            "text",
            f"the text does not fit the rows: {plural(tokens, 'token')} in "
            f"{plural(transcripts, 'transcript')}, each on a row that is bit-equal to the one here and has a "
            f"greater logit; {rows}",
            max(transcripts, tested.false_at_least),
        )
    if greedy and misread:
        return Verdict(
            "refuted",
            "text",
            f"the text does not fit the rows: {plural(len(misread), 'token')} not among the greatest "
            f"logits of the row that the producer bound and opened ({misread[0]}); {rows}",
            tested.false_at_least,
        )
    # Of rows that were drawn, those alone are compared, and the bound of the others belongs to the verdict.
    equal = not drawn and every_row_equal(data, d, c)
    stated_other = evidence.other_DC[d][c]
    fits = [
        every_drawn_row_equal(data, d, v, drawn) if drawn else every_row_equal(data, d, v)
        for v in range(len(data.configs))
    ]
    if not fits[c] and stated_other and data.producers[d] == claim:
        why = f"its own record states other {evidence.other_DC[d][c]}; {rows}"
        return Verdict("other config", "record", why, tested.false_at_least)
    others = [v for v in range(len(data.configs)) if v != c and fits[v]]
    if not fits[c] and others:
        names = " and ".join(data.configs[v] for v in others)
        every = "every drawn row" if drawn else "every row"
        why = f"{every} is bit-equal to that of {names}, and not to that of {data.configs[c]}: {rows}"
        return Verdict("other config", "rows", why)
    if tested.p_holm is not None and tested.p_holm <= evidence.alpha:
        return _refuted(evidence, tested, d, c, rows)
    if not fits[c] and stated_other:  # another claim than the label: tested first, and never good news
        why = f"its own record states other {stated_other}; {rows}"
        return Verdict("other config", "record", why, tested.false_at_least)
    blocked = _blocked(evidence, tested, d, greedy)
    if equal and not blocked:
        twins = f" (and to those of {', '.join(data.configs[v] for v in others)})" if others else ""
        return Verdict("confirmed", "rows and text", f"{rows}{twins}; {_greedy_text(data, d, c)}")
    if fits[c] and not blocked:
        twins = f" (and to those of {', '.join(data.configs[v] for v in others)})" if others else ""
        why = f"{rows}{twins}: {_false_shares(demanded)}; {_greedy_text(data, d, c)}"
        phases = " and ".join(one.phase for one in drawn)
        return Verdict("confirmed in s drawn rows", f"drawn rows of {phases}, and text", why)
    if too_little := _too_little(data, d, c, demanded):
        return Verdict("undecided", "coverage", f"too little is published: {too_little}; {rows}")
    if not greedy:  # no test of its text: whoever has the weights can make rows that fit any text
        return Verdict("undecided", "text", "; ".join(part for part in (blocked, rows) if part))
    strong = [test for test in tested.tests if _can_refute(evidence, tested, test)]
    noisy = [test for test in strong if test.name in ("distances", "text")]
    if not any(test.name == "text" for test in noisy):
        noisy = []  # rows that fit say nothing about a text that could not be tested
    open_decode = tested.test("decode rows") is None
    if _units_overlap(data, d):
        noisy = []
    prefill = data.prefill is not None and bool(data.prefill.all_equal_DC[d, c])
    both = {"distances", "text"} <= {test.name for test in noisy}  # decode's rows and its text
    if prefill and open_decode and both and not blocked:
        why = f"{rows}; {_tests_text(tested)}"
        return Verdict("confirmed in prefill", "prefill rows", why)
    about = "; ".join(part for part in (rows, _tests_text(tested), blocked, _ranks(evidence, d)) if part)
    exact = [rows_ for rows_ in data.phases if tested.test(f"{rows_.phase} rows")]
    unequal = [rows_.phase for rows_ in exact if not _all_equal(rows_, d, c, bool(drawn))]
    if unequal:
        why = f"rows of {' and '.join(unequal)} differ where those of every rerun here are equal"
        return Verdict("undecided", f"{unequal[0]} rows", f"{why}: {about}{_remedy(evidence, tested, d)}")
    if noisy:
        return Verdict("not refuted", ", ".join(test.name for test in noisy), about)
    return Verdict("undecided", "evidence", f"{about}{_remedy(evidence, tested, d)}")


def _of_records(evidence: Evidence, tested: Claim, d: int, c: int, record: Recorded) -> Verdict:
    """Decide a claim about records of another program: tokens and no rows, which end at most in not refuted.

    A greedy text is held against known transcripts, and drawn tokens against the probabilities of the rows
    here. A record that leaves open how its tokens were chosen is neither.
    """
    data, greedy = evidence.data, sampling_of(evidence.data, d)
    judged_as = _judged_as(data, tested, c)
    drawn = _drawn_tokens(data, d, c) if greedy is False else 0
    if not greedy and not drawn and not record.other_prompts:
        why = tested.unlisted.get("text", "")
        if greedy is False:
            why = "sampled output with penalties, biases or restrictions, which are not computed here"
        return Verdict("undecided", "sampling", f"{why}; {judged_as}")
    emitted = int(data.emitted_DR[d].sum())
    text = f"{drawn:,} of {plural(emitted, 'token')} drawn as stated" if drawn else _greedy_text(data, d, c)
    parts = (text, _listed_text(data, d, c), judged_as, _blocked(evidence, tested, d, greedy))
    about = "; ".join(part for part in parts if part)
    if record.assumed:
        about += f"; assumed to do nothing, since it is not stated: {record.assumed}"
    if record.from_text:
        about += f"; ids of {plural(record.from_text, 'answer')} were made from text"
    if record.alone:
        about += (
            f"; {plural(record.alone, 'answer')} without a request, so that they alone say what was asked"
        )
    if drawn and (unseen := int(record.open_R.sum())):
        about += f"; {plural(unseen, 'answer')} with a token after the last one that is listed"
    missing = int((data.emitted_DR[d] - data.tokens_DCR[d, c]).sum())
    refuted = tested.p_holm is not None and tested.p_holm <= evidence.alpha and not missing
    lost = f"; not judged: {record.lost}" if record.lost else ""
    if refuted and drawn and (why := _only_not_uniform(evidence, tested, record)):
        return Verdict("undecided", "sampling", f"{why}; {about}; {_tests_text(tested)}{lost}")
    if refuted and not record.from_text:  # by what can be read, whatever was left out
        return _refuted(evidence, tested, d, c, f"{about}{lost}")
    if record.other_prompts:
        return Verdict("undecided", "prompt", f"{other_prompts(record)}{lost}")
    if missing:
        return Verdict(
            "undecided", "coverage", f"{plural(missing, 'token')} without a row here; {about}{lost}"
        )
    if refuted:
        why = f"{_tests_text(tested)}, which refutes only where the ids are those that were emitted; {about}"
        return Verdict("undecided", "text", f"{why}{lost}")
    strong = [test for test in tested.tests if _can_refute(evidence, tested, test)]
    said = _said(tested, about)
    if not strong:
        only_text = {"text": tested.unlisted["text"]} if "text" in tested.unlisted else {}
        said += _remedy(evidence, replace(tested, unlisted=only_text), d)
    if record.lost:  # whoever writes the records chooses what cannot be read of them
        return Verdict("undecided", "coverage", f"not judged: {record.lost}; {said}")
    if drawn:
        return _of_drawn(evidence, tested, d, c, said, emitted - drawn)
    if _answers_differ(data, d, record):
        why = "several answers to one prompt differ, so that a false one may stand behind an honest one"
        return Verdict("undecided", "units", f"{why}; {said}")
    names = ", ".join(dict.fromkeys(map(_part, strong)))
    return Verdict("not refuted", names, said) if strong else Verdict("undecided", "evidence", said)


def _listed_text(data: Replays, d: int, c: int) -> str:
    """Of how many tokens every listed value is the one printed here; "" where nothing is listed."""
    if data.listed is None or data.listed.digits_D[d] < 0:
        return ""
    equal_CR, tokens_R = data.listed.equal_DCR(d)
    digits = plural(min(data.listed.digits_D[d], MOST_DIGITS), "decimal")
    tokens = plural(int(tokens_R.sum()), "listed token")
    return f"all log-probabilities of {int(equal_CR[c].sum()):,} of {tokens} equal to {digits}"


def _judged_as(data: Replays, tested: Claim, c: int) -> str:
    """Say which configs a claim may mean, where a format names several."""
    if len(tested.meant) < 2:
        return f"judged as {data.configs[c]}, as verify.claims says"
    names = ", ".join(data.configs[v] for v in tested.meant)
    return (
        f"judged as any of {names}, which verify.claims may mean: {data.configs[c]} fits best and stands "
        "here (not covered: any other kernel, setting or card)"
    )


def _of_drawn(evidence: Evidence, tested: Claim, d: int, c: int, said: str, others: int) -> Verdict:
    """Decide a claim that no test of drawn tokens refutes; `others` were not drawn as far as is known."""
    if others:
        why = f"how {plural(others, 'token')} were chosen is not known, or not computed here"
        return Verdict("undecided", "coverage", f"{why}; {said}")
    if tested.single:
        return Verdict("undecided", "drawn tokens", said)
    if alike := _not_told_apart(evidence, d, c):
        return Verdict("undecided", "evidence", f"so few tokens would not refute {alike} beside it; {said}")
    return Verdict("not refuted", "drawn tokens", said)


def _part(test: Test) -> str:
    """The part of a claim that a test is about: distances of greedy tokens are about the text."""
    return "text" if test.name == "distances" and test.null.startswith(TOKENS) else test.name


def _said(tested: Claim, about: str) -> str:
    return "; ".join(part for part in (about, _tests_text(tested)) if part)


def _answers_differ(data: Replays, d: int, record: Recorded) -> bool:
    """Whether a unit has answers that are not one answer given several times."""
    seen: dict[int, str] = {}
    pairs = zip(data.units_DR[d].tolist(), record.answers_R, data.there_DR[d].tolist(), strict=True)
    return any(there and seen.setdefault(unit, answer) != answer for unit, answer, there in pairs)


def _only_not_uniform(evidence: Evidence, tested: Claim, record: Recorded) -> str:
    """Say that tokens were not drawn as was assumed, where nothing else speaks against the claim; or "".

    Whoever truncates by default and does not say so draws honest tokens that are not uniform under what was
    assumed. Between configs that makes little difference, since the same is assumed of all; an alternative
    that is sharper than the claim can gain by it (`docs/verification.md`).
    """
    assumed = [name for name in SHAPING if name in record.assumed.split(", ")]
    if not (assumed or record.order_matters) or tested.p_holm is None or tested.p_holm > evidence.alpha:
        return ""
    asked = sum(claim is not None for claim in evidence.claims)
    others = [test.p for test in tested.tests if test.name != "uniformity" and test.p is not None]
    if others and len(tested.tests) * asked * min(others) <= evidence.alpha:
        return ""
    if record.order_matters:
        return (
            "the tokens were not drawn from this config's rows in vLLM's order of temperature and "
            "truncation: it is another model, or another engine, which has another order"
        )
    example = ", ".join(f"{name}: …" for name in assumed)
    return (
        "the tokens were not drawn from this config's rows as was assumed: it is another model, or "
        f"{' or '.join(assumed)} was in force and is not stated ('prompts.assume={{{example}}}')"
    )


def _drawn_tokens(data: Replays, d: int, c: int) -> int:
    return 0 if data.drawn is None else int(np.isfinite(data.drawn.logprob[d, c]).sum())


def _not_told_apart(evidence: Evidence, d: int, c: int) -> str:
    """Configs of other weights that the drawn tokens do not refute beside this one; "" for none."""
    data = evidence.data
    assert data.drawn is not None
    groups, weights_C = judged_groups(data, d), weights_of(data)
    shown = shown_of(data, d)
    found = not_told_apart(data.drawn, groups, d, c, weights_C, float(evidence.alpha), shown)
    if not Alternatives.of(weights_C, c).others:
        return "anything: no config of other weights was replayed"
    return ", ".join(data.configs[v] for v in found)


def _refuted(evidence: Evidence, tested: Claim, d: int, c: int, rows: str) -> Verdict:
    found = [test for test in tested.tests if test.p is not None]
    best = min(found, key=lambda test: test.p or Fraction(1))
    most = max(found, key=lambda test: test.false_at_least)
    assert tested.p_holm is not None
    why = f"{rows}; {_tests_text(tested)}; p = {_p(tested.p_holm)} adjusted over tests and claims"
    share = tested.false_at_least
    if share:
        why += f"; at least {share} of {plural(most.judged, 'independent transcript')} false"
    return Verdict("refuted", _part(best), f"{why}{_ranks(evidence, d, '; ')}", share)


def _can_refute(evidence: Evidence, tested: Claim, test: Test) -> bool:
    """Whether the test could have refuted the claim had every transcript been false."""
    asked = sum(claim is not None for claim in evidence.claims)
    return len(tested.tests) * asked * test.least <= evidence.alpha


def _blocked(evidence: Evidence, tested: Claim, d: int, greedy: bool | None) -> str:
    """What speaks against good news; empty where nothing does."""
    if greedy is None:
        return "the record does not state how its tokens were chosen, so it is not confirmed"
    if greedy is False and evidence.data.records_D[d] is None:
        return "the record states another decoding than plain greedy, so it is not confirmed"
    if tested.single:
        low = [test for test in tested.tests if test.p is not None and test.p <= evidence.alpha]
        return f"the test of {low[0].name} alone has p = {_p(low[0].p)}, so it is not confirmed"
    if evidence.data.records_D[d] is None and _units_overlap(evidence.data, d):
        return "its references overlap, so that several count once, and false ones among them are hidden"
    if tested.behind:
        return "another config is likelier by more than known transcripts show, so it is not confirmed"
    return ""


def _units_overlap(data: Replays, d: int) -> bool:
    """Whether a unit has more references than ran in one batch."""
    batch = data.class_D[d].get("batch_size", "")
    return int(np.bincount(data.units_DR[d]).max()) > max(1, int(batch) if batch.isdigit() else 1)


def _false_shares(demanded: Obligations) -> str:
    """Bound the false rows of each phase, where every drawn one is right."""
    shares = [f"{share_text(one.false_share(demanded.configs))} in {one.phase}" for one in demanded.drawn]
    said = f"the share of false rows is {' and '.join(shares)}"
    if all(one.rows == one.of for one in demanded.drawn):
        return said
    several = f", for all {demanded.configs} configs of the root together" if demanded.configs > 1 else ""
    return f"{said}, at 95 %{several}"


def _all_equal(rows: Compared, d: int, c: int, drawn: bool) -> bool:
    """Whether the rows of a phase that were asked for are bit-equal."""
    if drawn:  # which ones, the verifier said
        return bool((rows.equal_DCR[d, c] == rows.compared_DCR[d, c]).all())
    return bool(rows.all_equal_DC[d, c])


def _too_little(data: Replays, d: int, c: int, demanded: Obligations) -> str:
    """What a producer left out of the rows that the verifier has, or drew; empty where nothing."""
    said = []
    for one in demanded.drawn:
        if (compared := _counts(data, d, c, one.phase)[0]) < max(one.rows, 1):
            why = [rows.missing for rows in data.phases if rows.phase == one.phase and rows.missing]
            reason = f" ({why[0]})" if why else ""
            said.append(f"{compared:,} of {plural(one.rows, 'drawn row')} of {one.phase} compared{reason}")
    if odd := demanded.not_numbers:
        names = "; ".join(odd[:MOST_SAID]) + ("; …" if len(odd) > MOST_SAID else "")
        said.append(f"{plural(len(odd), 'drawn row')} with NaN, which no token is read from ({names})")
    for rows in [] if demanded.drawn else data.phases:
        if rows.missing:
            continue
        there, wanted = int(rows.content_DCR[d, c].sum()), int(rows.expected_DCR[d, c].sum())
        if there < wanted:
            noun = "content rows of prefill" if rows.phase == "prefill" else "decode rows"
            said.append(f"{there:,} of {wanted:,} {noun}")
    if data.prefill is None:
        said.append("no prefill rows")
    missing = int((data.emitted_DR[d] - data.tokens_DCR[d, c]).sum())
    if missing:
        said.append(f"{plural(missing, 'token')} without a row here")
    return " and ".join(said)


def _rows_text(data: Replays, d: int, c: int, drawn: Sequence[Drawn]) -> str:
    if not drawn:
        return "; ".join(_of_phase(rows, d, c) for rows in data.phases)
    of = [
        f"{one.phase} {_counts(data, d, c, one.phase)[1]:,} of {one.rows:,} (of {one.of:,} rows)"
        for one in drawn
    ]
    return f"drawn rows bit-equal: {', '.join(of)}"


def _of_phase(rows: Compared, d: int, c: int) -> str:
    wanted = int(rows.expected_DCR[d, c].sum())
    there, equal = int(rows.content_DCR[d, c].sum()), int(rows.content_equal_DCR[d, c].sum())
    if rows.missing:
        return f"{rows.phase}: {rows.missing}"
    left = f" ({wanted - there:,} of {wanted:,} not published)" if there < wanted else ""
    template = int((rows.compared_DCR - rows.content_DCR)[d, c].sum())
    differ = template - int((rows.equal_DCR - rows.content_equal_DCR)[d, c].sum())
    more = f", {differ:,} of {plural(template, 'template row')} not" if differ else ""
    noun = "content row" if rows.phase == "prefill" else "row"
    return f"{rows.phase}: {equal:,} of {plural(there, noun)} bit-equal{more}{left}"


def _greedy_text(data: Replays, d: int, c: int) -> str:
    tokens, greedy = int(data.emitted_DR[d].sum()), int(data.greedy_DCR[d, c].sum())
    ties = int(data.ties_DCR[d, c].sum())
    return f"{greedy:,} of {plural(tokens, 'token')} greedy" + (f" ({ties:,} by a tie)" if ties else "")


def _tests_text(tested: Claim) -> str:
    said = [
        f"{test.name}: {'no value' if test.p is None else f'p = {_p(test.p)}'} against {test.null}"
        for test in tested.tests
    ]
    return "; ".join(said)


def _p(p: Fraction | None) -> str:
    return "–" if p is None else f"{float(p):.2g}"


def _ranks(evidence: Evidence, d: int, before: str = "") -> str:
    """Which config the known transcripts make likeliest; nothing without a calibration."""
    counts = evidence.likeliest_DC[d]
    if not counts.any():
        return ""
    best, data = int(counts.argmax()), evidence.data
    return (
        f"{before}the likeliest of {plural(len(counts), 'config')} is {data.configs[best]} in {counts[best]} "
        f"of {plural(len(data.references), 'reference')}"
    )


def _remedy(evidence: Evidence, tested: Claim, d: int) -> str:
    """What would allow a decision."""
    asked = sum(claim is not None for claim in evidence.claims)
    judged = own_units(evidence.data.units_DR[d], evidence.data.there_DR[d])
    reasons = list(dict.fromkeys(tested.unlisted.values()))
    weak = [test for test in tested.tests if not _can_refute(evidence, tested, test)]
    if weak:
        reasons.append(
            f"{plural(judged, 'transcript')} cannot refute by {', '.join(test.name for test in weak)} (least "
            f"p {_p(max(test.least for test in weak))} times {len(tested.tests)} tests and {asked} claims): "
            "more references, or more repeats here"
        )
    if "no calibration" in tested.unlisted.get("text", ""):
        needed = counts_needed(evidence.alpha, asked, len(tested.tests) + 2, judged)
        reasons.append(
            f"a calibration (verify.calibration) of {needed} references beside those that fit its scale "
            "would allow a test"
        )
    return f"; no decision: {'; '.join(reasons)}" if reasons else ""


def headline(kinds: Sequence[str]) -> str:
    """All verdicts in one sentence."""
    counts = [(kind, kinds.count(kind)) for kind in KINDS if kind in kinds]
    return f"{plural(len(kinds), 'claim')}: {', '.join(f'{count} {kind}' for kind, count in counts)}"
