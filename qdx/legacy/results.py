"""Read the original's files of generated rows, whichever form they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.dataset.layout import OWN_PHASES
from qdx.errors import QdxError
from qdx.legacy.distance import (
    OWN,
    SHARED,
    Row,
    Signals,
    finite_mean,
    key_distance,
    position_distances,
)
from qdx.legacy.reading import MOST_POSITIONS, POSITION, Floats, Node, bounded, few

SIGNALS = ("logprobs", "key_vectors")


@dataclass(frozen=True)
class Generation:
    """One config's output for one reference.

    Attributes
    ----------
    prompt_ids, generated_ids : array of int64
        Empty where the file holds no ids.
    signals : Mapping of phase to Signals
    path : str
        In the file.
    """

    prompt_ids: NDArray[np.int64]
    generated_ids: NDArray[np.int64]
    signals: Mapping[str, Signals]
    path: str

    def position(self, phase: str, from_end: int) -> int:
        """Index, from the start of the reference, of the token that a row predicts.

        Where the file holds no ids it is the place from the end, a negative number. vLLM lists what predicts
        the token at a place, Transformers what follows the token that is there: of the prompt's rows, those
        with key vectors are Transformers' and one further on.
        """
        if not len(self.prompt_ids):
            return from_end
        if phase == "prefill":
            return len(self.prompt_ids) + from_end + bool(self.signals[phase][from_end].key_vectors)
        return len(self.prompt_ids) + len(self.generated_ids) + from_end

    def token(self, phase: str, from_end: int) -> int:
        """Id of the token that a row predicts; −1 where the file does not hold it."""
        at = self.position(phase, from_end)
        if 0 <= at < len(self.prompt_ids):
            return int(self.prompt_ids[at])
        at -= len(self.prompt_ids)
        return int(self.generated_ids[at]) if 0 <= at < len(self.generated_ids) else -1


@dataclass(frozen=True)
class Results:
    """A file of generations or of measurements.

    Attributes
    ----------
    key : str
        What varies: config, batch_size, tp_size, …
    keys : list
        The configs as the file has them, in its order: texts or whole numbers.
    labels : list of str
        The same as names of configs.
    models : Mapping of str to Mapping
        Config → model_name, quantization, dtype, where the file states them.
    references : list
        Numbers or names, in the order of the file's matrices.
    generations : Mapping of (label, reference) to Generation
    environment : Mapping of str to str
    attributes : Mapping of str to Any
        Everything else, known or not, by path.
    without : list of str
        Configs of the metadata that generated nothing.
    remarks : list of str
        What of the file is not kept.
    """

    key: str
    keys: list[Any]
    labels: list[str]
    models: Mapping[str, Mapping[str, str]]
    references: list[Any]
    generations: Mapping[tuple[str, Any], Generation]
    environment: Mapping[str, str]
    attributes: Mapping[str, Any]
    without: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def bound(self) -> None:
        """Refuse a file that is too sparse to be a table, before one is made."""
        configs, references = len(self.labels), len(self.references)
        bounded("the table of generations", configs, references)
        few(configs)
        longest = [
            max((len(ids) for ids in of), default=0)
            for of in (
                (g.prompt_ids for g in self.generations.values()),
                (g.generated_ids for g in self.generations.values()),
            )
        ]
        bounded("token ids of the prompts", references, longest[0])
        bounded("generated token ids", configs, references, longest[1])
        for phase in self.phases:
            places, ranks = len(self.positions(phase)), self.ranks(phase)
            bounded(f"log-probabilities of {phase}", configs, references, places, ranks)
            bounded(f"distances of {phase}", configs, configs, references, places)
            layers, components = self.key_shape(phase)
            bounded(f"key vectors of {phase}", configs, references, places, max(1, len(layers) * components))

    @cached_property
    def phases(self) -> list[str]:
        """Phases that some generation has rows of."""
        return [p for p in OWN_PHASES if any(run.signals.get(p) for run in self.generations.values())]

    @cached_property
    def signals(self) -> list[str]:
        """logprobs, and key_vectors where some row has them."""
        rows = (
            row for run in self.generations.values() for rows in run.signals.values() for row in rows.values()
        )
        return list(SIGNALS) if any(row.key_vectors for row in rows) else ["logprobs"]

    @cached_property
    def index(self) -> dict[Any, int]:
        """Place of a (label,) or of a reference: labels and references may be equal texts."""
        return {(label,): i for i, label in enumerate(self.labels)} | {
            reference: i for i, reference in enumerate(self.references)
        }

    def at(self, label: str, reference: Any) -> tuple[int, int]:
        """Places of a generation's config and reference."""
        return self.index[label,], self.index[reference]

    def positions(self, phase: str) -> list[int]:
        """Positions of a phase's rows, ascending."""
        return sorted(
            {
                run.position(phase, at)
                for run in self.generations.values()
                for at in run.signals.get(phase, ())
            }
        )

    def ranks(self, phase: str) -> int:
        """Ids of the longest list."""
        rows = (row for run in self.generations.values() for row in run.signals.get(phase, {}).values())
        return max((len(row.token_ids) for row in rows), default=0)

    def key_shape(self, phase: str) -> tuple[list[str], int]:
        """Layers that have key vectors, and the length of the longest."""
        layers: dict[str, None] = {}
        components = 0
        for run in self.generations.values():
            for row in run.signals.get(phase, {}).values():
                layers |= dict.fromkeys(row.key_vectors)
                components = max(components, *map(len, row.key_vectors.values()), 0)
        return list(layers), components

    def distances(
        self, phase: str, signal: str = "logprobs", rule: str = OWN
    ) -> dict[tuple[int, int, int], dict[int, float]]:
        """(config, config_b, reference) → place from the end → distance."""
        found = {}
        for r, reference in enumerate(self.references):
            runs = [self.generations.get((label, reference)) for label in self.labels]
            first = runs[0].signals.get(phase) if runs[0] is not None else None
            for a, one in enumerate(runs):
                for b, other in enumerate(runs):
                    if one is None or other is None:
                        continue
                    p, q = one.signals.get(phase, {}), other.signals.get(phase, {})
                    if signal == "logprobs":
                        whose = first if rule == SHARED else None
                        found[a, b, r] = position_distances(p, q, whose)
                    else:
                        found[a, b, r] = {at: key_distance(p[at], q[at]) for at in p if at in q}
        return found

    def together(self, a: int, b: int, r: int) -> int:
        """Generated tokens that two configs have in common before the first that differs."""
        one, other = (self.generations[self.labels[i], self.references[r]].generated_ids for i in (a, b))
        shared = min(len(one), len(other))
        differ = np.flatnonzero(one[:shared] != other[:shared])
        return int(differ[0]) if len(differ) else shared

    def per_reference(self, phase: str, signal: str = "logprobs", rule: str = OWN) -> Floats:
        """Mean over the positions of a pair that are not NaN: (config, config_b, reference)."""
        values_CCR = np.full((len(self.labels), len(self.labels), len(self.references)), np.nan)
        for index, rows in self.distances(phase, signal, rule).items():
            values_CCR[index] = finite_mean(list(rows.values()))
        return values_CCR


