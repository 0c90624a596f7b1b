"""Puts runs of one config each side by side along ``config``, without reading full rows.

Every alignment is explicit: an outer join of xarray would turn integer ids into floats. Repeats, positions,
ranks and output tokens become the union over the runs; what a run does not have is its variable's fill value
and not ``captured``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr

from qdx.dataset import layout
from qdx.dataset.folder import Sweep
from qdx.errors import QdxError

Datasets = Mapping[str, xr.Dataset]
# What has to be the same in all runs of a folder, and how a message names it.
ALIKE = {
    "tokenizer": "tokenizer",
    "references": "references or their continuation (prompts.*, generate.tokens)",
    "transcripts": "transcripts (prompts.path)",
    "vocabulary": "vocabulary size",
    "sketch": "sketch (capture.components)",
}


def combine(state: Sweep, trees: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """Return the tree of a sweep from the trees of its runs, in the order of the sweep's labels.

    Parameters
    ----------
    state : Sweep
    trees : Mapping
        Label → tree of its ``run.nc``.

    Raises
    ------
    QdxError
        When tokenizer, references, vocabulary or sketch differ; the message names the labels.
    """
    require_alike({label: _facts(tree) for label, tree in trees.items()})
    first = next(iter(trees.values()))
    groups: dict[str, xr.Dataset] = {
        "/": xr.Dataset(attrs=_root_attrs(state)),
        "provenance": combine_provenance(
            {label: tree["provenance"].to_dataset() for label, tree in trees.items()}
        ),
        "references": first["references"].to_dataset(),
    }
    for phase in layout.PHASES:
        if phase in first.children:
            groups[phase] = combine_phase({label: tree[phase].to_dataset() for label, tree in trees.items()})
    if "output" in first.children:
        outputs = {label: tree["output"].to_dataset() for label, tree in trees.items()}
        groups["output"] = combine_output(outputs)
    return xr.DataTree.from_dict(groups)


def _root_attrs(state: Sweep) -> dict[str, Any]:
    from qdx.dataset.provenance import software

    stated = {**software(), "command_line": str(state.settings.get("command_line", ""))}
    return {
        **layout.conventions(f"qdx sweep of {', '.join(state.labels)}", stated),
        "kind": "sweep",
        "schema_version": layout.SCHEMA_VERSION,
        **software(),
        "command_line": str(state.settings.get("command_line", "")),
        "labels": json.dumps(state.labels),
        "failed": json.dumps(state.failed),
        "missing": json.dumps(state.missing),
    }


def require_alike(facts: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse runs whose rows do not mean the same.

    Parameters
    ----------
    facts : Mapping
        Label → the facts named in `ALIKE`: before the jobs of a sweep start what their configs will use
        (`qdx.sweep.prepare`), when runs are combined what their files hold.

    Raises
    ------
    QdxError
        Naming what differs, and between which labels.
    """
    for name, what in ALIKE.items():
        groups: dict[str, list[str]] = {}
        for label, own in facts.items():
            groups.setdefault(own[name], []).append(label)
        if len(groups) > 1:
            sides = "; ".join(f"{', '.join(labels)}: {_short(value)}" for value, labels in groups.items())
            raise QdxError(
                f"configs of one sweep folder must share the {what}, these do not ({sides}): run them as "
                "sweeps of their own, each in its hydra.sweep.dir"
            )


