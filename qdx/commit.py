"""``python -m qdx.commit DIR [OUT]``: the smallest file that a verifier can judge, and nothing else.

It holds the references, the generated tokens, what a verdict needs of the provenance (`KEPT`) and a
commitment to every row (see `qdx.verification.commitments`), of the first repeat of every
config; and how many reruns of the others were bit-equal to it, which the exact test asks for. With
``--sweep`` it is a copy of ``sweep.nc`` to be published: rows, hashes and sketches of every repeat,
without what the machine and its user are called.

Of a sweep that ran a verifier's challenge (``prompts=challenge``) it writes ``commitment.json`` instead: it
binds every row, token and fact, and shows none. Its SHA-256, the root, can be sent or published at once; the
rows that the verifier draws then are opened with ``python -m qdx.open_rows``.

Of a verifier's sweep ``--verdict`` writes ``verdict.json``: its verdicts as hashes and numbers, without
prompts, answers, token ids, sentences, and the names of machines, users, files and folders. Its digests of
what was said are keyed, so that nobody can try guesses; the key is in ``verdict.key`` beside ``sweep.nc``.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from qdx import models, new_file
from qdx.dataset import checksums
from qdx.dataset.folder import RUN, SWEEP
from qdx.dataset.layout import SCHEMA_VERSION
from qdx.dataset.opening import open_file
from qdx.dataset.provenance import software
from qdx.dataset.size import readable
from qdx.dataset.writing import disk_errors
from qdx.errors import QdxError
from qdx.experiment import CACHED, find_checkpoint
from qdx.program import of_disk, run
from qdx.prompts import challenge
from qdx.prompts.transcripts import COPY
from qdx.schema import validate
from qdx.verification import binding, merkle
from qdx.verification.commitments import of_run
from qdx.verification.compare import own_repeats
from qdx.verification.published import published

PHASES = ("prefill", "decode")
NAME, PUBLISHED, VERDICT, KEY = "commitments.nc", "published.nc", "verdict.json", "verdict.key"
NAMESPACE = "qdx-commitment"  # of a signature by ssh-keygen
SMALL = 16 * 1024  # bytes
# Of /provenance: what decides which numbers an honest run computes, and what ties the file to weights, tokens
# and code. A fact that is new is left out until it is named here: a file that is published must not say by
# accident what its machine, its folders or its user are called.
KEPT = (
    "schema_version", "qdx_version", "code_sha256",
    "format", "requested_kernel", "observed_kernel", "dtype", "model", "quantizer",
    "weights_sha256", "tokenizer_sha256", "references_sha256", "transcripts_sha256", "vocab",
    "engine", "engine_version", "backend", "backend_version", "model_runner", "compiled_kernels",
    "batch_size", "batch_layout", "sampling", "threads", "seed", "sketch_seed", "capture_mode",
    "repeat_scope", "repeat_processes", "simulated",
    "gpu", "compute_capability", "sm_count", "cpu", "cpu_capability", "blas",
    "torch_version", "torch_switches", "kernel_environment",
    "cuda_version", "cuda_runtime", "cublas_version", "cublaslt_version", "cudnn_version", "driver_version",
)  # fmt: skip
KEPT_PREFIXES = (
    "backend_",
    "vllm_",
)  # settings of a backend, which choose kernels; the second of early versions
LAYERS = ("kernel_class", "kernel", "layer_type", "config")


def commit(directory: Path, out: Path | None = None) -> Path:
    """Write the commitments of a sweep.

    Parameters
    ----------
    directory : Path
        A sweep folder, with ``sweep.nc`` and every ``<label>/run.nc``.
    out : Path, optional
        Default ``DIR/commitments.nc``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    QdxError
        When the folder is not a sweep's, is a verifier's, or a run or its full rows are missing.
    """
    directory = Path(directory)
    source = directory / SWEEP
    if not source.is_file():
        raise QdxError(f"{directory} holds no {SWEEP}: give a sweep folder, or run python -m qdx.report DIR")
    target = directory / NAME if out is None else Path(out)
    tree = open_file(source)
    try:
        groups = _groups(tree, directory)
    finally:
        tree.close()
    write_groups(target, "commitments", groups)
    return target


def publish(directory: Path, out: Path | None = None) -> Path:
    """Write a copy of a sweep's ``sweep.nc`` that says nothing of the machine's and the user's names.

    Parameters
    ----------
    directory : Path
        A sweep folder, with ``sweep.nc``.
    out : Path, optional
        Default ``DIR/published.nc``.

    Returns
    -------
    Path
        The file: references without their text (the tokens say it), generated tokens, all repeats' rows as
        ``sweep.nc`` has them, and `KEPT` of the provenance. Distances and analyses are left out.

    Raises
    ------
    QdxError
        When the folder is not a sweep's, or is a verifier's.
    """
    directory = Path(directory)
    source = directory / SWEEP
    if not source.is_file():
        raise QdxError(f"{directory} holds no {SWEEP}: give a sweep folder, or run python -m qdx.report DIR")
    target = directory / PUBLISHED if out is None else Path(out)
    if target.exists() and target.samefile(source):
        raise QdxError(f"{target} is the file to read: give another name to write to")
    tree = open_file(source)
    try:
        if any(phase not in tree.children for phase in (*PHASES, "output")):
            raise QdxError(f"{directory} is a verifier's sweep: its configs produced nothing to publish")
        groups = {
            "provenance": _provenance(tree),
            "references": kept_references(tree["references"].to_dataset().load()),
        }
        for phase in (*PHASES, "replay", "output"):
            if phase in tree.children:
                groups[phase] = tree[phase].to_dataset().drop_vars("text", errors="ignore").load()
    finally:
        tree.close()
    write_groups(target, "sweep", groups)
    return target


def publish_verdict(directory: Path, out: Path | None = None) -> Path:
    """Write the verdicts of a verifier's sweep so that anybody may see them; see `verification.published`.

    Parameters
    ----------
    directory : Path
        A verifier's sweep folder, with ``sweep.nc`` and ``producers.nc``.
    out : Path, optional
        Default ``DIR/verdict.json``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    QdxError
        When the folder is not a verifier's, or judged nothing.
    """
    directory = Path(directory)
    for name, remedy in (
        (SWEEP, f"run python -m qdx.report {directory}"),
        (COPY, "a verifier's sweep has one"),
    ):
        if not (directory / name).is_file():
            raise QdxError(f"{directory} holds no {name}: {remedy}")
    target = directory / VERDICT if out is None else Path(out)
    verifier, producers = open_file(directory / SWEEP), open_file(directory / COPY)
    try:
        found = published(verifier, producers, _key(directory / KEY))
    finally:
        verifier.close()
        producers.close()
    with disk_errors(target), new_file.replacing(target) as part:
        part.write_text(json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    return target


def _key(path: Path) -> bytes:
    """The key of a folder's published digests, made when it is first needed.

    Raises
    ------
    QdxError
        When the file holds something else.
    """
    if not path.exists():
        with disk_errors(path), new_file.replacing(path) as part:
            part.touch()
            part.chmod(0o600)  # while it is still empty
            part.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise QdxError(f"{path} is no key of 64 hexadecimal digits: remove it, and a new one is made")
    return bytes.fromhex(text)


def bind(directory: Path, out: Path | None = None) -> Path:
    """Write the commitment of a sweep that ran a challenge.

    Parameters
    ----------
    directory : Path
        A sweep folder, with ``challenge.json``, ``sweep.nc`` and every ``<label>/run.nc``.
    out : Path, optional
        Default ``DIR/commitment.json``.

    Returns
    -------
    Path
        The file, whose SHA-256 is the root; see `qdx.verification.binding`.

    Raises
    ------
    QdxError
        When the sweep ran other prompts, or a row that the challenge asks for is missing.
    """
    target = directory / binding.NAME if out is None else Path(out)
    made = bound(directory).commitment
    with disk_errors(target), new_file.replacing(target) as part:
        part.write_bytes(made.dump())
    return target


def bound(directory: Path) -> Bound:
    """Bind what a folder holds; see `bind`."""
    directory = Path(directory)
    asked, digest = challenge.read(directory / challenge.COPY)
    if not (directory / SWEEP).is_file():
        raise QdxError(f"{directory} holds no {SWEEP}: run python -m qdx.report {directory}")
    tree = open_file(directory / SWEEP)
    try:
        groups = _without_rows(tree, directory)
    finally:
        tree.close()
    names = [reference.name for reference in asked.references]
    stated = groups["references"]["reference"].values.tolist()
    if [str(name) for name in stated] != names:
        raise QdxError(f"{directory} ran other prompts than its {challenge.COPY} asks for: run them anew")
    trees, configs = {}, {}
    rows = binding.rows_of(asked)
    for label in [str(label) for label in groups["output"]["config"].values]:
        trees[label] = binding.RunRows(directory / label / RUN).tree(asked.nonce, label, rows)
        ids = groups["output"]["token_id"].sel(config=label).isel(repeat=0)
        record = binding.record_of(groups["provenance"], groups["decode"], label)
        configs[label] = binding.BoundConfig(
            len(rows),
            trees[label].root.hex(),
            binding.tokens_sha256(asked.nonce, label, ids.transpose("reference", "output_token").values),
            binding.record_sha256(asked.nonce, label, record),
        )
    return Bound(asked, binding.Commitment(digest, asked.nonce, configs), rows, trees, groups)


@dataclass(frozen=True)
class Bound:
    """Hold what a prover bound, and what she opens it with.

    Attributes
    ----------
    challenge : ChallengeFile
    commitment : Commitment
    rows : list of Row
        In the order of the leaves.
    trees : dict of str to Tree
        By config.
    groups : dict of str to xarray.Dataset
        Provenance, references, tokens and which rows were captured.
    """

    challenge: challenge.ChallengeFile
    commitment: binding.Commitment
    rows: list[binding.Row]
    trees: dict[str, merkle.Tree]
    groups: dict[str, xr.Dataset]


def sign(path: Path, key: Path) -> Path:
    """Sign a file with an OpenSSH key; ``ssh-keygen`` does it.

    Returns
    -------
    Path
        ``<path>.sig``.

    Raises
    ------
    QdxError
        When ssh-keygen is not there or refuses.
    """
    signature = path.with_name(f"{path.name}.sig")
    signature.unlink(missing_ok=True)  # ssh-keygen would ask
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise QdxError(
            "ssh-keygen is not installed: sign the file with another tool, such as minisign"
        ) from error
    if done.returncode or not signature.is_file():
        raise QdxError(f"ssh-keygen did not sign {path} with {key}: {(done.stderr or done.stdout).strip()}")
    return signature


def _provenance(tree: xr.DataTree) -> xr.Dataset:
    """Return what is published of a sweep's own provenance, whose weights are hashed anew where need be."""
    stored = tree["provenance"].to_dataset().load()
    hash_weights_anew(stored)
    return kept_provenance(stored)


