"""Evidence about made-up claims: every fact that a rule of a verdict looks at, drawn at random.

Values are biased so that every rule decides some claims: of each claim either nothing, little or much speaks
against it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from qdx.backends.sampling import PLAIN, greedy
from qdx.verification.binding import Drawn
from qdx.verification.cases import Evidence
from qdx.verification.compare import Compared
from qdx.verification.evidence import Claim
from qdx.verification.exact import Repeating
from qdx.verification.listed import LISTS, TOKENS
from qdx.verification.listed_tests import Test
from qdx.verification.obligations import Obligations
from qdx.verification.recorded import Recorded

ALPHA = Fraction(1, 20)
SAMPLED = json.dumps({**PLAIN, "method": "sampled", "temperature": 1.0})
OTHER_SAMPLING = (SAMPLED, "", "not json")
LEVELS = (Fraction(1), Fraction(3, 5), Fraction(1, 20), Fraction(1, 25), Fraction(1, 5000))
TESTS_OF_ROWS = ("decode rows", "prefill rows", "distances", "text")
TESTS_OF_GREEDY = ("distances", "text")
TESTS_OF_DRAWN = ("drawn tokens", "uniformity", "parameters", "seeded tokens")
TESTS_OF_RECORDS = (*TESTS_OF_GREEDY, *TESTS_OF_DRAWN)
WHY_NOT = ("no calibration: give one", "the config does not repeat bit by bit here", "not greedy")


class Maker:
    """Draws evidence; `rare` is the probability with which anything speaks against a claim."""

    def __init__(self, seed: int, rare: float | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.rare = float(self.rng.choice([0.0, 0.03, 0.15, 0.5])) if rare is None else rare

    def bad(self) -> bool:
        """Whether the next thing speaks against the claim."""
        return bool(self.rng.random() < self.rare)

    def coin(self) -> bool:
        """Whether the next thing is so, which speaks neither for nor against."""
        return bool(self.rng.random() < 0.5)

    def one(self, values: Any) -> Any:
        """One of several values."""
        return values[int(self.rng.integers(len(values)))]

    def fewer(self, whole: np.ndarray) -> np.ndarray:
        """Counts that are at most others, and mostly equal to them."""
        less = self.rng.random(whole.shape) < self.rare * self.rng.random()
        return np.where(less, self.rng.integers(0, np.maximum(whole, 1)), whole)

    def compared(self, phase: str, shape: tuple[int, int, int], exact: bool) -> Compared:
        """A phase whose rows are equal where it is exact."""
        wanted = self.rng.integers(1, 4, (shape[0], 1, shape[2])) * np.ones(shape, int)
        missing = "the verifier kept no rows" if self.bad() and self.bad() else ""
        content = np.zeros(shape, int) if missing else self.fewer(wanted)
        same = self.fewer(content) if exact else np.zeros(shape, int)
        template = np.zeros(shape, int) if missing else self.rng.integers(0, 2, shape)
        equal = same + (self.fewer(template) if exact else template * 0)
        nobody = [[Repeating(2, 2)] * n for n in shape[:2]]
        distance, reruns = np.zeros(shape), np.zeros(shape[:2], int)
        return Compared(
            phase, distance, content + template, equal, *nobody, missing, content, same, wanted, reruns
        )

    def test(self, name: str) -> Test:
        """A listed test with its p."""
        p = self.one(LEVELS[2:]) if self.bad() else self.one(LEVELS[:2])
        value = None if self.bad() and self.bad() else p
        least = self.one(LEVELS) if self.bad() else LEVELS[-1]
        of = self.one((LISTS, TOKENS)) if name == "distances" else "tokens"
        return Test(name, value, least, f"{of} of known transcripts", 3, int(self.rng.integers(3)))

    def claim(self, names: tuple[str, ...]) -> Claim:
        """The tests of a claim; of those that are not listed it is said why."""
        listed = [name for name in names if self.coin() or self.coin()]
        tests = [self.test(name) for name in listed]
        single = any(test.p is not None and test.p <= ALPHA for test in tests)
        known = [test for test in tests if test.p is not None]
        p_holm = self.one(LEVELS) if known and single else (LEVELS[0] if known else None)
        unlisted = {name: self.one(WHY_NOT) for name in names if name not in listed}
        return Claim(tests, unlisted, single, p_holm, self.bad(), p_holm)

    def listed(self, shape: tuple[int, int, int]) -> Any:
        """What the first producer lists of its tokens, or that it lists nothing."""
        tokens_R = self.rng.integers(1, 4, shape[2])
        equal_CR = self.rng.integers(0, tokens_R + 1, shape[1:])
        digits = self.one((-1, 0, 4, 16))
        return SimpleNamespace(digits_D=[digits, -1], equal_DCR=lambda _: (equal_CR, tokens_R))

    def obligations(self, recorded: bool) -> Obligations:
        """What was demanded; of a recorded file no rows are drawn."""
        drawn: tuple[Drawn, ...] = ()
        if not recorded and self.coin():
            drawn = tuple(
                Drawn(phase, int(self.rng.integers(0 if self.bad() else 1, 9)), 9)
                for phase in ("prefill", "decode")
            )
        return Obligations(
            ("threads: got 1, wanted 2",) if self.bad() else (),
            ("the root is another",) if self.bad() and self.bad() else (),
            drawn,
            int(self.rng.integers(1, 4)),
            ("ref_0 decode 3",) if drawn and self.bad() else (),
            ("ref_0 decode 4", "ref_1 decode 5") if drawn and self.bad() else (),
            "the root came in time" if drawn else "",
        )

    def record(self, references: int) -> Recorded:
        """What is known of another program's records."""
        other = np.array([self.bad() for _ in range(references)])
        samplers = np.tile(
            [1.0, 0.0, 0.9 if self.bad() else 1.0, 0.1 if self.bad() else 0.0], (references, 1)
        )
        return Recorded(
            assumed="top_p, seed" if self.bad() else "",
            other_prompts=int(other.sum()),
            prompt_said="it has 5 tokens" if other.any() else "",
            other_R=other,
            from_text=int(self.bad()),
            unreadable=int(self.bad()),
            left_out=int(self.bad()),
            tokens_left_out=int(self.bad()),
            alone=int(self.bad()),
            answers_R=tuple(self.one("ab") if self.bad() else "a" for _ in range(references)),
            open_R=np.array([self.bad() for _ in range(references)]),
            samplers_RP=samplers,
        )

    def record_here(self, config: int) -> dict[str, str]:
        """What a config states here; often it is the first one under another setting."""
        other = self.coin() and config > 0
        facts = {"weights_sha256": f"w{config if other else 0}", "dtype": "half", "observed_kernel": "k"}
        return {name: "" if self.bad() and self.bad() else value for name, value in facts.items()}

    def evidence(self) -> tuple[Evidence, int, str]:
        """Evidence about the first producer, the config that it claims (−1: none), and its label."""
        rng, producers, configs, references = self.rng, 2, int(self.rng.integers(1, 4)), 3
        shape = (producers, configs, references)
        labels = ["awq", "marlin", "gptq"][:configs]
        recorded = self.coin()
        emitted = rng.integers(1, 4, (producers, references))
        whole = np.broadcast_to(emitted[:, None], shape)
        sampling = self.one(OTHER_SAMPLING) if self.bad() or (recorded and self.coin()) else greedy()
        exact = [not self.bad() and bool(self.rng.random() < 0.8), bool(self.rng.random() < 0.7)]
        decode, prefill = (
            self.compared(n, shape, e) for n, e in zip(("decode", "prefill"), exact, strict=True)
        )
        if exact[0] and self.coin():  # decode and prefill of one config, and of nobody else
            for rows in (decode, prefill):
                rows.content_equal_DCR[:, 1:] = 0
                rows.equal_DCR[:, 1:] = 0
        obligations = [self.obligations(recorded) for _ in range(producers)]
        there = None if self.bad() else prefill
        for drawn in obligations[0].drawn:  # a verifier compares the rows that she drew
            rows = decode if drawn.phase == "decode" else prefill
            left = drawn.rows - self.bad()
            for name in ("compared_DCR", "content_DCR", "expected_DCR"):
                getattr(rows, name)[0] = 0
                getattr(rows, name)[0, :, 0] = max(left, 0)
            for name in ("equal_DCR", "content_equal_DCR"):
                values = getattr(rows, name)
                values[0] = np.where(values[0, :, :1] > 0, rows.compared_DCR[0], 0)
        misfit = np.zeros((*shape, 3), bool)
        misfit[0, 0, 0, 0] = self.bad() and self.bad()
        finite = np.full((*shape, 3), np.nan)
        for r in range(references):
            finite[:, :, r, : 0 if self.bad() else 3] = -1.0
        drawn_tokens = SimpleNamespace(logprob=finite[..., : int(emitted.max())])
        if not self.bad():
            drawn_tokens.logprob = np.where(np.arange(3) < whole[..., None], -1.0, np.nan)
        data: Any = SimpleNamespace(
            producers=["awq", "other"],
            configs=labels,
            references=[f"ref_{r}" for r in range(references)],
            phases=[decode] if there is None else [decode, prefill],
            decode=decode,
            prefill=there,
            records_D=[self.record(references) if recorded else None, None],
            sampling_D=[sampling, greedy()],
            schema_D=[1 if self.bad() else 2, 2],
            emitted_DR=emitted,
            greedy_DCR=self.fewer(whole),
            ties_DCR=np.zeros(shape, int),
            tokens_DCR=self.fewer(whole) if self.bad() else whole.copy(),
            misfit_DCRT=misfit,
            record_C=[self.record_here(one) for one in range(configs)],
            class_C=[{"batch_size": self.one("12")} for _ in labels],
            class_D=[{"batch_size": self.one(["1", "2", ""])}, {}],
            units_DR=np.array([[0, 0, 1] if self.bad() else [0, 1, 2], [0, 1, 2]]),
            there_DR=np.ones((producers, references), bool),
            groups_D=[tuple(range(references))] * producers,
            reference_keys=[f"{r}" for r in range(references)],
            drawn=drawn_tokens if recorded and self.coin() | self.coin() else None,
            alike="marlin" if self.bad() else "",
            listed=self.listed(shape) if recorded and self.coin() else None,
            seeded_DCRT=np.where(np.isfinite(finite), rng.integers(0, 2, finite.shape), np.nan)
            if recorded and self.coin()
            else None,
        )
        names = TESTS_OF_ROWS
        if recorded:
            names = self.one((TESTS_OF_GREEDY, TESTS_OF_DRAWN, TESTS_OF_RECORDS))
        claimed = int(rng.integers(configs))
        claims: list[Claim | None] = [self.claim(names), self.claim(names) if self.coin() else None]
        at = -1 if self.bad() else claimed
        if recorded and at >= 0:  # a format may mean several configs, of which one is tested
            assert claims[0] is not None
            members = [c for c in range(configs) if c == at or self.coin()]
            claims[0] = replace(claims[0], config=at, meant=tuple(members))
        label = labels[claimed] if self.coin() else self.one(["awq", labels[claimed]])
        evidence = Evidence(
            data,
            claims,
            ALPHA,
            self.coin(),
            rng.integers(0, 2, (producers, configs)) * int(self.coin()),
            [["kernel (a; here b)" if self.bad() else "" for _ in labels] for _ in range(producers)],
            obligations,
        )
        return evidence, at, label
