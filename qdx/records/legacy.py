"""Result files of the experiment that qdx grew out of: token ids of prompts and outputs.

The files do not state how tokens were chosen. Their log-probabilities at three positions are kept unread;
`qdx.legacy` converts all that such a file holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdx.plugins import register
from qdx.records import lines
from qdx.records.record import FieldError, Fields, Record, Unreadable


@register("record_reader", "legacy")
class Legacy:
    """Read the generations of a result file of the original experiment; each config is a provider."""

    def matches(self, head: bytes) -> bool:
        """Return whether the file is an object with ``generations`` and ``metadata``."""
        return {"generations", "metadata"} <= lines.peek(head).keys()

    def read(self, path: Path) -> Iterator[Record | Unreadable]:
        """Read every generation; see `qdx.records.RecordReader`."""
        for value in lines.values(path):
            if isinstance(value, Unreadable):
                yield value
                continue
            try:
                root = Fields(value.value)
                generations = root.object("generations") or Fields({}, "generations")
                models = (root.object("metadata") or Fields({}, "metadata")).object("model_configs")
                names = {} if models is None else models.left()
                listed = [(label, generations.entries(label)) for label in list(generations.left())]
            except FieldError as error:
                yield Unreadable(value.where, str(error))
                continue
            for label, runs in listed:
                for run in runs:
                    where = f"{value.where}: {run.path}"
                    yield from lines.naming(where, _record(where, label, run, names.get(label)))


def _record(where: str, label: str, run: Fields, about: Any) -> Iterator[Record]:
    prompt, output = run.ids("prompt_ids"), run.ids("generated_ids")
    if prompt is None or output is None:
        raise FieldError(run.at("prompt_ids"), None, "the token ids of the prompt, and generated_ids")
    facts = about if isinstance(about, dict) else {}
    number = run.raw("ref_idx")
    yield Record(
        where,
        "" if number is None else f"{label}/{number}",
        prompt_ids=prompt,
        output_ids=output,
        model=str(facts.get("model_name", "")),
        provider=label,
        weight_format=str(facts.get("quantization") or ""),
        other=run.left(),
    )
