"""Makes a file of transcripts of other programs' records: who answered what, and how it was sampled.

The file has the groups of a producers' file without rows, since nobody but qdx records any. Its group
``/stated`` holds of every transcript what its record says: sampling parameters, log-probabilities, why it
ended, numbers of tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx import new_file
from qdx.capture.noise_names import check_engine
from qdx.dataset import checksums
from qdx.dataset.guarding import limits
from qdx.dataset.layout import CONFIG_COORDS, RECORDS, SCHEMA_VERSION, reference_arrays
from qdx.dataset.provenance import software
from qdx.dataset.writing import disk_errors
from qdx.errors import QdxError, printable
from qdx.prompts._record_collect import (
    NUMBERS,
    Collected,
    Request,
    Transcript,
    Who,
    groups_of,
    labels,
    left_out_of,
    notes,
)
from qdx.prompts._reference import Reference, references_sha256
from qdx.records.decoding import Decoding, of_all

LONGEST_TEXT = 200  # characters of a fact, as `qdx.prompts._transcript_file` takes them
LONGEST_WHY = 600  # characters of the reasons why answers are left out
LONGEST_STATED = 65_536  # characters of what a record states, such as its unknown fields
TEXT_BYTES = 2**26  # of one table of what records state
MOST_WHO = 64  # providers and models of a file
AS_JSON = ("other", "logit_bias", "restrictions", "stop")


def write(
    request: Request,
    found: Collected,
    target: Path,
    *,
    record_sha256: str,
    tokenizer_sha256: str,
    vocab: int,
) -> None:
    """Write the file of transcripts.

    Parameters
    ----------
    request : Request
    found : Collected
    target : Path
    record_sha256 : str
        Of the file of records.
    tokenizer_sha256, vocab
        Of the model whose ids these are.

    Raises
    ------
    QdxError
        When more answered than can be told apart, or the tables of ids would be too large.
    """
    transcripts = found.transcripts
    if request.noise:
        for print_ in dict.fromkeys(one.fingerprint for one in transcripts):
            check_engine(request.noise, print_)
    names = labels(transcripts)
    if len(names) > MOST_WHO:
        raise QdxError(
            f"{request.path}: its answers name {len(names):,} providers and models, limit {MOST_WHO}: give "
            "the answers of fewer in a file"
        )
    table = _table(
        [names[one.who] for one in transcripts],
        [one.prompt.ids for one in transcripts],
        list(names.values()),
    )
    longest = max(2, max(len(one.answer.ids) for one in transcripts))
    _bound(request.path, table.shape, longest, max(len(one.prompt.ids) for one in transcripts))
    references = [_reference(r, transcripts, row) for r, row in enumerate(table.T)]
    decoding = {
        label: of_all([one.decoding for one in transcripts if one.who == who]) for who, label in names.items()
    }
    facts = {
        "schema_version": str(SCHEMA_VERSION),
        "vocab": str(vocab),
        "tokenizer_sha256": tokenizer_sha256,
        "references_sha256": references_sha256(references),
        "record_reader": found.reader,
        "record_file": request.path.name,
        "record_sha256": record_sha256,
        "draw_seed": str(request.draw_seed) if request.records else "",
        "duplicates": str(found.duplicates),
        "left_out_why": _why(found),
        "noise": request.noise,
    }
    index = {"config": list(names.values()), "reference": [one.name for one in references]}
    datasets = {
        "provenance": _provenance(found, names, decoding, facts),
        "references": _references(references),
        "decode": _no_rows(index, list(names)),
        "output": _output(transcripts, table, longest, index),
        "stated": _stated(transcripts, table, index),
    }
    attrs = {
        "kind": RECORDS,
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


def _provenance(
    found: Collected,
    names: Mapping[Who, str],
    decoding: Mapping[str, Decoding],
    facts: Mapping[str, str],
) -> xr.Dataset:
    """Return where the records come from, how they were read, and what of each producer's was lost."""
    producers = list(names.values())
    lost = [found.lost_to(who, list(names)) for who in names]
    columns: dict[str, list[str]] = {
        **{name: [value] * len(producers) for name, value in facts.items()},
        "sampling": [decoding[label].statement for label in producers],
        "assumed": [", ".join(decoding[label].assumed) for label in producers],
        "asked": [", ".join(decoding[label].open) for label in producers],
        "unreadable": [str(lines) for lines, _ in lost],
        "left_out": [str(answers) for _, answers in lost],
        "fingerprint": [
            _one([one.fingerprint for one in found.transcripts if names[one.who] == label])
            for label in producers
        ],
    }
    return xr.Dataset(
        {name: ("config", np.array(values, object)) for name, values in columns.items()},
        {"config": producers},
    )


