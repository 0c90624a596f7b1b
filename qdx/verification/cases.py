"""Collect what the rules of a verdict see of one claim: facts, and the sentences that say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from qdx.document.format import DASH, plural, probability
from qdx.verification.binding import Drawn, share_text
from qdx.verification.compare import Compared
from qdx.verification.environment import DEMANDED
from qdx.verification.environment_class import compare
from qdx.verification.evidence import Claim, counts_needed, other_prompts, sampling_of
from qdx.verification.listed import MOST_DIGITS, TOKENS
from qdx.verification.listed_tests import Test, groupings, shown_of, weights_of
from qdx.verification.obligations import Obligations
from qdx.verification.parameters import Fit
from qdx.verification.processed import RAW
from qdx.verification.recorded import Recorded, own_units
from qdx.verification.replays import Replays
from qdx.verification.sampled import Alternatives, not_told_apart

# Sampling parameters that change which tokens are drawn: a server may set one that nobody states.
SHAPING = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
# Tests that honest tokens fail where such a parameter was in force and is not stated.
OF_SAMPLING = ("uniformity", "parameters", "seeded tokens")
MOST_SAID = 2  # rows that a reason names


@dataclass(frozen=True)
class Evidence:
    """Hold what verdicts rest on.

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
    fits_D : list of Fit or None
        Which sampling parameters each producer's drawn tokens fit, by the claimed config's rows.
    """

    data: Replays
    claims: list[Claim | None]
    alpha: Fraction
    calibrated: bool
    likeliest_DC: np.ndarray
    other_DC: list[list[str]]
    obligations_D: list[Obligations]
    fits_D: list[Fit | None] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A producer's claim of a config; every fact is found when a rule asks for it.

    Attributes
    ----------
    evidence : Evidence
    d : int
        The producer.
    c : int
        The claimed config; −1: it was not replayed.
    claim : str
        The claimed label.
    """

    evidence: Evidence
    d: int
    c: int
    claim: str

    @property
    def data(self) -> Replays:
        """Return what both sides have."""
        return self.evidence.data

    @property
    def record(self) -> Recorded | None:
        """Return what is known of records of another program; None of a file that qdx recorded."""
        return self.data.records_D[self.d]

    @property
    def demanded(self) -> Obligations:
        """Return what the verifier demanded of the producer."""
        return self.evidence.obligations_D[self.d]

    @property
    def label(self) -> str:
        """The claimed config's label here."""
        return self.data.configs[self.c]

    @property
    def own_label(self) -> bool:
        """Return whether the producer claims to be what it is called."""
        return self.data.producers[self.d] == self.claim

    @cached_property
    def greedy(self) -> bool | None:
        """Return whether the record states plain greedy decoding; None where it does not say."""
        return sampling_of(self.data, self.d)

    @property
    def tested(self) -> Claim:
        """The listed tests of the claim."""
        tested = self.evidence.claims[self.d]
        assert tested is not None
        return tested

    @property
    def refuted_by_tests(self) -> bool:
        """Return whether the tests' p, adjusted over tests and claims, is at most the level."""
        return self.tested.p_holm is not None and self.tested.p_holm <= self.evidence.alpha

    @cached_property
    def blocked(self) -> str:
        """Say what speaks against good news; empty where nothing does."""
        if self.greedy is None:
            return "the record does not state how its tokens were chosen, so it is not confirmed"
        if self.greedy is False and self.record is None:
            return "the record states another decoding than plain greedy, so it is not confirmed"
        if self.tested.single:
            low = [test for test in self.tested.tests if test.p is not None and test.p <= self.evidence.alpha]
            return f"the test of {low[0].name} alone has p = {_p(low[0].p)}, so it is not confirmed"
        if self.record is None and self.units_overlap:
            return "its references overlap, so that several count once, and false ones among them are hidden"
        if self.tested.behind:
            return "another config is likelier by more than known transcripts show, so it is not confirmed"
        return ""

    @cached_property
    def units_overlap(self) -> bool:
        """Return whether a unit has more references than ran in one batch."""
        batch = self.data.class_D[self.d].get("batch_size", "")
        most = int(np.bincount(self.data.units_DR[self.d]).max())
        return most > max(1, int(batch) if batch.isdigit() else 1)

    @cached_property
    def strong(self) -> list[Test]:
        """The tests that could have refuted the claim had every transcript been false."""
        return [test for test in self.tested.tests if self.can_refute(test)]

    def can_refute(self, test: Test) -> bool:
        """Return whether the test could have refuted the claim had every transcript been false."""
        return len(self.tested.tests) * self.asked * test.least <= self.evidence.alpha

    @property
    def asked(self) -> int:
        """Claims that are tested together."""
        return sum(claim is not None for claim in self.evidence.claims)

    @property
    def tokens_without_row(self) -> int:
        """Emitted tokens that nothing here can be held against."""
        return int((self.data.emitted_DR[self.d] - self.data.tokens_DCR[self.d, self.c]).sum())

    @property
    def strongest(self) -> str:
        """The part of the claim that the test with the least p is about."""
        found = [test for test in self.tested.tests if test.p is not None]
        return part_of(min(found, key=lambda test: test.p or Fraction(1)))

    def refutation(self, about: str) -> str:
        """Say by what the tests refute the claim."""
        found = [test for test in self.tested.tests if test.p is not None]
        most = max(found, key=lambda test: test.false_at_least)
        assert self.tested.p_holm is not None
        why = f"{about}; {self.tests_text}; p = {_p(self.tested.p_holm)} adjusted over tests and claims"
        if share := self.tested.false_at_least:
            why += f"; at least {share} of {plural(most.judged, 'independent transcript')} false"
            why += " of any config that is meant" if len(self.tested.meant) > 1 else ""
        ranks = self.ranks
        return f"{why}; {ranks}" if ranks else why

    @property
    def tests_text(self) -> str:
        """Every listed test with its p and what it is against."""
        said = [
            f"{test.name}: {'no value' if test.p is None else f'p = {_p(test.p)}'} against {test.null}"
            for test in self.tested.tests
        ]
        return "; ".join(said)

    def greedy_text(self, c: int) -> str:
        """Say how many tokens are a greedy choice of a config here."""
        data, d = self.data, self.d
        tokens, greedy = int(data.emitted_DR[d].sum()), int(data.greedy_DCR[d, c].sum())
        ties = int(data.ties_DCR[d, c].sum())
        return f"{greedy:,} of {plural(tokens, 'token')} greedy" + (f" ({ties:,} by a tie)" if ties else "")

    @property
    def ranks(self) -> str:
        """Say which config the known transcripts make likeliest; nothing without a calibration."""
        counts = self.evidence.likeliest_DC[self.d]
        if not counts.any():
            return ""
        best = int(counts.argmax())
        return (
            f"the likeliest of {plural(len(counts), 'config')} is {self.data.configs[best]} in "
            f"{counts[best]} of {plural(len(self.data.references), 'reference')}"
        )

    def remedy(self, unlisted: dict[str, str]) -> str:
        """Say what would allow a decision, beside what `unlisted` tests lack."""
        reasons = list(dict.fromkeys(unlisted.values()))
        judged = own_units(self.data.units_DR[self.d], self.data.there_DR[self.d])
        weak = [test for test in self.tested.tests if not self.can_refute(test)]
        if weak:
            reasons.append(
                f"{plural(judged, 'transcript')} cannot refute by {', '.join(test.name for test in weak)} "
                f"(least p {_p(max(test.least for test in weak))} times {len(self.tested.tests)} tests and "
                f"{self.asked} claims): more references, or more repeats here"
            )
        if "no calibration" in unlisted.get("text", ""):
            needed = counts_needed(self.evidence.alpha, self.asked, len(self.tested.tests) + 2, judged)
            reasons.append(
                f"a calibration (verify.calibration) of {needed} references beside those that fit its scale "
                "would allow a test"
            )
        return f"; no decision: {'; '.join(reasons)}" if reasons else ""

    @property
    def unclaimed(self) -> str:
        """Say what records that claim no config need."""
        record = self.record
        assert record is not None
        configs = self.data.configs
        why = (
            "records of other programs claim no config: say which one it is, "
            f"'verify.claims={{{self.claim}: …}}', one of {', '.join(configs)}"
        )
        if record.other_prompts:
            return f"{other_prompts(record)}; {why}"
        if self.greedy:  # greedy tokens say nothing of sampled output
            each = [f"{label} {self.greedy_text(v)}" for v, label in enumerate(configs)]
            return f"{'; '.join(each)}; {why}"
        return why


