"""Lie to the verifier at random: ``python scripts/forgeries.py COUNT`` draws COUNT files and has them judged.

Every file has one false label, or is an honest control; beside it stands an honest label. What is replaced
(text, decode rows, prefill rows), in which share of transcripts, what is left out, which machine is stated,
with which calibration, as sweep or as commitments: all are drawn. The world (checkpoints, honest runs, the
replays of all texts) is built once, in a folder that is kept. A forgery must end in "refuted", "other
config", "undecided" or "obligation not met". It may end in "not refuted" only where none of the tests that
its verdict lists finds so few false transcripts, and in "confirmed in prefill" only so, where decode is all
that is false; these are counted by themselves. An honest control may be rejected as often as the level
allows. The exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere, also as a file

from qdx.verification.p_values import binomial_tail, level
from tests.verification import forging
from tests.verification.forging import (
    DROPS,
    MACHINES,
    MISSING,
    NOISY,
    SAMPLINGS,
    Producer,
    drops,
    loud,
    one_unit,
    some,
    state,
    unstate,
)
from tests.verification.world import OTHER, Size, World

GOOD = ("confirmed", "not refuted")  # begin the verdicts that a forgery must not get
REJECTED = ("refuted", "other config")
SHARES = (0.01, 0.1, 0.5, 0.9, 1.0)
CHANGES = ("last", "tail", "one", "second", "moved")
FILLED = ("garbage", "zeros", "nan", "huge")
NOISES = ("0.005", "0.02", "0.2")
ALPHA = level(0.05)
HONEST_OUTPUT = "an honest output"
TOO_FEW = "fewer false transcripts than a listed test finds"
NOT_TESTED = "no listed test looks at what is false"
LIMITS = (HONEST_OUTPUT, TOO_FEW, NOT_TESTED)


@dataclass(frozen=True)
class Draw:
    """One file. `kind`: forgery, honest, or moved: honest text, its rows a little different."""

    index: int
    kind: str
    claim: str
    text: str
    rows: str
    prefill: str
    share: float
    dropped: str
    machine: str
    calibration: str
    commitments: bool
    seed: int
    sampling: str = ""
    trick: str = ""  # "one unit": her false transcripts are stated as one; "loud": one with huge sketches


def draw(index: int, seed: int, world: World) -> Draw:
    """Draw a file; a third are honest controls."""
    generator = np.random.default_rng([seed, index])

    def one(values: Sequence[str]) -> str:
        return str(generator.choice(list(values)))

    claim = one(world.size.changed)
    # No calibration, one made on this machine, or one made where the producer says that she is.
    calibration = one(["", "here", "stated"]) if world.size.known else ""
    machine = one([*MACHINES, "missing"])
    calibration = (machine if machine in MACHINES else "here") if calibration == "stated" else calibration
    commitments = bool(generator.random() < 0.15)
    sampled = one(list(SAMPLINGS)) if generator.random() < 0.15 else ""
    texts = (claim, claim, claim, claim)
    made = Draw(index, "honest", *texts, 0.0, "nothing", machine, calibration, commitments, index, sampled)
    chance = generator.random()
    if chance < 0.25:
        return made
    if chance < 0.33:  # an honest producer elsewhere; with a calibration from here she is another class
        rows = f"noisy:0.005:{claim}"
        there = "torch" if machine == "here" else machine  # rows of one class would have been equal
        return replace(made, kind="moved", rows=rows, prefill=rows, share=1.0, calibration="", machine=there)
    others = [c for c in world.size.configs if c != claim]
    text = one([claim, *others, *(OTHER + c for c in world.size.others), "random", "spam"])
    if generator.random() < 0.5:
        text = f"{claim}+{one(CHANGES)}"
    noisy = [f"noisy:{amount}:{claim}" for amount in NOISES]
    rows = one([claim, claim, claim, *others, *noisy, *FILLED])
    if text.startswith(OTHER) and generator.random() < 0.3:
        rows, made = (
            text,
            replace(made, commitments=False),
        )  # of the other checkpoint's rows no commitment was made
    prefill = claim if generator.random() < 0.7 else one([*others, *noisy, *FILLED])
    dropped = "nothing" if generator.random() < 0.5 else one(list(DROPS))
    share = float(generator.choice(SHARES))
    trick = one(["one unit", "loud"]) if generator.random() < 0.2 else ""
    return replace(
        made,
        kind="forgery",
        text=text,
        rows=rows,
        prefill=prefill,
        share=share,
        dropped=dropped,
        trick=trick,
    )


def producer_of(made: Draw, world: World) -> Producer:
    """The label of a draw."""
    each = partial(some, made.share, world.count, true=made.claim, seed=made.seed)
    edits = [*drops(made.claim, made.dropped)]
    facts = MACHINES.get(made.machine)
    edits.append(unstate(*MISSING) if facts is None else state(made.claim, **facts))
    if made.sampling:
        edits.append(SAMPLINGS[made.sampling](made.claim))
    if made.trick == "one unit":
        edits.append(one_unit([r for r, what in enumerate(each("false")) if what == "false"]))
    if made.trick == "loud" and not made.commitments:
        edits.append(loud(made.claim, 0))
    # With a share of 0, every transcript is honest.
    if not made.share:
        return Producer(made.claim, edits=edits, seed=made.seed)
    return Producer(
        made.claim, each(made.text), each(made.rows), each(made.prefill), edits=edits, seed=made.seed
    )


@dataclass(frozen=True)
class FalseOnes:
    """Transcripts whose text, decode rows and prefill rows are not an honest output, as far as published."""

    text: frozenset[int] = frozenset()
    decode: frozenset[int] = frozenset()
    prefill: frozenset[int] = frozenset()

    @property
    def any(self) -> frozenset[int]:
        return self.text | self.decode | self.prefill


def false_transcripts(made: Draw, producer: Producer, world: World) -> FalseOnes:
    """Which transcripts of a draw are false.

    A text is an honest output where every token is greedy, or ties, on a row that the claimed config computes
    of it. Rows are where the claimed config computed them of this text, or where what was added to them is
    smaller than its own reruns differ.
    """
    if made.kind != "forgery":
        return FalseOnes()
    kept_decode, kept_prefill = (_kept(made, phase) for phase in ("decode", "prefill"))
    every = range(world.count)
    text, rows, heads = (
        [each] * world.count if isinstance(each, str) else list(each)
        for each in (producer.text, producer.rows, producer.prefill)
    )
    loud_ones = {0} if made.trick == "loud" and not made.commitments else set()
    return FalseOnes(
        frozenset(r for r in every if not _greedy(world, made.claim, text[r])[r]),
        frozenset(
            r for r in every if kept_decode and (r in loud_ones or not _own(world, made, rows[r], text[r], r))
        ),
        frozenset(r for r in every if kept_prefill and heads[r] != made.claim),
    )


def _greedy(world: World, claim: str, text: str) -> np.ndarray:
    """Whether a text is one that the claimed config may choose, by any of its repeats: (reference,)."""
    groups = world.bank[claim]
    replay = groups["replay"].isel(config=0).sel(producer=text).isel(rank=0)
    order = ("repeat", "reference", "position")
    row = (replay["target_logit"] == replay["top_logit"]) | ~replay["captured"]
    chosen = row.transpose(*order).values.all(-1)
    head = groups["prefill"].isel(config=0, rank=0)
    top = head["top_logit"].sel(position=groups["references"]["length"]).transpose(*order[:2]).values
    first = head["first_logit"].sel(producer=text).transpose(*order[:2]).values
    return np.asarray((chosen & (first == top)).any(0))


def _own(world: World, made: Draw, whose: str, text: str, r: int) -> bool:
    """Whether decode rows are the claimed config's, or nearer to them than its own reruns are."""
    if whose == made.claim:
        return True
    if made.commitments or not whose.startswith(NOISY) or not whose.endswith(f":{made.claim}"):
        return False
    replay = world.bank[made.claim]["replay"].isel(config=0, reference=r).sel(producer=text)
    sketch = (
        replay["sketch"].transpose("repeat", "position", "component").values[:, replay["captured"].values[0]]
    )
    between = ((sketch[0] - sketch[-1]) ** 2).mean()
    return bool(float(whose.split(":")[1]) ** 2 <= between)


