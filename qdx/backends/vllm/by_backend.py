"""vLLM 0.22 – 0.33: a kernel is chosen by the engine argument ``linear_backend``.

Run with 0.25.1 and 0.33.0 on an H100, where Marlin, Machete and exllama load as asked and give 0.20.2's bits
(exllama in prefill; its decode does not repeat), and with 0.32.0 on a CPU, dense; numerical models stand in
for the int4 kernels there (``simulated.py``).

Read in 0.32.0: ``config/kernel.py`` (the choices), ``model_executor/kernels/linear/__init__.py``,
``_filter_kernels_by_backend`` (a choice without a kernel only warns, so what was loaded is checked),
``layers/quantization/auto_awq.py`` and ``auto_gptq.py``. GPTQ's own kernel is an ordinary choice there
(``exllama``); AWQ's own went away in 0.24.
"""

from __future__ import annotations

from typing import Any

from qdx.backends.vllm.request import Request
from qdx.errors import QdxError

FIRST, LAST = (0, 22), (0, 33)
NO_AWQ_GEMM = (0, 24)


def request(format: str, kernel: str, version: tuple[int, ...]) -> Request:
    """Return how to ask for a kernel.

    Raises
    ------
    QdxError
        For a kernel that this version does not have, with the versions that do.
    """
    engine: dict[str, Any] = {}
    remedy = ""
    if kernel == "awq_gemm":
        if version >= NO_AWQ_GEMM:
            shown = ".".join(map(str, version))
            raise QdxError(
                f"vLLM {shown} has no kernel awq_gemm (removed in 0.24, where quantization=awq loads "
                f"Marlin or Machete): "
                "use vLLM 0.11.2 to 0.23 (0.20.2 was run), or quant=awq_marlin"
            )
        engine["quantization"] = "awq"
        remedy = "awq_gemm needs model.dtype=float16; vLLM 0.20.2 is known to load it"
    elif kernel in ("marlin", "machete", "exllama"):
        engine["quantization"] = format
        engine["linear_backend"] = kernel
        remedy = (
            f"linear_backend={kernel} only warns where no {kernel} kernel takes a layer: "
            + {
                "marlin": "it needs compute capability 8.0, in-features divisible by 128 and "
                "out-features by 64",
                "machete": "it needs compute capability 9.0, in-features divisible by 64 and "
                "out-features by 128",
                "exllama": "it takes symmetric GPTQ in float16 only",
            }[kernel]
        )
    return Request(engine=engine, disabled=(), remedy=remedy)
