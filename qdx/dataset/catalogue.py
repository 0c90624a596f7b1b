"""Find sweeps below a folder and say what each states of itself, without opening any of them here.

Folders are walked in this process, which reads names and sizes only. What lies in the files is read by
`qdx.dataset.catalogue_entry` in a process that is killed when a file takes too long or crashes it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdx.dataset.folder import PART, PLAN, RUN, STATUS, SWEEP
from qdx.dataset.guarding import Child
from qdx.errors import QdxError

SCRIPT = Path(__file__).with_name("catalogue_entry.py")
DEPTH = 12  # of folders below the one that is listed
MOST_FOLDERS = 200_000  # that are looked into
MOST_ENTRIES = 20_000  # sweeps that are listed
OWN_DEPTH = 4  # of a sweep's own folders, whose bytes are counted: <label>/repeat_0/…
SECONDS = 20.0  # that one sweep may take
# What a sweep's folder may hold beside the folders of its configs: files of that sweep, none of its own.
OF_SWEEP = (SWEEP, RUN, "producers.nc", "commitments.nc", "published.nc", "opened.nc")
CALIBRATION = "calibration"
LIMITS = {"json_bytes": 32 * 2**20, "memory_bytes": 2**30}


@dataclass(frozen=True)
class Entry:
    """A sweep folder, a run folder or a file, as it describes itself.

    Attributes
    ----------
    path : str
    bytes : int
        Of all files in it.
    kind : str
        ``sweep``, ``servers`` (a sweep that asked servers), or what a file says: ``run``, ``commitments``,
        ``opened``, ``records``. "" where nothing could be read.
    time : str
        When the sweep was started or merged, ISO 8601; "" where no file states it.
    configs : int
        How many labels it has.
    labels, models : list of str
        The first 40 of each.
    complete : bool or None
        Whether every config's run is there; None where that is not known.
    runs, failed, missing : int
        Configs whose ``run.nc`` is there, that failed or stopped, and that left nothing.
    verdicts : list of Mapping
        For each file that states verdicts, ``by``, its name, and ``counts``, how many claims have which. They
        are what the file says: nothing was judged to list them.
    problems : list of str
        What could not be read, or does not agree.
    """

    path: str
    bytes: int
    kind: str = ""
    time: str = ""
    configs: int = 0
    labels: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    complete: bool | None = None
    runs: int = 0
    failed: int = 0
    missing: int = 0
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Catalogue:
    """What was found below a folder.

    Attributes
    ----------
    folder : str
    entries : list of Entry
        The oldest first; those without a time before them.
    foreign : int
        NetCDF files that qdx did not write.
    links : int
        Links to folders, which were not followed.
    problems : list of str
        Folders that could not be read, and limits that were reached.
    """

    folder: str
    entries: list[Entry]
    foreign: int
    links: int
    problems: list[str]


def catalogue(folder: str | Path) -> Catalogue:
    """List the sweeps at and below a folder.

    Parameters
    ----------
    folder : path
        Folders whose names begin with a dot are left out.

    Returns
    -------
    Catalogue

    Raises
    ------
    QdxError
        When there is no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise QdxError(f"{root}: no such folder")
    walk = _Walk()
    places = list(walk.sweeps(str(root)))
    entries: list[Entry] = []
    foreign = 0
    child: Child | None = None
    try:
        for path, size in places:
            if child is None or not child.lives:
                child = Child(SCRIPT)
            entry = _entry(child, path, size)
            if entry is None:
                foreign += 1
            else:
                entries.append(entry)
    finally:
        if child is not None:
            child.end()
    entries.sort(key=lambda one: (_order(one.time), one.path))
    return Catalogue(str(root), entries, foreign, walk.links, walk.problems)


def _order(stated: str) -> str:
    """Digits of a time, which sort as times do where all are in UTC, as qdx writes them."""
    return re.sub(r"\D", "", stated)[:14]


def _entry(child: Child, path: str, size: int) -> Entry | None:
    """What a place states; None for a file that qdx did not write."""
    started = time.monotonic()
    answers, why = child.ask({"paths": [os.path.abspath(path)], "limits": LIMITS}, 1, SECONDS)  # noqa: PTH100
    if not answers:
        child.end()  # of what a damaged file has done to it no other one shall suffer
        slow = time.monotonic() - started >= SECONDS
        said = f"looking at it took more than {SECONDS:.0f} s: it is damaged or hostile" if slow else why
        return Entry(path, size, problems=[said.removeprefix("is not read: ")])
    answer = answers[0]
    answer.pop("path")
    if not answer["kind"] and not answer["problems"]:
        return None
    return Entry(path, size, **answer)


class _Walk:
    """One walk over folders: what it counted, and what it could not read."""

    def __init__(self) -> None:
        self.links = 0
        self.problems: list[str] = []
        self._folders = 0
        self._found = 0

    def sweeps(self, path: str, depth: int = 0) -> Iterator[tuple[str, int]]:
        """Paths of sweep folders, run folders and NetCDF files, with their bytes."""
        if self._full():
            return
        self._folders += 1
        try:
            with os.scandir(path) as entries:
                here = sorted(entries, key=lambda one: one.name)
        except OSError as error:
            self.problems.append(f"{path}: {error.strerror or error}")
            return
        files = {one.name: one for one in here if one.is_file(follow_symlinks=False)}
        folders = [one for one in here if one.is_dir(follow_symlinks=False) and one.name[:1] != "."]
        self.links += sum(one.is_symlink() and one.is_dir() for one in here)
        of_runs = {one.name for one in folders if _holds_run(one.path)}
        if PLAN in files or SWEEP in files or of_runs or RUN in files:
            self._found += 1
            own = {one.name for one in folders if one.name in of_runs}
            yield path, sum(map(_size, files.values())) + sum(_bytes(f"{path}/{name}") for name in own)
            folders = [one for one in folders if one.name not in own and one.name != CALIBRATION]
            files = {name: one for name, one in files.items() if name not in OF_SWEEP}
        for name, one in files.items():
            if name.endswith(".nc"):
                self._found += 1
                yield one.path, _size(one)
        if depth >= DEPTH and folders:
            self.problems.append(f"{path}: folders below it are not listed, which lie {DEPTH} deep")
            return
        for one in folders:
            yield from self.sweeps(one.path, depth + 1)

    def _full(self) -> bool:
        """Whether a limit is reached; it is said once."""
        if self._folders < MOST_FOLDERS and self._found < MOST_ENTRIES:
            return False
        said = f"not everything is listed: more than {MOST_FOLDERS:,} folders or {MOST_ENTRIES:,} sweeps"
        if said not in self.problems:
            self.problems.append(said)
        return True


def _holds_run(path: str) -> bool:
    """Whether a folder is a config's: it holds a run, or the one of its first repeat."""
    return any(_is_file(f"{path}/{at}{name}") for at in ("", "repeat_0/") for name in (RUN, PART, STATUS))


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path) and not os.path.islink(path)  # noqa: PTH113, PTH114
    except (OSError, ValueError):
        return False


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _bytes(path: str, depth: int = 0) -> int:
    """Bytes of the files of a sweep's own folder."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for one in entries:
                if one.is_file(follow_symlinks=False):
                    total += _size(one)
                elif one.is_dir(follow_symlinks=False) and depth < OWN_DEPTH:
                    total += _bytes(one.path, depth + 1)
    except OSError:
        pass
    return total
