"""Verification files of the original experiment: one machine's outputs compared with another's replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from qdx.dataset.layout import OWN_PHASES
from qdx.errors import QdxError
from qdx.legacy.analyses import Analysis, analyse
from qdx.legacy.imported import Imported, facts_of, metric_of
from qdx.legacy.ledger import Ledger
from qdx.legacy.reading import Floats, Node, bounded, few, word

DIMS = ("producer", "config", "reference")
CLAIMED, VERIFY = "claimed_", "verify_"
PARTS = ("mean", "max")  # what a file keeps of a comparison's positions


@dataclass(frozen=True)
class Axes:
    """Name who was compared with whom.

    Attributes
    ----------
    key : str
        What varies: config, batch_size, …
    producers, configs, references : list
        Values as the file has them: texts or whole numbers.
    """

    key: str
    producers: list[Any]
    configs: list[Any]
    references: list[Any]

    def labels(self, values: Sequence[Any]) -> list[str]:
        """Names of configs, such as awq or batch_size=4."""
        return [label_of(self.key, value) for value in values]


def label_of(key: str, value: Any) -> str:
    """The name of a config: its own where the file gives one, else key=value."""
    return value if isinstance(value, str) and key == "config" else f"{key}={value}"


def reference_name(value: Any) -> str:
    """The name of a reference: of a number, ref_<number>."""
    return value if isinstance(value, str) else f"ref_{value}"


def read(root: Node) -> Imported:
    """Check a verification file.

    ``comparisons`` is a list of objects with ``claimed_<X>`` and ``verify_<X>`` (X is config, batch_size or
    another key), ``ref_idx`` or ``ref_name``, and ``prefill_distances`` or ``decode_distances``, in which
    ``<signal>_mean`` and ``<signal>_max`` are numbers.

    Returns
    -------
    Imported
        ``metrics/<metric>/<phase>``: the mean over positions (producer, config, reference), and
        ``<metric>_max``. The claimed config is the producer and the verifying one the config; NaN where the
        file has infinity or nothing. ``analysis/legacy/<phase>/<metric>``: what the original made of it.

    Raises
    ------
    QdxError
        With the path of the bad key; where no number was read, with the keys that were there.
    """
    metadata = root["metadata"]
    entries = root["comparisons"].entries()
    if not entries:
        root["comparisons"].refuse("at least one comparison")
    key = _key(entries[0])
    attributes: dict[str, Any] = {f"metadata.{k}": v for k, v in metadata.mapping().items()}
    known_roots = ("metadata", "comparisons", *(f"{phase}_analysis" for phase in OWN_PHASES))
    attributes |= root.others(*known_roots)
    found: dict[tuple[Any, Any, Any], dict[tuple[str, str, str], float]] = {}
    for entry in entries:
        at = _identity(entry, key)
        if at in found:
            raise QdxError(
                f"{entry.path}: got {at[0]} by {at[1]} at reference {at[2]} again, expected it once"
            )
        found[at] = _distances(entry, attributes)
    axes = _axes(found, key, metadata)
    bounded("distances", len(axes.producers), len(axes.configs), len(axes.references))
    few(max(len(axes.producers), len(axes.configs)))
    numbers = sum(int(np.isfinite(v)) for values in found.values() for v in values.values())
    if not numbers:
        raise QdxError(
            f"{root['comparisons'].path}: no number was read in {len(entries)} comparisons: expected "
            "prefill_distances or decode_distances with <signal>_mean and <signal>_max (as logprobs_mean), "
            f"got {_seen(entries)}"
        )
    ledger = Ledger()
    groups: dict[str, xr.Dataset] = {}
    signals = list(dict.fromkeys(signal for values in found.values() for _, signal, _ in values))
    for phase in OWN_PHASES:
        for signal in [s for s in signals if any((phase, s, "mean") in v for v in found.values())]:
            dataset = _dataset(found, axes, phase, signal)
            metric = metric_of(signal)
            groups[f"metrics/{metric}/{phase}"] = dataset
            made = _analysis(root, phase, signal, signals, dataset[metric].values, axes, ledger)
            if made is not None:
                groups[f"analysis/legacy/{phase}/{metric}"] = analysis_dataset(made, axes, signal)
        if (node := root.get(f"{phase}_analysis")) is not None:
            attributes[node.path] = node.value
    words = f"{len(axes.producers)} claimed by {len(axes.configs)} verifying"
    return Imported(
        form="verification",
        groups=groups,
        said=[
            f"verification: {words} {axes.key.replace('_', ' ')}s, {len(axes.references)} references, "
            f"{len(found)} comparisons, {numbers:,} numbers read ({', '.join(map(metric_of, signals))})"
        ],
        attributes=attributes,
        ledger=ledger,
        numbers=numbers,
        facts={"labels": axes.labels(axes.configs), "failed": {}, "missing": []},
    )


def _key(entry: Node) -> str:
    """Return what varies, from the keys of a comparison."""
    keys = [k.removeprefix(CLAIMED) for k in entry.mapping() if k.startswith(CLAIMED)]
    keys = [k for k in keys if k and f"{VERIFY}{k}" in entry.mapping()]
    if len(keys) != 1:
        raise QdxError(
            f"{entry.path}: got the keys {', '.join(list(entry.mapping())[:12])}, expected one pair of "
            f"{CLAIMED}<X> and {VERIFY}<X>"
        )
    return word(keys[0], entry.path)


def _identity(entry: Node, key: str) -> tuple[Any, Any, Any]:
    claimed, verifier = entry[f"{CLAIMED}{key}"], entry[f"{VERIFY}{key}"]
    values = [node.label() if isinstance(node.value, str) else node.integer() for node in (claimed, verifier)]
    if "ref_name" in entry.mapping():
        reference: Any = entry["ref_name"].label()
    else:
        reference = entry["ref_idx"].integer()
    diagonal = entry.get("is_diagonal")
    if diagonal is not None and diagonal.value is not (values[0] == values[1]):
        diagonal.refuse(f"true exactly where {CLAIMED}{key} and {VERIFY}{key} are the same")
    return values[0], values[1], reference


def _distances(entry: Node, attributes: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """(phase, signal, mean or max) → number; other keys go to the attributes."""
    found = {}
    for phase in OWN_PHASES:
        if (node := entry.get(f"{phase}_distances")) is None:
            continue
        for k, value in node.items():
            signal, _, part = k.rpartition("_")
            if signal and part in PARTS:
                found[phase, word(signal, value.path), part] = value.number()
            else:
                attributes[value.path] = value.value
    known = ("ref_idx", "ref_name", "is_diagonal", *(f"{phase}_distances" for phase in OWN_PHASES))
    attributes |= {
        path: value
        for path, value in entry.others(*known).items()
        if not path.rpartition(".")[2].startswith((CLAIMED, VERIFY))
    }
    return found


def _axes(found: Mapping[tuple[Any, Any, Any], Any], key: str, metadata: Node) -> Axes:
    producers = list(dict.fromkeys(claimed for claimed, _, _ in found))
    configs = list(dict.fromkeys(verifier for _, verifier, _ in found))
    references = list(dict.fromkeys(reference for _, _, reference in found))
    texts = sum(isinstance(reference, str) for reference in references)
    if texts not in (0, len(references)):
        raise QdxError("comparisons: got references by ref_idx and by ref_name, expected one kind")
    return Axes(key, _ordered(producers, key, metadata), _ordered(configs, key, metadata), sorted(references))


def _ordered(values: list[Any], key: str, metadata: Node) -> list[Any]:
    """In the order of the metadata, which is that of the file's matrices; else as they come."""
    for listed in (f"{key}s", "model_configs"):
        node = metadata.get(listed)
        if node is not None and isinstance(node.value, list | dict):
            order = [v for v in node.value if isinstance(v, str | int)]
            if set(order) >= set(values):
                return [v for v in order if v in set(values)]
    return values


