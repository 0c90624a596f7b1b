"""Look at what an HDF5 file claims to be, and then read it once, in a process that may be killed.

A file from a stranger can name other files of the reader's machine, claim arrays of terabytes, contain
itself, or make the HDF5 library loop. `check_structure` looks at links, types, shapes and storage with
h5py and touches no data; `rehearse` then reads everything that qdx reads into memory, with netCDF4 and
in pieces. Both run in a child process (`qdx.dataset.guarding`) that has limits of time and memory. That
process runs this file as a script, so this file imports nothing of qdx: the child starts in a tenth of
a second and finds no package in the working folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any

SIGNATURE = b"\x89HDF\r\n\x1a\n"
WIDE = ("logit", "hidden")  # full rows, which a run's file holds and nobody reads at once
DEPTH = 8  # of groups; qdx's own files have 4
RANK = 10  # dimensions of a variable; qdx's own have 6
NAME = 200  # characters of a link's or an attribute's name
ATTRIBUTES = 1_200  # of one object; an import of the original experiment keeps 1,000 keys of its file
FEW = 16  # attributes that are opened by number, which is quicker; HDF5 copies all of them for each one then
PIECE = 32 * 2**20  # bytes that are read at once
# A chunk is unpacked whole, and the attributes of a file are all read: each may claim this part of max_bytes.
PART = 32
# By HDF5's registry: what netCDF4 writes with, and blosc, lz4, zstd, bitshuffle, bzip2.
FILTERS = {1, 2, 3, 4, 5, 6, 307, 32001, 32004, 32008, 32015}
# Attributes of types that netCDF4 itself makes for its dimensions; it reads them with bounds of its own.
OF_DIMENSIONS = ("DIMENSION_LIST", "REFERENCE_LIST")


class Refused(Exception):
    """The file is not one that qdx would read; the text says what it claims, and the limit."""


def check_structure(path: str, limits: Mapping[str, int]) -> None:
    """Refuse a file by what it claims to be, without reading any of its data.

    Parameters
    ----------
    path : str
    limits : Mapping
        ``max_bytes`` (unpacked, of all variables together; full rows of a run's file are not counted),
        ``max_objects`` (groups and variables) and ``max_length`` (of a dimension and of a text).

    Raises
    ------
    Refused
        For what is not an HDF5 file from its first byte, a link that is not a hard link, an object that is
        linked twice, data that lies in another file, a user-defined type, an unknown filter, and everything
        beyond a limit.
    """
    check_regular(path)
    import h5py

    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(f"it is not a whole NetCDF-4 file: {_line(error)}") from error
    try:
        _Look(file, limits).check()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise Refused(f"its structure is damaged: {_line(error)}") from error
    finally:
        with contextlib.suppress(Exception):
            file.close()


def check_regular(path: str) -> None:
    """Refuse a fifo, a device or a socket without opening it, and what does not begin as HDF5 does.

    Raises
    ------
    Refused
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a plain script
        if not stat.S_ISREG(mode):
            raise Refused("not a regular file (a folder, fifo, device or socket)")
        # The file may be another one by now: without O_NONBLOCK a fifo would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            head = file.read(len(SIGNATURE))
    except OSError as error:
        raise Refused(f"cannot be opened: {error.strerror or error}") from error
    if head != SIGNATURE:
        raise Refused("it is not a whole NetCDF-4 file: its first bytes are not HDF5's")


class _Look:
    """One walk over the objects of an open file."""

    def __init__(self, file: Any, limits: Mapping[str, int]) -> None:
        self._file, self._limits = file, limits
        self._seen: set[object] = set()
        self._objects = 0
        self._bytes, self._attribute_bytes = 0, 0

    def check(self) -> None:
        import h5py

        root = h5py.h5g.open(self._file, b"/")
        self._is_run = self._kind(root) == "run"
        self._group(root, "", 0)

    def _kind(self, root: Any) -> str:
        """The attribute ``kind`` of the root, where it is a short text of fixed length."""
        import h5py

        if not h5py.h5a.exists(root, b"kind"):
            return ""
        attribute = h5py.h5a.open(root, b"kind")
        kind = attribute.get_type()
        short = (
            isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str() and kind.get_size() < 64
        )
        if not short or math.prod(attribute.shape) != 1:
            return ""
        value = h5py.AttributeManager(h5py.Group(root)).get("kind", b"")
        return bytes(value).decode("utf-8", "replace").strip("\0")

    def _group(self, group: Any, where: str, depth: int) -> None:
        import h5py

        if depth > DEPTH:
            raise Refused(f"groups lie {depth} deep at {_name(where)}, limit {DEPTH}")
        self._once(group, where)
        self._attributes(group, where)
        if self._objects + group.get_num_objs() > self._limits["max_objects"]:
            raise Refused(
                f"it has more than {self._limits['max_objects']:,} groups and variables: "
                f"raise max_objects if you trust it"
            )
        names: list[bytes] = []
        group.links.iterate(names.append)
        for name in names:
            here = f"{where}/{name.decode('utf-8', 'replace')}"
            if len(name) > NAME or not here.isprintable():
                raise Refused(f"the name {_name(here)} has {len(name)} bytes or unprintable characters")
            link = group.links.get_info(name).type
            if link != h5py.h5l.TYPE_HARD:
                kind = {h5py.h5l.TYPE_SOFT: "soft", h5py.h5l.TYPE_EXTERNAL: "external"}.get(
                    link, "user-defined"
                )
                raise Refused(f"{_name(here)} is a link ({kind}), not a variable or a group")
            thing = h5py.h5o.open(group, name)
            if isinstance(thing, h5py.h5g.GroupID):
                self._group(thing, here, depth + 1)
            elif isinstance(thing, h5py.h5d.DatasetID):
                self._dataset(thing, here, name.decode("utf-8", "replace"))
            else:
                raise Refused(f"{_name(here)} is a user-defined type")

    def _once(self, thing: Any, where: str) -> None:
        """Refuse what has another name already: a group could contain itself, a variable count twice."""
        import h5py

        self._objects += 1
        address = h5py.h5o.get_info(thing).addr
        if address in self._seen:
            raise Refused(f"{_name(where) or '/'} is linked twice, or a group contains itself")
        self._seen.add(address)

    def _dataset(self, dataset: Any, where: str, name: str) -> None:
        import h5py

        self._once(dataset, where)
        # Before anything else is asked: the shape of a virtual dataset is made by opening its sources.
        created = dataset.get_create_plist()
        if created.get_layout() == h5py.h5d.VIRTUAL:
            raise Refused(f"{_name(where)} is virtual: its data lie in other files")
        if created.get_external_count():
            raise Refused(f"{_name(where)} has external storage: its data lie in other files")
        shape = dataset.shape
        if shape is None:
            raise Refused(f"{_name(where)} has no shape")
        if len(shape) > RANK:
            raise Refused(f"{_name(where)} has {len(shape)} dimensions, limit {RANK}")
        longest = max((*shape, 1))
        if longest > self._limits["max_length"]:
            raise Refused(
                f"{_name(where)} claims a dimension of {longest:,}, limit {self._limits['max_length']:,}: "
                "raise max_length if you trust it"
            )
        size = self._item(dataset.get_type(), where)
        part = self._limits["max_bytes"] // PART
        if created.get_layout() == h5py.h5d.CHUNKED:
            chunk = math.prod(created.get_chunk()) * size
            if chunk > part:
                raise Refused(
                    f"{_name(where)} claims chunks of {chunk:,} bytes, limit {part:,} (a part of max_bytes): "
                    "raise max_bytes if you trust it"
                )
        for index in range(created.get_nfilters()):
            code = created.get_filter(index)[0]
            if code not in FILTERS:
                raise Refused(f"{_name(where)} is packed with the unknown filter {code}")
        if self._is_run and name in WIDE:
            row = (shape[-1] if shape else 1) * size
            if row > part:
                raise Refused(
                    f"{_name(where)} claims rows of {row:,} bytes, limit {part:,} (a part of max_bytes)"
                )
        else:
            self._bytes += math.prod(shape) * size
        if self._bytes > self._limits["max_bytes"]:
            raise Refused(
                f"its variables claim {self._bytes:,} bytes unpacked up to {_name(where)}, limit "
                f"{self._limits['max_bytes']:,}: raise max_bytes if you trust it"
            )
        self._attributes(dataset, where)

    def _item(self, kind: Any, where: str) -> int:
        """Bytes of one value, of the types that qdx's files have."""
        import h5py

        if isinstance(kind, h5py.h5t.TypeStringID):
            if kind.is_variable_str():
                return 16  # a pointer in the file; the texts themselves are counted when they are read
            if kind.get_size() > self._limits["max_length"]:
                raise Refused(
                    f"{_name(where)} claims texts of {kind.get_size():,} bytes, limit "
                    f"{self._limits['max_length']:,}: raise max_length if you trust it"
                )
            return int(kind.get_size())
        if isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID) and kind.get_size() <= 8:
            return int(kind.get_size())
        raise Refused(
            f"{_name(where)} is of a user-defined type ({type(kind).__name__}): qdx's are numbers and texts"
        )

    def _attributes(self, thing: Any, where: str) -> None:
        import h5py

        count = h5py.h5a.get_num_attrs(thing)
        if count > ATTRIBUTES:
            raise Refused(f"{_name(where) or '/'} has {count} attributes, limit {ATTRIBUTES}")
        names: list[bytes] = []
        if count > FEW:
            h5py.h5a.iterate(thing, names.append)
        for index in range(count):
            attribute = h5py.h5a.open(thing, names[index]) if names else h5py.h5a.open(thing, index=index)
            name = attribute.name.decode("utf-8", "replace")
            here = f"{where}:{name}"
            if len(name) > NAME or not name.isprintable():
                raise Refused(f"the name {_name(here)} of an attribute is too long or unprintable")
            if name not in OF_DIMENSIONS:
                self._item(attribute.get_type(), here)
            self._attribute_bytes += attribute.get_storage_size()
            if self._attribute_bytes > self._limits["max_bytes"] // PART:
                raise Refused(
                    f"its attributes claim {self._attribute_bytes:,} bytes up to {_name(here)}, limit "
                    f"{self._limits['max_bytes'] // PART:,} (a part of max_bytes)"
                )


