"""Sums of everything that a file holds, kept behind its end, so that damage is found when it is read.

Neither HDF5's chunks nor blosc carry a checksum. (HDF5's own filter, fletcher32, stands before blosc in
netCDF's chain: it makes full rows 12 % larger and their reading 24 % slower, and a flipped bit of the chunk's
index can switch it off.) Here a sum is made of every block of *values*, such as a row of logits or a variable
of one reference, and a digest of every group's and variable's dimensions and attributes. They stand after the
last byte that HDF5 counts as its own: every reader ignores them, copying the file copies them, and whoever
changes the file with HDF5 afterwards cuts them off: an edited file is unchecked, and not called damaged.

The sum of a block is the CRC-32 of its bytes; of a long one, such as a row of logits, of what remains when
its 64-bit words are first added up in `LANES` sums, which is more than twice as fast. A block that changed is
missed about once in 2^32. (Not so when a long block's changes within one lane cancel each other.) It protects
from accidents and not from somebody who changes a value on purpose: she can make the sums anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdx.dataset.layout import WIDE
from qdx.errors import QdxError

MAGIC = b"QDXSUMS2"
OUTER = ("config", "repeat", "producer", "config_b", "repeat_pair", "reference")  # axes of blocks
LANES = 2039  # a prime, so that what repeats in a row does not fall into one lane
_HEAD = struct.Struct("<8sQI")  # MAGIC, bytes of what follows, its CRC-32
_END_OF_FILE = {0: 40, 1: 44, 2: 28, 3: 28}  # version of HDF5's superblock → offset of "end of file"
_PIECE = 8 * 2**20  # bytes that are read at once
_SCAN = 2**30  # bytes at each end of a file that are searched for global heaps
_HEAP = b"GCOL"  # a global heap of HDF5 has no checksum of its own; a flipped bit can make HDF5 loop for ever

UNCHECKED = "read unchecked: no checksums (written by an older qdx, or changed by another program)"
Sums = NDArray[np.uint64]


class DamageError(QdxError):
    """A file does not hold what was written.

    Attributes
    ----------
    path : Path
        The file, which the message names too.
    """

    def __init__(self, path: Path, message: str) -> None:
        self.path = path
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, str(self))


def damage(path: Path, where: str, what: str) -> DamageError:
    """Return the error that names a group, variable and index of a file, and what is wrong there."""
    return DamageError(path, f"{path} is damaged: {where} {what}")


def sums_of(values: NDArray[Any], count: int) -> Sums:
    """Return the sums of blocks of values.

    Parameters
    ----------
    values : array
        `count` blocks of equal length one after the other, of any shape and data type.
    count : int

    Returns
    -------
    array of uint64 (block,)
    """
    if values.dtype.kind in "OUT":  # text of no fixed width: whatever it is, as JSON
        blocks = values.reshape(count, -1).tolist()
        texts = [hashlib.blake2b(json.dumps(block).encode(), digest_size=8).digest() for block in blocks]
        return np.frombuffer(b"".join(texts), "<u8").astype(np.uint64)
    if not values.size:
        return np.zeros(count, np.uint64)
    octets = np.ascontiguousarray(values).view(np.uint8).reshape(count, -1)
    return np.fromiter((_sum_of(block) for block in octets), np.uint64, count)


def _sum_of(octets: NDArray[np.uint8]) -> int:
    rows = len(octets) // (8 * LANES)
    if rows < 2:
        return zlib.crc32(octets.data)
    end = rows * 8 * LANES
    lanes = octets[:end].view(np.uint64).reshape(rows, LANES).sum(0)
    return zlib.crc32(octets[end:].data, zlib.crc32(lanes.data))


@dataclass(frozen=True)
class Checksums:
    """State what a file held when it was written.

    Attributes
    ----------
    groups : dict
        Path of a group, such as ``/prefill``, to the digest of its dimensions and attributes.
    variables : dict
        Path of a variable to the digest of its type, dimensions and attributes.
    sums : dict
        Path of a variable to the sums of its blocks; their shape is that of the variable's first axes.
    heaps : list of (int, int, int)
        Offset, length and CRC-32 of HDF5's global heaps.
    """

    groups: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    heaps: list[tuple[int, int, int]] = field(default_factory=list)

    def check_structure(self, path: Path, file: Any) -> None:
        """Compare groups, variables, dimensions and attributes of an open netCDF4 file.

        Raises
        ------
        DamageError
            Naming the first that differs.
        """
        found = dict(walk(file))
        for name, digest in self.groups.items():
            if name not in found:
                raise damage(path, f"group {name}", "is missing")
            if _of_group(found[name]) != digest:
                raise damage(path, f"group {name}", "has other attributes or dimensions than were written")
        for name, group in found.items():
            for own, variable in group.variables.items():
                where = join(name, own)
                if self.variables.get(where) != _of_variable(variable):
                    what = "has another type, other dimensions or attributes than were written"
                    raise damage(path, where, what)
        for where in self.variables:
            name, _, own = where.rpartition("/")
            if own not in found[name or "/"].variables:
                raise damage(path, where, "is missing")


def join(group: str, name: str) -> str:
    """Return the path of a variable or group inside a group."""
    return f"{group.rstrip('/')}/{name}"


def walk(group: Any, name: str = "/") -> Iterator[tuple[str, Any]]:
    """Iterate over a netCDF4 file's groups by path."""
    yield name, group
    for own, inner in group.groups.items():
        yield from walk(inner, join(name, own))


