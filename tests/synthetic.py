"""Sweeps in memory, in the layout of ``sweep.nc``, whose every number can be worked out by hand.

A reference is 3 prefix + 4 content + 3 suffix = 10 tokens. Prefill rows predict positions 1…10: two of the
prefix (1, 2), four of content (3…6), three of the suffix (7…9) and the first output (10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qdx.analysis import Section
from qdx.document import text
from qdx.document.blocks import of_phase

PREFIX, CONTENT, SUFFIX = 3, 4, 3
LENGTH = PREFIX + CONTENT + SUFFIX
VOCAB = 4
PREFILL_CONTENT = 5  # rows: four of the snippet and the first output
PREFILL_TEMPLATE = 5
ROW_DIMS = ("config", "repeat", "reference", "position")


def words(section: Section, phase: str = "") -> str:
    """What a section says of a phase, as the text report prints it; of ``""`` what belongs to none."""
    return text.render(of_phase(section.content, phase))


def blank(configs: int = 2, repeats: int = 3, references: int = 4, tokens: int = 6) -> dict[str, np.ndarray]:
    """Rows of zeros for every phase, and equal tokens everywhere: every config is every other one."""
    steps = tokens - 1
    shape = (configs, repeats, references)
    return {
        "prefill": np.zeros((*shape, LENGTH, VOCAB)),
        "replay": np.zeros((*shape, steps, VOCAB)),
        "decode": np.zeros((*shape, steps, VOCAB)),
        "tokens": np.broadcast_to(np.arange(tokens, dtype=np.int32), (*shape, tokens)).copy(),
    }


def positions(phase: str, count: int) -> np.ndarray:
    return np.arange(1, LENGTH + 1) if phase == "prefill" else np.arange(LENGTH + 1, LENGTH + 1 + count)


def regions(position: np.ndarray, references: int) -> np.ndarray:
    edges = np.cumsum([PREFIX, CONTENT, SUFFIX])
    names = np.array(["prefix", "content", "suffix", "output"])[
        np.searchsorted(edges, position, side="right")
    ]
    return np.tile(names, (references, 1)).astype(object)


def distance(metric: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """l2 of the rows; skew: squared difference of component 0, doubled below 0; overlap: 1 for equal."""
    if metric == "l2":
        return np.sqrt(((a - b) ** 2).sum(-1))
    if metric == "skew":
        d = a[..., 0] - b[..., 0]
        return np.where(d < 0, 2 * d**2, d**2)
    return (a == b).all(-1).astype(float)


FACTS = {
    "l2": {"units": "nat", "higher_means": "less alike", "formula": "√ Σ_v (ln p_v − ln q_v)²"},
    "skew": {"units": "1", "higher_means": "less alike", "formula": "(p_0 − q_0)², doubled below 0"},
    "overlap": {"units": "1", "higher_means": "more alike", "formula": "1 where equal"},
}


def sweep(
    rows: Mapping[str, np.ndarray],
    labels: Sequence[str] | None = None,
    formats: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    metrics: Sequence[str] = ("l2", "skew"),
    captured: Mapping[str, np.ndarray] | None = None,
    **coordinates: Sequence[object],
) -> xr.DataTree:
    """Build the tree of a sweep from rows (config, repeat, reference, position, vocab) and tokens."""
    tokens = rows["tokens"]
    configs, repeats, references, length = tokens.shape
    labels = list(labels or [f"c{i}" for i in range(configs)])
    names = [f"ref_{i}" for i in range(references)]
    facts: dict[str, Sequence[object]] = {
        "format": formats or ["awq"] * configs,
        "requested_kernel": [k.removeprefix("model:") for k in kernels or ["marlin"] * configs],
        "observed_kernel": kernels or ["marlin"] * configs,
        "dtype": ["float16"] * configs,
        "model": ["smollm2"] * configs,
        "backend": ["transformers"] * configs,
        "backend_version": ["5.23"] * configs,
        "batch_size": [1] * configs,
        "gpu": [""] * configs,
        "compute_capability": [""] * configs,
        "sm_count": [132] * configs,
        "simulated": [False] * configs,
        **coordinates,
    }
    groups: dict[str, xr.Dataset] = {}
    for phase in ("prefill", "decode", "replay"):
        if phase not in rows:
            continue
        data = rows[phase]
        position = positions(phase, data.shape[3])
        here = np.ones(data.shape[:-1], bool) if not captured or phase not in captured else captured[phase]
        hashes = np.array([hash(row.tobytes()) % 2**64 for row in data.reshape(-1, VOCAB)], np.uint64)
        coords = {
            "config": labels,
            "repeat": np.arange(repeats),
            "reference": names,
            "position": position,
            "region": (("reference", "position"), regions(position, references)),
            **{k: ("config", list(v)) for k, v in facts.items()},
        }
        groups[f"/{phase}"] = xr.Dataset(
            {"captured": (ROW_DIMS, here), "row_hash": (ROW_DIMS, hashes.reshape(data.shape[:-1]))}, coords
        )
        for metric in metrics:
            groups[f"/metrics/{metric}/{phase}"] = measure(metric, phase, data, here, tokens, coords)
    groups["/references"] = references_of(names)
    words = np.array([" ".join(f"w{t}" for t in run) for run in tokens.reshape(-1, length)], dtype=object)
    groups["/output"] = xr.Dataset(
        {
            "token_id": (("config", "repeat", "reference", "output_token"), tokens),
            "text": (("config", "repeat", "reference"), words.reshape(tokens.shape[:3])),
        },
        {"config": labels, "repeat": np.arange(repeats), "reference": names},
    )
    groups["/provenance"] = xr.Dataset(
        {
            k: ("config", [str(v) for v in values])
            for k, values in {
                **facts,
                "qdx_version": ["0.1.0"] * configs,
                "torch_version": ["2.13.0"] * configs,
                "engine": ["transformers"] * configs,
                "engine_version": ["5.23.0"] * configs,
                "host": ["box"] * configs,
            }.items()
        },
        {"config": labels},
    )
    return xr.DataTree.from_dict(groups)


def references_of(names: list[str]) -> xr.Dataset:
    count = len(names)
    return xr.Dataset(
        {
            "length": ("reference", np.full(count, LENGTH)),
            "prefix_length": ("reference", np.full(count, PREFIX)),
            "content_length": ("reference", np.full(count, CONTENT)),
            "suffix_length": ("reference", np.full(count, SUFFIX)),
            "source": ("reference", np.array(["handbook.pdf"] * count, object)),
            "pages": ("reference", np.array([str(i + 1) for i in range(count)], object)),
            "sha256": ("reference", np.array(["ab" * 32] * count, object)),
            "token_offset": ("reference", np.arange(count) * 100),
        },
        {"reference": names},
    )


def measure(metric, phase, data, captured, tokens, coords):  # type: ignore[no-untyped-def]
    """Distances with NaN beyond the first differing token, counted in plain loops."""
    configs, repeats, references = data.shape[:3]
    pairs = [(i, j) for i in range(repeats) for j in range(i + 1, repeats)]

    def one(a: tuple[int, int], b: tuple[int, int]) -> np.ndarray:
        value = distance(metric, data[a], data[b])
        value = np.where(captured[a] & captured[b], value, np.nan)
        if phase == "decode":
            for r in range(references):
                differ = [i for i in range(tokens.shape[-1]) if tokens[a][r, i] != tokens[b][r, i]]
                if differ:  # decode row j predicts token j + 1
                    value[r, differ[0] :] = np.nan
        return value

    between = np.array([[one((a, 0), (b, 0)) for b in range(configs)] for a in range(configs)])
    keep = {k: coords[k] for k in ("reference", "position", "region")}
    result = xr.Dataset(
        {metric: (("config", "config_b", "reference", "position"), between, FACTS[metric])},
        {"config": coords["config"], "config_b": coords["config"], **keep},
    )
    if pairs:
        within = np.array([[one((c, i), (c, j)) for i, j in pairs] for c in range(configs)])
        result["repeat_distance"] = (
            ("config", "repeat_pair", "reference", "position"),
            within,
            FACTS[metric],
        )
        result = result.assign_coords(repeat_pair=[f"{i}-{j}" for i, j in pairs])
    return result
