"""Lays the rows of a result or measurement file out as a sweep's groups, and checks the file's analyses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from qdx.dataset.layout import INDEX, OUTPUT, OWN_PHASES, PHASE, REFERENCES
from qdx.legacy.analyses import Analysis, analyse
from qdx.legacy.comparisons import reference_name
from qdx.legacy.distance import OWN, RULES
from qdx.legacy.imported import Imported, facts_of, metric_of
from qdx.legacy.ledger import Ledger
from qdx.legacy.reading import Floats, Node
from qdx.legacy.results import Results

ROW = ("config", "repeat", "reference", "position")
FORMULA = {
    OWN: "√ Σ_v (ln p_v − ln q_v)², v in config's first five ids that config_b lists",
    "first config's": "√ Σ_v (ln p_v − ln q_v)², v in the first config's first five ids that both list",
}
GPU_KEYS, ENGINE_KEYS = ("gpu", "gpu_name"), ("vllm_version", "vllm")
WITHIN = "within_hardware_analysis"


def groups(results: Results, root: Node, form: str) -> Imported:
    """Lay the rows out and compute the original's analyses again.

    Parameters
    ----------
    results : Results
    root : Node
        The whole file, for its analyses.
    form : str
        generations or measurements.
    """
    results.bound()
    ledger = Ledger()
    rule = _rule(results, root)
    attributes = dict(results.attributes)
    found: dict[str, xr.Dataset] = {"provenance": _provenance(results)}
    if any(len(run.prompt_ids) for run in results.generations.values()):
        found["references"] = _references(results)
    for phase in results.phases:
        found[phase] = _rows(results, phase)
    if any(len(run.generated_ids) for run in results.generations.values()):
        found["output"] = _output(results)
    for phase in results.phases:
        for signal in results.signals:
            metric = metric_of(signal)
            found[f"metrics/{metric}/{phase}"] = _distances(results, phase, signal, rule, found[phase])
            node = _node(root, phase)
            each = results.per_reference(phase, signal, rule)
            made = None
            if node is not None:
                made = _analyse(results, node, signal, each, ledger)
            noise = _noise(root, phase, results.labels) if signal == "logprobs" else None
            found[f"analysis/legacy/{phase}/{metric}"] = _analysis(results, signal, each, made, noise)
    for phase in OWN_PHASES:
        if (node := root.get(f"{phase}_sanity_check")) is not None:
            attributes[node.path] = node.value
    _noise_floors(root, ledger)
    numbers = sum(
        int(np.isfinite(row.log_probs).sum()) + sum(map(len, row.key_vectors.values()))
        for run in results.generations.values()
        for rows in run.signals.values()
        for row in rows.values()
    )
    compared = f" Distances are at the first five ids of {'config' if rule == OWN else 'the first config'}."
    said = [
        f"{form}: {len(results.labels)} configs, {len(results.references)} references, "
        f"{numbers:,} numbers read in {', '.join(results.phases)}.{compared}",
        *results.remarks,
    ]
    facts = {"labels": results.labels, "failed": {}, "missing": results.without}
    return Imported(form, found, said, attributes, ledger, numbers, facts)


def _rule(results: Results, root: Node) -> str:
    """Whose ids the file's own distances are of: what reproduces more of its matrices."""
    differing = {}
    for rule in RULES:
        trial = Ledger()
        for phase in results.phases:
            if (node := _node(root, phase)) is not None:
                _analyse(results, node, "logprobs", results.per_reference(phase, rule=rule), trial)
        differing[rule] = sum(entry.differing for entry in trial.entries)
    return min(RULES, key=lambda rule: differing[rule])


def _node(root: Node, phase: str) -> Node | None:
    """The file's own analysis of a phase."""
    node = root.get(f"{phase}_sanity_check")
    if node is None and phase == "prefill":
        node = root.get(WITHIN)
    return node


def _analyse(results: Results, node: Node, signal: str, each: Floats, ledger: Ledger) -> Analysis | None:
    first = "key_vectors" if "key_vectors" in results.signals else "logprobs"
    return analyse(node, signal, each, results.labels, results.keys, ledger, first=signal == first)


