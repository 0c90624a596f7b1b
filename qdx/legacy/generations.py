"""Result files of the original experiment: ``generations`` of each quantization on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qdx.dataset.layout import OWN_PHASES
from qdx.errors import QdxError
from qdx.legacy.reading import Node, bounded, environment, name
from qdx.legacy.results import Generation, Results, signals_of

FACTS = ("model_name", "quantization", "dtype")


def read(root: Node) -> Results:
    """Check a result file.

    Raises
    ------
    QdxError
        With the path of the key that is not as the format says.
    """
    metadata = root["metadata"]
    models, attributes = _models(metadata["model_configs"])
    described = metadata.get("environment")
    machine = {} if described is None else environment(described)
    attributes |= {
        f"metadata.{key}": value
        for key, value in metadata.mapping().items()
        if key not in ("environment", "model_configs")
    }
    generations: dict[tuple[str, Any], Generation] = {}
    for label, runs in root["generations"].items():
        if label not in models:
            raise QdxError(
                f"{runs.path}: got a config that metadata.model_configs lacks, "
                f"expected one of {', '.join(list(models)[:20]) or 'none'}"
            )
        for run in runs.entries():
            reference = run["ref_idx"].integer()
            if (label, reference) in generations:
                run["ref_idx"].refuse("a reference that this config has not had yet")
            generations[label, reference] = _generation(run, attributes)
    ran = dict.fromkeys(label for label, _ in generations)
    if not ran:
        root["generations"].refuse("at least one config with a generation")
    references = sorted({reference for _, reference in generations})
    bounded("the table of generations", len(ran), len(references))
    same_prompts(generations)
    known = ("metadata", "generations", *(f"{phase}_sanity_check" for phase in OWN_PHASES))
    attributes |= root.others(*known)
    return Results(
        key="config",
        keys=list(ran),
        labels=list(ran),
        models={label: models[label] for label in ran},
        references=references,
        generations=generations,
        environment=machine,
        attributes=attributes,
        without=[label for label in models if label not in ran],
    )


def _models(node: Node) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    models: dict[str, dict[str, str]] = {}
    unknown: dict[str, Any] = {}
    for label, facts in node.items():
        name(label, node.path)
        known = {key: facts[key] for key in FACTS}
        models[label] = {
            key: "none" if key == "quantization" and value.value is None else value.text()
            for key, value in known.items()
        }
        unknown |= facts.others(*known)
    return models, unknown


def _generation(run: Node, attributes: dict[str, Any]) -> Generation:
    ids = {part: run[f"{part}_ids"].integers() for part in ("prompt", "generated")}
    for part, count in (("prompt", "prompt_length"), ("generated", "num_generated")):
        if run[count].integer() != len(ids[part]):
            run[count].refuse(f"{len(ids[part])}, the length of {part}_ids")
    signals = {
        phase: signals_of(run[f"{phase}_signals"], phase, ids["prompt"], ids["generated"], attributes)
        for phase in OWN_PHASES
    }
    attributes |= run.others(
        "ref_idx", "prompt_ids", "generated_ids", "prompt_length", "num_generated",
        *(f"{phase}_signals" for phase in OWN_PHASES),
    )  # fmt: skip
    return Generation(ids["prompt"], ids["generated"], signals, run.path)


def same_prompts(generations: Mapping[tuple[str, Any], Generation]) -> None:
    """Refuse references whose prompts differ between configs."""
    first: dict[Any, tuple[str, Generation]] = {}
    for (label, reference), run in generations.items():
        other, one = first.setdefault(reference, (label, run))
        if not np.array_equal(run.prompt_ids, one.prompt_ids):
            which = f"ref_idx {reference}" if isinstance(reference, int) else reference
            raise QdxError(
                f"{run.path}.prompt_ids: got other ids than {other} has at {which}, "
                "expected the same prompt for every config"
            )
