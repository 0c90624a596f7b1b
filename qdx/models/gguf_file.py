"""A GGUF file as a checkpoint: one file of llama.cpp's that holds weights, tokenizer and template.

Everything else in qdx reads a folder with a config.json and a tokenizer.json. So each file gets such a folder
in the cache, named by the file's hash: what stands in it was read out of the file, and ``model.gguf`` links
to the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdx.errors import QdxError
from qdx.models import remembered
from qdx.models.cache import prepare
from qdx.models.identity import GGUF
from qdx.schema_gguf import FILE_TYPES

RECIPE = 1  # part of a folder's name: raise it when anything below changes what is written
SUFFIX = ".gguf"
NAMES: Mapping[int, str] = {number: name for name, number in FILE_TYPES.items()}


def gguf_folder(file: Path, cache: Path) -> Path:
    """Return the folder in the cache that stands for a GGUF file, made on first use.

    Parameters
    ----------
    file : Path
    cache : Path
        The cache folder.

    Raises
    ------
    QdxError
        When the file is one part of several, cannot be read, or contradicts itself.
    """
    file = Path(file).absolute()
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.name):
        raise QdxError(
            f"{file} is one part of a model: join the parts into one file first (llama-gguf-split --merge)"
        )
    digest = _digest(file)
    target = cache / f"gguf-r{RECIPE}-{digest[:24]}"
    if not target.is_dir():
        prepare(target, lambda folder: _build(file, digest, folder), needs_bytes=100_000_000)
    link = target / GGUF
    if not (link.is_symlink() and link.resolve() == file.resolve()):  # the file was moved, or is a copy of it
        fresh = target / f".{GGUF}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(file)
        fresh.replace(link)
    return target


def _digest(file: Path) -> str:
    if (noted := remembered.recall(file)) is not None:
        return noted
    state = remembered.state_of(file)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    remembered.note(file, state, digest)
    return digest


def _build(file: Path, digest: str, folder: Path) -> None:
    fields, types = read(file)
    form = format_of_file(file, fields, types)
    architecture = str(fields.get("general.architecture", ""))

    def of(name: str) -> Any:
        return fields.get(f"{architecture}.{name}")

    _write_tokenizer(file, folder)
    tokens = fields.get("tokenizer.ggml.tokens.length") or of("vocab_size")
    config: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": tokens,
        "hidden_size": of("embedding_length"),
        "max_position_embeddings": of("context_length"),
        "num_hidden_layers": of("block_count"),
        "quantization_config": {"quant_method": form, "tensor_types": types},
    }
    stated = {"name": "general.name", "quantizer": "general.quantized_by", "license": "general.license"}
    told = {name: str(fields[key]) for name, key in stated.items() if key in fields}
    provenance = {"source": file.name, "sha256": digest, "recipe": RECIPE, "derived_from": "", **told}
    for name, value in (("config.json", config), ("qdx-provenance.json", provenance)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a GGUF file states, and the type of each of its tensors.

    Returns
    -------
    fields : dict
        Its single values by name, and the number of its tokens as ``tokenizer.ggml.tokens.length``.
    types : dict of str to str
        Tensor → type, in lower case: ``q4_k``, ``f32`` …

    Raises
    ------
    QdxError
        When gguf is not installed, or the file is none of GGUF, or is cut off.
    """
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError:
        raise QdxError(f"{file} needs the package gguf to be read: pip install 'qdx[gguf]'") from None
    try:
        reader = GGUFReader(str(file))
        arrays = (GGUFValueType.ARRAY,)
        fields = {
            name: field.contents() for name, field in reader.fields.items() if field.types[:1] != list(arrays)
        }
        if "tokenizer.ggml.tokens" in reader.fields:
            fields["tokenizer.ggml.tokens.length"] = len(reader.fields["tokenizer.ggml.tokens"].data)
        return fields, {one.name: one.tensor_type.name.lower() for one in reader.tensors}
    except Exception as error:  # numpy's and the reader's own, of many types
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise QdxError(f"{file} cannot be read as GGUF ({said}): download it again") from error


def format_of_file(file: Path, fields: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """Return the format that a file states, held against the types of its tensors.

    Raises
    ------
    QdxError
        When it states none, one that has no name here, or one whose type none of its tensors has.
    """
    number = fields.get("general.file_type")
    form = NAMES.get(number) if isinstance(number, int) else None
    if form is None:
        raise QdxError(
            f"{file} states general.file_type={number}, known are "
            f"{', '.join(f'{n} ({name})' for n, name in sorted(NAMES.items()))}: give another file"
        )
    # The K and IQ types are mixtures, and rows that 256 does not divide have another type.
    mixture = "_k" in form or form.startswith("iq")
    if form not in types.values() and not mixture:
        raise QdxError(
            f"{file} states that it is of type {form}, and its tensors are {counted(types)}: what it states "
            "is wrong, give another file"
        )
    return form


def counted(types: Mapping[str, str]) -> str:
    """Say how many tensors are of which type.

    Examples
    --------
    >>> counted({"a": "q4_k", "b": "f32", "c": "q4_k"})
    '2 q4_k, 1 f32'
    """
    return ", ".join(f"{count} {name}" for name, count in Counter(types.values()).most_common())


def _write_tokenizer(file: Path, folder: Path) -> None:
    """Write tokenizer and chat template, which transformers rebuilds from the file's fields."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(file.parent), gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of several libraries, for architectures that it does not know
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise QdxError(
            f"transformers cannot read the tokenizer of {file} ({said}): qdx makes its prompts with it, so "
            "the file cannot be used"
        ) from error
    tokenizer.save_pretrained(folder)
