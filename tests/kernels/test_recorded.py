"""The models against outputs of the real kernels, recorded on an H100 with vLLM 0.20.2.

The file is a part of what ``benchmarks/kernel_fidelity.py --record`` wrote there.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from qdx.kernels import make

RECORDED = Path(__file__).with_name("h100_vllm_0_20_2.npz")
# cuBLAS alone, recorded on an H100 with torch 2.11 and CUDA 13: 8 of 64 columns, some rows of each number.
CUBLAS = Path(__file__).with_name("h100_cublas.npz")
CASES = [
    (size, form, rows, kernel)
    for size in ("768x768", "1536x768")
    for form, own in (("awq", "awq_gemm"), ("gptq", "exllama"))
    for rows in (8, 51)
    for kernel in (own, "marlin", "machete")
    if (kernel, rows) != ("exllama", 8)  # its atomics come in any order: below
]


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "kernel_fidelity.py"
    spec = importlib.util.spec_from_file_location("kernel_fidelity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("size", "form", "rows", "kernel"), CASES)
def test_a_model_gives_nearly_all_bits_of_its_kernel(
    fidelity: ModuleType, size: str, form: str, rows: int, kernel: str
) -> None:
    real, model, x_MK = recorded(fidelity, size, form, rows, kernel)
    equal, _, _ = fidelity.compare(real, fidelity.sample(model(x_MK)))
    assert equal > 0.99


@pytest.mark.parametrize(("size", "form", "rows", "kernel"), CASES)
def test_exact_outputs_are_the_kernels_bit_for_bit(
    fidelity: ModuleType, size: str, form: str, rows: int, kernel: str
) -> None:
    real, model, x_MK = recorded(fidelity, size, form, rows, kernel)
    assert torch.equal(model.exact(x_MK, *fidelity.sampled(rows, model.out_features)), real)


with np.load(CUBLAS) as file:
    MATMULS = [key.split("/") for key in file.files]


@pytest.mark.parametrize(("accumulator", "size", "rows"), MATMULS)
def test_exact_outputs_are_cublass_bit_for_bit(
    fidelity: ModuleType, accumulator: str, size: str, rows: str
) -> None:
    """float32 sums: layers and output head in fp16, uncut; float16 sums: what exllama calls over 50 rows."""
    in_features, out_features = map(int, size.split("x"))
    with np.load(CUBLAS) as file:
        real = torch.from_numpy(file[f"{accumulator}/{size}/{rows}"])
    m, n = fidelity.sampled(int(rows), out_features)
    m = m[:: max(1, len(m) // 16)]
    if accumulator == "float32":
        n = n[:: max(1, len(n) // 384)]
        numbers = torch.Generator().manual_seed(in_features * 7 + out_features)
        weight_NK = (torch.randn(out_features, in_features, generator=numbers) * 0.02).half()
        model = make("dense", weight_NK)
    else:
        model = make("exllama", fidelity.weight_of(in_features, out_features, True))
    found = model.exact(fidelity.input_of(int(rows), in_features), m, n)
    assert found.shape == real.shape and torch.equal(found, real)


@pytest.mark.parametrize("size", ["768x768", "1536x768"])
def test_exllama_is_as_far_from_the_kernel_as_the_kernel_from_itself(fidelity: ModuleType, size: str) -> None:
    real, model, x_MK = recorded(fidelity, size, "gptq", 8, "exllama")
    with np.load(RECORDED) as file:
        again = torch.from_numpy(file[f"{size}/gptq/8/exllama/again"])
    noise = fidelity.compare(real, again)[2]
    distance = np.mean([fidelity.compare(real, fidelity.sample(model(x_MK)))[2] for _ in range(8)])
    own = fidelity.compare(fidelity.sample(model(x_MK)).clone(), fidelity.sample(model(x_MK)))[2]
    # one pair of real outputs gives the noise no better
    assert noise / 2.5 < own < noise * 2.5
    assert noise / 2.5 < distance < noise * 2.5
    dense = make("dense", fidelity.weight_of(*map(int, size.split("x")), True).dequantize().t().contiguous())
    assert distance < fidelity.compare(real, fidelity.sample(dense(x_MK)))[2]


def recorded(
    fidelity: ModuleType, size: str, form: str, rows: int, kernel: str
) -> tuple[torch.Tensor, torch.nn.Module, torch.Tensor]:
    """Return the real kernel's outputs, its model, and their input."""
    in_features, out_features = map(int, size.split("x"))
    weight = fidelity.weight_of(in_features, out_features, form == "gptq")
    with np.load(RECORDED) as file:
        real = torch.from_numpy(file[f"{size}/{form}/{rows}/{kernel}"])
        sm_count = json.loads(str(file["what"]))["sm_count"]
    model = make(kernel, weight, sm_count=sm_count, generator=torch.Generator().manual_seed(0))
    return real, model, fidelity.input_of(rows, in_features)
