"""The chat template, cut into the ids before the content and the ids after it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qdx.errors import QdxError
from qdx.prompts._as_text import as_text

# Letters only: no template escapes, trims or interprets it.
_SENTINEL = "QDXCONTENTGOESHERE"
# A document in its place: long, of several lines, with small letters.
_LONG = "\n".join(["Qdx Content Goes Here and is a text of several lines."] * 40)
# <|user|>, [/INST], <</SYS>>, ### Response: and the like.
_MARKERS = re.compile(r"[<\[{|]+[^\s<>\[\]{}|]*\w[^\s<>\[\]{}|]*[>\]}|]+|#{2,} ?\w[\w ]*:")


@dataclass(frozen=True)
class Template:
    """Token ids around the content; `present` is False when the tokenizer has no chat template.

    `markers` are what the template writes of ordinary tokens, which a document may spell too.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    present: bool
    markers: tuple[str, ...] = ()


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenise template text: special tokens written in it are special, and none is added.

    Returns
    -------
    list of int
    """
    # verbose=False: a document may be longer than the model's context, since windows are cut from it.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def split_template(tokenizer: Any, instruction: str) -> Template:
    """Return the template's ids before and after the content of a user message ``instruction + content``.

    The template is rendered once with a sentinel in the content's place, and the text on both sides is
    tokenised separately. The template's own system prompt stays, as does the turn that it opens for the
    answer. A tokenizer without a template gets no instruction: its prompt is the content, after the
    begin-of-text token if the tokenizer sets one before any text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    instruction : str

    Returns
    -------
    Template

    Raises
    ------
    QdxError
        When the template fails on one user message, does not give the content back exactly once, or writes
        something else around another content, or the instruction writes control tokens.
    """
    if not getattr(tokenizer, "chat_template", None):
        return Template(tuple(_leading(tokenizer)), (), present=False)
    if spoken := as_text(tokenizer).spoken(instruction):
        raise QdxError(
            f"prompts.instruction={instruction!r:.60} writes {', '.join(map(repr, spoken[:3]))}, control "
            "tokens of this tokenizer, which would end or open messages: write it without them"
        )
    parts = _around(tokenizer, instruction, _SENTINEL)
    # A clock in the template changes its text between any two renderings, whatever the content is.
    if _around(tokenizer, instruction, _LONG) != parts == _around(tokenizer, instruction, _SENTINEL):
        raise QdxError(
            "the tokenizer's chat template writes something else around a longer content (it measures, cuts "
            "or tests it): qdx cannot put windows of a document in its place; use another template or remove "
            "it from the tokenizer"
        )
    around = parts[0].replace(instruction, "") + parts[1]
    return Template(
        tuple(encode(tokenizer, parts[0])),
        tuple(encode(tokenizer, parts[1])),
        present=True,
        markers=_plain_markers(around, as_text(tokenizer).control.values()),
    )


def _around(tokenizer: Any, instruction: str, content: str) -> list[str]:
    """Return what the template writes before and after a content."""
    message = [{"role": "user", "content": instruction + content}]
    try:
        rendered: str = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of its model's author: it may raise anything
        raise QdxError(f"the tokenizer's chat template fails on a single user message: {error}") from error
    parts = rendered.split(content)
    if len(parts) != 2:
        raise QdxError(
            f"the tokenizer's chat template shows a message's content {len(parts) - 1} times, expected once: "
            "qdx cannot tell template from content; use another template or remove it from the tokenizer"
        )
    return parts


def _plain_markers(text: str, control: Iterable[str]) -> tuple[str, ...]:
    """Return the markers that a template writes as plain text, as older ones do, such as ``[/INST]``."""
    for token in sorted(control, key=len, reverse=True):
        text = text.replace(token, " ") if token.strip() else text
    return tuple(dict.fromkeys(_MARKERS.findall(text)))


def _leading(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer itself puts before a text (begin-of-text), without those it may put after it."""
    with_special = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    plain = encode(tokenizer, "a")
    return with_special[: with_special.index(plain[0])] if plain else []
