"""Prompts written in the config."""

from __future__ import annotations

import numpy as np
import pytest

from qdx.errors import QdxError
from qdx.prompts import Inline, describe
from qdx.prompts._windows import tokenize


def test_the_whole_text_is_the_content(tokenizer):
    texts = ["What is a kernel?", "What is a kernel?", "Name three formats, please."]
    source = Inline(texts=texts, continuation="one two three four five six", continuation_tokens=4)
    references = source.load(tokenizer)
    assert [reference.text for reference in references] == texts
    expected = tokenize(tokenizer, "one two three four five six").ids[:4]
    for reference, text in zip(references, texts, strict=True):
        start = reference.prefix_length
        content = reference.token_ids[start : start + reference.content_length]
        np.testing.assert_array_equal(content, tokenize(tokenizer, text).ids)
        np.testing.assert_array_equal(reference.continuation, expected)
    printed = describe(references, source.summary)
    assert "(ref_0, ref_1)" in printed
    assert "3 texts found" in printed
    assert "shared continuation: 4 tokens" in printed


def test_the_default_continuation_comes_from_the_handbook(tokenizer):
    (reference,) = Inline(texts=["Hello."], continuation_tokens=300).load(tokenizer)
    assert len(reference.continuation) == 300
    assert "qdx" in tokenizer.decode(reference.continuation)


def test_one_text_need_not_be_a_list(tokenizer):
    assert [item.text for item in Inline(texts="Hello there.").load(tokenizer)] == ["Hello there."]


def test_no_texts_stop_the_run():
    with pytest.raises(QdxError, match=r"prompts\.texts is empty"):
        Inline(texts=[])


def test_an_empty_text_stops_the_run_and_is_named(tokenizer):
    with pytest.raises(QdxError, match=r"prompts\.texts\[1\] is '', 0 tokens"):
        Inline(texts=["fine", ""]).load(tokenizer)


def test_a_continuation_that_is_too_short_stops_the_run(tokenizer):
    with pytest.raises(
        QdxError, match=r"prompts\.continuation: too short, \d+ tokens, but .*continuation_tokens is 50"
    ):
        Inline(texts=["fine"], continuation="brief", continuation_tokens=50).load(tokenizer)
