"""Takes answers of a file of records as ids and numbers, as many as are asked for, and says what is lost."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError, nearest, printable
from qdx.prompts._record_ids import Answer, Ids, LeftOut, Prompt
from qdx.records import FieldError, Losses, Record, Unreadable, choose
from qdx.records.decoding import NEUTRAL, Decoding
from qdx.records.record import MOST_RANKS

MOST = 2_000  # answers that are replayed without being asked for
LONGEST_OTHER = 65_536  # characters of a record's unknown fields that are kept
SAME = 8  # tokens: shorter answers of one prompt may be equal by chance, so they are no cached answer
ASSUMABLE = ("temperature", *NEUTRAL, "seed")
NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "min_tokens", "max_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What of a file of records is taken, and what is taken for granted; see `qdx.prompts.Transcripts`."""

    path: Path
    reader: str = ""
    requests: str = ""
    records: int | None = None
    assume: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.assume.items():
            if name not in ASSUMABLE:
                raise QdxError(
                    f"prompts.assume.{name}: one of {', '.join(ASSUMABLE)}{nearest(name, ASSUMABLE)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise QdxError(f"prompts.assume.{name}={value}: must be a number")
        if self.records is not None and (isinstance(self.records, bool) or self.records < 1):
            raise QdxError(f"prompts.records={self.records}: must be 1 or more")


@dataclass(frozen=True)
class Transcript:
    """One answer as ids, small enough that thousands are in memory."""

    who: tuple[str, str, str]  # provider, model, weight format
    prompt: Prompt
    answer: Answer
    stated: Mapping[str, Any]
    decoding: Decoding
    fingerprint: str
    logprob_T: NDArray[np.float32]
    top_id_TK: NDArray[np.int32]
    top_logprob_TK: NDArray[np.float32]
    prompt_id_PK: NDArray[np.int32]
    prompt_logprob_PK: NDArray[np.float32]


@dataclass
class Collected:
    """What was taken of a file, and what was not.

    Attributes
    ----------
    reader : str
    transcripts : list of Transcript
        In the order of the file.
    read : int
        Answers that could be read.
    losses : Losses
        Lines and fields that could not.
    left_out : Counter
        Reason → answers that were read and give no transcript.
    duplicates : int
        Answers that have the name of another one.
    """

    reader: str
    transcripts: list[Transcript] = field(default_factory=list)
    read: int = 0
    losses: Losses = field(default_factory=Losses)
    left_out: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0


def collect(request: Request, ids: Ids, defaults: Mapping[str, Any]) -> Collected:
    """Read a file and keep the transcripts that are asked for: memory is bounded by their number.

    Parameters
    ----------
    request : Request
        Of more than `MOST` answers, ``records`` says how many are taken: those with the smallest hashes of
        their names, which no order of the file changes.
    ids : Ids
    defaults : Mapping
        See `qdx.records.decoding.Decoding.of`.

    Raises
    ------
    QdxError
        When no reader takes the file, it has more answers than are replayed unasked, or none can be used.
    """
    name, reader = choose(request.path, request.reader, request.requests)
    found, most = Collected(name), request.records or MOST
    heap: list[tuple[int, int, Transcript]] = []  # the greatest hash first
    taken: set[int] = set()
    usable = 0
    for number, one in enumerate(reader.read(request.path)):
        if isinstance(one, Unreadable):
            found.losses.add(one)
            continue
        found.read += 1
        key = _key(one, number)
        if key in taken:
            found.duplicates += 1
            continue
        if len(heap) >= most and -key <= heap[0][0]:
            usable += 1
            if request.records is None:
                raise _too_many(request, most)
            continue
        try:
            made = transcript(one, ids, request.assume, defaults)
        except FieldError as error:
            found.losses.add(Unreadable(one.where, str(error)))
            continue
        except LeftOut as error:
            found.left_out[str(error)] += 1
            continue
        usable += 1
        if usable > most and request.records is None:
            raise _too_many(request, most)
        taken.add(key)
        if len(heap) < most:
            heapq.heappush(heap, (-key, number, made))
        else:
            taken.discard(-heapq.heapreplace(heap, (-key, number, made))[0])
    if not heap:
        reasons = [
            *found.losses.lines(),
            *(f"{count} × {why}" for why, count in found.left_out.most_common()),
        ]
        said = "; ".join(reasons[:4]) or "the file is empty"
        raise QdxError(f"{request.path}: read as {name}, no answer can be replayed: {said}")
    found.transcripts = [made for _, _, made in sorted(heap, key=lambda item: item[1])]
    return found


def _too_many(request: Request, most: int) -> QdxError:
    return QdxError(
        f"{request.path}: more than {most:,} answers, and each is replayed: prompts.records={most // 10} "
        "takes so many of them, by the hash of their names"
    )


def _key(record: Record, number: int) -> int:
    name = record.identity or f"entry {number}"
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8])


