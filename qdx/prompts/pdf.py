"""PDF documents; the default is the handbook that qdx packages."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qdx.errors import QdxError, printable
from qdx.plugins import register
from qdx.prompts._files import find_files, read_bytes
from qdx.prompts._windows import Document, WindowSource, sha256

HANDBOOK = Path(__file__).with_name("handbook.pdf")

_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
# reportlab writes its bullet as 0x7f; other control characters mean nothing in a text.
_CONTROLS = {**{chr(code): "" for code in range(32) if chr(code) not in "\t\n\r"}, "\x7f": "•"}
_CHARACTERS = str.maketrans({**_LIGATURES, "\u00ad": "", "\u00a0": " ", **_CONTROLS})


MOST_UNREADABLE = 0.05  # of the characters: chosen, not measured
_GLYPHS = (
    r"(?:/(?:[A-Za-z]{1,3}\d{1,8}|G[0-9A-F]{2}|x[0-9A-F]{2}|uni[0-9A-F]{4}|u[0-9A-F]{4,6}"
    r"|(?:cid|glyph|index)_?\d+)(?:\.[a-z]\w*)?){2,}"
)
_UNREADABLE = re.compile(
    _GLYPHS + r"|(?:\(cid:\d+\))+|[\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]+|\u25a1{2,}"
)
# Names that say their characters, after the Adobe Glyph List: parts joined by "_", a variant after ".".
_NAMED = re.compile(
    r"/((?:[fijltTh]_)+[fijltTh]|[A-Za-z]+\.(?:alt|sc|smcp|c2sc|case|swash|liga|dlig|osf|lf|tf|oldstyle)\d*)"
    r"(?![A-Za-z0-9])"
)


@register("prompts", "pdf")
@dataclass(kw_only=True)
class Pdf(WindowSource):
    """Windows cut out of the text of PDF files.

    Parameters
    ----------
    path : str, Path or sequence of them, optional
        Files or globs; the packaged handbook if None.
    """

    path: str | Path | Sequence[str | Path] | None = None

    def documents(self) -> list[Document]:
        """Read the files."""
        files = [(HANDBOOK.name, HANDBOOK)] if self.path is None else find_files(self.path, "*.pdf")
        return [read_pdf(name, file) for name, file in files]


def read_pdf(name: str, file: Path) -> Document:
    """Extract a PDF's text as paragraphs, without running heads and page numbers.

    Parameters
    ----------
    name : str
        How messages and references call the file.
    file : Path

    Returns
    -------
    Document
        With the index of every page's first character.

    Raises
    ------
    QdxError
        When the file cannot be read, is empty, no PDF, encrypted, broken, has no text (a scan), or too much
        of its text is glyph names.
    """
    data = read_bytes(name, file)
    with _counted() as warned:
        raw, unmapped = _pages(name, data)
    pages = drop_running_lines(raw)
    if not any(pages):  # of pages with one line each, every line is a first and a last one
        pages = [[line for line in page if line.strip()] for page in raw]
    if not any(pages):
        said = f"; pypdf warned: {warned[0]}" if warned else ""
        raise QdxError(
            f"{name}: no text on its {len(pages)} pages, a scan or drawings only{said}: recognise its text "
            "first, for example with ocrmypdf, or give another file in prompts.path"
        )
    text, starts = tidy(pages)
    if (part := unmapped / max(sum(len(line) for page in raw for line in page), 1)) >= MOST_UNREADABLE:
        raise QdxError(
            f"{name}: {min(part, 1):.0%} of its text are numbers of glyphs that came out as other "
            f"characters (it begins {text[:24]!r}): some fonts have no table of characters (ToUnicode); "
            "recognise its text, for example with ocrmypdf --force-ocr, or give another file in prompts.path"
        )
    notes = [f"{name}: pypdf warned {len(warned)} times, first: {warned[0]}"] if warned else []
    share, example = unreadable(text)
    if share >= MOST_UNREADABLE:
        raise QdxError(
            f"{name}: {share:.0%} of its text are glyph names or private signs, such as {example!r}: "
            "its fonts do not say which characters they draw; recognise its text, for example with "
            "ocrmypdf --force-ocr, or give another file in prompts.path"
        )
    if share:
        notes += [f"{name}: {share:.2%} of its text are glyph names or private signs: {example!r}"]
    return Document(name, text, sha256(data), starts, "; ".join(notes))


def unreadable(text: str) -> tuple[float, str]:
    """Return the share of a text that is not writing, and an example of it.

    Where a font does not say which characters its glyphs draw, a PDF's text comes out as the glyphs' names
    (``/g145/g3``), as U+FFFD, or as private signs.
    """
    found = [match.group() for match in _UNREADABLE.finditer(text)]
    return sum(map(len, found)) / max(len(text), 1), found[0][:24] if found else ""


class _Lines(logging.Handler):
    """Keeps the beginnings of what is logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line of a record."""
        self.lines.append(printable(" ".join(record.getMessage().split()))[:120])


@contextlib.contextmanager
def _counted() -> Iterator[list[str]]:
    """Keep what pypdf logs off the terminal, where a page of it may hide what matters; gives its lines."""
    handler, logger = _Lines(logging.WARNING), logging.getLogger("pypdf")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _pages(name: str, data: bytes) -> tuple[list[list[str]], int]:
    """Return each page's lines, as pypdf extracts them, and how many characters have unknown fonts."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    if b"%PDF-" not in data[:1024]:
        raise QdxError(
            f"{name}: not a PDF, it begins with {data[:8]!r}: use prompts=text for plain text, or give a PDF "
            "in prompts.path"
        )
    encrypted = QdxError(
        f"{name}: encrypted, opening it needs a password: save it without one, for example with "
        "qpdf --decrypt, and give that file in prompts.path"
    )
    try:
        reader = PdfReader(io.BytesIO(data))
        # Many files are encrypted with an empty password only to carry permissions: every viewer opens them.
        if reader.is_encrypted and not reader.decrypt(""):
            raise encrypted
        pages, unmapped = [], 0
        for page in reader.pages:
            pages.append(_clean(page.extract_text()).splitlines())
            unmapped += _unmapped(page)
        return pages, unmapped
    except QdxError:
        raise
    except DependencyError as error:
        raise QdxError(
            f"{name}: encrypted with AES, which takes a package to read ({error}): pip install cryptography"
        ) from error
    except FileNotDecryptedError as error:
        raise encrypted from error
    except Exception as error:  # pypdf raises whatever the damage leads to: KeyError, RecursionError …
        raise QdxError(
            f"{name}: broken PDF, pypdf says {str(error) or type(error).__name__!r}: download or export it "
            "again, or repair it with qpdf or mutool clean"
        ) from error


