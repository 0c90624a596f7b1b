"""Record where a result comes from: versions, machine, code, time; and the hash of what decides it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import qdx
from qdx.dataset.arithmetic import arithmetic

# Packages whose code decides what is computed and kept.
COMPUTING = ("backends", "capture", "kernels", "models", "prompts")


def software() -> dict[str, str]:
    """Return qdx_version and time_utc (ISO 8601, seconds)."""
    return {"qdx_version": qdx.__version__, "time_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def stamp() -> dict[str, str | int]:
    """Return the facts of this machine and code that every run's file carries.

    Returns
    -------
    dict
        qdx_version, time_utc, torch_version, python_version, host, platform, git_commit, code_sha256, cpu,
        gpu, compute_capability, sm_count, cuda_version, driver_version, and those of
        `qdx.dataset.arithmetic`. A fact that does not exist is "" (0 for sm_count).
    """
    return {
        **software(),
        "torch_version": _version("torch"),
        "python_version": platform.python_version(),
        "host": platform.node(),
        "platform": platform.platform(),
        "git_commit": git_commit(),
        "code_sha256": code_sha256(),
        "cpu": cpu_name(),
        **gpu_facts(),
        **arithmetic(),
    }


def code_sha256() -> str:
    """Return the SHA-256 of the sources that decide what is computed and kept, wherever the package is
    installed.

    More exact than a commit: it changes with an uncommitted edit, and not with one of the documentation.
    """
    root = Path(qdx.__file__).parent
    files = [file for part in COMPUTING for file in sorted((root / part).rglob("*.py"))]
    digest = hashlib.sha256()
    for file in [*files, root / "experiment.py", root / "flow.py"]:
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def cpu_name() -> str:
    """Return the processor's model name: on a CPU it decides which instructions a matrix product uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def git_commit(folder: Path | None = None) -> str:
    """Return the commit of the qdx sources, ``-dirty`` where tracked files were changed; "" if no checkout.

    Parameters
    ----------
    folder : Path, optional
        The package's folder. A repository that merely contains an installed copy is not qdx's, so the
        package must be tracked.
    """
    folder = folder or Path(qdx.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    return "" if commit is None else commit + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def gpu_facts() -> dict[str, str | int]:
    """Return name, compute capability, SM count, CUDA and driver version of the current CUDA device."""
    import torch

    facts: dict[str, str | int] = {
        "gpu": "",
        "compute_capability": "",
        "sm_count": 0,
        "cuda_version": str(torch.version.cuda or ""),
        "driver_version": "",
    }
    if not torch.cuda.is_available():
        return facts
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts["gpu"] = device.name
    facts["compute_capability"] = f"{device.major}.{device.minor}"
    facts["sm_count"] = device.multi_processor_count
    facts["driver_version"] = _driver()
    return facts


def _driver() -> str:
    try:  # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  …"
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""
    return next((word for word in line.split() if word[0].isdigit() and "." in word), "")


def command_line() -> str:
    """Return the command that started this process, quoted for a shell."""
    import shlex

    return shlex.join(sys.argv)


def config_hash(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of what decides a run's result.

    Parameters
    ----------
    config : Mapping
        The resolved config as plain containers, without paths and launcher.
    facts : Mapping
        What is not in it: weights, engine, GPU, code version.

    Returns
    -------
    str
        Equal for equal content, whatever the order of keys; tuples are lists.

    Raises
    ------
    TypeError
        For a value that JSON cannot hold: a text made of its repr could differ from run to run.
    """
    canonical = json.dumps(
        {"config": config, "facts": facts}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
