"""Numerical models of the GPU matmul kernels, in torch on the CPU.

Each module here is a linear layer that rounds where one of vLLM's kernels rounds and adds in the order in
which it adds, as far as the public source tells. The order inside one float32 accumulator is the CPU's
BLAS's, and what happens inside one tensor core instruction is left out; `KernelModel.exact` computes chosen
outputs with both, bit for bit. What other parts of a card give bit for bit is in `tensor_core` and `cards`
(sums), `elementary` (functions) and `operations` (norms, activation, rotation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernel_names import plain_kernel
from qdx.kernels import _base
from qdx.kernels._base import KernelModel
from qdx.kernels.awq_gemm import AwqGemm
from qdx.kernels.dense import Dense
from qdx.kernels.exllama import Exllama
from qdx.kernels.machete import Machete
from qdx.kernels.marlin import Marlin
from qdx.kernels.weights import QuantizedWeight

KERNELS: dict[str, type[KernelModel]] = {
    "dense": Dense,
    "awq_gemm": AwqGemm,
    "exllama": Exllama,
    "marlin": Marlin,
    "machete": Machete,
}

__all__ = [
    "KERNELS",
    "AwqGemm",
    "Dense",
    "Exllama",
    "KernelModel",
    "Machete",
    "Marlin",
    "QuantizedWeight",
    "check_shape",
    "make",
]


def check_shape(kernel: str, in_features: int, out_features: int, group_size: int) -> None:
    """Refuse a layer's shape that a kernel does not take, without its weights.

    Raises
    ------
    QdxError
    """
    model = KERNELS[plain_kernel(kernel)]
    _base.check_shape(model.name, in_features, out_features, group_size, model.multiples)


def make(
    kernel: str,
    weight: QuantizedWeight | Tensor,
    bias: Tensor | None = None,
    *,
    sm_count: int = 132,
    generator: torch.Generator | None = None,
) -> KernelModel:
    """Make a linear layer that computes as a kernel does.

    Parameters
    ----------
    kernel : str
        A key of `KERNELS`, with or without ``model:``.
    weight : QuantizedWeight or Tensor
        For ``dense`` a matrix (out_features, in_features); for the others int4 weights.
    bias : Tensor, optional
        (out_features,).
    sm_count : int
        Streaming multiprocessors of the GPU that is modelled.
    generator : torch.Generator, optional
        Source of what the GPU leaves to chance; only ``exllama`` draws from it.

    Returns
    -------
    KernelModel

    Raises
    ------
    QdxError
        For an unknown kernel, or weights that it cannot take.
    """
    name = plain_kernel(kernel)
    if name not in KERNELS:
        raise QdxError(f"unknown kernel {kernel!r}: one of {', '.join(KERNELS)}")
    if isinstance(weight, Tensor) != (name == "dense"):
        got = "a dense matrix" if isinstance(weight, Tensor) else "int4 weights"
        raise QdxError(
            f"kernel {name!r} got {got}: 'dense' takes a dense matrix, every other kernel int4 weights"
        )
    if isinstance(weight, Tensor):
        return Dense(weight, bias)
    if sm_count < 1:
        raise QdxError(f"kernel {name!r}: sm_count is {sm_count}, must be at least 1; an H100 has 132")
    quantized = {"awq_gemm": AwqGemm, "exllama": Exllama, "marlin": Marlin, "machete": Machete}[name]
    return quantized(weight, bias, sm_count=sm_count, generator=generator)
