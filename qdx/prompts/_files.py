"""From paths and globs to files, each mistake named."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from qdx.errors import QdxError


def find_files(path: str | Path | Sequence[str | Path], example: str) -> list[tuple[str, Path]]:
    """Return the files that a path, a glob or a list of them names.

    Relative paths begin where the user started the program, also when Hydra changed the folder since.

    Parameters
    ----------
    path : str, Path or sequence of them
        ``**`` matches any depth; a file whose name looks like a glob is taken as it is.
    example : str
        A pattern for the message about folders, such as ``*.pdf``.

    Returns
    -------
    list of (str, Path)
        Names and absolute paths, each file once, sorted by name. A name is the path below the deepest folder
        that holds them all, so that it does not depend on where the files lie on a machine.

    Raises
    ------
    QdxError
        For nothing asked, a missing file, a glob without match and a folder.
    """
    patterns = [path] if isinstance(path, str | Path) else list(path)
    if not patterns or not all(str(pattern).strip() for pattern in patterns):
        raise QdxError(f"prompts.path is empty: give a file, a glob such as {example}, or a list of them")
    found: set[Path] = set()
    for pattern in patterns:
        found.update(_match(str(pattern), example))
    folder = Path(os.path.commonpath([file.parent for file in found]))
    return sorted((file.relative_to(folder).as_posix(), file) for file in found)


def _match(pattern: str, example: str) -> list[Path]:
    from hydra.utils import to_absolute_path

    absolute = os.path.abspath(to_absolute_path(os.path.expanduser(pattern)))  # noqa: PTH100, PTH111 - globs are not Paths
    if Path(absolute).is_dir():
        raise QdxError(f"{pattern} is a folder, prompts.path wants files: write {Path(pattern) / example}")
    if Path(absolute).exists():
        return [Path(absolute)]
    if not glob.has_magic(absolute):
        raise QdxError(f"{pattern}: no such file ({absolute}): check prompts.path")
    files = [Path(match) for match in glob.glob(absolute, recursive=True)]  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [file for file in files if file.is_file()]
    if not files:
        raise QdxError(
            f"{pattern}: no file matches ({absolute}): check prompts.path, and quote it against the shell"
        )
    return files


def read_bytes(name: str, file: Path) -> bytes:
    """Return a file's bytes.

    Raises
    ------
    QdxError
        When it cannot be read or has none.
    """
    try:
        if not file.is_file():  # a pipe or a device may have no end, and jobs could not read it again
            raise QdxError(f"{name}: not a regular file ({file}): save what it gives in one")
        data = file.read_bytes()
    except OSError as error:
        raise QdxError(f"{name}: cannot be read: {error.strerror or error} ({file})") from error
    if not data:
        raise QdxError(f"{name}: empty, 0 bytes ({file}): give a file with text in prompts.path")
    return data
