"""Read and count a server's answers, from the file of a config."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError

ANSWERS = "responses.jsonl"  # of a config, and in the sweep's folder those of all
FACTS = "endpoint.json"  # beside it: who was asked, for what, and how it ended
MOST_NAMES = 4


@dataclass
class Asked:
    """Hold what one config asked and got.

    Attributes
    ----------
    label : str
    facts : Mapping
        `FACTS`.
    answered, failed : int
        Answers, and requests that brought none.
    prompt_tokens : ndarray of int64
        Of every answer what the server counted, less what was sent; only where ids were sent and it counts.
    tokens : int
        Of all answers, as the server counts them.
    seconds : ndarray of float64
        Of every answer, from the request's sending to the last byte.
    attempts : int
        Of the requests that were answered.
    models, fingerprints : Counter
        As responses state them; "" where one does not.
    with_ids, with_logprobs : int
        Answers that have token ids, and log-probabilities.
    errors : Counter
        What requests that brought nothing ended with.
    """

    label: str
    facts: Mapping[str, Any]
    answered: int = 0
    failed: int = 0
    tokens: int = 0
    attempts: int = 0
    prompt_tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    models: Counter[str] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)
    with_ids: int = 0
    with_logprobs: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def wanted(self) -> int:
        """Answers that were asked for."""
        return int(self.facts.get("wanted", 0))


def is_asked(directory: Path) -> bool:
    """Return whether a sweep folder is one of servers' answers."""
    return any(directory.glob(f"*/{FACTS}"))


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the lines that were written whole; a crash may have cut the last one.

    Raises
    ------
    QdxError
        For a line before the last that is not an object of JSON.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise QdxError(f"{path}: line {number} is damaged ({error}): remove this line") from None
            yield value


def asked_of(folder: Path) -> Asked:
    """Count what is in the folder of a config.

    Raises
    ------
    QdxError
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QdxError(f"{folder / FACTS} cannot be read ({error}): run the sweep again") from None
    found = Asked(folder.name, facts if isinstance(facts, dict) else {})
    path = folder / ANSWERS
    seconds, differences = [], []
    for line in lines_of(path) if path.is_file() else ():
        own = line.get("qdx") or {}
        response = line.get("response")
        if not isinstance(response, dict):
            found.failed += 1
            found.errors[str((line.get("error") or {}).get("message", "no answer"))] += 1
            continue
        found.answered += 1
        seconds.append(float(own.get("seconds", "nan")))
        found.attempts += int(own.get("attempts", 1))
        found.models[str(response.get("model") or "")] += 1
        found.fingerprints[str(response.get("system_fingerprint") or "")] += 1
        usage = _object(response.get("usage"))
        found.tokens += _count(usage, "completion_tokens") or 0
        sent, counted = (line.get("request") or {}).get("prompt"), _count(usage, "prompt_tokens")
        if isinstance(sent, list) and counted is not None:
            differences.append(counted - len(sent))
        choice = response["choices"][0] if response.get("choices") else {}
        found.with_ids += isinstance(choice.get("token_ids"), list) or _lists_ids(choice.get("logprobs"))
        found.with_logprobs += bool(choice.get("logprobs"))
    found.seconds = np.array(seconds)
    found.prompt_tokens = np.array(differences, np.int64)
    return found


def _lists_ids(logprobs: object) -> bool:
    """Return whether every listed token has its id, as llama.cpp's server writes them."""
    entries = _object(logprobs).get("content")
    return isinstance(entries, list) and bool(entries) and all("id" in _object(one) for one in entries)


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
