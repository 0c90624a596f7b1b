"""One job: references → backend and recorder → ``run.nc``. Runs in a child process (`qdx.sweep.job`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qdx import backends, endpoints, models, new_file, plugins
from qdx.capture.plan import SKETCH_SEED
from qdx.dataset import folder, provenance
from qdx.dataset.arithmetic import ARITHMETIC, arithmetic
from qdx.dataset.folder import RUN, STATUS
from qdx.dataset.join_repeats import join_repeats
from qdx.errors import QdxError
from qdx.flow import Flow
from qdx.process import spawn
from qdx.program import collect_as_usual
from qdx.prompts import (
    KEPT,
    RECORDS,
    Challenge,
    Transcripts,
    check_references,
    describe,
    kept,
    key_of,
    references_sha256,
)
from qdx.schema import Experiment, validate
from qdx.schema_endpoint import OpenaiBackend

if TYPE_CHECKING:
    from qdx.backends import Backend, Facts
    from qdx.capture import Recorder
    from qdx.dataset.layout import Producer
    from qdx.models import Checkpoint
    from qdx.progress import Progress
    from qdx.prompts import Reference

# What a label, a sweep or a report is about is not part of what makes an output; where a file lies is not
# either.
NOT_IDENTITY = ("label", "swept", "metric", "analysis", "dataset", "report", "verify")
# Facts of the machine and the code that can change what is computed.
DECISIVE = (
    "code_sha256",
    "torch_version",
    "cpu",
    "gpu",
    "compute_capability",
    "sm_count",
    "cuda_version",
    "driver_version",
    *ARITHMETIC,
)
# What a process knows when its engine has started; of repeats in processes of their own, only they do.
OBSERVED = ("sampling", "model_runner", "compiled_kernels", "sm_count", "repeat_processes", *ARITHMETIC)
READ, CACHED = "read", "cached"  # how this job came to the hashes of its weight files
IN_ORDER = "in order, batch_size"  # batch i holds the references i·batch_size … (i + 1)·batch_size − 1


def run(
    cfg: DictConfig,
    directory: Path,
    command_line: str,
    progress: Progress,
    hashed: Mapping[str, Any] | None = None,
    sweep: Path | None = None,
) -> str:
    """Run one config and write its ``run.nc``.

    Parameters
    ----------
    cfg : DictConfig
        A composed config.
    directory : Path
        The job's folder.
    command_line : str
        Stored with the results.
    progress : Progress
        Told what happens.
    hashed : Mapping, optional
        Hashes of the weight files that another process made; see `qdx.models.hash_weights`.
    sweep : Path, optional
        The sweep's folder, which keeps the references that `qdx.sweep.prepare` made for all its jobs.

    Returns
    -------
    str
        What happened, in a few words.

    Raises
    ------
    QdxError
        When something that the user chose cannot be had; the message says what to change.
    """
    experiment = validate(cfg)
    checkpoint = find_checkpoint(experiment)
    prompts = load_prompts(experiment, checkpoint, sweep)
    if isinstance(experiment.backend, OpenaiBackend):
        attrs = {**identify_endpoint(cfg, checkpoint, prompts), "command_line": command_line}
        asked = endpoints.Job(
            experiment.label, experiment.backend, prompts.references, experiment.generate.tokens, attrs
        )
        return endpoints.ask(asked, directory, progress)
    # A verdict rests on weights that its own job has read.
    known = models.remembered_weights(checkpoint.path) if prompts.transcripts is None else {}
    files = models.hash_weights(checkpoint.path, hashed or known)
    identity = identify(cfg, checkpoint, prompts, files)
    identity["weights_hash"] = CACHED if known and not hashed else READ
    target = directory / RUN
    if folder.is_complete(target, str(identity["config_hash"])):
        folder.discard_unfinished(target)
        return "complete already, kept"
    folder.set_aside(target)
    attrs = {**identity, "prompts": prompts.description, "command_line": command_line}
    if experiment.repeat_scope == "process" and experiment.repeats > 1:
        run_in_processes(cfg, experiment.repeats, directory, command_line, progress, files, sweep)
        parts = repeat_folders(directory, experiment.repeats)
        known = {name: value for name, value in attrs.items() if name not in OBSERVED}
        join_repeats([part / RUN for part in parts], target, known)
        for part in parts:
            shutil.rmtree(part)
        return "complete"

    progress.start("loading the model")
    backend: Backend = plugins.build(options(experiment.backend))(
        checkpoint=checkpoint,
        quant=experiment.quant,
        dtype=experiment.model.dtype,
        seed=experiment.seed,
    )
    facts = backend.observe()
    backends.require(experiment.quant, facts)
    attrs |= arithmetic()
    collect_as_usual()
    flow = Flow(backend, facts, experiment, prompts.references, progress)
    with open_recorder(target, experiment, facts, prompts, attrs) as recorder:
        if prompts.producers:
            recorder.finish(flow.verify(recorder, prompts.producers))
        else:
            recorder.finish(flow.produce(recorder, prompts.tokenizer))
    return "complete"


def run_in_processes(
    cfg: DictConfig,
    repeats: int,
    directory: Path,
    command_line: str,
    progress: Progress,
    files: models.Hashed,
    sweep: Path | None = None,
) -> None:
    """Run every repeat in a process of its own: a job of one repeat, with the seed that it would have had."""
    progress.start("repeats in fresh processes", repeats)
    for repeat, place in enumerate(repeat_folders(directory, repeats)):
        progress.step(f"repeat {repeat + 1} of {repeats}")
        new_file.make_folder(place)
        (place / STATUS).unlink(missing_ok=True)
        one = OmegaConf.merge(cfg, {"repeats": 1, "repeat_scope": "engine", "seed": cfg.seed + repeat})
        request = {"do": "run", "config": OmegaConf.to_yaml(one, resolve=True), "directory": str(place)}
        request |= {"sweep": str(sweep)} if sweep is not None else {}
        if ended := spawn({**request, "command_line": command_line, "hashed": dict(files)}):
            status = place / STATUS
            error = json.loads(status.read_text())["error"] if status.exists() else ended
            raise QdxError(f"repeat {repeat + 1} of {repeats}: {error}")


def repeat_folders(directory: Path, repeats: int) -> list[Path]:
    """Return the folder of each repeat that runs in a process of its own."""
    return [directory / f"repeat_{repeat}" for repeat in range(repeats)]


def find_checkpoint(experiment: Experiment) -> Checkpoint:
    """Return the checkpoint of the config's format, prepared or downloaded if need be."""
    name = experiment.model.checkpoint[experiment.quant.format]
    assert name is not None  # `Experiment` has checked it
    return models.resolve(name, format=experiment.quant.format)