def _noise(root: Node, phase: str, labels: list[str]) -> Floats | None:
    """The file's noise floor of each config; NaN where it has infinity or none."""
    if (node := root.get("noise_floors")) is None:
        return None
    values = []
    for label in labels:
        at = node.find(f"{label}.{phase}") if "." not in label else None
        values.append(np.nan if at is None else at.number())
    floors = np.array(values)
    return np.where(np.isfinite(floors), floors, np.nan)


def _noise_floors(root: Node, ledger: Ledger) -> None:
    """Return what the file states of noise: its floors need repeats, its ratio can be computed from them."""
    if (node := root.get("noise_floors")) is None:
        return
    stated = [value.number() for _, one in node.items() for _, value in one.items()]
    ledger.cannot(node.path, len(stated), "the file holds one run of each config, not the repeats")
    ratio, check = root.get("snr_analysis"), root.get("decode_sanity_check")
    if ratio is None:
        return
    floors = [value.number() for _, one in node.items() if (value := one.get("decode")) is not None]
    noise = float(np.mean(floors)) if floors else float("nan")
    own = {"noise_floor": (noise, "mean of the stated floors of decode over configs")}
    signal = None if check is None else check.get("off_diagonal_mean")
    if signal is not None:
        own["signal"] = (signal.number(), "decode_sanity_check.off_diagonal_mean")
        own["snr"] = (signal.number() / noise if noise else float("inf"), "")
    for key, value in ratio.items():
        if key in own and isinstance(value.value, int | float):
            ledger.compare(value.path, value.number(), own[key][0], own[key][1])


def _analysis(
    results: Results, signal: str, each: Floats, made: Analysis | None, noise: Floats | None
) -> xr.Dataset:
    """Return what the original made of a phase: computed here, and as its file prints it."""
    pair, unit = ("config", "config_b"), {"units": facts_of(signal)["units"]}
    matrix = each.mean(-1)
    words = "plain mean over references; NaN where one is"
    data: dict[str, Any] = {
        "per_reference": ((*pair, "reference"), each, {**unit, "long_name": "mean over positions not NaN"}),
        "matrix": (pair, matrix, {**unit, "long_name": words}),
        "pair_distance": (pair, (matrix + matrix.T) / 2, {**unit, "long_name": "mean of both directions"}),
    }
    if made is not None and made.stated_each_PCR is not None:
        words = "per_reference_matrices of the file; NaN where it has infinity"
        data["file_per_reference"] = (
            (*pair, "reference"),
            made.stated_each_PCR,
            {**unit, "long_name": words},
        )
    if made is not None and made.stated_matrix_PC is not None:
        words = "matrix of the file; NaN where it has infinity"
        data["file_matrix"] = (pair, made.stated_matrix_PC, {**unit, "long_name": words})
    if noise is not None:
        words = "noise_floors of the file; NaN where it has infinity or none"
        data["noise_floor"] = ("config", noise, {**unit, "long_name": words})
    names: Mapping[str, Any] = {"config": results.labels, "config_b": results.labels}
    return xr.Dataset(data, coords={**names, "reference": _names(results)})


def attribute_name(key: str) -> str:
    """A name that NetCDF takes: no slash, no control character, at most 256 bytes."""
    return (
        re.sub(r"[/\x00-\x1f\x7f]", "_", key).encode(errors="replace")[:250].decode(errors="ignore").strip()
    )


def _names(results: Results) -> list[str]:
    return [reference_name(reference) for reference in results.references]


def _environment(results: Results, keys: tuple[str, ...]) -> str:
    return next((results.environment[key] for key in keys if key in results.environment), "")


