"""Transcripts of producers: the same references, and the tokens that every producer generated after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx import new_file
from qdx.dataset.layout import RECORDS
from qdx.errors import QdxError
from qdx.plugins import register
from qdx.prompts._reference import Reference, Summary
from qdx.prompts._transcript_file import Transcripts as File
from qdx.prompts._transcript_file import clean, locate, read_once
from qdx.prompts.challenge import locate as locate_challenge
from qdx.prompts.challenge import read_once as read_challenge
from qdx.prompts.records import OPTIONS as OF_RECORDS
from qdx.prompts.records import converted, is_own, is_record_file

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from qdx.dataset.layout import Producer

TARGET = "qdx.prompts.Transcripts"
LIMITS = ("max_bytes", "max_objects", "max_length", "max_seconds")  # see `qdx.dataset.guarding.Limits`
OPTIONS = ("name", "_target_", "path", *OF_RECORDS, *LIMITS)
PASSES = (
    0.01,
    0.1,
)  # seconds of a step of decode: a small model on a GPU, a large one or a small one on a CPU
LONG = 2_000  # steps of decode: below, nobody waits long
COPY = "producers.nc"  # of the file, in the verifier's sweep folder


@register("prompts", "transcripts")
@dataclass
class Transcripts:
    """Replay what producers generated: the program is the verifier then.

    Parameters
    ----------
    path : str
        The producers' ``sweep.nc``, their sweep folder, or what ``python -m qdx.commit`` wrote; or a file of
        records of another program, which a sweep turns into transcripts before it starts.
    reader, requests, records, draw_seed, assume, harmless, date, noise
        Of records alone: see `qdx.prompts.records`.
    max_bytes, max_objects, max_length, max_seconds : int, optional
        What the file may claim, where that is more than usual; see `qdx.dataset.guarding.Limits`. They hold
        for every file that this process opens from then on.

    Attributes
    ----------
    summary : Summary or None
        Always None: the references' documents are not at hand.
    """

    path: str
    reader: str | None = None
    requests: str | None = None
    records: int | None = None
    draw_seed: int | None = None
    assume: dict[str, Any] | None = None
    harmless: list[str] | None = None
    date: str | None = None
    noise: str | None = None
    max_bytes: int | None = None
    max_objects: int | None = None
    max_length: int | None = None
    max_seconds: int | None = None
    summary: Summary | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        from qdx.dataset.guarding import allow

        allow(**{name: getattr(self, name) for name in LIMITS})

    @cached_property
    def file(self) -> File:
        """The checked content of the file; see `qdx.prompts._transcript_file.read`."""
        return read_once(locate(self.path))

    def load(self, tokenizer: Any) -> list[Reference]:
        """Return the references, their text decoded from the token ids; see `PromptSource.load`."""
        return [_decoded(one, tokenizer) for one in self.file.references]

    @property
    def producers(self) -> list[Producer]:
        """Every producer with its first repeat's tokens."""
        return self.file.producers

    def require(
        self,
        *,
        tokenizer_sha256: str,
        vocab: int,
        tokens: int,
        components: int | None = None,
        sketch_seed: int | None = None,
        mode: str = "full",
    ) -> None:
        """Refuse to replay with another model's tokens, or what could not be compared with the replay.

        Parameters
        ----------
        tokenizer_sha256, vocab
            Of the verifier's checkpoint.
        tokens : int
            ``generate.tokens``.
        components : int, optional
            ``capture.components``.
        sketch_seed : int, optional
            Of this version's projection.
        mode : str
            ``capture.mode``.

        Raises
        ------
        QdxError
        """
        file = self.file
        if file.tokenizer_sha256 != tokenizer_sha256:
            raise QdxError(
                f"{file.path}: the producers' tokenizer has the sha256 {clean(file.tokenizer_sha256)[:16]}…, "
                f"this model's {tokenizer_sha256[:16]}…: choose the model that the producers ran"
            )
        if file.vocab != vocab:
            raise QdxError(
                f"{file.path}: the producers' rows have {file.vocab} logits, this model's {vocab}: choose "
                "the model that the producers ran"
            )
        if file.tokens != tokens:
            raise QdxError(
                f"generate.tokens={tokens}: the transcripts of {file.path} have {file.tokens} tokens, all of "
                "which are replayed: remove generate.tokens"
            )
        if file.opened and mode != "full":
            raise QdxError(
                f"capture.mode={mode}: opened rows are compared with this machine's full rows, which it does "
                "not keep: remove capture"
            )
        if components is not None and file.components not in (0, components):
            raise QdxError(
                f"{file.path}: the producers' sketches have {file.components} components, this run's "
                f"{components}, which cannot be compared: capture.components={file.components}"
            )
        if sketch_seed is not None and file.components and file.sketch_seed not in ("", str(sketch_seed)):
            raise QdxError(
                f"{file.path}: the producers' sketches are of the seed {clean(file.sketch_seed)[:20]}, this "
                f"version's of {sketch_seed}, which cannot be compared: use the qdx that the producers ran"
            )

    def keep(self, directory: Path) -> None:
        """Copy the file into a sweep folder, where the report finds it whatever becomes of the original."""
        source, target = self.file.path, directory / COPY
        if target.exists() and target.samefile(source):
            return
        directory.mkdir(parents=True, exist_ok=True)
        new_file.copy(source, target)

    def describe(self, batch_size: int) -> str:
        """Say who produced what, how long the replay is, and where it is batched otherwise."""
        from qdx.dataset.checksums import UNCHECKED, is_checked

        if self.file.kind == RECORDS:
            return self._describe_records(batch_size)
        lines = [f"transcripts of {len(self.producers)} producers, {self.file.tokens} tokens a reference:"]
        for producer in self.producers:
            at = producer.coords
            machine = at["gpu"] or "CPU"
            lines.append(
                f"  {producer.name}: {at['observed_kernel']}, {at['dtype']}, {at['backend']} "
                f"{at['backend_version']}, {machine}, batch {at['batch_size']}"
            )
        if not is_checked(self.file.path):
            lines.append(f"NOTE: {self.file.path} is {UNCHECKED}")
        other = [p.name for p in self.producers if int(p.coords["batch_size"]) != batch_size]
        if other:
            sizes = ",".join(map(str, sorted({int(p.coords["batch_size"]) for p in self.producers})))
            lines.append(
                f"NOTE: batch_size={batch_size}, and {', '.join(other)} ran another: batches choose kernels, "
                f"so those rows may differ for honest producers; batch_size={sizes} meets them all"
            )
        if said := duration(len(self.file.references), len(self.producers), self.file.tokens, batch_size):
            lines.append(said)
        return "\n".join([*lines, *(f"NOTE: {line}" for line in self.file.lacking)])

    def _describe_records(self, batch_size: int) -> str:
        file = self.file
        lengths = [[int(n) for n in (one.token_ids >= 0).sum(1) if n] for one in self.producers]
        lines = [line.replace("PROMPT:", "NOTE:", 1) for line in file.notes if line.startswith("PROMPT:")]
        lines.append(
            f"records of other programs: {file.replayed:,} tokens of {len(self.producers)} producers"
        )
        lines += [
            f"  {one.name}: {len(own)} answers of {min(own)} to {max(own)} tokens"
            for one, own in zip(self.producers, lengths, strict=True)
        ]
        lines += [f"  {line}" for line in file.notes if not line.startswith("PROMPT:")]
        if said := duration(1, 1, file.replayed, batch_size):
            lines.append(said)
        return "\n".join(lines)


