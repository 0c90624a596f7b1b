"""``python -m qdx.commit DIR [OUT]``: the smallest file that a verifier can judge.

It holds the references, the generated tokens, the provenance and a commitment to every row (see
`qdx.analysis.verification.commitments`), of the first repeat of every config; and how many reruns of the
others were bit-equal to it, which the exact test asks for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from qdx.analysis.verification.commitments import of_run
from qdx.analysis.verification.compared import own_repeats
from qdx.dataset import checksums
from qdx.dataset.folder import RUN, SWEEP
from qdx.dataset.layout import SCHEMA_VERSION
from qdx.dataset.opening import open_file
from qdx.dataset.provenance import software
from qdx.dataset.size import readable
from qdx.dataset.writing import disk_errors
from qdx.errors import QdxError

PHASES = ("prefill", "decode")
NAME = "commitments.nc"
SMALL = 16 * 1024  # bytes


def commit(directory: Path, out: Path | None = None) -> Path:
    """Write the commitments of a sweep.

    Parameters
    ----------
    directory : Path
        A sweep folder, with ``sweep.nc`` and every ``<label>/run.nc``.
    out : Path, optional
        Default ``DIR/commitments.nc``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    QdxError
        When the folder is no sweep's, is a verifier's, or a run or its full rows are missing.
    """
    directory = Path(directory)
    source = directory / SWEEP
    if not source.is_file():
        raise QdxError(f"{directory} holds no {SWEEP}: give a sweep folder, or run python -m qdx.report DIR")
    target = directory / NAME if out is None else Path(out)
    tree = open_file(source)
    try:
        groups = _groups(tree, directory)
    finally:
        tree.close()
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    attrs = {"kind": "commitments", "schema_version": SCHEMA_VERSION, **software()}
    with disk_errors(part):
        xr.Dataset(attrs=attrs).to_netcdf(part, mode="w", engine="netcdf4")
        for name, dataset in groups.items():
            encoding = {str(key): _encoding(variable) for key, variable in dataset.variables.items()}
            plain = dataset.drop_encoding().drop_attrs() if name == "provenance" else dataset.drop_encoding()
            plain.to_netcdf(part, mode="a", group=name, engine="netcdf4", encoding=encoding)
        checksums.store(part)
    part.replace(target)
    return target


def _groups(tree: xr.DataTree, directory: Path) -> dict[str, xr.Dataset]:
    if any(phase not in tree.children for phase in (*PHASES, "output")):
        raise QdxError(f"{directory} is a verifier's sweep: its configs produced nothing to commit to")
    references = tree["references"].to_dataset().load()
    output = tree["output"].to_dataset()[["token_id"]].isel(repeat=[0]).load()
    groups = {
        "provenance": tree["provenance"].to_dataset().load(),
        "references": references.drop_vars("text", errors="ignore"),  # the tokens say it
    }
    for phase in PHASES:
        groups[phase] = _phase(tree, directory, phase)
    return {**groups, "output": output}


def _phase(tree: xr.DataTree, directory: Path, phase: str) -> xr.Dataset:
    data = tree[phase].to_dataset().isel(repeat=[0])
    labels = [str(label) for label in data["config"].values]
    parts = []
    for label in labels:
        path = directory / label / RUN
        if not path.is_file():
            raise QdxError(f"{path} is missing: commitments are made of its full rows")
        part = of_run(path, phase)
        if part is None:
            raise QdxError(f"{path} has no full rows to commit to: run the sweep with capture=full")
        at = {name: data[name].values for name in ("reference", "position")}
        parts.append(part.reindex(at, fill_value=np.uint8(0)))
    whole = xr.concat(parts, "config", join="exact", coords="minimal", compat="override")
    repeats = own_repeats(tree, phase, labels)
    stated = [n for n, c in data.coords.items() if c.dims == ("config",) and n != "config"]
    stated = stated if phase == "decode" else []  # once is enough
    found = data[["captured"]].reset_coords(drop=True).assign_coords({n: data[n] for n in stated})
    return found.assign(
        commitment=whole,
        reruns=("config", np.array([r.reruns for r in repeats], np.int32), _about("reruns of a reference")),
        reruns_equal=(
            "config",
            np.array([r.equal for r in repeats], np.int32),
            _about("reruns whose every row is bit-equal to the first repeat's"),
        ),
    ).load()


def _encoding(variable: xr.Variable) -> dict[str, Any]:
    """Compress what is worth an index of chunks; digests are not."""
    if variable.dtype.kind in "OUST":
        return {"dtype": "S1"}  # characters, see qdx.dataset.writing
    integers = {"_FillValue": None} if variable.dtype.kind in "iu" else {}
    if variable.nbytes < SMALL or variable.dtype == np.uint8:
        return integers
    return {**integers, "zlib": True, "complevel": 6, "shuffle": True}


def _about(text: str) -> dict[str, str]:
    return {"units": "1", "long_name": text}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (2: nothing was written)."""
    parser = argparse.ArgumentParser(prog="python -m qdx.commit", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="a sweep folder, with <label>/run.nc")
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help=f"default: DIR/{NAME}")
    chosen = parser.parse_args(arguments)
    try:
        target = commit(chosen.directory, chosen.out)
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 2
    print(f"{target}: {readable(target.stat().st_size)}")
    print(f"verify it: python -m qdx -m prompts=transcripts prompts.path={target} quant=…")
    return 0


if __name__ == "__main__":
    sys.exit(main())
