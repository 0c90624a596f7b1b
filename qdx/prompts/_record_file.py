"""Makes a file of transcripts of other programs' records: who answered what, and how it was sampled.

The file has the groups of a producers' file without rows, since nobody but qdx records any. Its group
``/stated`` holds of every transcript what its record says: sampling parameters, log-probabilities, why it
ended, numbers of tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx import new_file
from qdx.dataset import checksums
from qdx.dataset.layout import CONFIG_COORDS, RECORDS, SCHEMA_VERSION, reference_arrays
from qdx.dataset.provenance import software
from qdx.dataset.writing import disk_errors
from qdx.errors import printable
from qdx.prompts._record_collect import NUMBERS, Collected, Request, Transcript, groups_of, labels, notes
from qdx.prompts._reference import Reference, references_sha256
from qdx.records.decoding import of_all

LONGEST_TEXT = 200  # characters of a fact, as `qdx.prompts._transcript_file` takes them


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
