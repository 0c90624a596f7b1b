"""Read what OpenRouter adds to answers of the OpenAI interface: who answered, and what was asked of whom."""

from __future__ import annotations

from dataclasses import replace

from qdx.plugins import register
from qdx.records import lines, openai
from qdx.records.record import FieldError, Fields, Record


@register("record_reader", "openrouter")
class OpenRouter(openai.OpenAI):
    """Read answers of OpenRouter: those of the OpenAI interface, with ``provider`` in request and response.

    Parameters
    ----------
    requests : str
        See `qdx.records.openai.OpenAI`.
    """

    def matches(self, head: bytes) -> bool:
        """Return whether the first answer names its provider, or has an id of OpenRouter's."""
        answer = openai.answer_of(lines.peek(head))
        own = str(answer.get("id") or "").startswith("gen-")
        return "choices" in answer and ("provider" in answer or own)


def marketplace(record: Record, request: Fields | None, body: Fields) -> Record:
    """Take who answered, and the weight format where the request allows a single one.

    Raises
    ------
    FieldError
    """
    provider = body.raw("provider")
    if provider is not None and not isinstance(provider, str):
        raise FieldError(body.at("provider"), provider, "a text")
    record = replace(record, provider=provider or "")
    asked = request.object("provider") if request is not None else None
    if asked is None:
        return record
    allowed = asked.raw("quantizations")
    if allowed is not None and not (isinstance(allowed, list) and all(isinstance(a, str) for a in allowed)):
        raise FieldError(asked.at("quantizations"), allowed, "a list of texts")
    only = asked.raw("only")
    if not record.provider and isinstance(only, list) and len(only) == 1:
        record = replace(record, provider=str(only[0]))
    return replace(record, weight_format=allowed[0] if allowed and len(allowed) == 1 else "")
