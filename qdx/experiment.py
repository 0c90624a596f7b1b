"""One job: references → backend and recorder → ``run.nc``. Runs in a child process of its own (`qdx.job`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qdx import backends, dataset, models, plugins
from qdx.capture import CaptureSettings, Recorder, plan
from qdx.errors import QdxError
from qdx.schema import Experiment, validate

if TYPE_CHECKING:
    from qdx.backends import Backend, Facts
    from qdx.models import Checkpoint
    from qdx.prompts import Reference


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
        ``"complete"``, or ``"resumed"`` when ``run.nc`` was there already and has the same hash.

    Raises
    ------
    QdxError
        When something that the user chose cannot be had; the message says what to change.
    """
    experiment = validate(cfg)
    checkpoint = find_checkpoint(experiment)
    references = load_references(experiment, checkpoint)
    identity = dataset.identity(fingerprint(cfg, checkpoint, references))
    target = directory / "run.nc"
    if dataset.is_complete(target, identity["config_hash"]):
        return "resumed"
    dataset.set_aside(target)

    progress.start("loading the model")
    backend: Backend = plugins.build(
        options(experiment.backend),
        checkpoint=checkpoint,
        quant=experiment.quant,
        dtype=experiment.model.dtype,
        seed=experiment.seed,
    )()
    facts = backend.observe()
    backends.require(experiment.quant, facts)
    attrs = {**identity, **describe(cfg, experiment, checkpoint, facts), "command_line": command_line}
    with open_recorder(directory / "run.nc.part", experiment, facts, references, attrs) as recorder:
        for repeat in range(experiment.repeats):
            backend.reseed(experiment.seed + repeat)
            for batch in batched(len(references), experiment.batch_size):
                progress.step(f"repeat {repeat + 1}/{experiment.repeats}, {references[batch[0]].name}")
                run_batch(backend, recorder, repeat, batch, references, experiment.generate.tokens)
        recorder.finish({})
    return "complete"


def run_batch(
    backend: Backend,
    recorder: Recorder,
    repeat: int,
    batch: list[int],
    references: list[Reference],
    tokens: int,
) -> None:
    """Prefill, generate and replay some references together, and make what was recorded durable."""
    prompts = [references[i].token_ids.tolist() for i in batch]
    forced = [references[i].continuation.tolist() for i in batch]
    recorder.begin("prefill", repeat, batch)
    backend.prefill(prompts, recorder)
    recorder.begin("decode", repeat, batch)
    generated = backend.generate(prompts, tokens, recorder)
    recorder.begin("replay", repeat, batch)
    backend.replay(prompts, forced, recorder)
    for reference, ids in zip(batch, generated, strict=True):
        recorder.output(repeat, reference, ids, backend.decode(ids), backend.eos_index(ids))
    recorder.sync()