def rehearse(path: str, limits: Mapping[str, int]) -> None:
    """Read all attributes and all variables but full rows, a piece at a time, and keep none of them.

    Only texts of free length have a size that the structure does not state: they are counted here. Of full
    rows the last one is read.

    Raises
    ------
    Refused
        When texts exceed ``max_bytes`` or one of them ``max_length``, or what netCDF4 raises.
    """
    import netCDF4

    try:
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            file.set_auto_chartostring(False)
            _read_group(file, limits, 0)
    except (OSError, RuntimeError, AttributeError, ValueError, IndexError, KeyError, TypeError) as error:
        raise Refused(f"it cannot be read: {_line(error)}") from error


def _read_group(group: Any, limits: Mapping[str, int], texts: int) -> int:
    """Return the bytes of texts so far."""
    for thing in (group, *group.variables.values()):
        for name in thing.ncattrs():
            texts = _count(thing.getncattr(name), limits, texts, f"{group.path}:{name}")
    for name, variable in group.variables.items():
        where = f"{group.path.rstrip('/')}/{name}"
        if name in WIDE:
            if variable.size:
                variable[tuple(length - 1 for length in variable.shape[:-1])]
            continue
        if not variable.shape:
            texts = _count(variable[...], limits, texts, where) if variable.dtype is str else texts
            continue
        for piece in _pieces(variable):
            values = variable[piece]
            if variable.dtype is str:
                for value in values.flat:
                    texts = _count(value, limits, texts, where)
    for inner in group.groups.values():
        texts = _read_group(inner, limits, texts)
    return texts


