"""Log a sweep to MLflow: one run for the sweep, and below it one for each config.

Every number that an analysis made for a config, or for the sweep as a whole, becomes a metric; what was not
measured is left out. Numbers of single prompts and positions stay in ``summary.json`` and ``sweep.nc``, which
are logged as files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import xarray as xr
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from qdx.dataset.folder import SWEEP
from qdx.errors import QdxError
from qdx.report.summary import LONG
from qdx.sweep import callback

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILES = ("summary.json", "report.txt", "report.html", "sweep.nc")
FIGURES = "figures"
DEFAULT_URI = "sqlite:///mlflow.db"
PARAMETERS = (  # of a config, as its run states them
    "format", "requested_kernel", "observed_kernel", "dtype", "model", "batch_size", "simulated", "engine",
    "engine_version", "model_runner", "gpu", "compute_capability", "sm_count", "torch_version",
    "driver_version", "qdx_version", "git_commit", "seed", "config_hash",
)  # fmt: skip
OF_PROMPTS = ("reference", "position", "repeat", "unit")  # dimensions whose numbers are too many for metrics
BATCH, BATCH_OF_PARAMETERS = 1000, 100  # MLflow's limits of a request
LONGEST_KEY, LONGEST_VALUE = 250, 500


class MLflow(Callback):
    """Log the sweep when its report is written; chosen by ``hydra/callbacks=mlflow``.

    Parameters
    ----------
    uri : str, optional
        Of the tracking server or store; default ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db``.
    experiment : str
        It is made where it is not there.
    files : sequence of str
        Files of the sweep's folder that are logged, those that are there.
    """

    def __init__(self, uri: str | None = None, experiment: str = "qdx", files: Sequence[str] = FILES) -> None:
        self.uri, self.experiment, self.files = uri, experiment, tuple(files)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Find out before the first job whether the store can be reached."""
        try:
            _experiment(_client(self.uri), self.uri, self.experiment)
        except QdxError as error:
            print(f"qdx: error: {error}", file=sys.stderr)
            sys.exit(2)
        callback.when_reported(self._log)

    def _log(self, directory: Path) -> None:
        run = log(directory, uri=self.uri, experiment=self.experiment, files=self.files, trust=True)
        print(f"logged to MLflow: experiment {self.experiment}, run {run}", flush=True)


def log(
    directory: str | Path,
    *,
    uri: str | None = None,
    experiment: str = "qdx",
    files: Sequence[str] = FILES,
    trust: bool = False,
) -> str:
    """Log a finished sweep to MLflow; logged twice, it is there twice.

    Parameters
    ----------
    directory : path
        A sweep folder with ``sweep.nc`` and the report's files.
    uri, experiment, files
        As of `MLflow`.
    trust : bool
        The folder is one's own; see `qdx.open`.

    Returns
    -------
    str
        Id of the sweep's run.

    Raises
    ------
    QdxError
        Without MLflow, when the store cannot be reached, or when the folder is not a finished sweep's.
    """
    from qdx.dataset import open

    folder = Path(directory)
    client = _client(uri)
    number = _experiment(client, uri, experiment)
    of_sweep: dict[str, float] = {}
    of_configs: dict[str, dict[str, float]] = {}
    parameters: dict[str, dict[str, str]] = {}
    tags = {"qdx.directory": str(folder.absolute())[:LONGEST_VALUE], "qdx.failed": "[]"}
    if (folder / SWEEP).is_file():
        with open(folder / SWEEP, trust=trust) as tree:
            of_sweep, of_configs = metrics(tree)
            tags |= _tags(tree)
            parameters = {label: _parameters(tree, label) for label in _labels(tree)}
    elif not (folder / "summary.json").is_file():  # a sweep that asked servers has no sweep.nc
        raise QdxError(f"{folder} has neither {SWEEP} nor summary.json: only a finished sweep can be logged")
    with _told(uri):
        parent = client.create_run(number, run_name=folder.absolute().name, tags=tags).info.run_id
        _send(client, parent, of_sweep, {"configs": ", ".join(parameters)} if parameters else {})
        for label, stated in parameters.items():
            own = {"mlflow.parentRunId": parent, "qdx.label": label}
            run = client.create_run(number, run_name=label, tags=own).info.run_id
            _send(client, run, of_configs.get(label, {}), stated)
            client.set_terminated(run)
        for name in files:
            if (folder / name).is_file() and not (folder / name).is_symlink():
                client.log_artifact(parent, str(folder / name))
        if (folder / FIGURES).is_dir() and not (folder / FIGURES).is_symlink():
            client.log_artifacts(parent, str(folder / FIGURES), FIGURES)
        client.set_terminated(parent, "FAILED" if tags["qdx.failed"] != "[]" else "FINISHED")
    return str(parent)


