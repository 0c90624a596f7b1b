"""``backend=llamacpp``: rows of GGUF files by llama.cpp's own kernels, and what is observed and refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdx import compose
from qdx.errors import QdxError
from qdx.models import resolve, tokenizer_sha256, vocab_size
from qdx.schema import Quant
from tests import tiny
from tests.gguf_files import write_gguf
from tests.programs import lacking
from tests.sweeping import SMALL, qdx

FORMS = ("f16", "q8_0", "q4_0")


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    if find_spec("xllamacpp") is None:
        lacking("xllamacpp is not installed: pip install 'qdx[gguf]'")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models"))["none"]


@pytest.fixture(scope="module")
def files(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {form: write_gguf(dense, folder / f"{form}.gguf", form) for form in FORMS}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Folders of GGUF files are made in a cache of their own."""
    before = os.environ.get("QDX_CACHE")
    os.environ["QDX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("QDX_CACHE")
    if before is not None:
        os.environ["QDX_CACHE"] = before


def loaded(file: Path, form: str, **options: Any) -> Any:
    from qdx.backends.llamacpp import LlamacppBackend

    checkpoint = resolve(str(file), format=form)
    return LlamacppBackend(checkpoint, Quant(form, form, "any"), "float16", threads=1, **options)


class Rows:
    """Stands for a recorder that wants every row of a prefill, or its last one alone."""

    def __init__(self, batch: list[list[int]], every: bool = True) -> None:
        self.batch, self.every = batch, every
        self.found: dict[tuple[int, int], np.ndarray[Any, Any]] = {}
        self.targets: dict[tuple[int, int], int] = {}

    def wanted(self, item: int) -> np.ndarray[Any, Any]:
        last = len(self.batch[item])
        return np.arange(1 if self.every else last, last + 1, dtype=np.int32)

    def rows(self, item: int, positions: Any, logits_PV: torch.Tensor, targets: torch.Tensor) -> None:
        for position, row, target in zip(positions.tolist(), logits_PV, targets.tolist(), strict=True):
            assert (item, position) not in self.found, "a row came twice"
            self.found[item, position] = row.numpy()
            self.targets[item, position] = target


def prompts(*lengths: int) -> list[list[int]]:
    random_ = np.random.default_rng(1)
    return [random_.integers(5, 1100, length).tolist() for length in lengths]


def test_rows_are_the_model_s_up_to_the_file_s_rounding(dense: Path, files: dict[str, Path]) -> None:
    """An independent implementation gives the same rows: transformers, in float32, from the same weights."""
    from transformers import AutoModelForCausalLM

    batch = prompts(90)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        expected_PV = model(torch.tensor(batch)).logits[0].numpy()
    error = {}
    for form in FORMS:
        rows = Rows(batch)
        loaded(files[form], form).prefill(batch, rows)
        assert sorted(rows.found) == [(0, position) for position in range(1, 91)]
        assert [rows.targets[0, position] for position in range(1, 91)] == [*batch[0][1:], -1]
        found_PV = np.stack([rows.found[0, position] for position in range(1, 91)])
        error[form] = float(np.sqrt(np.mean((found_PV - expected_PV) ** 2)))
    spread = float(expected_PV.std())
    assert error["f16"] < 0.02 * spread and error["f16"] < error["q8_0"] < error["q4_0"], error


def test_a_replay_gives_a_generation_s_rows_back_bit_by_bit_also_in_a_batch(files: dict[str, Path]) -> None:
    for batch in (prompts(40), prompts(700, 33)):  # longer than a piece
        backend = loaded(files["q4_0"], "q4_0")
        first, again = Rows(batch, every=False), Rows(batch, every=False)
        backend.prefill(batch, first)
        generated = backend.generate(batch, 500, first)  # beyond the room that the prefill asked for
        for item, ids in enumerate(batch):
            assert generated[item][0] == int(first.found[item, len(ids)].argmax())
            for step in range(1, 500):
                assert generated[item][step] == int(first.found[item, len(ids) + step].argmax())
        backend.replay(batch, [ids[:20] for ids in generated], again)
        assert len(again.found) == 19 * len(batch)
        assert all(np.array_equal(row, first.found[key]) for key, row in again.found.items())


def test_a_transcript_that_ends_earlier_is_not_recorded_further(files: dict[str, Path]) -> None:
    batch = prompts(12, 9)
    backend, rows = loaded(files["q8_0"], "q8_0"), Rows(batch, every=False)
    backend.prefill(batch, rows)
    backend.replay(batch, [[5, 6, 7, 8], [9, 10]], replayed := Rows(batch, every=False))
    assert sorted(replayed.found) == [(0, 13), (0, 14), (0, 15), (1, 10)]
    assert [replayed.targets[key] for key in sorted(replayed.found)] == [6, 7, 8, 10]


def test_the_last_row_of_a_prompt_does_not_depend_on_which_others_are_wanted(files: dict[str, Path]) -> None:
    batch = prompts(61)
    for form in FORMS:
        backend = loaded(files[form], form)
        every, last = Rows(batch), Rows(batch, every=False)
        backend.prefill(batch, every)
        backend.prefill(batch, last)
        assert np.array_equal(every.found[0, 61], last.found[0, 61])


def test_kernels_are_those_that_the_library_says(files: dict[str, Path]) -> None:
    facts = {form: loaded(files[form], form).observe() for form in FORMS}
    assert {form: one.observed_kernel for form, one in facts.items()}["q8_0"] == "ggml_q8_0"
    assert facts["f16"].quantized == frozenset() and facts["f16"].observed_kernel == "ggml_f16"
    assert set(facts["q4_0"].kernel) == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"
    }  # fmt: skip
    plain = loaded(files["q4_0"], "q4_0", repack=False).observe()
    assert plain.observed_kernel == "ggml_q4_0" and plain.settings["repack"] == "False"
    settings = facts["q4_0"].settings
    assert (
        settings["n_ubatch"] == "512" and settings["threads"] == "1" and settings["flash_attention"] == "on"
    )
    assert not facts["q4_0"].simulated and facts["q4_0"].engine == "llama.cpp"
    if "AVX2" in settings["cpu_features"].split():  # repacked for its instructions: another kernel
        assert facts["q4_0"].observed_kernel == "ggml_q4_0_8x8"
        batch = prompts(30)
        one, other = Rows(batch, every=False), Rows(batch, every=False)
        loaded(files["q4_0"], "q4_0").prefill(batch, one)
        loaded(files["q4_0"], "q4_0", repack=False).prefill(batch, other)
        assert not np.array_equal(one.found[0, 30], other.found[0, 30])


