"""Load a checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdx.errors import QdxError


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a checkpoint folder; nothing is fetched.

    Raises
    ------
    QdxError
        When the folder holds none that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of several libraries; the one in Rust raises bare Exceptions
        raise QdxError(
            f"no tokenizer in {path} ({_first_line(error)}): the folder needs a tokenizer.json"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