def metrics(tree: xr.DataTree) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return every number of the analyses by the name of its metric.

    Parameters
    ----------
    tree : xarray.DataTree
        A merged sweep.

    Returns
    -------
    of_sweep, of_configs : dict
        ``analysis.variable/coordinate/…`` to its value, of the sweep and of each label. A config's distance
        from another one is the config's, and the other's label is a part of the name.
    """
    of_sweep: dict[str, float] = {}
    of_configs: dict[str, dict[str, float]] = defaultdict(dict)
    names: dict[str, dict[str, str]] = defaultdict(dict)
    analyses = tree["analysis"].children if "analysis" in tree.children else {}
    for analysis, node in analyses.items():
        data = node.to_dataset()
        for variable in data.data_vars:
            one = data[variable]
            if one.dtype.kind not in "biuf" or str(variable) in LONG.get(str(analysis), ()):
                continue
            if set(one.dims) & set(OF_PROMPTS):
                continue
            for coordinates, value in _values(one):
                label = coordinates.pop("config", "")
                if label and coordinates.get("config_b") == label:
                    continue  # a config has no distance from itself
                raw = "/".join(
                    [f"{analysis}.{variable}", *(text.replace("/", "_") for text in coordinates.values())]
                )
                target = of_configs[label] if label else of_sweep
                target[_key(raw, names[label])] = value
    return of_sweep, dict(of_configs)


def _values(data: xr.DataArray) -> Iterator[tuple[dict[str, str], float]]:
    """Every finite value of an array with its coordinates; of a dimension without one the index."""
    keys = [
        [str(key) for key in data[dim].values] if dim in data.coords else list(map(str, range(size)))
        for dim, size in data.sizes.items()
    ]
    values = np.asarray(data.values, np.float64)
    for at in np.ndindex(values.shape):
        if np.isfinite(values[at]):
            texts = [key[i] for key, i in zip(keys, at, strict=True)]
            yield dict(zip(map(str, data.dims), texts, strict=True)), float(values[at])


def _key(raw: str, taken: dict[str, str]) -> str:
    """A name that MLflow takes, and no other number of the run has."""
    name = re.sub(r"[^\w\-. :/]", "_", raw, flags=re.ASCII)
    if len(name) > LONGEST_KEY or taken.get(name, raw) != raw:
        digest = hashlib.sha256(raw.encode("utf-8", "replace")).hexdigest()[:8]
        name = f"{name[: LONGEST_KEY - 9]}.{digest}"
    taken[name] = raw
    return name


def _labels(tree: xr.DataTree) -> list[str]:
    stored = tree["provenance"].to_dataset()
    return [str(label) for label in stored["config"].values]


def _parameters(tree: xr.DataTree, label: str) -> dict[str, str]:
    stored = tree["provenance"].to_dataset().sel(config=label)
    found = {name: str(stored[name].values) for name in PARAMETERS if name in stored}
    for phase in tree.children:
        rows = tree[phase].to_dataset()
        if "format" in rows.coords and "config" in rows["format"].dims:
            own = rows.sel(config=label)
            coordinates = {
                str(name): str(own[name].values)
                for name in rows.coords
                if rows[name].dims == ("config",) and name != "config"
            }
            return {**coordinates, **{name: value for name, value in found.items() if value}}
    return found


def _tags(tree: xr.DataTree) -> dict[str, str]:
    found = {
        "qdx.version": str(tree.attrs.get("qdx_version", "")),
        "qdx.time_utc": str(tree.attrs.get("time_utc", "")),
        "qdx.failed": str(sorted(_names(tree.attrs.get("failed"))) or []),
        "qdx.simulated": str(_simulated(tree)).lower(),
    }
    if "analysis" in tree.children and "verify" in tree["analysis"].children:
        found["qdx.verdict"] = str(tree["analysis/verify"].attrs.get("headline", ""))
    return {name: value[:LONGEST_VALUE] for name, value in found.items()}


def _names(text: object) -> Mapping[str, Any]:
    content = json.loads(text) if isinstance(text, str) and text else {}
    return content if isinstance(content, dict) else {}


def _simulated(tree: xr.DataTree) -> bool:
    """Return whether a config's kernels are models, by a phase's coordinate or a run's attribute."""
    groups = [tree[name].to_dataset() for name in tree.children]
    marks = [
        str(v).lower() for of in groups if "simulated" in of.variables for v in of["simulated"].values.flat
    ]
    return any(mark in ("1", "true") for mark in marks)


def _send(
    client: MlflowClient, run: str, numbers: Mapping[str, float], parameters: Mapping[str, str]
) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    made = [Metric(key, value, now, 0) for key, value in numbers.items()]
    for start in range(0, len(made), BATCH):
        client.log_batch(run, metrics=made[start : start + BATCH])
    given = [Param(key, value[:LONGEST_VALUE]) for key, value in parameters.items()]
    for start in range(0, len(given), BATCH_OF_PARAMETERS):
        client.log_batch(run, params=given[start : start + BATCH_OF_PARAMETERS])


def _address(uri: str | None) -> str:
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _client(uri: str | None) -> MlflowClient:
    # MLflow reports its use to its makers unless it is told not to, and waits minutes for a server that is
    # not there. What somebody has set himself stays.
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise QdxError(f"hydra/callbacks=mlflow needs MLflow ({error}): pip install 'qdx[mlflow]'") from error
    for name in ("mlflow.store.db.utils", "alembic"):  # they tell of every table, and of every try
        logging.getLogger(name).setLevel(logging.ERROR)
    _check_file(_address(uri))
    with _told(uri):
        return MlflowClient(tracking_uri=_address(uri))


def _check_file(address: str) -> None:
    """Refuse a database that cannot be a file: MLflow would try to open it for two minutes."""
    if not address.startswith("sqlite:///"):
        return
    file = Path(address.removeprefix("sqlite:///"))
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise QdxError(f"MLflow at {address}: {file} cannot be a file: give a file of a folder that is there")


def _experiment(client: MlflowClient, uri: str | None, name: str) -> str:
    """The experiment's id; it is made where it is not there."""
    with _told(uri):
        found = client.get_experiment_by_name(name)
        return str(client.create_experiment(name) if found is None else found.experiment_id)


@contextlib.contextmanager
def _told(uri: str | None) -> Iterator[None]:
    """Say in one line what MLflow raises; an address is shown without user and password."""
    try:
        yield
    except QdxError:
        raise
    except Exception as error:  # its own, sqlalchemy's, the HTTP library's, the disk's
        parts = urlsplit(_address(uri))
        shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise QdxError(f"MLflow at {shown}: {said}") from error
