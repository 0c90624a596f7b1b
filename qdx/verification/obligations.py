"""Check what a verifier demands of a record (``verify.require``), and say what a producer does not meet.

A prover can escape every refutation by stating another processor, thread count or setting, or by sending one
reference. So the verifier states what has to be there. What is not met ends in "obligation not met", unless
the evidence refutes the claim anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from qdx.dataset.layout import RECORDS
from qdx.errors import QdxError, nearest
from qdx.verification.binding import Drawn
from qdx.verification.environment import HARDWARE, SOFTWARE, facts_of
from qdx.verification.exchange import Answer, Exchange
from qdx.verification.replays import key_of
from qdx.verification.units import spans_of, units_of

COUNTS = {
    "references": "references with different tokens, at least",
    "units": "independent transcripts, at least",
    "tokens": "output tokens of every reference, at least",
    "rows": "rows of each phase drawn by the verifier and opened, at least, or all that there are",
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
    """Hold what one producer gave, as far as a demand can be about it.

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
    """Hold what the verifier demanded of one producer.

    Attributes
    ----------
    demands : tuple of str
        Of ``verify.require``, what is not met: each with what was got and what was wanted.
    unfit : tuple of str
        What of the file is not what was asked for or bound. Nothing of it is judged then.
    drawn : tuple of Drawn
        Rows that the verifier drew of each phase; empty where there is no exchange.
    configs : int
        That the root binds.
    misread : tuple of str
        Opened rows that do not say the token which follows them.
    not_numbers : tuple of str
        Opened rows that hold NaN.
    said : str
        A sentence on the root and its time; "" without an exchange.
    """

    demands: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
    drawn: tuple[Drawn, ...] = ()
    configs: int = 1
    misread: tuple[str, ...] = ()
    not_numbers: tuple[str, ...] = ()
    said: str = ""

    @property
    def unmet(self) -> tuple[str, ...]:
        """All that is not met."""
        return (*self.unfit, *self.demands)

    @property
    def rows(self) -> int:
        """Rows that the verifier drew of all phases."""
        return sum(one.rows for one in self.drawn)


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
    return Obligations(
        tuple(_demands(require, stated, exchange, answer)),
        tuple(answer.unmet),
        answer.drawn,
        exchange.configs if exchange is not None else 1,
        tuple(answer.misread),
        tuple(answer.not_numbers),
        exchange.said if exchange is not None else "",
    )


def _demands(
    require: Mapping[str, Any], stated: Stated, exchange: Exchange | None, answer: Answer
) -> list[str]:
    found = []
    counts = {
        "references": stated.references,
        "units": stated.units,
        "tokens": stated.tokens,
    }
    for name, value in require.items():
        if name in counts and counts[name] < value:
            found.append(f"{name}: got {counts[name]}, wanted {value} or more")
        elif name == "rows":
            found += _rows(answer, value)
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


def _rows(answer: Answer, wanted: int) -> list[str]:
    if answer.drawn and all(one.rows >= min(wanted, one.of) > 0 for one in answer.drawn):
        return []
    got = ", ".join(f"{one.rows:,} of {one.of:,} of {one.phase}" for one in answer.drawn) or "0"
    return [f"rows: got {got}, wanted {wanted} or more of each phase, or all"]


def _fact(name: str, got: str, allowed: Sequence[Any]) -> list[str]:
    if got in {str(one) for one in allowed}:
        return []
    return [f"{name}: got {got or 'nothing (it is not stated)'}, wanted {' or '.join(map(str, allowed))}"]


def known_unmet(
    require: Mapping[str, Any], tree: xr.DataTree, exchange: Exchange | None, producer: str
) -> tuple[str, ...]:
    """Say what a producer does not meet whatever a replay gives, from her file and the verifier's ledger.

    Parameters
    ----------
    require : Mapping
    tree : xarray.DataTree
        The producers' file.
    exchange : Exchange or None
    producer : str
    """
    recorded = str(tree.attrs.get("kind", "")) == RECORDS
    # The class is that of the replay; records of other programs are counted when they are judged.
    later = ("class", "references", "units", "tokens") if recorded else ("class",)
    asked = {name: value for name, value in require.items() if name not in later}
    return obligations(asked, _stated(tree, producer, recorded), exchange, producer).unmet


def _stated(tree: xr.DataTree, producer: str, recorded: bool) -> Stated:
    record = facts_of(tree, "decode", producer)
    stored = tree["provenance"].to_dataset()
    prompts = ""
    if "references_sha256" in stored:
        prompts = str(stored["references_sha256"].sel(config=producer).values)
    if recorded:
        return Stated(record, 0, 0, 0, prompts, "")
    references = tree["references"].to_dataset()
    ids_RN = references["token_ids"].transpose("reference", "token").values
    keys = [key_of(ids[: int(n)]) for ids, n in zip(ids_RN, references["length"].values, strict=True)]
    spans = spans_of(tree, [str(name) for name in references["reference"].values])
    batch = record.get("batch_size", "")
    units = units_of(keys, spans, int(batch) if batch.isdigit() else 1)
    tokens = tree["output"].sizes["output_token"]
    return Stated(record, len(set(keys)), int(units.max()) + 1, tokens, prompts, "")
