"""Files of the original experiment in which one key varies: batch sizes, tensor parallelism and the like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qdx.dataset.layout import OWN_PHASES
from qdx.errors import QdxError
from qdx.legacy.comparisons import label_of
from qdx.legacy.generations import same_prompts
from qdx.legacy.reading import Node, bounded, environment, word
from qdx.legacy.results import Generation, Results, signals_of

IDS = ("prompt_token_ids", "all_batch_generated_ids")  # of every element of the batch; the first is measured
ANALYSES = (*(f"{phase}_sanity_check" for phase in OWN_PHASES), "within_hardware_analysis")
RUN = ("ref_name", "ref_idx", "generated_ids", "prompt_length", "num_generated", *IDS)


def read(root: Node) -> Results:
    """Check a file of ``measurements`` over one key that ``metadata`` lists the values of.

    ``metadata.<X>s`` (``batch_sizes``, ``tp_sizes``) is a list. ``measurements`` is a list of objects with X
    and ``ref_name`` or ``ref_idx``, or an object from values of X to lists over references. Each measurement
    has ``prefill_signals`` or ``decode_signals``, and may have token ids, of every element of its batch.

    Raises
    ------
    QdxError
        With the path of the key that is not as the format says.
    """
    metadata = root["metadata"]
    key, values = _varying(metadata, root["measurements"])
    attributes: dict[str, Any] = {
        f"metadata.{k}": v for k, v in metadata.mapping().items() if k not in ("environment",)
    }
    attributes |= root.others("metadata", "measurements", *ANALYSES)
    generations: dict[tuple[str, Any], Generation] = {}
    neighbours = 0
    for value, reference, node in _runs(root["measurements"], key, values):
        label = label_of(key, value)
        if (label, reference) in generations:
            raise QdxError(f"{node.path}: got {label} at reference {reference} again, expected it once")
        generations[label, reference], others = _measurement(node, key, attributes)
        neighbours += others
    if not generations:
        root["measurements"].refuse("at least one measurement")
    labels = {label for label, _ in generations}
    ran = [value for value in values if label_of(key, value) in labels]
    references = sorted({reference for _, reference in generations}, key=lambda r: (isinstance(r, str), r))
    bounded("the table of measurements", len(ran), len(references))
    same_prompts(generations)
    machine, more = _machine(metadata)
    attributes |= more
    remarks = []
    if neighbours:
        remarks.append(f"token ids of the {neighbours:,} other elements of the batches are not kept")
    return Results(
        key=key,
        keys=ran,
        labels=[label_of(key, value) for value in ran],
        models={},
        references=references,
        generations=generations,
        environment=machine,
        attributes=attributes,
        without=[label_of(key, value) for value in values if value not in set(ran)],
        remarks=remarks,
    )


def _varying(metadata: Node, measurements: Node) -> tuple[str, list[Any]]:
    """The key that varies and its values: a list of the metadata whose singular the measurements have."""
    lists = {
        k.removesuffix("s"): value
        for k, value in metadata.items()
        if k.endswith("s") and isinstance(value.value, list) and value.value
    }
    if isinstance(measurements.value, dict):
        keys = [k for k, v in lists.items() if {str(e) for e in v.value} >= set(measurements.value)]
    else:
        entries = measurements.entries()
        if not entries:
            measurements.refuse("at least one measurement")
        keys = [k for k in lists if k in entries[0].mapping()]
    if len(keys) != 1:
        raise QdxError(
            f"metadata: got the lists {', '.join(f'{k}s' for k in lists) or 'of nothing'}, expected one, "
            "such as batch_sizes, whose values the measurements go over"
        )
    values = []
    for entry in lists[keys[0]].entries():
        values.append(entry.label() if isinstance(entry.value, str) else entry.integer())
    if len({label_of(keys[0], v) for v in values}) < len(values):
        lists[keys[0]].refuse("every value once")
    return word(keys[0], "metadata"), values


def _runs(node: Node, key: str, values: list[Any]) -> Iterator[tuple[Any, Any, Node]]:
    """Every measurement with its value of the key and its reference."""
    by_text = {str(value): value for value in values}
    if isinstance(node.value, dict):
        for text, runs in node.items():
            for r, run in enumerate(runs.entries()):
                yield by_text[text], r, run
        return
    known = set(values)
    for run in node.entries():
        value = run[key]
        if isinstance(value.value, list | dict) or value.value not in known:
            value.refuse(f"one of metadata.{key}s")
        if "ref_name" in run.mapping():
            yield value.value, run["ref_name"].label(), run
        else:
            yield value.value, run["ref_idx"].integer(), run


def _measurement(run: Node, key: str, attributes: dict[str, Any]) -> tuple[Generation, int]:
    """A measurement, and how many other elements its batch had."""
    prompt, generated, others = np.array([], np.int64), np.array([], np.int64), 0
    if (node := run.get("prompt_token_ids")) is not None:
        elements = node.entries()
        if not elements:
            node.refuse("the ids of one prompt or more")
        prompt, others = elements[0].integers(), len(elements) - 1
    if (node := run.get("generated_ids")) is not None:
        generated = node.integers()
    for count, ids in (("prompt_length", prompt), ("num_generated", generated)):
        if (node := run.get(count)) is not None and node.integer() != len(ids):
            node.refuse(f"{len(ids)}, the number of ids")
    signals = {
        phase: signals_of(node, phase, prompt, generated, attributes)
        for phase in OWN_PHASES
        if (node := run.get(f"{phase}_signals")) is not None
    }
    if not any(signals.values()):
        raise QdxError(
            f"{run.path}: got the keys {', '.join(list(run.mapping())[:12])}, expected prefill_signals or "
            "decode_signals with rows pos_-1 and so on"
        )
    attributes |= run.others(*RUN, key, *(f"{phase}_signals" for phase in OWN_PHASES))
    return Generation(prompt, generated, signals, run.path), others


def _machine(metadata: Node) -> tuple[dict[str, str], dict[str, Any]]:
    """Facts of the machine; of several environments those that agree, the rest as attributes."""
    if (node := metadata.get("environment")) is not None:
        return environment(node), {}
    node = metadata.get("environments")
    if node is None or not isinstance(node.value, dict):
        return {}, {}
    each = [environment(one) for _, one in node.items()]
    agreeing = {
        k: v for k, v in (each[0] if each else {}).items() if all(one.get(k) == v for one in each[1:])
    }
    return agreeing, {}
