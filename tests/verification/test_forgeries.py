"""Files that lie, and honest ones that look odd, judged through files and the command line.

A forgery is never confirmed and never "not refuted"; an honest file is never refuted. Each case says which
verdicts it may end in. The cases of the first table were confirmed once, by an audit of the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.sweeping import checkpoints, qdx
from tests.verification import forging
from tests.verification.forging import Edit, Producer, drops, forge, some, state, unstate
from tests.verification.world import FEW, Judged, Size, World

CONFIRMED = {"confirmed", "confirmed in prefill"}
REFUTED = {"refuted"}
REJECTED = {"refuted", "other config"}
CAUGHT = {"refuted", "undecided"}
OPEN = {"undecided", "not refuted"}
FIT = CONFIRMED | OPEN
COUNT = 8  # references judged

pytestmark = pytest.mark.slow  # the world that they share takes minutes


@dataclass(frozen=True)
class Case:
    """A file and what may be said of its first label; the labels after it are honest."""

    producers: Sequence[Producer]
    expected: set[str]
    calibration: str = ""
    commitments: bool = False
    claims: Mapping[str, str] = field(default_factory=dict)
    configs: Sequence[str] = ()


BESIDE = (Producer("awq_marlin"),)


def forged(
    label: str, text: forging.Each, rows: forging.Each, *edits: Edit, **more: object
) -> list[Producer]:
    """One false label, and an honest one beside it."""
    return [Producer(label, text, rows, edits=edits, **more), *BESIDE]  # type: ignore[arg-type]


def mixed(label: str, share: float, false: str) -> list[Producer]:
    """A share of transcripts, text and decode rows, is another config's; prefill is honest."""
    return forged(label, some(share, COUNT, false, label), some(share, COUNT, false, label))


ISSUE: Mapping[str, Callable[[], Case]] = {
    "text of another checkpoint, rows are the claim's replay": lambda: Case(
        forged("awq", "other:awq", "awq"), REFUTED
    ),
    "honest prefill, all decode of another format, a claim that does not repeat": lambda: Case(
        mixed("gptq", 1.0, "awq"), REFUTED
    ),
    "seven of eight of another format, a claim that does not repeat": lambda: Case(
        mixed("gptq", 7 / 8, "awq"), REFUTED
    ),
    "half of another format, with calibration": lambda: Case(
        mixed("gptq", 0.5, "awq"), REFUTED, calibration="here"
    ),
    "seven of eight of another format, with calibration": lambda: Case(
        mixed("gptq", 7 / 8, "awq"), REFUTED, calibration="here"
    ),
    "random text, rows are the claim's replay": lambda: Case(forged("awq", "random", "awq"), REFUTED),
    "all tokens but the first replaced, first rows captured": lambda: Case(
        forged("awq", "awq+tail", "awq", *drops("awq", "all but the first rows")), REFUTED
    ),
    "the same as commitments": lambda: Case(
        forged("awq", "awq+tail", "awq", *drops("awq", "all but the first rows")), REFUTED, commitments=True
    ),
    "spam, first rows captured": lambda: Case(
        forged("awq", "spam", "awq", *drops("awq", "all but the first rows")), REFUTED
    ),
    "last token replaced": lambda: Case(forged("awq", "awq+last", "awq"), REFUTED),
    "one decode and one prefill row of one reference": lambda: Case(
        forged("awq", "awq", "awq", *drops("awq", "all but two rows")), {"undecided"}
    ),
    "garbage rows, one template row of prefill, another CPU": lambda: Case(
        forged(
            "awq",
            "random",
            "zeros",
            forging.drop("awq", "prefill", forging.template),
            state("awq", **forging.OTHER_CPU),
        ),
        CAUGHT,
    ),
    "garbage rows, one template row of prefill, a claim that does not repeat": lambda: Case(
        forged("gptq", "random", "garbage", forging.drop("gptq", "prefill", forging.template)), CAUGHT
    ),
    "another machine, random text, replayed sketches with noise, calibration": lambda: Case(
        forged("awq", "random", "noisy:0.02:awq", state("awq", **forging.OTHER_CPU)),
        REFUTED,
        calibration="cpu",
    ),
    "bit-equal to another config than the label says": lambda: Case(
        forged("awq_marlin", "awq", "awq", state("awq_marlin", **forging.OTHER_CPU), prefill="awq")[:1],
        {"other config"},
    ),
}

