"""Answers of the OpenAI interface: chat and legacy completions, Batch files, streamed pieces.

A line is a pair ``{"request": …, "response": …}``, a line of a Batch output file, a bare response, or a piece
of a streamed one. What vLLM and OpenRouter add to a response is read wherever it stands
(`qdx.records.vllm`, `qdx.records.openrouter`): servers of that interface add fields freely.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdx.plugins import register
from qdx.records import lines
from qdx.records.record import (
    MOST_RANKS,
    FieldError,
    Fields,
    Record,
    Shared,
    Token,
    Unreadable,
    ids,
    logprob,
    moment,
    shown,
    stated_sampling,
)
from qdx.records.requests import Requests
from qdx.records.streams import CUT, MOST_CHOICES, Streams

TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")
CHAT, COMPLETION, CHUNK = "chat.completion", "text_completion", "chat.completion.chunk"
ENVELOPE = ("custom_id", "id", "error")  # of a line around a request and a response


@register("record_reader", "openai")
class OpenAI:
    """Read answers of the OpenAI interface.

    Parameters
    ----------
    requests : str
        File with the requests where the answers stand alone, such as the input of a Batch: a line belongs to
        the answer of the same ``custom_id``.
    """

    def __init__(self, requests: str = "") -> None:
        self._requests = Requests(Path(requests)) if requests else None

    def matches(self, head: bytes) -> bool:
        """Return whether the first value is a response, a piece of one, or a line around one."""
        return "choices" in answer_of(lines.peek(head))

    def read(self, path: Path) -> Iterator[Record | Unreadable]:
        """Read every answer of a file; see `qdx.records.RecordReader`."""
        streams = Streams()
        for one in lines.values(path):
            if isinstance(one, Unreadable):
                yield one
                yield from streams.lose(one.where)
            else:
                for found in lines.naming(one.where, self._value(one, streams)):
                    yield found
                    if isinstance(found, Unreadable) and not streams.has(one.value):
                        yield from streams.lose(one.where)
        yield from self._streamed(streams.close())
        if self._requests is not None:
            yield from self._requests.unanswered()

    def _value(self, value: lines.Value, streams: Streams) -> Iterator[Record | Unreadable]:
        if is_piece(value.value, value.event):
            yield from self._streamed(streams.add(value.where, value.value))
            return
        envelope = Fields(value.value)
        if "choices" in envelope:
            yield from answers(value.where, None, envelope)
            return
        identity = envelope.text("custom_id")
        request = request_of(envelope)
        if request is None and self._requests is not None and identity:
            request = self._requests.find(identity)
            request = None if request is None else sent(request)
        refuse_error(envelope.raw("error"), "error")
        response = envelope.raw("response")
        if isinstance(response, dict) and "body" in response:  # of a Batch
            around = Fields(response, "response")
            status = around.integer("status_code")
            if status not in (None, 200):
                body = around.raw("body")
                raise FieldError("response.status_code", status, f"200; the provider says {_said(body)}")
            response, path = around.raw("body"), "response.body"
        else:
            path = "response"
        if isinstance(response, str):
            response = _events(response)
        if isinstance(response, list):
            response = Streams.joined(response)
        if response is None:
            raise FieldError("", value.value, "a field response, or choices: this line is not an answer")
        yield from answers(value.where, request, Fields(response, path), identity, envelope)

    def _streamed(self, bodies: Iterator[tuple[str, Any] | Unreadable]) -> Iterator[Record | Unreadable]:
        for one in bodies:
            if isinstance(one, Unreadable):
                yield one
                continue
            where, body = one
            yield from lines.naming(where, answers(where, None, Fields(body)))


def answer_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the response in a line, wherever it stands: itself, in ``response`` or in ``response.body``."""
    if "choices" in value:
        return value
    response = value.get("response")
    if isinstance(response, list) and response and isinstance(response[0], dict):
        response = response[0]
    if isinstance(response, str) and response.lstrip().startswith("data:"):
        return lines.peek(response.encode())
    if not isinstance(response, dict):
        return {}
    body = response.get("body")
    return body if isinstance(body, dict) else response


def is_piece(value: object, event: bool) -> bool:
    """Return whether a value is a piece of a streamed answer."""
    return isinstance(value, dict) and (value.get("object") == CHUNK or (event and "choices" in value))


