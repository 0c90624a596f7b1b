"""What a verifier demands of a record, ``verify.require``, and what of it a producer does not meet.

A prover can escape every refutation by stating another processor, thread count or setting, or by sending one
reference. So the verifier states what has to be there. What is not met ends in "obligation not met", unless
the evidence refutes the claim anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdx.errors import QdxError, nearest
from qdx.verification.environment import HARDWARE, SOFTWARE
from qdx.verification.exchange import Answer, Exchange

COUNTS = {
    "references": "references with different tokens, at least",
    "units": "independent transcripts, at least",
    "tokens": "output tokens of every reference, at least",
    "rows": "rows drawn by the verifier and opened, at least",
    "within": "seconds from the challenge to the root, at most",
}
TEXTS = {
    "prompts": "SHA-256 of the references (references_sha256 of a record)",
    "class": "here: the environment class of the claimed config as it is replayed here",
    "signed_by": "who signed the commitment",
}
NAMES = (*COUNTS, *TEXTS, *SOFTWARE, *HARDWARE)
HERE = "here"


def check(require: Mapping[str, Any], challenge: bool) -> None:
    """Refuse demands that mean nothing, before hours of replay.

    Parameters
    ----------
    require : Mapping
        As ``verify.require`` has it.
    challenge : bool
        Whether ``verify.challenge`` is given.

    Raises
    ------
    QdxError
        Naming the demand, its value and what it may be.
    """
    for name, value in require.items():
        key = f"verify.require.{name}"
        if name not in NAMES:
            raise QdxError(f"{key}: unknown demand, one of {', '.join(NAMES)}{nearest(name, NAMES)}")
        if name in COUNTS and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise QdxError(f"{key}={value}: must be a whole number of at least 1: {COUNTS[name]}")
        if name == "class" and value != HERE:
            raise QdxError(f"{key}={value}: must be {HERE}; single facts have their names, such as threads")
        if name in ("rows", "within", "signed_by") and not challenge:
            raise QdxError(f"{key} is about a challenge: add verify.challenge=challenge.json")
        values = _values(value)
        if name not in COUNTS and (not values or any(isinstance(one, dict | list) for one in values)):
            raise QdxError(f"{key}={value}: must be a value, or a list of those that are allowed")


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


@dataclass(frozen=True)
class Stated:
    """What one producer gave, as far as a demand can be about it.

    Attributes
    ----------
    record : Mapping of str to str
        See `qdx.verification.environment.facts_of`; "" where a fact is not stated.
    references, units, tokens : int
        Different prompts, independent transcripts, and the fewest output tokens of a reference.
    prompts : str
        ``references_sha256``.
    not_here : str
        How the environment class differs from the claimed config's here; "" where it is the same.
    """

    record: Mapping[str, str]
    references: int
    units: int
    tokens: int
    prompts: str
    not_here: str


@dataclass(frozen=True)
class Obligations:
    """What the verifier demanded of one producer.

    Attributes
    ----------
    unmet : tuple of str
        Each with what was got and what was wanted.
    drawn : int
        Rows that the verifier drew; 0 where there is no exchange.
    misread : tuple of str
        Opened rows that do not say the token which follows them.
    said : str
        A sentence on the root and its time; "" without an exchange.
    """

    unmet: tuple[str, ...] = ()
    drawn: int = 0
    misread: tuple[str, ...] = ()
    said: str = ""


def obligations(
    require: Mapping[str, Any], stated: Stated, exchange: Exchange | None, producer: str
) -> Obligations:
    """Hold a producer against the demands and the exchange.

    Parameters
    ----------
    require : Mapping
    stated : Stated
    exchange : Exchange or None
    producer : str
    """
    answer = exchange.answers[producer] if exchange is not None else Answer()
    found = [*answer.unmet, *_demands(require, stated, exchange, answer)]
    said = exchange.said if exchange is not None else ""
    return Obligations(tuple(found), answer.drawn, tuple(answer.misread), said)


def _demands(
    require: Mapping[str, Any], stated: Stated, exchange: Exchange | None, answer: Answer
) -> list[str]:
    found = []
    counts = {
        "references": stated.references,
        "units": stated.units,
        "tokens": stated.tokens,
        "rows": answer.drawn,
    }
    for name, value in require.items():
        if name in counts and counts[name] < value:
            found.append(f"{name}: got {counts[name]}, wanted {value} or more")
        elif name == "within":
            seconds = exchange.seconds if exchange is not None else None
            if seconds is None:
                found.append(f"within: no root was received, wanted after {value} s at most")
            elif seconds > value:
                found.append(f"within: the root came after {seconds} s, wanted after {value} s at most")
        elif name == "class" and stated.not_here:
            found.append(f"class: {stated.not_here}; wanted the one here")
        elif name not in COUNTS and name != "class":
            got = {"prompts": stated.prompts, "signed_by": exchange.signed_by if exchange else ""}.get(
                name, stated.record.get(name, "")
            )
            found += _fact(name, got, _values(value))
    return found


def _fact(name: str, got: str, allowed: Sequence[Any]) -> list[str]:
    if got in {str(one) for one in allowed}:
        return []
    return [f"{name}: got {got or 'nothing (it is not stated)'}, wanted {' or '.join(map(str, allowed))}"]


def facts_unmet(require: Mapping[str, Any], record: Mapping[str, str]) -> list[str]:
    """What of the demanded facts a record does not state, which is known before any replay."""
    return [
        line
        for name, value in require.items()
        if name in SOFTWARE or name in HARDWARE
        for line in _fact(name, record.get(name, ""), _values(value))
    ]
