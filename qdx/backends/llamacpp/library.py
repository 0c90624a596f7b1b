"""llama.cpp's C interface (``llama.h``), as far as rows of logits need it.

The package xllamacpp is a wheel of llama.cpp with its server. From Python it offers the server alone, but its
extension exports all functions of ``llama.h``. Their structures change from build to build, so only the
versions are taken whose structures are written here, and what the library says of its own defaults is held
against them. (llama-cpp-python offers these functions to Python and has no wheel: its build took ten minutes
of a processor. llama-cpp-py-sync has wheels that need glibc 2.38, which many systems do not have.)
"""

from __future__ import annotations

import ctypes as c
import functools
import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qdx.errors import QdxError

PACKAGE = "xllamacpp"
BUILDS = {"2026.10.11549": "b11549"}  # version of the package → build of llama.cpp whose structures these are
LIBRARY = (".so", ".pyd", ".dylib")
INSTALL = "pip install 'qdx[gguf]'"


class ModelParams(c.Structure):
    """``struct llama_model_params``."""

    _fields_ = (
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
    )


class ContextParams(c.Structure):
    """``struct llama_context_params``."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("moe_cache_size", c.c_size_t),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    )


class Batch(c.Structure):
    """``struct llama_batch``."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.POINTER(c.c_float)),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
POINTER, TEXT, INT = c.c_void_p, c.c_char_p, c.c_int32
# name: (result, arguments)
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LOG, POINTER)),
    "llama_print_system_info": (TEXT, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (POINTER, (TEXT, ModelParams)),
    "llama_model_free": (None, (POINTER,)),
    "llama_model_get_vocab": (POINTER, (POINTER,)),
    "llama_model_n_embd": (INT, (POINTER,)),
    "llama_model_n_ctx_train": (INT, (POINTER,)),
    "llama_model_has_encoder": (c.c_bool, (POINTER,)),
    "llama_vocab_n_tokens": (INT, (POINTER,)),
    "llama_vocab_is_eog": (c.c_bool, (POINTER, INT)),
    "llama_init_from_model": (POINTER, (POINTER, ContextParams)),
    "llama_free": (None, (POINTER,)),
    "llama_get_memory": (POINTER, (POINTER,)),
    "llama_memory_clear": (None, (POINTER, c.c_bool)),
    "llama_memory_seq_rm": (c.c_bool, (POINTER, INT, INT, INT)),
    "llama_batch_init": (Batch, (INT, INT, INT)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (INT, (POINTER, Batch)),
    "llama_get_logits_ith": (c.POINTER(c.c_float), (POINTER, INT)),
    "llama_n_ubatch": (c.c_uint32, (POINTER,)),
    "llama_n_threads": (INT, (POINTER,)),
}
# This build's defaults, in places spread over each structure: read elsewhere they would be other numbers.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama_model_default_params": {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1,
                                   "use_extra_bufts": True, "no_alloc": False},
    "llama_context_default_params": {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1,
                                     "flash_attn_type": -1, "yarn_ext_factor": -1.0, "defrag_thold": -1.0,
                                     "type_k": 1, "type_v": 1, "embeddings": False, "offload_kqv": True,
                                     "no_perf": True, "n_samplers": 0, "ctx_other": None},
}  # fmt: skip


def version() -> str:
    """Return the installed version of the package.

    Raises
    ------
    QdxError
        When it is not installed, or its structures are not known here.
    """
    try:
        found = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise QdxError(f"backend=llamacpp needs {PACKAGE}, which is not installed: {INSTALL}") from None
    if found not in BUILDS:
        raise QdxError(
            f"backend=llamacpp: {PACKAGE} {found} is installed, and llama.cpp's structures are known here of "
            f"{', '.join(BUILDS)} alone: {INSTALL} takes that one"
        )
    return found


@functools.cache
def library() -> Any:
    """Return the loaded library with the types of its functions.

    Raises
    ------
    QdxError
        See `version`; or when the library's defaults are not those of the build that its version names.
    """
    found = version()
    loaded = c.CDLL(str(_extension()))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    for name, expected in DEFAULTS.items():
        stated = getattr(loaded, name)()
        values = {field: getattr(stated, field) for field in expected}
        if values != expected:
            raise QdxError(
                f"backend=llamacpp: {name} of {PACKAGE} {found} gives {values}, expected {expected}: it was "
                f"built otherwise than the package index's wheel: {INSTALL}"
            )
    loaded.llama_log_set(_listen, None)
    loaded.llama_backend_init()
    return loaded


def _extension() -> Path:
    """Return the file that holds the functions.

    It is not imported as a module of Python: Cython's modules of two kinds (this one is of the limited API)
    do not share a process.
    """
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [
        file
        for folder in folders
        for file in sorted(Path(folder).glob(f"{PACKAGE}.*"))
        if file.suffix in LIBRARY
    ]
    if not files:
        raise QdxError(f"backend=llamacpp: {PACKAGE} is installed without its extension: {INSTALL}")
    return files[0]


heard: list[str] = []  # what the library says while it loads a model; it would write it to standard error


def _hear(level: int, text: bytes, _: Any) -> None:
    heard.append(text.decode("utf-8", "replace"))


_listen = LOG(_hear)  # must live as long as the library


def features() -> str:
    """Return what the library is built with and this processor has, such as ``AVX AVX2 FMA REPACK``."""
    said = library().llama_print_system_info().decode()
    parts = [one.strip() for one in said.replace("CPU :", "").split("|")]
    return " ".join(one.removesuffix(" = 1") for one in parts if one.endswith(" = 1"))


def build() -> str:
    """Return the engine's version as records state it, such as ``b11549 (xllamacpp 2026.10.11549)``."""
    return f"{BUILDS[version()]} ({PACKAGE} {version()})"


def stated() -> str:
    """Return version and features in one text."""
    return json.dumps({"build": build(), "features": features()})
