"""Plain text files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdx.errors import QdxError
from qdx.plugins import register
from qdx.prompts._files import find_files, read_bytes
from qdx.prompts._windows import Document, WindowSource, sha256


@register("prompts", "text")
@dataclass(kw_only=True)
class Text(WindowSource):
    """Windows cut out of text files in UTF-8.

    Parameters
    ----------
    path : str, Path or sequence of them
        Files or globs.
    """

    path: str | Path | Sequence[str | Path]

    def documents(self) -> list[Document]:
        """Read the files."""
        return [read_text(name, file) for name, file in find_files(self.path, "*.txt")]


def read_text(name: str, file: Path) -> Document:
    """Read one text file; a byte order mark is dropped and line ends become ``\\n``.

    Raises
    ------
    QdxError
        When it cannot be read, is empty, holds white space only, or is not UTF-8.
    """
    data = read_bytes(name, file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise QdxError(
            f"{name}: not UTF-8, byte 0x{byte:02x} at offset {error.start}: convert it, for example with "
            "iconv -t UTF-8"
        ) from error
    if not text.strip():
        raise QdxError(
            f"{name}: no text, only white space ({len(data)} bytes): give a file with text in prompts.path"
        )
    return Document(name, text.replace("\r\n", "\n").replace("\r", "\n"), sha256(data))
