"""From a model's name to a checkpoint folder, and from a folder to weights, in the awq and gptq layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdx.models.cache import cache_folder
from qdx.models.checkpoint import (
    Checkpoint,
    context_length,
    eos_token_ids,
    hidden_size,
    resolve,
    switching_length,
    vocab_size,
)
from qdx.models.contents import check_contents
from qdx.models.identity import (
    Hashed,
    hash_weights,
    load_tokenizer,
    remembered_weights,
    tokenizer_sha256,
    weights_sha256,
)

if TYPE_CHECKING:
    from qdx.models.reading import dense_state, iter_quantized

__all__ = [
    "Checkpoint",
    "Hashed",
    "cache_folder",
    "check_contents",
    "context_length",
    "dense_state",
    "eos_token_ids",
    "hash_weights",
    "hidden_size",
    "iter_quantized",
    "load_tokenizer",
    "remembered_weights",
    "resolve",
    "switching_length",
    "tokenizer_sha256",
    "vocab_size",
    "weights_sha256",
]


def __getattr__(name: str) -> Any:
    if name in ("dense_state", "iter_quantized"):  # these import torch
        from qdx.models import reading

        return getattr(reading, name)
    raise AttributeError(f"module 'qdx.models' has no attribute {name!r}")
