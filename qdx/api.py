"""`run` and `compose`: sweeps from Python, such as from a notebook."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qdx.errors import QdxError

if TYPE_CHECKING:
    import xarray as xr
    from omegaconf import DictConfig


def run(overrides: Sequence[str] = (), *, directory: str | Path | None = None) -> xr.DataTree:
    """Run a sweep and open it.

    The sweep runs in a process of its own, ``python -m qdx -m …``, with the working folder's plug-ins; what
    it prints appears here as it comes.

    Parameters
    ----------
    overrides : sequence of str
        As on the command line, without the shell's quotes: ``["quant=awq,gptq", "metric=[l2,half_l1]"]``.
    directory : str or Path, optional
        The sweep's folder; one that has finished runs is resumed. Default ``outputs/<date>_<time>``.

    Returns
    -------
    xarray.DataTree
        What `qdx.open` returns of the folder; its attribute ``directory`` says where that is.

    Raises
    ------
    QdxError
        When an override is wrong or chooses a plug-in that only this process registered (a notebook's cell),
        or a job failed; the message says which and where its results are.

    Examples
    --------
    >>> tree = qdx.run(["quant=awq,awq_marlin", "repeats=2"])  # doctest: +SKIP
    >>> tree.qdx.pairs("l2").mean(["reference", "position"])  # doctest: +SKIP
    """
    from qdx.accessor import open
    from qdx.commands import quoted
    from qdx.plugins import check_reachable

    _check_list(overrides)
    check_reachable(overrides)
    if given := [text for text in overrides if text.lstrip("+").startswith("hydra.sweep.dir=")]:
        raise QdxError(f"{given[0]}: use qdx.run(…, directory=…), which also says where to read the results")
    folder = Path(directory or f"outputs/{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    command = [sys.executable, "-m", "qdx", "-m", *overrides, f"hydra.sweep.dir={quoted(str(folder))}"]
    said: list[str] = []
    child = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert child.stdout is not None
    try:
        # Through print, not inherited: a notebook shows what Python prints, not what child processes do.
        for line in child.stdout:
            said.append(line)
            print(line, end="", flush=True)
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if code:
        errors = [line.removeprefix("qdx: ").strip() for line in said if line.startswith("qdx: ")]
        told = dict.fromkeys(
            line.removeprefix("error: ") for line in errors
        )  # a child and its parent say the same
        what = "; ".join(told) or f"the sweep ended with exit status {code}"
        raise QdxError(f"{what} (from {shlex.join(['python', *command[1:]])})")
    tree = open(folder, trust=True)
    tree.attrs["directory"] = str(folder)
    return tree


def compose(overrides: Sequence[str] = ()) -> list[DictConfig]:
    """Return the config of every job that a sweep would run, composed and checked; nothing runs.

    Parameters
    ----------
    overrides : sequence of str
        As `run` takes them.

    Returns
    -------
    list of omegaconf.DictConfig
        One a job, in the order in which they would run; ``cfg.label`` is its name.

    Raises
    ------
    QdxError
        When an override is wrong; the message says what, the choices and the nearest one.

    Examples
    --------
    >>> [cfg.label for cfg in qdx.compose(["quant=awq,gptq", "batch_size=1,2"])]
    ['awq,batch_size=1', 'awq,batch_size=2', 'gptq,batch_size=1', 'gptq,batch_size=2']
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from qdx.hydra_errors import explain
    from qdx.plugins import check_reachable, conf_dir
    from qdx.sweep.expand import expand

    _check_list(overrides)
    check_reachable(overrides)
    try:
        with initialize_config_dir(str(conf_dir()), job_name="qdx", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            config = hydra.compose_config(
                "config", list(overrides), RunMode.MULTIRUN, with_log_configuration=False
            )
            return expand(config)[1]
    except QdxError:
        raise
    except Exception as error:
        message = explain(error, conf_dir(), overrides)
        if message is None:
            raise
        raise QdxError(message) from error


def _check_list(overrides: Sequence[str]) -> None:
    if isinstance(overrides, str) or not all(isinstance(text, str) for text in overrides):
        raise QdxError(f"overrides is {overrides!r}: give a list of strings, such as ['quant=awq,gptq']")
