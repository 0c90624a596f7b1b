"""Compare sweeps of several machines row by row: the axis *machine*.

Rows of two sweeps are compared only where both saw the same tokens before: the same prompt by its token ids,
and in decode the same tokens consumed up to there. What a sweep calls a reference does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qdx.dataset.layout import REPORT_ORDER
from qdx.errors import QdxError
from qdx.statistics import Bools, group_equal
from qdx.verification.environment import HARDWARE, SOFTWARE
from qdx.verification.environment_class import Match
from qdx.verification.environment_class import compare as compare_classes
from qdx.verification.machine_names import machine_names
from qdx.verification.machine_rows import MARKS, Rows, Shared, Side, unit_index

REPEATS = ("repeats", "does not repeat", "not rerun")
OTHER_TOKENIZER = "other tokenizer: token ids of the two mean different texts"
OTHER_VOCABULARY = "another number of logits in a row"
OTHER_WEIGHTS = "other weights: unequal rows would say nothing of the machines"
NO_PROMPT = "no prompt in common: run both with the same prompts"
NO_UNIT = "no prompt with the same continuation in common"
NO_MARKS = "one of the files has neither hashes nor commitments of its rows"


@dataclass(frozen=True)
class Pair:
    """One config in one phase on two machines.

    Attributes
    ----------
    phase, config : str
    machines : pair of int
        Indices of the sweeps.
    rows, equal : int
        Rows compared, and those that are bit-equal by what the files state.
    drift, greatest : float
        Mean and greatest |Δ ln p| of the token at the position, nat, over rows where both name the same
        token; NaN where there is none.
    distance : float
        Mean L2 distance over all compared rows, nat; NaN where it cannot be measured.
    distance_of : str
        ``full rows`` (of log-probabilities, exact), ``sketches`` (of centred logits, an estimate) or "".
    not_numbers : int
        Rows whose log-probabilities are not numbers on a side.
    """

    phase: str
    config: str
    machines: tuple[int, int]
    rows: int
    equal: int
    drift: float
    greatest: float
    distance: float
    distance_of: str
    not_numbers: int


@dataclass(frozen=True)
class Comparison:
    """What several sweeps have in common, and what not.

    Attributes
    ----------
    names : list of str
        A short label of each sweep's machine, no two alike.
    paths : list of str
    pairs : list of Pair
    classes : Mapping of str to Mapping
        For each phase ``(machine, config)`` to the number of its class, from 1. Those of one class are
        bit-equal in every row that any two of them share.
    repeats : Mapping
        For each phase ``(machine, config)`` to one of `REPEATS`.
    facts : Mapping of str to list of str
        What differs between the machines: a title to a text for each.
    environments : Mapping
        ``(machine, machine, config)`` to how their environment classes compare.
    refused : list of (str, str)
        What was not compared, and why.
    remarks : list of str
    """

    names: list[str]
    paths: list[str]
    pairs: list[Pair]
    classes: Mapping[str, Mapping[tuple[int, str], int]]
    repeats: Mapping[str, Mapping[tuple[int, str], str]]
    facts: Mapping[str, list[str]]
    environments: Mapping[tuple[int, int, str], Match]
    refused: list[tuple[str, str]]
    remarks: list[str] = field(default_factory=list)

    @property
    def all_equal(self) -> bool:
        """Whether every compared row is equal."""
        return all(pair.equal == pair.rows for pair in self.pairs)


def compare(sides: Sequence[Side], *, full_rows: bool = True) -> Comparison:
    """Compare every two sweeps.

    Parameters
    ----------
    sides : sequence of Side
        Two or more.
    full_rows : bool
        Measure distances on full rows where both sides have them. Only unequal rows are read.

    Returns
    -------
    Comparison

    Raises
    ------
    QdxError
        For fewer than two sweeps, or when no row of any two can be compared; it says why.
    """
    if len(sides) < 2:
        raise QdxError(f"{len(sides)} sweep given: give two or more")
    names = machine_names([_machine_facts(side) for side in sides])
    refused: list[tuple[str, str]] = []
    usable: set[tuple[int, int]] = set()
    for i, j in _two(len(sides)):
        if why := _refusal(sides[i], sides[j]):
            refused.append((f"{names[i]} ~ {names[j]}", why))
        else:
            usable.add((i, j))
    if not usable:
        raise QdxError("nothing can be compared: " + "; ".join(f"{what}: {why}" for what, why in refused))
    barred = _barred(sides, names, usable, refused)
    pairs, classes, repeats = [], {}, {}
    for phase in REPORT_ORDER:
        if sum(phase in side.phases for side in sides) < 2:
            for side, name in zip(sides, names, strict=True):
                if phase in side.phases:
                    refused.append((f"{phase} of {name}", "no other sweep has this phase"))
            continue
        found = _Phase(phase, sides, usable, barred, full_rows)
        pairs += [pair for pair in found.pairs if pair.rows]
        refused += found.without_rows(names)
        refused += [(f"{phase}: {names[i]} ~ {names[j]}", why) for (i, j), why in found.refused.items()]
        if any(pair.rows for pair in found.pairs):
            classes[phase], repeats[phase] = found.classes, found.repeats
    for side, name in zip(sides, names, strict=True):
        refused += [(f"{phase} of {name}", why) for phase, why in side.not_read.items()]
    if not any(pair.rows for pair in pairs):
        said = "; ".join(f"{what}: {why}" for what, why in refused) or "no config in common"
        raise QdxError(f"no row of any two sweeps can be compared: {said}")
    shared = _shared_configs(sides, usable)
    environments = {
        (i, j, config): compare_classes(sides[i].environment(config), sides[j].environment(config))
        for i, j in sorted(usable)
        for config in shared[i, j]
        if (i, j, config) not in barred
    }
    paths = [side.path for side in sides]
    return Comparison(
        names,
        paths,
        pairs,
        classes,
        repeats,
        _differing(sides),
        environments,
        refused,
        _remarks(sides, names),
    )


def _two(count: int) -> Iterator[tuple[int, int]]:
    yield from ((i, j) for i in range(count) for j in range(i + 1, count))


def _machine_facts(side: Side) -> dict[str, str]:
    """What names a machine: each fact's values over the configs, joined."""
    names: tuple[str, ...] = (
        "gpu",
        "cpu",
        "simulated",
        "sm_count",
        "backend",
        "backend_version",
        "threads",
        "torch_version",
        "cuda_version",
        "cuda_runtime",
        "cublas_version",
        "driver_version",
        "model_runner",
        "host",
    )
    facts = {
        name: "/".join(dict.fromkeys(side.fact(name, config) for config in side.configs)) for name in names
    }
    return {**facts, "path": side.path}


