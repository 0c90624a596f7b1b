"""Check that a file is what it says: its groups, variables and indexes, and on request every byte of it.

A file may be cut, may have lost bits on its way, or may come from a stranger. netCDF4, HDF5 and xarray raise
whatever the damage leads to; here it becomes one line that names the file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr

from qdx.dataset import folder, layout
from qdx.dataset.checked import find
from qdx.dataset.checksums import DamageError
from qdx.dataset.folder import Sweep
from qdx.dataset.layout import (
    CONFIG_COORDS,
    DRAWN,
    FIRST,
    FIRST_DRAWN,
    INDEX,
    LAYER_TYPE,
    LAYERS,
    OUTPUT,
    PHASE,
    PHASES,
    PRODUCER,
    PRODUCER_COORDS,
    RECORDS,
    REFERENCES,
    REGION,
    WIDE,
    Variable,
)
from qdx.errors import QdxError
from qdx.schema import names_folder

REPLAYED = {PRODUCER.name: PRODUCER, **PRODUCER_COORDS, **FIRST, **DRAWN, **FIRST_DRAWN}  # of transcripts
TABLES: Mapping[str, Mapping[str, Variable]] = {
    **{
        f"/{phase}": {**INDEX, **CONFIG_COORDS, **PHASE, **WIDE, REGION.name: REGION, **REPLAYED}
        for phase in PHASES
    },
    "/references": {"reference": INDEX["reference"], **REFERENCES},
    "/output": {
        **{name: INDEX[name] for name in ("config", "repeat", "reference")},
        **CONFIG_COORDS,
        **OUTPUT,
    },
    "/provenance": {"config": INDEX["config"], LAYER_TYPE.name: LAYER_TYPE, **LAYERS},
}
KINDS = {"f": "f", "i": "iu", "u": "u", "b": "b"}  # of a dtype in a table to those that it may be in a file
NEEDED = (*INDEX, "captured", "token_id")  # of a phase, in every file
ROWS = ("target_logit", "target_rank", "logsumexp", "row_hash", "sketch", "top_id", "top_logit")
OF_RUN = {
    **{f"/{phase}": (*NEEDED, *CONFIG_COORDS, REGION.name, *ROWS) for phase in PHASES},
    **{group: tuple(TABLES[group]) for group in ("/references", "/output", "/provenance")},
}


@contextmanager
def reading(path: Path, what: str = "NetCDF-4 file that qdx wrote") -> Iterator[None]:
    """Say in one line what netCDF4, HDF5 or xarray raise on a file that is not whole.

    Parameters
    ----------
    path : Path
    what : str
        What the file should be.

    Raises
    ------
    QdxError
    """
    try:
        yield
    except QdxError:
        raise
    except Exception as error:  # what damage leads to: KeyError, LookupError, TypeError, MemoryError …
        said = (str(error).strip().splitlines() or [""])[0]
        kind = "" if isinstance(error, OSError | RuntimeError) else f"{type(error).__name__}: "
        raise DamageError(path, f"{path} is not a whole {what}: {kind}{said}") from error


def scan(directory: Path) -> Sweep:
    """Look at a sweep folder whose list of labels may hold anything; see `qdx.dataset.folder.scan`.

    Raises
    ------
    QdxError
        Also when a label is not a name of a folder.
    """
    plan = directory / folder.PLAN
    with reading(plan, "list of a sweep's jobs"):
        state = folder.scan(directory)
    for label in state.labels:
        check_label(plan, label)
    return state


def check(path: Path, groups: Mapping[str, xr.Dataset]) -> None:
    """Compare what a file holds with the table of `qdx.dataset.layout`, without reading arrays.

    Parameters
    ----------
    path : Path
        For messages.
    groups : Mapping
        By path, ``/prefill``; what is not in the table (metrics, analyses) is not looked at.

    Raises
    ------
    QdxError
        Naming the first group or variable that is missing, has other dimensions or another kind of values,
        or the index that names something twice.
    """
    # An import of the original's files may have neither rows nor distances, only what was made of them.
    if not any(
        name in groups for name in (*(f"/{phase}" for phase in PHASES), "/metrics", "/analysis/legacy")
    ):
        raise QdxError(f"{path} is damaged: it has none of the groups {', '.join(PHASES)}")
    kind = groups["/"].attrs.get("kind")
    of_run = kind == "run"
    absent = {"token_id"} if kind in ("commitments", "opened", RECORDS) else set()
    if of_run and groups["/"].attrs.get("status") == "running":
        absent.add("text")  # how wide it is, is known when the run is whole
    if of_run:
        _check_run(path, groups)
    for group, dataset in groups.items():
        for name, variable in dataset.variables.items():
            _check_text(path, f"{group}/{name}", variable)
        needed = OF_RUN.get(group, ()) if of_run else NEEDED if group.strip("/") in PHASES else ()
        for name, wanted in {**TABLES.get(group, {}), **_settings(group, dataset)}.items():
            if name in dataset.variables:
                _check_variable(path, f"{group}/{name}", wanted, dataset[name])
            elif name in needed and name not in absent:
                raise QdxError(f"{path} is damaged: {group} has no variable {name}")
    for phase in PHASES:
        if f"/{phase}" in groups:
            _check_index(path, phase, groups[f"/{phase}"])


def _settings(group: str, dataset: xr.Dataset) -> dict[str, Variable]:
    """Return what the settings of a backend that a group has must be."""
    if group.strip("/") not in (*PHASES, "output"):
        return {}
    found = layout.setting_names(dataset.variables)
    return layout.settings(name.removeprefix(layout.SETTING) for name in found)


def _check_run(path: Path, groups: Mapping[str, xr.Dataset]) -> None:
    """Refuse a run without what its place in a sweep is found by."""
    # Of transcripts nothing is generated, only replayed.
    generated = () if "producer" in groups.get("/replay", xr.Dataset()).dims else ("/decode", "/output")
    for group in ("/references", "/provenance", "/prefill", "/replay", *generated):
        if group not in groups:
            raise QdxError(f"{path} is damaged: it has no group {group}")
    attrs = groups["/"].attrs
    for name in ("vocab", "sketch_seed"):
        if not isinstance(attrs.get(name), int | np.integer):
            raise QdxError(
                f"{path} is damaged: its attribute {name} is {attrs.get(name)!r}, must be a number"
            )
    check_label(path, attrs.get("label"))


def _check_text(path: Path, name: str, variable: xr.Variable) -> None:
    """Refuse what xarray would stumble over when it decodes the values, or would give as bytes."""
    if variable.dtype.kind == "S":
        raise QdxError(f"{path} is damaged: {name} is text without its attribute _Encoding")
    if (encoding := variable.encoding.get("_Encoding")) is None:
        return
    try:
        codecs.lookup(encoding)
    except (LookupError, TypeError, ValueError) as error:
        raise QdxError(f"{path} is damaged: {name} is text in an unknown encoding {encoding!r}") from error
    stored = variable.encoding.get("dtype", variable.dtype)
    if stored is not str and np.dtype(stored).kind not in "OSU":
        raise QdxError(f"{path} is damaged: {name} holds {stored}, must be text")


def _check_variable(path: Path, name: str, wanted: Variable, found: xr.DataArray) -> None:
    kind = found.dtype.kind
    fits = kind in "OUT" if wanted.dtype == "str" else kind in KINDS[wanted.dtype[0]]
    dims, must = (tuple(dim for dim in own if dim != "producer") for own in (found.dims, wanted.dims))
    if not fits:
        kinds = "text" if wanted.dtype == "str" else wanted.dtype
        raise QdxError(f"{path} is damaged: {name} holds {found.dtype}, must be {kinds}")
    if dims != must:
        shown = ", ".join(map(str, found.dims)) or "none"
        raise QdxError(f"{path} is damaged: {name} has dimensions {shown}, must be {', '.join(wanted.dims)}")


def _check_index(path: Path, phase: str, dataset: xr.Dataset) -> None:
    for name in INDEX:
        values = dataset[name].values.tolist()
        if len(set(values)) < len(values):
            raise QdxError(f"{path} is damaged: index {name} of /{phase} names something twice")
        if name != "config" and name != "reference" and values != sorted(values):
            raise QdxError(f"{path} is damaged: index {name} of /{phase} is not in order")
    for label in dataset["config"].values.tolist():
        check_label(path, label)


def check_label(path: Path, label: object) -> None:
    """Refuse a label that is not a name of a folder inside the sweep's, such as ``../x``.

    Raises
    ------
    QdxError
    """
    if not names_folder(label):
        raise QdxError(f"{path}: the label {label!r} is not a name of a folder: it was changed")


def find_damage(paths: Iterable[Path]) -> str:
    """Read files whole and say what the first one that is damaged is damaged at; "" when none is.

    Slow (every byte is read): for the time when something has failed and the question is why.
    """
    return next((str(error) for path in paths if (error := find(path)) is not None), "")


@contextmanager
def blaming(paths: Iterable[Path]) -> Iterator[None]:
    """Say which of these files is damaged when what is made of them fails; any other failure passes.

    Raises
    ------
    QdxError
    """
    try:
        yield
    except QdxError:
        raise
    except Exception as error:
        if said := find_damage(paths):
            raise QdxError(said) from error
        raise
