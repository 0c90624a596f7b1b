"""Records of other programs as transcripts: turned into ids once, before a sweep's jobs are composed.

Options of ``prompts=transcripts`` that concern records alone:

- ``reader``: name of the reader; by default the one that recognises the file.
- ``requests``: file with the requests, where the answers stand alone (the input of a Batch).
- ``records``: how many answers are replayed; all by default, as far as they are few.
- ``draw_seed``: the seed with which they are drawn; by default a random one, which is printed and recorded.
- ``assume``: sampling parameters that the record does not state, such as ``{temperature: 0}``.
- ``harmless``: fields of a request that qdx does not know and that change no token.
- ``date``: the day that a chat template writes into prompts, such as ``2026-01-31``.
- ``noise``: how the provider's engine makes noise of a seed, such as ``vllm-0.33.0-v2``; see
  `qdx.capture.noise_names`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx.errors import QdxError
from qdx.process import spawn
from qdx.prompts._transcript_file import locate

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from qdx.models import Checkpoint

OPTIONS = ("reader", "requests", "records", "draw_seed", "assume", "harmless", "date", "noise")
NETCDF = (b"\x89HDF", b"CDF\x01", b"CDF\x02", b"CDF\x05")
# What of a checkpoint's folder decides how a conversation becomes ids, beside the vocabulary.
DECIDING = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json", "generation_config.json")


def is_record_file(path: Path) -> bool:
    """Return whether a file is none that qdx wrote, so that a reader of records has to take it.

    What is called ``.nc`` is one of qdx's, which may be damaged.
    """
    if path.suffix == ".nc":
        return False
    with path.open("rb") as stream:
        return not stream.read(4).startswith(NETCDF)


def is_own(path: Path) -> bool:
    """Return whether `convert` made a file of transcripts here: only of these it is known what was lost."""
    from qdx import models

    return path.parent.resolve() == (models.cache_folder() / "records").resolve()


def converted(cfg: DictConfig) -> Path:
    """Return the file of transcripts that the records of a config become; it is made in a process of its own.

    Tokenizers and chat templates are loaded there, and memory that a hostile file takes is its own.

    Parameters
    ----------
    cfg : DictConfig
        A job's composed config.

    Raises
    ------
    QdxError
        When no reader takes the file, or none of its answers can be replayed.
    """
    from omegaconf import OmegaConf

    return _converted(OmegaConf.to_yaml(cfg, resolve=True), *_state(locate(cfg.prompts.path)))


@lru_cache(maxsize=16)
def _converted(config: str, _mtime_ns: int, _size: int) -> Path:
    with tempfile.TemporaryDirectory(prefix="qdx-records-") as folder:
        answer = Path(folder) / "answer.json"
        ended = spawn({"do": "records", "config": config, "into": str(answer)})
        if not answer.is_file():
            raise QdxError(f"the records could not be read: {ended or 'no answer'}")
        said: dict[str, str] = json.loads(answer.read_text())
    if "error" in said:
        raise QdxError(said["error"])
    return Path(said["path"])


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def convert(node: Any, checkpoint: Checkpoint) -> Path:
    """Turn a file of records into one of transcripts, in the folder of prepared things, and return it.

    Parameters
    ----------
    node : TranscriptPrompts
        Path and options.
    checkpoint : Checkpoint
        Whose tokenizer and chat template make the ids.

    Raises
    ------
    QdxError
    """
    from hydra.utils import to_absolute_path

    from qdx import models, plugins
    from qdx.dataset.guarding import allow
    from qdx.dataset.provenance import code_sha256
    from qdx.prompts._record_collect import Request, collect
    from qdx.prompts._record_file import write
    from qdx.prompts._record_ids import Ids
    from qdx.records.decoding import defaults_of

    allow(**{name: getattr(node, name) for name in ("max_bytes", "max_objects", "max_length", "max_seconds")})
    request = Request(
        locate(node.path),
        node.reader or "",
        str(Path(to_absolute_path(str(Path(node.requests).expanduser())))) if node.requests else "",
        node.records,
        {str(name): _number(value) for name, value in (node.assume or {}).items()},
        list(node.harmless or ()),
        str(node.date or ""),
        noise=str(node.noise or ""),
    )
    digests = [_digest(path) if path.is_file() else "" for path in (request.path, Path(request.requests))]
    if request.records:
        seed = (
            node.draw_seed
            if node.draw_seed is not None
            else remembered_seed([*digests, str(request.records)])
        )
        request = replace(request, draw_seed=seed)
    own = [checkpoint.path / name for name in DECIDING]
    tokenizer = models.tokenizer_sha256(checkpoint.path)
    key = hashlib.sha256(
        json.dumps(
            [
                digests,
                [request.reader, request.records, sorted(request.assume.items()), request.path.name],
                [request.draw_seed, list(request.harmless), request.date, request.noise],
                tokenizer,
                models.vocab_size(checkpoint.path),
                [_digest(path) if path.is_file() else "" for path in own],
                code_sha256(),
                [
                    [one.name, plugins.code_of(one.member).get("plugin_sha256", "")]
                    for one in plugins.load()
                    if one.kind == "record_reader"
                ],
            ]
        ).encode()
    ).hexdigest()
    target = models.cache_folder() / "records" / f"{key[:32]}.nc"
    if target.is_file():
        return target
    ids = Ids(
        models.load_tokenizer(checkpoint.path),
        models.vocab_size(checkpoint.path),
        models.context_length(checkpoint.path),
        request.date,
    )
    found = collect(request, ids, defaults_of(checkpoint.path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QdxError(
            f"{target.parent} cannot be written ({error}): set QDX_CACHE to another folder"
        ) from error
    vocab = models.vocab_size(checkpoint.path)
    write(request, found, target, record_sha256=digests[0], tokenizer_sha256=tokenizer, vocab=vocab)
    return target


def _number(value: object) -> object:
    """An assumed number as a float, whoever wrote it: texts of it are compared."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def remembered_seed(about: list[str]) -> int:
    """Return the seed of a draw from a file: random when it is first asked for, and the same from then on.

    All jobs of a sweep, and the sweep when it is resumed, have to draw the same answers. The file is there
    before the seed is, so that nobody could write it to fit.

    Parameters
    ----------
    about : list of str
        What the draw is from: hashes of the files, and how many are drawn.
    """
    from qdx import models

    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    path = models.cache_folder() / "records" / f"{name}.seed"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(f"{secrets.randbits(53)}\n")
        try:
            os.link(file.name, path)  # whole at once, and only by the first of several jobs
        except FileExistsError:
            pass
        finally:
            Path(file.name).unlink()
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise QdxError(
            f"{path} cannot be written or read ({error}): set QDX_CACHE to another folder, or say "
            "prompts.draw_seed=…"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
