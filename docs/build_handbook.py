"""Build the packaged handbook, qdx/prompts/handbook.pdf, from docs/handbook/*.md.

    python docs/build_handbook.py            # needs reportlab (extra "dev")
    python docs/build_handbook.py --check    # exit 1 when the packaged file is not what this builds

The same sources give the same bytes: reportlab's invariant mode leaves dates out, and only the fonts that
every PDF reader has are used, so that nothing of this machine gets into the file.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "handbook"
TARGET = HERE.parent / "qdx" / "prompts" / "handbook.pdf"
TITLE = "The qdx handbook"
SUBTITLE = "Many kernels, one model: recording what each of them computes, and telling them apart"

INK, SOFT, CODE = "#1b1f24", "#5b6470", "#f3f4f6"


def blocks(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of a chapter: kind is h1, h2, p, li or code.

    The Markdown in use is small: headings, paragraphs, bullets and fenced code, with bold and italics.
    """
    for piece in re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL):
        if piece.startswith("```"):
            yield "code", piece.removeprefix("```").removesuffix("```").strip("\n")
            continue
        for paragraph in re.split(r"\n\s*\n", piece.strip()):
            if not paragraph:
                continue
            if paragraph.startswith("#"):
                marks, _, text = paragraph.partition(" ")
                yield f"h{len(marks)}", text
            elif paragraph.startswith("- "):
                for item in re.split(r"^- ", paragraph, flags=re.MULTILINE)[1:]:
                    yield "li", " ".join(item.split())
            else:
                yield "p", " ".join(paragraph.split())


def markup(text: str) -> str:
    """Turn a paragraph's Markdown into reportlab's mark-up."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"`([^`]+)`", r'<font face="Courier" size="9">\1</font>', text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\*([^*]+)\*", r"<i>\1</i>", text)


def chapters() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (title, blocks) of every chapter, refusing characters that the standard fonts lack."""
    found = []
    for file in sorted(SOURCES.glob("*.md")):
        text = file.read_text(encoding="utf-8")
        try:
            text.encode("cp1252")
        except UnicodeEncodeError as error:
            raise SystemExit(
                f"{file}: {text[error.start]!r} is not in the standard fonts: write it in words"
            ) from None
        content = list(blocks(text))
        if not content or content[0][0] != "h1":
            raise SystemExit(f"{file}: must begin with a '# ' heading")
        found += [(content[0][1], content[1:])]
    return found


def styles() -> dict[str, Any]:
    """Return the paragraph styles by block kind."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.styles import ParagraphStyle

    ink, soft = HexColor(INK), HexColor(SOFT)
    body = ParagraphStyle("p", fontName="Times-Roman", fontSize=11, leading=15.5, textColor=ink, spaceAfter=8)
    sans = {"fontName": "Helvetica-Bold", "textColor": ink, "keepWithNext": 1}
    return {
        "p": body,
        "li": ParagraphStyle("li", parent=body, leftIndent=16, bulletIndent=4, spaceAfter=4),
        "h1": ParagraphStyle("h1", fontSize=21, leading=26, spaceAfter=16, **sans),
        "h2": ParagraphStyle("h2", fontSize=13, leading=17, spaceBefore=12, spaceAfter=5, **sans),
        "code": ParagraphStyle(
            "code",
            fontName="Courier",
            fontSize=9,
            leading=12.5,
            textColor=ink,
            backColor=HexColor(CODE),
            borderPadding=(6, 8, 6, 8),
            leftIndent=8,
            rightIndent=8,
            spaceBefore=8,
            spaceAfter=16,
        ),
        "title": ParagraphStyle("title", fontSize=32, leading=38, spaceBefore=120, spaceAfter=12, **sans),
        "subtitle": ParagraphStyle(
            "subtitle", parent=body, fontSize=14, leading=19, textColor=soft, spaceAfter=40
        ),
        "entry": ParagraphStyle("entry", parent=body, leading=14, spaceAfter=3),
    }


def build() -> bytes:
    """Return the PDF."""
    import reportlab.rl_config

    reportlab.rl_config.invariant = 1
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import PageBreak, Paragraph, Preformatted, SimpleDocTemplate, Spacer

    class Handbook(SimpleDocTemplate):
        """Adds bookmarks as headings are placed."""

        def afterFlowable(self, flowable: Any) -> None:
            level = {"h1": 0, "h2": 1}.get(getattr(getattr(flowable, "style", None), "name", ""))
            if level is not None:
                key = f"{self.page}-{flowable.getPlainText()}"
                self.canv.bookmarkPage(key)
                self.canv.addOutlineEntry(flowable.getPlainText(), key, level, closed=level == 0)

    style = styles()
    parts = chapters()
    story: list[Any] = [Paragraph(TITLE, style["title"]), Paragraph(SUBTITLE, style["subtitle"])]
    story += [
        Paragraph(f'<link href="#chapter{number}">{number}. {markup(title)}</link>', style["entry"])
        for number, (title, _) in enumerate(parts, start=1)
    ]
    for number, (title, content) in enumerate(parts, start=1):
        story += [PageBreak(), Paragraph(f'<a name="chapter{number}"/>{markup(title)}', style["h1"])]
        for kind, text in content:
            if kind == "code":
                story += [Preformatted(text, style["code"])]
            elif kind == "li":
                story += [Paragraph(markup(text), style["li"], bulletText="•")]
            else:
                story += [Paragraph(markup(text), style[kind])]
        story += [Spacer(0, 4)]

    buffer = io.BytesIO()
    document = Handbook(
        buffer,
        pagesize=A4,
        leftMargin=30 * mm,
        rightMargin=30 * mm,
        topMargin=24 * mm,
        bottomMargin=26 * mm,
        title=TITLE,
        author="The qdx developers",
        subject=SUBTITLE,
        lang="en",
    )
    document.build(story, canvasmaker=_canvas())
    return buffer.getvalue()


def _canvas() -> Any:
    """Return a canvas that writes the foot after a page's text, so that it is also read after it."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.pdfgen.canvas import Canvas

    class FootCanvas(Canvas):
        def showPage(self) -> None:
            if self.getPageNumber() > 1:
                self.setFont("Helvetica", 8.5)
                self.setFillColor(HexColor(SOFT))
                self.drawCentredString(A4[0] / 2, 14 * mm, f"{TITLE}  ·  {self.getPageNumber()}")
            super().showPage()

    return FootCanvas


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description="Build the packaged handbook from docs/handbook/*.md.")
    parser.add_argument(
        "--check", action="store_true", help="compare with the packaged file and write nothing"
    )
    check = parser.parse_args().check
    data = build()
    if check:
        same = TARGET.exists() and TARGET.read_bytes() == data
        print(f"{TARGET.name}: {'up to date' if same else 'not what docs/build_handbook.py builds: run it'}")
        return 0 if same else 1
    TARGET.write_bytes(data)
    print(f"{TARGET}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