def convert_records(cfg: DictConfig) -> Path:
    """Turn the records that a config names into a file of transcripts; see `qdx.prompts.records.convert`."""
    from qdx.prompts.records import convert

    experiment = validate(cfg)
    return convert(experiment.prompts, find_checkpoint(experiment))


@dataclass(frozen=True)
class Prompts:
    """Hold the prompts that a job runs on.

    Attributes
    ----------
    references : list of Reference
    description : str
        Lines for the reader.
    tokenizer : transformers.PreTrainedTokenizerBase
    producers : list of Producer
        Whose transcripts are replayed; empty where the job generates its own.
    transcripts : Transcripts or None
        Where they come from.
    challenge : Challenge or None
        Where the references come from, when a verifier asks for them.
    kept_under : str
        The key under which the sweep's folder keeps the references; empty where they come from a file.
    """

    references: list[Reference]
    description: str
    tokenizer: Any
    producers: list[Producer] = field(default_factory=list)
    transcripts: Transcripts | None = None
    challenge: Challenge | None = None
    kept_under: str = ""


def load_prompts(experiment: Experiment, checkpoint: Checkpoint, sweep: Path | None = None) -> Prompts:
    """Return the references, with the transcripts that are to be replayed after them.

    Parameters
    ----------
    experiment : Experiment
    checkpoint : Checkpoint
    sweep : Path, optional
        A sweep's folder: the references that it keeps are taken instead of made anew.
    """
    tokenizer = models.load_tokenizer(checkpoint.path)
    node, tokens = options(experiment.prompts), experiment.generate.tokens
    if sweep is not None and (made := kept(sweep, references_key(experiment, checkpoint, tokenizer))):
        check_references(made[0], who=str(sweep / KEPT), tokens=tokens)
        return Prompts(*made, tokenizer)
    source = plugins.build(node)()
    if isinstance(source, Transcripts):
        source.require(
            tokenizer_sha256=models.tokenizer_sha256(checkpoint.path),
            vocab=models.vocab_size(checkpoint.path),
            tokens=tokens,
            components=experiment.capture.components,
            sketch_seed=SKETCH_SEED,
            mode=experiment.capture.mode,
        )
    if isinstance(source, Challenge):
        source.require(
            tokenizer_sha256=models.tokenizer_sha256(checkpoint.path),
            vocab=models.vocab_size(checkpoint.path),
            tokens=tokens,
            prefill_positions=experiment.capture.prefill_positions,
        )
    references = source.load(tokenizer)
    # Records of other programs have no shared continuation: their transcripts are all that is replayed.
    recorded = isinstance(source, Transcripts) and source.file.kind == RECORDS
    check_references(references, who=str(node["_target_"]), tokens=0 if recorded else tokens)
    summary = getattr(source, "summary", None)
    said = describe(references, summary, transcripts=isinstance(source, Transcripts))
    if not isinstance(source, Transcripts):
        asked = source if isinstance(source, Challenge) else None
        return Prompts(references, said, tokenizer, challenge=asked)
    about = source.describe(experiment.batch_size)
    # Of records the first thing to know is whether the prompts are the provider's.
    said = f"{about}\n{said}" if recorded else f"{said}\n{about}"
    return Prompts(references, said, tokenizer, source.producers, source)


def references_key(experiment: Experiment, checkpoint: Checkpoint, tokenizer: Any) -> str:
    """Return what the references of a job are kept under; see `qdx.prompts.key_of`."""
    node, tokens = options(experiment.prompts), experiment.generate.tokens
    return key_of(node, tokens, models.tokenizer_sha256(checkpoint.path), tokenizer)


