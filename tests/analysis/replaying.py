"""Transcripts and replays of made-up configs whose distances and noise are known.

A config's row is a base that all share, plus its own offset (normal, 1 a component, fixed by reference and
position), plus noise that is new in every run. Sketches are the rows themselves; a hash is of their bytes.
Both records state one environment class, plain greedy decoding and repeats in processes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.backends.sampling import greedy
from qdx.document.text import render

LENGTH, COMPONENTS, PREFILL = 10, 8, 4
FACTS = {
    "dtype": "float32",
    "compute_capability": "9.0",
    "sm_count": 132,
    "backend": "b",
    "backend_version": "1",
    "batch_size": 1,
    "batch_layout": "in order",
    "torch_version": "2.11.0",
    "cuda_version": "13.0",
    "cuda_runtime": "13.0",
    "cublas_version": "13.1.0",
    "cublaslt_version": "13.1.0",
    "kernel_environment": "{}",
    "torch_switches": '{"allow_tf32":false}',
}


def lines(section: Section) -> list[str]:
    """What the text report prints of a section."""
    return render(section.content).splitlines()


def words(section: Section) -> str:
    """The same as one line of single spaces."""
    return " ".join(render(section.content).split())


def row(
    label: str,
    reference: int,
    tokens: int,
    noise: float,
    generator: np.random.Generator,
    phase: int = 0,
) -> np.ndarray:
    """Rows (token, component) of one run."""
    base = np.random.default_rng([1, phase, reference]).normal(0, 30, (tokens, COMPONENTS))
    own = np.random.default_rng([2, phase, reference, *label.encode()]).normal(0, 1, (tokens, COMPONENTS))
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
    repeats: int = 3,
    seed: int = 0,
    verifier_facts: Mapping[str, object] | None = None,
    producer_facts: Mapping[str, object] | None = None,
    first_prompt: int = 0,
    alike: bool = False,
    processes: int | None = None,
    sampling: str | None = None,
) -> tuple[xr.DataTree, xr.DataTree]:
    """A producers' sweep and a verifier's; `noise` maps every label to the standard deviation of its runs.

    References are ref_0, ref_1, … whatever their prompts are; the first one's is the `first_prompt`-th.
    With `alike` all configs have one offset: labels name nothing then. A token's margin under the verifier is
    0 for its own config, and otherwise |normal|; prefill never has noise. A verifier's `repeats` ran in as
    many processes, or in `processes`.
    """
    producers, configs = list(producers or noise), list(configs or noise)
    generator = np.random.default_rng(seed)

    def run(label: str, r: int, noise_of: float, phase: int = 0, rows: int = tokens) -> np.ndarray:
        own = "" if alike else label
        return row(own, first_prompt + r, rows, noise_of, generator, phase).astype(np.float32)

    def runs(label: str) -> list[np.ndarray]:
        return [run(label, r, noise[label]) for r in range(references)]

    own = np.array([[runs(d) for _ in range(repeats)] for d in producers])
    replay = np.array([[[runs(c) for _ in range(repeats)] for c in configs] for _ in producers])
    ids = np.random.default_rng(9).integers(0, 500, (len(producers), references, tokens + 1)).astype(np.int32)
    ids[:, :, 0] = ids[:1, :, 0]  # prefill's row predicts one first token, whoever is judged
    position = np.arange(LENGTH + 1, LENGTH + 1 + tokens, dtype=np.int32)
    names = [f"ref_{r}" for r in range(references)]
    dims = ("config", "repeat", "reference", "position")
    both = ("producer", *dims)
    index = {"repeat": np.arange(repeats), "reference": names}

    def stated(labels: Sequence[str], more: Mapping[str, object] | None) -> dict[str, object]:
        return {k: ("config", [v] * len(labels)) for k, v in {**FACTS, **(more or {})}.items()}

    decode = xr.Dataset(
        {
            "captured": (dims, np.ones(own.shape[:-1], bool)),
            "token_id": (dims, np.broadcast_to(ids[:, None, :, 1:], own.shape[:-1]).copy()),
            "row_hash": (dims, hashes(own)),
            "sketch": ((*dims, "component"), own),
        },
        {"config": producers, **index, "position": position, **stated(producers, producer_facts)},
    )
    equal = np.array([[d == c or alike for c in configs] for d in producers])[:, :, None, None, None]
    margin = np.where(equal, 0.0, np.abs(generator.normal(0, 1, replay.shape[:-1])))
    chosen = np.where(margin == 0, ids[:, None, None, :, 1:], 500)
    replays = xr.Dataset(
        {
            "captured": (both, np.ones(replay.shape[:-1], bool)),
            "token_id": (both, np.broadcast_to(ids[:, None, None, :, 1:], replay.shape[:-1]).copy()),
            "row_hash": (both, hashes(replay)),
            "sketch": ((*both, "component"), replay),
            "target_logit": (both, (20 - margin).astype(np.float32)),
            "top_logit": ((*both, "rank"), np.stack([np.full(margin.shape, 20), margin * 0 + 10], -1)),
            "top_id": ((*both, "rank"), np.stack([chosen, chosen * 0 + 501], -1).astype(np.int32)),
        },
        {
            "producer": producers,
            "config": configs,
            **index,
            "position": position,
            **stated(configs, verifier_facts),
        },
    ).transpose("config", "repeat", "producer", ...)
    output = xr.Dataset(
        {
            "token_id": (
                ("config", "repeat", "reference", "output_token"),
                np.broadcast_to(ids[:, None], (len(producers), repeats, *ids.shape[1:])).copy(),
            )
        },
        {"config": producers, **index},
    )
    prompts = np.arange(references * LENGTH).reshape(references, LENGTH) + first_prompt * LENGTH
    about = xr.Dataset(
        {
            "length": ("reference", np.full(references, LENGTH)),
            "token_ids": (("reference", "token"), prompts.astype(np.int32)),
        },
        {"reference": names},
    )

    def prefill(labels: Sequence[str], more: Mapping[str, object] | None) -> xr.Dataset:
        rows = np.array(
            [
                [[run(label, r, 0.0, 1, PREFILL) for r in range(references)] for _ in range(repeats)]
                for label in labels
            ]
        )
        at = np.arange(LENGTH - PREFILL + 1, LENGTH + 1, dtype=np.int32)
        region = np.array([["content"] * (PREFILL - 2) + ["suffix", "output"]] * references, object)
        return xr.Dataset(
            {
                "captured": (dims, np.ones(rows.shape[:-1], bool)),
                "row_hash": (dims, hashes(rows)),
                "sketch": ((*dims, "component"), rows),
            },
            {
                "config": list(labels),
                **index,
                "position": at,
                "region": (("reference", "position"), region),
                **stated(labels, more),
            },
        )

    here = prefill(configs, verifier_facts)
    first = (len(configs), repeats, len(producers), references)
    fed = np.broadcast_to(ids[None, None, ..., 0], first)
    shape = here["row_hash"].shape
    here = here.assign(
        first_token_id=(("config", "repeat", "producer", "reference"), fed.copy()),
        first_logit=(("config", "repeat", "producer", "reference"), np.full(first, 20, np.float32)),
        top_logit=((*dims, "rank"), np.stack([np.full(shape, 20), np.full(shape, 10)], -1)),
        top_id=((*dims, "rank"), np.broadcast_to(ids[0, :, :1, None], (*shape, 2)).copy()),
    ).assign_coords(producer=producers)
    facts = {
        "sampling": greedy() if sampling is None else sampling,
        "repeat_processes": str(repeats if processes is None else processes),
    }

    def provenance(labels: Sequence[str]) -> xr.Dataset:
        return xr.Dataset({k: ("config", [v] * len(labels)) for k, v in facts.items()}, {"config": labels})

    made = {
        "/decode": decode,
        "/prefill": prefill(producers, producer_facts),
        "/output": output,
        "/references": about,
        "/provenance": provenance(producers),
    }
    checked = {"/replay": replays, "/prefill": here, "/references": about, "/provenance": provenance(configs)}
    return xr.DataTree.from_dict(made), xr.DataTree.from_dict(checked)
