"""A small sweep of real files, written by the real recorder, whose relations are known.

Four configs over a vocabulary of 300 and three references, three repeats:

- ``awq`` and ``awq_marlin``: one checkpoint, two kernels; their logits differ by about 0.01.
- ``gptq`` and ``gptq_marlin``: another checkpoint; it differs from the first by about 0.5 a logit.
- ``gptq`` adds noise of 0.01, new in every repeat, to its decode and replay, none to its prefill.
- All others repeat bit-exactly.

A row depends on the reference, the position and the token that was consumed, as a language model's does, so
that free generations of unlike configs go apart and do not come together again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qdx.backends.sampling import greedy as greedily
from qdx.capture import CaptureSettings, Recorder, greedy

VOCAB, REFERENCES, REPEATS, TOKENS = 300, 3, 3, 8
CONFIGS = {
    # label: (format, kernel, seed of the checkpoint, seed of the kernel, noise)
    "awq": ("awq", "awq_gemm", 1, 0, 0.0),
    "awq_marlin": ("awq", "marlin", 1, 1, 0.0),
    "gptq": ("gptq", "exllama", 2, 2, 0.01),
    "gptq_marlin": ("gptq", "marlin", 2, 3, 0.0),
}

STATED: dict[str, Any] = {  # what every run states of its process
    "sampling": greedily(),
    "cuda_runtime": "",
    "cublas_version": "",
    "cublaslt_version": "",
    "cudnn_version": "",
    "cpu_capability": "AVX2",
    "blas": "MKL 2024.2",
    "kernel_environment": "{}",
    "torch_switches": '{"deterministic_algorithms":false}',
    "model_runner": "",
    "batch_layout": "in order, batch_size",
    "repeat_processes": 1,
}


@dataclass(frozen=True)
class SmallReference:
    name: str
    token_ids: np.ndarray
    prefix_length: int
    content_length: int
    suffix_length: int
    continuation: np.ndarray
    text: str
    source: str = "helpers.py"
    pages: str = ""
    token_offset: int = 0
    sha256: str = "0" * 64


def small_references(
    count: int = REFERENCES, *, prefix: int = 3, content: int = 12, suffix: int = 2
) -> list[SmallReference]:
    """References of a few random tokens; every third one has a content that is one token longer."""
    generator = np.random.default_rng(7)
    references = []
    for i in range(count):
        own = content + (i % 3 == 2)
        ids = generator.integers(0, VOCAB, prefix + own + suffix).astype(np.int32)
        continuation = generator.integers(0, VOCAB, TOKENS).astype(np.int32)
        references.append(
            SmallReference(
                f"ref_{i}", ids, prefix, own, suffix, continuation, f"content {i}", token_offset=100 * i
            )
        )
    return references


def logits(
    label: str, reference: int, position: int, consumed: int, noise: np.random.Generator | None = None
) -> torch.Tensor:
    """One row, (1, vocab) float16."""
    _, _, checkpoint, kernel, amount = CONFIGS[label]
    base = np.random.default_rng([reference, position, consumed]).normal(0, 3, VOCAB)
    base += np.random.default_rng([reference, position, consumed, checkpoint]).normal(0, 0.5, VOCAB)
    if kernel:
        base += np.random.default_rng([reference, position, consumed, checkpoint, kernel]).normal(
            0, 0.01, VOCAB
        )
    if noise is not None:
        base += noise.normal(0, amount, VOCAB)
    return torch.from_numpy(base.astype(np.float16))[None]


def coords(label: str) -> dict[str, Any]:
    fmt, kernel, *_ = CONFIGS[label]
    return {
        "format": fmt,
        "requested_kernel": kernel,
        "observed_kernel": f"model:{kernel}",
        "dtype": "float16",
        "model": "small",
        "backend": "helpers",
        "backend_version": "1",
        "batch_size": 1,
        "gpu": "",
        "compute_capability": "",
        "sm_count": 132,
        "simulated": True,
    }


def recorder(
    path: Path,
    label: str = "awq",
    *,
    references: list[SmallReference] | None = None,
    repeats: int = REPEATS,
    **options: Any,
) -> Recorder:
    """A recorder with this module's defaults."""
    capture = CaptureSettings(
        **{
            "k": 5,
            "components": 16,
            "prefill_positions": 8,
            **{k: options.pop(k) for k in ("mode", "k", "components", "prefill_positions") if k in options},
        }
    )
    settings: dict[str, Any] = {
        "output_tokens": TOKENS,
        "vocab": VOCAB,
        "dtype": torch.float16,
        "coords": coords(label) if label in CONFIGS else coords("awq"),
        "layers": {
            "self_attn.q_proj": ("Helper", coords(label if label in CONFIGS else "awq")["observed_kernel"])
        },
        "attrs": {"tokenizer_sha256": "t" * 64, "config": f"label: {label}\n", "seed": 0, **STATED},
    }
    settings.update(options)
    return Recorder(
        path,
        references=references or small_references(),
        repeats=repeats,
        capture=capture,
        label=label,
        **settings,
    )


def write_run(path: Path, label: str, **options: Any) -> None:
    """Write one run: what `qdx.experiment` makes a backend do, with `logits` as the model."""
    references = options.setdefault("references", None) or small_references()
    repeats = options.get("repeats", REPEATS)
    noise = np.random.default_rng(CONFIGS[label][3])
    with recorder(path, label, **options) as record:
        for repeat in range(repeats):
            for i, reference in enumerate(references):
                ids, length = reference.token_ids, len(reference.token_ids)
                record.begin("prefill", repeat, [i])
                positions = record.wanted(0)
                rows = torch.cat([logits(label, i, int(p), int(ids[p - 1])) for p in positions])
                targets = torch.tensor([int(ids[p]) if p < length else -1 for p in positions])
                record.rows(0, positions, rows, targets)
                generated = [int(greedy(rows[-1:])[0])]
                record.begin("decode", repeat, [i])
                for position in record.wanted(0):
                    row = logits(label, i, int(position), generated[-1], noise)
                    record.rows(0, np.array([position]), row)
                    generated.append(int(greedy(row)[0]))
                record.begin("replay", repeat, [i])
                for j, position in enumerate(record.wanted(0)):
                    row = logits(label, i, int(position), int(reference.continuation[j]), noise)
                    record.rows(
                        0, np.array([position]), row, torch.tensor([int(reference.continuation[j + 1])])
                    )
                record.output(repeat, i, generated, " ".join(map(str, generated)), -1)
                record.sync()
        record.finish({"engine": "helpers"})


def write_sweep(directory: Path, labels: list[str] | None = None, **options: Any) -> Path:
    """Write ``<label>/run.nc`` of every config and ``sweep.json``; merging is left to the caller.

    Options go to the recorder (``mode="topk"``, ``repeats=2``, ``portable=True`` …).
    """
    labels = list(CONFIGS) if labels is None else labels
    directory.mkdir(parents=True, exist_ok=True)
    for label in labels:
        write_run(directory / label / "run.nc", label, **options)
    settings = {
        "command_line": "tests/helpers.py",
        "labels": labels,
        "resume": "",
        "overrides": [],
    }
    (directory / "sweep.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory
