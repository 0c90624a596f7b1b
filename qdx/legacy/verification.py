"""Verification files of the original experiment: one machine's outputs compared on another."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr

from qdx.errors import QdxError
from qdx.legacy.distance import finite_mean
from qdx.legacy.reading import Node

PHASES = ("prefill", "decode")
KNOWN = ("ref_idx", "claimed_config", "verify_config", "is_diagonal", "prefill_distances", "decode_distances")
DIMS = ("producer", "config", "reference", "position_from_end")
_POSITION = re.compile(r"pos_(-[1-9]\d*)\Z")


def groups(root: Node) -> tuple[dict[str, xr.Dataset], list[str], dict[str, Any]]:
    """Check a verification file.

    Returns
    -------
    groups : dict
        ``metrics/seed_l2/<phase>``: ``seed_l2`` (producer, config, reference, position_from_end), the claimed
        config being the producer and the verifying one the config, and ``reference_mean`` (producer, config,
        reference), NaN where the file has infinity or nothing.
    said : list of str
    attributes : dict
        Everything else in the file, by path.

    Raises
    ------
    QdxError
        With the path of the bad key.
    """
    metadata = root["metadata"]
    attributes = {f"metadata.{key}": value for key, value in metadata.mapping().items()}
    attributes |= root.others("metadata", "comparisons")
    entries = root["comparisons"].entries()
    if not entries:
        root["comparisons"].refuse("at least one comparison")
    found: dict[tuple[str, str, int], dict[str, dict[int, float]]] = {}
    for entry in entries:
        claimed, verifier = entry["claimed_config"].text(), entry["verify_config"].text()
        reference, diagonal = entry["ref_idx"].integer(), entry["is_diagonal"]
        if diagonal.value is not (claimed == verifier):
            diagonal.refuse("true exactly where claimed_config and verify_config are the same")
        if (claimed, verifier, reference) in found:
            raise QdxError(
                f"{entry.path}: got {claimed} by {verifier} at ref_idx {reference} again, expected it once"
            )
        found[claimed, verifier, reference] = {
            phase: _values(entry[f"{phase}_distances"], attributes)
            for phase in PHASES
            if f"{phase}_distances" in entry.mapping()
        }
        attributes |= entry.others(*KNOWN)
    producers = list(dict.fromkeys(claimed for claimed, _, _ in found))
    configs = list(dict.fromkeys(verifier for _, verifier, _ in found))
    references = sorted({reference for _, _, reference in found})
    datasets = {}
    for phase in PHASES:
        positions = sorted({at for phases in found.values() for at in phases.get(phase, {})})
        shape = (len(producers), len(configs), len(references))
        values, means = np.full((*shape, len(positions)), np.nan), np.full(shape, np.nan)
        for (claimed, verifier, reference), phases in found.items():
            at = producers.index(claimed), configs.index(verifier), references.index(reference)
            finite = {p: v if np.isfinite(v) else np.nan for p, v in phases.get(phase, {}).items()}
            for position, value in finite.items():
                values[at][positions.index(position)] = value
            means[at] = finite_mean(list(finite.values()))
        facts = {"units": "nat", "higher_means": "less alike"}
        datasets[f"metrics/seed_l2/{phase}"] = xr.Dataset(
            {
                "seed_l2": (
                    DIMS,
                    values,
                    {**facts, "long_name": "distance of the claimed config's row and its verification"},
                ),
                "reference_mean": (
                    DIMS[:3],
                    means,
                    {**facts, "long_name": "mean over the positions that were measured"},
                ),
            },
            coords={
                "producer": producers,
                "config": configs,
                "reference": [f"ref_{r}" for r in references],
                "position_from_end": np.array(positions, np.int32),
            },
        )
    attributes |= {"labels": configs, "failed": {}, "missing": []}
    said = [
        f"verification of {len(producers)} claimed configs by {len(configs)}, {len(references)} references, "
        f"{len(found)} comparisons"
    ]
    return datasets, said, attributes


def _values(node: Node, attributes: dict[str, Any]) -> dict[int, float]:
    """Distances by position: an object of ``pos_-k``, a list that ends at −1, or one number (0: all)."""
    if isinstance(node.value, dict):
        found = {}
        for key, value in node.items():
            match = _POSITION.match(key)
            if match is None:
                attributes[value.path] = value.value
                continue
            found[int(match[1])] = value.number()
        return found
    if isinstance(node.value, list):
        values = node.entries()
        return {i - len(values): value.number() for i, value in enumerate(values)}
    return {0: node.number()}