def _of_group(group: Any) -> str:
    sizes = {name: [len(dimension), dimension.isunlimited()] for name, dimension in group.dimensions.items()}
    return _digest([sizes, _attributes(group)])


def _of_variable(variable: Any) -> str:
    kind = "str" if variable.dtype is str else np.dtype(variable.dtype).str
    return _digest([kind, variable.dimensions, variable.shape, _attributes(variable)])


def _attributes(owner: Any) -> list[list[str]]:
    return [[name, _plain(owner.getncattr(name))] for name in owner.ncattrs()]


def _plain(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "OUT":
        return f"{value.dtype.str}{value.shape}{value.tobytes().hex()}"
    return f"{type(value).__name__}{value.tolist() if isinstance(value, np.ndarray) else value!r}"


def _digest(content: Any) -> str:
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def outer_axes(name: str, dims: tuple[str, ...]) -> int:
    """Return over how many of its first axes a variable's blocks are counted."""
    wanted = (*OUTER, "position") if name in WIDE else OUTER
    return next((axis for axis, dim in enumerate(dims) if dim not in wanted), len(dims))


def load(path: Path) -> Checksums | None:
    """Read the sums of a file, and hold its global heaps against them.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Checksums or None
        None of a file without: it is older, unfinished, no HDF5 file, or was changed by another program.

    Raises
    ------
    DamageError
        When the sums themselves are damaged or cut, or a heap is.
    """
    with path.open("rb") as file:
        end, size = _end(file.read(64)), os.fstat(file.fileno()).st_size
        if end is None or size <= end:
            return None
        file.seek(end)
        content = file.read()
        found = _decoded(content)
        if found is None:
            raise DamageError(
                path,
                f"{path} is not a whole NetCDF-4 file: the checksums at its end are cut or changed; copy it "
                "again, or cut them off to read its values unchecked: "
                f"""python -c "import netCDF4; netCDF4.Dataset('{path}', 'r+').close()\"""",
            )
        for offset, length, crc in found.heaps:
            file.seek(offset)
            if zlib.crc32(file.read(length)) != crc:
                raise damage(path, f"bytes {offset} to {offset + length}", "(a global heap of HDF5) changed")
    return found


def is_checked(path: Path) -> bool:
    """Return whether a file has checksums, whole or not."""
    with path.open("rb") as file:
        end = _end(file.read(64))
        return end is not None and os.fstat(file.fileno()).st_size > end


def _end(head: bytes) -> int | None:
    """Return where HDF5 says that its file ends; None when this is not an HDF5 file."""
    at = _END_OF_FILE.get(head[8]) if head[:8] == b"\x89HDF\r\n\x1a\n" and len(head) == 64 else None
    return None if at is None else int.from_bytes(head[at : at + 8], "little")


def _decoded(content: bytes) -> Checksums | None:
    if len(content) < _HEAD.size:
        return None
    magic, length, crc = _HEAD.unpack_from(content)
    payload = content[_HEAD.size :]
    if magic != MAGIC or length != len(payload) or crc != zlib.crc32(payload):
        return None
    data = zlib.decompress(payload)
    count = int.from_bytes(data[:8], "little")
    index = json.loads(data[8 : 8 + count])
    sums, at = {}, 8 + count
    for name, shape in index["shapes"].items():
        number = math.prod(shape)
        sums[name] = np.frombuffer(data, "<u8", number, at).astype(np.uint64).reshape(shape)
        at += 8 * number
    return Checksums(index["groups"], index["variables"], sums, [tuple(heap) for heap in index["heaps"]])


def _encoded(checksums: Checksums) -> bytes:
    index = {
        "groups": checksums.groups,
        "variables": checksums.variables,
        "shapes": {name: sums.shape for name, sums in checksums.sums.items()},
        "heaps": checksums.heaps,
    }
    text = json.dumps(index).encode()
    arrays = [np.ascontiguousarray(sums, "<u8").tobytes() for sums in checksums.sums.values()]
    payload = zlib.compress(b"".join([len(text).to_bytes(8, "little"), text, *arrays]), 1)
    return _HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def store(path: Path, known: Mapping[str, Sums] | None = None) -> None:
    """Put the sums of a whole file behind its end; the file must not be open anywhere.

    Parameters
    ----------
    path : Path
        A file that netCDF4 wrote and closed.
    known : Mapping, optional
        Path of a variable to the sums of its blocks, made of the values that were written. All others are
        made of what the file holds.
    """
    import netCDF4

    found = Checksums()
    with netCDF4.Dataset(path) as file:
        for name, group in walk(file):
            found.groups[name] = _of_group(group)
            for own, variable in group.variables.items():
                where = join(name, own)
                variable.set_auto_maskandscale(False)
                variable.set_auto_chartostring(False)
                found.variables[where] = _of_variable(variable)
                given = (known or {}).get(where)
                found.sums[where] = _sums_in(own, variable) if given is None else given
    with path.open("r+b") as stream:
        end = _end(stream.read(64))
        if end is None:
            raise QdxError(f"{path} is not an HDF5 file: no checksums can be put behind its end")
        found.heaps.extend(_heaps(stream, end))
        stream.seek(end)
        stream.write(_encoded(found))
        stream.truncate()


def _sums_in(name: str, variable: Any) -> Sums:
    outer = outer_axes(name, variable.dimensions)
    sums = np.zeros(variable.shape[:outer], np.uint64)
    for piece in pieces(variable.shape, outer, getattr(variable.dtype, "itemsize", 16)):
        values = np.asarray(variable[piece or ...])
        sums[piece] = sums_of(values, sums[piece].size).reshape(sums[piece].shape)
    return sums


def pieces(shape: tuple[int, ...], outer: int, item: int) -> Iterator[tuple[Any, ...]]:
    """Cut the first `outer` axes of a shape into pieces of a few megabytes: keys for a variable."""
    if not all(shape[:outer]):
        return
    if not outer:
        yield ()
        return
    axis = next(
        (a for a in range(outer) if math.prod(shape[a + 1 :]) * item <= _PIECE),
        outer - 1,
    )
    step = max(1, _PIECE // max(1, math.prod(shape[axis + 1 :]) * item))
    for at in np.ndindex(shape[:axis]):
        for start in range(0, shape[axis], step):
            yield (*at, slice(start, min(start + step, shape[axis])))


def _heaps(stream: Any, end: int) -> Iterator[tuple[int, int, int]]:
    """Find HDF5's global heaps in the first and last gigabyte: between them lie rows and their index."""
    parts = [(0, end)] if end <= 2 * _SCAN else [(0, _SCAN), (end - _SCAN, end)]
    for first, last in parts:
        for start in range(first, last, _PIECE):
            stream.seek(start)
            block = stream.read(min(_PIECE, last - start) + 15)
            at = block.find(_HEAP)
            while 0 <= at < _PIECE:
                length = int.from_bytes(block[at + 8 : at + 16], "little")
                # Values may hold these letters by chance: then a few bytes are summed for nothing.
                if block[at + 4] == 1 and 16 <= length <= min(2**24, end - start - at):
                    stream.seek(start + at)
                    yield start + at, length, zlib.crc32(stream.read(length))
                at = block.find(_HEAP, at + 4)
