"""A verdict that can be shown to anybody: hashes, numbers and names of formats, and nothing that was said.

No prompt, answer or token id is in it, no sentence that quotes a record, and no name of a machine, a user, a
file or a folder. Prompts may be short enough to be guessed, and a hash of what can be guessed tells who was
right. So digests of prompts, answers and records are keyed (HMAC-SHA256). Whoever gets the key and the
records can check that the verdict is about them, and by the seed of the draw which of them were judged. Sums
over tokens are rounded for the same reason.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from qdx.analysis.view import stated
from qdx.errors import QdxError
from qdx.verification.verdicts import exit_status

SCHEMA = 2
# Of /provenance of a config here; every other fact is left out until it is named.
FACTS = (
    "format", "requested_kernel", "observed_kernel", "dtype", "engine", "engine_version", "backend",
    "backend_version", "batch_size", "simulated", "gpu", "compute_capability", "sm_count", "cpu", "threads",
    "torch_version", "cuda_version", "cublas_version", "qdx_version", "code_sha256",
)  # fmt: skip
OF_ALL = ("transcripts_sha256", "references_sha256", "tokenizer_sha256", "vocab", "sketch_seed")
OF_RECORDS = ("record_sha256", "record_reader", "draw_seed", "unreadable", "left_out", "duplicates")
COUNTS = (
    "tokens", "tokens_greedy", "tokens_tied", "text_misfits", "listed", "listed_equal", "rows_compared",
    "rows_equal", "rows_expected", "prefill_compared", "prefill_equal", "prefill_expected",
)  # fmt: skip
SUMS = ("log_likelihood", "drawn_log_likelihood")
SUM_DIGITS = 3  # of which a guess is hardly confirmed
KEYED = ("transcripts_sha256", "references_sha256", "record_sha256")  # of what was said
NUMBERS = ("p_test", "p_test_holm", "false_at_least", "units", "drawn_rows", "drawn_prefill", "drawn_decode")
WORDS = ("verdict", "concerns", "plain_greedy")
_PLACE = re.compile(
    r"[/\\~]|^\.|checkpoint|path"
)  # of a label or a model's name: it says where something lies


def published(verifier: xr.DataTree, producers: xr.DataTree, key: bytes) -> dict[str, Any]:
    """Collect what a verdict says without what was said.

    Parameters
    ----------
    verifier : xarray.DataTree
        A verifier's ``sweep.nc``, with ``/analysis/verify``.
    producers : xarray.DataTree
        The ``producers.nc`` beside it.
    key : bytes
        Of the digests of `KEYED`, which a `keyed` digest is made with; it is not in the result.

    Returns
    -------
    dict
        ``claims``, one a producer, with ``by_config`` for every config that was replayed; ``configs``, their
        formats, kernels, machines and the SHA-256 of their weights; hashes of transcripts, prompts and
        records. JSON takes it; a number that was not measured is None.

    Raises
    ------
    QdxError
        When the sweep judged nothing.
    """
    analyses = verifier["analysis"].children if "analysis" in verifier.children else {}
    if "verify" not in analyses:
        raise QdxError("the folder holds no verdict: give a sweep that was run with prompts=transcripts")
    result = analyses["verify"].to_dataset()
    here, theirs = (tree["provenance"].to_dataset() for tree in (verifier, producers))
    rows = verifier["replay"].to_dataset()
    configs = _names([str(v) for v in result["config"].values], "config")
    labels = [str(v) for v in result["producer"].values]
    models = _models(producers, labels)
    shown = [
        f"{name} ({model})" if _PLACE.search(model) else name
        for name, model in zip(labels, models, strict=True)
    ]
    names = dict(zip(labels, _names(shown, "provider").values(), strict=True))
    claims = [
        _claim(result.sel(producer=label), names[label], configs, theirs, label, key) for label in labels
    ]
    return {
        "kind": "verdict",
        "schema_version": SCHEMA,
        "alpha": float(result.attrs["alpha"]),
        "exit_status": exit_status([str(v) for v in result["verdict"].values]),
        "calibration_sets": int(result.attrs["calibration_sets"]),
        "claims": claims,
        "configs": {
            configs[str(v)]: _facts(rows, here, str(v)) for v in here["config"].values if str(v) in configs
        },
        **{
            name: sorted({_shown(name, str(value), key) for value in here[name].values})
            for name in OF_ALL
            if name in here
        },
    }


def keyed(digest: str, key: bytes) -> str:
    """Return what a verdict shows of a digest: HMAC-SHA256 of its text.

    Parameters
    ----------
    digest : str
        SHA-256 in hexadecimal digits, such as that of the file of records.
    key : bytes
        See `published`.
    """
    return hmac.new(key, digest.encode("ascii"), hashlib.sha256).hexdigest()


def _shown(name: str, value: str, key: bytes) -> str:
    return keyed(value, key) if value and name in KEYED else value


def _claim(
    one: xr.Dataset, name: str, configs: Mapping[str, str], theirs: xr.Dataset, label: str, key: bytes
) -> dict[str, Any]:
    claim = str(one["claim"].values)
    by_config = {}
    for config, shown in configs.items():
        own = one.sel(config=config)
        counts: dict[str, Any] = {n: int(own[n].sum()) for n in COUNTS if n in own}
        counts |= {n: _rounded(own[n].sum(skipna=True, min_count=1)) for n in SUMS if n in own}
        by_config[shown] = {**counts, "p": _number(own["p_config"])}
    return {
        "producer": name,
        "claim": configs.get(claim, "its own label" if claim == label else claim),
        **{word: str(one[word].values) for word in WORDS},
        **{number: _number(one[number]) for number in NUMBERS},
        "transcripts": int((one["tokens"].max("config") > 0).sum()),
        "tests": {str(test): _number(one["test_p"].sel(test=test)) for test in one["test"].values},
        "by_config": by_config,
        **{
            fact: _shown(fact, str(theirs[fact].sel(config=label).values), key)
            for fact in OF_RECORDS
            if fact in theirs
        },
    }


def _names(labels: list[str], noun: str) -> dict[str, str]:
    """Return what each label is called: itself, or a number where it says where something lies."""
    return {
        label: f"{noun} {number}" if _PLACE.search(label) else label for number, label in enumerate(labels, 1)
    }


def _models(producers: xr.DataTree, labels: list[str]) -> list[str]:
    decode = producers["decode"].to_dataset()
    if "model" not in decode.coords:
        return [""] * len(labels)
    return [str(decode["model"].sel(config=label).values) for label in labels]


def _facts(rows: xr.Dataset, stored: xr.Dataset, config: str) -> dict[str, str]:
    found = {name: stated(rows, stored, name, config) for name in FACTS}
    if "weights_sha256" in stored:
        found["weights_sha256"] = _digests(str(stored["weights_sha256"].sel(config=config).values))
    return {name: value for name, value in found.items() if value}


def _digests(weights: str) -> str:
    """The digests of a mapping of file names to them, without the names."""
    try:
        files = json.loads(weights)
    except ValueError:
        return weights if re.fullmatch(r"[0-9a-f]*", weights) else ""
    return " ".join(sorted(map(str, files.values()))) if isinstance(files, dict) else str(files)


def _number(value: xr.DataArray) -> float | int | None:
    number = value.item()
    if isinstance(number, float):
        return number if np.isfinite(number) else None
    return int(number)


def _rounded(value: xr.DataArray) -> float | int | None:
    number = _number(value)
    return None if number is None else float(f"{number:.{SUM_DIGITS}g}")
