"""The packaged handbook is what docs/handbook says, and long enough to experiment with."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from qdx.prompts import Pdf, describe
from qdx.prompts.pdf import HANDBOOK, read_pdf

CHAPTERS = sorted((Path(__file__).parents[2] / "docs" / "handbook").glob("*.md"))


def words_of_markdown(text: str) -> list[str]:
    pieces = re.split(r"^```$", text, flags=re.MULTILINE)
    prose = [re.sub(r"^#+ |^- |`", "", piece, flags=re.MULTILINE) for piece in pieces[::2]]
    prose = [re.sub(r"\*{1,2}([^*\n]+)\*{1,2}", r"\1", piece) for piece in prose]
    code = [*pieces[1::2], ""]
    return " ".join(a + b for a, b in zip(prose, code, strict=True)).split()


def test_the_packaged_pdf_says_what_its_chapters_say():
    titles = [chapter.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for chapter in CHAPTERS]
    contents = " ".join(f"{number}. {title}" for number, title in enumerate(titles, start=1)).split()
    expected = [
        word for chapter in CHAPTERS for word in words_of_markdown(chapter.read_text(encoding="utf-8"))
    ]
    found = [word for word in read_pdf(HANDBOOK.name, HANDBOOK).text.split() if word != "•"]
    start = found.index("1.")
    assert found[start : start + len(contents)] == contents, "run docs/build_handbook.py"
    assert found[start + len(contents) :] == expected, "run docs/build_handbook.py"


def test_headings_stand_apart_in_the_extracted_text():
    assert "\n\nThe noise floor\n\nRun the same config" in read_pdf(HANDBOOK.name, HANDBOOK).text


def test_the_handbook_holds_the_default_and_longer_experiments(demo_model):
    from qdx.models import load_tokenizer

    tokenizer = load_tokenizer(demo_model("none"))
    source = Pdf()
    references = source.load(tokenizer)
    assert source.summary.total_tokens >= 6000
    assert len(references) == 4
    for earlier, later in pairwise(references):
        assert earlier.token_offset + 256 + 16 <= later.token_offset
    shape = references[0]
    total = shape.prefix_length + 256 + shape.suffix_length
    line = f"{shape.prefix_length} prefix + 256 snippet + {shape.suffix_length} suffix = {total} tokens"
    assert line in describe(references, source.summary)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": source.instruction + shape.text}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert tokenizer.decode(shape.token_ids) == rendered
    assert len(Pdf(references=8, snippet_tokens=1000).load(tokenizer)) == 8
