"""Joins runs of one repeat each, made by separate processes, into one ``run.nc``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qdx import new_file
from qdx.dataset import checksums, layout, writing
from qdx.dataset.arithmetic import ARITHMETIC
from qdx.dataset.checked import require
from qdx.errors import QdxError

BLOCK_BYTES = 64 * 2**20
ALIKE = (*ARITHMETIC, "gpu", "compute_capability", "model_runner", "sampling")  # in all parts


def join_repeats(parts: Sequence[Path], target: Path, attrs: Mapping[str, Any]) -> None:
    """Write the repeats of `parts` one after the other into `target`, compressed and chunked as they are.

    Parameters
    ----------
    parts : sequence of Path
        Complete runs of one repeat, in the order of the repeats.
    target : Path
        Written as ``<target>.part`` and renamed when whole.
    attrs : Mapping
        Root attributes that replace the parts' own: config, config hash, command line, …
        ``repeat_processes`` counts the parts' processes, and ``replay_exact`` holds where it holds in all.

    Raises
    ------
    QdxError
        When two repeats found other kernels, libraries or switches, a part is damaged, or the disk is full.
    """
    import netCDF4

    part = target.with_name(f"{target.name}.part")
    for path in parts:
        require(path, rows=False)
    sources = [checksums.load(path) for path in parts]
    with contextlib.ExitStack() as stack:
        files = []
        for path in parts:
            files.append(stack.enter_context(netCDF4.Dataset(path)))
            files[-1].set_auto_maskandscale(False)
            files[-1].set_auto_chartostring(False)
        layers = [_layers(file["provenance"]) for file in files]
        stated = [{name: file.getncattr(name) for name in file.ncattrs()} for file in files]
        _check_kernels(layers)
        _check_alike(stated)
        with writing.disk_errors(part):
            new_file.create(part)
        with writing.disk_errors(part), netCDF4.Dataset(part, "w", format="NETCDF4") as joined:
            _copy_attributes(files[0], joined)
            writing.set_attributes(joined, {**attrs, **_of_all(stated)})
            for name in files[0].groups:
                if name != "provenance":
                    _join_group([file.groups[name] for file in files], joined.createGroup(name))
            whole = {name: joined.getncattr(name) for name in joined.ncattrs()}
            writing.put_provenance(joined, whole["label"], whole, layers[0])
    with writing.disk_errors(part):
        checksums.store(part, _known(sources))
    part.replace(target)


def _of_all(stated: Sequence[Mapping[str, Any]]) -> dict[str, int | str]:
    """Return the attributes that no single part can state."""
    joined: dict[str, int | str] = {
        "repeat_processes": sum(int(own.get("repeat_processes", 1)) for own in stated)
    }
    if any(own.get("compiled_kernels") for own in stated):  # every start chooses anew
        chosen = {str(own.get("compiled_kernels", "")) for own in stated}
        joined["compiled_kernels"] = " | ".join(sorted(chosen))
    if all("replay_exact" in own for own in stated):
        joined["replay_exact"] = min(int(own["replay_exact"]) for own in stated)
    return joined


def _check_kernels(layers: Sequence[Mapping[str, tuple[str, str]]]) -> None:
    """Refuse repeats whose engines loaded other kernels, although they were asked for the same."""
    kernels = [{name: kernel for name, (kernel, _) in own.items()} for own in layers]
    for repeat, observed in enumerate(kernels):
        if observed != kernels[0]:
            raise QdxError(
                f"repeat {repeat} loaded kernels {observed}, repeat 0 {kernels[0]}: not one config"
            )


def _check_alike(stated: Sequence[Mapping[str, Any]]) -> None:
    """Refuse repeats whose processes computed with other libraries: they are not repeats of one config."""
    for repeat, own in enumerate(stated):
        for name in ALIKE:
            first, here = (str(attrs.get(name, "")) for attrs in (stated[0], own))
            if here != first:
                raise QdxError(
                    f"repeat {repeat} ran with {name} {here or 'none'}, repeat 0 with {first or 'none'}: not "
                    "one config: leave the installation as it is while a sweep runs, and run it again"
                )


def _known(sources: Sequence[checksums.Checksums | None]) -> dict[str, checksums.Sums]:
    """Return the sums of all repeats' full rows: damage done since the parts were written is found."""
    whole = [source for source in sources if source is not None]
    names = [name for name in whole[0].sums if name.rpartition("/")[2] in layout.WIDE] if whole else []
    if len(whole) < len(sources):
        return {}
    return {name: np.concatenate([source.sums[name] for source in whole], axis=1) for name in names}


