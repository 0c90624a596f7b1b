"""Files of Token-DiFR: token ids of prompts and outputs, in its two spellings.

``{"config": …, "samples": [{"prompt_token_ids": …, "outputs": [{"token_ids": …}]}]}`` is what its page
describes; its downloader writes ``output_token_ids`` in each sample, and the package makes a list of such
samples. The downloader asks an API for text and tokenizes it itself, so its ids are not the emitted ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qdx.plugins import register
from qdx.records import lines
from qdx.records.record import FieldError, Fields, Record, Sampling, Unreadable, stated_sampling
from qdx.records.streams import MOST_CHOICES

# What its config says beside the sampling parameters, and changes no token.
HARMLESS = frozenset({"n_samples", "max_ctx_len"})


@register("record_reader", "difr")
class Difr:
    """Read the samples of a Token-DiFR file; its ``config`` states temperature, model and provider."""

    def matches(self, head: bytes) -> bool:
        """Return whether the first object is such a file, or a sample."""
        first = lines.peek(head)
        samples = first.get("samples")
        one = samples[0] if isinstance(samples, list) and samples else first
        if samples is None and "samples" in first:  # a long file, of which the beginning shows keys alone
            return "prompt_token_ids" in first
        return (
            isinstance(one, dict)
            and "prompt_token_ids" in one
            and bool({"outputs", "output_token_ids"} & one.keys())
        )

    def read(self, path: Path) -> Iterator[Record | Unreadable]:
        """Read every answer of a file; see `qdx.records.RecordReader`."""
        return lines.each(path, _entries)


def _entries(value: lines.Value) -> Iterator[Record | Unreadable]:
    whole = Fields(value.value)
    if "samples" not in whole:
        yield from _sample(value.where, value.value, Sampling(), {}, {}, False)
        return
    config = whole.object("config") or Fields({}, "config")
    about = {name: config.text(name) for name in ("model", "provider")}
    sampling = stated_sampling(config, HARMLESS)
    other = {f"config.{name}": v for name, v in config.left().items()}
    samples = whole.raw("samples")
    if not isinstance(samples, list):
        raise FieldError("samples", samples, "a list")
    for number, one in enumerate(samples):
        where = f"{value.where}: samples[{number}]"
        # A sample that cannot be read does not hide the others.
        yield from lines.naming(where, _sample(where, one, sampling, about, other, True))


def _sample(
    where: str,
    one: object,
    sampling: Sampling,
    about: Mapping[str, str],
    other: Mapping[str, Any],
    downloaded: bool,
) -> Iterator[Record]:
    sample = Fields(one)
    prompt = sample.ids("prompt_token_ids")
    if prompt is None:
        raise FieldError("prompt_token_ids", None, "the token ids of the prompt")
    outputs = [("output_token_ids", sample.ids("output_token_ids"))]
    if outputs[0][1] is None:
        downloaded = False
        outputs = [(o.at("token_ids"), o.ids("token_ids")) for o in sample.entries("outputs", MOST_CHOICES)]
    if not outputs:
        raise FieldError("outputs", None, "at least one output")
    left = {**other, **sample.left()}
    for number, (path, ids) in enumerate(outputs):
        if ids is None:
            raise FieldError(path, None, "the token ids of the output")
        yield Record(
            where,
            choice=number,
            prompt_ids=prompt,
            output_ids=ids,
            retokenized=downloaded,
            sampling=sampling,
            other=left,
            model=about.get("model", ""),
            provider=about.get("provider", ""),
        )