@dataclass(frozen=True)
class RowsCase(Case):
    """A claim about a file that qdx recorded: tokens, and the rows behind them."""

    @property
    def drawn(self) -> Sequence[Drawn]:
        """The rows that the verifier drew, by phase; empty where there was no exchange."""
        return self.demanded.drawn

    @cached_property
    def misfits(self) -> tuple[int, int]:
        """Tokens that are not greedy on a bit-equal row, and the transcripts that have one."""
        return text_misfits(self.data, self.d, self.c)

    @cached_property
    def fits_C(self) -> list[bool]:
        """Return whether every row that was asked for is bit-equal to each config's, and the text fits them.

        Of rows that were drawn, those alone are compared.
        """
        configs = range(len(self.data.configs))
        if self.drawn:
            return [every_drawn_row_equal(self.data, self.d, v, self.drawn) for v in configs]
        return [every_row_equal(self.data, self.d, v) for v in configs]

    @property
    def fits(self) -> bool:
        """The same of the claimed config."""
        return self.fits_C[self.c]

    @property
    def fitting_others(self) -> str:
        """The other configs of which that is so."""
        return " and ".join(self._others)

    @property
    def _others(self) -> list[str]:
        return [v for i, v in enumerate(self.data.configs) if i != self.c and self.fits_C[i]]

    @cached_property
    def other_setting(self) -> tuple[int, tuple[str, ...]] | None:
        """Say which of those is the claimed config under another setting, and the settings that differ.

        It has the claimed weights, data type and kernel, all stated, and the text of the record fits its
        rows.
        """
        claimed = self.data.record_C[self.c]
        for v in (i for i, fits in enumerate(self.fits_C) if fits and i != self.c):
            same = all(
                claimed.get(name) and self.data.record_C[v].get(name) == claimed[name] for name in DEMANDED
            )
            differs = compare(self.data.class_C[v], self.data.class_C[self.c]).differs
            if same and differs and not any(text_misfits(self.data, self.d, v)):
                return v, differs
        return None

    @property
    def of_other_setting(self) -> str:
        """Say so."""
        assert self.other_setting is not None
        v, differs = self.other_setting
        every = "every drawn row" if self.drawn else "every row"
        return (
            f"{every} is bit-equal to that of {self.data.configs[v]}, the same weights and kernel under "
            f"other {', '.join(differs)} than {self.label}; {self.greedy_text(v)}"
        )

    @property
    def other_record(self) -> str:
        """Say what its own record states that is not the claimed config's."""
        return self.evidence.other_DC[self.d][self.c]

    @cached_property
    def rows(self) -> str:
        """Say how many rows of each phase are bit-equal."""
        data, d, c = self.data, self.d, self.c
        if not self.drawn:
            return "; ".join(_phase_text(rows, d, c) for rows in data.phases)
        of = [
            f"{one.phase} {_counts(data, d, c, one.phase)[1]:,} of {one.rows:,} (of {one.of:,} rows)"
            for one in self.drawn
        ]
        return f"drawn rows bit-equal: {', '.join(of)}"

    @property
    def equal_rows(self) -> str:
        """The same, and which other configs' they are as well."""
        others = self._others
        return f"{self.rows} (and to those of {', '.join(others)})" if others else self.rows

    @property
    def false_shares(self) -> str:
        """Bound the false rows of each phase, where every drawn one is right."""
        demanded = self.demanded
        shares = [f"{share_text(one.false_share(demanded.configs))} in {one.phase}" for one in demanded.drawn]
        said = f"the share of false rows is {' and '.join(shares)}"
        if all(one.rows == one.of for one in demanded.drawn):
            return said
        several = f", for all {demanded.configs} configs of the root together" if demanded.configs > 1 else ""
        return f"{said}, at 95 %{several}"

    @cached_property
    def too_little(self) -> str:
        """Say what the producer left out of the rows that the verifier has, or drew; empty where nothing."""
        data, d, c, demanded = self.data, self.d, self.c, self.demanded
        said = []
        for one in demanded.drawn:
            if (compared := _counts(data, d, c, one.phase)[0]) < max(one.rows, 1):
                why = [rows.missing for rows in data.phases if rows.phase == one.phase and rows.missing]
                reason = f" ({why[0]})" if why else ""
                said.append(
                    f"{compared:,} of {plural(one.rows, 'drawn row')} of {one.phase} compared{reason}"
                )
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
        if missing := self.tokens_without_row:
            said.append(f"{plural(missing, 'token')} without a row here")
        return " and ".join(said)

    @cached_property
    def passed(self) -> list[Test]:
        """The tests of noisy values that could have refuted the claim, and did not.

        Rows that fit say nothing about a text that could not be tested, and overlapping references hide
        false ones: then there are none.
        """
        noisy = [test for test in self.strong if test.name in ("distances", "text")]
        if not any(test.name == "text" for test in noisy) or self.units_overlap:
            return []
        return noisy

    @property
    def prefill_confirms(self) -> bool:
        """Return whether prefill's rows are bit-equal, and decode, which may vary, passed both tests."""
        prefill = self.data.prefill
        return (
            prefill is not None
            and bool(prefill.all_equal_DC[self.d, self.c])
            and self.tested.test("decode rows") is None
            and {"distances", "text"} <= {test.name for test in self.passed}
        )

    @cached_property
    def unequal(self) -> list[str]:
        """Phases whose rows differ, though those of every rerun here are equal."""
        exact = [rows for rows in self.data.phases if self.tested.test(f"{rows.phase} rows")]
        drawn = bool(self.drawn)
        return [rows.phase for rows in exact if not _all_equal(rows, self.d, self.c, drawn)]

    @property
    def about(self) -> str:
        """Rows, tests, what speaks against good news, and ranks."""
        return "; ".join(part for part in (self.rows, self.tests_text, self.blocked, self.ranks) if part)

    @property
    def open_end(self) -> str:
        """Say what would allow a decision."""
        return self.remedy(self.tested.unlisted)


