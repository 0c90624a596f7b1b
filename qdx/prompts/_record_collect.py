"""Takes answers of a file of records as ids and numbers, as many as are asked for, and says what is lost."""

from __future__ import annotations

import datetime
import hashlib
import heapq
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.capture.noise_names import require_known
from qdx.errors import QdxError, nearest, printable
from qdx.prompts._record_ids import Answer, Ids, LeftOut, Prompt
from qdx.records import FieldError, Losses, Record, Unreadable, choose
from qdx.records.decoding import MODES, NEUTRAL, Decoding
from qdx.records.record import MOST_RANKS
from qdx.schema import CLAIMED_DTYPES, CLAIMED_QUANTS, FORMAT_KERNELS
from qdx.statistics import Joined

MOST = 2_000  # answers that are replayed without being asked for
MOST_NAMED = 4  # answers of one reason that are named
SAME = 8  # tokens: shorter answers of one prompt may be equal by chance, so they are not a cached answer
ASSUMABLE = ("temperature", *NEUTRAL, "seed", "logprobs_mode")
NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "min_tokens", "max_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """Say what is taken of a file of records, and taken for granted; see `qdx.prompts.Transcripts`."""

    path: Path
    reader: str = ""
    requests: str = ""
    records: int | None = None
    assume: Mapping[str, Any] = field(default_factory=dict)
    harmless: Sequence[str] = ()
    date: str = ""
    draw_seed: int = 0
    noise: str = ""

    def __post_init__(self) -> None:
        if self.noise:
            require_known(self.noise)
        for name, value in self.assume.items():
            if name not in ASSUMABLE:
                raise QdxError(
                    f"prompts.assume.{name}: one of {', '.join(ASSUMABLE)}{nearest(name, ASSUMABLE)}"
                )
            if name == "logprobs_mode":
                if value not in MODES:
                    raise QdxError(f"prompts.assume.logprobs_mode={value}: one of {', '.join(MODES)}")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise QdxError(f"prompts.assume.{name}={value}: must be a number")
        if self.records is not None and (isinstance(self.records, bool) or self.records < 1):
            raise QdxError(f"prompts.records={self.records}: must be 1 or more")
        if isinstance(self.draw_seed, bool) or self.draw_seed < 0:
            raise QdxError(f"prompts.draw_seed={self.draw_seed}: must be a whole number of at least 0")
        try:
            _ = self.date and datetime.date.fromisoformat(self.date)
        except ValueError:
            raise QdxError(f"prompts.date={self.date}: must be a day such as 2026-01-31") from None


Who = tuple[str, str, str]


@dataclass(frozen=True)
class Transcript:
    """One answer as ids, small enough that thousands are in memory."""

    who: Who  # provider, model, weight format
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


@dataclass(frozen=True)
class Lost:
    """An answer that gives no transcript: whose it is, where it stands and why; `field`: a field is wrong."""

    who: Who
    where: str
    why: str
    field: bool


@dataclass
class Collected:
    """Hold what was taken of a file, and what was not.

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
    named : Mapping
        Reason → where the first of them stand.
    duplicates : int
        Answers that have the name of an earlier one. All of them are taken: which one is right nobody knows.
    lost_of : Counter
        Whoever answered → answers of them that were read and give no transcript.
    unreadable : int
        Lines that no reader could make an answer of, which are anybody's.
    """

    reader: str
    transcripts: list[Transcript] = field(default_factory=list)
    read: int = 0
    losses: Losses = field(default_factory=Losses)
    left_out: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    duplicates: int = 0
    lost_of: Counter[Who] = field(default_factory=Counter)
    unreadable: int = 0

    def lose(self, one: Lost) -> None:
        """Count an answer that gives no transcript."""
        self.lost_of[one.who] += 1
        if one.field:
            self.losses.add(Unreadable(one.where, one.why))
            return
        self.left_out[one.why] += 1
        names = self.named.setdefault(one.why, [])
        if len(names) < MOST_NAMED:
            names.append(one.where)

    def lost_to(self, who: Who, known: Sequence[Who]) -> tuple[int, int]:
        """Return how many lines and how many answers of a provider give no transcript.

        A line that cannot be read may be anybody's, and so may be one that names somebody who has no
        transcript: whoever writes an answer chooses the names in it.
        """
        strangers = sum(count for other, count in self.lost_of.items() if other not in known)
        return self.unreadable, self.lost_of[who] + strangers


def collect(request: Request, ids: Ids, defaults: Mapping[str, Any]) -> Collected:
    """Read a file and keep the transcripts that are asked for: memory is bounded by their number.

    Parameters
    ----------
    request : Request
        ``records`` says how many answers are taken. They are drawn by the hash of ``draw_seed`` and their
        place in the file, whose content whoever answered could not fit to a seed that came later.
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
    heap: list[tuple[int, int, Transcript | Lost]] = []  # the greatest key first
    names = array("q")
    where, place = "", 0
    for response in _responses(reader.read(request.path)):
        if isinstance(response, Unreadable):
            found.losses.add(response)
            found.unreadable += 1
            continue
        keys = []
        for one in response:
            where, place = one.where, place + 1 if one.where == where else 0
            names.extend([_hash(one.identity)] if one.identity else [])
            keys.append(_drawn(request, one, place) if request.records else found.read)
            found.read += 1
        if request.records is None and found.read > most:
            raise _too_many(request, most)
        chosen = [i for i, key in enumerate(keys) if len(heap) < most or -key > heap[0][0]]
        if not chosen:
            continue
        made = _of_response(response, ids, request, defaults)
        for i in chosen:
            item = (-keys[i], found.read - len(response) + i, made[i])
            if len(heap) < most:
                heapq.heappush(heap, item)
            elif item > heap[0]:
                heapq.heapreplace(heap, item)
    found.duplicates = len(names) - len(np.unique(np.frombuffer(names, np.int64))) if names else 0
    for _, _, result in sorted(heap, key=lambda item: item[1]):
        if isinstance(result, Lost):
            found.lose(result)
        else:
            found.transcripts.append(result)
    if not found.transcripts:
        reasons = [
            *found.losses.lines(),
            *(f"{count} × {why}" for why, count in found.left_out.most_common()),
        ]
        said = "; ".join(reasons[:4]) or "the file is empty"
        raise QdxError(f"{request.path}: read as {name}, no answer can be replayed: {said}")
    return found


