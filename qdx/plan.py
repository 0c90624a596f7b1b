"""Say what a verification needs, and what it can find, before anybody runs anything.

``python -m qdx.plan --evidence sketches --transcripts 20 --tokens 32 --claims 2``
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from qdx.errors import QdxError
from qdx.program import run

PROCESSES = 3  # the first run and two reruns, each in its own process: `evidence.FEWEST_PROCESSES`
EVIDENCE = {
    "sketches": "hashes, sketches and greatest logits of every row (sweep.nc)",
    "commitments": "a digest of every row and the tokens (commitments.nc)",
    "text": "emitted tokens alone",
}
SKETCH_BYTES, DIGEST_BYTES = 256 + 8, 16  # a row's sketch of 64 components and hash; its commitment


@dataclass(frozen=True)
class Plan:
    """Hold the question that the planner answers.

    Attributes
    ----------
    evidence : str
        One of `EVIDENCE`.
    claims, transcripts, tokens : int
        Claims that are judged together; independent transcripts of each, and tokens of each transcript.
    repeats : int
        The verifier's replays of each transcript, each in a process of its own.
    alpha : Fraction
    tests : int or None
        Tests in a claim's list, where the files' contents are known to make another number.
    false : int or None
        Transcripts that somebody fears are false.
    known : int or None
        Calibration references at hand.
    """

    evidence: str
    claims: int
    transcripts: int
    tokens: int
    repeats: int
    alpha: Fraction
    tests: int | None = None
    false: int | None = None
    known: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("claims", 1), ("transcripts", 1), ("tokens", 1), ("repeats", 1), ("tests", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise QdxError(f"--{name} {value}: give {least} or more")
        if self.false is not None and not 0 <= self.false <= self.transcripts:
            raise QdxError(
                f"--expected-false {self.false}: there are {self.transcripts} transcripts, so give 0 to "
                f"{self.transcripts}"
            )
        if self.known is not None and self.known < 1:
            raise QdxError(f"--known {self.known}: give 1 or more, or leave it out")

    def share(self, tests: int) -> Fraction:
        """The p that the least test of a claim has to reach."""
        return self.alpha / (self.claims * (self.tests or tests))


def plan(asked: Plan) -> list[str]:
    """Write the lines of a plan, of at most 110 characters each."""
    m, tokens = asked.transcripts, _count(asked.tokens, "token")
    lines = [
        f"{_count(asked.claims, 'claim')} at {_percent(asked.alpha)}; for each {_count(m, 'transcript')} "
        f"of {tokens}{_published(asked)}",
        f"evidence: {EVIDENCE[asked.evidence]}",
        "Transcripts that share a batch, a sampling seed or a prompt count as one.",
        "",
    ]
    if asked.repeats < PROCESSES:
        return [
            *lines,
            f"repeats={asked.repeats} is too few. Without {PROCESSES} replays, each in a process of its own,",
            "nothing shows that a start does not choose the kernel, and no claim is refuted: ask for",
            f"repeats={PROCESSES} repeat_scope=process.",
        ]
    if asked.evidence != "text":
        lines += [*_equality(asked), ""]
    if asked.evidence == "sketches":
        lines += [*_own_repeats(asked), ""]
    return [
        *lines,
        *_calibration(asked),
        "",
        "Assumed: a false transcript stands out, above all known ones or above all repeats. How many tokens",
        "that takes differs from pair to pair, and analysis=[attribution] measures it.",
    ]


def _published(asked: Plan) -> str:
    size = {"sketches": SKETCH_BYTES, "commitments": DIGEST_BYTES}.get(asked.evidence)
    if size is None:
        return ""
    return f" ({asked.transcripts * asked.tokens * size / 1e6:.2g} MB, and prefill's content rows)"


def _equality(asked: Plan) -> list[str]:
    from qdx.verification.p_values import share_bound
    from qdx.verification.power import equality_power

    m, share, rows = asked.transcripts, asked.share(3), asked.transcripts * asked.tokens
    reruns, bound = (asked.repeats - 1) * m, share_bound(rows)
    return [
        "EQUAL ROWS: one environment class on both sides, and a kernel that repeats bit by bit",
        _line("needs", f"repeats={asked.repeats} repeat_scope=process; no calibration"),
        *_tests(asked, 3, "decode rows, prefill rows, text"),
        *_found(asked, lambda d: equality_power(d, m, reruns, share), "differ in a row"),
        _line("can end in", "confirmed · refuted · other config · undecided"),
        _line("", "Equal rows confirm on any machine; unequal ones refute in this class only."),
        _line(
            "drawn rows",
            f"Of rows that were fixed first, {_rows_for(0.05)} drawn ones that are all equal bound",
        ),
        _line(
            "",
            f"the false share of rows by 5 %, {_rows_for(0.01)} by 1 %, all {rows:,} by {100 * bound:.2g} %.",
        ),
    ]


def _own_repeats(asked: Plan) -> list[str]:
    from qdx.verification.power import within_power

    m, members, share = asked.transcripts, asked.repeats + 1, asked.share(3)
    return [
        "OWN REPEATS: one environment class, and a kernel that does not repeat (one with atomics)",
        _line("needs", f"repeats={asked.repeats} repeat_scope=process; no calibration"),
        *_tests(asked, 3, "prefill rows where they repeat, distances, text"),
        *_found(
            asked,
            lambda d: within_power(
                d, m, members, share * Fraction(1 if members == 2 else 2, 2 if members == 2 else 3)
            ),
            "stand out",
        ),
        _line("can end in", "confirmed in prefill · not refuted · refuted · other config · undecided"),
    ]


def _calibration(asked: Plan) -> list[str]:
    from qdx.verification.calibration_size import calibration_total, fewest_calibration, fitting_part
    from qdx.verification.power import level_spread, pooled_power

    m, fitted = asked.transcripts, asked.evidence == "sketches"
    tokens = _count(asked.tokens, "token")
    tests, names = (2, "distances, text") if fitted else (1, "text")
    share = asked.share(tests)

    def total(false: int) -> int:
        null = fewest_calibration(share, judged=m, false=false)
        return calibration_total(null) if fitted else null

    def left(known: int) -> int:
        return known - fitting_part(known) if fitted else known

    lines = [
        "CALIBRATION: another environment class, or one that the producer does not state",
        _line(
            "needs",
            "transcripts known to come from the claimed config, made on the producer's kind of machine,",
        ),
        _line(
            "", f"of {tokens} each and of other prompts; repeats={asked.repeats} repeat_scope=process here"
        ),
        *_tests(asked, tests, names),
    ]
    quarter = asked.false or math.ceil(m / 4)
    wanted = {m, math.ceil(m / 2), quarter, math.ceil(m / 10)}
    head = "how many"
    for false in sorted(wanted, reverse=True):
        known = total(false)
        parts = f", of which {known - left(known):,} fit the scale," if fitted else ""
        lines.append(_line(head, f"{known:,} known ones{parts} find {false:,} of {m:,} false for sure"))
        head = ""
    known = asked.known or total(quarter)
    null = left(known)
    lines.append(
        _line(
            f"with {known:,}",
            f"{null:,} of them test" if null else "all of them fit the scale: nothing is tested",
        )
    )
    if null:
        lines += _found(asked, lambda d: pooled_power(d, m, null, share), "stand out")
    low, high = level_spread(m, null, share) if null else (0.0, 0.0)
    if high:
        spread = f"{_tenths(low)} to {_tenths(high)} % (95 % of sets)"
        lines += [
            _line(
                "level",
                f"{_percent(share)} on average over calibration sets; with one set of {null:,} the tail",
            ),
            _line("", f"count alone refutes an honest producer in {spread}."),
        ]
    if asked.evidence == "text":
        ends = "not refuted · refuted · undecided; never confirmed, for there are no rows"
    else:
        ends = "not refuted · refuted · other config · undecided; confirmed if all rows are equal"
    return [*lines, _line("can end in", ends)]


def _tests(asked: Plan, tests: int, names: str) -> list[str]:
    count = asked.tests or tests
    about = names if count == tests else f"as given; else {tests}: {names}"
    return [
        _line("tests", f"{count} ({about}): the least p has to be {float(asked.share(tests)):.3g} at most")
    ]


def _found(asked: Plan, power: Callable[[int], Fraction], what: str) -> list[str]:
    from qdx.verification.power import fewest_found

    m = asked.transcripts
    least = fewest_found(power, m)
    if least is None:
        return [
            _line(
                "finds",
                f"nothing, even if all {m:,} are false: take more of them, more known ones or fewer claims",
            )
        ]
    lines = [
        _line(
            "finds", f"{least:,} or more of {_count(m, 'transcript')} that {what} (in 95 % of cases at least)"
        )
    ]
    if asked.false:
        lines.append(
            _line(
                "", f"{asked.false:,} false ones: in {_tenths(float(power(asked.false)))} % of cases at least"
            )
        )
    return lines


def _rows_for(share: float) -> int:
    """Drawn rows, all right, that bound the share of false ones so at 95 % confidence."""
    return math.ceil(math.log(0.05) / math.log(1 - share))


def _line(head: str, text: str) -> str:
    return f"  {head:<12}{text}"


def _tenths(share: float) -> str:
    """A share in per cent, rounded down to a tenth."""
    return f"{math.floor(1000 * share + 1e-9) / 10:g}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _percent(value: Fraction) -> str:
    return f"{100 * float(value):.3g} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (2: the question makes no sense)."""
    parser = argparse.ArgumentParser(
        prog="python -m qdx.plan",
        description="Say what a verification needs, and what it can find, before anybody runs anything.",
    )
    parser.add_argument(
        "--evidence", choices=EVIDENCE, default="sketches", help="what the producer publishes"
    )
    parser.add_argument("--claims", type=int, default=1, help="claims that are judged together (default: 1)")
    parser.add_argument(
        "--transcripts", type=int, default=20, help="independent ones of each claim (default: 20)"
    )
    parser.add_argument(
        "--tokens", type=int, default=32, help="emitted tokens of each transcript (default: 32)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=PROCESSES,
        help="replays here, each in a process of its own (default: 3)",
    )
    parser.add_argument("--level", default="0.05", help="chance to refute an honest claim (default: 0.05)")
    parser.add_argument("--known", type=int, help="calibration transcripts of each claimed config at hand")
    parser.add_argument(
        "--expected-false", type=int, dest="false", help="say with which chance so many are found"
    )
    parser.add_argument(
        "--tests", type=int, help="tests in the list of each claim, if the files make another number"
    )
    options = parser.parse_args(arguments)
    from qdx.verification.p_values import level

    try:
        asked = Plan(
            options.evidence,
            options.claims,
            options.transcripts,
            options.tokens,
            options.repeats,
            level(options.level),
            options.tests,
            options.false,
            options.known,
        )
        print("\n".join(plan(asked)))
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run(main)
