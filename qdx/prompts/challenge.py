"""Prompts that a verifier made for one prover: a challenge file, and the source that reads it.

A challenge fixes what the prover cannot choose then: the prompts as token ids, each of which begins with a
random number that was not known before (the *nonce*), the number of output tokens, and the rows that are to
be recorded. It says nothing of the rows that will be looked at: the verifier's other file does, and the
challenge holds the SHA-256 of its seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdx import new_file
from qdx.dataset import guarded_json
from qdx.dataset.guarded_json import Fields
from qdx.errors import QdxError
from qdx.plugins import register
from qdx.prompts._reference import Reference, Summary
from qdx.prompts._transcript_file import PAGES, check_name, clean, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

TARGET = "qdx.prompts.Challenge"
KIND, VERSION = "challenge", 1
NONCE = 32  # hexadecimal digits: 128 bits
COPY = "challenge.json"  # of the file, in a sweep folder
MOST_REFERENCES, MOST_TOKENS = 100_000, 2**24
OWN = ("name", "_target_", "path")


@dataclass(frozen=True)
class ChallengeFile:
    """Read what a challenge asks for.

    Attributes
    ----------
    nonce : str
        32 hexadecimal digits; every prompt's content begins with it.
    issued : str
        When the verifier made it, UTC.
    seed_sha256 : str
        SHA-256 of the seed that rows will be drawn with, which the verifier keeps.
    tokenizer_sha256 : str
        Of the model that is to be run.
    vocab : int
        Logits in a row.
    tokens : int
        Output tokens of every reference.
    prefill_positions : int
        Last content rows of every prefill that are recorded; see `qdx.capture.CaptureSettings`.
    references : list of Reference
        Without text, which their tokens say.
    """

    nonce: str
    issued: str
    seed_sha256: str
    tokenizer_sha256: str
    vocab: int
    tokens: int
    prefill_positions: int
    references: list[Reference]

    def dump(self) -> bytes:
        """Return the file's bytes."""
        import json

        head = {
            "kind": KIND,
            "schema_version": VERSION,
            "nonce": self.nonce,
            "issued": self.issued,
            "seed_sha256": self.seed_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "vocab": self.vocab,
            "tokens": self.tokens,
            "prefill_positions": self.prefill_positions,
        }
        body = [json.dumps(_plain(reference)) for reference in self.references]  # one a line
        text = json.dumps(head, indent=1)[:-2] + ',\n "references": [\n  ' + ",\n  ".join(body) + "\n ]\n}\n"
        return text.encode()


def _plain(reference: Reference) -> dict[str, Any]:
    return {
        "name": reference.name,
        "prefix_length": reference.prefix_length,
        "content_length": reference.content_length,
        "suffix_length": reference.suffix_length,
        "source": reference.source,
        "pages": reference.pages,
        "token_ids": reference.token_ids.tolist(),
        "continuation": reference.continuation.tolist(),
    }


def read(path: Path) -> tuple[ChallengeFile, str]:
    """Read and check a challenge.

    Returns
    -------
    ChallengeFile
    str
        SHA-256 of the file's bytes, which names this challenge.

    Raises
    ------
    QdxError
        See `qdx.dataset.guarded_json.read`; also for references that do not fit the stated sizes.
    """
    data = guarded_json.read_bytes(path)
    fields = guarded_json.parse(data, path, KIND, VERSION)
    vocab = fields.integer("vocab", 1, 2**31 - 1)
    tokens = fields.integer("tokens", 2, 2**20)
    objects = fields.objects("references", most=MOST_REFERENCES)
    if not objects:
        raise QdxError(f"{path}: references is an empty list: a challenge has at least one prompt")
    references = [_reference(one, vocab, tokens, f"{path}: references[{i}]") for i, one in enumerate(objects)]
    names = [one.name for one in references]
    if len(set(names)) < len(names):
        raise QdxError(f"{path}: references: a name stands twice: each names one prompt")
    found = ChallengeFile(
        fields.hexadecimal("nonce", NONCE),
        fields.time("issued"),
        fields.hexadecimal("seed_sha256"),
        fields.hexadecimal("tokenizer_sha256"),
        vocab,
        tokens,
        fields.integer("prefill_positions", 0, MOST_TOKENS),
        references,
    )
    fields.done()
    return found, hashlib.sha256(data).hexdigest()


def _reference(fields: Fields, vocab: int, tokens: int, where: str) -> Reference:
    name = fields.text("name", most=80)
    check_name(name, where)
    parts = [fields.integer(f"{part}_length", 0, MOST_TOKENS) for part in ("prefix", "content", "suffix")]
    ids = fields.integers("token_ids", 0, vocab - 1, most=MOST_TOKENS)
    after = fields.integers("continuation", 0, vocab - 1, most=tokens)
    if sum(parts) != len(ids) or not parts[1]:
        raise QdxError(f"{where}: parts of {parts} tokens do not add up to the {len(ids)} token_ids")
    if len(after) != tokens:
        raise QdxError(f"{where}: continuation has {len(after)} tokens, expected {tokens}")
    source, pages = fields.text("source"), fields.text("pages", most=80, pattern=PAGES)
    fields.done()
    token_ids = np.array(ids, np.int32)
    return Reference(
        name=name,
        token_ids=token_ids,
        prefix_length=parts[0],
        content_length=parts[1],
        suffix_length=parts[2],
        continuation=np.array(after, np.int32),
        text="",
        source=one_line(source),
        pages=pages,
        # The nonce stands before what was cut from a document, so the prompt is a document of its own.
        token_offset=0,
        sha256=hashlib.sha256(np.ascontiguousarray(token_ids, "<i4").tobytes()).hexdigest(),
    )


