"""The original experiment's distance: L2 over the ids that two short lists happen to share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FIRST = 5


@dataclass(frozen=True)
class Row:
    """One position's list, in the order of the file.

    Attributes
    ----------
    token_ids : array (ids,) of int64
    log_probs : array (ids,) of float64
        Natural log-probabilities.
    """

    token_ids: NDArray[np.int64]
    log_probs: Floats


Signals = Mapping[int, Row]  # −3, −2, −1: counted from the end


def row_distance(a: Row, b: Row) -> float:
    """√ Σ (ln a_v − ln b_v)² over those of a's first five ids that b lists at all; NaN when none.

    Not symmetric: a list has five or six ids (the actual token is added when it is not among the first five),
    and b's sixth counts while a's does not.
    """
    listed = dict(zip(b.token_ids.tolist(), b.log_probs.tolist(), strict=True))
    pairs = zip(a.token_ids[:FIRST].tolist(), a.log_probs[:FIRST].tolist(), strict=True)
    shared = [value - listed[token] for token, value in pairs if token in listed]
    return float(np.sqrt(np.sum(np.square(shared)))) if shared else float("nan")


def position_distances(a: Signals, b: Signals) -> dict[int, float]:
    """`row_distance` at every position that both have."""
    return {position: row_distance(a[position], b[position]) for position in a if position in b}


def finite_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    measured = [value for value in values if not np.isnan(value)]
    return float(np.mean(measured)) if measured else float("nan")


def aggregate(per_reference_CCR: Floats) -> tuple[Floats, Floats]:
    """The original's matrix and its pair values.

    Parameters
    ----------
    per_reference_CCR : array (config, config_b, reference)

    Returns
    -------
    matrix_CC : array (config, config_b)
        Plain mean over references: NaN where one of them is (the original printed infinity).
    pair_CC : array (config, config_b)
        Mean of the two directions.
    """
    matrix_CC = per_reference_CCR.mean(-1)
    return matrix_CC, (matrix_CC + matrix_CC.T) / 2
