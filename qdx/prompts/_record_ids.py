"""From the texts of a record to token ids, as far as they can be known.

Ids that a record gives are used. A conversation goes through the model's chat template. An answer's tokens
are found by their bytes where the record lists them; else its text is tokenized, which gives the emitted ids
only where the text shows nothing against it. What cannot be known is left out and counted, never guessed.
"""

from __future__ import annotations

import datetime
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qdx.records import FieldError, Record, Token

GIVEN, BYTES, TEXT, JOINED = "given", "bytes", "text", "joined"
TEMPLATE = "template"
UNKNOWN = "\ufffd"
# What a chat template may be given by a record: switches, not templates or options of the call.
_PLAIN = (bool, int, float, str)
LONGEST = 200  # characters of a template's complaint
SPACE = "\u2581"  # ▁, which SentencePiece writes for a space
CLOCK = "strftime_now"  # what a chat template calls that writes the day into a prompt
HIDDEN = "its reasoning is not returned, so that the tokens before its answer are not known"


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt, how they are known, and what the template makes of the request.

    `made` is the number of its tokens (−1: not known), `differs` whether given ids are others than those, or
    cannot be held against them. `alone` says that there is no request, so that nothing shows what was asked.
    `day` is the day that the template wrote into it, "" where it writes none.
    """

    ids: tuple[int, ...]
    how: str
    made: int = -1
    differs: bool = False
    alone: bool = False
    day: str = ""


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
    date : str
        The day, such as ``2026-01-31``, that a chat template writes where it asks for today's; "": the day on
        which each record says that it was made.
    """

    def __init__(self, tokenizer: Any, vocab: int, context: int | None = None, date: str = "") -> None:
        self._tokenizer, self._vocab, self._context, self._date = tokenizer, vocab, context, date

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
            return self._held(record, self._checked(record.prompt_ids, "prompt_token_ids"))
        if record.asked_ids is not None:
            ids = self._checked(record.asked_ids, "request.prompt")
            return Prompt(ids, GIVEN, len(ids))
        if record.messages is not None:
            day = self._days(record)[0] if self._dated else None
            ids = self._template(record, day)
            return Prompt(ids, TEMPLATE, len(ids), day=str(day or ""))
        if record.prompt is not None:
            ids = self._of_text(record)
            return Prompt(ids, TEXT, len(ids))
        raise LeftOut("it has no prompt: neither ids nor messages nor a text")

    def _held(self, record: Record, ids: tuple[int, ...]) -> Prompt:
        """Hold the ids that an answer states of its prompt against what was asked."""
        if record.asked_ids is not None:
            return Prompt(ids, GIVEN, len(record.asked_ids), record.asked_ids != ids)
        if record.messages is None and record.prompt is None:
            return Prompt(ids, GIVEN, alone=True)
        made: tuple[int, ...] = ()
        day: datetime.date | None = None
        try:
            if record.messages is None:
                made = self._of_text(record)
            elif self._dated:  # a server in another time zone has another day
                first = self._days(record)[0]
                days = [first, *(first + datetime.timedelta(n) for n in (-1, 1) if not self._date)]
                tried = [(one, self._template(record, one)) for one in days]
                day, made = next((pair for pair in tried if pair[1] == ids), tried[0])
            else:
                made = self._template(record, None)
        except (FieldError, LeftOut):  # nobody can say whether these ids are what was asked
            return Prompt(ids, GIVEN, -1, True)
        return Prompt(ids, GIVEN, len(made), made != ids, day=str(day or ""))

    def _of_text(self, record: Record) -> tuple[int, ...]:
        special = record.special is not False
        return tuple(self._tokenizer(record.prompt, add_special_tokens=special).input_ids)

    @cached_property
    def _dated(self) -> bool:
        """Return whether the chat template writes today's date, which is another one tomorrow."""
        return CLOCK in str(self._tokenizer.chat_template or "")

    def _days(self, record: Record) -> list[datetime.date]:
        if self._date:
            return [datetime.date.fromisoformat(self._date)]
        if record.created is None:
            raise LeftOut(
                "the chat template writes the date, and the record does not state when it was made: say it "
                "with prompts.date=2026-01-31"
            )
        return [datetime.datetime.fromtimestamp(record.created, datetime.UTC).date()]

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
        found = self._read(record)
        # Where it was not received to its end, at least one token is missing.
        return replace(found, left_out=max(1, found.left_out)) if record.cut else found

    def _read(self, record: Record) -> Answer:
        if record.output_ids is not None:
            ids = self._checked(record.output_ids, "token_ids")
            if record.retokenized:
                return Answer(ids, TEXT)
            self._hold_number(record, len(ids), self._ends(record, ids))
            self._hold_tokens(record, ids)
            if not self._spells(record, ids):
                raise LeftOut("its ids do not spell its text")
            return Answer(ids, GIVEN)
        joined = bool(record.reasoning or record.tool_calls)
        count = len(record.tokens)
        if count and (not joined or count == record.completion_tokens):
            if (record.reasoning_tokens or 0) and not joined and count != record.completion_tokens:
                raise LeftOut(HIDDEN)
            self._hold_number(record, count, False)
            return self._by_bytes(record)  # reasoning is among them where they are all
        if (record.reasoning_tokens or 0) and not record.reasoning:
            raise LeftOut(HIDDEN)
        if joined:
            return self._joined(record)
        return self._by_text(record)

    def _ends(self, record: Record, ids: Sequence[int]) -> bool:
        """Return whether the last id is one that ends an answer, which a text need not show."""
        special = (*self._tokenizer.all_special_ids, *record.sampling.stop_ids)
        return bool(ids) and ids[-1] in special

    def open(self, record: Record, answer: Answer) -> bool:
        """Return whether a token was chosen after the last one of an answer, or may have been.

        Many servers list no token that ends an answer. Who judges the others has to know that one is missing,
        since it decided how many there are.
        """
        if answer.left_out or answer.how not in (GIVEN, BYTES):
            return True
        if record.finish_reason == "length" or self._ends(record, answer.ids):
            return False
        most = record.sampling.max_tokens
        if not record.finish_reason and most is not None and len(answer.ids) == most:
            return False
        text = self._shown(record)
        stops = record.sampling.stop if answer.how == GIVEN and text is not None else ()
        return not any(self._stopped(answer.ids, text or "", stop) for stop in stops if stop)

    def _hold_number(self, record: Record, count: int, ends: bool) -> None:
        """Hold a number of tokens against the stated one, which may count a token that ends the answer."""
        stated = record.completion_tokens
        if stated is None or count == stated or (count == stated + 1 and ends):
            return
        if count == stated - 1 and record.finish_reason != "length":
            return
        if count < stated:
            raise LeftOut("it counts more tokens than it lists, so that tokens are hidden")
        raise LeftOut("it lists more tokens than it counts")

    def _hold_tokens(self, record: Record, ids: Sequence[int]) -> None:
        """Hold the tokens that log-probabilities are listed for against the ids beside them."""
        if not self._level:  # a token of SentencePiece is printed without its space
            return
        for token, one in zip(record.tokens, ids, strict=False):
            named = self.known(replace(token, token_id=None))
            # The last byte of a character may be printed as the character, which another token is.
            if named not in (-1, one) and UNKNOWN not in self._decoded([one]):
                raise LeftOut("its log-probabilities are of other tokens than its ids")

    def _shown(self, record: Record) -> str | None:
        """The text of an answer without the prompt's, which an echo puts before it."""
        text = record.output
        if text is None or not record.echo:
            return text
        for before in self._readings(record.asked_ids or ()):
            if text.startswith(before):
                return text[len(before) :]
        raise FieldError("text", text, "the prompt first, since the request has echo")

    def _readings(self, ids: Sequence[int]) -> Iterator[str]:
        """The texts that servers make of ids: without special tokens, and with them."""
        for skip in (True, False):
            text: str = self._tokenizer.decode(
                list(ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            yield text

    def _spells(self, record: Record, ids: Sequence[int]) -> bool:
        """Return whether ids decode to what the record shows of its answer.

        A text may lack the token that ends an answer, a stop string with the rest of its last token, the
        bytes of a character that is not whole, and spaces at both its ends. Nothing else.
        """
        text = self._shown(record)
        if text is None:
            return True  # the ids are all that there is
        if record.reasoning or record.tool_calls:
            return self._spells_parts(record, ids)
        wanted = _plain(text)
        ended = [ids[:-1]] if ids and ids[-1] in record.sampling.stop_ids else []
        if any(_plain(reading) == wanted for own in (ids, *ended) for reading in self._readings(own)):
            return True
        if record.finish_reason == "length":
            return False
        return any(self._stopped(ids, text, stop) for stop in record.sampling.stop if stop)

    def _stopped(self, ids: Sequence[int], text: str, stop: str) -> bool:
        """Return whether ids spell a text and then a stop string, which only their last token makes whole."""
        before = list(self._readings(ids[:-1]))
        return any(
            at >= 0 and _plain(reading[:at]) == _plain(text) and stop not in shorter
            for reading, shorter in zip(self._readings(ids), before, strict=True)
            for at in (reading.find(stop),)
        )

    def _spells_parts(self, record: Record, ids: Sequence[int]) -> bool:
        """Return whether ids spell reasoning, text and tool calls, with nothing but markers between them."""
        split = self._markers.split(self._decoded(ids))
        parts = [part for one in split if (part := _plain(one))]
        said = [part for one in (record.reasoning, record.output or "") if (part := _plain(one))]
        calls = [_called(one) for one in record.tool_calls]
        written = [_called(part) for part in parts[len(said) :]]
        return parts[: len(said)] == said and written == calls and None not in calls

    @cached_property
    def _markers(self) -> re.Pattern[str]:
        """Return the tokens between reasoning, text and tool calls, which the vocabulary adds to words."""
        added = sorted(self._tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, added)) or r"(?!)")

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

    def _by_bytes(self, record: Record) -> Answer:
        tokens, found = record.tokens, list[int]()
        for token in tokens:
            if (one := self.known(token)) < 0:
                break
            found.append(one)
        answer = Answer(tuple(found), BYTES, len(tokens) - len(found))
        shown = self._shown(record)
        if not answer.left_out:
            fits = self._spells(record, found)
        elif record.reasoning or record.tool_calls or shown is None:
            fits = True  # not known to its end, so nothing good is said of it
        else:
            fits = any(_plain(shown).startswith(_plain(reading)) for reading in self._readings(found))
        if not fits:
            raise LeftOut("its tokens do not spell its text")
        return answer

    def _by_text(self, record: Record) -> Answer:
        text = self._shown(record) or ""
        ids = self._tokenized(record, text)
        text = text[1:] if self._spaced(text) else text  # which decoding does not write either
        whole = UNKNOWN not in text and self._decoded(ids) == text
        if whole:
            self._confirmed(record, len(ids), necessary=False)
            # At an end that is not a token's own the last token may be the beginning of a longer one.
            stopped = record.sampling.stop or record.stop_reason or not record.finish_reason
            keep = len(ids) - (1 if stopped and record.finish_reason != "length" else 0)
        else:  # the last token that agrees may go on into what cannot be read
            keep = max(0, self._agreeing(ids, text.partition(UNKNOWN)[0]) - 1)
        return Answer(ids[:keep], TEXT, len(ids) - keep)

    def _tokenized(self, record: Record, text: str) -> tuple[int, ...]:
        """Return the ids that a text makes where an answer begins.

        SentencePiece writes a space before the first word of a text. An answer does not begin a text, so
        its first token has that space or not: a text that shows it decides it, and a stated number may.

        Raises
        ------
        LeftOut
            When it is not known which of two first tokens was emitted.
        """
        if not self._prefixed:
            return self._plain_ids(text)
        if self._spaced(text):
            return self._plain_ids(text[1:])
        with_space, line = self._plain_ids(text), self._plain_ids("\n")
        after = self._plain_ids("\n" + text)
        without = after[len(line) :] if after[: len(line)] == line else None
        stated = record.completion_tokens
        either = [one for one in (with_space, without) if one is not None]
        if stated is not None:
            either = [one for one in either if len(one) in (stated, stated - 1)] or either
        if without is None or len(set(either)) != 1:
            raise LeftOut(
                "its text does not show whether its first token begins with a space: ask for token ids"
            )
        return either[0]

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        # A marker that stands in the text was written as text: a server takes real markers out.
        return tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _spaced(self, text: str) -> bool:
        """Return whether a text begins with the one space that this tokenizer writes by itself."""
        return self._prefixed and text.startswith(" ")

    @cached_property
    def _prefixed(self) -> bool:
        """Return whether the tokenizer writes a space before a text's first word, as SentencePiece does."""
        first = self._tokenizer.convert_ids_to_tokens(list(self._plain_ids("a"))[:1])
        return not self._level and bool(first) and str(first[0]).startswith(SPACE)

    @cached_property
    def _level(self) -> bool:
        return byte_level(self._tokenizer)

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
            more = ", so that tokens before or after it are hidden" if stated > count else ""
            raise LeftOut(f"its text makes another number of tokens than it states{more}")

    def _joined(self, record: Record) -> Answer:
        """Join reasoning, text and tool calls as the chat template writes them; a stated count must agree."""
        if record.messages is None or not self._tokenizer.chat_template:
            raise LeftOut("its reasoning or tool calls cannot be joined without messages and a chat template")
        message: dict[str, Any] = {"role": "assistant", "content": record.output or ""}
        if record.reasoning:
            message["reasoning_content"] = record.reasoning
        if record.tool_calls:
            message["tool_calls"] = [_call(one) for one in record.tool_calls]
        day = self._days(record)[0] if self._dated else None
        before = self._rendered(record, [], day)
        after = self._rendered(record, [message], day)
        if not after.startswith(before) or record.reasoning not in after[len(before) :]:
            raise LeftOut("the chat template does not write its reasoning or tool calls out")
        text = after[len(before) :].rstrip()
        end = self._tokenizer.eos_token or ""
        text = text.removesuffix(end) if end else text
        ids = tuple(self._tokenizer(text, add_special_tokens=False).input_ids)
        self._confirmed(record, len(ids), necessary=True)
        return Answer(ids, JOINED)

    def _template(self, record: Record, day: datetime.date | None) -> tuple[int, ...]:
        text = self._rendered(record, [], day)
        return tuple(self._tokenizer(text, add_special_tokens=bool(record.special)).input_ids)

    def _rendered(
        self, record: Record, more: Sequence[Mapping[str, Any]], day: datetime.date | None = None
    ) -> str:
        if not self._tokenizer.chat_template:
            raise FieldError("messages", record.messages, "prompt_token_ids: this model has no chat template")
        for name, value in record.template.items():
            if name in self._arguments or name == CLOCK or not isinstance(value, _PLAIN):
                raise FieldError(f"chat_template_kwargs.{name}", value, "a switch of the chat template")
        messages = [_message(one, i) for i, one in enumerate(record.messages or ())]
        tools = list(record.tools) or None
        own = (
            {} if day is None else {"chat_template": _on(day, self._tokenizer.get_chat_template(None, tools))}
        )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [*messages, *more],
                tools=tools,
                add_generation_prompt=not more,
                tokenize=False,
                **record.template,
                **own,
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


