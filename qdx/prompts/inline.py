"""Prompts written in the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdx.errors import QdxError
from qdx.plugins import register
from qdx.prompts._reference import Reference, SourceFile, Summary
from qdx.prompts._template import split_template
from qdx.prompts._windows import check_counts, sha256, tokenize


@register("prompts", "inline")
@dataclass
class Inline:
    """Whole texts as prompts, one reference for each.

    Parameters
    ----------
    texts : sequence of str
        At least one; the same text may stand twice.
    continuation : str, optional
        Text whose first tokens are every reference's shared continuation; the packaged handbook's if None.
    continuation_tokens : int
    instruction : str
        Stands before each text in the user's message.

    Attributes
    ----------
    summary : Summary or None
        What was found; None before `load`.
    """

    texts: Sequence[str]
    continuation: str | None = None
    continuation_tokens: int = 16
    instruction: str = ""
    summary: Summary | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.texts, str):
            self.texts = [self.texts]
        if not self.texts:
            raise QdxError(
                "prompts.texts is empty: give at least one text, for example 'prompts.texts=[\"Hello\"]'"
            )
        check_counts(len(self.texts), 1, self.continuation_tokens)

    def load(self, tokenizer: Any) -> list[Reference]:
        """Return the references; see `PromptSource.load`."""
        template = split_template(tokenizer, self.instruction)
        continuation = self._continuation(tokenizer)
        found = []
        for index, text in enumerate(self.texts):
            content = tokenize(tokenizer, text).ids
            if not len(content):
                raise QdxError(
                    f"prompts.texts[{index}] is {text!r}, 0 tokens: remove it or write at least one word"
                )
            found += [
                Reference(
                    name=f"ref_{index}",
                    token_ids=np.concatenate([template.prefix, content, template.suffix]).astype(np.int32),
                    prefix_length=len(template.prefix),
                    content_length=len(content),
                    suffix_length=len(template.suffix),
                    continuation=continuation.copy(),
                    text=text,
                    source=f"prompts.texts[{index}]",
                    pages="",
                    token_offset=0,
                    sha256=sha256(text.encode()),
                )
            ]
        files = tuple(SourceFile(item.source, item.content_length, 0, item.sha256) for item in found)
        self.summary = Summary(files, sum(file.tokens for file in files), template.present, noun="text")
        return found

    def _continuation(self, tokenizer: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
        if self.continuation is None:
            from qdx.prompts.pdf import HANDBOOK, read_pdf

            name, text = "the packaged handbook", read_pdf(HANDBOOK.name, HANDBOOK).text
        else:
            name, text = "prompts.continuation", self.continuation
        ids = tokenize(tokenizer, text).ids
        if len(ids) < self.continuation_tokens:
            raise QdxError(
                f"{name}: too short, {len(ids)} tokens, but prompts.continuation_tokens is "
                f"{self.continuation_tokens}: write a longer prompts.continuation or generate fewer tokens"
            )
        return ids[: self.continuation_tokens]
