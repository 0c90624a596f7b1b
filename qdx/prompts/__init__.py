"""Prompt sources: where references come from.

A source has options and one method, ``load(tokenizer) -> list[Reference]``, which gives the same ids in the
same order at every call. `Pdf`, `Text` and `Pydoc` cut windows of exactly ``snippet_tokens`` tokens out of
documents. `Inline` takes whole texts. `Transcripts` brings the references of a producers' file, or of other
programs' records, with the tokens that were generated after them. `Challenge` brings those that a verifier
asks for.
"""

from __future__ import annotations

from qdx.dataset.layout import RECORDS
from qdx.prompts._kept import KEPT, keep, kept, key_of, same_text
from qdx.prompts._reference import (
    PromptSource,
    Reference,
    SourceFile,
    Summary,
    check_references,
    describe,
    references_sha256,
)
from qdx.prompts._transcript_file import refusals
from qdx.prompts.challenge import Challenge
from qdx.prompts.inline import Inline
from qdx.prompts.pdf import Pdf
from qdx.prompts.pydoc import Pydoc
from qdx.prompts.text import Text
from qdx.prompts.transcripts import Transcripts

__all__ = [
    "KEPT",
    "RECORDS",
    "Challenge",
    "Inline",
    "Pdf",
    "PromptSource",
    "Pydoc",
    "Reference",
    "SourceFile",
    "Summary",
    "Text",
    "Transcripts",
    "check_references",
    "describe",
    "keep",
    "kept",
    "key_of",
    "references_sha256",
    "refusals",
    "same_text",
]
