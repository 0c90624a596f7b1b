"""What a result file of the original experiment holds, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError
from qdx.legacy.distance import Row, Signals, finite_mean, position_distances
from qdx.legacy.reading import Floats, Node

PHASES = ("prefill", "decode")
_POSITION = re.compile(r"pos_(-[1-9]\d*)\Z")
METADATA = (
    "environment",
    "model_configs",
    "max_new_tokens",
    "tokens_per_slice",
    "num_references",
    "top_k_logprobs",
    "timestamp",
)
CHECK = (
    "matrix",
    "per_reference_matrices",
    "off_diagonal_mean",
    "equivalent_pairs",
    "kernel_classes",
    "pairwise_distances",
)


@dataclass(frozen=True)
class Generation:
    """One config's output for one reference."""

    prompt_ids: NDArray[np.int64]
    generated_ids: NDArray[np.int64]
    signals: Mapping[str, Signals]  # by phase
    path: str  # in the file

    def position(self, phase: str, from_end: int) -> int:
        """Index, from the start of the reference, of the token that a row predicts."""
        end = len(self.prompt_ids) + (len(self.generated_ids) if phase == "decode" else 0)
        return end + from_end


@dataclass(frozen=True)
class Check:
    """Matrices that the file itself prints for a phase; NaN where it has infinity."""

    per_reference_CCR: Floats | None
    matrix_CC: Floats | None
    kept: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """A result file.

    Attributes
    ----------
    models : Mapping of str to Mapping
        Config → model_name, quantization, dtype, as in the file; those that generated something.
    without : list of str
        Configs of the metadata that generated nothing.
    references : list of int
    generations : Mapping of (config, reference) to Generation
    checks : Mapping of phase to Check
    noise : Mapping of phase to Mapping of config to float
    attributes : Mapping of str to Any
        Everything else, known or not, by path.
    """

    models: Mapping[str, Mapping[str, str]]
    without: list[str]
    references: list[int]
    generations: Mapping[tuple[str, int], Generation]
    checks: Mapping[str, Check]
    noise: Mapping[str, Mapping[str, float]]
    environment: Mapping[str, str]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Configs that generated something, in the order of the file."""
        return list(self.models)

    def distances(self, phase: str) -> dict[tuple[int, int, int], dict[int, float]]:
        """(config, config_b, reference) → position from the end → `row_distance`."""
        found = {}
        for a, first in enumerate(self.labels):
            for b, second in enumerate(self.labels):
                for r, reference in enumerate(self.references):
                    p, q = (self.generations.get((label, reference)) for label in (first, second))
                    if p is not None and q is not None:
                        found[a, b, r] = position_distances(p.signals[phase], q.signals[phase])
        return found

    def per_reference(self, phase: str) -> Floats:
        """Mean over the positions of a pair that are not NaN: (config, config_b, reference)."""
        values_CCR = np.full((len(self.labels), len(self.labels), len(self.references)), np.nan)
        for index, rows in self.distances(phase).items():
            values_CCR[index] = finite_mean(list(rows.values()))
        return values_CCR


def read(root: Node) -> Results:
    """Check a result file.

    Raises
    ------
    QdxError
        With the path of the key that is not as the format says.
    """
    metadata = root["metadata"]
    models, attributes = _models(metadata["model_configs"])
    environment: dict[str, str] = {}
    described = metadata.get("environment")
    if described is not None:
        environment = {key: _plain(node.value) for key, node in described.items()}
    attributes |= {
        f"metadata.{key}": value for key, value in metadata.mapping().items() if key not in METADATA[:2]
    }
    generations: dict[tuple[str, int], Generation] = {}
    for label, runs in root["generations"].items():
        if label not in models:
            raise QdxError(
                f"{runs.path}: got a config that metadata.model_configs lacks, "
                f"expected one of {', '.join(models) or 'none'}"
            )
        for run in runs.entries():
            reference = run["ref_idx"].integer()
            if (label, reference) in generations:
                run["ref_idx"].refuse("a reference that this config has not had yet")
            generations[label, reference] = _generation(run, attributes)
    ran = [label for label in models if any(label == own for own, _ in generations)]
    order = [label for label in root["generations"].mapping() if label in ran]
    if not order:
        root["generations"].refuse("at least one config with a generation")
    references = sorted({reference for _, reference in generations})
    _same_prompts(order, references, generations)
    checks = {}
    for phase in PHASES:
        node = root.get(f"{phase}_sanity_check")
        if node is not None:
            checks[phase] = _check(node, order, references, attributes)
    noise: dict[str, dict[str, float]] = {phase: {} for phase in PHASES}
    floors = root.get("noise_floors")
    for label, floor in floors.items() if floors is not None else ():
        attributes |= floor.others(*PHASES)
        for phase in PHASES:
            value = floor.get(phase)
            if value is not None:
                noise[phase][label] = value.number()
    known = ("metadata", "generations", "prefill_sanity_check", "decode_sanity_check", "noise_floors")
    attributes |= root.others(*known)
    return Results(
        {label: models[label] for label in order},
        [label for label in models if label not in order],
        references,
        generations,
        checks,
        noise,
        environment,
        attributes,
    )


def _models(node: Node) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    models: dict[str, dict[str, str]] = {}
    unknown: dict[str, Any] = {}
    for label, facts in node.items():
        if not label or "/" in label:
            raise QdxError(
                f"{node.path}: got the name {label!r}, expected one without a slash that is not empty"
            )
        known = {name: facts[name] for name in ("model_name", "quantization", "dtype")}
        models[label] = {
            name: "none" if name == "quantization" and value.value is None else value.text()
            for name, value in known.items()
        }
        unknown |= facts.others(*known)
    return models, unknown


def _generation(run: Node, attributes: dict[str, Any]) -> Generation:
    ids = {name: run[f"{name}_ids"].integers() for name in ("prompt", "generated")}
    for name, count in (("prompt", "prompt_length"), ("generated", "num_generated")):
        if run[count].integer() != len(ids[name]):
            run[count].refuse(f"{len(ids[name])}, the length of {name}_ids")
    signals = {phase: _signals(run[f"{phase}_signals"], attributes) for phase in PHASES}
    for phase, rows in signals.items():
        limit = len(ids["prompt"] if phase == "prefill" else ids["generated"])
        for position in rows:
            if -position > limit:
                raise QdxError(
                    f"{run.path}.{phase}_signals.pos_{position}: got a position before the first token, "
                    f"expected at most {limit} from the end"
                )
    attributes |= run.others(
        "ref_idx", "prompt_ids", "generated_ids", "prompt_length", "num_generated",
        *(f"{phase}_signals" for phase in PHASES),
    )  # fmt: skip
    return Generation(ids["prompt"], ids["generated"], signals, run.path)


def _signals(node: Node, attributes: dict[str, Any]) -> dict[int, Row]:
    rows = {}
    for key, row in node.items():
        match = _POSITION.match(key)
        if match is None:
            attributes[row.path] = row.value
            continue
        listed = row["logprobs"]
        token_ids, log_probs = listed["token_ids"].integers(), listed["log_probs"].numbers()
        if not len(token_ids) or len(set(token_ids.tolist())) < len(token_ids):
            listed["token_ids"].refuse("one id or more, each once")
        if len(log_probs) != len(token_ids):
            raise QdxError(
                f"{listed.path}.log_probs: got {len(log_probs)} numbers, "
                f"expected {len(token_ids)}, one for each of token_ids"
            )
        attributes |= {**row.others("logprobs"), **listed.others("token_ids", "log_probs")}
        rows[int(match[1])] = Row(token_ids, log_probs)
    return rows


def _same_prompts(
    labels: list[str], references: list[int], generations: Mapping[tuple[str, int], Generation]
) -> None:
    for reference in references:
        prompts = {
            label: generations[label, reference] for label in labels if (label, reference) in generations
        }
        first = next(iter(prompts))
        for run in prompts.values():
            if not np.array_equal(run.prompt_ids, prompts[first].prompt_ids):
                raise QdxError(
                    f"{run.path}.prompt_ids: got other ids than {first} has at ref_idx {reference}, "
                    "expected the same prompt for every config"
                )


def _check(node: Node, labels: list[str], references: list[int], attributes: dict[str, Any]) -> Check:
    each, matrix = node.get("per_reference_matrices"), node.get("matrix")
    per_reference_CCR = None
    if each is not None:
        if isinstance(each.value, dict):
            entries = [entry for _, entry in each.items()]
            if len(entries) != len(references):
                raise QdxError(f"{each.path}: got {len(entries)} matrices, expected {len(references)}")
        else:
            entries = each.entries(len(references))
        per_reference_CCR = _finite(np.stack([entry.square(labels) for entry in entries], -1))
    attributes |= {
        f"{node.path}.{key}": value for key, value in node.mapping().items() if key not in CHECK[:2]
    }
    kept = {key: node[key].value for key in CHECK[2:] if key in node.mapping()}
    return Check(per_reference_CCR, None if matrix is None else _finite(matrix.square(labels)), kept)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