def signals_of(
    node: Node,
    phase: str,
    prompt: NDArray[np.int64],
    generated: NDArray[np.int64],
    attributes: dict[str, Any],
) -> Signals:
    """Rows by place from the end: ``pos_-3`` and so on, each ``logprobs`` of ``token_ids``, ``log_probs``.

    A row may lie under ``signals``, and may have ``key_vectors`` by layer. What is not known goes to the
    attributes.
    """
    limit = len(prompt if phase == "prefill" else generated)
    if phase == "decode" and not len(generated):
        raise QdxError(f"{node.path}: got rows of decode, expected generated_ids beside them: there are none")
    if len(node.mapping()) > MOST_POSITIONS:
        raise QdxError(
            f"{node.path}: got {len(node.mapping()):,} positions, limit {MOST_POSITIONS:,}: the original's "
            "files have three; leave positions out"
        )
    rows = {}
    for key, outer in node.items():
        match = POSITION.match(key)
        if match is None:
            attributes[outer.path] = outer.value
            continue
        from_end = int(match[1])
        if len(prompt) and -from_end > limit:
            raise QdxError(
                f"{node.path}.{key}: got a position before the first token, expected at most {limit} from "
                "the end"
            )
        inner = outer.get("signals")
        row = outer if inner is None else inner
        rows[from_end] = _row(row, attributes)
        if inner is not None:
            attributes |= outer.others("signals", "step", "absolute_position")
            if (stated := outer.get("absolute_position")) is not None and len(prompt):
                own = len(prompt) + limit + from_end - 1  # of the token that was put in, not of the predicted
                if stated.integer() != own:
                    stated.refuse(f"{own}, one before the predicted token")
    return rows


def _row(row: Node, attributes: dict[str, Any]) -> Row:
    listed = row["logprobs"]
    token_ids, log_probs = listed["token_ids"].integers(), listed["log_probs"].numbers()
    if not len(token_ids) or len(set(token_ids.tolist())) < len(token_ids):
        listed["token_ids"].refuse("one id or more, each once")
    if len(log_probs) != len(token_ids):
        raise QdxError(
            f"{listed.path}.log_probs: got {len(log_probs)} numbers, "
            f"expected {len(token_ids)}, one for each of token_ids"
        )
    keys = row.get("key_vectors")
    vectors = {} if keys is None else {layer: value.numbers() for layer, value in keys.items()}
    attributes |= {**row.others("logprobs", "key_vectors"), **listed.others("token_ids", "log_probs")}
    return Row(token_ids, log_probs, vectors)
