"""Look for everything that would stop a later job, before the first job of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from qdx import backends, models, plugins
from qdx.capture.plan import plan
from qdx.dataset import folder, size
from qdx.dataset.check import reading
from qdx.dataset.guarding import guard
from qdx.dataset.join_configs import require_alike
from qdx.errors import QdxError, nearest
from qdx.experiment import (
    Prompts,
    find_checkpoint,
    identify,
    load_prompts,
    options,
    references_key,
)
from qdx.prompts import KEPT, keep, kept, references_sha256, refusals, same_text
from qdx.prompts.challenge import locate
from qdx.schema import Experiment, TransformersBackend, validate
from qdx.schema_endpoint import OpenaiBackend
from qdx.schema_gguf import LlamacppBackend
from qdx.schema_verify import ChallengePrompts, TranscriptPrompts, Verify
from qdx.sweep.job import NOT_MET, NotMetError

if TYPE_CHECKING:
    from qdx.models import Checkpoint
    from qdx.prompts import Transcripts

# The attribute of a finished run in which a fact of `qdx.dataset.join_configs.ALIKE` stands.
STATED = {
    "tokenizer": "tokenizer_sha256",
    "references": "references_sha256",
    "transcripts": "transcripts_sha256",
    "vocabulary": "vocab",
}


@dataclass(frozen=True)
class Job:
    """One config of a sweep with what it will run on."""

    cfg: DictConfig
    experiment: Experiment
    checkpoint: Checkpoint
    prompts: Prompts

    @property
    def label(self) -> str:
        """Name of its folder."""
        return self.experiment.label

    @property
    def vocab(self) -> int:
        """Logits in a row."""
        return models.vocab_size(self.checkpoint.path)


def prepare(configs: list[DictConfig], directory: Path) -> None:
    """Have everything ready that the jobs of a sweep need, and say what they will run and write.

    Downloads or builds checkpoints, loads the references and prints them, and stops for what would fail hours
    later: references that are too long or that a batch size does not divide, runs that cannot be merged,
    metrics that break their contract or compare what will not be captured, a disk that is too small.

    Raises
    ------
    QdxError
        Naming the first of these.
    NotMetError
        Where no transcript can be judged, before a checkpoint is looked for.
    """
    asking = [isinstance(validate(cfg).backend, OpenaiBackend) for cfg in configs]
    if any(asking):
        prepare_questions(configs, asking, directory)
        return
    look_at_obligations(validate(configs[0]))
    loaded: dict[tuple[object, ...], Prompts] = {}
    alike: dict[str, dict[str, str]] = {}
    estimate, unfinished = 0, 0
    for cfg in configs:
        experiment = validate(cfg)
        checkpoint = find_checkpoint(experiment)
        check_checkpoint(experiment, checkpoint)
        tokenizer = models.tokenizer_sha256(checkpoint.path)
        key = (repr(experiment.prompts), tokenizer, *_of_transcripts(experiment, checkpoint))
        if key not in loaded:
            loaded[key] = settle_references(
                load_prompts(experiment, checkpoint), experiment, checkpoint, directory
            )
            print(f"prompts: {loaded[key].description}".replace("\n", "\n  "), flush=True)
        job = Job(cfg, experiment, checkpoint, loaded[key])
        check_lengths(job)
        files = models.hash_weights(checkpoint.path, models.remembered_weights(checkpoint.path))
        identity = identify(cfg, checkpoint, job.prompts, files)
        alike[job.label] = {
            "tokenizer": tokenizer,
            "references": identity["references_sha256"],
            "transcripts": identity["transcripts_sha256"],
            "vocabulary": str(job.vocab),
            "sketch": f"{experiment.capture.components} components",
        }
        rehearse(experiment, job.vocab)
        if not folder.is_complete(directory / job.label / folder.RUN, identity["config_hash"]):
            kept, meanwhile = expected_bytes(job)
            estimate, unfinished = estimate + kept, max(unfinished, meanwhile)
    require_alike(earlier_runs(directory, set(alike)) | alike)
    size.check_disk(directory, estimate + unfinished)
    for prompts in loaded.values():
        for line in [] if prompts.producers else refusals(list(alike), prompts.references):
            print(f"NOTE: a verifier will refuse this sweep's file: {line}", flush=True)
        if prompts.transcripts is not None:
            keep_for_the_report(prompts.transcripts, validate(configs[0]).verify, directory)
        if prompts.challenge is not None:
            prompts.challenge.keep(directory)
        if prompts.kept_under:
            keep(prompts.references, prompts.description, prompts.kept_under, directory)
    more = f", and {size.readable(unfinished)} while a job runs" if unfinished else ""
    print(f"results: about {size.readable(estimate)} in {directory}{more}", flush=True)


def prepare_questions(configs: list[DictConfig], asking: list[bool], directory: Path) -> None:
    """Have the prompts ready that servers are asked, and say how much will be asked at most.

    Raises
    ------
    QdxError
        For a sweep that runs models too: its file of results would hold configs without rows.
    """
    if not all(asking):
        raise QdxError(
            "this sweep asks servers (backend=openai) and runs models too: ask in one sweep, and replay its "
            "answers in another with prompts=transcripts prompts.path=FOLDER"
        )
    loaded: dict[str, Prompts] = {}
    for cfg in configs:
        experiment = validate(cfg)
        assert isinstance(experiment.backend, OpenaiBackend)
        checkpoint = find_checkpoint(experiment)
        backends.rehearse(options(experiment.backend))
        key = f"{experiment.prompts!r} {models.tokenizer_sha256(checkpoint.path)}"
        if key not in loaded:
            loaded[key] = settle_references(
                load_prompts(experiment, checkpoint), experiment, checkpoint, directory
            )
            print(f"prompts: {loaded[key].description}".replace("\n", "\n  "), flush=True)
        references, answers = loaded[key].references, experiment.backend.answers
        count = len(references) * answers
        most = answers * sum(len(one.token_ids) + experiment.generate.tokens for one in references)
        print(
            f"asks: {experiment.label}: {count} answers of {experiment.backend.base_url}, at most {most:,} "
            "tokens of prompts and answers, failed attempts apart",
            flush=True,
        )
    if len(loaded) > 1:
        raise QdxError(
            "the configs of this sweep have other prompts or tokenizers: compare servers by the same "
            "questions, so leave prompts and model alike"
        )
    for prompts in loaded.values():
        if prompts.kept_under:
            keep(prompts.references, prompts.description, prompts.kept_under, directory)


def settle_references(
    prompts: Prompts, experiment: Experiment, checkpoint: Checkpoint, directory: Path
) -> Prompts:
    """Return the prompts of all jobs of a sweep: those of its folder, where only the template's part changed.

    Transcripts and challenges bring their own references and are returned as they are.

    Parameters
    ----------
    prompts : Prompts
        As they are made today.
    experiment : Experiment
    checkpoint : Checkpoint
    directory : Path
        The sweep's folder; an earlier start may have kept its references there.
    """
    if prompts.transcripts is not None or prompts.challenge is not None:
        return prompts
    key = references_key(experiment, checkpoint, prompts.tokenizer)
    made, said = prompts.references, prompts.description
    earlier = kept(directory, key) or (made, said)
    if same_text(made, earlier[0]) and references_sha256(made) != references_sha256(earlier[0]):
        print(
            "NOTE: the chat template writes something else today (a date or a time) than when this sweep "
            f"began: the references of {directory / KEPT} are used",
            flush=True,
        )
        made, said = earlier
    return replace(prompts, references=made, description=said, kept_under=key)


def check_checkpoint(experiment: Experiment, checkpoint: Checkpoint) -> None:
    """Hold a checkpoint's files against its config.json, and the model against what the backend can run.

    Raises
    ------
    QdxError
        Naming what disagrees, before any job has run.
    """
    models.check_contents(checkpoint.path, checkpoint.format)
    backends.rehearse(
        options(experiment.backend),
        checkpoint=checkpoint,
        quant=experiment.quant,
        dtype=experiment.model.dtype,
        batch_size=experiment.batch_size,
    )


def keep_for_the_report(transcripts: Transcripts, asked: Verify, directory: Path) -> None:
    """Copy what the report will judge by into the sweep folder, after a look at what is asked of it.

    Raises
    ------
    QdxError
        For a claim of somebody who is not a producer, a calibration that is not a verifier's sweep, a demand
        that means nothing, or opened rows without their challenge.
    """
    from qdx.verification import ledger, obligations
    from qdx.verification.sections import CHALLENGE, adopt_calibration, adopt_challenge

    names = [producer.name for producer in transcripts.producers]
    for producer in asked.claims or {}:
        if producer not in names:
            raise QdxError(
                f"verify.claims names {producer!r}, which is not a producer in {transcripts.file.path}: "
                f"{', '.join(names)}{nearest(producer, names)}"
            )
    for number, earlier in enumerate(asked.calibrations, 1):
        adopt_calibration(directory, Path(earlier).expanduser().absolute(), number)
    obligations.check(asked.require or {}, asked.challenge is not None)
    if asked.challenge is not None:
        adopt_challenge(directory, locate(asked.challenge, "verify.challenge"))
    elif transcripts.file.opened:
        raise QdxError(
            f"{transcripts.file.path} opens rows that were bound before: they are judged with the challenge "
            "that they answer: add verify.challenge=challenge.json"
        )
    else:  # an earlier sweep of the folder may have left one
        for path in (directory / CHALLENGE, ledger.path_of(directory / CHALLENGE)):
            path.unlink(missing_ok=True)
    transcripts.keep(directory)


def look_at_obligations(experiment: Experiment) -> None:
    """Say what producers do not meet whatever a replay gives, and stop where nobody could be judged.

    Raises
    ------
    NotMetError
        When every producer lacks something, and ``verify.go_on`` does not ask for the replay.
    QdxError
        See `unmet`.
    """
    asked = experiment.verify
    if not isinstance(experiment.prompts, TranscriptPrompts):
        return
    if asked.challenge is None and not asked.require:
        return
    transcripts = plugins.build(options(experiment.prompts))()
    if transcripts.file.opened and asked.challenge is None:
        return  # refused as soon as it is kept for the report
    found = unmet(transcripts, asked)
    lines = [f"{NOT_MET}: {producer}: {line}" for producer, of in found.items() for line in of]
    if lines and all(found.values()) and not asked.go_on:
        raise NotMetError(lines)
    for line in lines:
        print(f"NOTE: {line}", flush=True)


def unmet(transcripts: Transcripts, asked: Verify) -> dict[str, tuple[str, ...]]:
    """Hold a file against a challenge and demands, as far as that takes no replay.

    Returns
    -------
    dict of str to tuple of str
        Of every producer what she does not meet.

    Raises
    ------
    QdxError
        For a demand that means nothing, or a challenge or its ledger that is not there or is damaged.
    """
    from qdx.dataset.opening import open_file
    from qdx.verification import obligations
    from qdx.verification.sections import exchange_with

    obligations.check(asked.require or {}, asked.challenge is not None)
    path = None if asked.challenge is None else locate(asked.challenge, "verify.challenge")
    tree = open_file(transcripts.file.path)
    try:
        exchange = None if path is None else exchange_with(path, tree)
        return {
            one.name: obligations.known_unmet(asked.require or {}, tree, exchange, one.name)
            for one in transcripts.producers
        }
    finally:
        tree.close()


def _of_transcripts(experiment: Experiment, checkpoint: Checkpoint) -> tuple[object, ...]:
    """Return what a file of transcripts or a challenge is held against, beside its tokenizer."""
    if not isinstance(experiment.prompts, TranscriptPrompts | ChallengePrompts):
        return ()
    kept = str(experiment.capture.prefill_positions)
    return experiment.generate.tokens, experiment.batch_size, models.vocab_size(checkpoint.path), kept


def check_lengths(job: Job) -> None:
    """Refuse references that the model has no positions for, or that the batch size does not divide.

    Raises
    ------
    QdxError
        Naming the reference and the limit.
    """
    limit = models.context_length(job.checkpoint.path)
    producers = job.prompts.producers
    for r, reference in enumerate(job.prompts.references):
        length = len(reference.token_ids)
        tokens = max((one.length(r) for one in producers), default=job.experiment.generate.tokens)
        if limit is not None and length + tokens > limit:
            raise QdxError(
                f"reference {reference.name!r} has {length} tokens and {tokens} follow, the limit of "
                f"{job.checkpoint.source} is {limit}: "
                + ("choose the model that the producers ran" if producers else "lower prompts.snippet_tokens")
            )
        beyond = max(
            [
                *map(int, reference.token_ids),
                *map(int, reference.continuation),
                *(token for one in producers for token in one.transcripts([r])[0]),
            ]
        )
        if beyond >= job.vocab:
            raise QdxError(
                f"reference {reference.name!r} has token id {beyond}, and {job.checkpoint.source} has "
                f"{job.vocab} rows in its embedding (vocab_size of its config.json): its tokenizer is of "
                "another model, or tokens were added to it and not to the model"
            )
    if isinstance(job.experiment.backend, TransformersBackend):
        check_rotation(job)
    count, batch = len(job.prompts.references), job.experiment.batch_size
    if count % batch:
        raise QdxError(
            f"batch_size={batch} does not divide {count} references: the last ones would run in a smaller "
            f"batch, which may use other kernels; choose a divisor or change prompts.references"
        )


def check_rotation(job: Job) -> None:
    """Refuse prompts on both sides of the length from which a model rotates its tokens otherwise.

    transformers chooses by the longest sequence of a call, so such rows would depend on what else is in the
    batch and on how far an output goes.

    Raises
    ------
    QdxError
        Naming the length and a reference on either side.
    """
    limit = models.switching_length(job.checkpoint.path)
    if limit is None:
        return
    following = {
        one.name: max((p.length(r) for p in job.prompts.producers), default=job.experiment.generate.tokens)
        for r, one in enumerate(job.prompts.references)
    }
    lengths = {one.name: len(one.token_ids) for one in job.prompts.references}
    ends = {name: length + following[name] for name, length in lengths.items()}
    shortest, longest = min(lengths, key=lengths.__getitem__), max(ends, key=ends.__getitem__)
    if lengths[shortest] <= limit < ends[longest]:
        raise QdxError(
            f"{job.checkpoint.source} rotates its tokens otherwise in calls that go beyond {limit} positions "
            f"(rope_scaling of its config.json); reference {shortest!r} begins with {lengths[shortest]} and "
            f"{longest!r} ends with {ends[longest]}: choose prompts.snippet_tokens so that all prompts and "
            "outputs lie on one side"
        )


def rehearse(experiment: Experiment, vocab: int) -> None:
    """Call every metric once: distances are measured when all runs are done, hours later maybe."""
    from qdx.distances.pairs import Measure

    for name, node in experiment.metric.items():
        measure = Measure.of(name, plugins.build(node))
        if measure.on == "hidden" and experiment.capture.mode != "hidden":
            raise QdxError(
                f"metric={name} compares hidden states and {experiment.label} is run with "
                f"capture={experiment.capture.name}, which keeps none: add capture=hidden or drop the metric"
            )
        measure.rehearse(vocab, experiment.capture.k)


def expected_bytes(job: Job) -> tuple[int, int]:
    """Estimate what a job writes: the bytes of its files, and what else there is until they are whole."""
    experiment = job.experiment
    capture = experiment.capture
    rows = plan(
        job.prompts.references,
        prefill_positions=capture.prefill_positions,
        output_tokens=experiment.generate.tokens,
        producers=job.prompts.producers,
    )
    width = models.hidden_size(job.checkpoint.path) if capture.mode == "hidden" else job.vocab
    full = 0 if capture.mode == "topk" else width
    # llama.cpp's rows are float32, whatever its file holds
    dtype = "float32" if isinstance(experiment.backend, LlamacppBackend) else experiment.model.dtype
    once = size.bytes_per_run(
        rows,
        repeats=experiment.repeats,
        width=full,
        dtype=dtype,
        k=min(capture.k, job.vocab),
        components=capture.components,
    )
    if experiment.repeat_scope == "process":  # the repeats' files lie beside the one they are joined into
        return once, once + size.unfinished_bytes(rows, repeats=1, width=full, dtype=dtype)
    return once, size.unfinished_bytes(rows, repeats=experiment.repeats, width=full, dtype=dtype)


def earlier_runs(directory: Path, labels: set[str]) -> dict[str, dict[str, str]]:
    """Return what must be alike of the finished runs that another sweep left in this folder."""
    import netCDF4

    found = {}
    for path in directory.glob(f"*/{folder.RUN}"):
        if path.parent.name in labels:
            continue
        guard(path)
        with reading(path), netCDF4.Dataset(path) as file:
            stated = {
                fact: str(file.getncattr(name)) if name in file.ncattrs() else ""
                for fact, name in STATED.items()
            }
            sketch = f"{len(file['replay'].dimensions['component'])} components"
            found[path.parent.name] = {**stated, "sketch": sketch}
    return found
