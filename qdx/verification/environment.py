"""Report what producers and verifier state of their software and hardware, claim by claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import SETTINGS, stated
from qdx.document.blocks import Block, Table, Text
from qdx.document.format import plural
from qdx.kernel_names import plain_kernel

SOFTWARE: Mapping[str, str] = {
    "backend": "engine",
    "backend_version": "engine version",
    "model_runner": "model runner",
    "torch_version": "torch",
    "cuda_version": "CUDA",
    "cuda_runtime": "CUDA runtime",
    "cublas_version": "cuBLAS",
    "cublaslt_version": "cuBLASLt",
    "blas": "BLAS",
    "kernel_environment": "kernel variables",
    "torch_switches": "torch's switches",
    "driver_version": "driver",
    "dtype": "dtype",
    "observed_kernel": "kernel",
    "batch_size": "batch size",
    "batch_layout": "batch layout",
    "sampling": "sampling",
    **SETTINGS,
    "weights_sha256": "weights' sha256",
    "code_sha256": "qdx code",
}
HARDWARE: Mapping[str, str] = {
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "sm_count": "SMs",
    "cpu": "CPU",
    "cpu_capability": "CPU instructions",
    "threads": "threads",
}
ABSENT = ("", "0")
DEMANDED = {"weights_sha256": "weights", "dtype": "dtype", "observed_kernel": "kernel"}


def facts_of(tree: xr.DataTree, phase: str, label: str) -> dict[str, str]:
    """Every fact of a config as text, "" where the file does not state it."""
    rows = tree[phase].to_dataset()
    stored = tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()
    return {name: stated(rows, stored, name, label) for name in (*SOFTWARE, *HARDWARE)}


def record_differs(producer: Mapping[str, str], config: Mapping[str, str]) -> str:
    """Say what of a producer's record is not the replayed config's; "" where all agrees or is unknown.

    A kernel and its numerical model are one claim: that the rows are other ones is the environment's doing.
    """

    def same(name: str) -> bool:
        one, two = producer[name], config[name]
        return one == two or (name == "observed_kernel" and plain_kernel(one) == plain_kernel(two))

    return ", ".join(
        f"{noun} ({_short(producer[name])}; here {_short(config[name])})"
        for name, noun in DEMANDED.items()
        if producer.get(name) and config.get(name) and not same(name)
    )


def _short(value: str) -> str:
    return value if len(value) <= 32 else f"{value[:31]}…"


def environment_validation(
    producer_tree: xr.DataTree, verifier_tree: xr.DataTree, claims: Mapping[str, str]
) -> Section:
    """Hold what each producer states against what its claimed config states here.

    Parameters
    ----------
    producer_tree, verifier_tree : xarray.DataTree
        See `qdx.verification.verify`.
    claims : Mapping of str to str
        Producer → config; one that was not replayed is left out.

    Returns
    -------
    Section
        Result over (producer, fact): ``stated``, ``here``, ``agrees``. A fact that neither side states is
        left out; one that a single side states does not agree.
    """
    configs = [str(v) for v in verifier_tree["replay"].to_dataset()["config"].values]
    pairs = {d: c for d, c in claims.items() if c in configs}
    stated = {d: facts_of(producer_tree, "decode", d) for d in pairs}
    here = {d: facts_of(verifier_tree, "replay", c) for d, c in pairs.items()}
    names = [
        n
        for n in (*SOFTWARE, *HARDWARE)
        if any(facts[n] not in ABSENT for side in (stated, here) for facts in side.values())
    ]
    shape = (len(pairs), len(names))
    left = np.array([[stated[d][n] for n in names] for d in pairs], object).reshape(shape)
    right = np.array([[here[d][n] for n in names] for d in pairs], object).reshape(shape)
    dims, one = ("producer", "fact"), {"units": "1"}
    result = xr.Dataset(
        {
            "stated": (dims, left, {**one, "long_name": "what the producer's record states"}),
            "here": (dims, right, {**one, "long_name": "what the claimed config's record states here"}),
            "agrees": (dims, (left == right).astype(bool), {**one, "long_name": "whether both are equal"}),
        },
        coords={
            "producer": list(pairs),
            "fact": names,
            "hardware": ("fact", [n in HARDWARE for n in names]),
        },
    )
    blocks = _blocks(result) if pairs else [Text("No claimed config was replayed.")]
    return Section("environment_validation", "Environment validation", result, blocks=blocks)


def _rows(result: xr.Dataset, hardware: bool) -> list[list[str]]:
    """Rows of (mark, what, values): one a fact where all claims are alike, else one a kind of difference."""
    found = []
    producers = [str(v) for v in result["producer"].values]
    for name in (str(v) for v in result["fact"].values):
        if (name in HARDWARE) is not hardware:
            continue
        at = result.sel(fact=name)
        what = {**SOFTWARE, **HARDWARE}[name]
        groups: dict[tuple[str, str], list[str]] = {}
        for producer, a, b in zip(producers, at["stated"].values, at["here"].values, strict=True):
            groups.setdefault((str(a), str(b)), []).append(producer)
        agreeing = {pair: who for pair, who in groups.items() if pair[0] == pair[1]}
        if agreeing:
            values = ", ".join(dict.fromkeys(_value(name, a) for a, _ in agreeing))
            who = [label for labels in agreeing.values() for label in labels]
            found.append(["✓", what, values + _whose(who, producers)])
        for (a, b), who in groups.items():
            if a != b:
                said = f"{_value(name, a)}; here {_value(name, b)}"
                found.append(["→" if hardware else "✗", what, said + _whose(who, producers)])
    return found


def _whose(who: Sequence[str], producers: Sequence[str]) -> str:
    return "" if len(who) == len(producers) else f" ({', '.join(who)})"


def _value(name: str, value: str) -> str:
    if value in ABSENT:
        return "not stated" if name != "gpu" else "none"
    if name == "weights_sha256":
        return _digests(value)
    return f"{value[:12]}…" if name.endswith("sha256") else value


def _digests(value: str) -> str:
    """The digests of a mapping of file names in JSON, shortened."""
    import json

    try:
        digests = [str(v)[:12] + "…" for v in json.loads(value).values()]
    except (ValueError, AttributeError):
        return value
    shown = ", ".join(digests[:2])
    return shown + (f" and {plural(len(digests) - 2, 'more file')}" if len(digests) > 2 else "")


def _blocks(result: xr.Dataset) -> list[Block]:
    blocks: list[Block] = [
        Text(
            "Producer's record against this machine's, for the claimed config. ✗ on engine, its settings, "
            "kernel, batch or weights: rows of an honest producer may differ."
        )
    ]
    captions = {
        False: "Software (✓: both agree)",
        True: "Hardware (expected to differ; → is: producer's; here)",
    }
    head = ["", "what", "producer's record; this machine's where it differs"]
    found = [(caption, _rows(result, hardware)) for hardware, caption in captions.items()]
    return [*blocks, *(Table(caption, head, rows, 3) for caption, rows in found if rows)]
