"""``python -m qdx.challenge FILE [KEY=VALUE …]``: make prompts that nobody can have run before.

The verifier chooses prompts and lengths as for a sweep, such as ``prompts=pydoc prompts.references=20
generate.tokens=32``. Every prompt then begins with a random number, the nonce. FILE goes to the prover.
Beside it ``….verifier.json`` is written, which the verifier keeps: it holds the seed that decides which rows
will be looked at, and later when the prover's root was received.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qdx import models, new_file, plugins
from qdx.api import compose
from qdx.errors import QdxError
from qdx.experiment import find_checkpoint, options
from qdx.program import of_disk, run
from qdx.prompts import Challenge, Reference, Transcripts, check_references
from qdx.prompts._transcript_file import one_line
from qdx.prompts._windows import tokenize
from qdx.prompts.challenge import NONCE, ChallengeFile, read, with_nonce
from qdx.schema import validate
from qdx.verification import ledger

SEED = 32  # bytes


def make(path: Path, overrides: Sequence[str] = ()) -> ChallengeFile:
    """Write a challenge, and the verifier's own file beside it.

    Parameters
    ----------
    path : Path
        Of the challenge; it must not be there.
    overrides : sequence of str
        As on the command line of a sweep, of one config: prompts, lengths, and the model that is asked for.

    Returns
    -------
    ChallengeFile

    Raises
    ------
    QdxError
        When a file of the name is there, several configs are given, the prompts are those of a file, or the
        tokenizer does not keep the nonce.
    """
    beside = ledger.path_of(path)
    for one in (path, beside):
        if one.exists():
            raise QdxError(f"{one} is there already: a challenge is used once: give another name")
    jobs = compose(list(overrides))
    if len(jobs) != 1:
        raise QdxError(
            f"{len(jobs)} configs: a challenge is made for one model's tokenizer: give one value of each key"
        )
    experiment = validate(jobs[0])
    checkpoint = find_checkpoint(experiment)
    tokenizer = models.load_tokenizer(checkpoint.path)
    source = plugins.build(options(experiment.prompts))()
    if isinstance(source, Transcripts | Challenge):
        raise QdxError(
            f"prompts={experiment.prompts.name}: a challenge is cut from documents, such as prompts=pdf"
        )
    plain = source.load(tokenizer)
    check_references(plain, who=experiment.prompts.name, tokens=experiment.generate.tokens)
    nonce, seed = secrets.token_hex(NONCE // 2), secrets.token_bytes(SEED)
    references = [_begun(one, tokenizer, nonce) for one in plain]
    _check_lengths(references, experiment.generate.tokens, models.context_length(checkpoint.path))
    kept = experiment.capture.prefill_positions
    longest = max(one.content_length for one in references)
    made = ChallengeFile(
        nonce=nonce,
        issued=ledger.now(),
        seed_sha256=hashlib.sha256(seed).hexdigest(),
        tokenizer_sha256=models.tokenizer_sha256(checkpoint.path),
        vocab=models.vocab_size(checkpoint.path),
        tokens=experiment.generate.tokens,
        prefill_positions=longest if isinstance(kept, str) else kept,
        references=references,
    )
    data = made.dump()
    own = ledger.Ledger(hashlib.sha256(data).hexdigest(), seed.hex(), made.issued)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger.write(beside, own)
        with new_file.replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise QdxError(f"{path}: cannot be written: {error.strerror or error}") from error
    return read(path)[0]  # what the prover's qdx would refuse is found here


def _begun(reference: Reference, tokenizer: Any, nonce: str) -> Reference:
    """The reference with the nonce before its content."""
    ids = tokenize(tokenizer, f"{nonce}\n\n").ids
    start = reference.prefix_length
    token_ids = np.concatenate([reference.token_ids[:start], ids, reference.token_ids[start:]])
    begun = Reference(
        name=reference.name,
        token_ids=token_ids.astype(np.int32),
        prefix_length=start,
        content_length=reference.content_length + len(ids),
        suffix_length=reference.suffix_length,
        continuation=reference.continuation,
        text="",
        source=one_line(reference.source),
        pages=reference.pages,
        token_offset=0,
        sha256="",
    )
    return with_nonce(begun, tokenizer, nonce)


def _check_lengths(references: Sequence[Reference], tokens: int, limit: int | None) -> None:
    longest = max(references, key=lambda one: len(one.token_ids))
    length = len(longest.token_ids)
    if limit is not None and length + tokens > limit:
        raise QdxError(
            f"reference {longest.name!r} has {length} tokens with its nonce and {tokens} follow, the model's "
            f"limit is {limit}: lower prompts.snippet_tokens"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (2: nothing was written)."""
    parser = argparse.ArgumentParser(prog="python -m qdx.challenge", description=__doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="to write, such as challenge.json")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as of a sweep of one config")
    chosen = parser.parse_args(arguments)
    try:
        made = make(chosen.file, chosen.overrides)
        digest = hashlib.sha256(chosen.file.read_bytes()).hexdigest()
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 1 if of_disk(error) else 2
    shape = f"{len(made.references)} prompts, {made.tokens} output tokens of each"
    print(f"{chosen.file}: {shape}; the nonce is {made.nonce}")
    print(f"sha256 {digest}")
    print(f"keep {ledger.path_of(chosen.file)} to yourself: it decides which rows will be looked at")
    print(
        f"the prover runs: python -m qdx -m prompts=challenge prompts.path={chosen.file} quant=… "
        "hydra.sweep.dir=prover && python -m qdx.commit prover"
    )
    return 0


if __name__ == "__main__":
    run(main)
