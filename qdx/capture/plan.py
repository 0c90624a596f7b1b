"""Decide which rows of which phase are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qdx.dataset.layout import PHASES, Producer, ReferenceLike
from qdx.errors import QdxError

Plan = Mapping[str, Sequence[NDArray[np.int32]]]
LEAST_TEMPERATURE = 0.01  # vLLM raises a smaller one to it (v1/worker/gpu/sample/gumbel.py)
SKETCH_SEED = 0  # of the sketch's matrix; sketches of different seeds are not comparable


def plan(
    references: Sequence[ReferenceLike],
    *,
    prefill_positions: int | str,
    output_tokens: int,
    producers: Sequence[Producer] = (),
) -> dict[str, list[NDArray[np.int32]]]:
    """List the positions whose rows are captured.

    A position is the index of the token that a row predicts: of a reference of length L the prefill's rows
    predict 1…L, of which L is the first output token; the step that consumes the first output token predicts
    L + 1.

    Parameters
    ----------
    references : sequence of Reference
    prefill_positions : int or "all"
        Last rows that predict content, from 0, clamped to the content's length; as
        `qdx.capture.CaptureSettings` has checked it.
    output_tokens : int
        Tokens generated after each reference, T.
    producers : sequence of Producer
        Whose transcripts are replayed, if any.

    Returns
    -------
    dict
        For every phase a list with the sorted int32 positions of every reference. ``prefill``: the
        template's, the last content positions and L; ``decode``: L + 1 … L + T − 1; ``replay``: the same,
        cut where the shared continuation ends (a row that consumes its token j predicts its token j + 1).
        With producers there is no ``decode``, and ``replay`` lists every reference of the first producer,
        then of the second, and so on, each as long as its transcript.

    Raises
    ------
    QdxError
        When `output_tokens` is under 1.
    """
    if output_tokens < 1:
        raise QdxError(f"generate.tokens is {output_tokens}: give 1 or more")
    planned: dict[str, list[NDArray[np.int32]]] = {phase: [] for phase in PHASES}
    for reference in references:
        length = len(reference.token_ids)
        start, end = reference.prefix_length, reference.prefix_length + reference.content_length
        last = end - start if isinstance(prefill_positions, str) else prefill_positions
        first = max(start, end - last)
        wanted = np.r_[1:start, max(first, 1) : end, max(end, 1) : length + 1]
        planned["prefill"].append(wanted.astype(np.int32))
        planned["decode"].append(np.arange(length + 1, length + output_tokens, dtype=np.int32))
        replayed = min(output_tokens, len(reference.continuation))
        planned["replay"].append(np.arange(length + 1, length + max(1, replayed), dtype=np.int32))
    if producers:
        lengths = [len(reference.token_ids) for reference in references]
        replays = [
            np.arange(length + 1, length + max(1, producer.length(i)), dtype=np.int32)
            for producer in producers
            for i, length in enumerate(lengths)
        ]
        return {"prefill": planned["prefill"], "replay": replays}
    return planned


def union(positions: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Return the sorted positions that any reference has."""
    return np.unique(np.concatenate([*positions, np.empty(0, np.int32)])).astype(np.int32)
