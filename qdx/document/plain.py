"""Text from anywhere, in which nothing acts on a terminal, a page or a drawing."""

from __future__ import annotations

import html
import re

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def cleaned(text: object) -> str:
    """Return the text with U+FFFD in place of every control character."""
    return CONTROL.sub("\ufffd", str(text))


def escape(text: object) -> str:
    """Make text safe as content or attribute of HTML; control characters become U+FFFD."""
    return html.escape(cleaned(text), quote=True)
