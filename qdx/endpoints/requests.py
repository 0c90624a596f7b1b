"""Build a request: the prompt as ids or a conversation, how tokens are chosen, what is asked back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdx.prompts import Reference
    from qdx.schema_endpoint import OpenaiBackend

PATHS = {"completions": "completions", "chat": "chat/completions"}


@dataclass(frozen=True)
class Manner:
    """Say what this server lets one ask back; servers refuse fields that they do not know.

    Attributes
    ----------
    ids : bool
        Token ids of prompt and answer (``return_token_ids``, vLLM 0.10.2 and later).
    logprobs : bool
        Log-probabilities of the tokens and their alternatives.
    """

    ids: bool = True
    logprobs: bool = True

    def without(self) -> Iterator[Manner]:
        """Return what to try when a server refuses a request: the fields that fewest servers know go first.

        How tokens are chosen is never left out: an answer to another question than the user's would be taken
        for one to his.
        """
        if self.ids:
            yield replace(self, ids=False)
        if self.logprobs:
            yield replace(self, ids=False, logprobs=False)

    def said(self) -> str:
        """In words."""
        parts = ["token ids" if self.ids else "no token ids"]
        parts.append("log-probabilities" if self.logprobs else "no log-probabilities")
        return ", ".join(parts)


@dataclass(frozen=True)
class Question:
    """One answer that is wanted.

    Attributes
    ----------
    name : str
        ``ref_0/0``: reference and number of the answer; the ``custom_id`` of its line.
    reference : Reference
    number : int
        Of the request among all of this config, from 0: a seed counts on from it.
    """

    name: str
    reference: Reference
    number: int


def questions(references: Sequence[Reference], answers: int) -> list[Question]:
    """Return every answer that is wanted: all first answers, then all second ones."""
    return [
        Question(f"{reference.name}/{number}", reference, number * len(references) + i)
        for number in range(answers)
        for i, reference in enumerate(references)
    ]


def body(question: Question, asked: OpenaiBackend, manner: Manner, tokens: int) -> dict[str, Any]:
    """Return a request.

    Parameters
    ----------
    question : Question
    asked : OpenaiBackend
    manner : Manner
    tokens : int
        Of the answer, at most.
    """
    found: dict[str, Any] = {"model": asked.model}
    if asked.route == "chat":
        found["messages"] = [{"role": "user", "content": question.reference.text}]
    else:
        found["prompt"] = question.reference.token_ids.tolist()
    return found | fields(asked, manner, tokens, question.number)


def fields(asked: OpenaiBackend, manner: Manner, tokens: int, number: int) -> dict[str, Any]:
    """Return what a request has beside model and prompt.

    Parameters
    ----------
    asked : OpenaiBackend
    manner : Manner
    tokens : int
        Of the answer, at most.
    number : int
        Of the request: a seed counts on from it, since answers of one seed share their noise and count as
        one.
    """
    found: dict[str, Any] = {"max_tokens": tokens, "temperature": asked.temperature}
    for name in ("top_p", "top_k", "min_p"):
        if getattr(asked, name) is not None:
            found[name] = getattr(asked, name)
    if asked.seed is not None:
        found["seed"] = asked.seed + number
    if asked.logprobs is not None and manner.logprobs:
        if asked.route == "chat":
            found |= {"logprobs": True, "top_logprobs": asked.logprobs}
        else:
            found["logprobs"] = asked.logprobs
    if manner.ids:
        found["return_token_ids"] = True
    return found | dict(asked.extra or {})
