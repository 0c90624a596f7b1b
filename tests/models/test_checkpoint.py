"""Names resolve to the right folder, or to one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qdx.errors import QdxError
from qdx.models import resolve


def folder(path: Path, **config: Any) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return str(path)


def quantized(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 128, **more}}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A quantization_config as llm-compressor writes it."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("form", "config"),
    [("none", {}), ("awq", quantized("awq", version="gemm")), ("gptq", quantized("gptq", desc_act=False))],
)
def test_local_folder_of_each_format_is_taken(tmp_path: Path, form: str, config: dict[str, Any]) -> None:
    found = resolve(folder(tmp_path, **config), format=form)
    assert (found.path, found.format, found.source) == (tmp_path, form, str(tmp_path))
    assert (found.revision, found.quantizer, found.derived_from) == ("", "", "")


def test_quantizer_and_origin_are_read_from_the_checkpoint_s_own_files(tmp_path: Path) -> None:
    config = quantized("gptq", meta={"quantizer": ["gptqmodel:5.0", "other:1"]})
    assert resolve(folder(tmp_path, **config), format="gptq").quantizer == "gptqmodel:5.0, other:1"
    (tmp_path / "qdx-provenance.json").write_text('{"quantizer": "ours", "derived_from": "a GGUF"}')
    found = resolve(str(tmp_path), format="gptq")
    assert (found.quantizer, found.derived_from) == ("ours", "a GGUF")


def test_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve("model", format="none").path == tmp_path / "model"


@pytest.mark.parametrize("asked", ["none", "awq"])
def test_another_format_than_asked_is_named_with_its_remedy(tmp_path: Path, asked: str) -> None:
    name = folder(tmp_path, **quantized("gptq"))
    with pytest.raises(QdxError, match=rf"has format 'gptq' .*, asked for '{asked}': choose quant=gptq"):
        resolve(name, format=asked)


@pytest.mark.parametrize(
    ("quantization", "form"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        (compressed({"num_bits": 4, "type": "int"}), "w4a16"),
        (compressed({"num_bits": 8, "type": "int"}), "w8a16"),
        (compressed({"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "float"}), "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        (compressed({"num_bits": 8, "type": "float", "strategy": "block"}), "fp8_block"),
        (compressed({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}), "w8a8"),
        (compressed({"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "float"}), "w4a8"),
    ],
)
def test_formats_that_only_an_engine_runs_are_read(
    tmp_path: Path, quantization: dict[str, object], form: str
) -> None:
    name = folder(tmp_path, quantization_config=quantization)
    assert resolve(name, format=form).format == form
    with pytest.raises(QdxError, match=f"has format '{form}'"):
        resolve(name, format="awq")


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        (compressed({"num_bits": 4, "type": "int"}, {"num_bits": 4, "type": "int"}), "w4a4"),
        (compressed({"num_bits": 4, "type": "float"}), "w4a16-float"),
        (compressed({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}), "mxfp8"),
    ],
)
def test_other_quantization_methods_are_refused_by_name(
    tmp_path: Path, quantization: dict[str, object], said: str
) -> None:
    with pytest.raises(QdxError, match=f"quantized by '{said}', supported are none, awq, gptq, w4a16"):
        resolve(folder(tmp_path, quantization_config=quantization), format="awq")


def test_quantization_stated_only_in_a_side_file_is_not_taken_for_unquantized(tmp_path: Path) -> None:
    name = folder(tmp_path)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(QdxError, match=r"has format 'gptq' .*, asked for 'none'"):
        resolve(name, format="none")
    assert resolve(name, format="gptq").format == "gptq"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-qdx", ""])
def test_missing_folder_is_an_error_without_asking_the_hub(name: str) -> None:
    with pytest.raises(
        QdxError,
        match=r"no such folder: give a checkpoint folder, a hub id, a \.gguf file or demo:smollm2/awq",
    ):
        resolve(name, format="awq")


def test_file_in_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(QdxError, match="no such folder"):
        resolve(str(tmp_path / "model.safetensors"), format="none")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(QdxError, match="cannot be read as GGUF"):
        resolve(str(tmp_path / "model.gguf"), format="none")


def test_folder_without_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QdxError, match=r"has no config\.json"):
        resolve(str(tmp_path), format="none")


@pytest.mark.parametrize("content", ['{"half": ', "[1]", "\ufffe"])
def test_damaged_config_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(QdxError, match="checkpoint is damaged"):
        resolve(str(tmp_path), format="none")


@pytest.mark.parametrize("name", ["demo:smollm2/fp8", "demo:llama", "demo:"])
def test_unknown_demo_model_is_an_error_that_lists_the_known(name: str) -> None:
    with pytest.raises(QdxError, match="one of demo:smollm2/none, demo:smollm2/awq, demo:smollm2/gptq"):
        resolve(name, format="none")


def test_unknown_format_is_an_error() -> None:
    with pytest.raises(QdxError, match="'int8' is unknown, one of none, awq, gptq"):
        resolve("demo:smollm2/awq", format="int8")


def test_hub_that_cannot_be_reached_is_one_clear_line_soon(tmp_path: Path) -> None:
    code = """
from qdx.errors import QdxError
from qdx.models import resolve
try:
    resolve("someone/some-model-AWQ", format="awq")
except QdxError as error:
    print(error)
"""
    # Port 9 of this machine: nothing answers. The hub's address is read when its client is imported.
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert (
        "model 'someone/some-model-AWQ': no such folder, and not to be had from the model hub" in done.stdout
    )
    assert "or choose model=smollm2" in done.stdout
    assert len(done.stdout.splitlines()) == 1
