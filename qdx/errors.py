"""The one exception that a user's mistake raises, and the hint that goes with a misspelt name."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

EXTRA = ("torch", "transformers", "safetensors", "tokenizers", "gguf", "huggingface_hub")
ACTING = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # Unicode categories


class QdxError(Exception):
    """An input or a machine that cannot be used, said in one line: what, got, limit, remedy.

    The command line prints it without a traceback (``HYDRA_FULL_ERROR=1`` shows the whole). What it quotes
    may come from a file: line breaks become spaces, and nothing in it acts on a terminal.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(" ".join(str(message).splitlines())))


def lacking(error: BaseException | None) -> str | None:
    """Say in one line which package is not installed, where that is why something failed; else None.

    The declared dependencies read files and reports. Running and measuring a model takes torch and
    transformers, which come with one of two extras.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            found = re.match(r"No module named '?(\w+)", str(error))
            if found and found[1] in EXTRA:
                return (
                    f"this needs {found[1]}, which is not installed: pip install 'qdx[cpu]', or 'qdx[vllm]' "
                    "on a machine with a GPU"
                )
        error = error.__cause__ or error.__context__
    return None


class UnwritableError(QdxError):
    """The disk did not take a result: full, read-only or not there. A command that ends so exits with 1."""


def printable(text: str) -> str:
    """Text in which nothing acts on a terminal: � for control, formatting and surrogate characters.

    Line breaks stay, and the two invisible joiners that emoji and Indic scripts are spelled with.
    """
    return "".join("\ufffd" if _acts(character) else character for character in text)


def _acts(character: str) -> bool:
    if character.isascii():
        return not character.isprintable() and character != "\n"
    return unicodedata.category(character) in ACTING and character not in "\u200c\u200d"


def nearest(name: object, choices: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the choice most like `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
