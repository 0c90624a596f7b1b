"""Write an engine's decoding as text for a record, and say whether such a text is plain greedy.

A verdict holds emitted tokens against rows only where decoding was plain greedy: the greatest logit at every
step, without anything added to the logits before. qdx generates no other way, and states so.
"""

from __future__ import annotations

import json
from typing import Any

from qdx.dataset.arithmetic import canonical

# Value of each parameter with which it does nothing to the choice of the greatest logit. ``min_tokens`` does:
# until then it takes the end-of-sequence token out of the row.
PLAIN: dict[str, Any] = {
    "method": "greedy",
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "min_tokens": 0,
    "ignore_eos": True,
}
# Further parameters that change which tokens may come; they are stated where they are set.
RESTRICTIONS = (
    "bad_words",
    "allowed_token_ids",
    "structured_outputs",
    "guided_decoding",
    "logits_processors",
)
# The greatest logit survives every cut of the tail, and whether a generation goes on past its end changes no
# token before it.
_ANY = {"top_p": (0, 1), "top_k": (-1, 2**31), "min_p": (0, 1)}
_LONGEST = 4096  # characters


def greedy() -> str:
    """Return the statement of a backend that takes the greatest logit at every step and stops nowhere.

    Examples
    --------
    >>> plain_greedy(greedy())
    True
    """
    return canonical(PLAIN)


def stated_by(parameters: Any) -> str:
    """Return the statement of an engine's sampling parameters, as the engine settled them.

    Parameters
    ----------
    parameters : vllm.SamplingParams
        Or any object with these attributes.

    Raises
    ------
    AttributeError
        When it lacks one: what was not read is not stated.
    """
    values = {name: getattr(parameters, name) for name in PLAIN if name != "method"}
    values["logit_bias"] = {str(key): value for key, value in (values["logit_bias"] or {}).items()}
    values["method"] = "greedy" if values["temperature"] == 0 else "random"
    for name in RESTRICTIONS:
        if setting := getattr(parameters, name, None):
            values[name] = repr(setting)[:200]
    return canonical(values)


def plain_greedy(text: object) -> bool | None:
    """Say whether a record's attribute ``sampling`` states plain greedy decoding.

    Parameters
    ----------
    text : object
        What a file holds, which may be a stranger's; anything but text is unreadable.

    Returns
    -------
    bool or None
        True: every parameter is stated, and none changes the choice of the greatest logit. False: one does.
        None: nothing is stated, a parameter is missing or unknown, or the text cannot be read.
    """
    if not isinstance(text, str) or not text or len(text) > _LONGEST:
        return None
    try:
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    answers = [_harmless(name, value) for name, value in values.items()]
    if False in answers:
        return False
    return True if PLAIN.keys() <= values.keys() and None not in answers else None


def _harmless(name: str, value: Any) -> bool | None:
    """Return whether one parameter leaves the choice of the greatest logit alone; None if that is unknown."""
    if name in RESTRICTIONS:
        return not value
    if name not in PLAIN:
        return None
    if name == "method":
        return value == "greedy" if isinstance(value, str) else None
    if name == "ignore_eos":
        return True if isinstance(value, bool) else None
    if name == "logit_bias":
        return not value if isinstance(value, dict) or value is None else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if name in _ANY:
        least, most = _ANY[name]
        return True if least <= value <= most else None
    return bool(value == PLAIN[name])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: readers disagree on which one counts."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
