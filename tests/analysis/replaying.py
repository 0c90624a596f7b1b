"""Transcripts and replays of made-up configs whose distances and noise are known.

A config's row is a base that all share, plus its own offset (normal, 1 a component, fixed by reference and
position), plus noise that is new in every run. Sketches are the rows themselves; a hash is of their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

LENGTH, COMPONENTS = 10, 8
FACTS = {
    "dtype": "float32",
    "compute_capability": "9.0",
    "sm_count": 132,
    "backend": "b",
    "backend_version": "1",
    "batch_size": 1,
}


def row(label: str, reference: int, tokens: int, noise: float, generator: np.random.Generator) -> np.ndarray:
    """Rows (token, component) of one run."""
    base = np.random.default_rng([1, reference]).normal(0, 30, (tokens, COMPONENTS))
    own = np.random.default_rng([2, reference, *label.encode()]).normal(0, 1, (tokens, COMPONENTS))
    return base + own + noise * generator.normal(0, 1, (tokens, COMPONENTS))


def hashes(rows: np.ndarray) -> np.ndarray:
    flat = rows.reshape(-1, rows.shape[-1])
    return np.array([hash(r.tobytes()) % 2**64 for r in flat], np.uint64).reshape(rows.shape[:-1])


def trees(
    noise: Mapping[str, float],
    producers: Sequence[str] | None = None,
    configs: Sequence[str] | None = None,
    references: int = 12,
    tokens: int = 16,
    repeats: int = 2,
    seed: int = 0,
    verifier_facts: Mapping[str, object] | None = None,
    producer_facts: Mapping[str, object] | None = None,
    first_prompt: int = 0,
    alike: bool = False,
) -> tuple[xr.DataTree, xr.DataTree]:
    """A producers' sweep and a verifier's; `noise` maps every label to the standard deviation of its runs.

    References are ref_0, ref_1, … whatever their prompts are; the first one's is the `first_prompt`-th.
    With `alike` all configs have one offset: labels name nothing then.
    A token's margin under the verifier is 0 for its own config, and otherwise |normal|.
    """
    producers, configs = list(producers or noise), list(configs or noise)
    generator = np.random.default_rng(seed)

    def run(label: str, r: int) -> np.ndarray:
        own = "" if alike else label
        return row(own, first_prompt + r, tokens, noise[label], generator).astype(np.float32)

    own = np.array([[[run(d, r) for r in range(references)] for _ in range(repeats)] for d in producers])
    replay = np.array(
        [
            [[[run(c, r) for r in range(references)] for _ in range(repeats)] for c in configs]
            for _ in producers
        ]
    )
    ids = np.random.default_rng(9).integers(0, 500, (len(producers), references, tokens)).astype(np.int32)
    position = np.arange(LENGTH + 1, LENGTH + 1 + tokens, dtype=np.int32)
    names = [f"ref_{r}" for r in range(references)]
    dims = ("config", "repeat", "reference", "position")
    both = ("producer", *dims)
    index = {"repeat": np.arange(repeats), "reference": names, "position": position}
    decode = xr.Dataset(
        {
            "captured": (dims, np.ones(own.shape[:-1], bool)),
            "token_id": (dims, np.broadcast_to(ids[:, None], own.shape[:-1]).copy()),
            "row_hash": (dims, hashes(own)),
            "sketch": ((*dims, "component"), own),
        },
        {
            "config": producers,
            **index,
            **{k: ("config", [v] * len(producers)) for k, v in {**FACTS, **(producer_facts or {})}.items()},
        },
    )
    equal = np.array([[d == c or alike for c in configs] for d in producers])[:, :, None, None, None]
    margin = np.where(equal, 0.0, np.abs(generator.normal(0, 1, replay.shape[:-1])))
    facts = {**FACTS, **(verifier_facts or {})}
    replays = xr.Dataset(
        {
            "captured": (both, np.ones(replay.shape[:-1], bool)),
            "token_id": (both, np.broadcast_to(ids[:, None, None], replay.shape[:-1]).copy()),
            "row_hash": (both, hashes(replay)),
            "sketch": ((*both, "component"), replay),
            "target_logit": (both, (20 - margin).astype(np.float32)),
            "top_logit": ((*both, "rank"), np.full((*margin.shape, 2), 20, np.float32)),
        },
        {
            "producer": producers,
            "config": configs,
            **index,
            **{k: ("config", [v] * len(configs)) for k, v in facts.items()},
        },
    ).transpose("config", "repeat", "producer", ...)
    output = xr.Dataset(
        {
            "token_id": (
                ("config", "repeat", "reference", "output_token"),
                np.zeros((len(producers), repeats, references, tokens + 1), np.int32),
            )
        },
        {"config": producers, "repeat": np.arange(repeats), "reference": names},
    )
    prompts = np.arange(references * LENGTH).reshape(references, LENGTH) + first_prompt * LENGTH
    lengths = xr.Dataset(
        {
            "length": ("reference", np.full(references, LENGTH)),
            "token_ids": (("reference", "token"), prompts.astype(np.int32)),
        },
        {"reference": names},
    )
    return (
        xr.DataTree.from_dict({"/decode": decode, "/output": output, "/references": lengths}),
        xr.DataTree.from_dict({"/replay": replays, "/references": lengths}),
    )
