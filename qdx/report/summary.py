"""The report's numbers for programs: ``summary.json``. Facts only; a verdict is the reader's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

import qdx
from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.report.state import EXCHANGE, Facts, Files, next_command, report_command, resume_command
from qdx.report.text import simulated_configs

SUMMARY_VERSION = 2  # 2: `verdicts`
VERDICT_SCHEMA = 1
OF_DRAWN = ("false_share_at_least", "temperature_low", "temperature_high")
LONG = {  # in sweep.nc; too long for a summary
    "effects": ("reference_mean", "rows", "not_measured"),
    "consistency": ("agreement_at", "prefix_agreement"),
    "attribution": (
        "roc",
        *(f"{name}{end}" for name in ("tpr_at", "margin_tpr_at") for end in ("", "_low", "_high")),
    ),
    "crossing": ("reference_mean",),
}


def summarize(
    facts: Facts, tree: xr.DataTree | None, sections: Sequence[Section], time: str
) -> dict[str, Any]:
    """Collect the numbers of a report.

    Returns
    -------
    dict
        ``analyses[name]`` holds that analysis' variables as nested mappings by coordinate
        (``effects.mean[metric][phase] [region][config][config_b]``), what was not measured as None; beside
        it jobs, configs, references, files and commands.
    """
    summary: dict[str, Any] = {
        "kind": "summary",
        "schema_version": SUMMARY_VERSION,
        "qdx_version": qdx.__version__,
        "time_utc": time,
        "directory": str(facts.directory),
        "labels": {
            "expected": list(facts.labels),
            "failed": dict(facts.failed),
            "missing": list(facts.missing),
        },
        "analyses_failed": dict(facts.broken),
        "metrics_failed": dict(facts.unmeasured),
        "files_failed": dict(facts.unwritten),
        "files_damaged": dict(facts.damaged),
        "files_unchecked": dict(facts.unchecked),
        "files": {},
        "runs": {},
        "commands": {"resume": resume_command(facts), "report": report_command(facts)},
        "simulated": [],
        "configs": {},
        "references": {},
        "analyses": {},
    }
    if tree is None:
        return summary
    view = View(tree)
    summary["simulated"] = simulated_configs(view)
    why, command = next_command(facts, view.configs)
    summary["commands"]["exchange" if why.startswith(EXCHANGE) else "verifier"] = command
    summary["configs"] = _configs(view)
    summary["references"] = _references(view)
    summary["metrics"] = {m: {k: _plain(v) for k, v in view.facts(m).items()} for m in view.metrics}
    for section in sections:
        kept = section.result.drop_vars(LONG.get(section.name, ()), errors="ignore")
        summary["analyses"][section.name] = {str(n): nested(kept[n]) for n in kept.data_vars}
        if section.name == "verify":
            summary["verdict"] = section.result.attrs["headline"]
            summary["verdicts"] = verdicts(section)
        if section.name == "pairs":
            summary["analyses"]["pairs"]["pair_type"] = nested(kept["pair_type"])
    return summary


def verdicts(section: Section) -> dict[str, Any]:
    """Collect what scripts read of a verifier's sweep; docs/verification.md documents it.

    Returns
    -------
    dict
        ``schema_version``, ``alpha``, ``exit_status`` and ``claims``, a list of one mapping a producer.
    """
    from qdx.verification.verdicts import exit_status

    result = section.result
    names = ("claim", "verdict", "concerns", "because", "plain_greedy", "answer", "false_at_least", "units")
    of_phases = [f"{what}_{phase}" for what in ("drawn", "false_share") for phase in ("prefill", "decode")]
    more = ("unmet", "drawn_rows", *of_phases)
    more += tuple(name for name in OF_DRAWN if name in result)
    found = []
    for producer in [str(v) for v in result["producer"].values]:
        one = result.sel(producer=producer)
        tests = {
            str(name): {
                "p": _plain(one["test_p"].sel(test=name).item()),
                "against": str(one["test_null"].sel(test=name).item()),
            }
            for name in one["test"].values
        }
        numbers = {"p": one["p_test"], "p_adjusted": one["p_test_holm"]}
        found.append(
            {
                "producer": producer,
                **{name: _plain(one[name].item()) for name in (*names, *more)},
                **{name: _plain(value.item()) for name, value in numbers.items()},
                "tests": tests,
            }
        )
    return {
        "schema_version": VERDICT_SCHEMA,
        "alpha": float(result.attrs["alpha"]),
        "exit_status": exit_status([one["verdict"] for one in found]),
        "claims": found,
    }


def with_files(summary: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """Return the summary with paths and bytes: ``files`` by name, every ``run.nc`` in ``runs`` by label.

    The bytes of ``summary.json`` itself are null.
    """
    entries = [(p, {"path": str(p), "bytes": size}) for p, size in files]
    runs = {p.parent.name: entry for p, entry in entries if p.name == "run.nc"}
    return {**summary, "runs": runs, "files": {p.name: e for p, e in entries if p.name != "run.nc"}}


def nested(data: xr.DataArray) -> Any:
    """Turn an array into mappings by its coordinates; a dimension without coordinate becomes a list."""
    keys = [[str(k) for k in data[d].values] if d in data.coords else None for d in data.dims]

    def part(values: Any, axis: int) -> Any:
        if axis == len(keys):
            return _plain(values)
        parts = [part(value, axis + 1) for value in values]
        names = keys[axis]
        return parts if names is None else dict(zip(names, parts, strict=True))

    return part(data.values if keys else data.item(), 0)


def dump(summary: Mapping[str, Any]) -> str:
    """Write as JSON with sorted keys; anything that is not a finite number is null."""
    return json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (bool, int, str)) or value is None else str(value)


def _configs(view: View) -> dict[str, dict[str, str]]:
    if "provenance" not in view.tree.children:
        return {c: {} for c in view.configs}
    stored = view.group("provenance")
    names = [str(n) for n in stored.data_vars if stored[n].dims == ("config",) and n != "config"]
    facts = {c: {n: str(stored[n].sel(config=c).item()) for n in names} for c in view.configs}
    for name in ("format", "requested_kernel", "observed_kernel", "dtype", "batch_size"):
        for config, value in zip(view.configs, view.of_config(name), strict=True):
            facts[config].setdefault(name, value)
    return facts


def _references(view: View) -> dict[str, dict[str, Any]]:
    if "references" not in view.tree.children:
        return {}
    stored = view.group("references")
    names = [str(n) for n in stored.data_vars if stored[n].dims == ("reference",) and n != "text"]
    return {
        str(r): {n: _plain(stored[n].sel(reference=r).item()) for n in names}
        for r in stored["reference"].values
    }
