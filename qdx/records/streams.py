"""Puts the pieces of streamed answers together, of several answers at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdx.dataset.guarding import limits
from qdx.records.record import FieldError, Unreadable

MOST_OPEN = 256  # answers that may be streamed at one time
MOST_CHOICES = 1024  # of one response
CUT = "qdx: the stream has no end"  # a field that no server writes
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")
_LISTS = ("content", "tokens", "token_logprobs", "top_logprobs", "text_offset")


@dataclass
class _Open:
    where: str
    body: dict[str, Any] = field(default_factory=dict)
    choices: dict[int, dict[str, Any]] = field(default_factory=dict)
    size: int = 0
    broken: bool = False  # a piece of it could not be read, which was said then

    def add(self, piece: dict[str, Any]) -> None:
        self.size += size_of(piece)
        for name, value in piece.items():
            if name == "usage" and value is not None:
                self.body[name] = value  # servers count while they stream, so that the last one is right
            elif name != "choices" and value is not None:
                self.body.setdefault(name, value)
        choices = piece.get("choices") or []
        if not isinstance(choices, list):
            raise FieldError("choices", choices, "a list")
        for choice in choices:
            if not isinstance(choice, dict):
                raise FieldError("choices[]", choice, "an object")
            index = choice.get("index", 0)
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MOST_CHOICES:
                raise FieldError("choices[].index", index, f"a whole number from 0 to {MOST_CHOICES - 1}")
            _extend(self.choices.setdefault(index, {"index": index}), choice)

    def whole(self) -> dict[str, Any]:
        for choice in self.choices.values():  # texts are kept in pieces: a sum of strings copies all of them
            for texts in (choice, choice.get("message", {})):
                for name in ("text", *_TEXTS):
                    if isinstance(texts.get(name), list):
                        texts[name] = "".join(texts[name])
            if not choice.get("finish_reason"):
                choice[CUT] = True
        chat = any("message" in choice for choice in self.choices.values())
        kind = "chat.completion" if chat else "text_completion"
        return {**self.body, "object": kind, "choices": [self.choices[i] for i in sorted(self.choices)]}


def _ended(one: _Open) -> bool:
    """Return whether every choice that was seen says why it ended."""
    return bool(one.choices) and all(choice.get("finish_reason") for choice in one.choices.values())


def size_of(value: object) -> int:
    """About how many characters a JSON value has."""
    left, size = [value], 0
    while left:
        one = left.pop()
        size += len(one) if isinstance(one, str) else 8
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += [*one, *one.values()]
    return size


def _extend(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Put a piece's choice to the end of what was streamed of it before."""
    if whole.get("finish_reason") and _continues(piece):
        raise FieldError("choices[]", piece, "nothing after finish_reason: two answers may have one id")
    for name, value in piece.items():
        if value is None or name == "index":
            continue
        if name in ("message", CUT):
            raise FieldError(f"choices[].{name}", value, "delta or text, as pieces have")
        if name == "delta":
            if not isinstance(value, dict):
                raise FieldError("choices[].delta", value, "an object")
            _delta(whole.setdefault("message", {}), value)
        elif name == "text":
            whole.setdefault("text", []).append(_text(value, "choices[].text"))
        elif name == "token_ids":
            if not isinstance(value, list):
                raise FieldError("choices[].token_ids", value, "a list of token ids")
            whole.setdefault("token_ids", []).extend(value)
        elif name == "logprobs":
            if not isinstance(value, dict):
                raise FieldError("choices[].logprobs", value, "an object")
            columns = whole.setdefault("logprobs", {})
            for column in _LISTS:
                if isinstance(value.get(column), list):
                    columns.setdefault(column, []).extend(value[column])
        else:
            whole[name] = value


def _continues(piece: dict[str, Any]) -> bool:
    """Return whether a piece has something of an answer's text or tokens."""
    delta = piece.get("delta")
    texts = delta if isinstance(delta, dict) else {}
    return bool(piece.get("text") or piece.get("token_ids") or any(texts.get(name) for name in _TEXTS))


def _delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            continue
        if name in _TEXTS:
            message.setdefault(name, []).append(_text(value, f"choices[].delta.{name}"))
        elif name == "tool_calls":
            _calls(message.setdefault("tool_calls", []), value)
        else:
            message.setdefault(name, value)


def _calls(calls: list[dict[str, Any]], pieces: object) -> None:
    if not isinstance(pieces, list):
        raise FieldError("choices[].delta.tool_calls", pieces, "a list")
    for piece in pieces:
        index = piece.get("index", 0) if isinstance(piece, dict) else None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= len(calls):
            raise FieldError("choices[].delta.tool_calls[].index", index, f"a number up to {len(calls)}")
        if index == len(calls):
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[index], piece.get("function") or {}
        if not isinstance(function, dict):
            raise FieldError("choices[].delta.tool_calls[].function", function, "an object")
        call.update({name: value for name, value in piece.items() if name not in ("index", "function")})
        for name in ("name", "arguments"):
            call["function"][name] += _text(function.get(name) or "", f"…tool_calls[].function.{name}")


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise FieldError(path, value, "a text")
    return value


class Streams:
    """Answers of which pieces were seen, by their ``id``."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def add(self, where: str, piece: dict[str, Any]) -> Iterator[tuple[str, Any] | Unreadable]:
        """Take a piece; yield what is whole because too many answers are open.

        Raises
        ------
        FieldError
            For a piece that has no ``id`` or is none.
        """
        name = piece.get("id")
        if not isinstance(name, str):
            raise FieldError("id", name, "the id of the answer that the piece belongs to")
        one = self._open.setdefault(name, _Open(where))
        self._open.move_to_end(name)
        if one.broken:
            return
        try:
            one.add(piece)
            if one.size > limits().max_length:
                most = limits().max_length
                raise FieldError("", piece, f"a streamed answer of at most {most:,} bytes (max_length)")
        except FieldError:  # an answer without one of its pieces is another answer
            self._open[name] = _Open(one.where, broken=True)
            raise
        while len(self._open) > MOST_OPEN:
            _, oldest = self._open.popitem(last=False)
            if oldest.broken:
                continue
            whole = oldest.whole()
            if any(CUT in choice for choice in whole["choices"]):
                yield Unreadable(oldest.where, f"it has no end, and {MOST_OPEN} other answers are streamed")
            else:
                yield oldest.where, whole

    def has(self, piece: object) -> bool:
        """Return whether a value names the answer that it is a piece of."""
        name = piece.get("id") if isinstance(piece, dict) else None
        return isinstance(name, str) and name in self._open

    def lose(self, where: str) -> Iterator[Unreadable]:
        """Give up every answer that has no end yet: a line that cannot be read may be a piece of it."""
        for name, one in list(self._open.items()):
            if not one.broken and not _ended(one):
                self._open[name] = _Open(one.where, broken=True)
                yield Unreadable(one.where, f"a piece of this answer may be {where}, which cannot be read")

    def close(self) -> Iterator[tuple[str, Any] | Unreadable]:
        """Yield every answer that is open yet, in the order of their last pieces."""
        while self._open:
            _, one = self._open.popitem(last=False)
            if not one.broken:
                yield one.where, one.whole()

    @staticmethod
    def joined(pieces: Sequence[Any]) -> dict[str, Any]:
        """Return the whole response of which these are all the pieces.

        Raises
        ------
        FieldError
        """
        one = _Open("")
        for i, piece in enumerate(pieces):
            if not isinstance(piece, dict):
                raise FieldError(f"response[{i}]", piece, "a piece of a response, an object")
            one.add(piece)
        return one.whole()