def transcript(
    record: Record, ids: Ids, assume: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Transcript:
    """Turn a record into ids and numbers.

    Raises
    ------
    FieldError
        For a field that this model cannot have.
    LeftOut
        When the answer gives no transcript.
    """
    prompt, answer = ids.prompt(record), ids.answer(record)
    if not prompt.ids:
        raise LeftOut("its prompt has no token")
    ids.fit(prompt, answer)
    sampling = record.sampling.assuming(assume)
    count = len(answer.ids)
    tokens = record.tokens[:count] if len(record.tokens) >= count else ()
    width = min(MOST_RANKS, max((len(token.top) for token in tokens), default=0))
    logprob_T = np.full(count if tokens else 0, np.nan, np.float32)
    top_id_TK = np.full((len(logprob_T), width), -1, np.int32)
    top_logprob_TK = np.full((len(logprob_T), width), np.nan, np.float32)
    for t, token in enumerate(tokens):
        logprob_T[t] = token.logprob
        for k, other in enumerate(token.top[:width]):
            top_id_TK[t, k], top_logprob_TK[t, k] = ids.known(other), other.logprob
    listed = record.prompt_logprobs or ()
    most = min(MOST_RANKS, max((len(one) for one in listed), default=0))
    prompt_id_PK = np.full((len(listed), most), -1, np.int32)
    prompt_logprob_PK = np.full((len(listed), most), np.nan, np.float32)
    for p, one in enumerate(listed):
        for k, (number, value) in enumerate(list(one.items())[:most]):
            prompt_id_PK[p, k], prompt_logprob_PK[p, k] = number, value
    stated: dict[str, Any] = {name: getattr(sampling, name) for name in NUMBERS}
    stated |= {
        "seed": "" if sampling.seed is None else str(sampling.seed),
        "logit_bias": _json(dict(sampling.logit_bias)) if sampling.logit_bias is not None else "",
        "restrictions": _json(dict(sampling.restrictions)) if sampling.restrictions else "",
        "stop": _json(list(sampling.stop)) if sampling.stop else "",
        "logprobs_mode": sampling.logprobs_mode,
        "finish_reason": record.finish_reason,
        "stop_reason": record.stop_reason,
        "identity": record.identity,
        "where": record.where,
        "other": _json(dict(record.other)),
        "prompt_tokens": -1 if record.prompt_tokens is None else record.prompt_tokens,
        "completion_tokens": -1 if record.completion_tokens is None else record.completion_tokens,
        "cached": record.cached,
    }
    return Transcript(
        (record.provider, record.model, record.weight_format),
        prompt,
        answer,
        stated,
        Decoding.of(sampling, defaults),
        record.fingerprint,
        logprob_T,
        top_id_TK,
        top_logprob_TK,
        prompt_id_PK,
        prompt_logprob_PK,
    )


def _json(value: object) -> str:
    """JSON in ASCII, as far as it is kept: cut JSON would be no JSON, so what is too long is counted."""
    try:
        text = json.dumps(value, default=str)
    except RecursionError:
        return json.dumps({"left out": "nested too deeply"})
    return text if len(text) <= LONGEST_OTHER else json.dumps({"characters left out": len(text)})


def labels(transcripts: Sequence[Transcript]) -> dict[tuple[str, str, str], str]:
    """Return a name for everybody who answered, in the alphabet of labels; no two are equal."""
    found: dict[tuple[str, str, str], str] = {}
    for who in dict.fromkeys(one.who for one in transcripts):
        text = "+".join(part for part in who if part) or "provider"
        # A model that lies in a folder is called by its last parts.
        text = "_".join(text.split("/")[-2:]) if text.startswith("/") else text.replace("/", "_")
        # What can be typed as a key of verify.claims without quotes.
        text = re.sub(r"[^A-Za-z0-9_.+@-]", "_", text)[:70]
        number, name = 1, text
        while name in found.values():
            number, name = number + 1, f"{text}@{number + 1}"
        found[who] = name
    return found


def groups_of(transcripts: Sequence[Transcript]) -> NDArray[np.int64]:
    """Number the groups of answers that are not independent: one seed, or one cached answer.

    Answers with the same seed share their noise. Answers with the same prompt and the same `SAME` tokens or
    more may be one answer, given twice.
    """
    parent = list(range(len(transcripts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[Any, ...], int] = {}
    for i, one in enumerate(transcripts):
        keys: list[tuple[Any, ...]] = []
        if one.stated["seed"] and one.stated["temperature"] != 0:
            keys.append((one.who, "seed", one.stated["seed"]))
        if len(one.answer.ids) >= SAME:
            keys.append((one.who, one.prompt.ids, one.answer.ids))
        for key in keys:
            a, b = sorted((root(first.setdefault(key, i)), root(i)))
            parent[b] = a
    number = {r: n for n, r in enumerate(dict.fromkeys(root(i) for i in range(len(parent))))}
    return np.array([number[root(i)] for i in range(len(parent))], np.int64)


def prompt_differs(one: Transcript) -> bool:
    """Whether the record states another number of prompt tokens than the ids that are replayed have."""
    stated = one.stated["prompt_tokens"]
    return bool(stated >= 0 and stated != len(one.prompt.ids))


def notes(request: Request, found: Collected, decoding: Mapping[str, Decoding]) -> list[str]:
    """Say what a reader has to know before he reads a verdict, the most important first."""
    lines, transcripts = [], found.transcripts
    total = len(transcripts)
    if other := [one for one in transcripts if prompt_differs(one)]:
        first = other[0]
        made = {"template": "the template makes", "given": "its own ids are", "text": "the text makes"}
        lines.append(
            f"PROMPT: the provider's prompt has {first.stated['prompt_tokens']} tokens, "
            f"{made[first.prompt.how]} {len(first.prompt.ids)} ({len(other)} of {total} answers, first "
            f"{first.stated['where']}): another template or a hidden system prompt; nothing is decided"
        )
    own = [one for one in transcripts if one.prompt.how == "given" and one.prompt.made >= 0]
    if other := [one for one in own if one.prompt.differs]:
        lines.append(
            f"PROMPT: the provider's prompt has {len(other[0].prompt.ids)} tokens by its own ids, the "
            f"template makes {other[0].prompt.made} of the request ({len(other)} of {len(own)} answers): "
            "another template or a hidden system prompt; the given ids are replayed"
        )
    lines.append(
        f"read as {found.reader}: {found.read:,} answers, {total:,} taken"
        + (f" (prompts.records={request.records})" if request.records and found.read > total else "")
    )
    if found.duplicates:
        lines.append(f"{found.duplicates:,} answers have the name of another one and are left out")
    if found.losses.count:
        lines.append(f"{found.losses.count:,} could not be read:")
        lines += [f"  {printable(line)}" for line in found.losses.lines()]
    lines += [f"{count:,} left out: {why}" for why, count in found.left_out.most_common()]
    how = Counter(one.answer.how for one in transcripts)
    words = {
        "given": "as the record gives them", "bytes": "by the bytes of each token",
        "text": "from the text, which may have been generated in other tokens",
        "joined": "as the template joins them",
    }  # fmt: skip
    known = sum(len(one.answer.ids) for one in transcripts)
    lines.append(f"{known:,} tokens: " + ", ".join(f"{n} answers {words[h]}" for h, n in how.most_common()))
    if cut := sum(one.answer.left_out for one in transcripts):
        lines.append(
            f"{cut:,} tokens cannot be known and are left out, with all that follow them in their answers"
        )
    modes = {str(one.stated["logprobs_mode"]) for one in transcripts if len(one.logprob_T)}
    if "" in modes:
        lines.append(
            "log-probabilities are kept as they are stated: logprobs_mode (before or after temperature and "
            "truncation) is not stated"
        )
    for label, one in decoding.items():
        lines += _of_decoding(label, one, request.assume)
    return lines


def _of_decoding(label: str, decoding: Decoding, assume: Mapping[str, Any]) -> list[str]:
    lines = []
    if decoding.asked:
        example = ", ".join(f"{name}: …" for name in decoding.asked)
        lines.append(
            f"{label}: {', '.join(decoding.asked)} not stated, and nothing can be assumed: say "
            f"'prompts.assume={{{example}}}'"
        )
    if decoding.assumed:
        lines.append(f"{label}: assumed to do nothing, since it is not stated: {', '.join(decoding.assumed)}")
    if assume:
        said = ", ".join(f"{name}={value}" for name, value in assume.items())
        lines.append(f"{label}: taken for granted where it is not stated: {said} (prompts.assume)")
    return lines