def _kept(made: Draw, phase: str) -> bool:
    keep = DROPS[made.dropped].get(phase)
    return keep is not forging.nothing


def limit(
    made: Draw, false: FalseOnes, verdict: str, told: Mapping[str, Any], judged: int, claims: int
) -> str:
    """The stated limit that applies to a forgery, or "".

    Parameters
    ----------
    told : Mapping
        What ``summary.json`` says of the claim: its tests, and what each was held against.
    judged, claims : int
        Transcripts of a claim, and claims in the file.
    """
    if made.kind != "forgery":
        return ""
    if not false.any:
        return HONEST_OUTPUT
    if verdict.startswith("confirmed") and (verdict != "confirmed in prefill" or false.prefill):
        return ""
    listed = {n: t for n, t in told["tests"].items() if not t["against"].startswith("not listed")}
    seen = {
        "decode rows": false.decode,
        "prefill rows": false.prefill,
        "distances": false.decode,
        "text": false.text,
    }
    at = [(len(seen[name]), str(test["against"])) for name, test in listed.items() if seen[name]]
    if not at:
        return NOT_TESTED
    # Transcripts that the producer states as one unit are still so many false ones: units are hers to state.
    # Where honest transcripts tie in a score, a test finds fewer than this; the excuse is the wider one.
    blind = all(len(listed) * claims * least_p(number, against, judged) > ALPHA for number, against in at)
    return TOO_FEW if blind else ""