@dataclass(frozen=True)
class RecordsCase(Case):
    """A claim about records of another program: tokens and no rows."""

    @property
    def stated(self) -> Recorded:
        """Say what is known of the records."""
        assert self.record is not None
        return self.record

    @cached_property
    def drawn(self) -> int:
        """Tokens that were drawn as the record states, and whose probabilities are known here."""
        logprob = None if self.greedy is not False or self.data.drawn is None else self.data.drawn.logprob
        return 0 if logprob is None else int(np.isfinite(logprob[self.d, self.c]).sum())

    @property
    def chosen_otherwise(self) -> int:
        """Tokens that were not drawn, as far as is known."""
        return int(self.data.emitted_DR[self.d].sum()) - self.drawn

    @property
    def judged_as(self) -> str:
        """As which config, and on whose word; of a format that names several, as which of them."""
        meant = self.tested.meant
        if len(meant) < 2:
            return f"judged as {self.label}, as verify.claims says"
        names = ", ".join(self.data.configs[v] for v in meant)
        return (
            f"judged as any of {names}, which verify.claims may mean: {self.label} fits best and stands here "
            "(not covered: any other kernel, setting or card)"
        )

    @property
    def listed(self) -> str:
        """Say of how many tokens every listed value is the one printed here; "" where nothing is listed."""
        listed = self.data.listed
        if listed is None or listed.digits_D[self.d] < 0:
            return ""
        equal_CR, tokens_R = listed.equal_DCR(self.d)
        digits = plural(min(listed.digits_D[self.d], MOST_DIGITS), "decimal")
        tokens = plural(int(tokens_R.sum()), "listed token")
        return f"all log-probabilities of {int(equal_CR[self.c].sum()):,} of {tokens} equal to {digits}"

    @property
    def unknown_sampling(self) -> str:
        """Say why neither a greedy text nor drawn tokens can be judged."""
        if self.greedy is False:
            return "sampled output with penalties, biases or restrictions, which are not computed here"
        return self.tested.unlisted.get("text", "")

    @property
    def refuted(self) -> bool:
        """Return whether the tests refute the claim, and every token could be judged."""
        return self.refuted_by_tests and not self.tokens_without_row

    @cached_property
    def about(self) -> str:
        """The tokens, as what they were judged, and what had to be taken for granted."""
        record, emitted = self.stated, int(self.data.emitted_DR[self.d].sum())
        drawn = f"{self.drawn:,} of {plural(emitted, 'token')} drawn as stated"
        text = drawn if self.drawn else self.greedy_text(self.c)
        said = [part for part in (text, self.listed, self.judged_as, self.blocked) if part]
        if record.assumed:
            said.append(f"assumed to do nothing, since it is not stated: {record.assumed}")
        if record.from_text:
            said.append(f"ids of {plural(record.from_text, 'answer')} were made from text")
        if record.alone:
            alone = plural(record.alone, "answer")
            said.append(f"{alone} without a request, so that they alone say what was asked")
        if self.drawn and (unseen := int(record.open_R.sum())):
            said.append(f"{plural(unseen, 'answer')} with a token after the last one that is listed")
        if self.drawn and len(groupings(self.data, self.d)) > 1:
            said.append("equal answers to one prompt may come from a cache, so that they count as one, too")
        said += [part for part in (self.seeds, self.temperature) if part]
        return "; ".join(said)

    @property
    def seeds(self) -> str:
        """Say how many tokens the seeds draw from each config's rows; "" where no noise is known."""
        if not self.drawn or self.data.seeded_DCRT is None:
            return ""
        margin_CRT = self.data.seeded_DCRT[self.d][:, self.data.there_DR[self.d]]
        known = int(np.isfinite(margin_CRT[0]).sum())
        counts = (margin_CRT == 0).sum((1, 2)).tolist()
        pairs = zip(self.data.configs, counts, strict=True)
        each = ", ".join(f"{config} {count:,}" for config, count in pairs)
        return f"the seeds draw, of {plural(known, 'token')}, {each}" if known else ""

    @property
    def temperature(self) -> str:
        """Say which temperatures drawn tokens fit, and whether the stated one is among them."""
        found = self.evidence.fits_D[self.d] if self.evidence.fits_D else None
        if found is None:
            return ""
        there_R = self.data.there_DR[self.d]
        stated = {t for t in self.stated.samplers_RP[there_R, 0].tolist() if np.isfinite(t)}
        if len(stated) > 1:
            return "several temperatures are stated, so that none is bounded"
        (own,) = stated
        where = "" if found.every else " of those that were tried"
        level = f"{1 - float(self.evidence.alpha):.0%}".replace("%", " %")
        if not np.isfinite(found.low):
            return f"no temperature{where} fits ({level}), {own:g} is stated"
        low, high = f"{found.low:.2g}", f"{found.high:.2g}"
        ends = f"{low} to {high}" if np.isfinite(found.high) else f"at least {low}"
        if found.low <= own <= found.high:
            return f"temperature {ends}{where} fits ({level}), {own:g} is stated"
        return f"the temperature is {ends}{where} ({level}), not {own:g} as stated"

    @property
    def lost(self) -> str:
        """Say what was not judged, to be added to a reason; "" where nothing was lost."""
        return f"; not judged: {self.stated.lost}" if self.stated.lost else ""

    @property
    def summary(self) -> str:
        """All that is known, the tests, and what they could not have refuted."""
        said = "; ".join(part for part in (self.about, self.tests_text) if part)
        if self.strong:
            return said
        unlisted = self.tested.unlisted
        return said + self.remedy({"text": unlisted["text"]} if "text" in unlisted else {})

    @cached_property
    def only_not_uniform(self) -> str:
        """Say that tokens were not drawn as was assumed, where nothing else speaks against the claim; or "".

        Whoever truncates by default and does not say so draws honest tokens that are not uniform under what
        was assumed, that fit other parameters better, and that are not those of their seeds. Between configs
        that makes little difference, since the same is assumed of all; an alternative that is sharper than
        the claim can gain by it (`docs/verification.md`).
        """
        record, tested = self.stated, self.tested
        assumed = [name for name in SHAPING if name in record.assumed.split(", ")]
        if not (assumed or record.order_matters) or not self.refuted_by_tests:
            return ""
        # Listed values may be those after a truncation that nobody states, where the record does not say.
        excused = (*OF_SAMPLING, *(() if record.logprobs_mode == RAW else ("distances",)))
        others = [test.p for test in tested.tests if test.name not in excused and test.p is not None]
        times = len(tested.tests) * self.asked
        if others and times * min(others) <= self.evidence.alpha:
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

    @cached_property
    def alike(self) -> str:
        """Configs of other weights that the drawn tokens do not refute beside this one; "" for none."""
        data, weights_C = self.data, weights_of(self.data)
        assert data.drawn is not None
        shown, alpha = shown_of(data, self.d), float(self.evidence.alpha)
        each = [
            not_told_apart(data.drawn, way, self.d, self.c, weights_C, alpha, shown)
            for way in groupings(data, self.d)
        ]
        found = sorted({v for one in each for v in one})
        if not Alternatives.of(weights_C, self.c).others:
            return "anything: no config of other weights was replayed"
        return ", ".join(data.configs[v] for v in found)

    @property
    def answers_differ(self) -> bool:
        """Return whether a unit has answers that are not one answer given several times."""
        seen: dict[int, str] = {}
        units, there = (values[self.d].tolist() for values in (self.data.units_DR, self.data.there_DR))
        pairs = zip(units, self.stated.answers_R, there, strict=True)
        return any(here and seen.setdefault(unit, answer) != answer for unit, answer, here in pairs)


