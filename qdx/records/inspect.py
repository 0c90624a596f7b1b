"""Logs of Inspect: ``.eval``, a zip archive with one JSON a sample, and the same log as one JSON document.

Newer versions compress their archives with Zstandard, which Python's `zipfile` does not know before 3.14. No
member is unpacked further than the limit of a text (``max_length``), whatever its header says.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdx.dataset.guarding import limits
from qdx.errors import QdxError
from qdx.plugins import register
from qdx.records import lines
from qdx.records.openai import chat_tokens, refuse_error
from qdx.records.record import FieldError, Fields, Record, Sampling, Shared, Unreadable, stated_sampling
from qdx.records.streams import MOST_CHOICES

ZIP = b"PK\x03\x04"
ZSTANDARD = 93  # a compression method of zip
ATTACHMENT = "attachment://"  # stands for a long text, which is kept once beside a sample's messages
STOPPED = {"max_tokens": "length", "stop": "stop"}
# Options of a log that change no token of an answer.
HARMLESS = frozenset({
    "max_retries", "timeout", "attempt_timeout", "max_connections", "adaptive_connections", "max_tool_output",
    "cache_prompt", "cache", "batch", "internal_tools", "num_choices",
})  # fmt: skip


@register("record_reader", "inspect")
class Inspect:
    """Read the samples of an Inspect log: the conversation up to its last answer, and that answer."""

    def matches(self, head: bytes) -> bool:
        """Return whether the file is a zip archive, or a JSON log with ``eval`` and ``samples``."""
        return head.startswith(ZIP) or {"eval", "plan", "status"} <= lines.peek(head).keys()

    def read(self, path: Path) -> Iterator[Record | Unreadable]:
        """Read every sample of a log; see `qdx.records.RecordReader`."""
        with path.open("rb") as stream:
            archive = stream.read(4) == ZIP
        yield from _archive(path) if archive else _document(path)


def _document(path: Path) -> Iterator[Record | Unreadable]:
    for value in lines.values(path):
        if isinstance(value, Unreadable):
            yield value
            continue
        try:
            log = Fields(value.value)
            settings = _settings(log)
            samples = log.raw("samples")
            if not isinstance(samples, list):
                raise FieldError("samples", samples, "a list: the log was written without its samples")
        except FieldError as error:
            yield Unreadable(value.where, str(error))
            continue
        for number, sample in enumerate(samples):
            yield from _sample(f"{value.where}: samples[{number}]", sample, settings)


def _archive(path: Path) -> Iterator[Record | Unreadable]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            members = archive.infolist()
            if len(members) > limits().max_objects:
                raise QdxError(
                    f"{path}: {len(members):,} members, limit {limits().max_objects:,} (max_objects)"
                )
            by_name = {member.filename: member for member in members}
            header = next((n for n in ("header.json", "_journal/start.json") if n in by_name), "")
            if not header:
                raise QdxError(f"{path}: a zip archive without header.json: it is not a log of Inspect")
            try:
                settings = _settings(Fields(lines.parse(_unpacked(stream, by_name[header]))))
            except (FieldError, ValueError) as error:
                raise QdxError(f"{path}: {header}: {error}") from error
            total = 0
            for name, member in by_name.items():
                if not (name.startswith("samples/") and name.endswith(".json")):
                    continue
                where = f"{path.name}: {name}"
                try:
                    text = _unpacked(stream, member)
                    total += len(text)
                    if total > limits().max_bytes:
                        raise QdxError(f"{path}: more than {limits().max_bytes:,} bytes unpacked (max_bytes)")
                    sample = lines.parse(text)
                except ValueError as error:
                    yield Unreadable(where, str(error))
                    continue
                yield from _sample(where, sample, settings)
    except zipfile.BadZipFile as error:
        raise QdxError(f"{path}: no whole zip archive ({error}): copy the log again") from error


def _unpacked(stream: Any, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member as far as the limit.

    Raises
    ------
    ValueError
        When it is larger, damaged, encrypted or compressed otherwise.
    """
    most = limits().max_length
    if member.flag_bits & 1:
        raise ValueError("the member is encrypted")
    stream.seek(member.header_offset)
    local = stream.read(30)
    if len(local) < 30 or local[:4] != ZIP:
        raise ValueError("the member's header is damaged")
    stream.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), 1)
    # No method makes a text much longer than it is: of a longer member its beginning shows that it is.
    packed: bytes = stream.read(min(member.compress_size, most + most // 100 + 65_536))
    if member.compress_type == zipfile.ZIP_STORED:
        text = packed
    elif member.compress_type == zipfile.ZIP_DEFLATED:
        import zlib

        try:
            text = zlib.decompressobj(-15).decompress(packed, most + 1)
        except zlib.error as error:
            raise ValueError(f"the member is damaged ({error})") from None
    elif member.compress_type == ZSTANDARD:
        text = _zstandard(packed, most + 1)
    else:
        raise ValueError(
            f"the member has compression method {member.compress_type}, not deflate or Zstandard"
        )
    if len(text) > most:
        raise ValueError(f"the member has more than {most:,} bytes unpacked (max_length)")
    return text


def _zstandard(packed: bytes, most: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise QdxError(
            "the log is compressed with Zstandard: pip install zstandard (or qdx[records]), or write it as "
            "JSON: inspect log convert LOG --to json --output-dir DIR"
        ) from None
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(io.BytesIO(packed))
        return bytes(reader.read(most))
    except zstandard.ZstdError as error:
        raise ValueError(f"the member is damaged ({error})") from None


def _settings(log: Fields) -> dict[str, Any]:
    """Return what the log says of all samples: the model, and the options of generation."""
    about, plan = log.object("eval"), log.object("plan")
    if about is None:
        raise FieldError("eval", None, "an object")
    stated: dict[str, Any] = {}
    for options in (plan.raw("config") if plan is not None else None, about.raw("model_generate_config")):
        if isinstance(options, dict):
            stated |= {name: value for name, value in options.items() if value is not None}
    return {"model": about.text("model"), "options": stated}


def _sample(where: str, sample: object, settings: Mapping[str, Any]) -> Iterator[Record | Unreadable]:
    return lines.naming(where, _answers(where, sample, settings))


def _answers(where: str, found: object, settings: Mapping[str, Any]) -> Iterator[Record]:
    sample = Fields(found)
    texts = sample.raw("attachments") or {}
    texts = texts if isinstance(texts, dict) else {}
    refuse_error(sample.raw("error"), "error")
    room = _Room(limits().max_length)
    messages = [_resolved(message, texts, room) for message in sample.objects("messages")]
    output = sample.object("output")
    if output is None or not messages:
        raise FieldError("output", None, "an answer, and messages before it")
    refuse_error(output.raw("error"), "output.error")
    asked = _asked(sample.raw("events"))
    usage, name, choices = (
        output.object("usage"),
        output.text("model"),
        output.entries("choices", MOST_CHOICES),
    )
    if not choices:
        raise FieldError("output.choices", None, "at least one choice")
    last = next((i for i in range(len(messages), 0, -1) if messages[i - 1].get("role") == "assistant"), 0)
    if last != len(messages):
        raise FieldError("messages", messages, "an answer of the assistant at the end")
    sampling = _sampling({**settings["options"], **asked.get("config", {})})
    own = sample.raw("id")
    identity = "" if own is None else f"{own}/{sample.raw('epoch')}#"
    tools = [
        {"type": "function", "function": tool} for tool in asked.get("tools", []) if isinstance(tool, dict)
    ]
    shared = None
    if usage is not None and len(choices) > 1:
        shared = Shared(len(choices), 1, usage.integer("input_tokens"), usage.integer("output_tokens"))
    for number, choice in enumerate(choices):
        message = choice.object("message") or Fields({}, choice.at("message"))
        said, thought = _parts(_resolved(message.raw("content"), texts, room))
        tokens = tuple(chat_tokens(choice.object("logprobs")))
        stopped = choice.text("stop_reason")
        record = Record(
            where,
            f"{identity}{number}" if identity else "",
            messages=tuple(_plain(one) for one in messages[:-1]),
            tools=tuple(tools),
            output=said,
            reasoning=thought,
            tool_calls=message.objects("tool_calls"),
            tokens=tokens,
            finish_reason=STOPPED.get(stopped, stopped),
            sampling=sampling,
            model=name or str(settings["model"]),
            other={**sample.left(), **{f"output.{n}": v for n, v in output.left().items()}},
        )
        if usage is not None and len(choices) == 1:
            record = replace(
                record,
                prompt_tokens=usage.integer("input_tokens"),
                completion_tokens=usage.integer("output_tokens"),
                reasoning_tokens=usage.integer("reasoning_tokens"),
            )
        elif usage is not None:
            record = replace(record, shared=shared)
        yield record


def _asked(events: object) -> dict[str, Any]:
    """Return the config and the tools of the last call of a model among a sample's events."""
    calls = (
        [e for e in events if isinstance(e, dict) and e.get("event") == "model"]
        if isinstance(events, list)
        else []
    )
    if not calls:
        return {}
    config = calls[-1].get("config")
    stated = {n: v for n, v in config.items() if v is not None} if isinstance(config, dict) else {}
    tools = calls[-1].get("tools")
    return {"config": stated, "tools": tools if isinstance(tools, list) else []}


def _sampling(options: Mapping[str, Any]) -> Sampling:
    renamed = {"stop_seqs": "stop"}
    known = {renamed.get(name, name): value for name, value in options.items()}
    if "response_schema" in known:
        known["response_format"] = known.pop("response_schema")
    extra = known.pop("extra_body", None)
    known |= extra if isinstance(extra, dict) else {}  # as clients do, over what stands there
    return stated_sampling(Fields(known, "config"), HARMLESS)


@dataclass
class _Room:
    """Characters of attachments that a sample may still have: one text may be named without end."""

    left: int

    def take(self, text: str) -> str:
        """Return a text of an attachment.

        Raises
        ------
        FieldError
        """
        self.left -= len(text)
        if self.left < 0:
            most = limits().max_length
            raise FieldError(
                "attachments", text, f"texts of at most {most:,} characters together (max_length)"
            )
        return text


def _resolved(value: Any, texts: Mapping[str, Any], room: _Room) -> Any:
    """Put long texts back in their places."""
    if isinstance(value, str):
        if value.startswith(ATTACHMENT):
            text = texts.get(value.removeprefix(ATTACHMENT))
            if not isinstance(text, str):
                raise FieldError("attachments", value, "the text of this attachment")
            return room.take(text)
        return value
    if isinstance(value, list):
        return [_resolved(one, texts, room) for one in value]
    if isinstance(value, dict):
        return {name: _resolved(one, texts, room) for name, one in value.items()}
    return value


def _parts(content: object) -> tuple[str | None, str]:
    """Return the text and the reasoning of a message's content."""
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise FieldError("content", content, "a text or a list of parts")
    said, thought = [], []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            said.append(part["text"])
        elif kind == "reasoning" and isinstance(part.get("reasoning"), str):
            thought.append(part["reasoning"])
        else:
            raise FieldError(f"content[{i}]", kind, "a text or reasoning")
    return "".join(said), "".join(thought)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as a chat template reads it."""
    said, thought = _parts(message.get("content"))
    found = {"role": message.get("role"), "content": said or ""}
    if thought:
        found["reasoning_content"] = thought
    for name in ("tool_calls", "tool_call_id"):
        if message.get(name):
            found[name] = message[name]
    return found
