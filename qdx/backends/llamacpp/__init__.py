"""``backend=llamacpp``: llama.cpp's own kernels on this machine's CPU, for GGUF files."""

from __future__ import annotations

from qdx.backends.llamacpp.backend import LlamacppBackend

__all__ = ["LlamacppBackend"]
