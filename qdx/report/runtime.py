"""The JavaScript that draws the charts of a page, from vl-convert, kept between reports."""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import cache
from pathlib import Path

from qdx.document import vega
from qdx.models.cache import cache_folder


@cache
def load() -> str:
    """Return it as a script.

    vl-convert takes 1.5 s of a processor to put it together, so it is kept in the cache folder, under its
    versions.

    Raises
    ------
    QdxError
        Without vl-convert.
    """
    kept = cache_folder() / "charts" / f"{vega.versions()}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return kept.read_text(encoding="utf-8")
    script = vega.runtime()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time and nothing else
        _keep(kept, script)
    return script


def _keep(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
