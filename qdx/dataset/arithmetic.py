"""Record what of this process can change a number: libraries as loaded, switches, environment.

Two honest runs of one config on one card can differ in any of these: torch 2.1 built for CUDA 11.8 and for
12.1 gives other logits in every layer. A verdict refutes by unequal rows only where both sides state them
alike, so every run records them, as its process sees them after the engine has started.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Names of the root attributes that `arithmetic` returns.
ARITHMETIC = (
    "cuda_runtime",
    "cublas_version",
    "cublaslt_version",
    "cudnn_version",
    "cpu_capability",
    "blas",
    "kernel_environment",
    "torch_switches",
)
LONGEST_VALUE = 120  # characters kept of an environment variable

# Environment variables that choose kernels or change arithmetic, by how their names begin.
PREFIXES = (
    "CUBLAS",  # size of its workspace: which algorithms fit, and whether they repeat
    "CUDNN_",  # choice of the attention and convolution engines
    "MKL_",  # MKL_CBWR, MKL_ENABLE_INSTRUCTIONS: instruction set and order of sums on a CPU
    "ONEDNN_",  # ONEDNN_MAX_CPU_ISA, ONEDNN_DEFAULT_FPMATH_MODE: the same of oneDNN
    "DNNL_",  # its earlier name
    "OPENBLAS_",  # OPENBLAS_CORETYPE: the same of OpenBLAS
    "PYTORCH_",  # TunableOp chooses GEMMs by measuring; the allocator decides alignment, which cuBLAS sees
    "FLASH_ATTENTION_",  # the Triton implementation, deterministic variants
    "TORCH_BLAS_",  # cuBLAS or cuBLASLt
    "TORCH_CUDNN_",
    "TORCH_MKLDNN_",
    "TORCHINDUCTOR_",  # autotuning, freezing and fusion of compiled graphs
    "FLASHINFER_",
    "NCCL_",  # algorithm and protocol of an all-reduce are the order of its sum
)
NAMES = (
    "ATEN_CPU_CAPABILITY",  # instruction set of torch's own CPU kernels
    "NVIDIA_TF32_OVERRIDE",  # forces TF32 off in NVIDIA's libraries
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",  # and on in torch
    "TORCH_LINEAR_FLATTEN_3D",  # shape of the product that a linear layer asks for
    "TORCH_COMPILE_DISABLE",
    "TORCHDYNAMO_DISABLE",
    "DISABLE_ADDMM_CUDA_LT",  # bias added by cuBLASLt's epilogue or by a kernel of its own
    "CUDA_FORCE_PTX_JIT",  # code that the driver compiles, not the code that was shipped
    "CUDA_FORCE_JIT",
    "CUDA_DISABLE_PTX_JIT",
    "CUDA_DISABLE_JIT",
    "CUDA_DEVICE_MAX_CONNECTIONS",  # how kernels of several streams are ordered
    "TRITON_INTERPRET",
    "TRITON_F32_DEFAULT",  # TF32 in dot products
    "TRITON_DEFAULT_FP_FUSION",  # multiply-add in one rounding or in two
    "VLLM_USE_V1",
    "VLLM_CPU_OMP_THREADS_BIND",
)
# Of vLLM's variables those whose name has one of these words: they choose attention, matmul, MoE or
# all-reduce code, the model runner, compiled graphs, or how a CPU's work is cut. Its other variables are
# about servers, logs, caches, timeouts and processes (vllm/envs.py).
VLLM_WORDS = re.compile(
    r"_(AITER|ALL2ALL|ALLREDUCE|ATTENTION|ATTN|AUTOTUNE|AWQ|BIND|CHUNK|CHUNKING|COMPILE|CUDAGRAPH|CUDNN|CUTLASS|"
    r"DEEP|EMULATIONS|FLASH|FLASHINFER|FLASHMLA|FP4|FP8|GEMM|INDUCTOR|INVARIANT|KERNELS?|LAYOUT|MARLIN|MLA|MOE|"
    r"MXFP4|NCCL|NVFP4|PADDING|PARTITION|PRECISION|PREFILL|PYNCCL|QUANTIZATION|REDUCE|ROCM|RUNNER|SGL|SYMM|"
    r"TRITON|TRTLLM|TUNED)(_|$)"
)
# Words of names that say where things lie, whose they are or what is printed. The number of threads is a
# fact of its own (``threads``), and launchers set those variables for their workers.
LEFT_OUT = re.compile(
    r"(^|_)(LOG\w*|PATHS?|DIR|FILE\w*|CACHE\w*|HOST\w*|IP|PORT|URL|SERVER|KEY|TOKEN|SECRET|PASSWORD|USER|"
    r"THREADS|VERBOSE|DEBUG\w*|TRACE|TIMEOUT\w*|NVML|SOCKET|IFNAME|HCA|ID|SO)(_|$)"
)
# What a container's image was built with: the versions that are loaded are facts of their own.
OF_IMAGE = re.compile(r"(CUBLAS|CUDNN|NCCL|PYTORCH)_(BUILD_)?VERSION")
_STAGES = ("MAJOR_VERSION", "MINOR_VERSION", "PATCH_LEVEL")  # libraryPropertyType of NVIDIA's libraries


def arithmetic() -> dict[str, str]:
    """Return what of this process can change what is computed.

    Returns
    -------
    dict
        By the names in `ARITHMETIC`, all of them always. ``cuda_runtime`` ("13.0"), ``cublas_version``,
        ``cublaslt_version`` and ``cudnn_version`` ("13.1.0") are asked of the libraries that this process
        has loaded; they are "" without a GPU, and where no such library is loaded. ``cpu_capability`` is the
        instruction set that torch's CPU kernels use. ``blas`` names the CPU libraries that torch was built
        with. ``kernel_environment`` and ``torch_switches`` are canonical JSON objects.
    """
    import torch

    facts = dict.fromkeys(ARITHMETIC[:4], "")
    if torch.cuda.is_available():
        facts = gpu_libraries()
    return {
        **facts,
        "cpu_capability": str(torch.backends.cpu.get_cpu_capability()),
        "blas": cpu_libraries(torch.__config__.show()),
        "kernel_environment": canonical(kernel_environment(os.environ)),
        "torch_switches": canonical(torch_switches()),
    }


def canonical(values: Mapping[str, Any]) -> str:
    """Return a mapping as JSON with sorted keys and without spaces, so that equal content is equal text."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def kernel_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those environment variables that choose kernels or change arithmetic.

    Parameters
    ----------
    variables : Mapping of str to str
        Such as ``os.environ``.

    Returns
    -------
    dict
        Values are cut at `LONGEST_VALUE` characters. Control characters become U+FFFD. A path, which may say
        who ran it, becomes ``(a path)``.
    """
    return {name: _value(text) for name, text in sorted(variables.items()) if _chooses(name)}


def _chooses(name: str) -> bool:
    if name in NAMES:
        return True
    if LEFT_OUT.search(name) or OF_IMAGE.fullmatch(name):
        return False
    if name.startswith("VLLM_"):
        return bool(VLLM_WORDS.search(name))
    return name.startswith(PREFIXES)


def _value(text: str) -> str:
    if re.match(r"\s*(~|\.{0,2}/|[A-Za-z]:\\)", text):
        return "(a path)"
    plain = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in text)
    return plain if len(plain) <= LONGEST_VALUE else f"{plain[: LONGEST_VALUE - 1]}…"


def torch_switches() -> dict[str, Any]:
    """Return torch's global switches that change numbers, as they stand.

    Returns
    -------
    dict
        A switch that this version of torch does not have is left out. One that torch refuses to state, since
        its older and its newer interface were both used, is ``"mixed"``.
    """
    import torch

    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    readers: dict[str, Callable[[], Any]] = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "matmul_allow_tf32": lambda: cuda.matmul.allow_tf32,
        "matmul_fp32_precision": lambda: cuda.matmul.fp32_precision,
        "matmul_allow_fp16_reduced_precision_reduction": lambda: (
            cuda.matmul.allow_fp16_reduced_precision_reduction
        ),
        "matmul_allow_bf16_reduced_precision_reduction": lambda: (
            cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
        "matmul_allow_fp16_accumulation": lambda: cuda.matmul.allow_fp16_accumulation,
        "preferred_blas_library": lambda: cuda.preferred_blas_library().name,
        "cudnn_allow_tf32": lambda: cudnn.allow_tf32,
        "cudnn_benchmark": lambda: cudnn.benchmark,
        "cudnn_deterministic": lambda: cudnn.deterministic,
        "mkldnn_enabled": lambda: mkldnn.enabled,
        "mkldnn_deterministic": lambda: mkldnn.deterministic,
        "mkldnn_matmul_fp32_precision": lambda: mkldnn.matmul.fp32_precision,
        "sdp_flash": cuda.flash_sdp_enabled,
        "sdp_mem_efficient": cuda.mem_efficient_sdp_enabled,
        "sdp_math": cuda.math_sdp_enabled,
        "sdp_cudnn": lambda: cuda.cudnn_sdp_enabled(),
    }
    found = {}
    for name, read in readers.items():
        try:
            value = read()
        except AttributeError:  # an earlier torch
            continue
        except RuntimeError:  # "you have used mix of the legacy and new APIs"
            value = "mixed"
        found[name] = value if isinstance(value, bool | int | str) else str(value)
    return found


def cpu_libraries(built_with: str) -> str:
    """Return the CPU libraries that torch computes with, such as ``MKL 2024.2, oneDNN 3.7.1, BLAS mkl``.

    Parameters
    ----------
    built_with : str
        ``torch.__config__.show()``.
    """
    patterns = {
        "MKL": r"Math Kernel Library Version (\S+?)(?:-Product|\s)",
        "oneDNN": r"(?:MKL-DNN|oneDNN) v?([\d.]+)",
        "OpenBLAS": r"OpenBLAS v?([\d.]+)",
        "BLAS": r"BLAS_INFO=([\w.+-]+)",
    }
    found = {name: re.search(pattern, built_with) for name, pattern in patterns.items()}
    return ", ".join(f"{name} {match[1]}" for name, match in found.items() if match)


def gpu_libraries() -> dict[str, str]:
    """Return the versions of the CUDA runtime, cuBLAS, cuBLASLt and cuDNN that this process has loaded.

    Returns
    -------
    dict
        "" where no such library is loaded; several versions of one, which a process can hold, are joined by
        ``+``.
    """
    return {
        "cuda_runtime": _versions("cudart", _runtime),
        "cublas_version": _versions("cublas", lambda library: _property(library.cublasGetProperty)),
        "cublaslt_version": _versions("cublasLt", lambda library: _property(library.cublasLtGetProperty)),
        "cudnn_version": _versions("cudnn", lambda library: _property(library.cudnnGetProperty)),
    }


def loaded(name: str, maps: str) -> list[str]:
    """Return the files of a shared library that a process has mapped.

    Parameters
    ----------
    name : str
        ``cublas`` of ``libcublas.so.13``.
    maps : str
        Content of ``/proc/<pid>/maps``.
    """
    pattern = rf"^(?:\S+\s+){{5}}(/.*/lib{re.escape(name)}\.so(?:\.\d+)*)$"
    return sorted(set(re.findall(pattern, maps, re.MULTILINE)))


def _versions(name: str, ask: Callable[[ctypes.CDLL], str]) -> str:
    paths = loaded(name, Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"))
    # The library is loaded already: CDLL of its path gives that one.
    return "+".join(sorted({ask(ctypes.CDLL(path)) for path in paths}))


def _runtime(library: ctypes.CDLL) -> str:
    number = ctypes.c_int()
    status = library.cudaRuntimeGetVersion(ctypes.byref(number))
    if status:
        raise RuntimeError(f"cudaRuntimeGetVersion ended with {status}")
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _property(ask: Any) -> str:
    parts = []
    for stage in range(len(_STAGES)):
        number = ctypes.c_int()
        if status := ask(stage, ctypes.byref(number)):
            raise RuntimeError(f"{ask.__name__}({_STAGES[stage]}) ended with {status}")
        parts.append(str(number.value))
    return ".".join(parts)