def _short(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 else value[:60]  # 64: a SHA-256


def _facts(tree: xr.DataTree) -> dict[str, str]:
    """Return what a run's file holds; the references by their tokens, not by the hash that it states."""
    import hashlib

    references = tree["references"].to_dataset()
    digest = hashlib.sha256()
    for name in ("token_ids", "continuation", "prefix_length", "content_length", "suffix_length"):
        digest.update(
            f"{name}{references[name].shape}".encode()
            + np.ascontiguousarray(references[name].values).tobytes()
        )
    names = ", ".join(str(name) for name in references["reference"].values)
    sizes = tree["prefill"].sizes
    replayed = tree["replay"].to_dataset()
    producers = "none"
    if "producer" in replayed.dims:
        tokens = replayed["token_id"].isel(repeat=0).values.tobytes()
        labels = ", ".join(str(name) for name in replayed["producer"].values)
        producers = f"{labels} with tokens {hashlib.sha256(tokens).hexdigest()[:12]}"
    return {
        "tokenizer": str(tree.attrs.get("tokenizer_sha256", "")),
        "references": f"{names} with tokens {digest.hexdigest()[:12]}",
        "transcripts": producers,
        "vocabulary": str(tree.attrs["vocab"]),
        "sketch": f"{sizes['component']} components, seed {tree.attrs['sketch_seed']}",
    }


def combine_phase(parts: Datasets) -> xr.Dataset:
    """Combine one phase of several runs; full rows (dask) stay lazy, everything else is small."""
    repeats = max(part.sizes["repeat"] for part in parts.values())
    positions = np.unique(np.concatenate([part["position"].values for part in parts.values()])).astype(
        np.int32
    )
    ranks = max(part.sizes["rank"] for part in parts.values())
    table = {**layout.PHASE, **layout.DRAWN, **layout.FIRST, **layout.FIRST_DRAWN}
    fills = {name: False if row.dtype == "bool" else row.fill for name, row in table.items()}
    aligned = []
    for part in _with_all_settings(parts):
        small = part.drop_vars(["region", *layout.WIDE], errors="ignore")
        # Read when used. Of the variable alone: chunking a DataArray chunks its forty coordinates with it.
        # And under no name that tells its content: dask pickles the open file for one, half a merge's time.
        small = small.assign(
            {
                name: values.variable.chunk(name=f"{name}-{uuid4().hex}")
                for name, values in small.data_vars.items()
            }
        )
        aligned.append(
            _fit(
                small,
                {"repeat": np.arange(repeats, dtype=np.int32), "position": positions},
                {"rank": ranks},
                fills,
            )
        )
    combined = _concat(aligned)
    template = combined.assign_coords(region=_region(parts, positions))
    return template.assign(combine_rows(parts, template))


def combine_rows(parts: Datasets, template: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the full rows of several runs on the index of `template`, by variable that any of them kept."""
    import dask.array

    found = {}
    for name in layout.WIDE:
        kept = {label: part[name] for label, part in parts.items() if name in part}
        if not kept:
            continue
        first = next(iter(kept.values()))
        index = {dim: template[dim].values for dim in first.dims[1:-1]}
        shape = (1, *(len(values) for values in index.values()), first.shape[-1])
        blocks = []
        for label in template["config"].values:
            rows = kept.get(str(label))
            if rows is None:
                chunks = (*(1 for _ in shape[:-1]), shape[-1])
                blocks.append(dask.array.full(shape, np.nan, dtype=np.float32, chunks=chunks))
                continue
            same = all(np.array_equal(rows[dim].values, values) for dim, values in index.items())
            # Whole chunks are moved, so their order and the gaps between them cost no reading.
            blocks.append((rows if same else rows.reindex(index, fill_value=np.float32(np.nan))).data)
        found[name] = xr.DataArray(dask.array.concatenate(blocks), dims=first.dims, attrs=first.attrs)
    return found


def combine_output(parts: Datasets) -> xr.Dataset:
    """Combine the free generations of several runs."""
    repeats = max(part.sizes["repeat"] for part in parts.values())
    tokens = max(part.sizes["output_token"] for part in parts.values())
    fills = {"token_id": -1, "eos_index": -1, "text": ""}
    index = {"repeat": np.arange(repeats, dtype=np.int32)}
    return _concat([_fit(part, index, {"output_token": tokens}, fills) for part in _with_all_settings(parts)])


def combine_provenance(parts: Datasets) -> xr.Dataset:
    """Combine the provenance of several runs; a fact that a run lacks is an empty text."""
    layer_types = list(
        dict.fromkeys(str(name) for part in parts.values() for name in part["layer_type"].values)
    )
    names = list(dict.fromkeys(str(name) for part in parts.values() for name in part.data_vars))
    aligned = []
    for part in parts.values():
        part = part.load().reindex(layer_type=np.array(layer_types, object), fill_value="")
        for name in names:
            if name not in part:
                attrs = next(other[name].attrs for other in parts.values() if name in other)
                part[name] = xr.DataArray(np.array([""], object), dims=("config",), attrs=attrs)
        aligned.append(part[names])
    return _concat(aligned)


def _with_all_settings(parts: Datasets) -> Iterator[xr.Dataset]:
    """Give every run the settings of all backends; one that its own does not have is an empty text."""
    found = {
        name: xr.Variable("config", np.array([""], object), part[name].attrs)
        for part in parts.values()
        for name in layout.setting_names(part.coords)
    }
    for part in parts.values():
        lacking = {name: empty for name, empty in found.items() if name not in part.coords}
        yield part.assign_coords(lacking)


def _fit(
    part: xr.Dataset, index: Mapping[str, Any], lengths: Mapping[str, int], fills: Mapping[str, Any]
) -> xr.Dataset:
    own = {name: fills[str(name)] for name in part.data_vars}
    if any(not np.array_equal(part[name].values, values) for name, values in index.items()):
        attrs = {name: part[name].attrs for name in index}
        part = part.reindex(index, fill_value=own)
        for name in index:
            part[name].attrs = attrs[name]
    for dim, length in lengths.items():
        if part.sizes[dim] < length:
            part = part.pad({dim: (0, length - part.sizes[dim])}, constant_values=own)
    return part


def _concat(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    combined = xr.concat(
        parts,
        "config",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    return combined.assign_attrs({})


def _region(parts: Datasets, positions: np.ndarray[Any, Any]) -> xr.DataArray:
    first = next(iter(parts.values()))["region"]
    merged = np.full((first.sizes["reference"], len(positions)), "", object)
    for part in parts.values():
        own = np.searchsorted(positions, part["position"].values)
        values = part["region"].values
        merged[:, own] = np.where(values != "", values, merged[:, own])
    return xr.DataArray(merged, dims=("reference", "position"), attrs=first.attrs)
