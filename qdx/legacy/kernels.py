"""Name the kernel by the original's distances: by likelihood, and by least distance as the original did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.document.format import DASH
from qdx.document.text import table, wrap
from qdx.errors import QdxError
from qdx.legacy.convert import read
from qdx.legacy.reading import Node
from qdx.verification.by_distance import Named, name_by_distance

PREFIX = "metrics/seed_l2/"
WAYS = ("by likelihood", "by least distance")


def kernels(file: str | Path) -> list[str]:
    """Say how many transcripts of a verification file are named rightly.

    Parameters
    ----------
    file : path
        A verification file of the original experiment: JSON with ``comparisons``, or matrices of each
        reference.

    Returns
    -------
    list of str
        A table a phase, with counts.

    Raises
    ------
    QdxError
        When the file cannot be read, or compares no transcripts of one machine with another's.
    """
    file = Path(file)
    imported = read(file)
    phases = {name.removeprefix(PREFIX): d for name, d in imported.groups.items() if name.startswith(PREFIX)}
    phases = {phase: data for phase, data in phases.items() if "producer" in data.dims}
    if not phases:
        raise QdxError(
            f"{file}: it compares configs of one machine, not transcripts with another machine's: give a "
            "verification file (with comparisons)"
        )
    formats = _formats(file)
    lines = [
        file.name,
        wrap(
            "Who made a transcript, named by its mean distance to every config's replay on another machine. "
            "By likelihood: the distance in units of each config's own spread, which the other references "
            "give by their labels. By least distance: the original's way. No level and no verdict: the "
            "labels are taken as true.",
            "",
            "",
        ),
        "",
    ]
    found = {phase: _Phase.of(data) for phase, data in phases.items()}
    lines += _summary(found)
    for phase, one in found.items():
        lines += one.lines(phase, formats)
    return lines


def _formats(file: Path) -> dict[str, str]:
    """The checkpoint of each config, where the file states it."""
    node = Node.load(file).find("metadata.model_configs")
    if node is None or not isinstance(node.value, dict):
        return {}
    return {
        label: str(facts.value.get("model_name", ""))
        for label, facts in node.items()
        if isinstance(facts.value, dict)
    }


@dataclass(frozen=True)
class _Phase:
    """Hold what was named in one phase."""

    producers: list[str]
    configs: list[str]
    transcripts_D: NDArray[np.int64]  # measured
    named: Named

    @classmethod
    def of(cls, data: xr.Dataset) -> _Phase:
        producers, configs = ([str(v) for v in data[name].values] for name in ("producer", "config"))
        distance = np.asarray(data["seed_l2"].transpose("producer", "config", "reference").values, float)
        measured = np.isfinite(distance).any(1).sum(-1)
        return cls(producers, configs, measured, name_by_distance(distance, producers, configs))

    def counts(self, way: str) -> NDArray[np.int64]:
        """Transcripts (producer, config) by the config that they were named."""
        index_DR = self.named.likeliest_DR if way == WAYS[0] else self.named.nearest_DR
        return np.stack([(index_DR == c).sum(-1) for c in range(len(self.configs))], -1)

    def right(self, way: str) -> list[int]:
        """Transcripts of each producer that were named by its own label."""
        counts = self.counts(way)
        return [
            int(counts[d, self.configs.index(label)]) if label in self.configs else 0
            for d, label in enumerate(self.producers)
        ]

    def lines(self, phase: str, formats: dict[str, str]) -> list[str]:
        """A table for each way: made by, named."""
        lines = []
        total = int(self.transcripts_D.sum())
        for way in WAYS:
            counts, right = self.counts(way), self.right(way)
            head = ["made by", *self.configs, "right"]
            rows = [
                [label, *(str(int(n)) for n in counts[d]), f"{right[d]} of {int(self.transcripts_D[d])}"]
                for d, label in enumerate(self.producers)
            ]
            title = f"{phase}, named {way}: {sum(right)} of {total} right"
            if all(formats.get(c) for c in {*self.producers, *self.configs}):
                same = sum(
                    int(counts[d, c])
                    for d, made_by in enumerate(self.producers)
                    for c, config in enumerate(self.configs)
                    if formats[made_by] == formats[config]
                )
                title += f"; of the true one's checkpoint {same} of {total}"
            lines += ["", title, table(head, rows)]
        return lines


def _summary(found: dict[str, _Phase]) -> list[str]:
    """Rightly named transcripts of each config, by phase and way."""
    producers = list(dict.fromkeys(label for one in found.values() for label in one.producers))
    short = ("likeliest", "nearest")
    head = ["right, made by", *(f"{phase}: {way}" for phase in found for way in short)]
    rows = []
    for label in producers:
        row = [label]
        for one in found.values():
            d = one.producers.index(label) if label in one.producers else -1
            row += [f"{one.right(way)[d]} of {int(one.transcripts_D[d])}" if d >= 0 else DASH for way in WAYS]
        rows.append(row)
    all_of = ["all"]
    for one in found.values():
        all_of += [f"{sum(one.right(way))} of {int(one.transcripts_D.sum())}" for way in WAYS]
    return [table(head, [*rows, all_of])]