def part_of(test: Test) -> str:
    """Return the part of a claim that a test is about: distances of greedy tokens are about the text."""
    return "text" if test.name == "distances" and test.null.startswith(TOKENS) else test.name


def text_misfits(data: Replays, d: int, c: int) -> tuple[int, int]:
    """Count tokens that are not greedy on a bit-equal row, and the transcripts that have one."""
    misfit_RT = data.misfit_DCRT[d, c]
    return int(misfit_RT.sum()), int(misfit_RT.any(-1).sum())


def every_row_equal(data: Replays, d: int, v: int) -> bool:
    """Return whether every row that config v has here is published and bit-equal, and the text fits them."""
    return (
        all(bool(rows.all_equal_DC[d, v]) for rows in data.phases)
        and data.prefill is not None
        and not text_misfits(data, d, v)[0]
        and bool((data.greedy_DCR[d, v] == data.emitted_DR[d]).all())
    )


def every_drawn_row_equal(data: Replays, d: int, v: int, drawn: Sequence[Drawn]) -> bool:
    """Return whether every drawn row is bit-equal to config v's here, and all text greedy by the rows here.

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


def _all_equal(rows: Compared, d: int, c: int, drawn: bool) -> bool:
    """Return whether the rows of a phase that were asked for are bit-equal."""
    if drawn:  # which ones, the verifier said
        return bool((rows.equal_DCR[d, c] == rows.compared_DCR[d, c]).all())
    return bool(rows.all_equal_DC[d, c])


def _phase_text(rows: Compared, d: int, c: int) -> str:
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


def _p(p: Fraction | None) -> str:
    return DASH if p is None else probability(float(p))
