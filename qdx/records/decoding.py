"""Write a record's decoding as text that `qdx.backends.sampling` judges, and say what it leaves open."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.dataset.arithmetic import canonical
from qdx.records.record import Sampling

# Value of each parameter with which it does nothing. What a record does not state is assumed to be this.
NEUTRAL: Mapping[str, Any] = {
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "min_tokens": 0,
}
# Of a greedy choice these change nothing, so nobody has to be asked for them.
HARMLESS_IF_GREEDY = ("top_p", "top_k", "min_p")
# How log-probabilities were listed, as vLLM calls it: before temperature, penalties and truncation, or after.
RAW, PROCESSED = "raw_logprobs", "processed_logprobs"
MODES = (RAW, PROCESSED)
LONGEST_NAME = 40  # characters of a request's field


@dataclass(frozen=True)
class Decoding:
    """Hold what is known of how an answer's tokens were chosen.

    Attributes
    ----------
    statement : str
        See `qdx.backends.sampling.plain_greedy`; "" where something has to be asked for.
    assumed : tuple of str
        Parameters that the record does not state and that are taken to do nothing.
    asked : tuple of str
        Parameters that the record does not state and that nobody can assume.
    unknown : tuple of str
        Fields of the request of which nobody knows what they do to the choice of tokens.
    """

    statement: str
    assumed: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def open(self) -> tuple[str, ...]:
        """Everything that has to be asked for, in words."""
        return (*self.asked, *(f"what {name} does" for name in self.unknown))

    @classmethod
    def of(cls, sampling: Sampling, defaults: Mapping[str, Any], harmless: Sequence[str] = ()) -> Decoding:
        """Read the sampling parameters of a record.

        Parameters
        ----------
        sampling : Sampling
        defaults : Mapping
            What the checkpoint's ``generation_config.json`` says: a server may take it for what a request
            does not state.
        harmless : sequence of str
            Fields of a request that no reader knows and that change no token, as the verifier says.
        """
        unknown = tuple(shown_name(name) for name in sampling.unknown if name not in harmless)
        if sampling.temperature is None:
            return cls("", (), ("temperature",), unknown)
        greedy = sampling.temperature == 0
        values: dict[str, Any] = {"temperature": sampling.temperature}
        assumed: list[str] = []
        asked: list[str] = []
        for name, neutral in NEUTRAL.items():
            stated = getattr(sampling, name)
            values[name] = neutral if stated is None else stated
            if stated is not None or (greedy and name in HARMLESS_IF_GREEDY):
                continue
            # Sampling settings of a checkpoint are in force at many servers unless a request says otherwise.
            (asked if defaults.get(name, neutral) not in (neutral, None) else assumed).append(name)
        if sampling.logit_bias is None:
            assumed.append("logit_bias")
        values |= {
            "method": "greedy" if greedy else "random",
            "logit_bias": {name: value for name, value in (sampling.logit_bias or {}).items() if value},
            "ignore_eos": bool(sampling.ignore_eos),
        }
        if sampling.restrictions:
            values["structured_outputs"] = ", ".join(sorted(sampling.restrictions))
        return cls("" if asked or unknown else canonical(values), tuple(assumed), tuple(asked), unknown)


def shown_name(name: str) -> str:
    """Return a field's name as a report shows it: in ASCII, on one line and not long."""
    return "".join(c if c.isascii() and c.isprintable() and c != "," else "?" for c in name[:LONGEST_NAME])


def of_all(decodings: Sequence[Decoding]) -> Decoding:
    """Return what is known of all answers of a provider together.

    Where they were not chosen in one way, the statement says so, and it is not a greedy one.
    """
    assumed = tuple(dict.fromkeys(name for one in decodings for name in one.assumed))
    asked = tuple(dict.fromkeys(name for one in decodings for name in one.asked))
    unknown = tuple(dict.fromkeys(name for one in decodings for name in one.unknown))
    statements = list(dict.fromkeys(one.statement for one in decodings))
    if asked or unknown:
        return Decoding("", assumed, asked, unknown)
    if len(statements) == 1:
        return Decoding(statements[0], assumed)
    values = [json.loads(text) for text in statements]
    merged: dict[str, Any] = {}
    for name in values[0]:
        seen = [one.get(name) for one in values]
        merged[name] = seen[0] if all(one == seen[0] for one in seen) else seen[:8]
    methods = {one["method"] for one in values}
    if methods == {"greedy"}:  # what differs among greedy ones is judged by the strictest of each
        merged = {name: _strictest(name, [one.get(name) for one in values]) for name in values[0]}
        if any("structured_outputs" in one for one in values):
            merged["structured_outputs"] = "of some answers"
    else:
        merged["method"] = "random"
    return Decoding(canonical(merged), assumed)


def _strictest(name: str, values: Sequence[Any]) -> Any:
    """The value that is furthest from doing nothing, where a statement has room for one."""
    neutral = NEUTRAL.get(name, {} if name == "logit_bias" else False if name == "ignore_eos" else None)
    other = [value for value in values if value != neutral]
    return other[0] if other else values[0]


def defaults_of(checkpoint: Path) -> dict[str, Any]:
    """Return what the ``generation_config.json`` of a checkpoint sets; nothing where there is none."""
    file = checkpoint / "generation_config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: values[name] for name in NEUTRAL if name in values} if isinstance(values, dict) else {}


def sampler_of(statement: str) -> tuple[float, float, float, float] | None:
    """Return temperature, top-k, top-p and min-p of an answer whose tokens were drawn by nothing else.

    Parameters
    ----------
    statement : str
        Of a `Decoding`; it may be a stranger's.

    Returns
    -------
    tuple of float or None
        None for a greedy choice, for penalties, biases and restrictions, which change the row before a token
        is drawn from it, and where something is not stated or makes no sense.

    Examples
    --------
    >>> sampler_of(Decoding.of(Sampling(temperature=0.7, top_p=0.9), {}).statement)
    (0.7, 0.0, 0.9, 0.0)
    """
    try:
        values = json.loads(statement)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("method") != "random":
        return None
    drawn = ("temperature", "top_k", "top_p", "min_p")
    others = {name: value for name, value in NEUTRAL.items() if name not in drawn} | {"logit_bias": {}}
    if values.keys() - {*drawn, *others, "method", "ignore_eos"}:
        return None
    if any(values.get(name) != value for name, value in others.items()):
        return None
    found = [values.get(name) for name in drawn]
    numbers = [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(drawn):
        return None
    temperature, top_k, top_p, min_p = numbers
    good = (
        0 < temperature < math.inf
        and top_k.is_integer()
        and top_k >= -1
        and 0 < top_p <= 1
        and 0 <= min_p < 1
    )
    return (temperature, top_k, top_p, min_p) if good else None


def samplers_of(statements: Iterable[object]) -> NDArray[np.float64]:
    """Return `sampler_of` of every answer, (answer, 4); NaN where it is None."""
    nothing = (math.nan,) * 4
    return np.array([sampler_of(str(one)) or nothing for one in statements], np.float64).reshape(-1, 4)