def _events(text: str) -> list[Any]:
    """The values of server-sent events in a text."""
    found = [line.strip()[5:].strip() for line in text.splitlines() if line.strip().startswith("data:")]
    try:
        return [lines.parse(one) for one in found if one and one != "[DONE]"]
    except ValueError as error:
        raise FieldError("response", text, f"server-sent events of JSON ({error})") from None


def refuse_error(value: object, path: str) -> None:
    """Refuse what a provider answered in place of an answer."""
    if value not in (None, "", {}):
        raise FieldError(path, _said(value), "an answer, the provider gave an error")


def _said(value: object) -> str:
    while isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    return str(value.get("message", "an error")) if isinstance(value, dict) else str(value)


def request_of(envelope: Fields) -> Fields | None:
    """Take the request of a line: as it was sent, or as a Batch has it, around its body."""
    request = envelope.object("request")
    if request is not None and "body" in request:
        request = request.object("body")
    return None if request is None else sent(request)


def sent(request: Fields) -> Fields:
    """Return a request as it went over the wire: clients put ``extra_body`` over its fields.

    Raises
    ------
    FieldError
    """
    extra = request.object("extra_body")
    return request if extra is None else Fields({**request.left(), **extra.left()}, request.path)


def answers(
    where: str, request: Fields | None, body: Fields, identity: str = "", envelope: Fields | None = None
) -> Iterator[Record | Unreadable]:
    """Yield a record for every choice of a response, and say where choices that were asked for are missing.

    Parameters
    ----------
    where : str
    request : Fields or None
    body : Fields
        The response.
    identity : str
        What whoever asked calls the request; "" where it has no name. The provider chooses the response's id,
        which is never taken for one.
    envelope : Fields, optional
        What stands around both, for its unknown fields.

    Raises
    ------
    FieldError
    """
    from qdx.records.llamacpp import to_its_end
    from qdx.records.vllm import positions

    refuse_error(body.raw("error"), body.at("error"))
    kind = body.text("object")
    if kind not in ("", CHAT, COMPLETION, CHUNK):
        raise FieldError(body.at("object"), kind, f"{CHAT} or {COMPLETION}")
    choices = body.entries("choices", MOST_CHOICES)
    if not choices:
        raise FieldError(body.at("choices"), None, "at least one choice")
    prompts = _prompts(request.raw("prompt") if request is not None else None)
    echo = bool(request.flag("echo")) if request is not None else False
    every = (request.integer("n", 1) if request is not None else None) or 1
    special = request.flag("add_special_tokens") if request is not None else None
    common = replace(_common(where, request, body), response_id=body.text("id"), special=special)
    wanted = every * max(1, len(prompts))
    if request is not None and len(choices) > wanted:
        raise FieldError(body.at("choices"), choices, f"{wanted}, as the request asks for")
    numbers = [fallback if (i := c.integer("index")) is None else i for fallback, c in enumerate(choices)]
    if len(set(numbers)) < len(numbers):
        raise FieldError(body.at("choices[].index"), numbers, "another index in each choice")
    if len(choices) > 1 or len(prompts) > 1:  # usage counts the tokens of all choices and prompts together
        shared = Shared(len(choices), max(1, len(prompts)), common.prompt_tokens, common.completion_tokens)
        only = common.prompt_tokens if len(prompts) < 2 else None
        common = replace(
            common, prompt_tokens=only, completion_tokens=None, reasoning_tokens=None, shared=shared
        )
    if envelope is not None and (asked := envelope.text("provider")):
        common = replace(common, provider=asked)  # whoever asked says whom
    left = _left(("", envelope), ("request.", request), ("response.", body))
    for number, choice in zip(numbers, choices, strict=True):
        record = replace(common, identity=f"{identity}#{number}" if identity else "", choice=number % every)
        record = replace(record, cut=bool(choice.raw(CUT)))
        record = _with_prompt(record, prompts, number // every)
        record = _with_answer(record, choice, echo)
        record = to_its_end(positions(record, choice))
        own_left = _left((f"response.choices[{number}].", choice))
        yield replace(record, other={**left, **record.other, **own_left})
    if request is not None and len(choices) < wanted:
        yield Unreadable(where, f"{len(choices)} of the {wanted} answers that the request asks for")


def _prompts(stated: object) -> list[object]:
    """Return the prompts of a completion: none for a chat, one, or several of a list."""
    if stated is None:
        return []
    if isinstance(stated, list) and stated and isinstance(stated[0], list | str):
        return stated
    return [stated]


def _left(*parts: tuple[str, Fields | None]) -> dict[str, Any]:
    return {
        f"{prefix}{name}": value
        for prefix, one in parts
        if one is not None
        for name, value in one.left().items()
    }


def _common(where: str, request: Fields | None, body: Fields) -> Record:
    """Return what all choices of a response share."""
    from qdx.records.llamacpp import server_of
    from qdx.records.openrouter import marketplace
    from qdx.records.vllm import prompt_of

    record = Record(where, model=body.text("model"), fingerprint=body.text("system_fingerprint"))
    record = replace(record, created=moment(body.raw("created")))
    body.raw("service_tier")
    usage = body.object("usage")
    if usage is not None:
        record = replace(
            record,
            prompt_tokens=usage.integer("prompt_tokens"),
            completion_tokens=usage.integer("completion_tokens"),
        )
        details = usage.object("completion_tokens_details")
        if details is not None:
            record = replace(record, reasoning_tokens=details.integer("reasoning_tokens"))
    if request is not None:
        messages = request.objects("messages")
        if (own := request.raw("chat_template")) is not None:
            raise FieldError(request.at("chat_template"), own, "the model's own template: another is not run")
        template = request.raw("chat_template_kwargs") or {}
        if not isinstance(template, dict):
            raise FieldError(request.at("chat_template_kwargs"), template, "an object")
        if effort := request.text("reasoning_effort"):
            template = {**template, "reasoning_effort": effort}
        record = replace(
            record,
            messages=messages or None,
            tools=request.objects("tools"),
            template=template,
            sampling=stated_sampling(request),
            model=record.model or request.text("model"),
        )
        request.raw("model")
    return marketplace(prompt_of(server_of(record, body), body), request, body)


def _with_prompt(record: Record, prompts: Sequence[object], number: int) -> Record:
    """Give a completion its prompt: a text, token ids, or one of several of either."""
    if not prompts:
        return record
    if number >= len(prompts):
        raise FieldError("request.prompt", list(prompts), f"a prompt for choice {number}")
    one = prompts[number]
    if isinstance(one, str):
        return replace(record, prompt=one)
    return replace(record, asked_ids=ids(one, "request.prompt"))


def _with_answer(record: Record, choice: Fields, echo: bool) -> Record:
    """Give a record the text of a choice, and the log-probabilities of its positions."""
    record = replace(record, finish_reason=choice.text("finish_reason"))
    message = choice.object("message")
    if message is None:
        text = choice.raw("text")
        if text is None:
            raise FieldError(choice.at("message"), None, "a message, or a text")
        if not isinstance(text, str):
            raise FieldError(choice.at("text"), text, "a text")
        listed = choice.object("logprobs")
        if listed is not None and "content" in listed:  # as a chat has it: llama.cpp's completions
            tokens = list(chat_tokens(listed))
            offsets: list[int] = []
        else:
            tokens, offsets = completion_tokens(listed)
        if echo and record.prompt is not None:
            start = len(record.prompt)
            if not text.startswith(record.prompt):
                raise FieldError(choice.at("text"), text, "the prompt first, since the request has echo")
            text = text[start:]
            if len(offsets) != len(tokens):
                raise FieldError(
                    choice.at("logprobs"), listed, "where each token begins, since the request has echo"
                )
            tokens = [token for token, at in zip(tokens, offsets, strict=True) if at >= start]
        elif echo and record.asked_ids is not None:  # whoever has the tokenizer takes the prompt's text off
            tokens = tokens[len(record.asked_ids) :]
            record = replace(record, echo=True)
        return replace(record, output=text, tokens=tuple(tokens))
    message.raw("role")
    content = content_text(message.raw("content"), message.at("content"))
    refusal = message.text("refusal")
    reasoning = message.text("reasoning") or message.text("reasoning_content")
    calls = message.objects("tool_calls")
    if content is None and not calls and not reasoning and not refusal:
        raise FieldError(message.at("content"), None, "a text, reasoning or tool calls")
    return replace(
        record,
        other=_left((f"{message.path}.", message)),
        output=(content or "") + refusal,
        reasoning=reasoning,
        tool_calls=calls,
        tokens=tuple(chat_tokens(choice.object("logprobs"))),
    )


def content_text(value: object, path: str) -> str | None:
    """Return the text of a message's content: a text, or a list of parts that are all texts.

    Raises
    ------
    FieldError
        For a part that is not text, such as a picture: it has no token ids here.
    """
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise FieldError(path, value, "a text or a list of parts")
    found = []
    for i, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise FieldError(f"{path}[{i}]", part, "a part that is a text")
        found.append(text)
    return "".join(found)


def chat_tokens(logprobs: Fields | None) -> Iterator[Token]:
    """Iterate over the positions of a chat answer."""
    for position in [] if logprobs is None else logprobs.entries("content"):
        top = [_token(one) for one in position.entries("top_logprobs")[:MOST_RANKS]]
        yield replace(_token(position), top=tuple(top))


def _token(entry: Fields) -> Token:
    text = entry.raw("token")
    if not isinstance(text, str):
        raise FieldError(entry.at("token"), text, "a text")
    number, octets = _id_of(text), entry.raw("bytes")
    if octets is not None and not (
        isinstance(octets, list) and all(isinstance(b, int) and 0 <= b < 256 for b in octets)
    ):
        raise FieldError(entry.at("bytes"), octets, "a list of bytes")
    # vLLM puts the bytes of the words "token_id:5" there in its list of alternatives.
    literal = number is not None and bytes(octets or ()) == text.encode()
    known = None if literal or not octets else bytes(octets)
    if number is None:  # llama.cpp says it beside the text
        number = entry.integer("id", most=2**31 - 1)
    return Token(text, known, number, logprob(entry.raw("logprob"), entry.at("logprob")))


def _id_of(text: str) -> int | None:
    found = TOKEN_ID.fullmatch(text)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class _Columns:
    """The four lists of a legacy completion's log-probabilities."""

    tokens: Sequence[Any]
    logprobs: Sequence[Any]
    top: Sequence[Any]
    offsets: Sequence[Any]


def completion_tokens(logprobs: Fields | None) -> tuple[list[Token], list[int]]:
    """Return the positions of a legacy completion, and where each begins in the text."""
    if logprobs is None:
        return [], []
    columns = _Columns(
        *(_list(logprobs, n) for n in ("tokens", "token_logprobs", "top_logprobs", "text_offset"))
    )
    count = len(columns.tokens)
    for name, column in (("token_logprobs", columns.logprobs), ("top_logprobs", columns.top)):
        if column and len(column) != count:
            raise FieldError(logprobs.at(name), column, f"{count} entries, as tokens has")
    found = []
    for i, text in enumerate(columns.tokens):
        if not isinstance(text, str):
            raise FieldError(f"{logprobs.at('tokens')}[{i}]", text, "a text")
        stated = (
            logprob(columns.logprobs[i], f"{logprobs.at('token_logprobs')}[{i}]")
            if columns.logprobs
            else math.nan
        )
        top: list[Token] = []
        if columns.top and columns.top[i] is not None:
            place = f"{logprobs.at('top_logprobs')}[{i}]"
            if not isinstance(columns.top[i], dict):
                raise FieldError(place, columns.top[i], "an object")
            listed = list(columns.top[i].items())[:MOST_RANKS]
            top = [Token(t, None, _id_of(t), logprob(v, f"{place}[{shown(t)}]")) for t, v in listed]
        found.append(Token(text, None, _id_of(text), stated, tuple(top)))
    offsets = [int(at) if isinstance(at, int) else 0 for at in columns.offsets] or [0] * count
    if len(offsets) != count:
        raise FieldError(logprobs.at("text_offset"), columns.offsets, f"{count} entries, as tokens has")
    return found, offsets


def _list(fields: Fields, name: str) -> Sequence[Any]:
    value = fields.raw(name)
    if value is not None and not isinstance(value, list):
        raise FieldError(fields.at(name), value, "a list")
    return value or []
