"""Jobs under Hydra's launchers: what they ask of the machine, and that they end with their sweep.

A launcher starts `qdx.sweep.job` in a process of its own, which starts the child that runs the config. The
child dies with that process (`qdx.process`). That process dies with the sweep: it reads a named pipe that the
sweep holds open and writes nothing to, so that end-of-file means that the sweep is gone, however it went.
Slurm's jobs and those on other machines have no such pipe. The former are meant to outlive the sweep, the
latter are ended by Ray.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from qdx.errors import QdxError

LIFELINE = "QDX_LIFELINE"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
# Module that a launcher needs → how to have it.
INSTALL = {
    "joblib": "pip install 'qdx[joblib]'",
    "submitit": "pip install 'qdx[submitit]'",
    "ray": "pip install 'qdx[ray]' && pip install --no-deps hydra-ray-launcher",
}


def parallel(launcher: DictConfig) -> bool:
    """Return whether a launcher is not Hydra's basic one, which runs job after job in this process."""
    return str(launcher._target_) != BASIC


def require(launcher: DictConfig) -> None:
    """Check that a launcher is installed.

    Parameters
    ----------
    launcher : DictConfig
        The node ``hydra.launcher``.

    Raises
    ------
    QdxError
        Saying how to install it.
    """
    module = str(launcher._target_).rpartition(".")[0]
    engine = next((name for name in INSTALL if f"hydra_{name}_launcher" in module), None)
    try:
        for name in filter(None, (module, engine)):
            importlib.import_module(name)
    except ImportError as error:
        remedy = INSTALL[engine] if engine else "install the package that brings it"
        raise QdxError(
            f"hydra/launcher: {launcher._target_} cannot be imported ({error}): {remedy}"
        ) from error


def hold(launcher: DictConfig) -> None:
    """Make a launcher's processes on this machine end with this one, from now on until it ends."""
    os.environ.pop(LIFELINE, None)
    if parallel(launcher) and not str(launcher._target_).endswith("SlurmLauncher"):
        os.environ[LIFELINE] = _pipe()


@cache
def _pipe() -> str:
    """Return the path of a named pipe whose writing end only this process has, until it ends."""
    folder = tempfile.TemporaryDirectory(prefix="qdx-")
    path = str(Path(folder.name) / "lifeline")
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without a reader the next line would wait for one
    _held.append((folder, os.open(path, os.O_WRONLY)))
    os.close(reading)
    return path


_held: list[tuple[tempfile.TemporaryDirectory[str], int]] = []


def follow() -> None:
    """End this process as soon as the sweep that it works for is gone; nothing where it has no lifeline."""
    if path := os.environ.get(LIFELINE):
        _follow(path)


@cache  # a worker of joblib's does job after job
def _follow(path: str) -> None:
    try:
        lifeline = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:  # another machine
        return
    os.set_blocking(lifeline, True)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def gpus(root: DictConfig) -> int:
    """Return how many GPUs a job asks its launcher for.

    Parameters
    ----------
    root : DictConfig
        The composed config. A launcher reads it once for all jobs of a sweep, before what varies is set.
    """
    backend = root.backend
    if backend.get("name") != "vllm":
        return 0
    return int(backend.tensor_parallel_size) * int(backend.pipeline_parallel_size)


def gpu(job: int, count: int) -> str:
    """Return the GPU, as ``CUDA_VISIBLE_DEVICES`` names it, of a job's number among `count` jobs at once.

    Raises
    ------
    QdxError
        When ``CUDA_VISIBLE_DEVICES`` is set and names fewer GPUs.
    """
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = stated.split(",") if stated else [str(i) for i in range(count)]
    if len(visible) < count:
        raise QdxError(
            f"{count} jobs at once and CUDA_VISIBLE_DEVICES={stated}: name a GPU for each or lower it"
        )
    return visible[job % count]


# conf/hydra/launcher/*.yaml state all that a launcher needs. Hydra checks them by the launcher's own schema
# of that name too, which it calls deprecated.
warnings.filterwarnings("ignore", message=r"\n'hydra/launcher/\w+' is validated against ConfigStore schema")
OmegaConf.register_new_resolver("qdx.gpus", lambda *, _root_: gpus(_root_), replace=True)
OmegaConf.register_new_resolver("qdx.gpu", gpu, replace=True)