def _layers(group: Any) -> dict[str, tuple[str, str]]:
    """Return layer type → (class, kernel) of a file of one config."""
    from netCDF4 import chartostring

    names, classes, kernels = (
        [str(text) for text in chartostring(group[name][:], encoding="utf-8").reshape(-1)]
        for name in ("layer_type", "kernel_class", "kernel")
    )
    return dict(zip(names, zip(classes, kernels, strict=True), strict=True))


def _copy_attributes(source: Any, target: Any) -> None:
    target.setncatts({name: source.getncattr(name) for name in source.ncattrs() if name != "_FillValue"})


def _join_group(sources: Sequence[Any], target: Any) -> None:
    for name, dimension in sources[0].dimensions.items():
        target.createDimension(name, len(sources) if name == "repeat" else len(dimension))
    for name, variable in sources[0].variables.items():
        if name == "text" and "repeat" in variable.dimensions:
            _join_texts([source[name] for source in sources], target)
            continue
        created = _create_like(variable, target, name)
        if name == "repeat":
            created[:] = np.arange(len(sources))
        elif "repeat" not in variable.dimensions:
            created[...] = variable[...]
        else:
            axis = variable.dimensions.index("repeat")
            for repeat, source in enumerate(sources):
                _copy_repeat(source.variables[name], created, axis, repeat)


def _join_texts(sources: Sequence[Any], target: Any) -> None:
    """Write the generated texts, which are as wide in each part as its longest."""
    from netCDF4 import chartostring

    parts = [chartostring(source[...], encoding="utf-8").astype(object) for source in sources]
    letters = writing.characters(np.concatenate(parts, axis=sources[0].dimensions.index("repeat")))
    sizes = {name: len(dimension) for name, dimension in target.dimensions.items()}
    coordinates = sources[0].getncattr("coordinates")
    variable = layout.OUTPUT["text"]
    writing.create(target, variable, sizes, coordinates=coordinates, width=letters.shape[-1])[...] = letters


def _create_like(variable: Any, target: Any, name: str) -> Any:
    storage: dict[str, Any] = {}
    if variable.dimensions:
        filters = variable.filters() or {}
        if filters.get("zlib"):
            storage = {"zlib": True, "complevel": filters["complevel"], "shuffle": filters["shuffle"]}
        elif blosc := filters.get("blosc"):
            storage = {
                "compression": blosc["compressor"],
                "complevel": filters["complevel"],
                "blosc_shuffle": blosc["shuffle"],
                "shuffle": False,
            }
        chunks = variable.chunking()
        storage["chunksizes"] = None if chunks == "contiguous" else chunks
        storage["fill_value"] = getattr(variable, "_FillValue", None)
    created = target.createVariable(name, variable.dtype, variable.dimensions, **storage)
    created.set_auto_maskandscale(False)
    created.set_auto_chartostring(False)
    _copy_attributes(variable, created)
    return created


def _copy_repeat(source: Any, target: Any, axis: int, repeat: int) -> None:
    """Copy a variable of one repeat into place, a block of positions at a time."""
    if "position" not in source.dimensions:
        target[_at(axis, repeat, target.ndim)] = source[_at(axis, 0, source.ndim)]
        return
    along = source.dimensions.index("position")
    row_bytes = max(1, source.size // max(1, source.shape[along]) * source.dtype.itemsize)
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, source.shape[along], step):
        block = {along: slice(start, start + step)}
        target[_at(axis, repeat, target.ndim, block)] = source[_at(axis, 0, source.ndim, block)]


def _at(
    axis: int, index: int, ndim: int, others: Mapping[int, slice] | None = None
) -> tuple[int | slice, ...]:
    return tuple(index if i == axis else (others or {}).get(i, slice(None)) for i in range(ndim))