def _coords(results: Results) -> dict[str, Any]:
    """Coordinates on config: what the file says, and the format, which is the start of its quantization."""
    coords: dict[str, Any] = {"config": ("config", results.labels, INDEX["config"].attrs)}
    if results.models:
        stated = {
            key: [results.models[label][key] for label in results.labels]
            for key in ("model_name", "quantization", "dtype")
        }
        quantization = stated["quantization"]
        coords |= {
            "model": ("config", stated["model_name"]),
            "dtype": ("config", stated["dtype"]),
            "quantization": ("config", quantization),
            "requested_kernel": ("config", quantization),
            "format": (
                "config",
                [q.split("_")[0] for q in quantization],
                {"long_name": "quantization up to _"},
            ),
        }
    elif results.key in ("batch_size", "tp_size") and not any(isinstance(key, str) for key in results.keys):
        coords[results.key] = ("config", np.array(results.keys, np.int64), {"units": "1"})
    if gpu := _environment(results, GPU_KEYS):
        coords["gpu"] = ("config", [gpu] * len(results.labels))
    if version := _environment(results, ENGINE_KEYS):
        coords["backend"] = ("config", ["vllm"] * len(results.labels))
        coords["backend_version"] = ("config", [version] * len(results.labels))
    return coords


def _provenance(results: Results) -> xr.Dataset:
    data = {key: ("config", [value] * len(results.labels)) for key, value in results.environment.items()}
    # A variable's name begins with a letter.
    data = {
        "".join(c if c.isalnum() else "_" for c in key[:60]) if key[0].isalpha() else f"_{i}": value
        for i, (key, value) in enumerate(data.items())
        if key and key != "config"
    }
    if gpu := _environment(results, GPU_KEYS):
        data["gpu"] = ("config", [gpu] * len(results.labels))
    if version := _environment(results, ENGINE_KEYS):
        data |= {"engine": ("config", ["vllm"] * len(results.labels)),
                 "engine_version": ("config", [version] * len(results.labels))}  # fmt: skip
    if results.models:
        for name in ("model_name", "quantization", "dtype"):
            data[name] = ("config", [results.models[label][name] for label in results.labels])
    return xr.Dataset(data, coords={"config": results.labels})


def _references(results: Results) -> xr.Dataset:
    prompts = [np.array([], np.int64)] * len(results.references)
    for (_, reference), run in results.generations.items():
        prompts[results.index[reference]] = run.prompt_ids
    ids = np.full((len(prompts), max(map(len, prompts))), -1, np.int32)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = prompt
    lengths = np.array([len(p) for p in prompts], np.int32)
    return xr.Dataset(
        {
            "token_ids": (("reference", "token"), ids, REFERENCES["token_ids"].attrs),
            "length": ("reference", lengths, REFERENCES["length"].attrs),
        },
        coords={"reference": _names(results)},
    )


def _output(results: Results) -> xr.Dataset:
    most = max(len(run.generated_ids) for run in results.generations.values())
    ids = np.full((len(results.labels), 1, len(results.references), most), -1, np.int32)
    for (label, reference), run in results.generations.items():
        config, row = results.at(label, reference)
        ids[config, 0, row, : len(run.generated_ids)] = run.generated_ids
    return xr.Dataset(
        {"token_id": (("config", "repeat", "reference", "output_token"), ids, OUTPUT["token_id"].attrs)},
        coords={"config": results.labels, "repeat": [0], "reference": _names(results)},
    )