def _responses(records: Iterator[Record | Unreadable]) -> Iterator[list[Record] | Unreadable]:
    """Give the answers of one response together where their tokens are counted together."""
    waiting: list[Record] = []
    for one in records:
        if waiting and (isinstance(one, Unreadable) or one.shared is None or one.where != waiting[0].where):
            yield waiting
            waiting = []
        if isinstance(one, Unreadable):
            yield one
        elif one.shared is None:
            yield [one]
        else:
            waiting.append(one)
    if waiting:
        yield waiting


def _of_response(
    response: Sequence[Record], ids: Ids, request: Request, defaults: Mapping[str, Any]
) -> list[Transcript | Lost]:
    """Turn the answers of one response into transcripts, and hold them against what it counts of them all."""
    made: list[Transcript | Lost] = []
    for one in response:
        try:
            made.append(transcript(one, ids, request.assume, defaults, request.harmless))
        except (FieldError, LeftOut) as error:
            made.append(Lost(_who(one), one.where, str(error), isinstance(error, FieldError)))
    shared = response[0].shared
    whole = [one for one in made if isinstance(one, Transcript)]
    if shared is None or len(whole) < shared.choices or any(one.answer.left_out for one in whole):
        return made
    why = _sum_differs(whole, response)
    return [Lost(_who(one), one.where, why, False) for one in response] if why else list(made)


def _sum_differs(made: Sequence[Transcript], response: Sequence[Record]) -> str:
    """Say that a response counts other numbers of tokens than its answers have; "" where they fit."""
    shared = response[0].shared
    assert shared is not None
    answered = sum(len(one.answer.ids) for one in made)
    stated = shared.completion_tokens
    # Each answer may have a token at its end that is counted and not listed, or listed and not counted.
    if stated is not None and abs(stated - answered) > shared.choices:
        return "its response counts another number of tokens than all its answers have"
    if shared.prompts > 1 and shared.prompt_tokens is not None:
        each = max(1, shared.choices // shared.prompts)  # choices of one prompt follow each other
        if sum(len(one.prompt.ids) for one in made[::each]) != shared.prompt_tokens:
            return "its response counts another number of prompt tokens than all its prompts have"
    return ""


def _too_many(request: Request, most: int) -> QdxError:
    return QdxError(
        f"{request.path}: more than {most:,} answers, and each is replayed: prompts.records={most // 10} "
        "draws so many of them"
    )


def _hash(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], signed=True)


