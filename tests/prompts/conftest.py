"""A small real tokenizer, and real PDF files: good, scanned, encrypted, broken."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(chat_template: str | None = CHATML) -> Any:
    """Return a byte-level BPE tokenizer trained on this machine's pydoc topics."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<|im_start|>", "<|im_end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([topics["assignment"], topics["class"]], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", bos_token="<s>")
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    return build_tokenizer(chat_template=None)


def pdf_bytes(pages: list[list[str]], password: str | None = None, picture: bool = False) -> bytes:
    """Return a PDF with these lines on its pages; `picture` draws a grey image on each as well."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject, NumberObject

    writer = PdfWriter()
    font = writer._add_object(
        DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
                NameObject("/Encoding"): NameObject("/WinAnsiEncoding"),
            }
        )
    )
    image = DecodedStreamObject()
    image.set_data(bytes(range(0, 256, 4)))
    for key, value in (("Width", 8), ("Height", 8), ("BitsPerComponent", 8)):
        image[NameObject(f"/{key}")] = NumberObject(value)
    image[NameObject("/Type")] = NameObject("/XObject")
    image[NameObject("/Subtype")] = NameObject("/Image")
    image[NameObject("/ColorSpace")] = NameObject("/DeviceGray")
    drawn = writer._add_object(image)
    for lines in pages:
        page = writer.add_blank_page(595, 842)
        page[NameObject("/Resources")] = DictionaryObject(
            {
                NameObject("/Font"): DictionaryObject({NameObject("/F1"): font}),
                NameObject("/XObject"): DictionaryObject({NameObject("/I1"): drawn}),
            }
        )
        body = b"q 400 0 0 400 50 200 cm /I1 Do Q\n" if picture else b""
        if lines:
            body += b"BT /F1 10 Tf 13 TL 50 800 Td\n"
            for line in lines:
                escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
                body += b"(" + escaped.encode("cp1252") + b") Tj T*\n"
            body += b"ET\n"
        content = DecodedStreamObject()
        content.set_data(body)
        page[NameObject("/Contents")] = writer._add_object(content)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


@pytest.fixture
def make_pdf(tmp_path: Path) -> Callable[..., Path]:
    """Return ``make_pdf(name, pages, password=None, picture=False)``, which writes a PDF under tmp_path."""

    def make(name: str, pages: list[list[str]], **options: Any) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pdf_bytes(pages, **options))
        return file

    return make


def prose(words: int, name: str = "w") -> str:
    """Return so many different words as sentences, so that every stretch of the text is recognisable."""
    return " ".join(f"{name}{index}{'.' if index % 12 == 11 else ''}" for index in range(words))


def paged(text: str, lines_per_page: int = 40) -> list[list[str]]:
    """Return a text's lines on pages."""
    lines = textwrap.wrap(text, 90)
    return [lines[start : start + lines_per_page] for start in range(0, len(lines), lines_per_page)]
