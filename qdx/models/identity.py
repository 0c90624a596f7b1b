"""Identify a checkpoint: hashes of its weight files and of its tokenizer, which is loaded here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdx.errors import QdxError
from qdx.models import remembered
from qdx.models.stated import read_object

Hashed = dict[str, tuple[int, int, str]]
GGUF = "model.gguf"  # in the folder that `qdx.models.gguf_file` makes for such a file


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder: the index's, or the only ones there; or its GGUF.

    Raises
    ------
    QdxError
        When there is none, or the index names one that is not there.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files_by_tensor = read_object(index).get("weight_map")
        named = files_by_tensor.values() if isinstance(files_by_tensor, dict) else [None]
        if not all(isinstance(name, str) and name == Path(name).name for name in named):
            raise QdxError(
                f"{index}: weight_map must name a file of the folder for every tensor: it is damaged"
            )
        names = sorted(set(named))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise QdxError(
                f"checkpoint {path}: {len(missing)} of {len(names)} files that its index names are "
                f"missing, such as {missing[0]}: download it again"
            )
        return [path / name for name in names]
    files = sorted(path.glob("*.safetensors"))
    if not files and (path / GGUF).is_file():
        return [path / GGUF]
    if not files:
        raise QdxError(
            f"checkpoint {path} has no *.safetensors file: only safetensors weights are read, convert it"
        )
    return files


def hash_weights(path: Path, known: Mapping[str, Sequence[Any]] | None = None) -> Hashed:
    """Return size, time and SHA-256 of every weight file of a checkpoint, by file name; files are streamed.

    Parameters
    ----------
    path : Path
        Folder of the checkpoint.
    known : Mapping, optional
        What this function returned before, in this process or another one of the same sweep. A file that
        still has the size and the modification time of then is not read again.

    Returns
    -------
    dict of str to (int, int, str)
        Bytes, nanoseconds since 1970, hexadecimal digest.
    """
    hashed: Hashed = {}
    for file in weight_files(Path(path)):
        state = remembered.state_of(file)
        before = tuple((known or {}).get(file.name, ()))
        if before[:2] == (state["size"], state["mtime_ns"]):
            digest = str(before[2])
        else:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            remembered.note(file, state, digest)
        hashed[file.name] = state["size"], state["mtime_ns"], digest
    return hashed


def remembered_weights(path: Path) -> Hashed:
    """Return of a checkpoint's weight files those that were hashed before and have not changed since.

    Returns
    -------
    dict of str to (int, int, str)
        As `hash_weights` takes it; see `qdx.models.remembered` for what "not changed" means.
    """
    known: Hashed = {}
    for file in weight_files(Path(path)):
        if (digest := remembered.recall(file)) is not None:
            state = file.stat()
            known[file.name] = state.st_size, state.st_mtime_ns, digest
    return known


def weights_sha256(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every weight file of a checkpoint, by file name."""
    return {name: digest for name, (_, _, digest) in hash_weights(path).items()}


def tokenizer_sha256(path: Path) -> str:
    """Return a hash of what ids mean to a checkpoint's tokenizer: vocabulary, merges and added tokens.

    Two checkpoints of one model get the same hash even where different tools wrote their ``tokenizer.json``:
    layout, padding options, chat template and the two spellings of merges do not count. Without a
    ``tokenizer.json`` it is the hash of the vocabulary files' bytes.

    Raises
    ------
    QdxError
        When the folder holds no tokenizer.
    """
    path = Path(path)
    fast = path / "tokenizer.json"
    if fast.is_file():
        canonical = json.dumps(_essence(fast), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()
    files = [
        path / name
        for name in ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
        if (path / name).is_file()
    ]
    if not files:
        raise QdxError(f"no tokenizer in {path}: the folder needs a tokenizer.json")
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _essence(file: Path) -> dict[str, Any]:
    tokenizer = read_object(file)
    try:
        model = tokenizer["model"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges", [])]
        added = [[token["id"], token["content"]] for token in tokenizer.get("added_tokens", [])]
        return {"vocab": model["vocab"], "merges": merges, "added_tokens": sorted(added)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QdxError(
            f"{file} is not a tokenizer ({type(error).__name__}: {error}): download it again"
        ) from error


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a checkpoint folder; nothing is fetched.

    Raises
    ------
    QdxError
        When the folder holds none that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        found("A word, 1 字 <x>\n")  # one whose class does not fit its files fails here
        return found
    except Exception as error:  # of several libraries; the one in Rust raises bare Exceptions
        said = _first_line(error)
        if not (path / "tokenizer.json").is_file():
            raise QdxError(f"no tokenizer in {path} ({said}): the folder needs a tokenizer.json") from error
        if "custom code" in said:
            raise QdxError(
                f"the tokenizer in {path} has code of its own (auto_map of tokenizer_config.json), which is "
                'never run: where tokenizer.json alone says how it splits text, write "tokenizer_class": '
                '"PreTrainedTokenizerFast" there and remove auto_map'
            ) from error
        raise QdxError(
            f"transformers cannot read the tokenizer in {path} ({said}): its files do not fit each other, "
            "download tokenizer.json and tokenizer_config.json again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
