"""Log-probabilities as an engine prints them after temperature and truncation (``processed_logprobs``).

vLLM lists raw log-probabilities unless its server was started with ``--logprobs-mode``. Then it lists those
of the distribution that the token was drawn from: logits over temperature, with what min-p, top-k and top-p
cut off at −∞ (``vllm/v1/sample/sampler.py``: `sample` returns them after the truncation). JSON has no −∞, so
that −9999.0 stands for it, and what is cut off is not listed here.

A row of this library has its greatest logits, and of the drawn token its log-probability at the temperature
and what truncation keeps. From these follows what the row would have printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qdx.capture.plan import LEAST_TEMPERATURE
from qdx.records.decoding import MODES, PROCESSED, RAW
from qdx.statistics import Bools, Floats

__all__ = ["MODES", "PROCESSED", "RAW", "mode_of", "printed", "temperature_of", "unchanged"]

if TYPE_CHECKING:
    from qdx.verification.recorded import Recorded

_EDGE = 1e-9  # of a sum of probabilities: what is kept was summed in another order


def mode_of(record: Recorded, greedy: bool) -> str:
    """Return how the values that a record lists were made: `RAW`, `PROCESSED`, or why nobody can say.

    Parameters
    ----------
    record : Recorded
    greedy : bool
        Whether the record states plain greedy decoding.

    Examples
    --------
    >>> from qdx.verification.recorded import Recorded
    >>> mode_of(Recorded(), True), mode_of(Recorded(logprobs_mode="raw_logprobs"), False)
    ('raw_logprobs', 'raw_logprobs')
    """
    mode, ask = record.logprobs_mode, f"'prompts.assume={{logprobs_mode: {RAW}}}' or {PROCESSED} says which"
    if mode == RAW:
        return RAW
    if mode not in ("", PROCESSED):
        return f"the record lists {mode}, and {RAW} or {PROCESSED} of all answers can be compared"
    if greedy:
        if not mode:
            return RAW  # nothing is added to the logits, and nothing is cut off
        # An engine may cut off tokens of a greedy request that shares its batch with sampled ones.
        return f"the record lists {mode} of greedy answers, which may have been truncated: ask for {RAW}"
    if unchanged(record.samplers_RP):
        return RAW  # both are one
    if not mode:
        return (
            "the record does not state logprobs_mode, and its temperature or truncation may have changed "
            f"what it lists: {ask}"
        )
    return PROCESSED


def unchanged(samplers_RP: Floats) -> bool:
    """Whether temperature 1 without truncation draws from the raw distribution, so that modes are one."""
    known = samplers_RP[np.isfinite(samplers_RP).all(-1)]
    temperature, top_k, top_p, min_p = known.T
    return len(known) > 0 and bool(((temperature == 1) & (top_k <= 0) & (top_p == 1) & (min_p == 0)).all())


def temperature_of(record: Recorded | None, greedy: bool, references: int) -> Floats:
    """Return at which temperature each answer's listed values were made; NaN where they are raw ones.

    Parameters
    ----------
    record : Recorded or None
        None for a producer that qdx recorded.
    greedy : bool
    references : int

    Returns
    -------
    array (reference,)
    """
    if record is None or mode_of(record, greedy) != PROCESSED:
        return np.full(references, np.nan)
    return np.maximum(record.samplers_RP[:, 0], LEAST_TEMPERATURE)


def printed(
    greatest: Floats, own: Floats, own_logprob: Floats, kept: Floats, own_kept: Bools, temperature: Floats
) -> tuple[Floats, Floats]:
    """Return what a row would have printed after temperature and truncation.

    Parameters
    ----------
    greatest : array (…, rank)
        Greatest logits of each row, in falling order.
    own : array (…)
        Logit of the drawn token.
    own_logprob : array (…)
        Its log-probability at the temperature, before truncation, nat.
    kept : array (…)
        Probability, so, of the tokens that truncation keeps.
    own_kept : array of bool (…)
        Whether the drawn token is one of them.
    temperature : array (…)

    Returns
    -------
    greatest, own : array
        Log-probabilities, nat; −inf for what is cut off, NaN where there is no row.

    Examples
    --------
    Of the probabilities 0.5, 0.3 and 0.2 the first two are kept, and the second was drawn:

    >>> logits = np.log(np.array([0.5, 0.3, 0.2]))
    >>> top, own = printed(logits, logits[1], logits[1], np.array(0.8), np.array(True), np.array(1.0))
    >>> np.exp(top).round(3).tolist(), float(np.exp(own).round(3))
    ([0.625, 0.375, 0.0], 0.375)
    """
    total = own / temperature - own_logprob
    cold = greatest / temperature[..., None] - total[..., None]
    sums = np.exp(cold).cumsum(-1)
    inside = sums <= kept[..., None] * (1 + _EDGE)
    inside[..., 0] = True  # whatever is cut off, one token is kept
    rest = np.log(kept)
    head = np.where(inside, cold - rest[..., None], -np.inf)
    mine = np.where(own_kept, own_logprob - rest, -np.inf)
    return np.where(np.isfinite(cold), head, np.nan), np.where(np.isfinite(own_logprob), mine, np.nan)