def _rows(results: Results, phase: str) -> xr.Dataset:
    positions = results.positions(phase)
    place = {position: i for i, position in enumerate(positions)}
    shape = (len(results.labels), 1, len(results.references), len(positions))
    ranks = results.ranks(phase)
    captured = np.zeros(shape, bool)
    token_id, target, total = np.full(shape, -1, np.int32), np.full(shape, np.nan), np.full(shape, np.nan)
    top_id, listed = np.full((*shape, ranks), -1, np.int32), np.full((*shape, ranks), -1, np.int32)
    top = np.full((*shape, ranks), np.nan)
    region = np.full(shape[2:], "", object)
    layers, components = results.key_shape(phase)
    key = np.full((*shape, len(layers), components), np.nan)
    for (label, reference), run in results.generations.items():
        config, r = results.at(label, reference)
        end = len(run.prompt_ids) if len(run.prompt_ids) or phase == "decode" else 1
        for from_end, row in run.signals.get(phase, {}).items():
            position = run.position(phase, from_end)
            at = config, 0, r, place[position]
            order = np.lexsort((row.token_ids, -row.log_probs))
            token = run.token(phase, from_end)
            captured[at], token_id[at], total[at] = True, token, 0.0
            top_id[at][: len(order)], top[at][: len(order)] = row.token_ids[order], row.log_probs[order]
            listed[at][: len(order)] = order
            target[at] = next(iter(row.log_probs[row.token_ids == token]), np.nan)
            region[r, at[3]] = "prompt" if position < end else "output"
            for i, layer in enumerate(layers):
                if layer in row.key_vectors:
                    key[at][i, : len(row.key_vectors[layer])] = row.key_vectors[layer]
    top[np.isinf(top)] = np.nan
    target[np.isinf(target)] = np.nan
    nat = {"units": "nat"}
    ranked = (*ROW, "rank")
    known = any(len(run.prompt_ids) for run in results.generations.values())
    where = {} if known else {"long_name": "place from the end of the prompt: the file has no token ids"}
    data: dict[str, Any] = {
        "captured": (ROW, captured, PHASE["captured"].attrs),
        "token_id": (ROW, token_id, PHASE["token_id"].attrs),
        "target_logit": (
            ROW, target, {**nat, "long_name": "log-probability of token_id; NaN where it is not listed"},
        ),
        "logsumexp": (
            ROW, total, {**nat, "long_name": "0: top_logit and target_logit are log-probabilities"},
        ),
        "top_id": (
            ranked, top_id, {"units": "1", "long_name": "listed ids: the likeliest and, where it is "
                             "not among them, token_id; by log-probability; -1: none"},
        ),
        "top_logit": (ranked, top, {**nat, "long_name": "log-probabilities of top_id"}),
        "listed_rank": (ranked, listed, {"units": "1", "long_name": "place in the file's list"}),
    }  # fmt: skip
    coords = {
        **_coords(results),
        "repeat": ("repeat", [0], INDEX["repeat"].attrs),
        "reference": ("reference", _names(results), INDEX["reference"].attrs),
        "position": ("position", np.array(positions, np.int32), {**INDEX["position"].attrs, **where}),
        "region": (
            ("reference", "position"), region,
            {"units": "1", "long_name": "output, or prompt (the file does not say which part of it)"},
        ),
    }  # fmt: skip
    if layers:
        words = {"units": "1", "long_name": "key vector of the token before, by layer; NaN: not in the file"}
        data["key_vector"] = ((*ROW, "layer", "component"), key, words)
        coords["layer"] = ("layer", layers)
    return xr.Dataset(data, coords=coords)


def _distances(results: Results, phase: str, signal: str, rule: str, rows: xr.Dataset) -> xr.Dataset:
    """Distances of rows that saw the same tokens before.

    The original went on after two outputs had split, at the same place from the end; its means over those
    rows are in ``/analysis/legacy``.
    """
    positions = rows["position"].values.tolist()
    place = {position: i for i, position in enumerate(positions)}
    count = len(results.labels)
    values = np.full((count, count, len(results.references), len(positions)), np.nan)
    split = infinite = 0
    for (a, b, r), found in results.distances(phase, signal, rule).items():
        run, other = (results.generations[results.labels[i], results.references[r]] for i in (a, b))
        # A row up to the one that predicts the first differing token saw the same tokens in both.
        last = len(run.prompt_ids) + results.together(a, b, r)
        for from_end, value in found.items():
            position = run.position(phase, from_end)
            if phase == "decode" and (position > last or position != other.position(phase, from_end)):
                split += 1
            elif np.isinf(value):
                infinite += 1
            else:
                values[a, b, r, place[position]] = value
    metric = metric_of(signal)
    attrs = {**facts_of(signal), "infinite": infinite, "after_divergence": split}
    if signal == "logprobs":
        attrs["formula"] = FORMULA[rule]
        attrs["long_name"] = "the original experiment's distance of two short lists"
    else:
        attrs["long_name"] = "L2 of key vectors, mean over layers"
    kept = {name: coord for name, coord in rows.coords.items() if name not in ("repeat", "layer")}
    return xr.Dataset(
        {metric: (("config", "config_b", "reference", "position"), values, attrs)},
        coords={**kept, "config_b": results.labels},
    )