def test_a_mixture_names_all_its_types(dense: Path, tmp_path: Path) -> None:
    """A K type, by llama.cpp's own quantizer; matrices whose rows it does not divide have another type."""
    file = write_gguf(dense, tmp_path / "x.gguf", "q4_k_m")
    backend = loaded(file, "q4_k_m", repack=False)
    facts = backend.observe()
    assert facts.kernel["ffn_down"] == "ggml_q4_k" and facts.kernel["attn_q"] == "ggml_q8_0"
    assert facts.observed_kernel == "ggml_q4_k+ggml_q8_0"
    batch = prompts(40)
    rows, exact = Rows(batch, every=False), Rows(batch, every=False)
    backend.prefill(batch, rows)
    loaded(write_gguf(dense, tmp_path / "f.gguf", "f16"), "f16").prefill(batch, exact)
    one, other = rows.found[0, 40], exact.found[0, 40]
    assert 0 < np.abs(one - other).mean() < other.std()


def test_what_is_asked_and_what_a_file_is(dense: Path, files: dict[str, Path], tmp_path: Path) -> None:
    found = resolve(str(files["q8_0"]), format="q8_0")
    assert found.format == "q8_0" and vocab_size(found.path) == 1200
    assert tokenizer_sha256(found.path) == tokenizer_sha256(resolve(str(files["f16"]), format="f16").path)
    with pytest.raises(QdxError, match="has format 'q8_0'"):
        resolve(str(files["q8_0"]), format="q4_0")
    with pytest.raises(QdxError, match=r"general\.file_type=999"):
        resolve(str(stating(write_gguf(dense, tmp_path / "x.gguf", "q8_0"), 999)), format="q8_0")
    with pytest.raises(QdxError, match="states that it is of type q4_0, and its tensors are 16 q8_0"):
        resolve(str(stating(write_gguf(dense, tmp_path / "y.gguf", "q8_0"), 2)), format="q4_0")
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(files["q8_0"].read_bytes())
    with pytest.raises(QdxError, match="one part of a model"):
        resolve(str(part), format="q8_0")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["q8_0"].read_bytes()[:5000])
    with pytest.raises(QdxError, match="cannot be read as GGUF"):
        resolve(str(cut), format="q8_0")
    with pytest.raises(QdxError, match="is not a GGUF file"):
        from qdx.backends.llamacpp import LlamacppBackend

        LlamacppBackend(resolve(str(dense), format="none"), Quant("q8_0", "q8_0", "any"), "float16")