def _drawn(request: Request, record: Record, place: int) -> int:
    """The key of an answer in the draw, made of the verifier's seed and its place in the file alone."""
    where = record.where.removeprefix(request.path.name)
    return _hash(f"{request.draw_seed}\n{where}\n{place}")


def _who(record: Record) -> Who:
    return record.provider, record.model, record.weight_format


def transcript(
    record: Record,
    ids: Ids,
    assume: Mapping[str, Any],
    defaults: Mapping[str, Any],
    harmless: Sequence[str] = (),
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
        # vLLM (v1/engine/parallel_sampling.py) adds the choice's number.
        "noise_seed": "" if sampling.seed in (None, -1) else str(int(sampling.seed) + record.choice),
        "logit_bias": _json(dict(sampling.logit_bias)) if sampling.logit_bias is not None else "",
        "restrictions": _json(dict(sampling.restrictions)) if sampling.restrictions else "",
        "stop": _json(list(sampling.stop)) if sampling.stop else "",
        "logprobs_mode": sampling.logprobs_mode,
        "finish_reason": record.finish_reason,
        "stop_reason": record.stop_reason,
        "identity": record.identity,
        "response_id": record.response_id,
        "where": record.where,
        "other": _json(dict(record.other)),
        "prompt_tokens": -1 if record.prompt_tokens is None else record.prompt_tokens,
        "completion_tokens": -1 if record.completion_tokens is None else record.completion_tokens,
        "cached": record.cached,
        "end_open": ids.open(record, answer),
        "digits": digits_of([one.logprob for token in tokens for one in (token, *token.top)]),
    }
    return Transcript(
        _who(record),
        prompt,
        answer,
        stated,
        Decoding.of(sampling, {**defaults, **record.defaults}, harmless),
        record.fingerprint,
        logprob_T,
        top_id_TK,
        top_logprob_TK,
        prompt_id_PK,
        prompt_logprob_PK,
    )


def digits_of(values: Sequence[float]) -> int:
    """Count the decimals to which log-probabilities are printed; −1 where there are none.

    The shortest decimal that a number is read from is what was printed, up to trailing zeros.

    Examples
    --------
    >>> digits_of([-0.0625, -1.5, math.nan]), digits_of([-3.0]), digits_of([])
    (4, 0, -1)
    >>> digits_of([-1.25e-05])
    7
    """
    found = [Decimal(repr(value)).normalize().as_tuple().exponent for value in values if math.isfinite(value)]
    return max((max(0, -one) for one in found if isinstance(one, int)), default=-1)


