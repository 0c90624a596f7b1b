"""Reads what analyses need out of a sweep, whatever groups and regions it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from qdx.dataset.layout import REPORT_ORDER
from qdx.document.format import plural
from qdx.document.labels import short_labels
from qdx.errors import QdxError
from qdx.statistics import Bools, Floats, Ints, first_difference, masked_mean, rows_before_split

PHASE_TITLES = {
    "prefill": "prefill",
    "replay": "replay (shared continuation)",
    "decode": "free decode up to divergence",
}
REGIONS = ("content", "template")
TEMPLATE = ("prefix", "suffix")
ENVIRONMENT = ("compute_capability", "sm_count", "backend", "backend_version", "batch_size")
SETTINGS = {  # coordinates of an engine's settings that decide what it computes, and their titles
    "backend_attention_backend": "attention",
    "backend_kv_cache_dtype": "kv-cache dtype",
    "backend_tensor_parallel_size": "tensor parallel",
    "backend_pipeline_parallel_size": "pipeline parallel",
    "backend_enforce_eager": "eager mode",
    "backend_chunked_prefill": "chunked prefill",
    "backend_max_num_batched_tokens": "step's token budget",
    "backend_replay": "replay",
    "backend_companions": "companions in the batch",
}


class View:
    """The groups of a sweep as arrays.

    Parameters
    ----------
    tree : xarray.DataTree
        What `qdx.open` returns of a sweep.

    Raises
    ------
    QdxError
        When the tree holds no phase.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self.tree = tree
        # Rows of different producers consume different tokens: they are judged, not compared by pairs.
        self.phases: tuple[str, ...] = tuple(
            p for p in REPORT_ORDER if p in tree.children and not _by_producer(tree[p].to_dataset())
        )
        if not self.phases:
            raise QdxError("nothing to analyse: none of the groups /prefill, /replay, /decode is in the file")
        first = self.group(self.phases[0])
        self.configs: list[str] = [str(c) for c in first["config"].values]
        self.names: list[str] = short_labels(self.configs)  # in what is shown; labels stand in results
        self.references: list[str] = [str(r) for r in first["reference"].values]
        self._kept: dict[tuple[str, str], Any] = {}
        measured = tree["metrics"] if "metrics" in tree.children else None
        self.metrics: list[str] = list(measured.children) if measured is not None else []

    def group(self, name: str) -> xr.Dataset:
        """The dataset of one group."""
        return self.tree[name].to_dataset()

    def of_config(self, coordinate: str, default: str = "") -> list[str]:
        """A coordinate of the configs as text."""
        dataset = self.group(self.phases[0])
        if coordinate not in dataset.variables:
            return [default] * len(self.configs)
        return [str(v) for v in np.broadcast_to(dataset[coordinate].values, (len(self.configs),))]

    def provenance(self, name: str) -> list[str]:
        """A root attribute of each config's run as text, "" where it was not recorded."""
        stored = self.group("provenance") if "provenance" in self.tree.children else xr.Dataset()
        if name not in stored:
            return [""] * len(self.configs)
        return [str(v) for v in stored[name].sel(config=self.configs).values]

    def measured(self, metric: str, phase: str) -> xr.Dataset | None:
        """``/metrics/<metric>/<phase>``, or None when it is not there."""
        path = f"metrics/{metric}/{phase}"
        try:
            return self.tree[path].to_dataset()
        except KeyError:
            return None

    def facts(self, metric: str) -> dict[str, Any]:
        """Attributes of a metric: units, long_name, higher_means, formula."""
        for phase in self.phases:
            dataset = self.measured(metric, phase)
            if dataset is not None:
                return dict(dataset[metric].attrs)
        return {}

    def is_distance(self, metric: str) -> bool:
        """Return whether a higher value means less alike."""
        return str(self.facts(metric).get("higher_means", "less alike")) == "less alike"

    def distances(self, metric: str, phase: str) -> Floats | None:
        """Array (config, config_b, reference, position); NaN is not measured."""
        dataset = self.measured(metric, phase)
        if dataset is None:
            return None
        return _finite(dataset[metric].transpose("config", "config_b", "reference", "position"))

    def repeat_distances(self, metric: str, phase: str) -> Floats | None:
        """Array (config, repeat_pair, reference, position); None when nothing was repeated."""
        dataset = self.measured(metric, phase)
        if dataset is None or "repeat_distance" not in dataset or not dataset.sizes.get("repeat_pair"):
            return None
        return _finite(dataset["repeat_distance"].transpose("config", "repeat_pair", "reference", "position"))

    def repeat_pairs(self, metric: str, phase: str) -> list[str]:
        """Names of the repeat pairs."""
        dataset = self.measured(metric, phase)
        if dataset is None or not dataset.sizes.get("repeat_pair"):
            return []
        return [str(v) for v in dataset["repeat_pair"].values]

    def region_masks(self, metric: str, phase: str) -> dict[str, Bools]:
        """Per region a mask (reference, position) of the rows in it.

        ``template`` is the chat template's prefix and suffix; ``content`` is the snippet and everything
        after the template, the row that predicts the first output token among them.
        """
        dataset = self.measured(metric, phase)
        if dataset is None or "region" not in dataset.variables:
            dataset = self.group(phase)
        return masks(np.asarray(dataset["region"].transpose("reference", "position").values, dtype=str))

    def reference_means(self, metric: str, phase: str) -> dict[str, tuple[Floats, Ints]]:
        """Per region the mean over a reference's rows and their number: (config, config_b, reference)."""
        values = self.distances(metric, phase)
        if values is None:
            return {}
        regions = self.region_masks(metric, phase).items()
        return {region: masked_mean(values, np.broadcast_to(mask, values.shape)) for region, mask in regions}

    def captured(self, phase: str) -> Bools:
        """Array (config, repeat, reference, position)."""
        return np.asarray(self._rows(phase, "captured"), dtype=bool)

    def hashes(self, phase: str) -> NDArrayU64:
        """Array (config, repeat, reference, position) of row hashes."""
        return np.asarray(self._rows(phase, "row_hash")).astype(np.uint64, copy=False)

    def _rows(self, phase: str, variable: str) -> np.ndarray[Any, Any]:
        if (phase, variable) not in self._kept:  # pairs of configs read them again and again
            dataset = self.group(phase)
            if variable not in dataset:  # such as an imported file, which has neither rows nor hashes
                raise QdxError(f"/{phase} has no {variable}: the file does not say which rows are equal")
            data = dataset[variable].transpose("config", "repeat", "reference", "position")
            self._kept[phase, variable] = data.values
        return np.asarray(self._kept[phase, variable])

    def positions(self, phase: str) -> Ints:
        """Array (position,)."""
        return np.asarray(self.group(phase)["position"].values, dtype=np.int64)

    def lengths(self) -> Ints:
        """Tokens of each reference (template and snippet)."""
        dataset = self.group("references").sel(reference=self.references)
        return np.asarray(dataset["length"].values, dtype=np.int64)

    def outputs(self) -> Ints | None:
        """Array (config, repeat, reference, output_token) of generated ids, -1 for none."""
        if "output" not in self.tree.children:
            return None
        data = self.group("output")["token_id"].transpose("config", "repeat", "reference", "output_token")
        return np.asarray(data.values, dtype=np.int64)

    def comparable(self, phase: str, a: tuple[int, int], b: tuple[int, int]) -> Bools:
        """Rows (reference, position) that two runs, each (config, repeat), can be compared at.

        In free decode: up to and including the row that predicts the first differing token.
        """
        captured = self.captured(phase)
        both = captured[a] & captured[b]
        outputs = self.outputs() if phase == "decode" else None
        if outputs is None:
            return np.asarray(both)
        split = first_difference(outputs[a], outputs[b])
        position, lengths = self.positions(phase), self.lengths()
        rows = [
            rows_before_split(captured[a][r], captured[b][r], position, int(lengths[r]), int(split[r]))
            for r in range(len(split))
        ]
        return np.stack(rows)

    def environments(self) -> tuple[list[str], list[int]]:
        """Environment classes (as text) and the class of each config.

        Rows are comparable exactly only where compute capability, SM count, engine version and settings, and
        batching are the same; on a CPU where the processor, its threads and, of modelled kernels, the SM
        count that they divide the work by are.
        """
        columns = {name: self.of_config(name) for name in (*ENVIRONMENT, "simulated")}
        columns |= {name: self.provenance(name) for name in ("cpu", "threads")}
        rows = zip(*columns.values(), strict=True)
        described = [_environment(dict(zip(columns, row, strict=True))) for row in rows]
        phase = self.group(self.phases[0])
        stored = self.group("provenance") if "provenance" in self.tree.children else xr.Dataset()
        by_config = [settings_of(partial(stated, phase, stored, label=label)) for label in self.configs]
        for title, values in zip(SETTINGS.values(), zip(*by_config, strict=True), strict=True):
            if len(set(values)) > 1:
                described = [
                    f"{said}, {title} {value or 'not stated'}"
                    for said, value in zip(described, values, strict=True)
                ]
        classes = list(dict.fromkeys(described))
        return classes, [classes.index(d) for d in described]


