"""The language reference that Python carries with itself: prose on every machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from qdx.plugins import register
from qdx.prompts._windows import Document, WindowSource, sha256


@register("prompts", "pydoc")
@dataclass(kw_only=True)
class Pydoc(WindowSource):
    """Windows cut out of the standard library's ``pydoc_data.topics``, some 100,000 tokens of English prose.

    Its text differs between Python versions; the references' sha256 tells them apart.
    """

    def documents(self) -> list[Document]:
        """Return all topics as one document: most topics alone are shorter than a long snippet."""
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name].strip() for name in sorted(topics))
        name = f"pydoc_data.topics of Python {platform.python_version()}"
        return [Document(name, text, sha256(text.encode()))]
