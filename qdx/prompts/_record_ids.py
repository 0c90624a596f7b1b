"""From the texts of a record to token ids, as far as they can be known.

Ids that a record gives are used. A conversation goes through the model's chat template. An answer's tokens
are found by their bytes where the record lists them; else its text is tokenized, which gives the emitted ids
only where the text shows nothing against it. What cannot be known is left out and counted, never guessed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qdx.records import FieldError, Record, Token

GIVEN, BYTES, TEXT, JOINED = "given", "bytes", "text", "joined"
TEMPLATE = "template"
UNKNOWN = "\ufffd"
# What a chat template may be given by a record: switches, not templates or options of the call.
_PLAIN = (bool, int, float, str)
LONGEST = 200  # characters of a template's complaint


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt, how they are known, and what the template makes of the request.

    `made` is the number of its tokens (−1: not known), `differs` whether given ids are others than those.
    """

    ids: tuple[int, ...]
    how: str
    made: int = -1
    differs: bool = False


@dataclass(frozen=True)
class Answer:
    """The ids of an answer as far as they are known, how, and how many tokens after them were left out."""

    ids: tuple[int, ...]
    how: str
    left_out: int = 0


class LeftOut(ValueError):
    """An answer that could be read and gives no transcript; the message is a reason that many share."""


