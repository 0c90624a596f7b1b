"""Observe which kernel every linear layer of a loaded vLLM model runs."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from qdx.backends.vllm import simulated

# A linear method that has no kernel object to ask runs this.
BY_METHOD = {
    "UnquantizedLinearMethod": "dense",
    "UnquantizedEmbeddingMethod": "dense",
    "UnquantizedFusedMoEMethod": "dense",
    "AWQLinearMethod": "awq_gemm",
    "AutoAWQLinearMethod": "awq_gemm",
    "GPTQLinearMethod": "exllama",
    "AWQMarlinLinearMethod": "marlin",
    "GPTQMarlinLinearMethod": "marlin",
}
BY_KERNEL = {
    "MarlinLinearKernel": "marlin",
    "MacheteLinearKernel": "machete",
    "ExllamaLinearKernel": "exllama",
    "AllSparkLinearKernel": "allspark",
    "ConchLinearKernel": "conch",
    "CutlassW4A8LinearKernel": "cutlass_w4a8",
    "TritonW4A16LinearKernel": "triton",
    "HummingLinearKernel": "humming",
    "Dynamic4bitLinearKernel": "dynamic_4bit",
    "CPUWNA16LinearKernel": "cpu_wna16",
    # of a mixture's experts; what else there is keeps its class's name
    "MarlinExperts": "marlin",
}
# Where a linear method, or a scheme of compressed-tensors, keeps the kernel that it chose (0.20.2 to 0.33.0).
PLACES = ("kernel", "fp8_linear", "linear_kernel", "ocp_mx_linear")
LINEAR = frozenset({"LinearBase", "ParallelLMHead"})
EXPERTS = frozenset({"RoutedExperts", "FusedMoE"})
UNQUANTIZED = frozenset(
    {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "UnquantizedFusedMoEMethod"}
)


class Layer(NamedTuple):
    """Hold what one type of layer was found to run, as the engine's worker reports it."""

    name: str
    method: str
    kernel: str

    @property
    def kernel_class(self) -> str:
        """The engine's own words, such as ``AWQMarlinLinearMethod/MacheteLinearKernel``."""
        return f"{self.method}/{self.kernel}" if self.kernel else self.method


def normalized(method: str, kernel: str) -> str:
    """Return qdx's name of a kernel.

    Parameters
    ----------
    method : str
        Class name of the layer's ``quant_method``.
    kernel : str
        Class name of that method's ``kernel``, empty where it has none.

    Returns
    -------
    str
        A class that is not known here keeps its own name, so that it can be recorded but never passes for
        another.
    """
    if model := simulated.normalized(kernel):
        return model
    if method in UNQUANTIZED:  # whichever code multiplies dense weights
        return BY_METHOD[method]
    return BY_KERNEL.get(kernel, kernel) if kernel else BY_METHOD.get(method, method)


def on_worker(worker: Any) -> list[Layer]:
    """Return every (layer type, method, kernel) of the worker's model, each once; runs inside it.

    Embeddings are not matrix products and are left out, except where one is the output head, too.
    """
    model = worker.model_runner.get_model()
    found = set()
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        bases = {base.__name__ for base in type(module).__mro__}
        if method is None or not bases & (LINEAR | EXPERTS):
            continue
        if bases & EXPERTS:
            found.add(Layer("experts", *_classes_of_experts(method)))
            continue
        found.add(Layer(name.rpartition(".")[2], *_classes(method, getattr(module, "scheme", None))))
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(head, "quant_method", None) is not None:
        found.add(Layer("lm_head", *_classes(head.quant_method)))
    return sorted(found)


def attention(worker: Any) -> str:
    """Return the attention backend of the worker's layers; several are joined by ``+``; runs inside it."""
    groups = getattr(worker.model_runner, "attn_groups", None) or []
    return "+".join(sorted({str(one.backend.get_name()) for group in groups for one in group}))


def model_runner(worker: Any) -> str:
    """Return which of vLLM's model runners the worker has: ``v1``, ``v2``, or its full class name.

    Both generations name their class ``GPUModelRunner``; the second one lives in a package of its own. A
    runner of a CPU is a subclass of the first one. Runs inside the worker.
    """
    known = {"vllm.v1.worker.gpu_model_runner": "v1", "vllm.v1.worker.gpu.model_runner": "v2"}
    runner = type(worker.model_runner)
    generations = [known[base.__module__] for base in runner.__mro__ if base.__module__ in known]
    return generations[0] if generations else f"{runner.__module__}.{runner.__qualname__}"


def compiled_kernels(worker: Any) -> list[str]:
    """Return what compiling chose for each kernel that it wrote, as ``name: block sizes, warps, stages``.

    Inductor times several forms of a kernel on the GPU when an engine starts, and keeps the fastest. A sum in
    other blocks has another order, so two starts of one engine may give other rows (seen with vLLM 0.33.0 on
    an H100: ``docs/results/h100_vllm_0_33_0/starts.txt``). Empty in eager mode. Runs inside the worker, after
    its graphs were captured.
    """
    import gc
    import sys

    heuristics = sys.modules.get("torch._inductor.runtime.triton_heuristics")
    if heuristics is None:
        return []
    # vLLM freezes the collector's heap when an engine has started, and what is frozen is not listed
    frozen = bool(gc.get_freeze_count())
    gc.unfreeze()
    # by type, because asking some objects for their class runs code of theirs
    tuners = [one for one in gc.get_objects() if issubclass(type(one), heuristics.CachingAutotuner)]
    if frozen:
        gc.freeze()
    chosen = set()
    for tuner in tuners:
        launchers = getattr(tuner, "launchers", ())
        for launcher in launchers if len(launchers) == 1 else ():  # several: it has not run yet
            config = launcher.config
            blocks = ", ".join(f"{name} {value}" for name, value in sorted(config.kwargs.items()))
            name = str((tuner.inductor_meta or {}).get("kernel_name", ""))
            chosen.add(f"{name}: {blocks}, {config.num_warps} warps, {config.num_stages} stages")
    return sorted(chosen)


def summary(chosen: list[str]) -> str:
    """Return how many kernels compiling chose, and a hash that is equal where all choices are.

    Examples
    --------
    >>> summary([])
    ''
    """
    digest = hashlib.sha256("\n".join(chosen).encode()).hexdigest()
    return f"{len(chosen)} kernels, sha256 {digest[:16]}" if chosen else ""


def _classes(method: Any, scheme: Any = None) -> tuple[str, str]:
    # compressed-tensors: one method for all layers; a layer's scheme has the kernel, or is it.
    kept = (getattr(one, place, None) for one in (method, scheme) for place in PLACES)
    kernel = next((kernel for kernel in kept if kernel is not None), scheme)
    return type(method).__name__, "" if kernel is None else type(kernel).__name__


def _classes_of_experts(method: Any) -> tuple[str, str]:
    """Return the classes of a mixture's method and of the experts that it calls; "" where it calls none."""
    kernel = getattr(method, "moe_kernel", None) or getattr(method, "kernel", None)
    experts = getattr(getattr(kernel, "impl", kernel), "fused_experts", None)
    chosen = getattr(method, "experts_cls", None)
    name = type(experts).__name__ if experts is not None else getattr(chosen, "__name__", "")
    return type(method).__name__, name
