"""Files and folders that a hostile producer could send: small on disk, and each wrong in one way."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

import qdx
from qdx.dataset import append_all, merge
from qdx.prompts import references_sha256
from tests.helpers import small_references, write_sweep

LABELS = ["awq", "gptq"]
ROOT = Path(qdx.__file__).parent.parent
Groups = dict[str, xr.Dataset]
NEVER = (
    2**64 - 16
)  # the size of an object in a heap, after which HDF5 2.2 looks for the next at the same place


def honest(folder: Path) -> Path:
    """A merged sweep of two configs; its ``sweep.nc`` passes every check."""
    stated = references_sha256(small_references())  # type: ignore[arg-type]
    attrs = {
        "tokenizer_sha256": "t" * 64,
        "references_sha256": stated,
        "config": "secret_config: 1\n",
        "seed": 0,
        "host": "secret-host",
        "platform": "Linux-secret-kernel",
        "command_line": "python -m qdx model.checkpoint.awq=/home/secret/weights",
        "torch_version": "2.13.0",
        "cpu": "a CPU",
        "cuda_version": "13.0",
        "code_sha256": "c" * 64,
        "weights_sha256": '{"/home/secret/model.safetensors": "' + "a" * 64 + '"}',
    }
    write_sweep(folder, LABELS, repeats=2, attrs=attrs, settings={"threads": "1"})
    merge(folder, folder / "sweep.nc")
    return folder


def rewritten(source: Path, target: Path, edit: Callable[[Groups], object]) -> Path:
    """Write a file again with xarray after `edit` has changed its groups."""
    with qdx.open(source) as tree:
        groups = {name: child.to_dataset().load() for name, child in tree.children.items()}
        groups["/"] = xr.Dataset(attrs=tree.attrs)
    edit(groups)
    groups.pop("/").to_netcdf(target, engine="netcdf4")
    append_all(target, groups.items())
    return target


def edited(source: Path, target: Path, edit: Callable[[h5py.File], object]) -> Path:
    """Copy a file and change the copy with h5py."""
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        edit(file)
    return target


def looping(source: Path, target: Path) -> Path:
    """Copy a file and damage the first object of its first heap, so that netCDF4 never comes back from it."""
    data = bytearray(source.read_bytes())
    struct.pack_into("<Q", data, data.index(b"GCOL") + 16 + 8, NEVER)
    target.write_bytes(data)
    return target


def claims(
    shape: tuple[int, ...], dtype: object = "f4", chunks: object = True
) -> Callable[[h5py.File], object]:
    """A variable that claims values and holds none."""
    return lambda file: file.create_dataset("references/large", shape, dtype, chunks=chunks)


def packed_zeros(file: h5py.File) -> None:
    """8 GiB of zeros, which are really there, in 8 MB."""
    chunk = 2**26
    packed = zlib.compress(bytes(chunk), 9)
    made = file.create_dataset(
        "references/zeros", (2**14, 2**19), "u1", chunks=(2**7, 2**19), compression="gzip"
    )
    for start in range(0, 2**14, 2**7):
        made.id.write_direct_chunk((start, 0), packed)


def external(place: Path) -> Callable[[h5py.File], object]:
    """The prompts' text "lies" in another file."""

    def edit(file: h5py.File) -> None:
        shape = file["references/text"].shape
        del file["references/text"]
        file.create_dataset("references/text", shape, "S1", external=[(str(place), 0, h5py.h5f.UNLIMITED)])

    return edit


def virtual(place: Path) -> Callable[[h5py.File], object]:
    """A variable whose values and whose very shape come from another file."""

    def edit(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((10,), "f4", maxshape=(None,))
        source = h5py.VirtualSource(str(place), "x", (10,), maxshape=(None,))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("references/other", layout)

    return edit


def deep(file: h5py.File) -> None:
    file.create_group("/".join(["references", *"abcdefghijkl"]))


def itself(file: h5py.File) -> None:
    file["references/again"] = file["references"]


def twice(file: h5py.File) -> None:
    file["references/again"] = file["references/token_ids"]


def attributes(file: h5py.File) -> None:
    for i in range(1300):
        file["references"].attrs[f"a{i}"] = 1


def long_attributes(file: h5py.File) -> None:
    group = file.create_group("metrics_x", track_order=True)
    for i in range(80):
        group.attrs.create(f"a{i}", np.zeros(2**20, "u1"))


def free_texts(file: h5py.File) -> None:
    """One text that a thousand values name: it is read a thousand times."""
    text = "x" * 300_000
    made = file.create_dataset("references/free", (300,), h5py.string_dtype())
    made[...] = [text] * 300


def unknown_filter(file: h5py.File) -> None:
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((10,))
    created.set_filter(305, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((10,))
    h5py.h5d.create(file["references"].id, b"packed", h5py.h5t.NATIVE_FLOAT, space, created)


def say(shown: subprocess.CompletedProcess[str]) -> str:
    return shown.stdout + shown.stderr


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m …`` in a folder as a user does who has qdx installed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "QDX_NO_PLUGINS")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=300,
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )
