"""Measure how a page reads: ``python scripts/words.py [--list] [PAGE …]``, by default README and docs/.

Prints, for each page, its sentences, words a sentence, colons and semicolons a sentence, sentences of more
than 40 words, and places such as "is not a checkpoint", which should say "is not a checkpoint". The last line
counts these places in the sources of qdx, and the docstrings there that begin with a question word and not
with a verb or a subject; ``--list`` prints all of them. The voice to compare with is docs/handbook's.

Code blocks, tables, headings and comments are left out. A code span is one word; a paragraph or an item of
a list ends a sentence.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONG = 40  # words
FENCE = re.compile(r"^(`{3,}).*?^\1`*$|<!--.*?-->|\n\n(?: {4}[^\n]*\n)+", re.DOTALL | re.MULTILINE)
NOT_PROSE = re.compile(r"^(?:#|\||!\[).*$", re.MULTILINE)
BREAK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )")  # between paragraphs and items
SENTENCE_END = re.compile(r"(?<=[.!?])[*_)\"”]*\s+(?=[\"“(*_]*(?:[A-Z0-9…]|qdx ))")
IS_NO = re.compile(r"(?<!there )\b(?:is|are|was|were) no (?!longer|further|more\b|fewer|less)(?=\w)", re.I)
RIDDLE = ("What", "Which", "How", "Whether", "Who", "Where", "When", "Of", "Why")


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a Markdown page's prose."""
    text = re.sub(r"`+[^`\n]+`+", "Code", NOT_PROSE.sub("", FENCE.sub("\n\n", text)))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for block in BREAK.split(text):
        joined = re.sub(r"^(?:[-*]|\d+\.) ", "", " ".join(block.split()))
        yield from (part for part in SENTENCE_END.split(joined) if re.search(r"[A-Za-z]{2}", part))


def words(sentence: str) -> int:
    """Count the words of a sentence: what has a letter or a digit and stands between spaces."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def line(page: Path) -> str:
    """Return a page's line of the table."""
    text = page.read_text(encoding="utf-8")
    parts = list(sentences(text))
    number = max(len(parts), 1)
    mean = sum(map(words, parts)) / number
    marks = sum(len(re.findall(r"[:;](?=\s|$)", part)) for part in parts) / number
    long = sum(words(part) > LONG for part in parts)
    name = str(page.resolve().relative_to(ROOT))
    return f"{name:44}{len(parts):10}{mean:8.1f}{marks:7.2f}{long:6}{len(IS_NO.findall(text)):7}"


def docstrings(source: Path) -> Iterator[tuple[int, str]]:
    """Yield line and first line of every docstring of a module."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text.splitlines()[0]


def main() -> None:
    """Print the table, and with --list the places."""
    listed = "--list" in sys.argv
    pages = [Path(name) for name in sys.argv[1:] if name != "--list"]
    if not pages:
        pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    print(f"{'page':44}{'sentences':>10}{'words':>8}{': ;':>7}{'long':>6}{'is no':>7}")
    for page in pages:
        print(line(page))
        for part in sentences(page.read_text(encoding="utf-8")):
            if listed and words(part) > LONG:
                print(f"  {words(part)} words: {part}")
    negatives: list[str] = []
    riddles: list[str] = []
    for source in sorted((ROOT / "qdx").rglob("*.py")):
        name = source.relative_to(ROOT)
        for number, text in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
            if IS_NO.search(text):
                negatives.append(f"{name}:{number}: {text.strip()}")
        for number, first in docstrings(source):
            if first.split()[0] in RIDDLE:
                riddles.append(f"{name}:{number}: {first}")
    print(
        f"qdx/: {len(negatives)} lines with 'is no X', {len(riddles)} docstrings begin with a question word"
    )
    if listed:
        print("\n".join(negatives + riddles))


if __name__ == "__main__":
    main()
