"""The original's analyses computed again from its distances, whatever its scripts named them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdx.legacy.ledger import Ledger
from qdx.legacy.reading import Floats, Node

EQUIVALENT = 1e-9  # the original's threshold: a mean distance below it counts as equal
SHORT = {"logprobs": "logprob", "key_vectors": "key"}  # as names of matrices have it
# What each quantity is called: {signal} is logprobs or key_vectors, {short} logprob or key. Names without
# either belong to the signal that `Analysis.first` marks.
NAMES = {
    "each": ("per_reference_{short}_matrices", "per_reference_matrices"),
    "matrix": ("{signal}.matrix", "matrices.{signal}", "{short}_matrix", "matrix"),
    "diagonal": (
        "{signal}.baseline_mean", "{signal}.diagonal_mean", "diagonal_{short}", "baseline_mean", "diagonal",
    ),
    "off_diagonal": (
        "{signal}.signal_all_mean", "{signal}.off_diagonal_mean", "off_diagonal_{short}", "signal_all_mean",
        "off_diagonal", "off_diagonal_mean",
    ),
    "meaningful": ("{signal}.signal_meaningful_mean", "signal_meaningful_mean"),
    "snr": ("{signal}.snr_all", "{signal}.snr", "{short}_snr", "snr_all", "snr"),
    "snr_meaningful": ("{signal}.snr_meaningful", "snr_meaningful"),
    "upper": ("{signal}_mean",),
    "range": ("off_diagonal_range",),
    "meaningful_cells": ("{signal}.n_meaningful_pairs", "n_meaningful_pairs"),
    "excluded_cells": ("n_excluded_cells",),
    "excluded": ("excluded_pairs",),
    "equivalent": ("equivalent_pairs",),
    "classes": ("kernel_classes",),
    "pairwise_snr": ("pairwise_snr",),
    "pairwise": ("pairwise_distances",),
}  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """Hold what was recomputed of one analysis and one signal.

    Attributes
    ----------
    per_reference_PCR : array (producer, config, reference) or None
        Distances; the file's own matrices where it has no distances.
    matrix_PC : array (producer, config)
        Plain mean over references: NaN where one of them is.
    stated_each_PCR, stated_matrix_PC : array or None
        As the file has them; NaN where it has infinity.
    summary : dict
        ``diagonal``, ``off_diagonal``, ``meaningful``, ``snr``, ``snr_meaningful``.
    """

    per_reference_PCR: Floats | None
    matrix_PC: Floats
    stated_each_PCR: Floats | None
    stated_matrix_PC: Floats | None
    summary: dict[str, float]


def analyse(
    node: Node,
    signal: str,
    per_reference_PCR: Floats | None,
    labels: Sequence[str],
    keys: Sequence[Any],
    ledger: Ledger,
    *,
    first: bool = True,
    excluded: Collection[tuple[Any, Any]] = (),
    why: str = "",
) -> Analysis | None:
    """Recompute one analysis of a file and compare every number that it states.

    Parameters
    ----------
    node : Node
        The analysis.
    signal : "logprobs", "key_vectors" or another
    per_reference_PCR : array (producer, config, reference) or None
        Computed or listed distances, rows and columns in the order of labels. None: the file has only
        matrices, and the mean over references, ratios and counts are computed from these.
    labels : sequence of str
        As in the imported file.
    keys : sequence
        The same as the file has them in its pairs and classes: texts or numbers.
    ledger : Ledger
        Takes every comparison.
    first : bool
        Whether names that do not say a signal belong to this one.
    excluded : collection of pairs of keys
        Which the file leaves out of its "meaningful" mean; of its own ``excluded_pairs`` where it has them.
    why : str
        What lets nothing be computed, for the notes.

    Returns
    -------
    Analysis or None
        None where the node states neither a matrix of this signal nor are there distances.
    """
    found = {
        quantity: _first(
            node, [n.format(signal=signal, short=SHORT.get(signal, signal)) for n in names], first
        )
        for quantity, names in NAMES.items()
    }
    each, matrix = found["each"], found["matrix"]
    stated_each = None if each is None else _each(each, labels)
    stated_matrix = None if matrix is None else matrix.square(labels)
    own = per_reference_PCR
    if own is not None and stated_each is not None and each is not None:
        if stated_each.shape == own.shape:
            ledger.compare(each.path, stated_each, own)
        else:
            each.refuse(f"{own.shape[-1]} matrices, one for each reference")
    elif stated_each is not None and each is not None:
        own = _finite(stated_each)
        ledger.cannot(each.path, own.size, why or "the file does not hold what they were computed from")
    if own is not None:
        matrix_PC = own.mean(-1)
        if stated_matrix is not None and matrix is not None:
            ledger.compare(matrix.path, stated_matrix, matrix_PC)
    elif stated_matrix is not None and matrix is not None:
        matrix_PC = _finite(stated_matrix)
        ledger.cannot(matrix.path, matrix_PC.size, why or "the file does not hold what it was computed from")
    else:
        return None
    pairs = found["excluded"]
    if pairs is not None:
        listed = _pairs(pairs)
        if excluded:
            ledger.same(pairs.path, listed == _both(excluded), "compared with the metadata's pairs")
        excluded = listed
    summary = _summarise(matrix_PC, keys, _both(excluded))
    _compare_summary(found, summary, ledger)
    _compare_cells(found, matrix_PC, labels, keys, _both(excluded), ledger)
    return Analysis(
        own,
        matrix_PC,
        None if stated_each is None else _finite(stated_each),
        None if stated_matrix is None else _finite(stated_matrix),
        summary,
    )


def _first(node: Node, names: Sequence[str], first: bool) -> Node | None:
    """The first of the names that the node has; a plain name only where it belongs to this signal."""
    for pattern in names:
        shared = pattern in {name for of in NAMES.values() for name in of if "{" not in name}
        if (first or not shared) and (found := node.find(pattern)) is not None:
            return found
    return None


def _each(node: Node, labels: Sequence[str]) -> Floats:
    entries = [entry for _, entry in node.items()] if isinstance(node.value, dict) else node.entries()
    if not entries:
        node.refuse("one matrix or more")
    return np.stack([entry.square(labels) for entry in entries], -1)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _pairs(node: Node) -> set[tuple[Any, Any]]:
    found = set()
    for entry in node.entries():
        a, b = entry.entries(2)
        for end in (a, b):
            if isinstance(end.value, list | dict):
                end.refuse("the name or the number of a config")
        found.add((a.value, b.value))
    return _both(found)


def _both(pairs: Collection[tuple[Any, Any]]) -> set[tuple[Any, Any]]:
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


def _cells(keys: Sequence[Any], excluded: Collection[tuple[Any, Any]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Cells off the diagonal, and of these the ones that are not excluded."""
    off = ~np.eye(len(keys), dtype=bool)
    for i, a in enumerate(keys):
        for j, b in enumerate(keys):
            off[i, j] &= (a, b) not in excluded
    return off


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")


