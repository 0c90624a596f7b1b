"""The environment class: what honest runs may not differ in, for unequal rows to refute a claim."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import xarray as xr

from qdx.analysis.view import SETTINGS, settings_of, stated
from qdx.dataset.arithmetic import canonical
from qdx.dataset.layout import RECORDS

# A fact that cannot be empty on that kind of machine: where it is empty, the file does not state it.
EVERYWHERE = {
    "backend": "engine",
    "backend_version": "engine version",
    "batch_size": "batch size",
    "batch_layout": "batch layout",
    "torch_version": "torch",
    "kernel_environment": "environment variables that choose kernels",
    "torch_switches": "torch's switches",
}
ON_GPU = {
    "compute_capability": "compute capability",
    "sm_count": "SMs",
    "cuda_version": "CUDA",
    "cuda_runtime": "CUDA runtime",
    "cublas_version": "cuBLAS",
    "cublaslt_version": "cuBLASLt",
}
ON_CPU = {
    "cpu": "CPU",
    "threads": "threads",
    "cpu_capability": "CPU instructions",
    "blas": "BLAS",
}
# A numerical model's arithmetic is this program's, and it divides the work by a GPU's SM count.
OF_A_MODEL = {"code_sha256": "qdx code", "sm_count": "modelled SMs"}
COMPANIONS = {"references_sha256": "references of a batch"}
RUNNER = {"model_runner": "model runner"}
# vLLM's two model runners gave equal rows here, kernel by kernel, for references one at a time
# (docs/results/h100_vllm_0_33_0): there a record of one is evidence about the other. In a batch they put the
# requests of a step in other orders, which moves rows of Marlin and Machete.
RUNNERS_ALIKE = ("0.33.0",)
BOTH_RUNNERS = "v1 or v2, alike one at a time"
# Compiling times several forms of each kernel when an engine starts, and keeps the fastest: with graphs two
# starts of one config need not give equal rows, unless they state the same choices.
OF_GRAPHS = {"compiled_kernels": "kernels that compiling chose"}
TITLES = {
    **EVERYWHERE,
    **OF_A_MODEL,
    **ON_GPU,
    **ON_CPU,
    **COMPANIONS,
    **RUNNER,
    **OF_GRAPHS,
    **SETTINGS,
    "gpu or cpu": "device",
}
MACHINE = ("gpu or cpu", "compute_capability", "sm_count", "cpu", "threads", "cpu_capability")
_ABSENT = ("", "0")
# Of `kernel_environment`, what only leads to facts that are observed themselves: which linear kernels vLLM
# may not load shows in the kernel that it did load (qdx sets it to get Marlin where Machete is preferred),
# and which model runner it was told to use shows in the one that it runs.
SHOWN_OTHERWISE = ("VLLM_DISABLED_KERNELS", "VLLM_USE_V2_MODEL_RUNNER")


@dataclass(frozen=True)
class Match:
    """Compare two environment classes.

    Attributes
    ----------
    differs : tuple of str
        Titles of facts that both state and that differ.
    unstated : tuple of str
        Titles of facts that one side, or both, do not state.
    """

    differs: tuple[str, ...] = ()
    unstated: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Return whether both sides state the same class: the only case in which unequal rows can refute."""
        return not self.differs and not self.unstated

    @property
    def why(self) -> str:
        """Say why it is not the same, in a few words; empty where it is."""
        parts = []
        if self.differs:
            parts.append(f"other {', '.join(self.differs)}")
        if self.unstated:
            parts.append(f"not stated: {', '.join(self.unstated)}")
        return "; ".join(parts)


def class_of(tree: xr.DataTree, rows: xr.Dataset, label: str) -> dict[str, str]:
    """Read a config's environment class from its record.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep or a commitments file.
    rows : xarray.Dataset
        A phase of it, whose coordinates hold the engine's facts.
    label : str
        Of the config.

    Returns
    -------
    dict of str to str
        Every fact that decides on this kind of machine. "" means that the file does not state it. A fact
        that the engine does not have (a setting of vLLM under another engine) is left out.
    """
    stored = tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()

    def of(name: str) -> str:
        return stated(rows, stored, name, label)

    on_gpu = of("compute_capability") not in ("", "cpu", "0", "none")
    names = [*EVERYWHERE, *(ON_GPU if on_gpu else ON_CPU)]
    # Records of other programs do not even say that.
    recorded = str(tree.attrs.get("kind", "")) == RECORDS
    facts = {"gpu or cpu": "" if recorded else "GPU" if on_gpu else "CPU"}
    if of("simulated").lower() in ("true", "1"):
        names += OF_A_MODEL
    if of("batch_size") not in (*_ABSENT, "1"):  # 0: records of other programs do not say
        names += COMPANIONS
    facts |= {name: of(name) for name in names}
    if recorded:  # what a provider ran beside an answer nobody states; the file's prompts are not a batch
        facts |= dict.fromkeys(COMPANIONS, "")
    facts["kernel_environment"] = _deciding(facts["kernel_environment"])
    settings = dict(zip(SETTINGS, settings_of(of), strict=True))
    if facts["backend"] == "vllm":
        # The step's token budget counts only where it may cut a prefill: `settings_of` empties it elsewhere.
        if settings["backend_chunked_prefill"] in ("False", "0"):
            del settings["backend_max_num_batched_tokens"]
        facts |= {**settings, "model_runner": _runner(of)}
        if settings["backend_enforce_eager"] in ("False", "0"):
            choices = of("compiled_kernels")
            facts["compiled_kernels"] = (
                "" if " | " in choices else choices
            )  # starts that differ state nothing
    else:
        facts |= {name: value for name, value in settings.items() if value}
    return {name: "" if value in _ABSENT and name != "gpu or cpu" else value for name, value in facts.items()}


def _runner(of: Callable[[str], str]) -> str:
    """Return the model runner, or that either of both gives these rows."""
    runner = of("model_runner")
    alone = of("batch_size") == "1" and of("backend_companions") in ("", "none")
    alike = of("backend_version").partition("+")[0] in RUNNERS_ALIKE and alone
    return BOTH_RUNNERS if alike and runner in ("v1", "v2") else runner


def _deciding(kernel_environment: str) -> str:
    """Leave out environment variables that `SHOWN_OTHERWISE` names; keep a text that is not an object."""
    try:
        values = json.loads(kernel_environment)
    except (ValueError, RecursionError):
        return kernel_environment
    if not isinstance(values, dict):
        return kernel_environment
    return canonical({name: value for name, value in values.items() if name not in SHOWN_OTHERWISE})


def compare(one: Mapping[str, str], two: Mapping[str, str]) -> Match:
    """Compare two classes fact by fact.

    Parameters
    ----------
    one, two : Mapping of str to str
        See `class_of`.
    """
    names = list(dict.fromkeys((*one, *two)))
    a, b = ({name: side.get(name, "") for name in names} for side in (one, two))
    differs = [n for n in names if a[n] and b[n] and a[n] != b[n]]
    if "gpu or cpu" in differs:  # every other fact of the machine differs with it
        return Match((TITLES["gpu or cpu"],))
    unstated = [n for n in names if not (a[n] and b[n])]
    return Match(
        tuple(dict.fromkeys(TITLES.get(n, n) for n in differs)),
        tuple(dict.fromkeys(TITLES.get(n, n) for n in unstated)),
    )
