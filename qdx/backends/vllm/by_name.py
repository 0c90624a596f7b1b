"""vLLM 0.11.2 – 0.21: a kernel is chosen by ``quantization=``, and by disabling those preferred to it.

Read in 0.20.2: ``model_executor/layers/quantization/{awq,awq_marlin,gptq,gptq_marlin}.py``, and
``model_executor/kernels/linear/__init__.py``, ``choose_mp_linear_kernel``: the first that can, of
CutlassW4A8, Machete, AllSpark,
Marlin, Conch, Exllama, without those that ``VLLM_DISABLED_KERNELS`` names. In 0.11.2 ``awq_marlin`` knows no
kernel but Marlin.
"""

from __future__ import annotations

from typing import Any

from qdx.backends.vllm.request import Request

FIRST, LAST = (0, 11, 2), (0, 21)
PREFERRED_TO_MARLIN = ("CutlassW4A8LinearKernel", "MacheteLinearKernel", "AllSparkLinearKernel")


def request(format: str, kernel: str, version: tuple[int, ...]) -> Request:
    """Return how to ask for a kernel.

    Parameters
    ----------
    format, kernel : str
        As in `qdx.schema.Quant`.
    version : tuple of int
        vLLM's.
    """
    engine: dict[str, Any] = {}
    disabled: tuple[str, ...] = ()
    remedy = ""
    if kernel == "any":
        remedy = ""
    elif kernel == "awq_gemm":
        engine["quantization"] = "awq"
        remedy = "awq_gemm is chosen by quantization=awq and needs model.dtype=float16"
    elif kernel == "exllama":
        engine["quantization"] = "gptq"
        remedy = "exllama is chosen by quantization=gptq and needs model.dtype=float16"
    elif kernel in ("marlin", "machete"):
        engine["quantization"] = f"{format}_marlin"
        if kernel == "marlin":
            disabled = PREFERRED_TO_MARLIN
            remedy = (
                "Marlin needs compute capability 8.0, in-features divisible by 128, out-features by 64 and "
                "group size 32, 64, 128 or -1"
            )
        else:
            remedy = (
                "Machete needs compute capability 9.0, in-features divisible by 64, out-features by 128, "
                "group size 64, 128 or -1, and no MacheteLinearKernel in VLLM_DISABLED_KERNELS"
            )
            if format == "awq" and version < (0, 12):
                remedy += "; awq_marlin of vLLM 0.11 runs Marlin only: use 0.20.2"
    return Request(engine=engine, disabled=disabled, remedy=remedy)
