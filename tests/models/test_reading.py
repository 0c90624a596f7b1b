"""Streaming layers out of single and sharded checkpoints, and the hashes that identify them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qdx.errors import QdxError
from qdx.models import (
    awq,
    dense_state,
    gptq,
    hash_weights,
    iter_quantized,
    load_tokenizer,
    remembered,
    remembered_weights,
    tokenizer_sha256,
    weights_sha256,
)
from tests.models.test_layouts import random_weight

QUANTIZATION: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
}
WEIGHTS = {"layers.0.up": random_weight(64, 16, 32, 1), "layers.1.up": random_weight(64, 24, 32, 2)}


def checkpoint(path: Path, form: str, *, shards: int = 1, **changed: Any) -> Path:
    """Two quantized layers, a bias and a norm; with shards, a layer's own tensors lie in different files."""
    layout = awq if form == "awq" else gptq
    state = {"norm.weight": torch.ones(16), "layers.0.up.bias": torch.arange(16.0)}
    for module, weight in WEIGHTS.items():
        state.update({f"{module}.{part}": tensor for part, tensor in layout.pack(weight).items()})
    (path / "config.json").write_text(json.dumps({"quantization_config": {**QUANTIZATION[form], **changed}}))
    if shards == 1:
        save_file(state, path / "model.safetensors")
        return path
    where = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(sorted(state))}
    for file in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


@pytest.mark.parametrize("form", ["awq", "gptq"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layer_comes_out_as_it_was_packed(tmp_path: Path, form: str, shards: int) -> None:
    found = dict(iter_quantized(checkpoint(tmp_path, form, shards=shards)))
    assert set(found) == set(WEIGHTS)
    for module, weight in WEIGHTS.items():
        assert torch.equal(found[module].dequantize(), weight.dequantize())


@pytest.mark.parametrize("form", ["awq", "gptq"])
@pytest.mark.parametrize("shards", [1, 3])
def test_dense_state_is_everything_else_biases_of_quantized_layers_included(
    tmp_path: Path, form: str, shards: int
) -> None:
    found = dict(dense_state(checkpoint(tmp_path, form, shards=shards)))
    assert set(found) == {"norm.weight", "layers.0.up.bias"}
    assert torch.equal(found["layers.0.up.bias"], torch.arange(16.0))


@pytest.mark.parametrize(
    ("form", "changed", "message"),
    [
        ("awq", {"bits": 8}, "awq with bits=8, only 4 is read"),
        ("awq", {"version": "gemv"}, "awq with version='gemv', only 'gemm' is read"),
        ("gptq", {"desc_act": True}, "gptq with desc_act=True, only False is read"),
        ("gptq", {"checkpoint_format": "gptq_v2"}, "checkpoint_format='gptq_v2', only 'gptq' is read"),
        ("gptq", {"group_size": None}, "group_size=None, must be a number"),
        ("gptq", {"group_size": 64}, r"layers\.0\.up: quantized layer: qzeros has shape"),
    ],
)
def test_packing_that_is_not_read_is_refused_by_its_key(
    tmp_path: Path, form: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(QdxError, match=message):
        dict(iter_quantized(checkpoint(tmp_path, form, **changed)))


def test_unquantized_checkpoint_has_no_layers_to_iterate(tmp_path: Path) -> None:
    checkpoint(tmp_path, "awq")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(QdxError, match="is not quantized"):
        dict(iter_quantized(tmp_path))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path, "awq", shards=3)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(
        QdxError, match=r"1 of 3 files that its index names are missing, such as model-1\.safetensors"
    ):
        dict(dense_state(tmp_path))


def test_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(QdxError, match="only safetensors weights are read"):
        weights_sha256(tmp_path)


def test_truncated_weight_file_is_named(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, "awq") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(QdxError, match=r"model\.safetensors cannot be read"):
        dict(dense_state(tmp_path))


def test_weights_sha256_is_that_of_every_file_s_bytes(tmp_path: Path) -> None:
    checkpoint(tmp_path, "gptq", shards=3)
    expected = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.glob("*.safetensors")
    }
    assert weights_sha256(tmp_path) == expected
    assert len(expected) == 3


def test_hashes_that_are_handed_down_are_believed_for_unchanged_files_only(tmp_path: Path) -> None:
    checkpoint(tmp_path, "gptq", shards=2)
    first = hash_weights(tmp_path)
    one, other = sorted(first)
    handed = {name: [*state[:2], "0" * 64] for name, state in first.items()}  # as JSON brings them
    assert {digest for _, _, digest in hash_weights(tmp_path, handed).values()} == {"0" * 64}
    os.utime(tmp_path / other, ns=(0, 7))
    again = hash_weights(tmp_path, handed)
    assert again[one][2] == "0" * 64 and again[other] == (first[other][0], 7, first[other][2])
    for broken in ({}, {one: []}, {one: [first[one][0]]}):
        assert hash_weights(tmp_path, broken)[one] == first[one]


def test_a_hash_is_remembered_until_anything_of_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "YOUNG_NS", 0)
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint(folder, "gptq", shards=2)
    assert remembered_weights(folder) == {}
    first = hash_weights(folder)
    assert remembered_weights(folder) == first
    one, other = (folder / name for name in sorted(first))
    content, times = one.read_bytes(), (one.stat().st_atime_ns, one.stat().st_mtime_ns)
    time.sleep(0.02)  # a tick of the file system's clock
    one.write_bytes(bytes([content[0] ^ 1]) + content[1:])  # same inode, size and, below, time of change
    os.utime(one, ns=times)
    assert list(remembered_weights(folder)) == [other.name]
    copy = other.with_name("copy")
    copy.write_bytes(other.read_bytes())
    os.utime(copy, ns=(other.stat().st_atime_ns, other.stat().st_mtime_ns))
    copy.replace(other)  # another file of the same name, size and time
    assert remembered_weights(folder) == {}
    assert hash_weights(folder)[other.name] == first[other.name]
    assert hash_weights(folder)[one.name][2] != first[one.name][2]


