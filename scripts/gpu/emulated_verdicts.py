"""Judge the transcripts that a card recorded by rows that a CPU computed: which kernel made them?

    python scripts/gpu/emulated_verdicts.py SWEEP.nc ROWS.npz [STRANGERS.nc]

ROWS is what ``emulated_rows.py`` made of SWEEP. Nothing is computed here: each transcript's hashes of rows
are compared with those of every emulated config after the same tokens. A transcript is *confirmed* as a
config's when every recorded row of prefill and decode was computed and has that config's hash, and *confirmed
in prefill* when that holds of its prefill and no decode row was computed. It is *unknown* when no row has any
config's hash. Anything else is *not confirmed*. STRANGERS is another sweep of the same model, whose formats
and kernels were not emulated; of other prompts only what they begin with alike is compared.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

PHASES = ("prefill", "decode")
SHARE = 0.01  # of rows that may be another's
LEVEL = 0.05


@dataclass(frozen=True)
class Transcript:
    """What a card recorded of one reference under one config.

    Attributes
    ----------
    tokens : ndarray
        The prompt's, then the answer's.
    hashes : dict
        Of each phase the hash of each recorded position's row.
    """

    tokens: NDArray[np.int64]
    hashes: Mapping[str, Mapping[int, int]]


def transcripts(path: Path) -> dict[tuple[str, int], Transcript]:
    """Return the first repeat's transcript of every config and reference of a sweep."""
    tree = xr.open_datatree(path)
    references = tree["references"].to_dataset()
    found = {}
    for config in tree["prefill"].config.values.tolist():
        phases = {name: tree[name].to_dataset().sel(config=config).isel(repeat=0) for name in PHASES}
        answers = tree["output"].token_id.sel(config=config).values[0]
        for number, length in enumerate(references.length.values):
            hashes = {}
            for name, phase in phases.items():
                own = phase.isel(reference=number)
                there = own.captured.values
                hashes[name] = dict(
                    zip(own.position.values[there].tolist(), own.row_hash.values[there].tolist(), strict=True)
                )
            answer = answers[number]
            tokens = np.concatenate((references.token_ids.values[number][:length], answer[answer >= 0]))
            found[config, number] = Transcript(tokens, hashes)
    return found


def emulated(path: Path) -> dict[tuple[str, int], dict[str, dict[int, int]]]:
    """Return of each config and reference the hashes that were computed, by phase and position."""
    found: dict[tuple[str, int], dict[str, dict[int, int]]] = {}
    with np.load(path) as file:
        for key in file.files:
            if key.endswith("/positions"):
                config, reference, phase, _ = key.split("/")
                values = file[key.removesuffix("/positions")]
                own = dict(zip(file[key].tolist(), values.tolist(), strict=True))
                found.setdefault((config, int(reference)), {})[phase] = own
    return found


Counts = Mapping[str, tuple[int, int, int]]


def compare(made: Transcript, own: Mapping[str, Mapping[int, int]], tokens: NDArray[np.int64]) -> Counts:
    """Return of each phase how many rows are equal, were computed after the same tokens, and are recorded.

    `tokens` are those that were fed to the emulator.
    """
    length = min(len(made.tokens), len(tokens))
    differ = np.flatnonzero(made.tokens[:length] != tokens[:length])
    same = int(differ[0]) if len(differ) else length  # tokens that both began with
    found = {}
    for phase in PHASES:
        at = [p for p in made.hashes[phase] if p in own.get(phase, {}) and p <= same]
        equal = sum(made.hashes[phase][p] == own[phase][p] for p in at)
        found[phase] = equal, len(at), len(made.hashes[phase])
    return found


def verdict(counts: Mapping[str, Counts]) -> tuple[str, str]:
    """Return what is said of a transcript, and the config that it is said of.

    `counts` has what `compare` gave for each emulated config.
    """
    for config, phases in counts.items():
        (equal, _, recorded), decode = phases["prefill"], phases["decode"]
        if recorded and equal == recorded and decode[0] == decode[2] and decode[2]:
            return "confirmed", config
        if recorded and equal == recorded and not decode[1]:
            return "confirmed in prefill", config
    if not any(phase[0] for phases in counts.values() for phase in phases.values()):
        return "unknown", ""
    return "not confirmed", ""


def rows_for(share: float, hypotheses: int, level: float = LEVEL) -> int:
    """Return how many drawn rows must be equal for fewer than a share of the others to be another's."""
    return math.ceil(math.log(level / hypotheses) / math.log(1 - share))


