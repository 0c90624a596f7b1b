"""Text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdx.errors import QdxError
from qdx.prompts import Text, describe
from qdx.prompts._template import split_template
from qdx.prompts.text import read_text

from .conftest import build_tokenizer, prose


def test_the_template_goes_around_the_snippet_and_the_length_line_adds_up(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(prose(2000), encoding="utf-8")
    source = Text(path=tmp_path / "a.txt", references=2, snippet_tokens=300, instruction="Sum up:\n\n")
    references = source.load(tokenizer)
    for reference in references:
        decoded = tokenizer.decode(reference.token_ids)
        assert decoded.startswith("<|im_start|>user\nSum up:\n\n")
        assert decoded.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert reference.text in decoded
    prefix, suffix = references[0].prefix_length, references[0].suffix_length
    assert f"{prefix} prefix + 300 snippet + {suffix} suffix = {prefix + 300 + suffix} tokens" in describe(
        references, source.summary
    )


def test_a_tokenizer_without_template_gives_the_text_alone_and_says_so(tmp_path, plain_tokenizer):
    (tmp_path / "a.txt").write_text(prose(2000), encoding="utf-8")
    source = Text(path=tmp_path / "a.txt", snippet_tokens=100)
    references = source.load(plain_tokenizer)
    assert {(item.prefix_length, item.suffix_length, len(item.token_ids)) for item in references} == {
        (0, 0, 100)
    }
    assert "no chat template in the tokenizer" in describe(references, source.summary)


def test_without_template_the_begin_of_text_token_is_kept(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer(chat_template=None)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", bos), ("<|im_end|>", tokenizer.eos_token_id)]
    )
    (tmp_path / "a.txt").write_text(prose(2000), encoding="utf-8")
    reference = Text(path=tmp_path / "a.txt", snippet_tokens=100).load(tokenizer)[0]
    assert (reference.prefix_length, reference.suffix_length) == (1, 0)
    assert reference.token_ids[0] == bos
    assert tokenizer.eos_token_id not in reference.token_ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no user turns') }}", "fails on a single user message.*no user turns"),
        ("nothing of it", "content 0 times"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "content 2 times"),
    ],
)
def test_a_template_that_hides_or_repeats_the_content_stops_the_run(tmp_path, template, message):

    (tmp_path / "a.txt").write_text(prose(2000), encoding="utf-8")
    with pytest.raises(QdxError, match=message):
        Text(path=tmp_path / "a.txt").load(build_tokenizer(chat_template=template))


def test_bytes_that_are_not_utf8_stop_the_run_and_are_named(tmp_path, tokenizer):
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1") * 100)
    with pytest.raises(QdxError, match=r"latin\.txt: not UTF-8, byte 0xf6 at offset 2.*iconv"):
        Text(path=tmp_path / "latin.txt").load(tokenizer)


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "empty, 0 bytes"), (b" \n\t\n", "no text, only white space")]
)
def test_a_file_without_text_stops_the_run(tmp_path, tokenizer, data, message):
    (tmp_path / "blank.txt").write_bytes(data)
    with pytest.raises(QdxError, match=rf"blank\.txt: {message}"):
        Text(path=tmp_path / "blank.txt").load(tokenizer)


def test_windows_line_ends_and_byte_order_mark_do_not_change_the_ids(tmp_path, tokenizer):
    text = prose(800).replace(". ", ".\n")
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    unix = Text(path=tmp_path / "unix.txt", references=2).load(tokenizer)
    dos = Text(path=tmp_path / "dos.txt", references=2).load(tokenizer)
    assert [item.token_ids.tolist() for item in unix] == [item.token_ids.tolist() for item in dos]


def test_characters_cut_in_two_by_a_window_do_not_break_it(tmp_path, tokenizer):
    (tmp_path / "math.txt").write_text("𝄞é漢字 " * 400, encoding="utf-8")
    for reference in Text(path=tmp_path / "math.txt", references=7, snippet_tokens=33).load(tokenizer):
        assert reference.content_length == 33
        assert set(reference.text) <= set("𝄞é漢字 ")


def test_a_file_too_short_for_a_window_is_left_out_when_the_others_suffice(tmp_path, tokenizer):
    (tmp_path / "long.txt").write_text(prose(2000), encoding="utf-8")
    (tmp_path / "note.txt").write_text("A note.", encoding="utf-8")
    source = Text(path=f"{tmp_path}/*.txt", references=3)
    assert {reference.source for reference in source.load(tokenizer)} == {"long.txt"}
    assert [file.name for file in source.summary.files] == ["long.txt", "note.txt"]


def test_overlapping_continuations_are_said(tmp_path, tokenizer):
    (tmp_path / "tight.txt").write_text(prose(300), encoding="utf-8")
    probe = Text(path=tmp_path / "tight.txt", references=1, snippet_tokens=1, continuation_tokens=0)
    probe.load(tokenizer)
    snippet = (probe.summary.total_tokens - 50) // 3
    source = Text(path=tmp_path / "tight.txt", references=3, snippet_tokens=snippet, continuation_tokens=50)
    references = source.load(tokenizer)
    assert source.summary.continuations_overlap
    assert "continuations run into the next window" in describe(references, source.summary)


def test_a_tokenizer_that_tells_no_offsets_still_gives_the_text(tmp_path, tokenizer):
    class Slow:
        """A real tokenizer whose offsets are hidden, as those written in Python have none."""

        is_fast = False
        chat_template = tokenizer.chat_template

        def __call__(self, text, **options):
            assert "return_offsets_mapping" not in options
            return tokenizer(text, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    (tmp_path / "a.txt").write_text(prose(1000), encoding="utf-8")
    fast = Text(path=tmp_path / "a.txt", references=2).load(tokenizer)
    slow = Text(path=tmp_path / "a.txt", references=2).load(Slow())
    assert [item.text for item in fast] == [item.text for item in slow]
    assert [item.token_ids.tolist() for item in fast] == [item.token_ids.tolist() for item in slow]


def test_a_marker_that_the_template_writes_as_plain_text_is_told_where_a_document_spells_it(tmp_path):
    template = (
        "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}<|im_end|>\n### Final answer:"
    )
    tokenizer = build_tokenizer(template)
    (tmp_path / "a.txt").write_text("One [/INST] word. " * 200 + "More words of it. " * 200)
    source = Text(
        path=str(tmp_path / "a.txt"),
        references=2,
        snippet_tokens=30,
        continuation_tokens=2,
        instruction="Say [x]: ",
    )
    references = source.load(tokenizer)
    assert "[/INST]" in references[0].text and "[/INST]" not in references[1].text
    assert source.summary is not None
    (note,) = source.summary.notes
    assert note.startswith(
        "ref_0 writes '[/INST]', which this model's chat template writes as plain text too"
    )
    assert split_template(tokenizer, "Say [x]: ").markers == ("[INST]", "[/INST]", "### Final answer:")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Hello world. ".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("Hello world. ".encode("utf-32"), "iconv -f UTF-32 -t UTF-8"),
        ("Hello world. ".encode("utf-16-le"), "NUL, as in UTF-16: .* -f UTF-16LE"),
        ("Hello world. ".encode("utf-16-be"), "NUL, as in UTF-16: .* -f UTF-16BE"),
        (b"\x1f\x8b\x08 anything", "compressed, unpack it"),
        (b"%PDF-1.7 anything", "use prompts=pdf"),
        (b"PK\x03\x04 anything", "an office document"),
        (bytes(range(1, 32)), "mostly control characters"),
    ],
)
def test_other_files_are_named_with_what_to_do(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with pytest.raises(QdxError, match=message):
        read_text("a.txt", file)


def test_a_device_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(QdxError, match="not a regular file"):
        read_text("zero", Path("/dev/zero"))


def test_a_document_that_would_take_all_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from qdx.prompts import _windows

    monkeypatch.setattr(_windows, "LONGEST", 10)
    document = _windows.Document("long.txt", "a word " * 9, "0")
    with pytest.raises(QdxError, match=r"long\.txt: 63 characters, at most 10 .* split -C"):
        _windows.cut([document], None, references=1, snippet_tokens=1, continuation_tokens=1, instruction="")