def hash_weights_anew(stored: xr.Dataset) -> None:
    """Read the weights of every config that took their hashes from the cache.

    Parameters
    ----------
    stored : xarray.Dataset
        A sweep's ``/provenance``.

    Raises
    ------
    QdxError
        When a checkpoint is not here any more, or its files have other hashes than the sweep states.
    """
    import json

    from omegaconf import DictConfig, OmegaConf

    read: dict[str, dict[str, str]] = {}
    for label in [str(label) for label in stored["config"].values]:
        own = stored.sel(config=label)
        if "weights_hash" not in own or str(own["weights_hash"].values) != CACHED:
            continue
        cfg = OmegaConf.create(str(own["config_yaml"].values))
        try:
            if not isinstance(cfg, DictConfig):
                raise QdxError(f"its config is {type(cfg).__name__}, not a mapping")
            checkpoint = find_checkpoint(validate(cfg))
        except QdxError as error:
            raise QdxError(
                f"config {label}: the hashes of its weights were taken from the cache and are made anew "
                f"before they are published, and its checkpoint is not here: {error}"
            ) from error
        place = str(checkpoint.path)
        if place not in read:
            read[place] = models.weights_sha256(checkpoint.path)
        if json.loads(str(own["weights_sha256"].values)) != read[place]:
            raise QdxError(
                f"config {label}: the weight files of {place} have other hashes than the sweep states: they "
                "were changed since; run the sweep again"
            )


