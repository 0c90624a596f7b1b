"""What a checkpoint's files hold is held against what they state, before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdx.errors import QdxError
from qdx.models import check_contents, resolve
from qdx.models.contents import contents
from qdx.models.reading import check_packing, iter_quantized
from qdx.models.stated import quantization_of
from tests import tiny

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return tiny.build(tmp_path)


def change(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def restate(folder: Path, **changed: Any) -> None:
    """Change config.json; None removes a key."""
    file = folder / "config.json"
    stated = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))


def fp8(state: dict[str, torch.Tensor]) -> None:
    for name in [name for name in state if "_proj" in name]:
        scale = state[name].float().abs().max() / 448
        state[name] = (state[name].float() / scale).to(torch.float8_e4m3fn)
        state[f"{name}_scale"] = scale.reshape(1)


def int8(state: dict[str, torch.Tensor]) -> None:
    for name in [name for name in state if "_proj" in name]:
        scale = state[name].float().abs().amax(1, keepdim=True) / 127
        state[name] = (state[name].float() / scale).round().to(torch.int8)
        state[name.replace("weight", "SCB")] = scale[:, 0]


def unscaled_int8(state: dict[str, torch.Tensor]) -> None:
    int8(state)
    for name in [name for name in state if name.endswith("SCB")]:
        del state[name]


def test_headers_say_what_safetensors_says(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        found, expected = contents(folder), load_file(folder / "model.safetensors")
        assert {name: one.shape for name, one in found.items()} == {
            name: tuple(tensor.shape) for name, tensor in expected.items()
        }
        check_contents(folder, resolve(str(folder), format=folder.name).format)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (fp8, r"holds 14 quantized tensors, such as \S+_scale .* nobody scales"),
        (int8, r"holds 14 quantized tensors, such as \S+SCB"),
        (unscaled_int8, r"holds 14 integer or 8-bit tensors, such as \S+ \(I8\)"),
    ],
)
def test_8_bit_weights_under_quant_none_are_refused(
    folders: dict[str, Path], damage: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    change(folders["none"], damage)
    with pytest.raises(QdxError, match=message):
        check_contents(folders["none"], "none")


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_packed_weights_whose_config_forgets_them_are_refused(folders: dict[str, Path], form: str) -> None:
    restate(folders[form], quantization_config=None)
    with pytest.raises(QdxError, match="states no quantization_config"):
        check_contents(folders[form], resolve(str(folders[form]), format="none").format)


def test_modelopt_s_own_file_is_a_statement(folders: dict[str, Path]) -> None:
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (folders["none"] / "hf_quant_config.json").write_text(json.dumps(stated))
    with pytest.raises(QdxError, match="quantized by 'modelopt NVFP4'"):
        resolve(str(folders["none"]), format="none")


def test_stored_head_of_a_tied_model_is_refused_unless_it_is_the_embedding(folders: dict[str, Path]) -> None:
    folder = folders["none"]
    restate(folder, tie_word_embeddings=True)
    with pytest.raises(QdxError, match=r"holds lm_head\.weight, .* tie_word_embeddings=true"):
        check_contents(folder, "none")
    change(folder, lambda state: state.update({HEAD: state[EMBEDDING].clone()}))
    check_contents(folder, "none")


def test_an_architecture_that_ties_by_default_counts_as_saying_so(folders: dict[str, Path]) -> None:
    folder = folders["none"]
    restate(folder, tie_word_embeddings=None, model_type="gemma", architectures=["GemmaForCausalLM"])
    with pytest.raises(QdxError, match="tie_word_embeddings=true"):
        check_contents(folder, "none")


def test_two_sets_of_weights_are_refused(folders: dict[str, Path]) -> None:
    folder = folders["none"]
    state = load_file(folder / "model.safetensors")
    save_file(state, folder / "consolidated.safetensors")
    with pytest.raises(QdxError, match=r"consolidated\.safetensors and in model\.safetensors, two sets"):
        check_contents(folder, "none")
    (folder / "consolidated.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(QdxError, match="two sets of weights"):
        check_contents(folder, "none")
    (folder / "model.safetensors").unlink()
    check_contents(folder, "none")
    index["weight_map"]["model.norm.bias"] = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(QdxError, match=r"names 1 tensors that are not in the file .* model\.norm\.bias"):
        check_contents(folder, "none")


def test_adapter_is_refused(folders: dict[str, Path]) -> None:
    (folders["none"] / "adapter_config.json").write_text("{}")
    with pytest.raises(QdxError, match="an adapter, which would not be applied"):
        check_contents(folders["none"], "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a pointer of Git LFS"),
        (b'\x05\0\0\0\0\0\0\0{"a":', "its header is not JSON"),
        (b"\x02\0\0\0\0\0\0\0[]", "its header is none of safetensors"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "cut off"),
    ],
)
def test_file_that_is_no_safetensors_file_is_named(
    folders: dict[str, Path], content: bytes, message: str
) -> None:
    (folders["none"] / "model.safetensors").write_bytes(content)
    with pytest.raises(QdxError, match=rf"model\.safetensors .*{message}"):
        check_contents(folders["none"], "none")


def test_cut_off_and_dangling_files_are_named(folders: dict[str, Path]) -> None:
    file = folders["none"] / "model.safetensors"
    os.truncate(file, file.stat().st_size - 2)
    with pytest.raises(QdxError, match="its header tells of"):
        check_contents(folders["none"], "none")
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(QdxError, match=r"model\.safetensors is a link to a file that is not there"):
        check_contents(folders["none"], "none")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("dangling", [False, True])
def test_broken_settings_are_named(folders: dict[str, Path], name: str, dangling: bool) -> None:
    file = folders["none"] / name
    file.unlink(missing_ok=True)
    file.symlink_to("nowhere") if dangling else file.write_text('{"half": ')
    with pytest.raises(QdxError, match=rf"{name} is not JSON"):
        check_contents(folders["none"], "none")


# What engines read, in the spellings of the programs that wrote it.
AWQ_OLD = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
GPTQ_OLD = {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "sym": True}


@pytest.mark.parametrize(
    ("form", "inside", "file", "beside"),
    [
        ("awq", {**AWQ_OLD, "quant_method": "awq"}, None, None),
        ("awq", None, "quant_config.json", AWQ_OLD),
        ("awq", None, "quantize_config.json", {**AWQ_OLD, "quant_method": "awq"}),
        ("gptq", None, "quantize_config.json", GPTQ_OLD),
        ("gptq", None, "quant_config.json", GPTQ_OLD),
    ],
)
def test_old_spellings_and_side_files_give_the_same_layers(
    folders: dict[str, Path], form: str, inside: Any, file: str | None, beside: Any
) -> None:
    folder = folders[form]
    expected = {name: weight.dequantize() for name, weight in iter_quantized(folder)}
    restate(folder, quantization_config=inside)
    if file:
        (folder / file).write_text(json.dumps(beside))
    assert resolve(str(folder), format=form).format == form
    found = {name: weight.dequantize() for name, weight in iter_quantized(folder)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_two_files_that_contradict_each_other_are_refused(folders: dict[str, Path]) -> None:
    (folders["gptq"] / "quantize_config.json").write_text(json.dumps({**GPTQ_OLD, "group_size": 64}))
    with pytest.raises(QdxError, match=r"states group_size=128, quantize_config\.json 64"):
        resolve(str(folders["gptq"]), format="gptq")
    with pytest.raises(QdxError, match="w_bit=4 and bits=8"):
        quantization_of({"quantization_config": {"w_bit": 4, "bits": 8}}, folders["none"])


def packing(folder: Path, kernel: str = "marlin") -> dict[str, tuple[int, ...]]:
    dense, packed = check_packing(folder, kernel, {name: one.shape for name, one in contents(folder).items()})
    return dense | {f"{name}.weight": shape for name, shape in packed.items()}


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_sound_packing_gives_the_dense_model_s_shapes(folders: dict[str, Path], form: str) -> None:
    dense = {name: one.shape for name, one in contents(folders["none"]).items()}
    assert packing(folders[form]) == dense


@pytest.mark.parametrize(
    ("form", "changed", "message"),
    [
        ("awq", {"bits": 8}, "bits=8, only 4"),
        ("awq", {"version": "gemv"}, "version='gemv', only 'gemm'"),
        ("awq", {"version": "GEMV_FAST"}, "version='GEMV_FAST', only 'gemm'"),
        ("gptq", {"desc_act": True}, "desc_act=True, only False"),
        ("gptq", {"bits": 3}, "bits=3, only 4"),
        ("gptq", {"checkpoint_format": "gptq_v2"}, "'gptq_v2', only 'gptq'"),
        ("gptq", {"format": "marlin"}, "format='marlin', only 'gptq'"),
        ("gptq", {"sym": False}, "states sym=false: a GPTQ layer with zero points"),
        ("gptq", {"dynamic": {r"+:.*\.0\..*": {"bits": 8}}}, "dynamic=.* layers their own bits"),
        ("gptq", {"pack_dtype": "int16"}, "pack_dtype='int16'"),
        ("gptq", {"group_size": 0}, "group_size=0, must be a number"),
        ("gptq", {"group_size": 64}, "qzeros has shape"),
    ],
)
def test_what_config_json_states_is_checked_without_reading_weights(
    folders: dict[str, Path], form: str, changed: dict[str, Any], message: str
) -> None:
    restate(folders[form], quantization_config={**tiny.QUANTIZED[form], **changed})
    with pytest.raises(QdxError, match=message):
        packing(folders[form])


def test_act_order_and_zero_points_are_seen_where_config_json_denies_them(folders: dict[str, Path]) -> None:
    name = "model.layers.1.mlp.up_proj"

    def shift(state: dict[str, torch.Tensor]) -> None:
        state[f"{name}.qzeros"] = state[f"{name}.qzeros"] - 1

    wide = "model.layers.1.mlp.down_proj"  # 512 rows, four groups

    def mixed(state: dict[str, torch.Tensor]) -> None:
        state[f"{wide}.g_idx"] = state[f"{wide}.g_idx"].flip(0).contiguous()

    change(folders["gptq"], shift)
    with pytest.raises(QdxError, match=r"up_proj: a GPTQ layer with zero points, .* sym=true"):
        packing(folders["gptq"])
    change(folders["gptq"], mixed)
    with pytest.raises(QdxError, match=r"down_proj: gptq layer: g_idx is not in order"):
        packing(folders["gptq"])


def test_shape_that_a_kernel_does_not_take_is_refused_early(folders: dict[str, Path]) -> None:
    shapes = {name: one.shape for name, one in contents(folders["awq"]).items()}
    check_packing(folders["awq"], "awq_gemm", shapes)
    narrow = "model.layers.0.self_attn.k_proj"
    shapes |= {f"{narrow}.qweight": (128, 4), f"{narrow}.qzeros": (1, 4), f"{narrow}.scales": (1, 32)}
    with pytest.raises(QdxError, match=r"kernel 'marlin' needs .* out-features divisible by 64, got .* 32"):
        check_packing(folders["awq"], "marlin", shapes)
