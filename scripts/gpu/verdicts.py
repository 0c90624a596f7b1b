"""What ``scripts/gpu/verdicts.sh`` made, in tables; nothing here needs a GPU.

    python scripts/gpu/verdicts.py facts SWEEP.nc …       what records state of their environment class
    python scripts/gpu/verdicts.py claims VERIFIED …      every producer judged under its own and other names
    python scripts/gpu/verdicts.py false VERIFIED COPY    a copy where every producer claims the next config
    python scripts/gpu/verdicts.py gather FOLDER SWEEP …  the runs of several sweeps in one sweep.nc
    python scripts/gpu/verdicts.py honest SWEEP.nc        the true claims, as verify.claims takes them

VERIFIED is a verifier's sweep folder. A producer's label is ``<config>``, or ``<config>-<how it was made>``:
the config before the dash is what it really ran. ``python -m qdx.report COPY`` judges the copy of ``false``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import qdx
from qdx.dataset.folder import PLAN, RUN, SWEEP
from qdx.prompts.transcripts import COPY

FACTS = (
    "gpu",
    "compute_capability",
    "sm_count",
    "driver_version",
    "torch_version",
    "cuda_version",
    "cuda_runtime",
    "cublas_version",
    "cublaslt_version",
    "cudnn_version",
    "cpu",
    "cpu_capability",
    "blas",
    "engine",
    "engine_version",
    "model_runner",
    "batch_layout",
    "repeat_processes",
    "schema_version",
    "sampling",
    "kernel_environment",
    "torch_switches",
)


def true_config(label: str) -> str:
    """Return the config that a producer really ran."""
    return label.partition("-")[0]


def facts(paths: Sequence[Path]) -> Iterator[str]:
    """List each fact with its values; a value that not all configs share stands with those that have it."""
    stated: dict[str, dict[str, list[str]]] = {name: {} for name in FACTS}
    for path in paths:
        with qdx.open(path) as tree:
            stored = tree["provenance"].to_dataset()
            for name in FACTS:
                for label in stored["config"].values:
                    value = str(stored[name].sel(config=label).values) if name in stored else "(no such fact)"
                    stated[name].setdefault(value, []).append(f"{path.parent.name}/{label}")
    total = sum(len(labels) for labels in stated[FACTS[0]].values())
    for name, values in stated.items():
        for value, labels in values.items():
            who = f"all {total} configs" if len(labels) == total else ", ".join(labels)
            yield f"{name}: {value or '(empty)'}   [{who}]"


def claims(folder: Path, made_by: Path | None = None, reasons: bool = True) -> Iterator[str]:
    """Judge every producer as every config, one family of claims for each rotation of the names.

    Parameters
    ----------
    folder : Path
        A verifier's sweep.
    made_by : Path, optional
        The producers' file; by default the copy in `folder`.
    reasons : bool
        Whether a line ends with why.
    """
    from qdx.verification import verify

    with qdx.open(made_by or folder / COPY) as producers, qdx.open(folder / SWEEP) as verifier:
        made = [str(value) for value in verifier["replay"].to_dataset()["producer"].values]
        configs = [str(value) for value in verifier["replay"].to_dataset()["config"].values]
        yield f"{folder.name}: producers {len(made)}, configs {', '.join(configs)}"
        yield (
            f"{'producer':22} {'claims':12} {'verdict':20} {'p':>8} {'decode rows':>13} {'prefill rows':>13}"
            f"{'  because' if reasons else ''}"
        )
        counts: Counter[tuple[bool, str]] = Counter()
        for turn in range(len(configs)):
            named = {
                label: configs[(configs.index(true_config(label)) + turn) % len(configs)] for label in made
            }
            result = verify(producers, verifier, claims=named).result
            for label, claim in named.items():
                one = result.sel(producer=label)
                rows = one.sel(config=claim)
                decode, prefill = (
                    f"{int(rows[equal].sum())}/{int(rows[both].sum())}"
                    for equal, both in (
                        ("rows_equal", "rows_compared"),
                        ("prefill_equal", "prefill_compared"),
                    )
                )
                kind, p = str(one["verdict"].values), float(one["p_test_holm"].values)
                counts[turn == 0, kind] += 1
                yield (
                    f"{label:22} {claim:12} {kind:20} {p:8.2g} {decode:>13} {prefill:>13}"
                    + (f"  {one['because'].values}" if reasons else "")
                )
        for honest, what in ((True, "true claims"), (False, "false claims")):
            found = ", ".join(f"{n} {kind}" for (true, kind), n in sorted(counts.items()) if true == honest)
            yield f"{what}: {found}"


def honest(path: Path) -> str:
    """Return the true claims of a producers' file as Hydra's override grammar takes them."""
    with qdx.open(path) as tree:
        labels = [str(value) for value in tree["decode"].to_dataset()["config"].values]
    return "{" + ",".join(f"{label}:{true_config(label)}" for label in labels) + "}"


def falsified(folder: Path, copy: Path) -> None:
    """Copy a verifier's sweep and let every producer claim the config after its own."""
    shutil.copytree(folder, copy)
    plan: dict[str, Any] = json.loads((copy / PLAN).read_text())
    configs = plan["labels"]
    with qdx.open(copy / COPY) as tree:
        labels = [str(value) for value in tree["decode"].to_dataset()["config"].values]
    following = dict(zip(configs, [*configs[1:], configs[0]], strict=True))
    plan["verify"]["claims"] = {label: following[true_config(label)] for label in labels}
    (copy / PLAN).write_text(json.dumps(plan, indent=1) + "\n")


def gather(target: Path, folders: Sequence[Path]) -> None:
    """Merge the finished runs of several sweep folders into one file; labels must differ."""
    from qdx.dataset.write_sweep import merge

    target.mkdir(parents=True)
    for folder in folders:
        for run in sorted(folder.glob(f"*/{RUN}")):  # a sweep.json would name one sweep's labels only
            shutil.copytree(run.parent, target / run.parent.name)
    merge(target, target / SWEEP)


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("facts", "claims", "false", "gather", "honest"))
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    chosen = parser.parse_args()
    first, rest = chosen.paths[0], chosen.paths[1:]
    match chosen.what:
        case "facts":
            print("\n".join(facts(chosen.paths)))
        case "claims":
            for folder in chosen.paths:
                print("\n".join(claims(folder)), end="\n\n")
        case "honest":
            print(honest(first))
        case _ if not rest:
            sys.exit(f"{chosen.what} takes two paths or more: see --help")
        case "false":
            falsified(first, rest[0])
        case "gather":
            gather(first, rest)


if __name__ == "__main__":
    main()