def _references(references: Sequence[Reference]) -> xr.Dataset:
    """Return the prompts; their text is nobody's business here."""
    axes = {"token_ids": "token", "continuation": "continuation_token"}
    return xr.Dataset(
        {
            name: (("reference", axes[name]) if name in axes else "reference", values)
            for name, values in reference_arrays(references).items()
            if name != "text"
        },
        {"reference": [one.name for one in references]},
    )


def _no_rows(index: Mapping[str, list[str]], whos: Sequence[Who]) -> xr.Dataset:
    """Return a group of rows of which none was captured, with what the records state of the configs."""
    coords: dict[str, Any] = {
        name: ("config", _coordinate(name, variable.dtype, whos)) for name, variable in CONFIG_COORDS.items()
    }
    captured = np.zeros((len(index["config"]), 1, len(index["reference"]), 1), bool)
    return xr.Dataset(
        {"captured": (("config", "repeat", "reference", "position"), captured)},
        {**index, "repeat": [0], "position": np.zeros(1, np.int32), **coords},
    )


def _output(
    transcripts: Sequence[Transcript],
    table: NDArray[np.int64],
    longest: int,
    index: Mapping[str, list[str]],
) -> xr.Dataset:
    """Return the ids of every answer."""
    ids = np.full((table.shape[0], 1, table.shape[1], longest), -1, np.int32)
    for (d, r), i in np.ndenumerate(table):
        if i >= 0:
            own = transcripts[int(i)].answer.ids
            ids[d, 0, r, : len(own)] = own
    dims = ("config", "repeat", "reference", "output_token")
    return xr.Dataset({"token_id": (dims, ids)}, {**index, "repeat": [0]})


def _stated(
    transcripts: Sequence[Transcript], table: NDArray[np.int64], index: Mapping[str, list[str]]
) -> xr.Dataset:
    """Return what every record says of its transcript."""
    stated = {
        name: (
            ("config", "reference"),
            values,
            {"units": "1", "long_name": ABOUT.get(name, name.replace("_", " "))},
        )
        for name, values in _said(transcripts, table).items()
    }
    return xr.Dataset({**stated, **_positions(transcripts, table)}, index)


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