FURTHER: Mapping[str, Callable[[], Case]] = {
    "last token is the runner-up": lambda: Case(forged("awq", "awq+second", "awq"), REFUTED),
    "one token in the middle replaced": lambda: Case(forged("awq", "awq+one", "awq"), REFUTED),
    "one token of one transcript replaced": lambda: Case(
        forged("awq", some(0.1, COUNT, "awq+one", "awq"), "awq"), REFUTED
    ),
    "last token replaced and its row left out": lambda: Case(
        forged("awq", "awq+last", "awq", *drops("awq", "the last decode row")), REFUTED
    ),
    "no decode row at all, random text": lambda: Case(
        forged("awq", "random", "awq", *drops("awq", "decode")), REFUTED
    ),
    "each reference has another one's text": lambda: Case(forged("awq", "awq+moved", "awq"), REFUTED),
    "one transcript of another format": lambda: Case(mixed("awq", 0.1, "gptq"), CAUGHT),
    "another checkpoint altogether": lambda: Case(
        forged("awq", "other:awq", "other:awq", prefill="other:awq"), REJECTED
    ),
    "sketches that are not numbers, a claim that does not repeat": lambda: Case(
        forged("gptq", "awq", "nan"), CAUGHT
    ),
    "sketches that are not numbers, with calibration": lambda: Case(
        forged("gptq", "awq", "nan"), CAUGHT, calibration="here"
    ),
    "sketches of the greatest numbers": lambda: Case(forged("gptq", "awq", "huge"), CAUGHT),
    "facts left out, text of another format": lambda: Case(
        forged("gptq", "awq", "gptq", unstate(*forging.MISSING)), CAUGHT
    ),
    "another GPU stated, random text": lambda: Case(
        forged("awq", "random", "awq", state("awq", **forging.OTHER_GPU)), REFUTED
    ),
    "another batch stated, random text, sketches with noise": lambda: Case(
        forged("awq", "random", "noisy:0.02:awq", state("awq", batch_size=4)), CAUGHT
    ),
    "gptq's honest file claimed as awq": lambda: Case(
        [Producer("gptq")], REJECTED, claims={"gptq": "awq"}, configs=("awq", "awq_marlin")
    ),
    "random text as commitments": lambda: Case(forged("awq", "random", "awq"), REFUTED, commitments=True),
    "random text, stated as sampled": lambda: Case(
        forged("awq", "random", "awq", forging.SAMPLINGS["sampled"]("awq")), CAUGHT
    ),
    "random text, penalties stated": lambda: Case(
        forged("awq", "random", "awq", forging.SAMPLINGS["penalties"]("awq")), CAUGHT
    ),
    "random text, sampling not stated": lambda: Case(
        [Producer("awq", "random", "awq", edits=[forging.SAMPLINGS["missing"]("awq")])], CAUGHT
    ),
    "random text in a file of the first schema": lambda: Case(
        [Producer("awq", "random", "awq", edits=[forging.older])], REFUTED
    ),
    "commitments to garbage, another CPU": lambda: Case(
        forged("awq", "random", "garbage", state("awq", **forging.OTHER_CPU), prefill="garbage"),
        CAUGHT,
        commitments=True,
    ),
}

# The producer states something of her own that a test of noisy rows takes its scale or its count from.
TRICKS: Mapping[str, Callable[[], Case]] = {
    "one transcript's sketches are huge, the others' garbage, a claim that does not repeat": lambda: Case(
        forged("gptq", "gptq", "garbage", forging.loud("gptq", 0)), CAUGHT
    ),
    "one transcript's sketches are huge, the others' another format's": lambda: Case(
        forged("gptq", "gptq", "awq", forging.loud("gptq", 0)), CAUGHT
    ),
    "five of eight texts false, stated as cut from the same tokens of a document": lambda: Case(
        [
            Producer(
                "gptq",
                ["gptq+tail"] * 5 + ["gptq"] * 3,
                "gptq",
                edits=[forging.one_unit(range(5))],
            )
        ],
        CAUGHT,
    ),
    "commitments to garbage beside an honest text, a claim that does not repeat": lambda: Case(
        forged("gptq", "gptq", "garbage"), OPEN, commitments=True
    ),
}

