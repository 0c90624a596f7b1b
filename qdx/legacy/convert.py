"""Converts a file of the original experiment to NetCDF."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from qdx.dataset import append, checksums
from qdx.dataset.layout import SCHEMA_VERSION
from qdx.dataset.provenance import command_line, software
from qdx.dataset.structure_check import NAME
from qdx.dataset.writing import attribute, disk_errors
from qdx.errors import QdxError
from qdx.legacy import activations, comparisons, generations, matrices, measurements, rows
from qdx.legacy.imported import Imported
from qdx.legacy.reading import Node, plain
from qdx.legacy.rows import attribute_name

ORIGIN = "the original experiment's file, by qdx.legacy"
MOST_ATTRIBUTES = 1000  # further unknown keys are counted: NetCDF takes quadratic time over attributes
FORMS: Mapping[str, Callable[[Node], Imported]] = {
    "comparisons": comparisons.read,
    "generations": lambda root: rows.groups(generations.read(root), root, "generations"),
    "measurements": lambda root: rows.groups(measurements.read(root), root, "measurements"),
    "raw_activations": activations.read,
    **dict.fromkeys(matrices.KEYS, matrices.read),
}


def convert(file: str | Path, out: str | Path) -> list[str]:
    """Convert a file of the original experiment to NetCDF.

    Parameters
    ----------
    file : path
        JSON, with ``generations`` (quantizations on one machine), ``measurements`` (another key that varies),
        ``comparisons`` (a verification), ``raw_activations`` or only the matrices of an analysis.
    out : path
        Replaced when it exists, and only by a whole file.

    Returns
    -------
    list of str
        Lines for people: what was read, and which of the file's own numbers were computed again.

    Raises
    ------
    QdxError
        With the path of the bad key, or when no number was read; nothing is written then.

    Notes
    -----
    ``top_logit`` holds the file's natural log-probabilities, float64, and ``logsumexp`` is 0, so that the
    log-probability ``logit − logsumexp`` is right; ids are sorted as in every qdx file, ``listed_rank`` is
    their place in the original list. Full rows, hashes, sketches, ranks of targets and template lengths are
    not in such a file,
    so those variables are absent. ``/analysis/legacy/reproduction`` lists every number that the file states
    of its own data against what was computed.
    """
    file, out = Path(file), Path(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise QdxError(f"{out} is the file to read: give another name to write to")
    imported = read(file)
    head: dict[str, Any] = {
        "kind": "sweep",
        "schema_version": SCHEMA_VERSION,
        **software(),
        "command_line": command_line(),
        "origin": ORIGIN,
        "form": imported.form,
        "source": str(file),
        "source_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        **imported.facts,
    }
    named = {f"legacy: {path}": value for path, value in imported.attributes.items()}
    kept = dict([(name, value) for name, value in named.items() if _readable(name)][:MOST_ATTRIBUTES])
    head |= kept
    try:
        attrs = {attribute_name(key): _attribute(value) for key, value in head.items()}
    except RecursionError as error:
        raise QdxError(f"{file}: a key that is only kept is nested too deeply to be written") from error
    part = out.with_name(out.name + ".part")
    with disk_errors(part):
        out.parent.mkdir(parents=True, exist_ok=True)
        xr.Dataset(attrs=attrs).to_netcdf(part, mode="w", engine="netcdf4")
    try:
        for name, dataset in imported.groups.items():
            append(part, name, dataset)
        if imported.ledger.entries:
            append(part, "analysis/legacy/reproduction", imported.ledger.dataset())
        with disk_errors(part):
            checksums.store(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    said = [*imported.said, *imported.ledger.lines()]
    if len(imported.attributes) > len(kept):
        said.append(f"{len(imported.attributes) - len(kept):,} other keys of the file are not kept")
    return [f"{file}: {line}" for line in said[:1]] + said[1:] + [f"written: {out}"]


def _readable(name: str) -> bool:
    """Return whether a file with such an attribute is read again, see `qdx.dataset.structure_check`."""
    name = attribute_name(name)
    return len(name) <= NAME and name.isprintable()


def read(file: Path) -> Imported:
    """Read a file by the form that its keys tell.

    Raises
    ------
    QdxError
        With the path of the bad key; where the file is of no form that is known here; where no number was
        read.
    """
    root = Node.load(file)
    known = [key for key in FORMS if key in root.mapping()]
    if not known:
        keys = ", ".join(list(root.mapping())[:12]) or "nothing"
        raise QdxError(
            f"{file}: no form of the original's files that is known: expected one of the keys "
            f"{', '.join(FORMS)}; got {keys}"
        )
    imported = FORMS[known[0]](root)
    if not imported.numbers:
        raise QdxError(f"{file}: {known[0]}: no finite number was read, so there is nothing to convert")
    return imported


def _attribute(value: Any) -> str | int | float:
    """A value that NetCDF can hold as an attribute; a whole number beyond 64 bits is text."""
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return plain(value)
    return attribute(value)