def _seen(entries: Sequence[Node]) -> str:
    """The keys of the first comparison's distances."""
    shown = []
    for phase in OWN_PHASES:
        node = entries[0].get(f"{phase}_distances")
        if node is not None:
            keys = list(node.value)[:6] if isinstance(node.value, dict) else type(node.value).__name__
            shown.append(f"{phase}_distances: {keys}")
    return "; ".join(shown) or f"the keys {', '.join(list(entries[0].mapping())[:12])}"


def _dataset(
    found: Mapping[tuple[Any, Any, Any], Mapping[tuple[str, str, str], float]],
    axes: Axes,
    phase: str,
    signal: str,
) -> xr.Dataset:
    places = [
        {value: i for i, value in enumerate(of)} for of in (axes.producers, axes.configs, axes.references)
    ]
    arrays = {part: np.full([len(of) for of in places], np.nan) for part in PARTS}
    infinite = 0
    for at, values in found.items():
        index = tuple(place[value] for place, value in zip(places, at, strict=True))
        for part, array in arrays.items():
            value = values.get((phase, signal, part), np.nan)
            infinite += int(np.isinf(value))
            array[index] = value if np.isfinite(value) else np.nan
    metric = metric_of(signal)
    facts = {**facts_of(signal), "infinite": infinite}
    data = {
        metric: (DIMS, arrays["mean"], facts),
        f"{metric}_max": (DIMS, arrays["max"], {**facts, "long_name": "the same, greatest of the positions"}),
    }
    return xr.Dataset(data, coords=_coords(axes))