def _unmapped(page: Any) -> int:
    """Return how many characters of a page are numbers of glyphs that its font gives no characters for.

    A composite font with Identity-H encoding numbers the glyphs of its own file. Without a ToUnicode table
    pypdf takes these numbers for characters.
    """
    resources = _object(page.get("/Resources"))
    forms = [_object(one) for one in _object(resources.get("/XObject")).values()]
    inside = [resources, *(_object(form.get("/Resources")) for form in forms)]
    fonts = [_object(font) for one in inside for font in _object(one.get("/Font")).values()]
    if not any(_has_no_characters(font) for font in fonts):
        return 0
    count = 0

    def visit(text: str, _cm: Any, _tm: Any, font: Any, _size: Any) -> None:
        nonlocal count
        if font is not None and _has_no_characters(font):
            count += len(text.strip())

    page.extract_text(visitor_text=visit)
    return count


def _object(value: Any) -> Any:
    """Return a dictionary of a PDF that may be a reference, an empty one for anything else."""
    found = value.get_object() if hasattr(value, "get_object") else value
    return found if isinstance(found, dict) else {}


def _has_no_characters(font: Any) -> bool:
    if font.get("/Subtype") != "/Type0" or "/ToUnicode" in font:
        return False
    if font.get("/Encoding") not in ("/Identity-H", "/Identity-V"):
        return False
    described = font.get("/DescendantFonts")
    described = described.get_object() if hasattr(described, "get_object") else described
    first = _object(described[0]) if isinstance(described, list) and described else {}
    # Adobe's collections of Chinese, Japanese and Korean say which character each number is.
    return str(_object(first.get("/CIDSystemInfo")).get("/Ordering")) in ("Identity", "UCS", "None")