def kept_provenance(stored: xr.Dataset) -> xr.Dataset:
    """Return the facts that a verdict needs, and the kernels of the layers."""
    own = [str(name) for name in stored.variables]
    fits = [name for name in own if name in (*KEPT, *LAYERS) or name.startswith(KEPT_PREFIXES)]
    kept = stored.drop_vars([name for name in own if name not in fits])
    if "weights_sha256" in kept:  # a mapping of file names to digests; names of folders are nobody's business
        values = [_without_folders(str(value)) for value in kept["weights_sha256"].values]
        kept["weights_sha256"] = ("config", np.array(values, object))
    return kept


def _without_folders(weights: str) -> str:
    import json

    try:
        files = json.loads(weights)
    except ValueError:
        return weights
    if not isinstance(files, dict):
        return weights
    return json.dumps({Path(name).name: digest for name, digest in files.items()}, sort_keys=True)


def kept_references(references: xr.Dataset) -> xr.Dataset:
    """Return the references without their text, and with the names of their sources but not their folders."""
    plain = references.drop_vars("text", errors="ignore")
    if "source" in plain:
        names = [str(source).rsplit("/", 1)[-1] for source in plain["source"].values]
        plain["source"] = ("reference", np.array(names, object), plain["source"].attrs)
    return plain


