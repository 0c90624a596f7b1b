"""Short names of machines: device and engine, and whatever else tells two of them apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from qdx.document.labels import cut_all
from qdx.errors import printable

LONGEST = 40
# Noise in the names that drivers and /proc/cpuinfo give.
_NOISE = re.compile(
    r"\bNVIDIA |\bGeForce |\bAMD (?=Instinct)|\(R\)|\(TM\)|\bProcessor\b|\bCPU\b(?! x)| @.*| \d+GB\b.*"
)
# What is added to tell machines apart, in this order.
_FURTHER = {
    "sm_count": "{} SMs",
    "threads": "{} threads",
    "model_runner": "runner {}",
    "torch_version": "torch {}",
    "cuda_runtime": "CUDA {}",
    "cuda_version": "CUDA {}",
    "cublas_version": "cuBLAS {}",
    "driver_version": "driver {}",
    "host": "on {}",
    "path": "{}",
}


def machine_names(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Name machines by device and engine version, and by what else differs where these are alike.

    Parameters
    ----------
    facts : sequence of Mapping
        Of each machine ``gpu``, ``cpu``, ``simulated``, ``backend``, ``backend_version``, the facts that may
        be added, and ``path``. Values are what files state, which may be anything.

    Returns
    -------
    list of str
        In the same order, no two equal, on one line each, at most 40 characters.

    Examples
    --------
    >>> one = {"gpu": "NVIDIA H100 80GB HBM3", "backend": "vllm", "backend_version": "0.20.2"}
    >>> machine_names([one, {**one, "gpu": "NVIDIA H200"}])
    ['H100 vllm 0.20.2', 'H200 vllm 0.20.2']
    >>> machine_names([one, {**one, "driver_version": "570.1"}])
    ['H100 vllm 0.20.2', 'H100 vllm 0.20.2 driver 570.1']
    """
    names = [_device(one) for one in facts]
    for key, form in _FURTHER.items():
        counts = Counter(names)
        alike = [i for i, name in enumerate(names) if counts[name] > 1]
        if not alike:
            break
        groups = {name: {_value(facts[i], key) for i in alike if names[i] == name} for name in set(names)}
        for i in alike:
            value = _value(facts[i], key)
            if value and len(groups[names[i]]) > 1:
                names[i] = f"{names[i]} {form.format(value)}"
    counts = Counter(names)
    taken: Counter[str] = Counter()
    for i, name in enumerate(names):
        if counts[name] > 1:
            taken[name] += 1
            names[i] = f"{name} #{taken[name]}"
    return cut_all(names, LONGEST)


def _device(facts: Mapping[str, str]) -> str:
    gpu, cpu = _text(facts.get("gpu", "")), _text(facts.get("cpu", ""))
    device = _plain(gpu) if gpu.strip("/") else _plain(cpu) or "CPU"
    if facts.get("simulated", "").lower() in ("1", "true"):
        device = f"model on {device}"
    engine = f"{_text(facts.get('backend', ''))} {_text(facts.get('backend_version', ''))}".strip()
    return f"{device} {engine}".strip()


def _plain(text: str) -> str:
    return " ".join(_NOISE.sub("", text).split())


def _value(facts: Mapping[str, str], key: str) -> str:
    text = _text(facts.get(key, ""))
    if key == "path":
        path = PurePath(text)
        return path.parent.name if path.suffix == ".nc" and path.parent.name else path.name
    return text


def _text(value: str) -> str:
    return printable(" ".join(value.split()))
