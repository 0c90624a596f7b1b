"""Files of the original experiment that hold only what it made of its distances: matrices over configs."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from qdx.dataset.layout import OWN_PHASES
from qdx.errors import QdxError
from qdx.legacy.analyses import Analysis, analyse
from qdx.legacy.comparisons import Axes, analysis_dataset, label_of
from qdx.legacy.imported import Imported, facts_of, metric_of
from qdx.legacy.ledger import Ledger
from qdx.legacy.reading import Node, few, word
from qdx.legacy.results import SIGNALS

ACROSS, WITHIN = ("cross_hardware", "cross_hardware_analysis"), "within_hardware_analysis"
KEYS = (*ACROSS, WITHIN)
WHY = "the rows that it was computed from are in another file"


def read(root: Node) -> Imported:
    """Check a file of matrices.

    ``cross_hardware`` (by phase), ``cross_hardware_analysis`` and ``within_hardware_analysis`` (of prefill)
    hold a matrix over configs, and may hold one for each reference. The configs are a list of the metadata,
    such as ``tp_sizes``, or the names of its ``reference_environments``.

    Returns
    -------
    Imported
        ``metrics/<metric>/<phase>`` (producer, config, reference) where the file has a matrix for each
        reference across two machines; ``analysis/legacy/<phase>/<key>/<metric>`` for every analysis.

    Raises
    ------
    QdxError
        With the path of the bad key.
    """
    metadata = root["metadata"]
    attributes: dict[str, Any] = {f"metadata.{key}": value for key, value in metadata.mapping().items()}
    attributes |= root.others("metadata")
    ledger, found, numbers = Ledger(), dict[str, xr.Dataset](), 0
    labels: list[str] = []
    for key in KEYS:
        if (node := root.get(key)) is None:
            continue
        by_phase = {p: node[p] for p in OWN_PHASES if p in node.mapping()} or {"prefill": node}
        for phase, of in by_phase.items():
            axes = _axes(metadata, of)
            labels = axes.labels(axes.configs)
            signals = [s for s in SIGNALS if _has(of, s)]
            for signal in signals:
                first = signal == "key_vectors" or "key_vectors" not in signals
                made = analyse(of, signal, None, labels, axes.configs, ledger, first=first, why=WHY)
                if made is None:
                    continue
                numbers += int(np.isfinite(made.matrix_PC).sum())
                axes = _with_references(axes, made)
                metric = metric_of(signal)
                found[f"analysis/legacy/{phase}/{key}/{metric}"] = analysis_dataset(made, axes, signal)
                if key in ACROSS and made.per_reference_PCR is not None:
                    found[f"metrics/{metric}/{phase}"] = _metric(made, axes, signal)
    if not found:
        keys = ", ".join(key for key in KEYS if key in root.mapping())
        raise QdxError(f"{keys}: got no matrix, expected matrix, key_matrix or logprob_matrix")
    count = sum(dataset.sizes.get("reference", 0) > 0 for dataset in found.values())
    said = [
        f"matrices: {len(labels)} configs, {numbers:,} numbers read; {count} of {len(found)} analyses have a "
        "matrix for each reference; the file has no rows and no distances of positions"
    ]
    facts = {"labels": labels, "failed": {}, "missing": []}
    return Imported("matrices", found, said, attributes, ledger, numbers, facts)


def _has(node: Node, signal: str) -> bool:
    short = {"logprobs": "logprob", "key_vectors": "key"}[signal]
    return f"{short}_matrix" in node.mapping() or (signal == "logprobs" and "matrix" in node.mapping())


def _axes(metadata: Node, node: Node) -> Axes:
    """The configs of a matrix: a list of the metadata, or the names of the environments, of its size."""
    size = max(
        (len(v) for k, v in node.mapping().items() if k.endswith("matrix") and isinstance(v, list)), default=0
    )
    few(size)
    for key, value in metadata.items():
        if key.endswith("s") and isinstance(value.value, list) and len(value.value) == size and size:
            keys: list[Any] = [
                v.label() if isinstance(v.value, str) else v.integer() for v in value.entries()
            ]
            return Axes(word(key.removesuffix("s"), metadata.path), keys, keys, [])
    for key in ("reference_environments", "verifier_environments", "environments"):
        value_of = metadata.get(key)
        if value_of is not None and isinstance(value_of.value, dict) and len(value_of.value) == size:
            names = [Node(name, value_of.path).label() for name in value_of.value]
            return Axes("config", names, names, [])
    raise QdxError(
        f"{node.path}: got a matrix of {size} rows, expected a list of so many configs in metadata, or "
        "reference_environments with so many names"
    )


def _with_references(axes: Axes, made: Analysis) -> Axes:
    count = 0 if made.per_reference_PCR is None else made.per_reference_PCR.shape[-1]
    return Axes(axes.key, axes.producers, axes.configs, list(range(count)))


def _metric(made: Analysis, axes: Axes, signal: str) -> xr.Dataset:
    labels = [label_of(axes.key, value) for value in axes.configs]
    return xr.Dataset(
        {metric_of(signal): (("producer", "config", "reference"), made.per_reference_PCR, facts_of(signal))},
        coords={"producer": labels, "config": labels, "reference": [f"ref_{r}" for r in axes.references]},
    )