def least_p(false: int, against: str, judged: int) -> Fraction:
    """P of a test in which all false ones, and no others, lie above everything that they are held against."""
    if known := re.search(r"(\d[\d,]*) known transcript", against):
        n = int(known[1].replace(",", ""))
        return (1 if judged == 1 else 2) * Fraction(comb(judged, false), comb(judged + n, false))
    if repeats := re.search(r"own (\d+) repeat", against):
        members = int(repeats[1]) + 1
        return (1 if members == 2 else 2) * binomial_tail(judged, false, members)
    if reruns := re.search(r"(\d[\d,]*) rerun", against):
        return Fraction(comb(judged, false), comb(judged + int(reruns[1].replace(",", "")), false))
    raise ValueError(f"a test against {against!r}: unknown to this script")


def judge(made: Draw, world: World, folder: Path) -> dict[str, object]:
    """Forge a draw and have it judged.

    No limit excuses a trick that turns a bad verdict into a good one: what it gains is judged without it too.
    """
    result = _judge(made, world, folder)
    if made.trick and result["limit"] and str(result["verdict"]).startswith(GOOD):
        plain = _judge(replace(made, trick=""), world, folder / "without-its-trick")
        if not str(plain["verdict"]).startswith(GOOD):
            result["limit"] = ""
    return result


def _judge(made: Draw, world: World, folder: Path) -> dict[str, object]:
    start = time.monotonic()
    producer = producer_of(made, world)
    beside = next(c for c in world.size.configs if c not in world.size.changed)
    producers = [producer, Producer(beside)]
    make = forging.commitments if made.commitments else forging.forge
    found = world.judge(
        make(world, producers),
        folder / f"{made.index:05d}",
        texts=forging.texts_of(world, producers),
        calibration=made.calibration,
    )
    false = false_transcripts(made, producer, world)
    summary = json.loads((found.folder / "summary.json").read_text())["verdicts"]["claims"]
    told = next(one for one in summary if one["producer"] == made.claim)
    verdict = found.verdicts[made.claim]
    return {
        **made.__dict__,
        "false": len(false.any),
        "verdict": verdict,
        "because": found.because[made.claim],
        "beside": found.verdicts[beside],
        "limit": limit(made, false, verdict, told, world.count, len(producers)),
        "seconds": round(time.monotonic() - start, 1),
    }


def wrong(result: dict[str, object]) -> bool:
    """Whether a forgery got a good verdict that no limit excuses, or anything was confirmed that never is."""
    verdict = str(result["verdict"])
    never = result["kind"] == "moved" or result["sampling"] in ("missing", "sampled", "penalties")
    if never and verdict.startswith("confirmed"):
        return True
    return result["kind"] == "forgery" and verdict.startswith(GOOD) and not result["limit"]


