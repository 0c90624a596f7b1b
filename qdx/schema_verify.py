"""The dataclasses of verification; `qdx.schema` has the others and the check."""

from __future__ import annotations

from dataclasses import dataclass

from qdx.errors import QdxError


@dataclass
class TranscriptPrompts:
    """Options of the source that replays what producers generated; limits: `qdx.dataset.guarding.Limits`."""

    _target_: str
    name: str
    path: str
    max_bytes: int | None = None
    max_objects: int | None = None
    max_length: int | None = None
    max_seconds: int | None = None


@dataclass
class Verify:
    """How replayed transcripts are judged.

    ``claims`` maps a producer to the config that it claims to be, where that is not its own label;
    ``calibration`` is the folder of an earlier verifier's sweep, of transcripts whose configs are known.
    """

    alpha: float = 0.05
    claims: dict[str, str] | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise QdxError(f"verify.alpha={self.alpha}: must be above 0 and below 1")
