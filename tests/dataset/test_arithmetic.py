"""What a process states of its arithmetic: complete, canonical, and without what is private."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

from qdx.dataset import arithmetic as module
from qdx.dataset.arithmetic import ARITHMETIC, arithmetic, kernel_environment, loaded, torch_switches
from qdx.experiment import DECISIVE

CHOOSING = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCH_BLAS_PREFER_CUBLASLT": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "DISABLE_ADDMM_CUDA_LT": "1",
    "VLLM_DISABLED_KERNELS": "MacheteLinearKernel,MarlinLinearKernel",
    "VLLM_BATCH_INVARIANT": "1",
    "VLLM_MARLIN_USE_ATOMIC_ADD": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_USE_FLASHINFER_MOE_FP8": "1",
    "VLLM_ATTENTION_BACKEND": "FLASH_ATTN",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_FLASH_ATTN_VERSION": "3",
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "0-7",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "FLASH_ATTENTION_TRITON_AMD_ENABLE": "TRUE",
    "PYTORCH_TUNABLEOP_ENABLED": "1",
    "TRITON_F32_DEFAULT": "ieee",
    "NCCL_ALGO": "Ring",
    "CUDA_FORCE_PTX_JIT": "1",
}
PRIVATE = [
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_HOME",
    "CUBLAS_LOGINFO_DBG",
    "CUBLASLT_LOG_FILE",
    "VLLM_API_KEY",
    "VLLM_HOST_IP",
    "VLLM_PORT",
    "VLLM_CACHE_ROOT",
    "VLLM_NO_USAGE_STATS",
    "VLLM_LOGGING_LEVEL",
    "VLLM_USE_MODELSCOPE",
    "VLLM_FLASHINFER_CACHE_DIR",
    "PYTORCH_KERNEL_CACHE_PATH",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "NCCL_SOCKET_IFNAME",
    "NCCL_VERSION",
    "CUDNN_VERSION",
    "PYTORCH_BUILD_VERSION",
    "NCCL_COMM_ID",
    "VLLM_NCCL_SO_PATH",
    "HF_TOKEN",
    "HOME",
    "PATH",
]


def test_all_facts_are_stated_and_decide_whether_a_run_is_done_again() -> None:
    facts = arithmetic()
    assert tuple(facts) == ARITHMETIC
    assert all(isinstance(value, str) for value in facts.values())
    assert set(ARITHMETIC) <= set(DECISIVE)
    assert "host" not in DECISIVE
    for name in ("kernel_environment", "torch_switches"):
        assert module.canonical(json.loads(facts[name])) == facts[name]
    assert facts["cpu_capability"] and facts["blas"]


def test_variables_that_choose_kernels_are_kept_and_private_ones_are_not() -> None:
    environment = {**CHOOSING, **dict.fromkeys(PRIVATE, "secret")}
    assert kernel_environment(environment) == CHOOSING


@pytest.mark.parametrize(
    ("value", "stated"),
    [
        ("/home/ann/tuned", "(a path)"),
        (" ~/tuned", "(a path)"),
        ("../tuned", "(a path)"),
        ("a\x1b[31mb\n\u202e", "a\ufffd[31mb\ufffd\ufffd"),
        ("x" * 500, "x" * 119 + "…"),
        ("", ""),
    ],
)
def test_values_are_shortened_and_cleaned(value: str, stated: str) -> None:
    assert kernel_environment({"VLLM_TUNED_CONFIG_FOLDER": value}) == {"VLLM_TUNED_CONFIG_FOLDER": stated}


def test_a_switch_that_is_turned_changes_what_is_stated() -> None:
    code = """
import json, sys, torch
from qdx.dataset.arithmetic import torch_switches
before = torch_switches()
torch.use_deterministic_algorithms(True)
torch.set_float32_matmul_precision("high")
torch.backends.cuda.enable_flash_sdp(False)
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
torch.backends.cudnn.benchmark = True
after = torch_switches()
json.dump({name: [before[name], after[name]] for name in before if before[name] != after[name]}, sys.stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    changed = json.loads(done.stdout)
    assert changed["deterministic_algorithms"] == [False, True]
    assert changed["float32_matmul_precision"] == ["highest", "high"]
    assert changed["sdp_flash"] == [True, False]
    assert changed["matmul_allow_bf16_reduced_precision_reduction"] == [True, False]
    assert changed["cudnn_benchmark"] == [False, True]
    assert changed["matmul_allow_tf32"] == [False, True]  # the same switch by its older name


def test_switches_of_both_interfaces_at_once_are_said_to_be_mixed() -> None:
    code = """
import torch
from qdx.dataset.arithmetic import torch_switches
torch.backends.cuda.matmul.fp32_precision = "tf32"
found = torch_switches()
print(found["matmul_allow_tf32"], found["matmul_fp32_precision"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mixed", "tf32"]


def test_nothing_is_asked_of_cuda_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        facts = arithmetic()
        assert all(facts[name] for name in ARITHMETIC[:3])
    else:
        assert [arithmetic()[name] for name in ARITHMETIC[:4]] == [""] * 4


def test_the_loaded_library_is_found_among_a_process_s_files() -> None:
    maps = """
7f00-7f10 r-xp 00000000 08:01 11 /usr/lib/nvidia/cu13/lib/libcublas.so.13
7f10-7f20 r--p 00000000 08:01 11 /usr/lib/nvidia/cu13/lib/libcublas.so.13
7f20-7f30 r-xp 00000000 08:01 12 /usr/lib/nvidia/cu13/lib/libcublasLt.so.13
7f30-7f40 r-xp 00000000 08:01 13 /opt/a b/libcudart.so.12.8.90
7f40-7f50 r-xp 00000000 08:01 14 /opt/other/libcublas.so.12
7f50-7f60 rw-p 00000000 00:00 0
"""
    first = "/usr/lib/nvidia/cu13/lib/libcublas.so.13"
    assert loaded("cublas", maps) == ["/opt/other/libcublas.so.12", first]
    assert loaded("cublasLt", maps) == ["/usr/lib/nvidia/cu13/lib/libcublasLt.so.13"]
    assert loaded("cudart", maps) == ["/opt/a b/libcudart.so.12.8.90"]
    assert loaded("cudnn", maps) == []


def test_a_version_is_read_through_the_librarys_own_function() -> None:
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int))

    def answer(stage: int, number: ctypes._Pointer[ctypes.c_int]) -> int:
        number[0] = (13, 1, 0)[stage]
        return 0

    assert module._property(kind(answer)) == "13.1.0"
    refusing = kind(lambda stage, number: 7)
    refusing.__name__ = "cublasGetProperty"
    with pytest.raises(RuntimeError, match=r"cublasGetProperty.*MAJOR_VERSION.*7"):
        module._property(refusing)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (
            "  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for Intel(R) 64\n"
            "  - Intel(R) MKL-DNN v3.7.1 (Git Hash 8d26)\n"
            "  - Build settings: BLAS_INFO=mkl, BUILD_TYPE=Release",
            "MKL 2024.2, oneDNN 3.7.1, BLAS mkl",
        ),
        ("  - OpenMP 201511\n  - Build settings: BLAS_INFO=open, USE_MKL=OFF", "BLAS open"),
        ("", ""),
    ],
)
def test_the_cpu_libraries_are_one_short_line(shown: str, said: str) -> None:
    assert module.cpu_libraries(shown) == said


def test_every_switch_is_plain() -> None:
    assert all(type(value) in (bool, int, str) for value in torch_switches().values())