def too_many(rejected: int, honest: int, alpha: float = 0.05) -> bool:
    """Whether so many rejected honest controls have a probability under 0.001 at the level."""
    return (
        sum(comb(honest, k) * alpha**k * (1 - alpha) ** (honest - k) for k in range(rejected, honest + 1))
        < 0.001
    )


def described(result: dict[str, object]) -> str:
    parts = [f"{k}={result[k]}" for k in ("claim", "text", "rows", "prefill", "share", "dropped", "machine")]
    parts.append(f"sampling={result['sampling'] or 'greedy'}")
    parts += [f"trick={result['trick']}"] * bool(result["trick"])
    more = [f"calibration={result['calibration'] or 'none'}", f"commitments={result['commitments']}"]
    return f"#{result['index']} {' '.join(parts + more)}: {result['verdict']} ({result['because']})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python scripts/forgeries.py", description=__doc__)
    parser.add_argument("count", metavar="COUNT", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="verifications at a time")
    parser.add_argument("--world", type=Path, default=Path("/tmp/qdx-forgeries"), help="kept and used again")
    parser.add_argument("--references", type=int, default=20)
    parser.add_argument("--known", type=int, default=44, help="references of the calibration")
    parser.add_argument("--only", type=int, metavar="INDEX", help="one of the draws, whose folder is kept")
    parser.add_argument("--results", type=Path, help="a file of one JSON object a line, appended to")
    chosen = parser.parse_args(arguments)
    world = World.build(chosen.world, Size(references=chosen.references, known=chosen.known))
    indices = range(chosen.count) if chosen.only is None else [chosen.only]
    draws = [draw(i, chosen.seed, world) for i in indices]
    folder = chosen.world / f"judged-{chosen.seed}"
    results = []
    # Spawned: a fork inherits the pool of a torch that has computed without its threads, and waits for ever.
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(partial(_judged, world=world, folder=folder), draws):
            results.append(result)
            if wrong(result):
                print("WRONG", described(result), flush=True)
            if chosen.results is not None:
                with chosen.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
            if chosen.only is not None:
                print(described(result))
    return _summarize(results)


def _judged(made: Draw, world: World, folder: Path) -> dict[str, object]:
    try:
        return judge(made, world, folder)
    except Exception as error:  # a crash is a finding, and must not take the others with it
        because = f"{type(error).__name__}: {error}"
        empty = {"false": -1, "beside": "", "limit": "", "seconds": 0.0}
        return {**made.__dict__, **empty, "verdict": "no verdict", "because": because[-500:]}


def _summarize(results: Sequence[dict[str, object]]) -> int:
    kinds = {
        "forgeries": [r for r in results if r["kind"] == "forgery" and not r["limit"]],
        **{limit: [r for r in results if r["kind"] == "forgery" and r["limit"] == limit] for limit in LIMITS},
        "honest": [r for r in results if r["kind"] == "honest"],
        "honest, other rows": [r for r in results if r["kind"] == "moved"],
    }
    for kind, some_results in kinds.items():
        counts = Counter(str(r["verdict"]) for r in some_results)
        print(f"{kind:50}{len(some_results):6}  " + ", ".join(f"{n} {v}" for v, n in counts.most_common()))
    beside = Counter(str(r["beside"]) for r in results)
    print(
        f"{'honest label beside':50}{len(results):6}  "
        + ", ".join(f"{n} {v}" for v, n in beside.most_common())
    )
    honest = [*kinds["honest"], *kinds["honest, other rows"]]
    rejected = [r for r in honest if r["verdict"] in REJECTED]
    rejected_beside = [r for r in results if r["beside"] in REJECTED]
    for result in [*rejected, *rejected_beside]:
        print("HONEST BUT REJECTED", described(result), f"beside: {result['beside']}")
    crashed = [r for r in results if r["verdict"] == "no verdict"]
    for result in crashed:
        print("NO VERDICT", described(result))
    bad = [r for r in results if wrong(r)]
    print(f"{len(bad)} wrong of {len(kinds['forgeries'])} forgeries")
    print(f"{len(rejected)} rejected of {len(honest)} honest")
    failed = too_many(len(rejected), len(honest)) or too_many(len(rejected_beside), len(results))
    return 1 if bad or crashed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