def stated(rows: xr.Dataset, stored: xr.Dataset, name: str, label: str) -> str:
    """A fact of a config as text: its coordinate, else the root attribute of its run, else "".

    Parameters
    ----------
    rows : xarray.Dataset
        A phase.
    stored : xarray.Dataset
        ``/provenance``; the first files have settings of vLLM there, as ``vllm_<option>``.
    name : str
    label : str
        Of the config.
    """
    if name in rows.coords:
        column = rows[name]
        if value := str(column.sel(config=label).values if "config" in column.dims else column.values):
            return " ".join(value.split())  # a fact of a stranger's that has lines could look like a section
    older = f"vllm_{name.removeprefix('backend_')}"
    for key in (name, older):
        if key in stored:
            value = " ".join(str(stored[key].sel(config=label).values).split())
            return {"1": "True", "0": "False"}.get(value, value) if key == "vllm_enforce_eager" else value
    return ""


def settings_of(of: Callable[[str], str]) -> tuple[str, ...]:
    """The values of `SETTINGS`; a step's budget decides only where it may cut a prefill.

    A record of vLLM that says nothing of replay and companions is of a version that had decode steps and no
    company alone.

    Parameters
    ----------
    of : callable
        The text of a fact by its name.
    """
    values = {name: of(name) for name in SETTINGS}
    if values["backend_chunked_prefill"] != "True":
        values["backend_max_num_batched_tokens"] = ""
    if of("backend") == "vllm":
        values["backend_replay"] = values["backend_replay"] or "decode"
        values["backend_companions"] = values["backend_companions"] or "none"
    return tuple(values.values())


