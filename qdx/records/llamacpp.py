"""What llama.cpp's server adds to answers of the OpenAI interface, and what it does otherwise than others.

Seen with build b11549, and read in ``tools/server`` there:

- A completion's log-probabilities are laid out as a chat's, and every entry has the token's ``id``.
- They are of the raw logits: neither temperature nor truncation is in them (with ``post_sampling_probs`` it
  prints probabilities in their place, which are refused here).
- Where a request does not say, top-k is 40, top-p 0.95 and min-p 0.05, or what the server was started with.
- Truncation comes before the temperature; vLLM and transformers do it the other way round. Where that matters
  nothing is decided (`qdx.verification.recorded`).
- A token that is a part of a character is counted and not listed: its bytes stand in the entry of the next
  one. Where no whole character comes of it, the text shows �.
- It keeps a prompt's beginning in its cache and computes only what follows, so that rows depend on who asked
  before; ``cache_prompt=false`` in a request prevents that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qdx.plugins import register
from qdx.records import lines, openai
from qdx.records.record import Fields, Record

FINGERPRINT = re.compile(r"b[0-9]+-\w+")  # build number and commit
DEFAULTS: Mapping[str, Any] = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
RAW = "raw_logprobs"  # as vLLM calls it
UNKNOWN = "\ufffd"


@register("record_reader", "llamacpp")
class Llamacpp(openai.OpenAI):
    """Read answers of llama.cpp's server: those of the OpenAI interface, as it writes them.

    Parameters
    ----------
    requests : str
        See `qdx.records.openai.OpenAI`.
    """

    def matches(self, head: bytes) -> bool:
        """Whether the first answer has what only this server states of itself."""
        return wrote(openai.answer_of(lines.peek(head)))


def wrote(answer: Mapping[str, Any]) -> bool:
    """Whether an answer is llama.cpp's: its fingerprint names a build, or its times are in ``timings``."""
    timings, fingerprint = answer.get("timings"), answer.get("system_fingerprint")
    return "choices" in answer and (
        (isinstance(timings, dict) and "predicted_n" in timings)
        or (isinstance(fingerprint, str) and FINGERPRINT.fullmatch(fingerprint) is not None)
    )


def server_of(record: Record, body: Fields) -> Record:
    """Give a record what is known of its server where llama.cpp wrote it; return others as they are."""
    if not (body.object("timings") is not None or FINGERPRINT.fullmatch(record.fingerprint)):
        return record
    mode = record.sampling.logprobs_mode or RAW
    sampling = replace(record.sampling, logprobs_mode=mode)
    return replace(record, sampling=sampling, defaults=DEFAULTS)


def to_its_end(record: Record) -> Record:
    """Cut an answer where a token is counted and not listed, since it makes no whole character.

    It shows as � in the text. The tokens before it are known; those after it cannot be replayed without it.
    """
    hidden = (record.completion_tokens or 0) - len(record.tokens)
    text, mark, _ = (record.output or "").partition(UNKNOWN)
    if not (record.defaults and record.tokens and hidden > 0 and mark):
        return record
    octets, shown, count = text.encode(), b"", 0
    for token in record.tokens:
        if token.octets is None or not octets.startswith(shown + token.octets):
            break
        shown, count = shown + token.octets, count + 1
    ids = None if record.output_ids is None else record.output_ids[:count]
    return replace(
        record,
        output=shown.decode("utf-8", "replace"),
        output_ids=ids,
        tokens=record.tokens[:count],
        completion_tokens=None,
        cut=True,
    )
