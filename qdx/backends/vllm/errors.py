"""Turn what the engine raises into one line that says what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from qdx.errors import QdxError


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what the engine raises into one line that says what to change."""
    try:
        yield
    except QdxError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise QdxError(f"{doing}: {said[:600]}{advice(error)}") from error


@contextlib.contextmanager
def out_of_memory_explained(doing: str) -> Iterator[None]:
    """Do the same to a GPU that is full, and to nothing else: a broken contract keeps its traceback."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        with explained(doing):
            raise error


def advice(error: BaseException) -> str:
    """Return what to change after an error of the engine, with a leading colon, or an empty string."""
    text = f"{type(error).__name__} {error}".lower()
    for signs, remedy in (
        (
            ("no available memory", "kv cache is needed"),
            "raise backend.kv_cache_memory_bytes where it is set, else backend.gpu_memory_utilization; "
            "or lower backend.max_model_len or backend.max_num_batched_tokens, or use a larger GPU",
        ),
        (
            ("out of memory", "outofmemory", "free memory on device"),
            "lower backend.max_model_len, backend.gpu_memory_utilization or capture.prefill_positions, "
            "or use a larger GPU",
        ),
        (
            ("for fp8 input, output must have dtype bf16",),
            "an fp8 KV cache needs model.dtype=bfloat16 in this attention backend: set that, or "
            "backend.kv_cache_dtype=auto, or another backend.attention_backend",
        ),
        (("is not supported for quantization", "dtype"), "set model.dtype=float16 or choose another kernel"),
        (
            ("no cuda", "cuda driver", "found no nvidia", "failed to infer device", "cuda is not available"),
            "vLLM needs a GPU here: use backend=transformers",
        ),
        (
            ("failed to find a kernel", "group size", "group_size", "not divisible", "not aligned"),
            "choose another kernel, or quant.kernel=any",
        ),
        (
            ("enginedead", "engine core", "worker died"),
            "the engine ended by itself; its own messages are above",
        ),
    ):
        if any(sign in text for sign in signs):
            return f": {remedy}"
    return ""
