"""The original experiment's distances: L2 over the ids that two short lists share, and of key vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FIRST = 5
OWN, SHARED = "own", "first config's"  # whose first five ids are compared; see `row_distance`
RULES = (OWN, SHARED)


@dataclass(frozen=True)
class Row:
    """One position's list, in the order of the file.

    Attributes
    ----------
    token_ids : array (ids,) of int64
    log_probs : array (ids,) of float64
        Natural log-probabilities.
    key_vectors : Mapping of str to array (component,)
        By layer; empty where the file has none.
    """

    token_ids: NDArray[np.int64]
    log_probs: Floats
    key_vectors: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def listed(self) -> dict[int, float]:
        """Log-probability by id."""
        return dict(zip(self.token_ids.tolist(), self.log_probs.tolist(), strict=True))


Signals = Mapping[int, Row]  # −3, −2, −1: counted from the end


def row_distance(a: Row, b: Row, whose: Row | None = None) -> float:
    """√ Σ (ln a_v − ln b_v)² over some first five ids that a and b both list; NaN where they list none.

    Parameters
    ----------
    a, b : Row
    whose : Row, optional
        Whose first five ids they are. Default: a's, as the files of formats and of Transformers have it. It
        is then not symmetric: a list has five or six ids (the actual token is added when it is not among the
        first five), and b's sixth counts while a's does not. vLLM's batch sizes and tensor parallelism were
        compared at the first config's ids.
    """
    of_a, of_b = a.listed, b.listed
    ids = (a if whose is None else whose).token_ids[:FIRST].tolist()
    shared = [of_a[token] - of_b[token] for token in ids if token in of_a and token in of_b]
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(np.square(shared)))) if shared else float("nan")


def key_distance(a: Row, b: Row) -> float:
    """Mean over the layers that both have of the L2 of their key vectors; NaN where they share none."""
    found = []
    for layer, values in a.key_vectors.items():
        if layer in b.key_vectors and len(values) == len(b.key_vectors[layer]):
            found.append(float(np.linalg.norm(values - b.key_vectors[layer])))
    return float(np.mean(found)) if found else float("nan")


def position_distances(a: Signals, b: Signals, whose: Signals | None = None) -> dict[int, float]:
    """`row_distance` at every position that both have."""
    return {
        position: row_distance(a[position], b[position], None if whose is None else whose.get(position))
        for position in a
        if position in b
    }


def finite_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    measured = [value for value in values if not np.isnan(value)]
    return float(np.mean(measured)) if measured else float("nan")
