"""Lie to the verifier at random: ``python scripts/forgeries.py COUNT`` draws COUNT files and has them judged.

Every file has one false label, or is an honest control; beside it stands an honest label. What is replaced
(text, decode rows, prefill rows), in which share of transcripts, what is left out, which machine is stated,
with which calibration, as sweep or as commitments: all are drawn. The world (checkpoints, honest runs, the
replays of all texts) is built once, in a folder that is kept. A forgery must end in "refuted", "other
config", "undecided" or "obligation not met". It may end otherwise only where a limit applies that its line
states; an honest control may be rejected as often as the level allows. The exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import comb
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere, also as a file

from tests.verification import forging
from tests.verification.forging import DROPS, MACHINES, MISSING, Producer, drops, some, state, unstate
from tests.verification.world import OTHER, Size, World

GOOD = ("confirmed", "not refuted")  # begin the verdicts that a forgery must not get
REJECTED = ("refuted", "other config")
SHARES = (0.01, 0.1, 0.5, 0.9, 1.0)
CHANGES = ("last", "tail", "one", "second", "moved")
FILLED = ("garbage", "zeros", "nan", "huge")
NOISES = ("0.005", "0.02", "0.2")
DOES_NOT_REPEAT = ("gptq",)  # exllama's decode sums in an order that is new in every run
TESTS = 4  # members that a verdict's list of tests has at most; for the limit of few false transcripts


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
    made = Draw(
        index, "honest", claim, claim, claim, claim, 0.0, "nothing", machine, calibration, commitments, index
    )
    chance = generator.random()
    if chance < 0.25:
        return made
    if chance < 0.33:  # an honest producer elsewhere; with a calibration from here she is another class
        rows = f"noisy:0.005:{claim}"
        return replace(made, kind="moved", rows=rows, prefill=rows, share=1.0, calibration="")
    others = [c for c in world.size.configs if c != claim]
    text = one([claim, *others, *(OTHER + c for c in world.size.others), "random", "spam"])
    if generator.random() < 0.5:
        text = f"{claim}+{one(CHANGES)}"
    noisy = [f"noisy:{amount}:{claim}" for amount in NOISES]
    rows = one([claim, claim, claim, *others, *noisy, *FILLED])
    if text.startswith(OTHER) and generator.random() < 0.3:
        rows = text
    prefill = claim if generator.random() < 0.7 else one([*others, *noisy, *FILLED])
    dropped = "nothing" if generator.random() < 0.5 else one(list(DROPS))
    return replace(
        made,
        kind="forgery",
        text=text,
        rows=rows,
        prefill=prefill,
        share=float(generator.choice(SHARES)),
        dropped=dropped,
    )


def producer_of(made: Draw, world: World) -> Producer:
    """The label of a draw."""
    each = partial(some, made.share, world.count, true=made.claim, seed=made.seed)
    edits = [*drops(made.claim, made.dropped)]
    facts = MACHINES.get(made.machine)
    edits.append(unstate(*MISSING) if facts is None else state(made.claim, **facts))
    # With a share of 0, every transcript is honest.
    if not made.share:
        return Producer(made.claim, edits=edits, seed=made.seed)
    return Producer(
        made.claim, each(made.text), each(made.rows), each(made.prefill), edits=edits, seed=made.seed
    )


def false_transcripts(made: Draw, producer: Producer, world: World) -> int:
    """How many transcripts are no honest output of the claimed config as far as they were published."""
    if made.kind != "forgery":
        return 0
    kept_decode, kept_prefill = (_kept(made, phase) for phase in ("decode", "prefill"))
    own = world.texts[made.claim]
    count = 0
    for r in range(world.count):
        text_false = (world.texts[producer.text[r]][r] != own[r]).any()
        rows_false = kept_decode and producer.rows[r] != made.claim
        head_false = kept_prefill and producer.prefill[r] != made.claim
        count += bool(text_false or rows_false or head_false)
    return count


def _kept(made: Draw, phase: str) -> bool:
    keep = DROPS[made.dropped].get(phase)
    return keep is not forging.nothing


def limit(made: Draw, false: int, world: World) -> str:
    """The stated limit that applies to a forgery, or ""."""
    if made.kind == "forgery" and not false:
        return "an honest output"
    # Of m judged and n others, k false ones lie above all others with this probability: the least p there is.
    n, m = world.size.known // 2, world.count
    least = 2 * comb(m, false) / comb(m + n, false)
    if made.calibration and made.claim in DOES_NOT_REPEAT and 2 * TESTS * least > 0.05:
        return "fewer false transcripts than the test finds"
    return ""


def judge(made: Draw, world: World, folder: Path) -> dict[str, object]:
    """Forge a draw and have it judged."""
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
    return {
        **made.__dict__,
        "false": false,
        "verdict": found.verdicts[made.claim],
        "because": found.because[made.claim],
        "beside": found.verdicts[beside],
        "limit": limit(made, false, world),
        "seconds": round(time.monotonic() - start, 1),
    }


def wrong(result: dict[str, object]) -> bool:
    """Whether a forgery got a good verdict that no limit excuses."""
    verdict = str(result["verdict"])
    return result["kind"] == "forgery" and verdict.startswith(GOOD) and not result["limit"]


def too_many(rejected: int, honest: int, alpha: float = 0.05) -> bool:
    """Whether so many rejected honest controls have a probability under 0.001 at the level."""
    return (
        sum(comb(honest, k) * alpha**k * (1 - alpha) ** (honest - k) for k in range(rejected, honest + 1))
        < 0.001
    )


def described(result: dict[str, object]) -> str:
    parts = [f"{k}={result[k]}" for k in ("claim", "text", "rows", "prefill", "share", "dropped", "machine")]
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
    with ProcessPoolExecutor(chosen.jobs) as pool:
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
        "within a limit": [r for r in results if r["kind"] == "forgery" and r["limit"]],
        "honest": [r for r in results if r["kind"] == "honest"],
        "honest, other rows": [r for r in results if r["kind"] == "moved"],
    }
    for kind, some_results in kinds.items():
        counts = Counter(str(r["verdict"]) for r in some_results)
        print(f"{kind:20}{len(some_results):6}  " + ", ".join(f"{n} {v}" for v, n in counts.most_common()))
    beside = Counter(str(r["beside"]) for r in results)
    print(
        f"{'honest label beside':20}{len(results):6}  "
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