def test_a_file_that_has_just_been_written_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint(folder, "gptq")
    hash_weights(folder)
    assert remembered_weights(folder) == {}
    for note in (b"", b"[]", b'{"sha256": "0"}', b"\xff"):  # a damaged note says nothing
        monkeypatch.setattr(remembered, "YOUNG_NS", 0)
        hash_weights(folder)
        (kept,) = (tmp_path / "cache" / remembered.FOLDER).iterdir()
        kept.write_bytes(note)
        assert remembered_weights(folder) == {}


def tokenizer(path: Path, merges: list[Any], **more: Any) -> Path:
    path.mkdir()
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges}
    added = [{"id": 3, "content": "<end>", "special": True}]
    (path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added, **more}))
    return path


def test_tokenizer_hash_is_of_meaning_not_of_layout(tmp_path: Path) -> None:
    one = tokenizer(tmp_path / "one", ["a b"], padding=None)
    two = tokenizer(tmp_path / "two", [["a", "b"]], padding={"strategy": "BatchLongest"}, version="1.0")
    assert tokenizer_sha256(one) == tokenizer_sha256(two)


def test_tokenizer_hash_changes_with_merges_vocabulary_and_added_tokens(tmp_path: Path) -> None:
    base = tokenizer(tmp_path / "base", ["a b"])
    hashes = {tokenizer_sha256(base), tokenizer_sha256(tokenizer(tmp_path / "merges", []))}
    hashes.add(
        tokenizer_sha256(
            tokenizer(tmp_path / "added", ["a b"], added_tokens=[{"id": 3, "content": "<stop>"}])
        )
    )
    model = {"vocab": {"a": 1, "b": 0, "ab": 2}, "merges": ["a b"]}
    hashes.add(tokenizer_sha256(tokenizer(tmp_path / "vocab", [], model=model)))
    assert len(hashes) == 4


def test_tokenizer_in_vocabulary_files_is_hashed_too(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    before = tokenizer_sha256(tmp_path)
    (tmp_path / "merges.txt").write_text("a b")
    assert tokenizer_sha256(tmp_path) != before


def test_folder_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QdxError, match="no tokenizer in"):
        tokenizer_sha256(tmp_path)
    with pytest.raises(QdxError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
