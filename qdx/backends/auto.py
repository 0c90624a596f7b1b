"""``backend=auto``: which backend this machine is for, decided without loading any."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

from omegaconf import OmegaConf

AUTO = "auto"


def gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use, as the driver counts them."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "windll") else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def choose() -> tuple[str, str]:
    """Return the name of the backend, and why it is that one."""
    there = gpus()
    if not there:
        return "transformers", "there is no NVIDIA GPU here"
    if find_spec("vllm") is None:
        return "transformers", "vllm is not installed: pip install vllm==0.20.2 runs the GPU's own kernels"
    return "vllm", f"vllm is installed, GPUs: {there}"


def explanation() -> str:
    """Return the line that says what ``backend=auto`` takes."""
    name, why = choose()
    return f"backend: {name} ({why})"


OmegaConf.register_new_resolver("qdx.auto_backend", lambda: f"/backend/{choose()[0]}", replace=True)