def _refusal(a: Side, b: Side) -> str:
    """Why no row of two sweeps can be compared; "" where some may be."""

    def of(side: Side, name: str) -> set[str]:
        return {value for config in side.configs if (value := side.fact(name, config))}

    one, two = of(a, "tokenizer_sha256"), of(b, "tokenizer_sha256")
    if one and two and not one & two:
        return OTHER_TOKENIZER
    one, two = of(a, "vocab"), of(b, "vocab")
    if one and two and not one & two:
        return f"{OTHER_VOCABULARY}: {', '.join(sorted(one))} and {', '.join(sorted(two))}"
    return "" if set(a.prompts) & set(b.prompts) else NO_PROMPT


def _shared_configs(sides: Sequence[Side], usable: set[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    return {(i, j): [c for c in sides[i].configs if c in sides[j].configs] for i, j in usable}


def _barred(
    sides: Sequence[Side],
    names: Sequence[str],
    usable: set[tuple[int, int]],
    refused: list[tuple[str, str]],
) -> set[tuple[int, int, str]]:
    """Configs that two sweeps both have, of other weights; what only one has is noted too."""
    barred = set()
    for i, j in sorted(usable):
        a, b = sides[i], sides[j]
        for config in _shared_configs(sides, {(i, j)})[i, j]:
            one, two = a.weights(config), b.weights(config)
            if one and two and one != two:
                barred.add((i, j, config))
                refused.append((f"{config}: {names[i]} ~ {names[j]}", OTHER_WEIGHTS))
        missing = len(set(a.prompts) - set(b.prompts)), len(set(b.prompts) - set(a.prompts))
        if any(missing):
            total = len(set(a.prompts) | set(b.prompts))
            refused.append((f"{names[i]} ~ {names[j]}", f"{sum(missing)} of {total} prompts are in one only"))
    for i, side in enumerate(sides):
        others = {c for k, other in enumerate(sides) if k != i for c in other.configs}
        if alone := [config for config in side.configs if config not in others]:
            refused.append((", ".join(alone), f"only {names[i]} has it under this label"))
    return barred


class _Phase:
    """One phase of all sweeps: every two (machine, config) that may be compared."""

    def __init__(
        self,
        phase: str,
        sides: Sequence[Side],
        usable: set[tuple[int, int]],
        barred: set[tuple[int, int, str]],
        full_rows: bool,
    ) -> None:
        self._sides, self._name, self._full = sides, phase, full_rows
        rows = [side.phases.get(phase) for side in sides]
        self.refused: dict[tuple[int, int], str] = {}
        self.pairs: list[Pair] = []
        entries = [(m, c) for m, of in enumerate(rows) if of is not None for c in range(len(of.configs))]
        same = np.zeros((len(entries), len(entries)), bool)
        known = np.eye(len(entries), dtype=bool)
        number = {entry: k for k, entry in enumerate(entries)}
        of_machine = [(m, m) for m, of in enumerate(rows) if of is not None]
        for i, j in [*of_machine, *sorted(usable)]:
            a, b = rows[i], rows[j]
            if a is None or b is None:
                continue
            mark = _mark(a, b)
            if not mark:
                self.refused[i, j] = NO_MARKS
                continue
            shared = Shared.of(a, b)
            if not len(shared.units[0]):
                self.refused[i, j] = NO_UNIT
                continue
            for c, config in enumerate(a.configs):
                for d, other in enumerate(b.configs):
                    if i == j and c > d:
                        continue
                    if config == other and (i, j, config) in barred:
                        continue
                    comparable = shared.comparable(a, b, (c, 0), (d, 0))
                    equal = _equal(a, b, mark, shared, c, d) & comparable
                    at = number[i, c], number[j, d]
                    known[at] = known[at[::-1]] = bool(comparable.any())
                    same[at] = same[at[::-1]] = bool(comparable.any() and (equal == comparable).all())
                    if i != j and config == other:
                        self.pairs.append(self._pair(i, j, a, b, shared, (c, d), comparable, equal))
        states = [
            _repeat_state(rows_m, c, _mark(rows_m, rows_m))
            for m, c in entries
            if (rows_m := rows[m]) is not None
        ]
        groups = group_equal(same, np.array([state != REPEATS[1] for state in states], bool))
        labels = [(m, rows_m.configs[c]) for m, c in entries if (rows_m := rows[m]) is not None]
        self.repeats = dict(zip(labels, states, strict=True))
        in_class = {k: n for n, members in enumerate(groups, 1) for k in members}
        # What no row of another sweep was compared with has no class among the machines.
        compared = [any(known[k, o] for o, other in enumerate(entries) if other[0] != m)
                    for k, (m, _) in enumerate(entries)]  # fmt: skip
        ordered = dict.fromkeys(in_class[k] for k in range(len(entries)) if compared[k])
        renumbered = {old: new for new, old in enumerate(ordered, 1)}
        self.classes = {labels[k]: renumbered[in_class[k]] for k in range(len(entries)) if compared[k]}

    def without_rows(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Configs that two sweeps have, and of which no row of this phase is in both."""
        why = "no row that both captured after the same tokens"
        return [
            (f"{self._name} of {pair.config}: {' ~ '.join(names[m] for m in pair.machines)}", why)
            for pair in self.pairs
            if not pair.rows
        ]

    def _pair(
        self,
        i: int,
        j: int,
        a: Rows,
        b: Rows,
        shared: Shared,
        at: tuple[int, int],
        comparable: Bools,
        equal: Bools,
    ) -> Pair:
        drift, greatest, not_numbers = _drift(a, b, shared, at, comparable)
        distance, of = np.nan, ""
        if self._full and all("logit" in rows.data for rows in (a, b)):
            distance, of = _full_distance(a, b, shared, at, comparable, equal), "full rows"
        elif self._same_sketches(i, j, a.configs[at[0]], a, b):
            one, two = (
                shared.take(rows.values("sketch", c), side).astype(np.float64)
                for side, (rows, c) in enumerate(zip((a, b), at, strict=True))
            )
            norms = np.sqrt(((one - two) ** 2).sum(-1))[comparable]
            distance, of = (float(norms.mean()) if norms.size else np.nan), "sketches"
        counts = int(comparable.sum()), int(equal.sum())
        return Pair(
            self._name, a.configs[at[0]], (i, j), *counts, drift, greatest, distance,
            of if np.isfinite(distance) else "", not_numbers,
        )  # fmt: skip

    def _same_sketches(self, i: int, j: int, config: str, a: Rows, b: Rows) -> bool:
        if any("sketch" not in rows.data for rows in (a, b)):
            return False
        if a.data.sizes["component"] != b.data.sizes["component"]:
            return False
        one, two = (self._sides[k].fact("sketch_seed", config) for k in (i, j))
        return bool(one) and one == two


def _mark(a: Rows, b: Rows) -> str:
    """The variable by which rows of both are compared; "" where they have none in common."""
    for name in MARKS:
        if name in a.data and name in b.data:
            sizes = [rows.data[name].sizes.get("byte", 8) for rows in (a, b)]
            if sizes[0] == sizes[1]:
                return name
    return ""


def _equal(a: Rows, b: Rows, mark: str, shared: Shared, c: int, d: int) -> Bools:
    one, two = shared.take(a.values(mark, c), 0), shared.take(b.values(mark, d), 1)
    return np.asarray((one == two).all(-1) if one.ndim == 3 else one == two, bool)


def _repeat_state(rows: Rows, config: int, mark: str) -> str:
    """Whether the config's own repeats are equal: one of `REPEATS`."""
    if not mark:
        return REPEATS[2]
    shared, reruns = Shared.of(rows, rows), 0
    repeats = rows.data.sizes["repeat"]
    first = shared.take(rows.values(mark, config), 0) if repeats > 1 else np.zeros(0)
    for repeat in range(1, repeats):
        comparable = shared.comparable(rows, rows, (config, 0), (config, repeat))
        other = shared.take(rows.values(mark, config, repeat), 1)
        unequal = (first != other).any(-1) if first.ndim == 3 else first != other
        if (comparable & unequal).any():
            return REPEATS[1]
        reruns += int(comparable.any())
    return REPEATS[0] if reruns else REPEATS[2]


def _drift(
    a: Rows, b: Rows, shared: Shared, at: tuple[int, int], comparable: Bools
) -> tuple[float, float, int]:
    """Mean and greatest |Δ ln p| of the tokens that are there, and how many rows have no number."""
    needed = ("target_logit", "logsumexp", "token_id")
    if any(name not in rows.data for rows in (a, b) for name in needed):
        return np.nan, np.nan, 0
    sides = []
    for side, (rows, config) in enumerate(zip((a, b), at, strict=True)):
        logit, total, token = (shared.take(rows.values(name, config), side) for name in needed)
        sides.append((logit.astype(np.float64) - total.astype(np.float64), token))
    same = comparable & (sides[0][1] == sides[1][1]) & (sides[0][1] >= 0)
    with np.errstate(invalid="ignore"):
        difference = np.abs(sides[0][0] - sides[1][0])[same]
    finite = difference[np.isfinite(difference)]
    lost = int(len(difference) - len(finite))
    if not len(finite):
        return np.nan, np.nan, lost
    return float(finite.mean()), float(finite.max()), lost


def _full_distance(
    a: Rows, b: Rows, shared: Shared, at: tuple[int, int], comparable: Bools, equal: Bools
) -> float:
    """Mean L2 distance of the log-probabilities, √ Σ (ln p − ln q)²; equal rows are 0 and are not read."""
    total = 0.0
    for u, p in np.argwhere(comparable & ~equal):
        rows = []
        for side, (of, config) in enumerate(zip((a, b), at, strict=True)):
            unit, position = int(shared.units[side][u]), int(shared.positions[side][p])
            row = of.data["logit"].isel(config=config, repeat=0, position=position)
            row = row.isel(unit_index(of.data, unit))
            norm = of.data["logsumexp"].isel(config=config, repeat=0, position=position)
            logit_V = np.asarray(row.values, np.float64)
            rows.append(logit_V - float(norm.isel(unit_index(of.data, unit)).values))
        one, two = rows
        with np.errstate(invalid="ignore"):
            difference = np.where(one == two, 0.0, one - two)  # −∞ on both sides: both exclude the token
        total += float(np.sqrt((difference**2).sum()))
    count = int(comparable.sum())
    return total / count if count and np.isfinite(total) else np.nan


def _differing(sides: Sequence[Side]) -> dict[str, list[str]]:
    """Facts whose values over the configs that all sweeps have are not the same everywhere."""
    common = [c for c in sides[0].configs if all(c in side.configs for side in sides)]
    found: dict[str, list[str]] = {}
    for name, title in {**SOFTWARE, **HARDWARE}.items():
        if name == "weights_sha256":
            continue  # compared config by config
        columns = [[side.fact(name, c) for c in common or side.configs] for side in sides]
        if all(column == columns[0] for column in columns) and common:
            continue
        texts = [" | ".join(dict.fromkeys(column)) for column in columns]
        if len(set(texts)) > 1 or common:
            found[title] = [_named(column, common) for column in columns]
    return found


def _named(column: Sequence[str], configs: Sequence[str]) -> str:
    """A machine's value of a fact; where configs differ, with the configs of each value."""
    values = list(dict.fromkeys(column))
    if len(values) == 1 or len(column) != len(configs):
        return ", ".join(value or "not stated" for value in values)
    of = list(zip(configs, column, strict=True))
    return "; ".join(
        f"{value or 'not stated'} ({', '.join(c for c, v in of if v == value)})" for value in values
    )


def _remarks(sides: Sequence[Side], names: Sequence[str]) -> list[str]:
    """What a reader should not overlook."""
    found = []
    for side, name in zip(sides, names, strict=True):
        unstated = [c for c in side.configs if not side.weights(c)]
        if unstated:
            found.append(f"{name} does not state the weights of {', '.join(unstated)}.")
        if len(set(side.prompts)) < len(side.prompts):
            found.append(f"{name} has prompts twice: of equal ones the first is compared.")
    return found