HONEST: Mapping[str, Callable[[], Case]] = {
    "every row equal": lambda: Case([Producer("awq"), *BESIDE], {"confirmed"}),
    "every row equal, with calibration": lambda: Case(
        [Producer("awq"), *BESIDE], {"confirmed"}, calibration="here"
    ),
    "every commitment equal": lambda: Case([Producer("awq"), *BESIDE], {"confirmed"}, commitments=True),
    "a config that does not repeat": lambda: Case([Producer("gptq"), *BESIDE], FIT),
    # Every prompt set's first reference is ref_0: the calibration's are other prompts of the same names.
    "a config that does not repeat, with calibration": lambda: Case(
        [Producer("gptq"), *BESIDE], FIT, calibration="here"
    ),
    "another GPU stated, rows equal": lambda: Case(
        [Producer("awq", edits=[state("awq", **forging.OTHER_GPU)]), *BESIDE], {"confirmed"}
    ),
    "facts missing, rows equal": lambda: Case(
        [Producer("awq", edits=[unstate(*forging.MISSING)]), *BESIDE], {"confirmed"}
    ),
    "another torch stated, every row a little different": lambda: Case(
        [
            Producer(
                "awq", "awq", "noisy:0.005:awq", "noisy:0.005:awq", [state("awq", **forging.OTHER_TORCH)]
            ),
            *BESIDE,
        ],
        OPEN,
    ),
    "facts missing, every row a little different": lambda: Case(
        [Producer("awq", "awq", "noisy:0.005:awq", "noisy:0.005:awq", [unstate(*forging.MISSING)]), *BESIDE],
        OPEN,
    ),
    "another BLAS stated, every row a little different": lambda: Case(
        [
            Producer(
                "awq", "awq", "noisy:0.005:awq", "noisy:0.005:awq", [state("awq", **forging.OTHER_BLAS)]
            ),
            *BESIDE,
        ],
        OPEN,
    ),
    "sampling stated as sampled": lambda: Case(
        [Producer("awq", edits=[forging.SAMPLINGS["sampled"]("awq")]), *BESIDE], OPEN
    ),
    "sampling not stated": lambda: Case(
        # All labels of the file: a variable of the record is there or not.
        [Producer("awq", edits=[forging.SAMPLINGS["missing"]("awq")])],
        OPEN,
    ),
    "a file of the first schema": lambda: Case([Producer("awq", edits=[forging.older])], {"confirmed"}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.build(tmp_path_factory.mktemp("world"), Size(references=COUNT, known=44))


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model whose every greedy choice is an exact tie of two tokens."""
    size = Size(configs=("awq",), others=(), changed=("awq",), references=4, processes=1, twins=True)
    return World.build(tmp_path_factory.mktemp("twins"), size)


def judged(world: World, case: Case, folder: Path) -> Judged:
    make = forging.commitments if case.commitments else forge
    groups = make(world, case.producers)
    return world.judge(
        groups,
        folder,
        texts=forging.texts_of(world, case.producers),
        calibration=case.calibration,
        claims=case.claims,
        configs=case.configs,
    )


def holds(world: World, case: Case, folder: Path) -> None:
    found = judged(world, case, folder)
    label, *beside = (p.label for p in case.producers)
    assert found.verdicts[label] in case.expected, found.because[label]
    for honest in beside:
        assert found.verdicts[honest] in FIT, found.because[honest]


@pytest.mark.parametrize("name", ISSUE)
def test_a_forgery_that_was_once_confirmed_is_found(name: str, world: World, tmp_path: Path) -> None:
    holds(world, ISSUE[name](), tmp_path / "judged")


@pytest.mark.parametrize("name", FURTHER)
def test_a_forgery_is_found(name: str, world: World, tmp_path: Path) -> None:
    holds(world, FURTHER[name](), tmp_path / "judged")


@pytest.mark.parametrize("name", TRICKS)
def test_a_producers_own_statement_hides_nothing(name: str, world: World, tmp_path: Path) -> None:
    holds(world, TRICKS[name](), tmp_path / "judged")


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_file_is_not_refuted(name: str, world: World, tmp_path: Path) -> None:
    holds(world, HONEST[name](), tmp_path / "judged")


def test_an_exact_tie_fits_whichever_token_was_chosen(twins: World, tmp_path: Path) -> None:
    for text in ("awq", "awq+twin"):
        holds(twins, Case([Producer("awq", text)], {"confirmed"}), tmp_path / text)
    holds(twins, Case([Producer("awq", "awq+last")], REFUTED), tmp_path / "last")


def test_a_refuted_claim_ends_the_verifiers_sweep_with_status_3(world: World, tmp_path: Path) -> None:
    """The bank's shortcut says what the command line says, and the status is the verdicts'."""
    producers = [Producer("awq", "random"), *BESIDE]
    found = world.judge(
        forge(world, producers),
        tmp_path / "short",
        texts=forging.texts_of(world, producers),
        configs=("awq",),
    )
    file = forging.write(forge(world, producers), tmp_path / "lies.nc")
    own = world.folder / "models" / "own"
    arguments = ["-m", "prompts=transcripts", f"prompts.path='{file}'", "quant=awq", "repeats=2"]
    few = [*FEW, "capture.prefill_positions=8", "hydra.sweep.dir=full"]
    paths = {form: own / form for form in ("none", "awq", "gptq")}
    done = qdx(*arguments, *few, *checkpoints(paths), cwd=tmp_path)
    summary = json.loads((tmp_path / "full" / "summary.json").read_text())
    assert summary["analyses"]["verify"]["verdict"] == found.verdicts, done.stderr
    assert found.verdicts["awq"] == "refuted"
    assert done.returncode == 3, done.stdout + done.stderr
