"""Prompts from the standard library."""

from __future__ import annotations

import pytest

from qdx.errors import QdxError
from qdx.prompts import Pydoc


def test_as_many_references_as_asked(tokenizer):
    references = Pydoc(references=120, snippet_tokens=256).load(tokenizer)
    assert len(references) == 120
    ends = [reference.token_offset + 256 + 16 for reference in references]
    assert all(end <= later.token_offset for end, later in zip(ends, references[1:], strict=False))
    assert len({reference.text for reference in references}) == 120


def test_more_than_it_holds_stops_the_run_and_says_how_many(tokenizer):
    with pytest.raises(
        QdxError, match=r"pydoc_data\.topics of Python 3.*too short.*at most \d+ with prompts\.ref"
    ):
        Pydoc(references=100_000).load(tokenizer)
