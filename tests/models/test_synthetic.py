"""Checkpoints of random weights: whole, the same again, and of one model in every format."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdx.errors import QdxError
from qdx.models import resolve, vocab_size, weights_sha256
from qdx.models.identity import load_tokenizer
from qdx.models.reading import dense_state, iter_quantized

NAME = "synthetic:layers=2,hidden=128,mlp=256,heads=2,kv_heads=1,head=64,vocab=300"


def test_every_format_holds_the_same_random_weights_up_to_its_rounding(tmp_path: Path) -> None:
    dense = dict(dense_state(resolve(NAME, format="none", cache=tmp_path).path))
    for form in ("awq", "gptq"):
        read = list(iter_quantized(resolve(NAME, format=form, cache=tmp_path).path))
        assert len(read) == 14
        for name, weight in read:
            weight_NK = dense[f"{name}.weight"].float()
            error_NK = (weight.dequantize().float().t() - weight_NK).abs()
            assert float(error_NK.max()) <= 1.01 * float(weight.scale_GN.float().abs().max())
            assert 0 < float(error_NK.mean()) < 0.3 * float(weight_NK.abs().mean())


def test_a_seed_gives_the_same_files_again_and_another_one_others(tmp_path: Path) -> None:
    digests = [
        weights_sha256(resolve(name, format="awq", cache=tmp_path / folder).path)
        for name, folder in ((NAME, "a"), (NAME, "b"), (f"{NAME},seed=1", "a"))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_it_has_a_tokenizer_that_gives_text_back(tmp_path: Path) -> None:
    path = resolve(NAME, format="none", cache=tmp_path).path
    tokenizer = load_tokenizer(path)
    ids = tokenizer("Grüße, 世界\n")["input_ids"]
    assert len(ids) == len("Grüße, 世界\n".encode()) and max(ids) < 256
    assert tokenizer.decode(ids) == "Grüße, 世界\n"
    assert vocab_size(path) == 300


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (NAME.replace("mlp", "mpl"), "unknown key 'mpl'"),
        (NAME.replace(",vocab=300", ""), "vocab is missing"),
        (NAME.replace("vocab=300", "vocab=200"), "at least 257"),
        (NAME.replace("hidden=128", "hidden=100"), "multiple of the group size 128"),
        (NAME.replace("layers=2", "layers=two"), "whole number"),
        (NAME.replace("kv_heads=1", "kv_heads=0"), "kv_heads"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(QdxError, match=said):
        resolve(name, format="none", cache=tmp_path)
    assert not list(tmp_path.iterdir())
