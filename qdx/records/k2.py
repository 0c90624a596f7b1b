"""Results of the K2 vendor verifier: a request, the response of a vendor, and what the tool made of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qdx.plugins import register
from qdx.records import lines
from qdx.records.openai import answers, refuse_error, sent
from qdx.records.record import FieldError, Fields, Record, Unreadable


@register("record_reader", "k2")
class K2:
    """Read ``results.jsonl`` of the K2 vendor verifier.

    What it sends beside the request (``extra_body``) counts as part of the request.
    """

    def matches(self, head: bytes) -> bool:
        """Return whether the first line has ``data_index`` beside a request and a response."""
        return {"data_index", "request", "response"} <= lines.peek(head).keys()

    def read(self, path: Path) -> Iterator[Record | Unreadable]:
        """Read every answer of a file; see `qdx.records.RecordReader`."""
        return lines.each(path, _line)


def _line(value: lines.Value) -> Iterator[Record | Unreadable]:
    line = Fields(value.value)
    number, status = line.integer("data_index"), line.text("status")
    request, extra, response = line.raw("request"), line.raw("extra_body"), line.raw("response")
    if status not in ("", "success"):
        refuse_error(
            (response or {}).get("error") if isinstance(response, dict) else response, "response.error"
        )
        raise FieldError("status", status, "success: the vendor gave no answer")
    if not isinstance(request, dict) or not isinstance(extra, dict | None):
        raise FieldError("request", request, "an object, with extra_body beside it")
    name = "" if number is None else f"data_index {number}"
    asked = sent(Fields({**request, "extra_body": extra}, "request"))
    yield from answers(value.where, asked, Fields(response, "response"), name, line)
