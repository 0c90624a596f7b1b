"""Plain text files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdx.errors import QdxError
from qdx.plugins import register
from qdx.prompts._files import find_files, read_bytes
from qdx.prompts._windows import Document, WindowSource, sha256

MOST_CONTROLS = 0.2  # of the characters: chosen, not measured
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f]")
# How other files begin, and what to do with them; UTF-32 before UTF-16, whose mark it begins with.
OTHERS = {
    b"%PDF-": "use prompts=pdf for it",
    b"\x1f\x8b": "it is compressed, unpack it with gunzip",
    b"PK\x03\x04": "it is a zip archive or an office document, save its text as UTF-8",
    b"\xff\xfe\0\0": "convert it with iconv -f UTF-32 -t UTF-8",
    b"\0\0\xfe\xff": "convert it with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "convert it with iconv -f UTF-16 -t UTF-8",
}


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
        When it cannot be read, is empty, holds white space only, is not UTF-8, or no text.
    """
    data = read_bytes(name, file)
    for first, remedy in OTHERS.items():
        if data.startswith(first):
            raise QdxError(f"{name}: not plain text, it begins with {data[:8]!r}: {remedy}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise QdxError(
            f"{name}: not UTF-8, byte 0x{byte:02x} at offset {error.start}: convert it from the encoding "
            "that it was written in, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
    if not text.strip():
        raise QdxError(
            f"{name}: no text, only white space ({len(data)} bytes): give a file with text in prompts.path"
        )
    if (nul := text.count("\0") / len(text)) > MOST_CONTROLS:
        order = "BE" if text[0] == "\0" else "LE"
        raise QdxError(
            f"{name}: {nul:.0%} of its characters are NUL, as in UTF-16: convert it, for example with iconv "
            f"-f UTF-16{order} -t UTF-8"
        )
    if len(_CONTROLS.findall(text)) > MOST_CONTROLS * len(text):
        raise QdxError(f"{name}: mostly control characters: give a file with text in prompts.path")
    return Document(name, text.replace("\r\n", "\n").replace("\r", "\n"), sha256(data))