def test_a_file_that_was_moved_is_found_again(files: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.gguf"
    moved.write_bytes(files["q8_0"].read_bytes())
    before = resolve(str(files["q8_0"]), format="q8_0").path
    after = resolve(str(moved), format="q8_0").path
    assert before == after and (after / "model.gguf").resolve() == moved.resolve()


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from qdx.backends.llamacpp import library

    monkeypatch.setattr(library.metadata, "version", lambda name: "2030.1.1")
    with pytest.raises(QdxError, match=r"xllamacpp 2030\.1\.1 is installed, and .* known here of 2026\.10"):
        library.version()
    monkeypatch.undo()
    library.library.cache_clear()
    monkeypatch.setitem(library.DEFAULTS, "llama_model_default_params", {"n_gpu_layers": 7})
    with pytest.raises(QdxError, match="built otherwise"):
        library.library()
    library.library.cache_clear()


def stating(file: Path, number: int) -> Path:
    """Change the type that a file states."""
    from gguf import GGUFReader

    reader = GGUFReader(str(file), "r+")
    reader.fields["general.file_type"].parts[-1][0] = number
    return file


@pytest.mark.slow
def test_a_sweep_and_a_verifier_of_gguf_files(files: dict[str, Path], tmp_path: Path) -> None:
    model = ["model=local", *(f"model.checkpoint.{form}='{file}'" for form, file in files.items())]
    made = qdx(
        "-m", "backend=llamacpp", "quant=q8_0,q4_0", *model, *SMALL, "prompts=pydoc", "hydra.sweep.dir=made",
        cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "ggml_q8_0" in made.stdout
    judged = qdx(
        "-m", "prompts=transcripts", "prompts.path=made/sweep.nc", "backend=llamacpp", "backend.threads=1",
        "quant=q8_0,q4_0", "repeats=1", "verify.claims={q8_0: q8_0, q4_0: q8_0}", *model,
        "hydra.sweep.dir=judged", cwd=tmp_path,
    )  # fmt: skip
    assert judged.returncode == 3, judged.stderr
    summary = json.loads((tmp_path / "judged" / "summary.json").read_text())
    verdicts = {one["producer"]: one for one in summary["verdicts"]["claims"]}
    assert verdicts["q8_0"]["verdict"] == "confirmed"  # bit for bit, on the same machine
    assert verdicts["q4_0"]["verdict"] == "other config"  # its rows are the other file's, bit for bit


@pytest.mark.parametrize("chosen", [["backend=llamacpp", "quant=awq"], ["backend=vllm", "quant=q4_1"]])
def test_a_format_and_a_backend_that_do_not_go_together(chosen: list[str]) -> None:
    with pytest.raises(QdxError, match="backend=llamacpp runs the formats of GGUF files, and they run there"):
        compose(chosen)


def test_records_of_other_settings_are_of_another_environment_class() -> None:
    """Rows depend on them, so an honest producer who has others must not be refuted by unequal rows."""
    import xarray as xr

    from qdx.verification.environment_class import class_of, compare

    def of(**settings: str) -> dict[str, str]:
        stated = {
            "backend": "llama.cpp", "backend_version": "b11549", "batch_size": 1, "batch_layout": "in order",
            "torch_version": "2", "kernel_environment": "{}", "torch_switches": "{}", "cpu": "c",
            "threads": "1", "cpu_capability": "AVX2", "blas": "MKL", "backend_n_ubatch": "512",
            "backend_repack": "True", "backend_flash_attention": "on", "backend_cpu_features": "AVX2 FMA",
            **settings,
        }  # fmt: skip
        rows = xr.Dataset(coords={"config": ["a"], **{name: ("config", [v]) for name, v in stated.items()}})
        return class_of(xr.DataTree(xr.Dataset()), rows, "a")

    assert compare(of(), of()).same
    for name, value in (("n_ubatch", "256"), ("repack", "False"), ("flash_attention", "off")):
        assert not compare(of(), of(**{f"backend_{name}": value})).same
    assert not compare(of(), of(backend_cpu_features="AVX512")).same
    assert not compare(of(), of(backend_n_ubatch="")).same  # not stated is not the same
