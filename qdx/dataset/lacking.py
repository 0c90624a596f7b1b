"""Tell the reader of a file which facts it lacks, because an earlier version of qdx wrote it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from qdx.dataset.layout import SCHEMA_VERSION

# Facts that runs state since schema version 2, and what they are called. What depends on the machine may be
# an empty text in a file that states it: there is no cuBLAS on a CPU.
SINCE_2 = {
    "sampling": "sampling parameters",
    "cuda_runtime": "CUDA runtime",
    "cublas_version": "cuBLAS",
    "cublaslt_version": "cuBLASLt",
    "cudnn_version": "cuDNN",
    "cpu_capability": "CPU instruction set",
    "blas": "CPU libraries",
    "kernel_environment": "environment variables",
    "torch_switches": "torch's switches",
    "model_runner": "model runner",
    "batch_layout": "batch layout",
    "repeat_processes": "processes of the repeats",
}
NEVER_EMPTY = (
    "sampling",
    "cpu_capability",
    "kernel_environment",
    "torch_switches",
    "batch_layout",
    "repeat_processes",
)


def versions(tree: xr.DataTree) -> dict[str, int]:
    """Return the schema version that each config's run was written by, by label.

    Parameters
    ----------
    tree : xarray.DataTree
        What `qdx.open` returns. A sweep's own version is that of the merge; those of its runs are in
        ``/provenance``.

    Returns
    -------
    dict of str to int
        Empty for a file without ``/provenance``, such as an import of `qdx.legacy`. A version that is not a
        number, or not one that this qdx knows, is 0.
    """
    stored = _stored(tree)
    own = tree.attrs.get("schema_version", 0)
    return {label: _version(_text(stored, "schema_version", label) or str(own)) for label in _labels(stored)}


def lacking(tree: xr.DataTree) -> list[str]:
    """Say what the runs of a file do not state, and what that means, in one line a kind.

    Parameters
    ----------
    tree : xarray.DataTree
        What `qdx.open` returns of a run, a sweep or commitments.

    Returns
    -------
    list of str
        Empty where every run states everything. Labels are the file's own: a stranger's need cleaning before
        they are printed.
    """
    stored = _stored(tree)
    known = versions(tree)
    groups: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for label, version in known.items():
        if names := missing(tree, label):
            groups.setdefault((version, names), []).append(label)
    if not len(stored.variables):
        return ["the file has no /provenance: it states nothing of the machine and the software"]
    return [_line(labels, version, names) for (version, names), labels in groups.items()]


def missing(tree: xr.DataTree, label: str) -> tuple[str, ...]:
    """Return which of `SINCE_2` the run of a config does not state, in that order."""
    stored = _stored(tree)
    if versions(tree).get(label, 0) < SCHEMA_VERSION:
        return tuple(name for name in SINCE_2 if not _text(stored, name, label))
    return tuple(
        name
        for name in SINCE_2
        if name not in stored.variables or (name in NEVER_EMPTY and not _text(stored, name, label))
    )


def _line(labels: Iterable[str], version: int, names: tuple[str, ...]) -> str:
    by = f" (schema version {version}, now {SCHEMA_VERSION})" if version < SCHEMA_VERSION else ""
    facts = ", ".join(SINCE_2[name] for name in names)
    meaning = []
    if set(names) - {"sampling"}:
        meaning.append("equal rows confirm as before, unequal rows refute nothing")
    if "sampling" in names and version == 1:
        meaning.append("its decoding counts as plain greedy, the only one that version had")
    elif "sampling" in names:
        meaning.append("how its tokens were chosen is not known, so its text confirms nothing")
    return f"{', '.join(labels)}{by} does not state {facts}: {'; '.join(meaning)}"


def _stored(tree: xr.DataTree) -> xr.Dataset:
    return tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()


def _labels(stored: xr.Dataset) -> list[str]:
    return [str(label) for label in stored["config"].values] if "config" in stored.variables else []


def _text(stored: xr.Dataset, name: str, label: str) -> str:
    if name not in stored.variables:
        return ""
    column = stored[name]
    values = column.sel(config=label) if "config" in column.dims else column
    return str(values.values) if np.ndim(values.values) == 0 else ""


def _version(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    return number if number <= SCHEMA_VERSION else 0