class Ids:
    """Turns records into ids with one model's tokenizer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    vocab : int
        Logits in a row of the model.
    context : int, optional
        Tokens that the model has positions for.
    """

    def __init__(self, tokenizer: Any, vocab: int, context: int | None = None) -> None:
        self._tokenizer, self._vocab, self._context = tokenizer, vocab, context

    def fit(self, prompt: Prompt, answer: Answer) -> None:
        """Refuse what the model has no positions for.

        Raises
        ------
        LeftOut
        """
        if self._context is not None and len(prompt.ids) + len(answer.ids) > self._context:
            raise LeftOut(f"prompt and answer are longer than the model's {self._context:,} positions")

    def prompt(self, record: Record) -> Prompt:
        """Return the ids of a record's prompt.

        Raises
        ------
        FieldError
            For ids outside the vocabulary, or messages that the template cannot take.
        LeftOut
            When the record has no prompt.
        """
        if record.prompt_ids is not None:
            ids = self._checked(record.prompt_ids, "prompt_token_ids")
            made = self._made(record)
            return Prompt(ids, GIVEN, -1 if made is None else len(made), made is not None and made != ids)
        if record.messages is not None:
            ids = self._template(record)
            return Prompt(ids, TEMPLATE, len(ids))
        if record.prompt is not None:
            ids = tuple(self._tokenizer(record.prompt).input_ids)
            return Prompt(ids, TEXT, len(ids))
        raise LeftOut("it has no prompt: neither ids nor messages nor a text")

    def answer(self, record: Record) -> Answer:
        """Return the ids of a record's answer.

        Raises
        ------
        FieldError
            For ids outside the vocabulary.
        LeftOut
            When no token of it can be known.
        """
        found = self._answer(record)
        if not found.ids:
            raise LeftOut("no token of the answer can be known" if found.left_out else "the answer is empty")
        return found

    def _answer(self, record: Record) -> Answer:
        if record.output_ids is not None:
            ids = self._checked(record.output_ids, "token_ids")
            return Answer(ids, TEXT if record.retokenized else GIVEN)
        joined = bool(record.reasoning or record.tool_calls)
        if record.tokens and (not joined or len(record.tokens) == record.completion_tokens):
            return self._by_bytes(record.tokens)  # reasoning is among them where they are all
        if joined:
            return self._joined(record)
        return self._by_text(record)

    def known(self, token: Token) -> int:
        """Return the id of a token that an API printed; −1 where it is not known or not the only one."""
        if token.token_id is not None:
            return token.token_id if token.token_id < self._vocab else -1
        octets = token.octets if token.octets is not None else token.text.encode("utf-8", "replace")
        if not octets or UNKNOWN.encode() in octets:  # stands for a part of a character, or for nothing
            return -1
        found = self._by_octets.get(octets, [])
        return found[0] if len(found) == 1 else -1

    def _checked(self, ids: Sequence[int], name: str) -> tuple[int, ...]:
        for i, one in enumerate(ids):
            if one >= self._vocab:
                raise FieldError(
                    f"{name}[{i}]", one, f"an id of this model's vocabulary of {self._vocab} tokens"
                )
        return tuple(ids)

    def _by_bytes(self, tokens: Sequence[Token]) -> Answer:
        found: list[int] = []
        for token in tokens:
            if (one := self.known(token)) < 0:
                break
            found.append(one)
        return Answer(tuple(found), BYTES, len(tokens) - len(found))

    def _by_text(self, record: Record) -> Answer:
        text = record.output or ""
        # A marker that stands in the text was written as text: a server takes real markers out.
        ids = tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
        whole = UNKNOWN not in text and self._decoded(ids) == text
        if whole:
            self._confirmed(record, len(ids), necessary=False)
            # At an end that is no token's own the last token may be the beginning of a longer one.
            stopped = record.sampling.stop or record.stop_reason or not record.finish_reason
            keep = len(ids) - (1 if stopped and record.finish_reason != "length" else 0)
        else:  # the last token that agrees may go on into what cannot be read
            keep = max(0, self._agreeing(ids, text.partition(UNKNOWN)[0]) - 1)
        return Answer(ids[:keep], TEXT, len(ids) - keep)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _agreeing(self, ids: Sequence[int], text: str) -> int:
        """Return how many of the first ids are the beginning of a text."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            if text.startswith(self._decoded(ids[:middle])):
                low = middle
            else:
                high = middle - 1
        return low

    def _confirmed(self, record: Record, count: int, *, necessary: bool) -> None:
        """Hold the number of tokens that were made against the stated one, which may count the end token."""
        stated = record.completion_tokens
        if stated is None:
            if necessary:
                raise LeftOut("its reasoning or tool calls were joined, and it states no number of tokens")
            return
        if count not in (stated, stated - 1):
            raise LeftOut("its text makes another number of tokens than it states")

    def _joined(self, record: Record) -> Answer:
        """Join reasoning, text and tool calls as the chat template writes them; a stated count must agree."""
        if record.messages is None or not self._tokenizer.chat_template:
            raise LeftOut("its reasoning or tool calls cannot be joined without messages and a chat template")
        message: dict[str, Any] = {"role": "assistant", "content": record.output or ""}
        if record.reasoning:
            message["reasoning_content"] = record.reasoning
        if record.tool_calls:
            message["tool_calls"] = [_call(one) for one in record.tool_calls]
        before = self._rendered(record, [])
        after = self._rendered(record, [message])
        if not after.startswith(before) or record.reasoning not in after[len(before) :]:
            raise LeftOut("the chat template does not write its reasoning or tool calls out")
        text = after[len(before) :].rstrip()
        end = self._tokenizer.eos_token or ""
        text = text.removesuffix(end) if end else text
        ids = tuple(self._tokenizer(text, add_special_tokens=False).input_ids)
        self._confirmed(record, len(ids), necessary=True)
        return Answer(ids, JOINED)

    def _made(self, record: Record) -> tuple[int, ...] | None:
        """What the template makes of a request whose ids are given; None where it cannot."""
        if record.messages is None:
            return None
        try:
            return self._template(record)
        except FieldError:
            return None

    def _template(self, record: Record) -> tuple[int, ...]:
        text = self._rendered(record, [])
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _rendered(self, record: Record, more: Sequence[Mapping[str, Any]]) -> str:
        if not self._tokenizer.chat_template:
            raise FieldError("messages", record.messages, "prompt_token_ids: this model has no chat template")
        for name, value in record.template.items():
            if name in self._arguments or not isinstance(value, _PLAIN):
                raise FieldError(f"chat_template_kwargs.{name}", value, "a switch of the chat template")
        messages = [_message(one, i) for i, one in enumerate(record.messages or ())]
        try:
            text: str = self._tokenizer.apply_chat_template(
                [*messages, *more],
                tools=list(record.tools) or None,
                add_generation_prompt=not more,
                tokenize=False,
                **record.template,
            )
        except Exception as error:  # the template is a program: it raises whatever the messages lead to
            what = (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST]
            raise FieldError(
                "messages", f"refused ({what})", "messages that the chat template takes"
            ) from error
        return text

    @cached_property
    def _arguments(self) -> frozenset[str]:
        """The options of the call, which a record must not set: a template of its own would be one."""
        return frozenset(inspect.signature(self._tokenizer.apply_chat_template).parameters)

    @cached_property
    def _by_octets(self) -> dict[bytes, list[int]]:
        return octets_of(self._tokenizer)


def octets_of(tokenizer: Any) -> dict[bytes, list[int]]:
    """Return the ids of every string of bytes that a tokenizer has a token for.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a byte-level vocabulary, or one with ``▁`` for a space and ``<0x0A>`` for a byte.
    """
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    level = "ByteLevel" in json.dumps(decoder)
    letters = _letters() if level else {}
    added = set(tokenizer.get_added_vocab().values())
    found: dict[bytes, list[int]] = {}
    for text, number in tokenizer.get_vocab().items():
        if number in added or (level and any(c not in letters for c in text)):
            octets = text.encode()
        elif level:
            octets = bytes(letters[c] for c in text)
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            octets = bytes.fromhex(text[3:5])
        else:
            octets = text.replace("▁", " ").encode()
        found.setdefault(octets, []).append(int(number))
    return found


def _letters() -> dict[str, int]:
    """The letter that a byte-level vocabulary writes for each byte (Radford et al. 2019, GPT-2's encoder)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def _message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A message as a chat template reads it: one text, and the arguments of tool calls as objects."""
    from qdx.records.openai import content_text

    made = dict(message)
    content = made.get("content")
    if isinstance(content, list):
        for i, part in enumerate(content):
            content_text([part], f"messages[{number}].content[{i}]")
        # Servers join the parts of a text by line breaks.
        made["content"] = "\n".join(p["text"] if isinstance(p, dict) else p for p in content)
    elif content is not None and not isinstance(content, str):
        raise FieldError(f"messages[{number}].content", content, "a text or a list of texts")
    if not isinstance(made.get("role"), str):
        raise FieldError(f"messages[{number}].role", made.get("role"), "a text")
    if isinstance(made.get("tool_calls"), list):
        made["tool_calls"] = [_call(one) for one in made["tool_calls"]]
    return made


def _call(call: object) -> object:
    """A tool call whose arguments, JSON in a text, are the object that templates write out."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return call
    return {**call, "function": {**call["function"], "arguments": arguments}}
