"""PDFs, good and bad: every bad one is a real file with its own message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdx.errors import QdxError
from qdx.prompts import Pdf, describe
from qdx.prompts.pdf import drop_running_lines, read_pdf, tidy

from .conftest import paged, pdf_bytes, prose


def test_windows_come_from_the_pages_that_they_name(make_pdf, tokenizer):
    pages = paged(prose(3000))
    source = Pdf(path=make_pdf("book.pdf", pages), references=5, snippet_tokens=200, continuation_tokens=30)
    references = source.load(tokenizer)
    assert len(references) == 5
    for reference in references:
        assert (reference.source, reference.content_length, len(reference.continuation)) == (
            "book.pdf",
            200,
            30,
        )
        first, _, last = reference.pages.partition("-")
        on_pages = " ".join(" ".join(page) for page in pages[int(first) - 1 : int(last or first)])
        assert reference.text.strip() in on_pages
    assert source.summary.files[0].pages == len(pages)


def test_the_same_ids_come_back_on_every_call(make_pdf, tokenizer):
    source = Pdf(path=make_pdf("book.pdf", paged(prose(3000))))
    for first, second in zip(source.load(tokenizer), source.load(tokenizer), strict=True):
        np.testing.assert_array_equal(first.token_ids, second.token_ids)
        np.testing.assert_array_equal(first.continuation, second.continuation)


def test_sha256_is_that_of_the_file(make_pdf, tokenizer):
    import hashlib

    file = make_pdf("book.pdf", paged(prose(2000)))
    assert Pdf(path=file).load(tokenizer)[0].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_several_files_share_the_windows_in_sorted_order(make_pdf, tmp_path, tokenizer):
    for name in ("b.pdf", "a.pdf", "deep/c.pdf"):
        make_pdf(name, paged(prose(900, name[:1])))
    source = Pdf(path=[f"{tmp_path}/deep/*.pdf", f"{tmp_path}/*.pdf", f"{tmp_path}/a.pdf"], references=3)
    references = source.load(tokenizer)
    assert [reference.source for reference in references] == ["a.pdf", "b.pdf", "deep/c.pdf"]
    printed = describe(references, source.summary)
    assert "3 files found" in printed
    assert f"{source.summary.total_tokens:,} source tokens in all" in printed


def test_relative_paths_and_deep_globs_begin_where_the_program_was_started(
    make_pdf, tmp_path, tokenizer, monkeypatch
):
    make_pdf("papers/2024/x.pdf", paged(prose(2000)))
    monkeypatch.chdir(tmp_path)
    assert Pdf(path="papers/**/*.pdf").load(tokenizer)[0].source == "x.pdf"
    assert Pdf(path="papers/2024/x.pdf").load(tokenizer)[0].source == "x.pdf"


def test_a_file_whose_name_looks_like_a_glob_is_found(make_pdf, tokenizer):
    file = make_pdf("paper [v2].pdf", paged(prose(2000)))
    assert Pdf(path=str(file)).load(tokenizer)[0].source == "paper [v2].pdf"


def test_a_password_stops_the_run(make_pdf, tokenizer):
    file = make_pdf("secret.pdf", paged(prose(2000)), password="swordfish")
    with pytest.raises(QdxError, match=r"secret\.pdf: encrypted.*without one.*qpdf --decrypt"):
        Pdf(path=file).load(tokenizer)


def test_an_empty_password_is_opened_as_every_viewer_does(make_pdf, tokenizer):
    file = make_pdf("permissions.pdf", paged(prose(2000)), password="")
    assert b"/Encrypt" in file.read_bytes()
    assert len(Pdf(path=file).load(tokenizer)) == 4


def test_a_scan_stops_the_run(make_pdf, tokenizer):
    file = make_pdf("scan.pdf", [[], [], []], picture=True)
    with pytest.raises(QdxError, match=r"scan\.pdf: no text on its 3 pages, a scan.*ocrmypdf"):
        Pdf(path=file).load(tokenizer)


def test_a_scan_among_good_files_stops_the_run(make_pdf, tmp_path, tokenizer):
    make_pdf("a.pdf", paged(prose(4000)))
    make_pdf("b.pdf", [[]], picture=True)
    with pytest.raises(QdxError, match=r"b\.pdf: no text"):
        Pdf(path=f"{tmp_path}/*.pdf").load(tokenizer)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
def test_a_truncated_file_stops_the_run(tmp_path, tokenizer, kept):
    data = pdf_bytes(paged(prose(3000)))
    file = tmp_path / "half.pdf"
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(QdxError, match=r"half\.pdf: broken PDF.*download or export it again"):
        Pdf(path=file).load(tokenizer)


def test_a_file_that_is_no_pdf_stops_the_run(tmp_path, tokenizer):
    file = tmp_path / "page.pdf"
    file.write_text("<html>Not found</html>")
    with pytest.raises(QdxError, match=r"page\.pdf: not a PDF, it begins with b'<html>No'.*prompts=text"):
        Pdf(path=file).load(tokenizer)


def test_an_empty_file_stops_the_run(tmp_path, tokenizer):
    file = tmp_path / "nothing.pdf"
    file.touch()
    with pytest.raises(QdxError, match=r"nothing\.pdf: empty, 0 bytes"):
        Pdf(path=file).load(tokenizer)


def test_a_missing_file_stops_the_run(tmp_path, tokenizer):
    with pytest.raises(QdxError, match=r"gone\.pdf: no such file.*check prompts\.path"):
        Pdf(path=tmp_path / "gone.pdf").load(tokenizer)


def test_a_glob_without_match_stops_the_run(tmp_path, tokenizer):
    with pytest.raises(QdxError, match=r"\*\.pdf: no file matches.*check prompts\.path"):
        Pdf(path=f"{tmp_path}/*.pdf").load(tokenizer)


def test_a_folder_stops_the_run(tmp_path, tokenizer):
    with pytest.raises(QdxError, match=rf"is a folder.*write {re.escape(str(tmp_path))}/\*\.pdf"):
        Pdf(path=tmp_path).load(tokenizer)


@pytest.mark.parametrize("path", ["", []])
def test_an_empty_path_stops_the_run(path, tokenizer):
    with pytest.raises(QdxError, match=r"prompts\.path is empty"):
        Pdf(path=path).load(tokenizer)


def test_a_short_file_stops_the_run(make_pdf, tokenizer):
    file = make_pdf("short.pdf", paged(prose(100)))
    with pytest.raises(QdxError, match=r"short\.pdf: too short, \d+ tokens, but 4 references of 256 tokens"):
        Pdf(path=file).load(tokenizer)


@pytest.mark.parametrize(
    ("option", "value"),
    [("references", 0), ("references", -1), ("snippet_tokens", 0), ("continuation_tokens", -1)],
)
def test_impossible_counts_stop_before_any_file_is_read(option, value):
    with pytest.raises(QdxError, match=rf"prompts\.{option} is {value}, must be at least"):
        Pdf(**{option: value})


LONG = "a line that goes on until the margin of the page is reached, and"


def test_split_words_are_made_whole_and_true_hyphens_stay():
    lines = ["the quantiza-", "tion of FP-", "16 weights"]
    assert tidy([lines])[0] == "the quantization of FP- 16 weights"


def test_a_short_line_that_ends_a_sentence_ends_its_paragraph():
    assert tidy([[LONG, "no further.", "then this", "goes on."]])[0] == (
        f"{LONG} no further.\n\nthen this goes on."
    )


def test_a_heading_is_apart_from_the_text_around_it():
    lines = [f"{LONG} no further.", "A heading", f"{LONG.capitalize()} so", "ends."]
    assert tidy([lines])[0] == f"{lines[0]}\n\nA heading\n\n{lines[2]} ends."


def test_sentences_and_words_run_over_the_page_and_empty_pages_have_no_text():
    text, starts = tidy([[], [f"{LONG} the quanti-"], [f"zation of {LONG}"], [], ["this."], []])
    assert text == f"{LONG} the quantization of {LONG} this."
    assert starts == (0, 0, len(f"{LONG} the quanti"), text.index("this."), text.index("this."), len(text))


def test_running_heads_and_page_numbers_are_dropped():
    pages = [["A Handbook", f"body of page {page}", "more", f"Chapter 1 · {page}"] for page in range(1, 6)]
    assert drop_running_lines(pages) == [[f"body of page {page}", "more"] for page in range(1, 6)]
    assert drop_running_lines([["1", "text", "2"]]) == [["text"]]
    few = [["same", "a"], ["same", "b"], ["same", "c"]]
    assert drop_running_lines(few) == few


def test_ligatures_are_spelt_out_and_a_sentence_runs_over_the_page(make_pdf):
    document = read_pdf("x.pdf", make_pdf("x.pdf", [["The soft\u00adware goes"], ["on here."]]))
    assert document.text == "The software goes on here."
    assert document.text[document.page_starts[1] :] == "on here."


def test_aes_with_an_empty_password_is_read_and_a_real_password_is_refused(tmp_path):
    """Every viewer opens such a file: the encryption carries its permissions only."""
    import io

    from pypdf import PdfReader, PdfWriter

    for user, opens in (("", True), ("secret", False)):
        for algorithm in ("AES-128", "AES-256"):
            writer = PdfWriter(
                clone_from=PdfReader(io.BytesIO(pdf_bytes([["Every viewer opens this page."]])))
            )
            writer.encrypt(user, "owner", algorithm=algorithm)
            file = tmp_path / "locked.pdf"
            writer.write(file)
            if opens:
                assert read_pdf("locked.pdf", file).text == "Every viewer opens this page."
                continue
            with pytest.raises(QdxError, match="opening it needs a password"):
                read_pdf("locked.pdf", file)


def test_aes_without_its_package_names_the_package(tmp_path, monkeypatch):
    import io

    from pypdf import PdfReader, PdfWriter, errors

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_bytes([["A page."]]))))
    writer.encrypt("", "owner", algorithm="AES-256")
    writer.write(tmp_path / "locked.pdf")

    def lacking(*_, **__):
        raise errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr("pypdf._encryption.Encryption.verify", lacking)
    with pytest.raises(
        QdxError, match=r"AES, .*\(cryptography>=3\.1 is required.*: pip install cryptography"
    ):
        read_pdf("locked.pdf", tmp_path / "locked.pdf")


def drawn_pdf(text: str, glyphs: list[str], program: bytes | None = None) -> bytes:
    """A page of codes 1, 2, … whose font names its glyphs in the file, or only in its font program."""
    import io

    from pypdf import PdfWriter
    from pypdf.generic import (
        ArrayObject,
        DecodedStreamObject,
        DictionaryObject,
        NameObject,
        NumberObject,
        TextStringObject,
    )

    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/ABCDEF+Test"),
            NameObject("/FirstChar"): NumberObject(1),
            NameObject("/LastChar"): NumberObject(len(glyphs)),
            NameObject("/Widths"): ArrayObject([NumberObject(500)] * len(glyphs)),
        }
    )
    descriptor = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/FontDescriptor"),
            NameObject("/FontName"): NameObject("/ABCDEF+Test"),
            NameObject("/Flags"): NumberObject(4),
            NameObject("/CharSet"): TextStringObject("".join(f"/{name}" for name in glyphs)),
        }
    )
    if program is not None:
        stream = DecodedStreamObject()
        stream.set_data(program)
        stream[NameObject("/Subtype")] = NameObject("/Type1C")
        descriptor[NameObject("/FontFile3")] = writer._add_object(stream)
    else:
        differences = ArrayObject([NumberObject(1), *(NameObject(f"/{name}") for name in glyphs)])
        font[NameObject("/Encoding")] = DictionaryObject(
            {NameObject("/Type"): NameObject("/Encoding"), NameObject("/Differences"): differences}
        )
    font[NameObject("/FontDescriptor")] = writer._add_object(descriptor)
    page = writer.add_blank_page(595, 842)
    page[NameObject("/Resources")] = DictionaryObject(
        {NameObject("/Font"): DictionaryObject({NameObject("/F1"): writer._add_object(font)})}
    )
    codes = "".join(f"{glyphs.index(name) + 1:02x}" for name in text.split())
    content = DecodedStreamObject()
    content.set_data(f"BT /F1 10 Tf 50 700 Td <{codes}> Tj ET".encode())
    page[NameObject("/Contents")] = writer._add_object(content)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def compact_font(glyphs: list[str]) -> bytes:
    """A Type1C font program whose own encoding gives code i to glyph i, as pdfTeX embeds them."""
    import io

    from fontTools.cffLib import CFFFontSet
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.t2CharStringPen import T2CharStringPen

    builder = FontBuilder(1000, isTTF=False)
    builder.setupGlyphOrder([".notdef", *glyphs])
    pen = T2CharStringPen(500, None)
    pen.moveTo((0, 0))
    pen.lineTo((400, 0))
    pen.lineTo((400, 400))
    pen.closePath()
    shapes = {name: pen.getCharString() for name in [".notdef", *glyphs]}
    builder.setupCFF("Test", {"FullName": "Test"}, shapes, {})
    fonts: CFFFontSet = builder.font["CFF "].cff
    top = fonts[0]
    top.Encoding = [".notdef", *glyphs] + [".notdef"] * (255 - len(glyphs))
    buffer = io.BytesIO()
    fonts.compile(buffer, builder.font)
    return buffer.getvalue()


def test_ligatures_of_a_compact_font_are_read_from_its_program(tmp_path):
    glyphs = ["f", "i", "e", "l", "d", "fi", "ffi", "c", "n", "t", "space", "a"]
    file = tmp_path / "tex.pdf"
    written = "a space fi e l d space e ffi c i e n t"
    file.write_bytes(drawn_pdf(written, glyphs, compact_font(glyphs)))
    assert read_pdf("tex.pdf", file).text == "a field efficient"


def test_text_that_is_glyph_names_is_refused_by_its_share(tmp_path):
    glyphs = [f"g{number}" for number in range(100, 130)]
    file = tmp_path / "names.pdf"
    file.write_bytes(drawn_pdf(" ".join(glyphs), glyphs))
    with pytest.raises(
        QdxError, match=r"100% of its text are glyph names .* '/g100/g101.*ocrmypdf --force-ocr"
    ):
        read_pdf("names.pdf", file)


def test_private_signs_are_a_note_where_they_are_few_and_refused_where_they_are_many(make_pdf, tokenizer):
    from qdx.prompts.pdf import unreadable

    assert unreadable("See /usr/lib/python3 and 1/2, a/b/c, /g1 alone.") == (0, "")
    assert unreadable("\ufffd\ufffdab") == (0.5, "\ufffd\ufffd")
    assert unreadable("(cid:12)(cid:3)")[0] == unreadable("/G21/G35/g7")[0] == unreadable("\ue001")[0] == 1


def test_warnings_of_the_library_are_one_line_of_the_description(make_pdf, tokenizer, monkeypatch, capsys):
    import logging

    from pypdf import PageObject

    plain = PageObject.extract_text

    def noisy(self, *arguments, **options):
        logging.getLogger("pypdf._cmap").warning("odd font\n\x1b[31m%s", "x" * 5000)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(PageObject, "extract_text", noisy)
    source = Pdf(path=make_pdf("book.pdf", paged(prose(3000))), references=1)
    printed = describe(source.load(tokenizer), source.summary)
    (line,) = [line for line in printed.splitlines() if "NOTE" in line]
    assert "book.pdf: pypdf warned" in line and len(line) < 250 and "\x1b" not in line
    assert capsys.readouterr().err == ""


def drawn(font: dict[str, object], text: bytes) -> bytes:
    """Return a PDF of one page that draws a string in one font."""
    import io

    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    page = writer.add_blank_page(595, 842)
    made = writer._add_object(pdf_object(font))
    page[NameObject("/Resources")] = DictionaryObject(
        {NameObject("/Font"): DictionaryObject({NameObject("/F1"): made})}
    )
    content = DecodedStreamObject()
    content.set_data(b"BT /F1 10 Tf 50 800 Td " + text + b" Tj ET")
    page[NameObject("/Contents")] = writer._add_object(content)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def pdf_object(value: object) -> Any:
    from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject, TextStringObject

    match value:
        case dict():
            return DictionaryObject({NameObject(f"/{k}"): pdf_object(one) for k, one in value.items()})
        case list():
            return ArrayObject([pdf_object(one) for one in value])
        case int():
            return NumberObject(value)
        case str():
            return NameObject(value) if value.startswith("/") else TextStringObject(value)
    raise TypeError(value)


def named(names: list[str]) -> dict[str, object]:
    """A simple font whose letters A, B … are glyphs of these names."""
    differences = {"Type": "/Encoding", "Differences": [65, *(f"/{name}" for name in names)]}
    return {"Type": "/Font", "Subtype": "/Type1", "BaseFont": "/Helvetica", "Encoding": differences}


def numbered(ordering: str, encoding: str = "/Identity-H") -> dict[str, object]:
    """A composite font without a table of characters."""
    info = {"Registry": "Adobe", "Ordering": ordering, "Supplement": 0}
    inner = {"Type": "/Font", "Subtype": "/CIDFontType2", "BaseFont": "/A", "CIDSystemInfo": info}
    outer = {"Type": "/Font", "Subtype": "/Type0", "BaseFont": "/A", "Encoding": encoding}
    return {**outer, "DescendantFonts": [inner]}


@pytest.mark.parametrize(
    ("font", "text", "message"),
    [
        (numbered("Identity"), b"<002B0048004F004F0052000300440045>", r"numbers of glyphs .* \(ToUnicode\)"),
        (named([f"cid_{i}" for i in range(26)]), b"(HELLO)", "glyph names"),
        (named([f"SM59{i:04d}" for i in range(26)]), b"(HELLO)", "glyph names"),
        (named([f"g{i}.alt" for i in range(26)]), b"(HELLO)", "glyph names"),
        (named([".notdef"] * 26), b"(HELLO WORLD)", "glyph names or private signs"),
    ],
)
def test_text_that_no_font_gives_characters_for_is_refused(
    tmp_path: Path, font: dict[str, object], text: bytes, message: str
) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(drawn(font, text))
    with pytest.raises(QdxError, match=message):
        read_pdf("a.pdf", file)


@pytest.mark.parametrize(
    ("font", "text", "expected"),
    [
        (named(["f_i", "f_f_i"]), b"(AB)", "fiffi"),
        (named([f"{chr(65 + i)}.sc" for i in range(26)]), b"(HELLO)", "HELLO"),
        (numbered("Japan1", "/UniJIS-UCS2-H"), f"<{'日本'.encode('utf-16-be').hex()}>".encode(), "日本"),
    ],
)
def test_glyphs_whose_names_or_numbers_say_their_characters_are_read(
    tmp_path: Path, font: dict[str, object], text: bytes, expected: str
) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(drawn(font, text))
    assert read_pdf("a.pdf", file).text == expected


def test_pages_of_one_line_each_are_no_running_heads(make_pdf: Callable[..., Path]) -> None:
    pages = [[f"Sentence {number} stands alone on its page."] for number in range(5)]
    assert "Sentence 4 stands alone" in read_pdf("a.pdf", make_pdf("a.pdf", pages)).text
