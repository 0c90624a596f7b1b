"""Makes a file of transcripts of other programs' records: who answered what, and how it was sampled.

The file has the groups of a producers' file without rows, since nobody but qdx records any. Its group
``/stated`` holds of every transcript what its record says: sampling parameters, log-probabilities, why it
ended, numbers of tokens.
"""

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
import xarray as xr
from numpy.typing import NDArray

from qdx import new_file
from qdx.dataset import checksums
from qdx.dataset.layout import CONFIG_COORDS, SCHEMA_VERSION, reference_arrays
from qdx.dataset.provenance import software
from qdx.dataset.writing import disk_errors
from qdx.errors import QdxError, nearest, printable
from qdx.prompts._record_ids import Answer, Ids, LeftOut, Prompt
from qdx.prompts._reference import Reference, references_sha256
from qdx.records import FieldError, Losses, Record, Unreadable, choose
from qdx.records.decoding import NEUTRAL, Decoding, of_all
from qdx.records.record import MOST_RANKS

KIND = "records"
MOST = 2_000  # answers that are replayed without being asked for
LONGEST_OTHER = 65_536  # characters of a record's unknown fields that are kept
LONGEST_TEXT = 200  # characters of a fact, as `qdx.prompts._transcript_file` takes them
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
    if other := [one for one in own if one.prompt.made != len(one.prompt.ids)]:
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


def write(request: Request, found: Collected, target: Path, *, tokenizer_sha256: str, vocab: int) -> None:
    """Write the file of transcripts.

    Parameters
    ----------
    request : Request
    found : Collected
    target : Path
    tokenizer_sha256, vocab
        Of the model whose ids these are.
    """
    transcripts = found.transcripts
    names = labels(transcripts)
    producers = list(names.values())
    decoding = {
        label: of_all([one.decoding for one in transcripts if one.who == who]) for who, label in names.items()
    }
    table = _table(
        [names[one.who] for one in transcripts], [one.prompt.ids for one in transcripts], producers
    )
    references = [_reference(r, transcripts, row) for r, row in enumerate(table.T)]
    at = [one.name for one in references]
    stated = {
        name: (
            ("config", "reference"),
            values,
            {"units": "1", "long_name": ABOUT.get(name, name.replace("_", " "))},
        )
        for name, values in _stated(transcripts, table).items()
    }
    shape = (len(producers), len(references))
    longest = max(2, max(len(one.answer.ids) for one in transcripts))
    ids = np.full((shape[0], 1, shape[1], longest), -1, np.int32)
    for (d, r), i in np.ndenumerate(table):
        if i >= 0:
            ids[d, 0, r, : len(transcripts[i].answer.ids)] = transcripts[i].answer.ids
    coords: dict[str, Any] = {
        name: ("config", _coordinate(name, variable.dtype, list(names)))
        for name, variable in CONFIG_COORDS.items()
    }
    index = {"config": producers, "reference": at}
    facts = {
        "schema_version": str(SCHEMA_VERSION),
        "vocab": str(vocab),
        "tokenizer_sha256": tokenizer_sha256,
        "references_sha256": references_sha256(references),
        "record_reader": found.reader,
        "record_file": request.path.name,
        "record_sha256": _digest(request.path),
    }
    columns: dict[str, list[str]] = {name: [value] * shape[0] for name, value in facts.items()}
    columns["sampling"] = [decoding[label].statement for label in producers]
    columns["assumed"] = [", ".join(decoding[label].assumed) for label in producers]
    columns["asked"] = [", ".join(decoding[label].asked) for label in producers]
    columns["fingerprint"] = [
        _one([t.fingerprint for t in transcripts if names[t.who] == n]) for n in producers
    ]
    dims = ("config", "repeat", "reference", "position")
    about = reference_arrays(references)
    axes = {"token_ids": "token", "continuation": "continuation_token"}
    datasets = {
        "provenance": xr.Dataset(
            {name: ("config", np.array(values, object)) for name, values in columns.items()},
            {"config": producers},
        ),
        "references": xr.Dataset(
            {
                name: (("reference", axes[name]) if name in axes else "reference", values)
                for name, values in about.items()
                if name != "text"
            },
            {"reference": at},
        ),
        "decode": xr.Dataset(
            {"captured": (dims, np.zeros((shape[0], 1, shape[1], 1), bool))},
            {**index, "repeat": [0], "position": np.zeros(1, np.int32), **coords},
        ),
        "output": xr.Dataset(
            {"token_id": (("config", "repeat", "reference", "output_token"), ids)}, {**index, "repeat": [0]}
        ),
        "stated": xr.Dataset({**stated, **_positions(transcripts, table, longest)}, index),
    }
    attrs = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "notes": "\n".join(notes(request, found, decoding)),
        **{name: value for name, value in software().items() if name != "time_utc"},
    }
    with disk_errors(target), new_file.replacing(target) as part:
        xr.Dataset(attrs=attrs).to_netcdf(part, mode="w", engine="netcdf4")
        for name, dataset in datasets.items():
            encoding = {str(key): _encoding(variable) for key, variable in dataset.variables.items()}
            dataset.to_netcdf(part, mode="a", group=name, engine="netcdf4", encoding=encoding)
        checksums.store(part)


