"""Records of other programs: files that these programs wrote, bad ones, many, and verdicts from them."""

from __future__ import annotations

from pathlib import Path

FILES = Path(__file__).parent / "files"