def read_once(path: Path) -> tuple[ChallengeFile, str]:
    """`read`, but not again while the file is as it was."""
    try:
        state = path.stat()
    except OSError as error:
        raise QdxError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _read_state(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read_state(path: Path, _mtime_ns: int, _size: int) -> tuple[ChallengeFile, str]:
    return read(path)


def locate(path: object, option: str) -> Path:
    """Return the file that an option names; relative paths begin where the user started the program.

    Raises
    ------
    QdxError
        When it names nothing.
    """
    from hydra.utils import to_absolute_path

    if not isinstance(path, str | Path) or not str(path).strip():
        raise QdxError(f"{option}={path}: give the file that python -m qdx.challenge wrote")
    return Path(to_absolute_path(str(Path(path).expanduser())))


@register("prompts", "challenge")
@dataclass
class Challenge:
    """The prompts of a verifier's challenge, to be run by the prover.

    Parameters
    ----------
    path : str
        What ``python -m qdx.challenge`` wrote.

    Attributes
    ----------
    summary : Summary or None
        Always None: the prompts' documents are not at hand.
    """

    path: str
    summary: Summary | None = field(default=None, init=False)

    @cached_property
    def file(self) -> ChallengeFile:
        """The checked content of the file; see `read`."""
        return read_once(locate(self.path, "prompts.path"))[0]

    def load(self, tokenizer: Any) -> list[Reference]:
        """Return the references, their text decoded from the token ids; see `PromptSource.load`.

        Raises
        ------
        QdxError
            Also when a prompt does not begin with the nonce: it could have been run before.
        """
        return [with_nonce(one, tokenizer, self.file.nonce) for one in self.file.references]

    def require(self, *, tokenizer_sha256: str, vocab: int, tokens: int, prefill_positions: object) -> None:
        """Refuse to run another model, or other lengths, than the verifier asks for.

        Raises
        ------
        QdxError
        """
        file, path = self.file, self.path
        if (file.tokenizer_sha256, file.vocab) != (tokenizer_sha256, vocab):
            raise QdxError(
                f"{path}: made for a model with {file.vocab} logits and the tokenizer "
                f"{file.tokenizer_sha256[:16]}…; this one has {vocab} and {tokenizer_sha256[:16]}…: choose "
                "the model that the verifier asks for (model=…)"
            )
        for option, got, wanted in (
            ("generate.tokens", tokens, file.tokens),
            ("capture.prefill_positions", prefill_positions, file.prefill_positions),
        ):
            if got != wanted:
                raise QdxError(f"{option}={got}: {path} asks for {wanted}: remove {option}")

    def keep(self, directory: Path) -> None:
        """Copy the file into the sweep folder, where ``python -m qdx.commit`` finds it.

        Raises
        ------
        QdxError
            When the folder has another challenge, which its runs answer.
        """
        source, target = locate(self.path, "prompts.path"), directory / COPY
        if target.exists():
            if read_once(target)[1] != read_once(source)[1]:
                raise QdxError(f"{target} is another challenge: choose another hydra.sweep.dir")
            return
        directory.mkdir(parents=True, exist_ok=True)
        new_file.copy(source, target)


def with_nonce(reference: Reference, tokenizer: Any, nonce: str) -> Reference:
    """The reference with its content as text, which has to begin with the nonce.

    Raises
    ------
    QdxError
    """
    start = reference.prefix_length
    text = clean(tokenizer.decode(reference.token_ids[start : start + reference.content_length].tolist()))
    if not "".join(text.split()).startswith(nonce):
        raise QdxError(
            f"reference {reference.name!r} begins with {text[:40]!r}, not with the nonce {nonce}: it could "
            "have been run before the challenge was made"
        )
    return replace(reference, text=text)


def settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Take the lengths from the challenge, in place, where the command line leaves them open.

    Raises
    ------
    QdxError
        When the file cannot be read; see `read`.
    """
    from omegaconf import OmegaConf, flag_override

    if str(OmegaConf.select(cfg, "prompts._target_")) != TARGET or OmegaConf.is_missing(cfg.prompts, "path"):
        return  # the check of the config says what is missing
    given = {text.partition("=")[0].lstrip("+") for text in overrides}
    file = Challenge(cfg.prompts.path).file
    with flag_override(cfg, ["readonly", "struct"], False):
        for key in [str(key) for key in cfg.prompts if key not in OWN and f"prompts.{key}" not in given]:
            del cfg.prompts[key]  # an experiment sets it for the prompts that it was written for
        if "generate.tokens" not in given:
            cfg.generate.tokens = file.tokens
        if "capture.prefill_positions" not in given:
            cfg.capture.prefill_positions = file.prefill_positions