_NOW = re.compile(CLOCK + r"""\(\s*(["'])((?:(?!\1)[^\\])*)\1\s*\)""")


def _on(day: datetime.date, template: str) -> str:
    """Return a chat template that writes a day in the place of today: nothing else can set its clock.

    Raises
    ------
    LeftOut
        When it asks for the time in a way that shows no format.
    """
    made = _NOW.sub(lambda found: json.dumps(day.strftime(found[2]), ensure_ascii=False), template)
    if re.search(CLOCK + r"\s*\(", made):
        raise LeftOut("the chat template writes the time in a form that is not known before it runs")
    return made


def byte_level(tokenizer: Any) -> bool:
    """Return whether a tokenizer's vocabulary writes a letter for each byte."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    return "ByteLevel" in json.dumps(decoder)


def octets_of(tokenizer: Any) -> dict[bytes, list[int]]:
    """Return the ids of every string of bytes that a tokenizer has a token for.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a byte-level vocabulary, or one with ``▁`` for a space and ``<0x0A>`` for a byte.
    """
    level = byte_level(tokenizer)
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


def _plain(text: str) -> str:
    """Strip a text to what servers agree on: no spaces at its ends, and no parts of a character there.

    How many � stand for bytes that are not a character differs between a text that is decoded at once and one
    that is decoded token by token, so a run of them counts as one.
    """
    return _BROKEN.sub(UNKNOWN, text).strip().rstrip(UNKNOWN).strip()


_BROKEN = re.compile(f"{UNKNOWN}+")


def _called(call: object) -> object:
    """The name and arguments of a tool call, as a record lists it or as a model wrote it; None for none."""
    if isinstance(call, str):
        try:
            written = json.loads(call)
        except (ValueError, RecursionError):
            return None
        found = written if isinstance(written, dict) else {}
    else:
        made = _call(call)
        function = made.get("function") if isinstance(made, dict) else None
        found = function if isinstance(function, dict) else {}
    name, arguments = found.get("name"), found.get("arguments", found.get("parameters"))
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


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