def tally(
    config: str,
    made: Mapping[int, Transcript],
    card: Mapping[tuple[str, int], Transcript],
    computed: Mapping[tuple[str, int], Mapping[str, Mapping[int, int]]],
) -> tuple[Counter[str], NDArray[np.int64], NDArray[np.int64]]:
    """Return what is said of a config's transcripts, and (equal, compared) rows: its own, all others'.

    Nothing is said of one whose own config was emulated, but not on this reference.
    """
    said: Counter[str] = Counter()
    own, other = np.zeros((2, 2), np.int64), np.zeros(2, np.int64)
    for number, transcript in made.items():
        counts = {
            candidate: compare(transcript, hashes, card[candidate, number].tokens)
            for (candidate, reference), hashes in computed.items()
            if reference == number
        }
        if not counts:
            continue
        if config not in {candidate for candidate, _ in computed} or config in counts:
            outcome, name = verdict(counts)
            said[f"{outcome} as {name}" if name else outcome] += 1
        for candidate, phases in counts.items():
            values = np.array([phases[phase][:2] for phase in PHASES])
            if candidate == config:
                own += values
            else:
                other += values.sum(0)
    return said, own, other


def lines(sweep: Path, rows: Path, strangers: Path | None = None) -> Iterator[str]:
    """Make the table."""
    computed, card = emulated(rows), transcripts(sweep)
    configs = [config for config in dict.fromkeys(key[0] for key in card) if (config, 0) in computed]
    sources = {sweep.parent.name: card}
    if strangers is not None:
        sources[strangers.parent.name] = transcripts(strangers)
    yield f"{sweep.parent.parent.name}/{sweep.parent.name} by rows that a CPU computed: {', '.join(configs)}"
    yield ""
    yield f"{'made by':22} answers  {'verdicts':36} {'equal rows: prefill, decode':28} to other configs' rows"
    total = np.zeros(2, np.int64)
    for source, found in sources.items():
        for config in dict.fromkeys(key[0] for key in found):
            made = {number: one for (name, number), one in found.items() if name == config}
            said, own, other = tally(config, made, card, computed)
            total += other
            if not said:
                continue
            label = config if found is card else f"{config} ({source})"
            outcomes = ", ".join(f"{count} {outcome}" for outcome, count in said.items())
            mine = ", ".join(f"{a} of {b}" for a, b in own) if own[:, 1].any() else "–"
            yield f"{label:22} {sum(said.values()):7}  {outcomes:36} {mine:28} {other[0]} of {other[1]}"
    yield ""
    yield (
        f"One row names the kernel: {total[0]} of {total[1]} rows equal one of another config after the same "
        f"tokens (at 95 % fewer than {3 / max(1, total[1]):.1e}, were they independent)."
    )
    yield from costs(rows, len(configs))


def equal_rows(sweep: Path, rows: Path) -> Iterator[str]:
    """List of each answer that was computed how many of its rows are equal, and what they took."""
    computed, card = emulated(rows), transcripts(sweep)
    total = np.zeros((2, 2), np.int64)
    yield f"{sweep.parent.parent.name}/{sweep.parent.name}: rows that a CPU computed with the card's hash"
    yield "(seconds of one processor; where two threads waited for each other they are more)"
    yield ""
    with np.load(rows) as file:
        times = {key.rpartition("/")[0]: file[key] for key in file.files if key.endswith("/seconds")}
    for config, number in sorted(
        computed, key=lambda key: ([name for name, _ in card].index(key[0]), key[1])
    ):
        made = card[config, number]
        counts = compare(made, computed[config, number], made.tokens)
        values = np.array([counts[phase][:2] for phase in PHASES])
        total += values
        took = times.get(f"{config}/{number}", np.array([np.nan, np.nan]))
        seconds = f"  prefill {took[0]:4.1f} s" if took[0] > 0 else ""
        seconds += f", a step {took[1]:4.2f} s" if took[1] > 0 else ""
        said = ", ".join(f"{phase} {a:3} of {b:3}" for phase, (a, b) in zip(PHASES, values, strict=True))
        yield f"{config:13} reference {number}  {said}{seconds}"
    yield ""
    yield ", ".join(
        f"{phase} {a} of {b}" for phase, (a, b) in zip(("together: prefill", "decode"), total, strict=True)
    )


def costs(path: Path, configs: int) -> Iterator[str]:
    """Say how many rows a verifier draws for 1 %, and what computing them costs."""
    with np.load(path) as file:
        times = np.array([file[key] for key in file.files if key.endswith("/seconds")])
        steps = max(len(file[key]) for key in file.files if key.endswith("/decode"))
    for hypotheses in (1, configs):
        drawn = rows_for(SHARE, hypotheses)
        yield (
            f"Fewer than {SHARE:.0%} of all rows are another's, at {1 - LEVEL:.0%} and of {hypotheses} "
            f"config{'s' if hypotheses > 1 else ''}, when {drawn} rows that the verifier draws are all equal."
        )
        if len(times):
            prefill, step = np.nanmedian(times, 0)
            yield (
                f"  Of as many answers: {drawn * prefill:.0f} s of one processor for rows of the prefill, "
                f"{drawn * (prefill + steps / 2 * step):.0f} s for rows of the decode "
                f"(a prefill {prefill:.1f} s, a step {step:.2f} s, medians)."
            )


def main() -> None:
    """Print the table."""
    paths = [Path(one) for one in sys.argv[1:]]
    for line in lines(*paths):
        print(line)


if __name__ == "__main__":
    main()