def _table(
    names: Sequence[str], prompts: Sequence[tuple[int, ...]], producers: Sequence[str]
) -> NDArray[np.int64]:
    """Index of the transcript of every producer and reference; −1: none.

    A reference is a prompt. Who answered one several times has as many references of it.
    """
    rows: dict[tuple[tuple[int, ...], int], int] = {}
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    places = []
    for i, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        time = seen[name, prompt]
        seen[name, prompt] += 1
        places.append((producers.index(name), rows.setdefault((prompt, time), len(rows)), i))
    table = np.full((len(producers), len(rows)), -1, np.int64)
    for d, r, i in places:
        table[d, r] = i
    return table


def _reference(number: int, transcripts: Sequence[Transcript], row: NDArray[np.int64]) -> Reference:
    one = transcripts[int(row[row >= 0][0])]
    ids = np.array(one.prompt.ids, np.int32)
    digest = hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes()).hexdigest()
    source = " ".join(printable(str(one.stated["where"])).split())[:200]
    return Reference(f"ref_{number}", ids, 0, len(ids), 0, np.empty(0, np.int32), "", source, "", 0, digest)


def _stated(transcripts: Sequence[Transcript], table: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What each record says, over (config, reference)."""
    rows = [
        {
            **one.stated,
            "group": int(group),
            "prompt_how": one.prompt.how,
            "template_tokens": one.prompt.made,
            "answer_how": one.answer.how,
            "tokens_left_out": one.answer.left_out,
            "decoding": one.decoding.statement,
        }
        for one, group in zip(transcripts, groups_of(transcripts), strict=True)
    ]
    found: dict[str, NDArray[Any]] = {}
    for name, example in rows[0].items():
        if name in NUMBERS:
            values = np.array([math.nan if row[name] is None else float(row[name]) for row in rows])
            empty: Any = math.nan
        elif isinstance(example, bool):
            values, empty = np.array([row[name] for row in rows], bool), False
        elif isinstance(example, int):
            values, empty = np.array([min(row[name], 2**31 - 1) for row in rows], np.int32), -1
        else:
            values, empty = np.array([_ascii(row[name]) for row in rows], object), ""
        full = np.full(table.shape, empty, values.dtype)
        full[table >= 0] = values[table[table >= 0]]
        found[name] = full
    return found


ABOUT = {
    "top_k": "0 or -1: no limit",
    "seed": "empty: not stated",
    "group": "answers of one group share a seed or are one cached answer; -1: no transcript",
    "prompt_tokens": "tokens of the prompt as the record states them; -1: not stated",
    "template_tokens": "tokens that the chat template makes of the request; -1: not known",
    "completion_tokens": "tokens of the answer as the record states them; -1: not stated",
    "tokens_left_out": "tokens of the answer that cannot be known; -1: no transcript",
    "other": "fields of the record that are not read, as JSON",
    "answer_how": "how the ids of the answer are known: given, bytes, text or joined",
    "prompt_how": "how the ids of the prompt are known: given, template or text",
}


def _positions(transcripts: Sequence[Transcript], table: NDArray[np.int64], longest: int) -> dict[str, Any]:
    """Stated log-probabilities, over (config, reference, output_token) and rank."""
    width = max((one.top_id_TK.shape[1] for one in transcripts), default=0)
    own = np.full((*table.shape, longest), np.nan, np.float32)
    top_id = np.full((*table.shape, longest, max(1, width)), -1, np.int32)
    top = np.full(top_id.shape, np.nan, np.float32)
    for (d, r), i in np.ndenumerate(table):
        if i >= 0 and len(transcripts[int(i)].logprob_T):
            one = transcripts[int(i)]
            count, k = one.top_id_TK.shape
            own[d, r, :count] = one.logprob_T
            top_id[d, r, :count, :k], top[d, r, :count, :k] = one.top_id_TK, one.top_logprob_TK
    dims = ("config", "reference", "output_token")
    of_prompts = _of_prompts(transcripts, table)
    return {
        **of_prompts,
        "logprob": (dims, own, {"units": "nat", "long_name": "stated log-probability of the token"}),
        "top_id": (
            (*dims, "rank"),
            top_id,
            {"units": "1", "long_name": "ids of the stated list; -1: not known"},
        ),
        "top_logprob": (
            (*dims, "rank"),
            top,
            {"units": "nat", "long_name": "their stated log-probabilities"},
        ),
    }


def _of_prompts(transcripts: Sequence[Transcript], table: NDArray[np.int64]) -> dict[str, Any]:
    """Stated log-probabilities of prompts, over (config, reference, prompt_token, prompt_rank)."""
    length = max(one.prompt_id_PK.shape[0] for one in transcripts)
    width = max(one.prompt_id_PK.shape[1] for one in transcripts)
    if not length * width:
        return {}
    ids = np.full((*table.shape, length, width), -1, np.int32)
    values = np.full(ids.shape, np.nan, np.float32)
    for (d, r), i in np.ndenumerate(table):
        if i >= 0:
            one = transcripts[int(i)]
            count, k = one.prompt_id_PK.shape
            ids[d, r, :count, :k], values[d, r, :count, :k] = one.prompt_id_PK, one.prompt_logprob_PK
    dims = ("config", "reference", "prompt_token", "prompt_rank")
    about = "log-probabilities that the record lists for each token of the prompt"
    return {
        "prompt_id": (dims, ids, {"units": "1", "long_name": f"ids of the {about}; -1: none"}),
        "prompt_logprob": (dims, values, {"units": "nat", "long_name": about}),
    }


def _coordinate(name: str, dtype: str, whos: Sequence[tuple[str, str, str]]) -> NDArray[Any]:
    """What records state of the coordinates of a config: the model and the weight format, nothing else."""
    if name in ("model", "format"):
        stated = [" ".join(_ascii(who[1 if name == "model" else 2]).split())[:LONGEST_TEXT] for who in whos]
        return np.array([text.strip() for text in stated], object)
    if dtype == "str":
        return np.array([""] * len(whos), object)
    return np.zeros(len(whos), bool if dtype == "bool" else np.int32)


def _ascii(text: str) -> str:
    """Text of a stranger's in printable ASCII; JSON keeps everything as it is anyway."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def _one(texts: Sequence[str]) -> str:
    """What all say, or several of them."""
    return _ascii(", ".join(sorted({text for text in texts if text})[:8]))


def _encoding(variable: xr.Variable) -> dict[str, Any]:
    if variable.dtype.kind in "OUST":
        return {"dtype": "S1"}
    if variable.dtype.kind == "b":
        return {}
    return {
        "zlib": True,
        "complevel": 4,
        "shuffle": True,
        **({"_FillValue": None} if variable.dtype.kind in "iu" else {}),
    }


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
