"""Keep what a verifier needs of an exchange: the seed of the draw, and when he received which root.

The file lies beside the challenge, ``challenge.verifier.json`` beside ``challenge.json``, and its owner alone
may read it: a prover who knows the seed knows which rows will be looked at. Times are of the verifier's own
clock. One challenge takes one root: a prover who could bind again would try until the drawn rows miss her
false ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qdx import new_file
from qdx.dataset import guarded_json
from qdx.errors import QdxError
from qdx.prompts.challenge import ChallengeFile
from qdx.verification import binding
from qdx.verification.binding import Commitment, configs_of

KIND, VERSION = "challenge_ledger", 2  # 2: rows are drawn of each phase
SUFFIX = ".verifier.json"
MOST_ROWS = 1_000_000
FORMAT = "%Y-%m-%dT%H:%M:%SZ"
LARGEST = 8 * 2**20  # bytes: it repeats the commitment


@dataclass(frozen=True)
class Ledger:
    """One exchange, as far as it has come.

    Attributes
    ----------
    challenge_sha256 : str
        SHA-256 of the challenge file.
    seed : str
        Hexadecimal; its SHA-256 is in the challenge.
    issued : str
        When the challenge was made, UTC.
    root : str
        That was received; "" before.
    received : str
        When; "" before.
    signed_by : str
        Who signed the commitment, as ``ssh-keygen`` verified it; "" where no signature was asked for.
    drawn : int
        Rows that were drawn of each phase of every config, or all where it has fewer; 0 before.
    commitment : Commitment or None
        What the root is the hash of; None before rows were drawn.
    """

    challenge_sha256: str
    seed: str
    issued: str
    root: str = ""
    received: str = ""
    signed_by: str = ""
    drawn: int = 0
    commitment: Commitment | None = None

    def receive(self, root: str, time: str, path: Path) -> Ledger:
        """Return it with a root that has arrived.

        Raises
        ------
        QdxError
            When another one arrived before.
        """
        if self.root and self.root != root:
            raise QdxError(
                f"{path}: the root {self.root[:16]}… was received at {self.received}, now another one, "
                f"{root[:16]}…: a prover who binds twice could wait for a draw that misses her false rows: "
                "make a new challenge"
            )
        return self if self.root else replace(self, root=root, received=time)

    @property
    def seconds(self) -> int:
        """From the challenge to the root.

        Raises
        ------
        QdxError
            When no root was received.
        """
        if not self.received:
            raise QdxError("no root was received")
        start, end = (_time(text) for text in (self.issued, self.received))
        return int((end - start).total_seconds())


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime(FORMAT)


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, FORMAT).replace(tzinfo=UTC)
    except ValueError as error:
        raise QdxError(f"{text!r} is not a time: {error}") from error


def path_of(challenge: Path) -> Path:
    """Return where the ledger of a challenge lies."""
    return challenge.with_name(challenge.name.removesuffix(".json") + SUFFIX)


def write(path: Path, ledger: Ledger) -> None:
    """Write the file, for its owner alone.

    Raises
    ------
    OSError
    """
    plain: dict[str, Any] = {
        "kind": KIND,
        "schema_version": VERSION,
        **{name: value for name, value in vars(ledger).items() if name != "commitment"},
        "commitment": None if ledger.commitment is None else ledger.commitment.plain(),
    }
    with new_file.replacing(path) as part:
        part.chmod(0o600)  # while it is still empty
        part.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def read(path: Path, challenge: ChallengeFile, challenge_sha256: str) -> Ledger:
    """Read the ledger of a challenge.

    Parameters
    ----------
    path : Path
    challenge : ChallengeFile
    challenge_sha256 : str

    Raises
    ------
    QdxError
        When it is not there, is another challenge's, or what it holds does not fit together.
    """
    if not path.is_file():
        raise QdxError(
            f"{path}: no such file: it holds the seed of the draw, and python -m qdx.challenge wrote it "
            "beside the challenge for the verifier alone"
        )
    fields = guarded_json.read(path, KIND, VERSION, largest=LARGEST)
    found = Ledger(
        fields.hexadecimal("challenge_sha256"),
        fields.hexadecimal("seed"),
        fields.time("issued"),
        fields.hexadecimal("root") if fields.text("root") else "",
        fields.time("received") if fields.text("received") else "",
        fields.text("signed_by"),
        fields.integer("drawn", 0, MOST_ROWS),
        _commitment(fields, path) if fields.has("commitment") else None,
    )
    fields.done()
    if found.challenge_sha256 != challenge_sha256:
        raise QdxError(f"{path} is of another challenge, or the challenge was changed: other SHA-256")
    if hashlib.sha256(bytes.fromhex(found.seed)).hexdigest() != challenge.seed_sha256:
        raise QdxError(f"{path}: its seed is not that whose SHA-256 is in the challenge: it was changed")
    if found.commitment is not None and found.commitment.root != found.root:
        raise QdxError(f"{path}: its commitment does not have the root that was received: it was changed")
    if bool(found.root) != bool(found.received) or bool(found.drawn) != (found.commitment is not None):
        raise QdxError(f"{path}: root and time, or rows and commitment, stand alone: it was changed")
    return found


def _commitment(fields: guarded_json.Fields, path: Path) -> Commitment:
    own = fields.fields("commitment")
    own.text("kind"), own.integer("schema_version", binding.VERSION, binding.VERSION)
    found = Commitment(
        own.hexadecimal("challenge_sha256"), own.hexadecimal("nonce", 32), configs_of(own, str(path))
    )
    own.done()
    return found
