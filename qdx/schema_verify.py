"""The dataclasses of verification; `qdx.schema` has the others and the check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdx.errors import QdxError


@dataclass
class TranscriptPrompts:
    """Options of the source that replays what producers generated; limits: `qdx.dataset.guarding.Limits`."""

    _target_: str
    name: str
    path: str
    reader: str | None = None
    requests: str | None = None
    records: int | None = None
    draw_seed: int | None = None
    assume: dict[str, Any] | None = None  # numbers, and logprobs_mode by its name
    harmless: list[str] | None = None
    date: str | None = None
    noise: str | None = None
    max_bytes: int | None = None
    max_objects: int | None = None
    max_length: int | None = None
    max_seconds: int | None = None


@dataclass
class ChallengePrompts:
    """Options of the source that runs what a verifier asks for."""

    _target_: str
    name: str
    path: str


@dataclass
class Verify:
    """Say how replayed transcripts are judged.

    ``claims`` maps a producer to the config that it claims to be, where that is not its own label, and a
    provider whose records are judged to that, or to a format (``awq``, ``int4``): all its configs;
    ``calibration`` is the folder of an earlier verifier's sweep, of transcripts whose configs are known, or a
    list of such folders: other kernels, settings and cards of the config that is claimed. ``challenge`` is
    the file of ``python -m qdx.challenge`` that the transcripts have to answer, and ``require`` maps what the
    verifier demands to its value: see `qdx.verification.obligations`. What the files alone show not to be met
    stops a sweep before its replay, unless ``go_on`` is true.
    """

    alpha: float = 0.05
    claims: dict[str, str] | None = None
    calibration: Any = None
    challenge: str | None = None
    require: dict[str, Any] | None = None
    go_on: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise QdxError(f"verify.alpha={self.alpha}: must be above 0 and below 1, such as 0.05")
        if not all(isinstance(folder, str) and folder for folder in self.calibrations):
            raise QdxError(
                f"verify.calibration={self.calibration}: must be a folder, a list of folders in brackets, or "
                "null"
            )

    @property
    def calibrations(self) -> list[Any]:
        """The folders of known transcripts."""
        if self.calibration is None:
            return []
        return list(self.calibration) if isinstance(self.calibration, list | tuple) else [self.calibration]