def _json(value: object) -> str:
    """JSON in ASCII."""
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return json.dumps({"left out": "nested too deeply"})


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

    Answers with the same seed share their noise. Of drawn answers to one prompt that state none, any may be
    one answer given twice. Whether they are equal decides nothing: to count each different one once would
    count the improbable ones too often. Greedy ones that have the same `SAME` tokens or more are one answer,
    and so are those that have one id of the provider's.
    """
    joined = Joined(len(transcripts))
    first: dict[tuple[Any, ...], int] = {}
    for i, one in enumerate(transcripts):
        keys: list[tuple[Any, ...]] = []
        greedy = one.stated["temperature"] == 0
        if one.stated["seed"] and not greedy:
            keys.append((one.who, "seed", one.stated["seed"]))
            # The second answer to one seed has the noise of the first answer to the next.
            keys.append((one.who, "seed", one.stated.get("noise_seed") or one.stated["seed"]))
        elif not greedy:
            keys.append((one.who, "prompt", one.prompt.ids))
        elif len(one.answer.ids) >= SAME:
            keys.append((one.who, one.prompt.ids, one.answer.ids))
        if one.stated["response_id"]:
            keys.append((one.who, one.stated["response_id"], one.prompt.ids, one.answer.ids))
        for key in keys:
            joined.join(first.setdefault(key, i), i)
    return joined.numbers


def prompt_differs(one: Transcript) -> bool:
    """Return whether the record states another number of prompt tokens than is replayed."""
    stated = one.stated["prompt_tokens"]
    return bool(stated >= 0 and stated != len(one.prompt.ids))


def _claimed(name: str) -> str:
    """Say which configs a provider's name of a format may mean; "" where it states none."""
    if name in ("", "unknown") or (name in FORMAT_KERNELS and name not in CLAIMED_QUANTS):
        return ""
    quants = CLAIMED_QUANTS.get(name.lower())
    if quants is None:
        return "names no format that is known here"
    dtype = CLAIMED_DTYPES.get(name.lower())
    what = f"is quant=none model.dtype={dtype}" if dtype else f"may be quant={','.join(quants)}"
    return f"{what}: the claim is about all of them, so replay those that its weights exist in"


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
    own = [one for one in transcripts if one.prompt.how == "given"]
    if other := [one for one in own if one.prompt.differs]:
        first = other[0]
        made_of = (
            f"the request makes {first.prompt.made}: another template or a hidden system prompt"
            if first.prompt.made >= 0
            else "nothing can be made of the request here, so that nothing shows that they are what was asked"
        )
        lines.append(
            f"PROMPT: the provider's prompt has {len(first.prompt.ids)} tokens by its own ids, {made_of} "
            f"({len(other)} of {len(own)} answers, first {first.stated['where']}); these are not judged"
        )
    for provider, _, claimed in dict.fromkeys(one.who for one in transcripts):
        if said := _claimed(claimed):
            who, name = (" ".join(printable(text).split()) for text in (provider, claimed))
            lines.append(f"FORMAT: {who or 'the provider'} states {name}, which {said}")
    if alone := sum(one.prompt.alone for one in own):
        lines.append(
            f"{alone} of {total} answers have no request beside them: that these prompts were asked is "
            "stated by the answers alone"
        )
    if days := sorted({one.prompt.day for one in transcripts if one.prompt.day}):
        told = "prompts.date" if request.date else "the UTC day on which each record says that it was made"
        lines.append(
            f"the chat template writes a date: {' to '.join(dict.fromkeys((days[0], days[-1])))} was taken, "
            f"{told}; a server with another clock or time zone has another prompt (prompts.date=… sets it)"
        )
    lines.append(f"read as {found.reader}: {found.read:,} answers, {total:,} taken")
    if request.records:
        lines.append(
            f"drawn by their places in the file with prompts.draw_seed={request.draw_seed}, which draws the "
            f"same again (prompts.records={request.records})"
        )
    if found.duplicates:
        lines.append(
            f"{found.duplicates:,} answers have the name (such as custom_id) of an earlier one: all are "
            "judged, and nobody can say which one answers the request"
        )
    if found.losses.count:
        lines.append(f"{found.losses.count:,} could not be read:")
        lines += [f"  {printable(line)}" for line in found.losses.lines()]
    lines += [f"{count:,} left out: {printable(why)}" for count, why in left_out_of(found)]
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
            f"truncation) is not stated ('prompts.assume={{logprobs_mode: …}}': {' or '.join(MODES)})"
        )
    for label, one in decoding.items():
        lines += _of_decoding(label, one, request.assume)
    return lines


def left_out_of(found: Collected) -> list[tuple[int, str]]:
    """Return how many answers are left out for which reason, with where the first of them stand."""
    said = []
    for why, count in found.left_out.most_common():
        names = ", ".join(found.named[why])
        said.append((count, f"{why} ({names}{', …' if count > len(found.named[why]) else ''})"))
    return said


def _of_decoding(label: str, decoding: Decoding, assume: Mapping[str, Any]) -> list[str]:
    lines = []
    if decoding.asked:
        example = ", ".join(f"{name}: …" for name in decoding.asked)
        lines.append(
            f"{label}: {', '.join(decoding.asked)} not stated, and nothing can be assumed: say "
            f"'prompts.assume={{{example}}}'"
        )
    if decoding.unknown:
        names = ",".join(decoding.unknown)
        lines.append(
            f"{label}: the request sets {', '.join(decoding.unknown)}, of which qdx does not know what it "
            f"does to the choice of tokens: nothing is decided, unless you say 'prompts.harmless=[{names}]'"
        )
    if decoding.assumed:
        lines.append(f"{label}: assumed to do nothing, since it is not stated: {', '.join(decoding.assumed)}")
    if assume:
        said = ", ".join(f"{name}={value}" for name, value in assume.items())
        lines.append(f"{label}: taken for granted where it is not stated: {said} (prompts.assume)")
    return lines
