"""One job: references → backend and recorder → ``run.nc``. Runs in a child process of its own (`qdx.job`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qdx import backends, models, plugins
from qdx.backends.selfcheck import Listener, replays_exactly
from qdx.capture import CaptureSettings, Recorder
from qdx.dataset import provenance, resume
from qdx.dataset.folder import RUN, STATUS
from qdx.dataset.joining import join_repeats
from qdx.errors import QdxError
from qdx.process import spawn
from qdx.prompts import check_references, describe, references_sha256
from qdx.schema import Experiment, validate

if TYPE_CHECKING:
    from qdx.backends import Backend, Facts
    from qdx.models import Checkpoint
    from qdx.progress import Progress
    from qdx.prompts import Reference

# What a label, a sweep or a report is about is not part of what makes an output; where a file lies is not
# either.
NOT_IDENTITY = ("label", "swept", "metric", "analysis", "dataset", "report")
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
)


def run(cfg: DictConfig, directory: Path, command_line: str, progress: Progress) -> str:
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
    tokenizer = models.load_tokenizer(checkpoint.path)
    references, prompts = load_references(experiment, tokenizer)
    identity = identify(cfg, checkpoint, references)
    target = directory / RUN
    if resume.is_complete(target, str(identity["config_hash"])):
        resume.discard_unfinished(target)
        return "complete already, kept"
    resume.set_aside(target)
    attrs = {**identity, "prompts": prompts, "command_line": command_line}
    if experiment.repeat_scope == "process":
        run_in_processes(cfg, experiment.repeats, directory, command_line, progress)
        parts = repeat_folders(directory, experiment.repeats)
        join_repeats([part / RUN for part in parts], target, attrs)
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
    batches = batched(len(references), experiment.batch_size)
    with open_recorder(target, experiment, facts, references, attrs) as recorder:
        progress.start("running", experiment.repeats * len(batches))
        first = [references[i].token_ids.tolist() for i in batches[0]]
        listener: Any = Listener([len(ids) for ids in first], recorder)
        transcript: list[list[int]] = []
        for repeat in range(experiment.repeats):
            backend.reseed(experiment.seed + repeat)
            for batch in batches:
                progress.step(f"repeat {repeat + 1} of {experiment.repeats}, {references[batch[0]].name}")
                count = experiment.generate.tokens
                to = recorder if transcript else listener
                generated = run_batch(backend, to, repeat, batch, references, count)
                transcript = transcript or generated
                for reference, ids in zip(batch, generated, strict=True):
                    eos = next((i for i, token in enumerate(ids) if token in facts.eos_token_ids), -1)
                    recorder.output(repeat, reference, ids, str(tokenizer.decode(ids)), eos)
                recorder.sync()  # what is synchronised survives kill -9
        progress.start("replaying its own first transcript")
        recorder.finish({"replay_exact": replays_exactly(backend, first, transcript, listener)})
    return "complete"


def run_batch(
    backend: Backend,
    recorder: Recorder,
    repeat: int,
    batch: list[int],
    references: list[Reference],
    count: int,
) -> list[list[int]]:
    """Prefill, generate and replay some references together; return the generated ids of each."""
    prompts = [references[i].token_ids.tolist() for i in batch]
    forced = [references[i].continuation.tolist() for i in batch]
    if isinstance(backend, backends.OnePass):
        generated = backend.prefill_generate(
            prompts, count, recorder, lambda phase: recorder.begin(phase, repeat, batch)
        )
    else:
        recorder.begin("prefill", repeat, batch)
        backend.prefill(prompts, recorder)
        recorder.begin("decode", repeat, batch)
        generated = backend.generate(prompts, count, recorder)
    recorder.begin("replay", repeat, batch)
    backend.replay(prompts, forced, recorder)
    return generated


def run_in_processes(
    cfg: DictConfig, repeats: int, directory: Path, command_line: str, progress: Progress
) -> None:
    """Run every repeat in a process of its own: a job of one repeat, with the seed that it would have had."""
    progress.start("repeats in fresh processes", repeats)
    for repeat, folder in enumerate(repeat_folders(directory, repeats)):
        progress.step(f"repeat {repeat + 1} of {repeats}")
        folder.mkdir(exist_ok=True)
        (folder / STATUS).unlink(missing_ok=True)
        one = OmegaConf.merge(cfg, {"repeats": 1, "repeat_scope": "engine", "seed": cfg.seed + repeat})
        request = {"do": "run", "config": OmegaConf.to_yaml(one, resolve=True), "directory": str(folder)}
        if ended := spawn({**request, "command_line": command_line}):
            status = folder / STATUS
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


def load_references(experiment: Experiment, tokenizer: Any) -> tuple[list[Reference], str]:
    """Return the references and their description."""
    node = options(experiment.prompts)
    source = plugins.build(node)()
    references = source.load(tokenizer)
    check_references(references, who=str(node["_target_"]), tokens=experiment.generate.tokens)
    return references, describe(references, getattr(source, "summary", None))


def options(node: Any) -> dict[str, Any]:
    """Return a config node as keyword arguments; its ``name`` is a label and no option."""
    values = asdict(node) if is_dataclass(node) and not isinstance(node, type) else dict(node)
    return {key: value for key, value in values.items() if key != "name"}


def batched(count: int, size: int) -> list[list[int]]:
    """Return the indices 0 … count − 1 in groups of `size`; the last one may be smaller."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def identify(cfg: DictConfig, checkpoint: Checkpoint, references: list[Reference]) -> dict[str, Any]:
    """Return the root attributes that are known before the model loads, with the hash of what makes an
    output.

    The hash covers config, weights, references, engine, GPU and code version; it leaves out paths, labels and
    the launcher.
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
        "weights_sha256": models.weights_sha256(checkpoint.path),
        "tokenizer_sha256": models.tokenizer_sha256(checkpoint.path),
        "references_sha256": references_sha256(references),
        **engine,
    }
    stamp = provenance.stamp()
    hashed = {key: value for key, value in container.items() if key not in NOT_IDENTITY}
    hashed["model"] = {"dtype": container["model"]["dtype"]}
    hashed["prompts"] = facts["references_sha256"]
    # What the backend states of itself (engine version, threads) decides as well.
    decisive = {key: stamp[key] for key in DECISIVE} | {"weights_sha256": facts["weights_sha256"]} | engine
    return {
        **stamp,
        **facts,
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "seed": container["seed"],
        "config_hash": provenance.config_hash(hashed, decisive),
    }


def open_recorder(
    target: Path, experiment: Experiment, facts: Facts, references: list[Reference], attrs: Mapping[str, Any]
) -> Recorder:
    """Return the recorder of a job; it states the facts that the backend observed."""
    import torch

    capture = experiment.capture
    settings = {f.name: getattr(capture, f.name) for f in fields(CaptureSettings) if f.name != "seed"}
    return Recorder(
        target,
        references=references,
        repeats=experiment.repeats,
        output_tokens=experiment.generate.tokens,
        vocab=facts.vocab,
        dtype=getattr(torch, facts.dtype),
        capture=CaptureSettings(**settings),
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
        layers={layer: (facts.kernel_class[layer], name) for layer, name in facts.kernel.items()},
        attrs={
            **attrs,
            **facts.attrs,
            "engine": facts.engine,
            "engine_version": facts.engine_version,
            "sm_count": facts.sm_count,
            "simulated": facts.simulated,
        },
        portable=experiment.dataset.portable,
    )
