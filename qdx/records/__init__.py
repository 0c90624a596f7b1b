"""Records of other programs and providers: what they wrote of prompts and answers, read as it stands.

A reader is a class registered as ``record_reader``; the ones here are asked in turn whether a file is theirs
(`qdx.records.reading.choose`). What the records become is `qdx.prompts.Transcripts`' matter.
"""

from __future__ import annotations

from qdx.records.reading import Losses, RecordReader, choose, readers
from qdx.records.record import FieldError, Fields, Record, Sampling, Shared, Token, Unreadable

__all__ = [
    "FieldError",
    "Fields",
    "Losses",
    "Record",
    "RecordReader",
    "Sampling",
    "Shared",
    "Token",
    "Unreadable",
    "choose",
    "readers",
]
