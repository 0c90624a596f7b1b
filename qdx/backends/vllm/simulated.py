"""On a CPU, vLLM's engine with the numerical models of the GPU kernels as its int4 linear kernels.

vLLM's own int4 kernel for a CPU differs from a GPU's, and asks for instructions that many CPUs lack. A linear
kernel that is registered takes its place; attention, sampling and scheduling stay the engine's. vLLM merges
q, k, v and gate, up, so that Marlin's stripes are cut as on the GPU. Read in 0.32.0:
``model_executor/kernels/linear`` (``register_linear_kernel``, ``choose_mp_linear_kernel``) and
``layers/quantization/auto_awq.py``, which hands over AWQ weights repacked: rows of K in order along the words
of ``qweight``, columns in order along those of ``qzeros``, which is transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdx.backends.vllm.kernel_choice import Request
from qdx.errors import QdxError
from qdx.kernel_names import simulated
from qdx.kernels import KERNELS, QuantizedWeight, make

SM_COUNT = 132  # H100, H200
GENERATOR = torch.Generator()  # of what the GPU leaves to chance
CLASSES = {f"{name.capitalize()}Model": name for name in ("awq_gemm", "exllama", "machete", "marlin")}
OWN = "CPUWNA16LinearKernel"

_registered: dict[str, type] = {}
_wanted = ""


def applies(format: str, kernel: str) -> bool:
    """Return whether a numerical model computes the layers here: on a CPU, when one has that name."""
    return format in ("awq", "gptq") and kernel in CLASSES.values() and not torch.cuda.is_available()


def request(format: str, kernel: str) -> Request:
    """Return how to ask the engine for a numerical model."""
    remedy = f"on a CPU it is the numerical model of {kernel}, which takes 4-bit AWQ or symmetric 4-bit GPTQ"
    return Request(engine={"quantization": format}, disabled=(OWN,), remedy=remedy, model=kernel)


def require(eager: bool, workers: int) -> None:
    """Refuse settings under which a model would compute something else, or would not be found.

    Raises
    ------
    QdxError
    """
    if not eager:
        raise QdxError(
            "backend.enforce_eager=false: on a CPU the kernels are numerical models, which choose their path "
            "by the number of rows; a compiled graph keeps the first one: set backend.enforce_eager=true"
        )
    if workers > 1:
        raise QdxError(
            f"{workers} workers: on a CPU the kernels are numerical models, which live in the engine's own "
            "process: set backend.tensor_parallel_size=1 and backend.pipeline_parallel_size=1"
        )


def register(kernel: str) -> None:
    """Make the engine choose the numerical model of this kernel for what it loads next; of "", none."""
    global _wanted
    _wanted = kernel
    if not kernel:
        return
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.platforms.interface import PlatformEnum

    if kernel not in _registered:
        _registered[kernel] = _linear_kernel(kernel)
        register_linear_kernel(_registered[kernel], PlatformEnum.CPU, "mp")


def normalized(kernel_class: str) -> str:
    """Return ``model:<name>`` of a class that is registered here, else an empty string."""
    return simulated(CLASSES[kernel_class]) if kernel_class in CLASSES else ""


def _linear_kernel(kernel: str) -> type:
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel

    class Model(MPLinearKernel):  # type: ignore[misc]  # mypy skips vllm
        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, c: Any) -> tuple[bool, str | None]:
            if kernel != _wanted:
                return False, f"quant.kernel is {_wanted}"
            if c.weight_type.size_bits != 4:
                return False, f"{kernel} is modelled for 4 bits, got {c.weight_type}"
            if c.act_type not in KERNELS[kernel].dtypes:
                return False, f"{kernel} does not take {c.act_type}: set model.dtype"
            return True, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            words_KN, scale_GN, zeros_NG = self._get_weight_params(layer)
            scale_GN = scale_GN.data
            q_KN = _unpacked(words_KN.data)
            size = q_KN.shape[0] if self.config.group_size == -1 else self.config.group_size
            if self.config.zero_points:
                zero_GN = _unpacked(zeros_NG.data).t().contiguous()
            else:
                zero_GN = torch.full(scale_GN.shape, 8, dtype=torch.uint8)
            weight = QuantizedWeight(q_KN, zero_GN, scale_GN.half(), size, not self.config.zero_points)
            if not torch.equal(weight.scale_GN.to(scale_GN.dtype), scale_GN):
                raise ValueError("scales that float16 does not hold: set model.dtype=float16")
            self._linear = make(kernel, weight, sm_count=SM_COUNT, generator=GENERATOR)

        def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
            y = self._linear(x)
            return y if bias is None else y + bias

    Model.__name__ = Model.__qualname__ = f"{kernel.capitalize()}Model"
    return Model


def _unpacked(words: Tensor) -> Tensor:
    """Return the eight 4-bit values of every int32 word, in order along the first axis, as uint8."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words[:, None] >> shifts[:, None]) & 15).to(torch.uint8).flatten(0, 1)