def _clean(text: str) -> str:
    """Spell ligatures and named glyphs out, drop soft hyphens and lone surrogates, which none can encode."""
    text = _NAMED.sub(_named, text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").translate(_CHARACTERS)


def _named(match: re.Match[str]) -> str:
    from fontTools import agl  # type: ignore[import-untyped]

    return agl.toUnicode(match[1]) or match[0]


def drop_running_lines(pages: Sequence[Sequence[str]]) -> list[list[str]]:
    """Remove page numbers, and first or last lines that more than half of at least four pages share.

    Lines count as shared when they differ in digits only, as in "Chapter 1 · 17".

    Parameters
    ----------
    pages : sequence of sequences of str
        Lines of each page.

    Returns
    -------
    list of lists of str
    """
    kept = [[line for line in page if line.strip()] for page in pages]
    edges = Counter(
        edge for page in kept for edge in {(where, _mask(page[where])) for where in (0, -1) if page}
    )
    for page in kept:
        for where in (-1, 0):
            if not page:
                break
            mask = _mask(page[where])
            shared = len(pages) >= 4 and edges[where, mask] > len(pages) / 2
            if mask == "#" or shared:
                del page[where]
    return kept


def _mask(line: str) -> str:
    return re.sub(r"\d+", "#", line.strip())


def _ends_sentence(text: str) -> bool:
    return text.rstrip("”’\"')]").endswith((".", "!", "?", ":"))


def tidy(pages: Sequence[Sequence[str]]) -> tuple[str, tuple[int, ...]]:
    """Join the lines of all pages to paragraphs.

    A word split by a hyphen at a line's end is made whole when lower-case letters stand on both sides. A
    PDF's text does not mark paragraphs: one ends at a line that is clearly shorter than its page's longest
    and either ends a sentence or stands before a line that begins without a lower-case letter, and before a
    heading.

    Parameters
    ----------
    pages : sequence of sequences of str
        Lines of each page.

    Returns
    -------
    text : str
        Paragraphs apart by an empty line.
    starts : tuple of int
        Index in `text` of each page's first character.
    """
    limits = [0.8 * max(map(len, page), default=0) for page in pages]
    flat = [(" ".join(line.split()), number) for number, page in enumerate(pages) for line in page]
    lines = [line for line, _ in flat] + [""]
    short = [len(line) < limits[number] for line, number in flat] + [False]
    begins = [not (line[:1].islower() or before.endswith("-")) for before, line in pairwise(["", *lines])]
    heading = [
        short[i] and begins[i] and begins[i + 1] and not _ends_sentence(lines[i]) for i in range(len(flat))
    ] + [False]
    text, starts = "", [0] * len(pages)
    for i, (line, number) in enumerate(flat):
        if i and re.search(r"[a-zß-ÿ]-$", lines[i - 1]) and line[:1].islower():
            text = text[:-1]
        elif i:
            ends = _ends_sentence(lines[i - 1])
            apart = (short[i - 1] and (ends or begins[i])) or (ends and heading[i])
            text += "\n\n" if apart else " "
        if i == 0 or number != flat[i - 1][1]:
            # Pages without text before this one begin where it begins.
            previous = flat[i - 1][1] if i else -1
            starts[previous + 1 : number + 1] = [len(text)] * (number - previous)
        text += line
    last = flat[-1][1] if flat else -1
    starts[last + 1 :] = [len(text)] * (len(pages) - last - 1)
    return text, tuple(starts)