def options(node: Any) -> dict[str, Any]:
    """Return a config node as keyword arguments; its ``name`` is a label and no option."""
    values = asdict(node) if is_dataclass(node) and not isinstance(node, type) else dict(node)
    return {key: value for key, value in values.items() if key != "name"}


def identify(
    cfg: DictConfig, checkpoint: Checkpoint, prompts: Prompts, files: models.Hashed | None = None
) -> dict[str, Any]:
    """Return the root attributes that are known before the model loads, with the hash of what makes an
    output.

    The hash covers config, weights, references, transcripts, engine, GPU, libraries, switches and code
    version; it leaves out paths, labels and the launcher.

    Parameters
    ----------
    cfg : DictConfig
    checkpoint : Checkpoint
    prompts : Prompts
    files : Mapping, optional
        What `qdx.models.hash_weights` returned; the files are hashed without it.
    """
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    container: dict[str, Any] = dict(resolved)
    engine = backends.identity(options(container["backend"]))
    facts = {
        "model": container["model"]["name"],
        "model_source": checkpoint.source,
        "model_revision": checkpoint.revision,
        "quantizer": checkpoint.quantizer,
        "derived_from": checkpoint.derived_from,
        "weights_sha256": {
            name: digest for name, (_, _, digest) in (files or models.hash_weights(checkpoint.path)).items()
        },
        "tokenizer_sha256": models.tokenizer_sha256(checkpoint.path),
        "references_sha256": references_sha256(prompts.references),
        "transcripts_sha256": prompts.transcripts.file.sha256 if prompts.transcripts else "",
        **engine,
    }
    stamp = provenance.stamp()
    hashed = {key: value for key, value in container.items() if key not in NOT_IDENTITY}
    hashed["model"] = {"dtype": container["model"]["dtype"]}
    hashed["prompts"] = [facts["references_sha256"], facts["transcripts_sha256"]]
    # What the backend states of itself (engine version, threads) decides as well.
    decisive = {key: stamp[key] for key in DECISIVE} | {"weights_sha256": facts["weights_sha256"]} | engine
    return {
        **stamp,
        **facts,
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "seed": container["seed"],
        "batch_layout": IN_ORDER,
        "repeat_processes": 1,
        "config_hash": provenance.config_hash(hashed, decisive),
    }


# Of the options of an endpoint: how it is asked, which changes no answer.
MANNER = ("concurrency", "timeout", "retries", "max_requests", "max_tokens", "price_in", "price_out", "key",
          "insecure")  # fmt: skip


def identify_endpoint(cfg: DictConfig, checkpoint: Checkpoint, prompts: Prompts) -> dict[str, Any]:
    """Return what is stored with a server's answers, with the hash of what they are answers to."""
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    stamp = provenance.stamp()
    asked = {key: value for key, value in container["backend"].items() if key not in MANNER}
    facts = {
        "references_sha256": references_sha256(prompts.references),
        "tokenizer_sha256": models.tokenizer_sha256(checkpoint.path),
    }
    hashed = {"backend": asked, "tokens": container["generate"]["tokens"]}
    return {
        **{name: stamp[name] for name in ("qdx_version", "git_commit", "host") if name in stamp},
        **facts,
        "label": container["label"],
        "model_name": container["model"]["name"],
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "prompts": prompts.description,
        "config_hash": provenance.config_hash(hashed, facts),
    }


def open_recorder(
    target: Path, experiment: Experiment, facts: Facts, prompts: Prompts, attrs: Mapping[str, Any]
) -> Recorder:
    """Return the recorder of a job; it states the facts that the backend observed."""
    import torch

    from qdx.capture import Recorder

    return Recorder(
        target,
        references=prompts.references,
        producers=prompts.producers,
        repeats=experiment.repeats,
        output_tokens=experiment.generate.tokens,
        vocab=facts.vocab,
        dtype=getattr(torch, facts.dtype),
        capture=experiment.capture,
        label=experiment.label,
        coords={
            "format": experiment.quant.format,
            "requested_kernel": experiment.quant.kernel,
            "observed_kernel": facts.observed_kernel,
            "dtype": facts.dtype,
            "model": experiment.model.name,
            "backend": facts.engine,
            "backend_version": facts.engine_version,
            "batch_size": experiment.batch_size,
            "gpu": facts.gpu,
            "compute_capability": facts.compute_capability,
            "sm_count": facts.sm_count,
            "simulated": facts.simulated,
        },
        hidden=facts.hidden,
        settings=facts.settings,
        layers={layer: (facts.kernel_class[layer], name) for layer, name in facts.kernel.items()},
        attrs={
            **attrs,
            "model_runner": "",
            "compiled_kernels": "",
            **facts.attrs,
            "sampling": facts.sampling,
            "engine": facts.engine,
            "engine_version": facts.engine_version,
            "sm_count": facts.sm_count,
            "simulated": facts.simulated,
        },
        portable=experiment.dataset.portable,
    )