def _coords(axes: Axes) -> dict[str, Any]:
    return {
        "producer": axes.labels(axes.producers),
        "config": axes.labels(axes.configs),
        "reference": [reference_name(value) for value in axes.references],
    }


def _analysis(
    root: Node,
    phase: str,
    signal: str,
    signals: Sequence[str],
    distance_PCR: Floats,
    axes: Axes,
    ledger: Ledger,
) -> Analysis | None:
    node = root.get(f"{phase}_analysis")
    if node is None:
        return None
    if axes.producers != axes.configs:
        ledger.cannot(node.path, 1, "claimed and verifying configs are not the same, so it has no diagonal")
        return None
    stated = root["metadata"].get(f"{phase}_equivalent_pairs")
    excluded = [] if stated is None else [tuple(e.value for e in p.entries(2)) for p in stated.entries()]
    first = "key_vectors" if "key_vectors" in signals else "logprobs"
    return analyse(
        node, signal, distance_PCR, axes.labels(axes.configs), axes.configs, ledger,
        first=signal == first or len(signals) == 1,
        excluded=[(a, b) for a, b in excluded if isinstance(a, str | int) and isinstance(b, str | int)],
    )  # fmt: skip


def analysis_dataset(made: Analysis, axes: Axes, signal: str) -> xr.Dataset:
    """Return what the original made of distances: computed here, and as its file prints it."""
    unit = {"units": facts_of(signal)["units"]}
    data: dict[str, Any] = {
        "matrix": (DIMS[:2], made.matrix_PC, {**unit, "long_name": "plain mean over references"}),
    }
    if made.per_reference_PCR is not None:
        about = {**unit, "long_name": "mean over positions"}
        data["per_reference"] = (DIMS, made.per_reference_PCR, about)
    if made.stated_matrix_PC is not None:
        about = {**unit, "long_name": "matrix of the file; NaN where it has infinity"}
        data["file_matrix"] = (DIMS[:2], made.stated_matrix_PC, about)
    if made.stated_each_PCR is not None:
        about = {**unit, "long_name": "per_reference_matrices of the file; NaN where it has infinity"}
        data["file_per_reference"] = (DIMS, made.stated_each_PCR, about)
    meaning = {
        "diagonal": "mean of the diagonal: the same config on both machines",
        "off_diagonal": "mean of the cells off the diagonal",
        "meaningful": "the same without the pairs that the file calls equivalent",
        "snr": "off_diagonal / diagonal",
        "snr_meaningful": "meaningful / diagonal",
    }
    for quantity, words in meaning.items():
        units = {"units": "1"} if quantity.startswith("snr") else unit
        data[quantity] = ((), made.summary[quantity], {**units, "long_name": words})
    coords = _coords(axes)
    if not any("reference" in variable[0] for variable in data.values()):
        del coords["reference"]
    return xr.Dataset(data, coords=coords)
