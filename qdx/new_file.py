"""Write a file that is new, whatever lies at its name: no link is followed out of the folder.

A sweep folder may come from a stranger. A link in it, ``report.txt.part -> ~/.ssh/authorized_keys``,
would make a report overwrite what it points to. So everything that qdx writes into such a folder is
written here, or after `refuse_links` has looked at the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from qdx.errors import QdxError

# What qdx writes beside the folders of the jobs.
_WRITTEN = (
    "sweep.json",
    "sweep.nc",
    "summary.json",
    "references.json",
    "producers.nc",
    "report.txt",
    "report.html",
    "report.md",
)
FILES = (*_WRITTEN, *(f"{name}.part" for name in _WRITTEN), "multirun.yaml", "sweep.lock", "report.lock")
# What jobs write in their folders, by which a folder is told to be one, and commands beside `FILES`: a folder
# of such a name would be taken for the file, or hide it.
TAKEN = (
    *FILES,
    *("run.nc", "run.nc.part", "run.nc.rows", "run.nc.new", "status.json", "challenge.json", "hydra.yaml"),
    *("commitments.nc", "published.nc", "opened.nc", "drawn.json"),
)
DEPTH = 3  # of a sweep folder: <label>/repeat_0/run.nc
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a new, empty file ``<path>.part`` that takes the name `path` when the block is left.

    Whatever had either name is removed, a link itself and not what it points to. When the block raises, the
    new file is removed and `path` is as it was.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        When the file cannot be made, such as for a folder of its name.
    """
    part = path.with_name(f"{path.name}.part")
    create(part)
    try:
        yield part
        part.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def create(path: Path) -> None:
    """Make an empty file that nobody else made, in the place of whatever had the name.

    Raises
    ------
    OSError
    """
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666))


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a text in UTF-8 with newlines as they are.

    Raises
    ------
    OSError
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors=errors, newline="\n")


def copy(source: Path, target: Path) -> None:
    """Copy a file's content.

    Raises
    ------
    OSError
    """
    with replacing(target) as part:
        shutil.copyfile(source, part)


def make_folder(path: Path) -> None:
    """Make a folder with its parents, where it is not there already.

    Raises
    ------
    QdxError
        When it is a link: what is written into it would land elsewhere.
    OSError
    """
    if path.is_symlink():
        raise QdxError(f"{path} is a link to {path.readlink()}: nothing is written through it: remove it")
    path.mkdir(parents=True, exist_ok=True)


def require_place(directory: Path) -> None:
    """Refuse a place where no sweep folder can be, or a stranger's folder with links in it.

    Parameters
    ----------
    directory : Path
        It need not be there.

    Raises
    ------
    QdxError
        For a name that is not text, a file or a link to nothing in its path, a folder that has the name of a
        file which is written there, and whatever `refuse_links` finds.
    """
    try:
        str(directory.absolute()).encode()
    except UnicodeEncodeError as error:
        raise QdxError(
            f"{directory.absolute()}: a part of this name is not UTF-8 text, and NetCDF opens nothing there: "
            "rename that folder, or choose another hydra.sweep.dir"
        ) from error
    for place in (directory.absolute(), *directory.absolute().parents):
        if place.is_symlink() and not place.exists():
            raise QdxError(
                f"{place} is a link to {place.readlink()}, which is not there: make that folder, or choose "
                "another hydra.sweep.dir"
            )
        if place.exists() and not place.is_dir():
            raise QdxError(
                f"{place} is a file and no folder: give a sweep's folder, or a new name (hydra.sweep.dir)"
            )
    for name in FILES:
        if (taken := directory / name).is_dir() and not taken.is_symlink():
            raise QdxError(f"{taken} is a folder, and qdx writes a file of that name: rename it")
    refuse_links(directory)


def refuse_links(directory: Path) -> None:
    """Refuse a sweep folder in which a symbolic link leads out of it, or that holds what is not a file.

    Parameters
    ----------
    directory : Path
        It may be a link itself, which its user named; it need not be there.

    Raises
    ------
    QdxError
        Naming the first link, and where it leads, or the first fifo, socket or device.
    """
    root = directory.resolve()
    _refuse(directory, root, DEPTH)


def _refuse(folder: Path, root: Path, depth: int) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            if not path.resolve().is_relative_to(root):
                raise QdxError(
                    f"{path} is a link to {path.readlink()}, out of its folder: a sweep folder may be a "
                    "stranger's, so nothing is read or written through it: put the file itself there"
                )
        elif entry.is_dir(follow_symlinks=False):
            if depth > 1:
                _refuse(path, root, depth - 1)
        elif not entry.is_file(follow_symlinks=False):
            raise QdxError(f"{path} is a fifo, socket or device, which is not opened: remove it")
