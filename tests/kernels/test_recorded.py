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
CASES = [
    (size, form, rows, kernel)
    for size in ("768x768", "1536x768")
    for form, own in (("awq", "awq_gemm"), ("gptq", "exllama"))
    for rows in (8, 51)
    for kernel in (own, "marlin", "machete")
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
    in_features, out_features = map(int, size.split("x"))
    weight = fidelity.weight_of(in_features, out_features, form == "gptq")
    x_MK = fidelity.input_of(rows, in_features)
    with np.load(RECORDED) as file:
        real = torch.from_numpy(file[f"{size}/{form}/{rows}/{kernel}"])
        sm_count = json.loads(str(file["what"]))["sm_count"]
    model = make(kernel, weight, sm_count=sm_count, generator=torch.Generator().manual_seed(0))
    equal, _, difference = fidelity.compare(real, fidelity.sample(model(x_MK)))
    if kernel == "exllama" and rows <= 50:  # its atomics come in any order, so it is not equal to itself
        dense = make("dense", weight.dequantize().t().contiguous())
        assert difference < fidelity.compare(real, fidelity.sample(dense(x_MK)))[2]
    else:
        assert equal > 0.99
