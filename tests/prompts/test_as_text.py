"""Nothing that a document writes becomes a control token, in any kind of tokenizer."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qdx.errors import QdxError
from qdx.prompts._as_text import as_text
from qdx.prompts._template import encode, split_template
from qdx.prompts._windows import tokenize

from .conftest import CHATML, build_tokenizer

MARKERS = [
    "<|im_start|>",
    "<|im_end|>",
    "</think>",
    "<tool_call>",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<0x41>",
    "[INST]",
]


def byte_level() -> Any:
    """As Qwen's: markers of the template and of reasoning are added tokens that are not special."""
    tokenizer = build_tokenizer()
    core = tokenizer.backend_tokenizer
    core.add_tokens([AddedToken(name, special=False) for name in ("</think>", "<tool_call>")])
    stated = json.loads(core.to_str())
    for added in stated["added_tokens"]:
        added["special"] = added["content"] == "<s>"
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(stated)), bos_token="<s>")
    made.chat_template = CHATML
    return made


def with_merges() -> Any:
    """A vocabulary that was trained on marked-up text: its merges build the marker itself."""
    vocab = {letter: i for i, letter in enumerate(dict.fromkeys([*string.ascii_letters, *"<|_>/[]01 Ġ."]))}
    merges = []
    for marker in ("<|im_end|>", "<|im_start|>", "[INST]"):
        for end in range(2, len(marker) + 1):
            pair = (marker[: end - 1], marker[end - 1])
            if pair not in merges:
                merges.append(pair)
                vocab.setdefault(marker[:end], len(vocab))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=None))
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    made.chat_template = "{% for m in messages %}[INST]{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
    return made


def unigram() -> Any:
    """As sentencepiece's with byte fallback: control and byte pieces stand in the vocabulary with score 0."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", 0.0) for b in range(256))]
    pieces += [("[INST]", 0.0), ("</think>", 0.0)]
    pieces += [(c, -4.0) for c in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHINST0123456789<>|/[]_.x"]
    seen: dict[str, float] = {}
    for piece, score in pieces:
        seen.setdefault(piece, score)
    core = Tokenizer(models.Unigram(list(seen.items()), unk_id=0, byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = "{% for m in messages %}<s>[INST]{{ m.content }}</s>{% endfor %}</think>"
    return made


def words() -> Any:
    """A vocabulary of whole words, among them its markers."""
    names = [
        "<unk>",
        "<|im_end|>",
        "</think>",
        "[INST]",
        *"abcde",
        "word",
        "text",
        "<",
        ">",
        "|",
        "/",
        "think",
    ]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    made.chat_template = "{% for m in messages %}[INST] {{ m.content }} <|im_end|> </think>{% endfor %}"
    return made


KINDS = {"byte level": byte_level, "merges": with_merges, "unigram": unigram, "words": words}
MADE = {name: make() for name, make in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_s_markers_are_tokens_of_their_own_in_the_template(kind: str) -> None:
    tokenizer = MADE[kind]
    template = split_template(tokenizer, "")
    control = set(as_text(tokenizer).control)
    assert control & {*template.prefix, *template.suffix}  # else the tests below could not fail


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(st.sampled_from([*MARKERS, " ", "a ", "word", "<", "é", "\n"]), max_size=12))
@settings(deadline=None, max_examples=150)
def test_no_document_s_token_is_a_control_token(kind: str, parts: list[str]) -> None:
    tokenizer, text = MADE[kind], "".join(parts)
    found = tokenize(tokenizer, text)
    control = set(as_text(tokenizer).control) - {tokenizer.unk_token_id}
    assert not control & set(found.ids.tolist())
    assert found.offsets is not None and len(found.offsets) == len(found.ids)
    if kind == "byte level":
        assert tokenizer.decode(found.ids.tolist(), clean_up_tokenization_spaces=False) == text


def test_written_bytes_are_text_and_real_bytes_fall_back() -> None:
    tokenizer = MADE["unigram"]
    line = tokenizer.convert_tokens_to_ids("<0x0A>")
    assert line in encode(tokenizer, "a<0x0A>b")  # what would happen without care
    assert line not in tokenize(tokenizer, "a<0x0A>b").ids
    assert tokenize(tokenizer, "\n").ids.tolist() == [line]


@pytest.mark.parametrize("kind", ["byte level", "unigram"])
@given(text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=60))
@settings(deadline=None, max_examples=150)
def test_text_without_markers_has_the_ids_that_the_tokenizer_itself_gives(kind: str, text: str) -> None:
    tokenizer = MADE[kind]
    if as_text(tokenizer).spoken(text) or "<0x" in text:
        return
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    found = tokenize(tokenizer, text)
    assert found.ids.tolist() == whole["input_ids"]
    assert found.offsets == [tuple(pair) for pair in whole["offset_mapping"]]


def test_added_white_space_and_words_stay_the_tokens_that_they_are() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["    ", "Zarathustra"])
    ids = tokenize(tokenizer, "x    Zarathustra").ids.tolist()
    assert ids[-2:] == tokenizer.convert_tokens_to_ids(["    ", "Zarathustra"])


def test_instruction_that_writes_a_marker_is_refused() -> None:
    with pytest.raises(QdxError, match=r"instruction=.* writes '<\|im_end\|>', control tokens"):
        split_template(MADE["byte level"], "Say: <|im_end|>")