def _pieces(variable: Any) -> Iterator[slice]:
    size = 1024 if variable.dtype is str else variable.dtype.itemsize
    row = max(1, math.prod(variable.shape[1:]) * size)
    step = max(1, PIECE // row)
    for start in range(0, variable.shape[0], step):
        yield slice(start, start + step)


def _count(value: Any, limits: Mapping[str, int], texts: int, where: str) -> int:
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        if len(text) > limits["max_length"]:
            raise Refused(
                f"{_name(where)} holds a text of {len(text):,} characters, limit {limits['max_length']:,}: "
                "raise max_length if you trust it"
            )
        texts += len(text)
    if texts > limits["max_bytes"] // PART:
        raise Refused(
            f"its texts of free length have more than {limits['max_bytes'] // PART:,} characters up to "
            f"{_name(where)}, the limit (a part of max_bytes)"
        )
    return texts


def _name(text: str) -> str:
    """A name of the file, harmless and short."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text[:81])
    return shown if len(text) <= 80 else shown[:79] + "…"


def _line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return _name(text) or type(error).__name__


def _limit_memory(limits: Mapping[str, int]) -> None:
    """Let this process take what one chunk, one piece and one text need beyond what it has now."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:  # noqa: PTH123 - a plain script
            now = int(file.read().split()[0]) * resource.getpagesize()
        more = 2**29 + 4 * (limits["max_bytes"] // PART) + 4 * limits["max_length"]
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main() -> None:
    """Check the files that lines of JSON on standard input name; print what is refused as JSON."""
    import h5py  # noqa: F401 - before the limit, which is about the file
    import netCDF4  # noqa: F401

    while line := sys.stdin.readline():
        request = json.loads(line)
        limits = {str(name): int(value) for name, value in request["limits"].items()}
        _limit_memory(limits)
        for path in request["paths"]:
            try:
                check_structure(path, limits)
                rehearse(path, limits)
                said = ""
            except Refused as error:
                said = str(error)
            except MemoryError:
                said = "reading it takes more memory than it claims"
            print(json.dumps({"path": path, "refused": said}), flush=True)


if __name__ == "__main__":
    main()
