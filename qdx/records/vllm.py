"""Read what vLLM adds to answers of the OpenAI interface: token ids, and log-probabilities of the prompt.

Fields: ``prompt_token_ids`` and ``prompt_logprobs`` (of a chat in the response, of a completion in the
choice), ``token_ids`` of a choice (``return_token_ids``), ``"token_id:N"`` in the place of a token's text
(``return_tokens_as_token_ids``); −9999.0 stands for a log-probability of −∞.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qdx.plugins import register
from qdx.records import lines, openai
from qdx.records.record import FieldError, Fields, Record, logprob


@register("record_reader", "vllm")
class Vllm(openai.OpenAI):
    """Read answers of a vLLM server: those of the OpenAI interface, with the fields that vLLM adds.

    Parameters
    ----------
    requests : str
        See `qdx.records.openai.OpenAI`.
    """

    def matches(self, head: bytes) -> bool:
        """Return whether the first answer has a field of vLLM's."""
        answer = openai.answer_of(lines.peek(head))
        choices = answer.get("choices")
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        fingerprint = answer.get("system_fingerprint")
        return "choices" in answer and (
            any(name in answer for name in ("prompt_token_ids", "prompt_logprobs"))
            or "token_ids" in first
            or (isinstance(fingerprint, str) and fingerprint.startswith("vllm-"))
        )


def prompt_of(record: Record, body: Fields) -> Record:
    """Take what a chat's response says of its prompt."""
    body.raw("prompt_text")  # the same as the ids
    return _of_prompt(record, body)


def _of_prompt(record: Record, fields: Fields) -> Record:
    ids = fields.ids("prompt_token_ids")
    if ids is not None:
        record = replace(record, prompt_ids=ids)
    stated = fields.raw("prompt_logprobs")
    if stated is None:
        return record
    path = fields.at("prompt_logprobs")
    if not isinstance(stated, list):
        raise FieldError(path, stated, "a list")
    found = tuple(_position(one, f"{path}[{i}]") for i, one in enumerate(stated))
    if record.prompt_ids is not None and len(found) != len(record.prompt_ids):
        raise FieldError(path, stated, f"{len(record.prompt_ids)} positions, as prompt_token_ids has")
    return replace(record, prompt_logprobs=found)


def _position(listed: object, path: str) -> Mapping[int, float]:
    """The log-probabilities of one position of a prompt; the first has none."""
    if listed is None:
        return {}
    found: dict[int, float] = {}
    for name, value in Fields(listed, path).left().items():
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise FieldError(path, name, "token ids as keys")
        stated = value.get("logprob") if isinstance(value, dict) else value
        found[int(name)] = logprob(stated, f"{path}.{name}.logprob")
    return found


def positions(record: Record, choice: Fields) -> Record:
    """Take the ids of a choice, and give them to its positions.

    Raises
    ------
    FieldError
        When ids and log-probabilities are of other numbers of positions, or name other tokens.
    """
    record = _of_prompt(record, choice)
    stop = choice.raw("stop_reason")
    if stop is not None and not isinstance(stop, str | int):
        raise FieldError(choice.at("stop_reason"), stop, "a text or a token id")
    record = replace(record, stop_reason="" if stop is None else str(stop))
    ids = choice.ids("token_ids")
    if ids is None:
        named = [token.token_id for token in record.tokens]
        if named and all(one is not None for one in named):
            return replace(record, output_ids=tuple(one for one in named if one is not None))
        return record
    if not record.tokens:
        return replace(record, output_ids=ids)
    if len(record.tokens) != len(ids):
        raise FieldError(
            choice.at("token_ids"), list(ids), f"{len(record.tokens)} ids, as logprobs has positions"
        )
    for i, (token, one) in enumerate(zip(record.tokens, ids, strict=True)):
        if token.token_id not in (None, one):
            raise FieldError(
                f"{choice.at('token_ids')}[{i}]", one, f"{token.token_id}, as logprobs has there"
            )
    tokens = tuple(replace(token, token_id=one) for token, one in zip(record.tokens, ids, strict=True))
    return replace(record, output_ids=ids, tokens=tokens)