def _ratio(signal: float, noise: float) -> float:
    if noise == 0 and signal > 0:
        return float("inf")
    return signal / noise if noise else float("nan")


def _summarise(
    matrix_PC: Floats, keys: Sequence[Any], excluded: Collection[tuple[Any, Any]]
) -> dict[str, float]:
    diagonal = _mean(np.diag(matrix_PC))
    off = _mean(matrix_PC[_cells(keys, ())])
    meaningful = _mean(matrix_PC[_cells(keys, excluded)])
    return {
        "diagonal": diagonal,
        "off_diagonal": off,
        "meaningful": meaningful,
        "snr": _ratio(off, diagonal),
        "snr_meaningful": _ratio(meaningful, diagonal),
    }


def _compare_summary(found: dict[str, Node | None], summary: dict[str, float], ledger: Ledger) -> None:
    matrix = found["matrix"]
    for quantity, value in summary.items():
        node = found[quantity]
        if node is None:
            continue
        stated = float("inf") if node.value is None else node.number()  # a script wrote null for infinity
        note = ""
        if np.isnan(value) and quantity == "off_diagonal" and matrix is not None:
            value, note = _of_finite(np.array(matrix.value, float)), "mean of the cells that are finite"
        if np.isnan(value):
            note = "no cell is left, or one of them was not measured"
        ledger.compare(node.path, stated, value, note)


def _of_finite(matrix: Floats) -> float:
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    return _mean(off[np.isfinite(off)])


def _compare_cells(
    found: dict[str, Node | None],
    matrix_PC: Floats,
    labels: Sequence[str],
    keys: Sequence[Any],
    excluded: Collection[tuple[Any, Any]],
    ledger: Ledger,
) -> None:
    """Compare what a file lists of pairs of configs, and counts of cells."""
    upper = matrix_PC[np.triu_indices(len(labels), 1)]
    if (node := found["upper"]) is not None and not isinstance(node.value, dict):
        ledger.compare(node.path, node.number(), _mean(upper[np.isfinite(upper)]))
    if (node := found["range"]) is not None:
        ends = [float(upper.min()), float(upper.max())] if upper.size else [float("nan")] * 2
        ledger.compare(node.path, [end.number() for end in node.entries(2)], ends)
    left = int(_cells(keys, excluded).sum())
    if (node := found["meaningful_cells"]) is not None:
        ledger.compare(node.path, node.number(), left)
    if (node := found["excluded_cells"]) is not None:
        ledger.compare(node.path, node.number(), len(keys) * (len(keys) - 1) - left)
    equal = [
        (keys[i], keys[j])
        for i in range(len(keys))
        for j in range(i + 1, len(keys))
        if matrix_PC[i, j] < EQUIVALENT
    ]
    if (node := found["equivalent"]) is not None:
        ledger.same(node.path, _pairs(node) == _both(equal))
    if (node := found["classes"]) is not None:
        stated = [[end.value for end in entry.entries()] for entry in node.entries()]
        ledger.same(
            node.path, sorted(sorted(map(str, members)) for members in stated) == _classes(keys, equal)
        )
    between = {f"{labels[i]}_vs_{labels[j]}": (i, j) for i in range(len(labels)) for j in range(len(labels))}
    if (node := found["pairwise"]) is not None:
        for pair, value in node.items():
            if pair in between:
                i, j = between[pair]
                ledger.compare(value.path, value.number(), (matrix_PC[i, j] + matrix_PC[j, i]) / 2)
    if (node := found["pairwise_snr"]) is not None:
        for pair, stated_of in node.items():
            if pair in between:
                i, j = between[pair]
                signal = float(matrix_PC[i, j] + matrix_PC[j, i]) / 2
                noise = float(matrix_PC[i, i] + matrix_PC[j, j]) / 2
                own = {"signal": signal, "noise_floor": noise, "snr": _ratio(signal, noise)}
                for quantity, computed in own.items():
                    if (at := stated_of.get(quantity)) is not None:
                        ledger.compare(at.path, float("inf") if at.value is None else at.number(), computed)


def _classes(keys: Sequence[Any], equal: Sequence[tuple[Any, Any]]) -> list[list[str]]:
    """Configs joined by pairs that count as equal, as sorted texts."""
    of = {key: {str(key)} for key in keys}
    for a, b in equal:
        if of[a] is not of[b]:
            joined = of[a] | of[b]
            for key in keys:
                if str(key) in joined:
                    of[key] = joined
    return sorted(sorted(members) for members in {id(m): m for m in of.values()}.values())