def duration(references: int, producers: int, tokens: int, batch_size: int) -> str:
    """Say how long a replay of one config is, before it starts; "" where it is short.

    Parameters
    ----------
    references, producers, tokens, batch_size : int

    Returns
    -------
    str
        The steps of a repeat, and the hours that they take at the two speeds of `PASSES`, which it states.
    """
    # The first token comes from prefill, which reads a whole prompt.
    steps = -(-references // batch_size) * producers * tokens
    if steps < LONG:
        return ""
    low, high = (f"{_readable(steps * s)} where a step takes {s * 1000:.0f} ms" for s in PASSES)
    return (
        f"NOTE: {steps:,} steps for each config and repeat: {low}, {high}, and the time of "
        f"{references:,} prompts' prefill"
    )


def _readable(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _decoded(reference: Reference, tokenizer: Any) -> Reference:
    """The reference with the text of its content, whatever the file says that it is."""
    start = reference.prefix_length
    ids = reference.token_ids[start : start + reference.content_length]
    return replace(reference, text=clean(tokenizer.decode(ids.tolist())))


def settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Take from the file of transcripts what the command line leaves open, in place.

    A file of records is turned into one of transcripts, whose path takes its place.
    ``generate.tokens`` is the transcripts' length; ``batch_size`` that of most producers (the smallest of
    equally many), so that the decode kernels see the same number of rows. ``repeat_scope`` is ``process``: an
    engine may choose a kernel at each start, so only repeats that started anew say what an honest producer's
    start could have given. ``repeats`` is what lets these refute a kernel that does not repeat, see
    `repeats_needed`. With ``verify.challenge`` the rows of prefill are those that it asks for. A config with
    other prompts is left as it is.

    Parameters
    ----------
    cfg : DictConfig
        A job's composed config.
    overrides : sequence of str
        What the command line sets, such as ``batch_size=4``.

    Raises
    ------
    QdxError
        When the file cannot be read; see `qdx.prompts._transcript_file.read`.
    """
    from omegaconf import OmegaConf, flag_override

    if str(OmegaConf.select(cfg, "prompts._target_")) != TARGET or OmegaConf.is_missing(cfg.prompts, "path"):
        return  # the check of the config says what is missing
    given = {text.partition("=")[0].lstrip("+") for text in overrides}
    given_path = locate(cfg.prompts.path)
    if is_record_file(given_path):
        with flag_override(cfg, ["readonly", "struct"], False):
            cfg.prompts.path = str(converted(cfg))
    file = Transcripts(cfg.prompts.path).file
    if file.kind == RECORDS and not is_own(file.path):
        raise QdxError(
            f"{given_path}: what qdx made of records of another program, which states itself how much was "
            "left out of them: give the records"
        )
    if file.draw_seed:
        with flag_override(cfg, ["readonly", "struct"], False):
            cfg.prompts.draw_seed = int(
                file.draw_seed
            )  # the run records with which one its answers were drawn
    # 0: records of other programs do not say what ran beside them.
    sizes = Counter(max(1, int(producer.coords["batch_size"])) for producer in file.producers)
    with flag_override(cfg, ["readonly", "struct"], False):
        for key in [str(key) for key in cfg.prompts if key not in OPTIONS and f"prompts.{key}" not in given]:
            del cfg.prompts[key]  # an experiment sets it for the prompts that it was written for
        if "generate.tokens" not in given:
            cfg.generate.tokens = file.tokens
        asked = OmegaConf.select(cfg, "verify.challenge")
        if isinstance(asked, str) and "capture.prefill_positions" not in given:
            challenge = read_challenge(locate_challenge(asked, "verify.challenge"))[0]
            cfg.capture.prefill_positions = challenge.prefill_positions
        if "batch_size" not in given:
            cfg.batch_size = min(sizes, key=lambda size: (-sizes[size], size))
        if "repeat_scope" not in given:
            cfg.repeat_scope = "process"
        if "repeats" not in given:
            size = cfg.batch_size  # not checked yet
            batch = size if isinstance(size, int) and 0 < size <= len(file.references) else 1
            units = len(file.references) // batch  # references that share a batch count once
            cfg.repeats = repeats_needed(units, len(file.producers), float(cfg.verify.alpha))
            if file.kind == RECORDS:  # it has no rows, for which more than the engine's starts would count
                cfg.repeats = min(cfg.repeats, 3)


def repeats_needed(units: int, claims: int, alpha: float) -> int:
    """Return how often a verifier runs, so that few references can refute a kernel that does not repeat.

    Among R repeats of its own the producer is the odd one out in all m units (references, or batches of them)
    with p = 3/(R + 1)^m, which counts as many times as a claim has tests (prefill's rows, distances, text)
    and the file has claims.

    Returns
    -------
    int
        3 to 5; 3 also where 5 are too few.

    Examples
    --------
    >>> repeats_needed(4, 4, 0.05), repeats_needed(20, 4, 0.05), repeats_needed(1, 1, 0.05)
    (5, 3, 3)
    """
    tests = 3
    enough = (r for r in (3, 4, 5) if alpha * (r + 1) ** units >= 3 * tests * claims)
    return next(enough, 3)
