"""Samples of lm-evaluation-harness (``samples_<task>_<date>.jsonl``): prompts and answers as text.

Only tasks that generate have answers. A task that compares given texts, such as multiple choice, has
log-likelihoods of texts that no model chose: its lines are named and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qdx.plugins import register
from qdx.records import lines
from qdx.records.record import FieldError, Fields, Record, Sampling, Unreadable, stated_sampling


@register("record_reader", "lm_eval")
class LmEval:
    """Read the answers of lm-evaluation-harness; every repeat of a document is an answer."""

    def matches(self, head: bytes) -> bool:
        """Return whether the first line has a document, its arguments and its responses."""
        return {"doc_id", "arguments", "resps"} <= lines.peek(head).keys()

    def read(self, path: Path) -> Iterator[Record | Unreadable]:
        """Read every answer of a file; see `qdx.records.RecordReader`."""
        return lines.each(path, _answers)


def _answers(value: lines.Value) -> Iterator[Record]:
    line = Fields(value.value)
    document, arguments, responses = line.raw("doc_id"), line.object("arguments"), line.raw("resps")
    if arguments is None or not isinstance(responses, list):
        raise FieldError("arguments", None, "arguments and resps")
    calls = [arguments.object(name) for name in sorted(arguments.left())]
    if len(calls) != len(responses):
        raise FieldError("resps", responses, f"{len(calls)} lists of answers, as arguments has calls")
    other = line.left()
    for call, (call_fields, answers) in enumerate(zip(calls, responses, strict=True)):
        assert call_fields is not None
        prompt, options = call_fields.raw("arg_0"), call_fields.raw("arg_1")
        if not isinstance(options, dict):
            raise FieldError(
                call_fields.at("arg_1"),
                options,
                "options of generation: a given text was scored, nothing answered",
            )
        if not isinstance(answers, list):
            raise FieldError(f"resps[{call}]", answers, "a list of answers")
        for number, answer in enumerate(answers):
            if not isinstance(answer, str):
                raise FieldError(f"resps[{call}][{number}]", answer, "a text")
            yield Record(
                value.where,
                "" if document is None else f"doc {document}#{call}.{number}",
                **_prompt(prompt, call_fields.at("arg_0")),
                output=answer,
                sampling=_sampling(options, call_fields.at("arg_1")),
                other=other,
            )


def _prompt(value: object, path: str) -> dict[str, Any]:
    """Return a text as it is, and a conversation, which stands as JSON in a list of one text, as messages."""
    if isinstance(value, str):
        return {"prompt": value}
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        try:
            messages = lines.parse(value[0])
        except ValueError:
            return {"prompt": value[0]}
        if isinstance(messages, list) and all(isinstance(one, dict) for one in messages):
            return {"messages": tuple(messages)}
    raise FieldError(path, value, "a text, or a conversation as JSON")


def _sampling(options: Mapping[str, Any], path: str) -> Sampling:
    known = dict(options)
    if known.pop("do_sample", None) is False:
        known["temperature"] = 0.0
    for theirs, own in (("until", "stop"), ("max_gen_toks", "max_tokens")):
        if theirs in known:
            known[own] = known.pop(theirs)
    return stated_sampling(Fields(known, path))
