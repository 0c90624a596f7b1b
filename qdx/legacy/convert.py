"""Writes the layout of a sweep from what an original file holds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from qdx.dataset import append, checksums
from qdx.dataset.layout import INDEX, OUTPUT, PHASE, REFERENCES, SCHEMA_VERSION
from qdx.dataset.provenance import command_line, software
from qdx.dataset.writing import attribute, disk_errors
from qdx.errors import QdxError
from qdx.legacy import generations, verification
from qdx.legacy.distance import aggregate
from qdx.legacy.generations import PHASES, Results
from qdx.legacy.reading import Node

ROW = ("config", "repeat", "reference", "position")
FORMULA = "√ Σ_v (ln p_v − ln q_v)², v in config's first five ids that config_b lists"
DISTANCE = {"units": "nat", "higher_means": "less alike", "formula": FORMULA}
GPU_KEYS, ENGINE_KEYS = ("gpu", "gpu_name"), ("vllm_version", "vllm")


def convert(file: str | Path, out: str | Path) -> list[str]:
    """Convert a result or verification file of the original experiment to NetCDF.

    Parameters
    ----------
    file : path
        JSON, with ``generations`` (results) or ``comparisons`` (verification).
    out : path
        Replaced when it exists, and only by a whole file.

    Returns
    -------
    list of str
        Lines for people: what was read and how well ``seed_l2`` reproduces the file's own matrices.

    Raises
    ------
    QdxError
        With the path of the bad key; nothing is written then.

    Notes
    -----
    ``top_logit`` holds the file's natural log-probabilities, float64, and ``logsumexp`` is 0, so that the
    log-probability ``logit − logsumexp`` is right; ids are sorted as in every qdx file, ``listed_rank`` is
    their place in the original list. Full rows, hashes, sketches, ranks of targets and template lengths are
    not in such a file,
    so those variables are absent.
    """
    file, out = Path(file), Path(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise QdxError(f"{out} is the file to read: give another name to write to")
    root = Node.load(file)
    if "comparisons" in root.mapping():
        groups, said, attributes = verification.groups(root)
    else:
        results = generations.read(root)
        groups, said, attributes = _groups(results), _said(results), dict(results.attributes)
        attributes |= {"labels": list(results.labels), "failed": {}, "missing": results.without}
    head = {
        "kind": "sweep",
        "schema_version": SCHEMA_VERSION,
        **software(),
        "command_line": command_line(),
        "origin": "the original experiment's file, by qdx.legacy",
        "source": str(file),
        "source_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    part = out.with_name(out.name + ".part")
    with disk_errors(part):
        out.parent.mkdir(parents=True, exist_ok=True)
        named = {f"legacy: {path}" if path not in ("labels", "failed", "missing") else path: value
                 for path, value in attributes.items()}  # fmt: skip
        attrs = {_name(key): attribute(value) for key, value in {**head, **named}.items()}
        xr.Dataset(attrs=attrs).to_netcdf(part, mode="w", engine="netcdf4")
    try:
        for name, dataset in groups.items():
            append(part, name, dataset)
        with disk_errors(part):
            checksums.store(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return [f"{file}: {line}" for line in said[:1]] + said[1:] + [f"written: {out}"]


def _name(key: str) -> str:
    """An attribute name that NetCDF takes: no slash, no control character, at most 256 bytes."""
    return (
        re.sub(r"[/\x00-\x1f\x7f]", "_", key).encode(errors="replace")[:250].decode(errors="ignore").strip()
    )


def _groups(results: Results) -> dict[str, xr.Dataset]:
    groups = {"provenance": _provenance(results), "references": _references(results)}
    for phase in PHASES:
        groups[phase] = _rows(results, phase)
    groups["output"] = _output(results)
    for phase in PHASES:
        groups[f"metrics/seed_l2/{phase}"] = _distances(results, phase, groups[phase])
        groups[f"analysis/legacy/{phase}"] = _legacy(results, phase)
    return groups


def _names(results: Results) -> list[str]:
    return [f"ref_{reference}" for reference in results.references]


def _environment(results: Results, keys: tuple[str, ...]) -> str:
    return next((results.environment[key] for key in keys if key in results.environment), "")


def _coords(results: Results) -> dict[str, Any]:
    """Coordinates on config: what the file says, and the format, which is the start of its quantization."""
    model = [facts["model_name"] for facts in results.models.values()]
    quantization = [facts["quantization"] for facts in results.models.values()]
    coords: dict[str, Any] = {
        "config": ("config", results.labels, INDEX["config"].attrs),
        "model": ("config", model),
        "dtype": ("config", [facts["dtype"] for facts in results.models.values()]),
        "quantization": ("config", quantization),
        "requested_kernel": ("config", quantization),
        "format": ("config", [q.split("_")[0] for q in quantization], {"long_name": "quantization up to _"}),
    }
    if gpu := _environment(results, GPU_KEYS):
        coords["gpu"] = ("config", [gpu] * len(model))
    if version := _environment(results, ENGINE_KEYS):
        coords["backend"] = ("config", ["vllm"] * len(model))
        coords["backend_version"] = ("config", [version] * len(model))
    return coords


def _provenance(results: Results) -> xr.Dataset:
    data = {key: ("config", [value] * len(results.labels)) for key, value in results.environment.items()}
    data = {_name(key): value for key, value in data.items() if key and key != "config"}
    for name in ("model_name", "quantization", "dtype"):
        data[name] = ("config", [facts[name] for facts in results.models.values()])
    return xr.Dataset(data, coords={"config": results.labels})


def _references(results: Results) -> xr.Dataset:
    prompts = [
        next(run.prompt_ids for (_, own), run in results.generations.items() if own == reference)
        for reference in results.references
    ]
    ids = np.full((len(prompts), max(map(len, prompts))), -1, np.int32)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = prompt
    return xr.Dataset(
        {
            "token_ids": (("reference", "token"), ids, REFERENCES["token_ids"].attrs),
            "length": (
                "reference",
                np.array([len(p) for p in prompts], np.int32),
                REFERENCES["length"].attrs,
            ),
        },
        coords={"reference": _names(results)},
    )


def _output(results: Results) -> xr.Dataset:
    most = max(len(run.generated_ids) for run in results.generations.values())
    ids = np.full((len(results.labels), 1, len(results.references), most), -1, np.int32)
    for (label, reference), run in results.generations.items():
        at = results.labels.index(label), 0, results.references.index(reference)
        ids[at][: len(run.generated_ids)] = run.generated_ids
    return xr.Dataset(
        {"token_id": (("config", "repeat", "reference", "output_token"), ids, OUTPUT["token_id"].attrs)},
        coords={"config": results.labels, "repeat": [0], "reference": _names(results)},
    )


def _positions(results: Results, phase: str) -> list[int]:
    return sorted(
        {run.position(phase, at) for run in results.generations.values() for at in run.signals[phase]}
    )


def _rows(results: Results, phase: str) -> xr.Dataset:
    positions = _positions(results, phase)
    shape = (len(results.labels), 1, len(results.references), len(positions))
    lists = [row for run in results.generations.values() for row in run.signals[phase].values()]
    ranks = max((len(row.token_ids) for row in lists), default=0)
    captured = np.zeros(shape, bool)
    token_id, target, total = np.full(shape, -1, np.int32), np.full(shape, np.nan), np.full(shape, np.nan)
    top_id, listed = np.full((*shape, ranks), -1, np.int32), np.full((*shape, ranks), -1, np.int32)
    top = np.full((*shape, ranks), np.nan)
    region = np.full(shape[2:], "", object)
    for (label, reference), run in results.generations.items():
        ids = run.prompt_ids if phase == "prefill" else run.generated_ids
        for from_end, row in run.signals[phase].items():
            r = results.references.index(reference)
            at = results.labels.index(label), 0, r, positions.index(run.position(phase, from_end))
            order = np.lexsort((row.token_ids, -row.log_probs))
            captured[at], token_id[at], total[at] = True, ids[from_end], 0.0
            top_id[at][: len(order)], top[at][: len(order)] = row.token_ids[order], row.log_probs[order]
            listed[at][: len(order)] = order
            target[at] = next(iter(row.log_probs[row.token_ids == ids[from_end]]), np.nan)
            region[r, at[3]] = "prompt" if phase == "prefill" else "output"
    top[np.isinf(top)] = np.nan
    target[np.isinf(target)] = np.nan
    nat = {"units": "nat"}
    ranked = (*ROW, "rank")
    return xr.Dataset(
        {
            "captured": (ROW, captured, PHASE["captured"].attrs),
            "token_id": (ROW, token_id, PHASE["token_id"].attrs),
            "target_logit": (
                ROW, target, {**nat, "long_name": "log-probability of token_id; NaN where it is not listed"},
            ),
            "logsumexp": (
                ROW, total, {**nat, "long_name": "0: top_logit and target_logit are log-probabilities"},
            ),
            "top_id": (
                ranked, top_id, {"units": "1", "long_name": "listed ids: the five likeliest and, where it is "
                                 "not among them, token_id; by log-probability; -1: none"},
            ),
            "top_logit": (ranked, top, {**nat, "long_name": "log-probabilities of top_id"}),
            "listed_rank": (ranked, listed, {"units": "1", "long_name": "place in the file's list"}),
        },
        coords={
            **_coords(results),
            "repeat": ("repeat", [0], INDEX["repeat"].attrs),
            "reference": ("reference", _names(results), INDEX["reference"].attrs),
            "position": ("position", np.array(positions, np.int32), INDEX["position"].attrs),
            "region": (
                ("reference", "position"), region,
                {"units": "1", "long_name": "output, or prompt (the file does not say which part of it)"},
            ),
        },
    )  # fmt: skip


def _distances(results: Results, phase: str, rows: xr.Dataset) -> xr.Dataset:
    positions = rows["position"].values.tolist()
    count = len(results.labels)
    values = np.full((count, count, len(results.references), len(positions)), np.nan)
    for (a, b, r), found in results.distances(phase).items():
        run = results.generations[results.labels[a], results.references[r]]
        for from_end, value in found.items():
            values[a, b, r, positions.index(run.position(phase, from_end))] = value
    infinite = int(np.isinf(values).sum())
    values[np.isinf(values)] = np.nan
    attrs = {
        **DISTANCE,
        "long_name": "the original experiment's distance, first five ids of config that config_b lists too",
        "infinite": infinite,
        "after_divergence": "measured at the same place from the end whether or not earlier tokens differ, "
        "as the original did",
    }
    coords = {name: coord for name, coord in rows.coords.items() if name not in ("repeat",)}
    return xr.Dataset(
        {"seed_l2": (("config", "config_b", "reference", "position"), values, attrs)},
        coords={**coords, "config_b": results.labels},
    )


def _legacy(results: Results, phase: str) -> xr.Dataset:
    """What the original made of a phase: computed here, and as its file prints it."""
    each, pair = results.per_reference(phase), ("config", "config_b")
    matrix, both = aggregate(each)
    nat, check = {"units": "nat"}, results.checks.get(phase)
    data: dict[str, Any] = {
        "per_reference": ((*pair, "reference"), each, {**nat, "long_name": "mean over positions not NaN"}),
        "matrix": (pair, matrix, {**nat, "long_name": "plain mean over references; NaN where one is"}),
        "pair_distance": (pair, both, {**nat, "long_name": "mean of both directions of matrix"}),
    }
    if check is not None and check.per_reference_CCR is not None:
        said = {**nat, "long_name": "per_reference_matrices of the file; NaN where it has infinity"}
        data["file_per_reference"] = ((*pair, "reference"), check.per_reference_CCR, said)
    if check is not None and check.matrix_CC is not None:
        said = {**nat, "long_name": "matrix of the file; NaN where it has infinity"}
        data["file_matrix"] = (pair, check.matrix_CC, said)
    noise = results.noise[phase]
    if noise:
        floor = np.array([noise.get(label, np.nan) for label in results.labels])
        data["noise_floor"] = (
            "config",
            np.where(np.isfinite(floor), floor, np.nan),
            {**nat, "long_name": "noise_floors of the file; NaN where it has infinity or none"},
        )
    names: Mapping[str, Any] = {"config": results.labels, "config_b": results.labels}
    attrs = {} if check is None else {key: json.dumps(value) for key, value in check.kept.items()}
    return xr.Dataset(data, coords={**names, "reference": _names(results)}, attrs=attrs)


def _said(results: Results) -> list[str]:
    lines = [f"{len(results.labels)} configs, {len(results.references)} references"]
    for phase in PHASES:
        check = results.checks.get(phase)
        if check is None or check.per_reference_CCR is None:
            lines.append(f"{phase}: the file has no per_reference_matrices to compare seed_l2 with")
            continue
        own, theirs = results.per_reference(phase), check.per_reference_CCR
        both = np.isfinite(own) & np.isfinite(theirs)
        worst = float(np.abs(own - theirs)[both].max(initial=0.0))
        other = int((np.isfinite(own) != np.isfinite(theirs)).sum())
        lines.append(
            f"{phase}: seed_l2 against the file's per_reference_matrices: greatest difference {worst:.1e} of "
            f"{int(both.sum())} finite values; {int((~np.isfinite(own) & ~np.isfinite(theirs)).sum())} not "
            f"measured in both, {other} in one only"
        )
    return lines