def _said(transcripts: Sequence[Transcript], table: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return what each record says, over (config, reference)."""
    rows = [
        {
            **one.stated,
            "group": int(group),
            "prompt_how": one.prompt.how,
            "template_tokens": one.prompt.made,
            "prompt_differs": one.prompt.differs,
            "prompt_alone": one.prompt.alone,
            "prompt_day": one.prompt.day,
            "answer_how": one.answer.how,
            "tokens_left_out": one.answer.left_out,
            "decoding": one.decoding.statement,
        }
        for one, group in zip(transcripts, groups_of(transcripts), strict=True)
    ]
    found: dict[str, NDArray[Any]] = {}
    most = max(
        16, min(LONGEST_STATED, TEXT_BYTES // table.size)
    )  # a table of texts is as wide as its longest
    for name, example in rows[0].items():
        if name in NUMBERS:
            values = np.array([math.nan if row[name] is None else float(row[name]) for row in rows])
            empty: Any = math.nan
        elif isinstance(example, bool):
            values, empty = np.array([row[name] for row in rows], bool), False
        elif isinstance(example, int):
            values, empty = np.array([min(row[name], 2**31 - 1) for row in rows], np.int32), -1
        else:
            values, empty = np.array([_kept(name, row[name], most) for row in rows], object), ""
        full = np.full(table.shape, empty, values.dtype)
        full[table >= 0] = values[table[table >= 0]]
        found[name] = full
    return found


ABOUT = {
    "top_k": "0 or -1: no limit",
    "seed": "empty: not stated",
    "noise_seed": "of the noise of this answer: the request's seed + the choice's number; empty: none",
    "group": "answers of one group share a seed or are one cached answer; -1: no transcript",
    "prompt_tokens": "tokens of the prompt as the record states them; -1: not stated",
    "template_tokens": "tokens that the chat template makes of the request; -1: not known",
    "prompt_differs": "the ids of the prompt are not those of the request, or cannot be held against it",
    "prompt_alone": "no request stands beside the answer",
    "prompt_day": "day that the chat template wrote into the prompt",
    "completion_tokens": "tokens of the answer as the record states them; -1: not stated",
    "digits": "decimals of the listed log-probabilities as they are printed; -1: none are listed",
    "end_open": "a token was chosen after the last one, or may have been, and is not among them",
    "tokens_left_out": "tokens of the answer that cannot be known; -1: no transcript",
    "other": "fields of the record that are not read, as JSON",
    "answer_how": "how the ids of the answer are known: given, bytes, text or joined",
    "prompt_how": "how the ids of the prompt are known: given, template or text",
}


def _why(found: Collected) -> str:
    """Say why answers are left out; how many for each reason where there are several."""
    reasons = left_out_of(found)
    said = [why if len(reasons) == 1 else f"{count}: {why}" for count, why in reasons]
    return _ascii("; ".join(said))[:LONGEST_WHY]


def _kept(name: str, text: str, most: int) -> str:
    """A text of a record as far as it is kept: cut JSON would be no JSON, so what is too long is counted."""
    text = _ascii(text)
    if len(text) <= most:
        return text
    counted = f'{{"characters left out": {len(text)}}}'
    return counted if name in AS_JSON else text[: most - 1] + "~"


def _bound(path: Path, shape: tuple[int, ...], longest: int, prompt: int) -> None:
    """Refuse tables that would fill the memory: each answer takes as much room in them as the longest."""
    size = 4 * (math.prod(shape) * longest + shape[1] * prompt)
    most = limits().max_bytes // 4
    if size > most:
        raise QdxError(
            f"{path}: {shape[1]:,} prompts of {shape[0]} providers, up to {longest:,} tokens an answer and "
            f"{prompt:,} a prompt take {size:,} bytes, limit {most:,}: take fewer (prompts.records=…), leave "
            "the longest answers out, or raise prompts.max_bytes"
        )


def _positions(transcripts: Sequence[Transcript], table: NDArray[np.int64]) -> dict[str, Any]:
    """Stated log-probabilities, one row a token, those of a transcript one after the other.

    A table over (config, reference, token) would be as wide as the longest answer for every other one.
    """
    own = _ragged("listed", [one.logprob_T for one in transcripts], table)
    of_prompts = _ragged("prompt_listed", [one.prompt_id_PK for one in transcripts], table)
    dims, about = (
        ("listed_token", "rank"),
        "log-probabilities that the record lists for each token of the prompt",
    )
    listed = {
        "logprob": (dims[:1], np.concatenate([one.logprob_T for one in transcripts]), "nat",
                    "stated log-probability of the token"),
        "top_id": (dims, _stacked([one.top_id_TK for one in transcripts], -1), "1",
                   "ids of the stated list; -1: not known"),
        "top_logprob": (dims, _stacked([one.top_logprob_TK for one in transcripts], np.nan), "nat",
                        "their stated log-probabilities"),
    }  # fmt: skip
    ids = _stacked([one.prompt_id_PK for one in transcripts], -1)
    if ids.size:
        dims = ("prompt_token", "prompt_rank")
        values = _stacked([one.prompt_logprob_PK for one in transcripts], np.nan)
        listed["prompt_id"] = (dims, ids, "1", f"ids of the {about}; -1: none")
        listed["prompt_logprob"] = (dims, values, "nat", about)
    found = {
        name: (over, values, {"units": units, "long_name": long})
        for name, (over, values, units, long) in listed.items()
    }
    return {**own, **(of_prompts if ids.size else {}), **found}


def _ragged(name: str, parts: Sequence[NDArray[Any]], table: NDArray[np.int64]) -> dict[str, Any]:
    """Return where the rows of each transcript begin and how many it has, over (config, reference)."""
    count = np.array([len(one) for one in parts], np.int64)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    found = {}
    for end, values, about in (
        ("first", start, "row of the first token"),
        ("count", count, "rows, one a token; 0: the record lists none"),
    ):
        full = np.zeros(table.shape, np.int32)
        full[table >= 0] = values[table[table >= 0]]
        found[f"{name}_{end}"] = (("config", "reference"), full, {"units": "1", "long_name": about})
    return found


def _stacked(parts: Sequence[NDArray[Any]], empty: float) -> NDArray[Any]:
    """Rows of all transcripts one after the other, filled up to one width of at least one."""
    width = max(1, max(one.shape[1] for one in parts))
    full = np.full((sum(len(one) for one in parts), width), empty, parts[0].dtype)
    at = 0
    for one in parts:
        full[at : at + len(one), : one.shape[1]] = one
        at += len(one)
    return full


def _coordinate(name: str, dtype: str, whos: Sequence[tuple[str, str, str]]) -> NDArray[Any]:
    """Return what records state of a config's coordinates: the model and the weight format, nothing else."""
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
    """Return what all say, or several of them."""
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