def write_groups(target: Path, kind: str, groups: Mapping[str, xr.Dataset], **stated: str) -> None:
    """Write a file of some kind, its groups and what it states at its root."""
    versions = {name: value for name, value in software().items() if name != "time_utc"}
    attrs = {"kind": kind, "schema_version": SCHEMA_VERSION, **versions, **stated}
    with disk_errors(target), new_file.replacing(target) as part:
        xr.Dataset(attrs=attrs).to_netcdf(part, mode="w", engine="netcdf4")
        for name, dataset in groups.items():
            plain = dataset.drop_encoding()
            plain.attrs = {}
            if name == "provenance":
                plain = plain.drop_attrs()
            encoding = {str(key): _encoding(variable) for key, variable in plain.variables.items()}
            plain.to_netcdf(part, mode="a", group=name, engine="netcdf4", encoding=encoding)
        checksums.store(part)


def contents(path: Path) -> str:
    """Say what a file that is to be published holds: its groups, and every fact of its provenance."""
    tree = open_file(path)
    try:
        lines = [f"{name}: {', '.join(map(str, tree[name].data_vars))}" for name in tree.children]
        return "\n".join(f"  /{line}" for line in lines)
    finally:
        tree.close()


def _groups(tree: xr.DataTree, directory: Path) -> dict[str, xr.Dataset]:
    if any(phase not in tree.children for phase in (*PHASES, "output")):
        raise QdxError(f"{directory} is a verifier's sweep: its configs produced nothing to commit to")
    output = tree["output"].to_dataset()[["token_id"]].isel(repeat=[0]).load()
    groups = {
        "provenance": _provenance(tree),
        "references": kept_references(tree["references"].to_dataset().load()),
    }
    for phase in PHASES:
        groups[phase] = _phase(tree, directory, phase)
    return {**groups, "output": output}


def _without_rows(tree: xr.DataTree, directory: Path) -> dict[str, xr.Dataset]:
    """Everything of a sweep's first repeats that a challenge's answer says beside its rows."""
    if any(phase not in tree.children for phase in (*PHASES, "output")):
        raise QdxError(f"{directory} is a verifier's sweep: its configs produced nothing to commit to")
    return {
        "provenance": _provenance(tree),
        "references": kept_references(tree["references"].to_dataset().load()),
        **{phase: _captured(tree, phase) for phase in PHASES},
        "output": tree["output"].to_dataset()[["token_id"]].isel(repeat=[0]).load(),
    }


def _phase(tree: xr.DataTree, directory: Path, phase: str) -> xr.Dataset:
    data = tree[phase].to_dataset().isel(repeat=[0])
    labels = [str(label) for label in data["config"].values]
    parts = []
    for label in labels:
        path = directory / label / RUN
        if not path.is_file():
            raise QdxError(f"{path} is missing: commitments are made of its full rows")
        part = of_run(path, phase)
        if part is None:
            raise QdxError(f"{path} has no full rows to commit to: run the sweep with capture=full")
        at = {name: data[name].values for name in ("reference", "position")}
        parts.append(part.reindex(at, fill_value=np.uint8(0)))
    whole = xr.concat(parts, "config", join="exact", coords="minimal", compat="override")
    return _captured(tree, phase).assign(commitment=whole).load()


