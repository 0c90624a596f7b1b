"""Token consistency: how far the free generations of configs agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section, check
from qdx.analysis.view import View
from qdx.document.blocks import Block, Matrix, Text
from qdx.document.format import DASH, percent, plural
from qdx.plugins import register
from qdx.statistics import Ints, compared_tokens, first_difference, masked_mean


@register("analysis", "consistency", title="Token consistency", check=check)
def consistency(tree: xr.DataTree, words: int = 12) -> Section:
    """Compare the generated tokens and texts of every pair of configs, first repeat of each.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep with ``/output``.
    words : int
        How many first words of each text are kept in the result.

    Returns
    -------
    Section
        Result over (config, config_b, reference, output_token). ``first_divergence`` is the index of the
        first differing token, -1 for none. ``agreement`` is the share of equal tokens at the same index, over
        all references, and ``agreement_at`` is the same at each index. ``prefix_agreement`` is the share of
        references whose tokens are equal up to and including each index. Further ``tokens_compared``,
        ``text_equal`` and ``first_words``.
    """
    view = View(tree)
    outputs = view.outputs()
    if outputs is None or not outputs.size:
        return _section(xr.Dataset(), [Text("No free generation was recorded.")])
    first = outputs[:, 0]  # config, reference, token
    a, b = first[:, None], first[None, :]
    compared = compared_tokens(a, b)
    same = (a == b).astype(float)
    until = np.logical_and.accumulate((a == b) | ~compared, axis=-1).astype(float)
    at, _ = masked_mean(same, compared, axis=-2)
    prefix, _ = masked_mean(until, compared, axis=-2)
    agreement, count = masked_mean(same.reshape(*same.shape[:2], -1), compared.reshape(*same.shape[:2], -1))
    split = first_difference(a, b)
    text = _texts(view, first)
    pair, one = ("config", "config_b"), {"units": "1"}
    alike = {**one, "higher_means": "more alike"}
    result = xr.Dataset(
        {
            "first_divergence": (
                (*pair, "reference"),
                split,
                {**one, "long_name": "index of the first differing output token; -1: none differs"},
            ),
            "agreement": (
                pair,
                agreement,
                {**alike, "long_name": "share of output tokens that are equal at the same index"},
            ),
            "agreement_at": (
                (*pair, "output_token"),
                at,
                {**alike, "long_name": "share of references whose token is equal at this index"},
            ),
            "prefix_agreement": (
                (*pair, "output_token"),
                prefix,
                {
                    **alike,
                    "long_name": "share of references whose tokens are equal up to and including this index",
                },
            ),
            "tokens_compared": (pair, count, {**one, "long_name": "pairs of tokens compared"}),
            "text_equal": (
                (*pair, "reference"),
                text[:, None] == text[None, :],
                {**alike, "long_name": "whether the generated texts are equal"},
            ),
            "first_words": (
                ("config", "reference"),
                np.vectorize(lambda t: " ".join(t.split()[:words]), otypes=[object])(text),
                {**one, "long_name": f"the first {words} words of the generated text"},
            ),
        },
        coords={
            "config": view.configs,
            "config_b": view.configs,
            "reference": view.references,
            "output_token": np.arange(first.shape[-1]),
        },
    )
    return _section(result, _blocks(view, result))


def _section(result: xr.Dataset, blocks: Sequence[Block]) -> Section:
    return Section("consistency", "Token consistency", result, blocks=blocks, place="front")


def _texts(view: View, tokens_CRT: Ints) -> np.ndarray:
    """The first repeat's text, (config, reference); its token ids where the file has no text."""
    output = view.group("output")
    if "text" in output:
        return np.asarray(output["text"].transpose("config", "repeat", "reference").values[:, 0].astype(str))
    joined = [[" ".join(map(str, ids[ids >= 0])) for ids in row] for row in tokens_CRT]
    return np.array(joined)


def _blocks(view: View, result: xr.Dataset) -> list[Block]:
    names = view.names
    tokens = plural(result.sizes["output_token"], "token")
    references = plural(len(view.references), "reference")
    if len(names) == 1:
        return [Text(f"One config: nothing to compare ({references} × {tokens} generated).")]
    off = ~np.eye(len(names), dtype=bool)
    equal = np.triu(result["text_equal"].values.all(-1) & off)
    same = [f"{names[a]} and {names[b]}" for a, b in zip(*np.nonzero(equal), strict=True)]
    pairs = len(names) * (len(names) - 1) // 2
    which = f": {'; '.join(same[:6])}{' …' if len(same) > 6 else ''}" if same else ""
    return [
        Matrix(
            f"Share of equal output tokens at the same index ({references} × {tokens}).",
            names,
            [[percent(v) for v in row] for row in result["agreement"].values],
        ),
        Matrix(
            "First differing output token, from 0: earliest…latest over references; = where none differs.",
            names,
            _divergence_cells(result["first_divergence"].values, result["tokens_compared"].values),
        ),
        Text(f"Texts equal in every reference: {len(same)} of {plural(pairs, 'pair')}{which}"),
    ]


def _divergence_cells(split_CCR: np.ndarray, compared_CC: np.ndarray) -> list[list[str]]:
    """Cells for `Matrix`, which leaves the diagonal out."""
    cells = []
    for a, row in enumerate(split_CCR):
        line = []
        for b, split in enumerate(row):
            if not compared_CC[a, b]:
                line.append(DASH)
            elif (split < 0).all():
                line.append("=")
            else:
                earliest = str(split[split >= 0].min())
                latest = "=" if (split < 0).any() else str(split.max())
                line.append(earliest if earliest == latest else f"{earliest}…{latest}")
        cells.append(line)
    return cells