def _by_producer(data: xr.Dataset) -> bool:
    return "captured" in data and "producer" in data["captured"].dims


NDArrayU64 = np.ndarray[Any, np.dtype[np.uint64]]


def masks(region_RP: np.ndarray[Any, Any]) -> dict[str, Bools]:
    """Content and template masks of an array of region names (``""``: no row)."""
    template = np.isin(region_RP, TEMPLATE)
    return {"content": (region_RP != "") & ~template, "template": template}


def select_metrics(view: View, metrics: Sequence[str] | None) -> list[str]:
    """The metrics to use: all that were measured, or those asked for, in that order."""
    if not metrics:
        return view.metrics
    unknown = [m for m in metrics if m not in view.metrics]
    if unknown:
        raise QdxError(
            f"metric {unknown[0]!r} was not measured, only {', '.join(view.metrics) or 'none'}: add it to "
            "metric=[…]"
        )
    return list(metrics)


def describe_metric(view: View, metric: str) -> str:
    """One line: formula, unit and direction."""
    facts = view.facts(metric)
    formula = str(facts.get("formula") or facts.get("long_name") or "")
    unit = str(facts.get("units", "1"))
    meaning = f"higher means {facts.get('higher_means', 'less alike')}"
    return f"{metric}: {formula} [{'no unit' if unit == '1' else unit}; {meaning}]"


def _finite(data: xr.DataArray) -> Floats:
    values = np.asarray(data.values, dtype=np.float64)
    if np.isinf(values).any():
        raise QdxError(
            f"metric {data.name!r} holds infinite values: not measured must be NaN; correct the metric"
        )
    return values


def _environment(facts: dict[str, str]) -> str:
    engine = f"{facts['backend']} {facts['backend_version']}, batch {facts['batch_size']}"
    capability = facts["compute_capability"]
    if capability not in ("", "cpu", "0", "none"):
        machine = f"compute capability {capability}, {facts['sm_count']} SMs"
    else:
        machine = f"CPU {facts['cpu']}".rstrip()
        if facts["threads"] not in ("", "0"):
            machine += f" with {plural(int(facts['threads']), 'thread')}"
        if facts["simulated"].lower() in ("true", "1"):
            machine += f" modelling {facts['sm_count']} SMs"
    return f"{machine}, {engine}".replace("  ", " ")