def _captured(tree: xr.DataTree, phase: str) -> xr.Dataset:
    """Return which rows of the first repeats were captured, what configs state, and how they repeat."""
    data = tree[phase].to_dataset().isel(repeat=[0])
    labels = [str(label) for label in data["config"].values]
    repeats = own_repeats(tree, phase, labels)
    stated = [n for n, c in data.coords.items() if c.dims == ("config",) and n != "config"]
    stated = stated if phase == "decode" else []  # once is enough
    found = data[["captured"]].reset_coords(drop=True).assign_coords({n: data[n] for n in stated})
    return found.assign(
        reruns=("config", np.array([r.reruns for r in repeats], np.int32), _about("reruns of a reference")),
        reruns_equal=(
            "config",
            np.array([r.equal for r in repeats], np.int32),
            _about("reruns whose every row is bit-equal to the first repeat's"),
        ),
    ).load()


def _encoding(variable: xr.Variable) -> dict[str, Any]:
    """Compress what is worth an index of chunks; digests are not."""
    if variable.dtype.kind in "OUST":
        return {"dtype": "S1"}  # characters, see qdx.dataset.writing
    if variable.dims == ("row", "vocab"):  # opened rows, which are read one by one
        return {"zlib": True, "complevel": 6, "shuffle": True, "chunksizes": (1, variable.shape[1])}
    integers = {"_FillValue": None} if variable.dtype.kind in "iu" else {}
    if variable.nbytes < SMALL or variable.dtype == np.uint8:
        return integers
    return {**integers, "zlib": True, "complevel": 6, "shuffle": True}


def _about(text: str) -> dict[str, str]:
    return {"units": "1", "long_name": text}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (2: nothing was written)."""
    parser = argparse.ArgumentParser(prog="python -m qdx.commit", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="a sweep folder, with <label>/run.nc")
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help=f"default: DIR/{NAME}")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help=f"a copy of sweep.nc to be published, DIR/{PUBLISHED} by default: rows and no commitments",
    )
    parser.add_argument(
        "--verdict",
        action="store_true",
        help=f"of a verifier's sweep: its verdicts as hashes and numbers, DIR/{VERDICT} by default",
    )
    parser.add_argument(
        "--sign",
        metavar="KEY",
        type=Path,
        help=f"sign the commitment of a challenge with this OpenSSH key (ssh-keygen -Y sign -n {NAMESPACE})",
    )
    chosen = parser.parse_args(arguments)
    binds = not (chosen.sweep or chosen.verdict) and (chosen.directory / challenge.COPY).is_file()
    try:
        if chosen.verdict and (chosen.sweep or chosen.sign is not None):
            raise QdxError("--verdict writes what a verifier found: leave --sweep and --sign out")
        if chosen.verdict:
            target = publish_verdict(chosen.directory, chosen.out)
            print(f"{target}: {readable(target.stat().st_size)}, no prompts, answers or token ids in it")
            return 0
        if chosen.sign is not None and not binds:
            raise QdxError("--sign signs the commitment of a challenge: run the sweep with prompts=challenge")
        target = (publish if chosen.sweep else bind if binds else commit)(chosen.directory, chosen.out)
        signature = sign(target, chosen.sign) if chosen.sign is not None else None
        if binds:
            print(_bound_text(target, chosen.directory, signature))
            return 0
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 1 if of_disk(error) else 2
    print(f"{target}: {readable(target.stat().st_size)}")
    print(f"it holds, and nothing else:\n{contents(target)}")
    print(f"verify it: python -m qdx -m prompts=transcripts prompts.path={target} quant=…")
    return 0


def _bound_text(target: Path, directory: Path, signature: Path | None) -> str:
    made, root = binding.read(target)
    counts = ", ".join(f"{label} {one.rows:,} rows" for label, one in made.configs.items())
    files = f"{target} and {signature}" if signature else str(target)
    return (
        f"{target} binds {counts}, with all tokens and facts\n"
        f"root (its SHA-256): {root}\n"
        f"send or publish the root now, and {files} to the verifier, who draws the rows to open:\n"
        f"  python -m qdx.open_rows open {directory} drawn.json"
    )


if __name__ == "__main__":
    run(main)
