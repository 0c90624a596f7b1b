"""Checkpoints as public reports describe them: right, or refused in one line before the first job."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdx.backends.transformers import TransformersBackend
from qdx.errors import QdxError
from qdx.models import (
    check_contents,
    context_length,
    eos_token_ids,
    load_tokenizer,
    resolve,
    switching_length,
    vocab_size,
)
from qdx.schema import Quant
from qdx.sweep.prepare import check_rotation
from tests import tiny

KERNELS = {"none": "dense", "awq": "marlin", "gptq": "marlin"}
LAYER = "model.layers.0.mlp.down_proj"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def folder(built: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies the checkpoint of a format."""
    return lambda form: Path(shutil.copytree(built[form], tmp_path / form))


def look(path: Path, form: str) -> None:
    """Do what is done to a checkpoint before the first job."""
    checkpoint = resolve(str(path), format=form)
    check_contents(checkpoint.path, checkpoint.format)
    vocab_size(checkpoint.path)
    quant = Quant("q", form, KERNELS[form])
    TransformersBackend.rehearse(checkpoint=checkpoint, quant=quant, dtype="float16", batch_size=1)


def restate(path: Path, name: str = "config.json", **changed: Any) -> None:
    stated = json.loads((path / name).read_text()) | changed
    (path / name).write_text(json.dumps(stated))


def restated(**changed: Any) -> Callable[[Path], None]:
    return lambda path: restate(path, **changed)


def packed_as(**changed: Any) -> Callable[[Path], None]:
    """Change the statement of how the layers are packed; None is written as null, ... removes a key."""

    def change(path: Path) -> None:
        stated = json.loads((path / "config.json").read_text())["quantization_config"] | changed
        restate(path, quantization_config={k: v for k, v in stated.items() if v is not ...})

    return change


def stored(change: Callable[[State], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = load_file(path / "model.safetensors")
        change(state)
        save_file({k: v.contiguous() for k, v in state.items()}, path / "model.safetensors")

    return damage


def cast(name: str, dtype: torch.dtype) -> Callable[[Path], None]:
    return stored(lambda state: state.update({name: state[name].to(dtype)}))


def dense_layer(state: State, dtype: torch.dtype, packed: bool) -> None:
    for part in () if packed else ("qweight", "qzeros", "scales", "g_idx"):
        del state[f"{LAYER}.{part}"]
    state[f"{LAYER}.weight"] = torch.zeros(128, 512, dtype=torch.float32).to(dtype)


def biases(value: float) -> Callable[[Path], None]:
    def add(state: State) -> None:
        for name in [name for name in state if name.endswith(".qweight")]:
            width = state[name].shape[1]
            state[name.replace("qweight", "bias")] = torch.full((width,), value, dtype=torch.float16)

    return stored(add)


def second_format(state: State) -> None:
    for name in [name for name in state if name.endswith(".qzeros")]:
        state[name] = torch.full_like(state[name], 0x88888888 - (1 << 32))


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change the header of the weight file and leave its bytes."""

    def damage(path: Path) -> None:
        file = path / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        stated = json.loads(data[8 : 8 + length])
        change(stated)
        text = json.dumps(stated).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def pipe(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)

    return damage


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path / name).write_text(content)

    return write


def tied_again(path: Path) -> None:
    """Store the embedding as the head too, in another type."""
    restate(path, tie_word_embeddings=True)
    stored(lambda state: state.update({HEAD: state[EMBEDDING].float()}))(path)


def dangling(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to("nowhere")

    return damage


def marked(path: Path) -> None:
    file = path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


NORM = "model.norm.weight"
REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "an 8-bit norm": ("none", cast(NORM, torch.int8), r"1 integer or 8-bit tensors, such as model\.norm"),
    "a float8 norm": ("none", cast(NORM, torch.float8_e4m3fn), r"model\.norm\.weight \(F8_E4M3\)"),
    "an int8 head beside awq": ("awq", cast(HEAD, torch.int8), "lm_head.* says awq, which stores its layers"),
    "a float8 embedding beside gptq": ("gptq", cast(EMBEDDING, torch.float8_e4m3fn), "embed_tokens.*F8_E4M3"),
    "one float8 layer among gptq's": (
        "gptq",
        stored(lambda state: dense_layer(state, torch.float8_e4m3fn, packed=False)),
        r"down_proj\.weight \(F8_E4M3\)",
    ),
    "a layer packed and dense": (
        "gptq",
        stored(lambda state: dense_layer(state, torch.float16, packed=True)),
        "stored twice, packed .* remove one of the two",
    ),
    "scales of activations": (
        "awq",
        stored(lambda state: state.update({"model.layers.0.mlp.act_fn.scales": torch.ones(512)})),
        r"act_fn\.scales .* nobody scales",
    ),
    "zero points of gptq_v2": (
        "gptq",
        stored(second_format),
        "zero point is 8, as checkpoint_format=gptq_v2",
    ),
    "a method that is not stated": ("gptq", packed_as(quant_method=...), 'add "quant_method": "gptq"'),
    "awq without its method": ("awq", packed_as(quant_method=None), 'add "quant_method": "awq"'),
    "a rotation": (
        "gptq",
        packed_as(rotation="hadamard"),
        "rotation=hadamard, which changes what its layers",
    ),
    "an adapter in the statement": ("gptq", packed_as(adapter={"rank": 8}), "adapter=.* is not read"),
    "rules that are a list": ("gptq", packed_as(dynamic=[1]), "dynamic=.* only one packing"),
    "groups of compressed-tensors as a list": (
        "none",
        restated(quantization_config={"quant_method": "compressed-tensors", "config_groups": [1]}),
        "quantized by 'compressed-tensors'",
    ),
    "compressed-tensors by its older key": (
        "none",
        restated(
            compression_config={
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int"}}},
            }
        ),
        "has format 'w4a16'",
    ),
    "a packed layer with one axis": (
        "gptq",
        stored(lambda state: state.update({f"{LAYER}.qweight": state[f"{LAYER}.qweight"].reshape(-1)})),
        r"qweight has shape \(8192,\), expected 2 axes",
    ),
    "words of 64 bits": (
        "gptq",
        stored(lambda state: state.update({f"{LAYER}.qweight": state[f"{LAYER}.qweight"].long()})),
        "qweight is I64, must be I32",
    ),
    "biases of a model without": ("gptq", biases(1.0), "14 tensors are read by nothing"),
    "fused layers": (
        "none",
        stored(
            lambda state: state.update(
                {
                    "model.layers.0.self_attn.qkv_proj.weight": state.pop(
                        "model.layers.0.self_attn.q_proj.weight"
                    )
                }
            )
        ),
        "1 weights of LlamaForCausalLM are missing, .* named, fused or packed otherwise",
    ),
    "a vocabulary of another size": (
        "none",
        restated(vocab_size=1100),
        r"2 weights have another shape .* lm_head\.weight: \(1200, 128\) in the file, \(1100, 128\) in",
    ),
    "a vocabulary in words": (
        "none",
        restated(vocab_size="1200"),
        "vocab_size='1200', must be a whole number",
    ),
    "more layers than a model has": ("none", restated(num_hidden_layers=10**8), "more than 10000"),
    "an unknown type": ("none", restated(model_type="nope"), "no model_type 'nope'.*backend=vllm"),
    "code of its own": (
        "none",
        restated(model_type="nope", auto_map={"AutoConfig": "x.Y"}),
        "its own code, auto_map, is never run",
    ),
    "a class of its own": (
        "none",
        restated(architectures=["FooForCausalLM"]),
        "engines go by the first, .* write 'LlamaForCausalLM' there if it computes the same",
    ),
    "another family's class": (
        "none",
        restated(architectures=["Qwen2ForCausalLM"]),
        "engines go by the first",
    ),
    "a classifier": (
        "none",
        restated(architectures=["LlamaForSequenceClassification"]),
        "has no language model's head",
    ),
    "a byte order mark": ("none", marked, "byte order mark"),
    "no number": ("none", restated(rms_norm_eps=float("nan")), "states NaN for a number"),
    "a template that is not there": (
        "none",
        dangling("chat_template.jinja"),
        "link to a file that is not there",
    ),
    "a pipe for weights": ("none", pipe("model.safetensors"), "not a regular file"),
    "a pipe for settings": ("none", pipe("generation_config.json"), "not a regular file"),
    "tensors that overlap": (
        "none",
        header(lambda stated: stated[NORM].update(data_offsets=[0, 256])),
        "does not begin where another one ends",
    ),
    "a type of another width": ("none", header(lambda stated: stated[NORM].update(dtype="F32")), "256 bytes"),
    "metadata of numbers": (
        "none",
        header(lambda stated: stated.update(__metadata__={"format": 1})),
        "more than strings",
    ),
    "an end of generation in words": (
        "none",
        text("generation_config.json", '{"eos_token_id": ["</s>"]}'),
        r"eos_token_id=\['</s>'\], must be a token id",
    ),
    "an adapter without its config": (
        "none",
        text("adapter_model.bin", "x"),
        "an adapter, which would not be",
    ),
}
RIGHT: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a method in capitals": ("awq", packed_as(quant_method="AWQ")),
    "nulls for what is usual": ("gptq", packed_as(desc_act=None, checkpoint_format=None, dynamic=None)),
    "rules that leave layers dense": ("gptq", packed_as(dynamic={"-:lm_head": {}})),
    "torch's name of a word": ("gptq", packed_as(pack_dtype="torch.int32")),
    "biases of nothing but zeros": ("gptq", biases(0.0)),
    "the embedding again, wider": ("none", tied_again),
    "settings of generation that no version knows": (
        "none",
        text("generation_config.json", '{"eos_token_id": 2, "cache_implementation": "nope"}'),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_the_first_job(folder: Callable[[str], Path], name: str) -> None:
    form, damage, message = REFUSED[name]
    path = folder(form)
    damage(path)
    with pytest.raises(QdxError, match=message):
        look(path, form)


@pytest.mark.parametrize("name", RIGHT)
def test_it_is_read(folder: Callable[[str], Path], name: str) -> None:
    form, change = RIGHT[name]
    path = folder(form)
    change(path)
    look(path, form)


def test_following_the_advice_for_an_unstated_method_or_class_works(folder: Callable[[str], Path]) -> None:
    path = folder("gptq")
    packed_as(quant_method=...)(path)
    with pytest.raises(QdxError, match='add "quant_method": "gptq"'):
        look(path, "gptq")
    packed_as(quant_method="gptq")(path)
    restate(path, architectures=["FooForCausalLM"])
    with pytest.raises(QdxError, match="write 'LlamaForCausalLM' there"):
        look(path, "gptq")
    restate(path, architectures=["LlamaForCausalLM"])
    look(path, "gptq")


def test_a_tensor_in_two_shards_is_taken_only_where_both_are_alike(folder: Callable[[str], Path]) -> None:
    path = folder("none")
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + (name > HEAD)}-of-00002.safetensors" for name in state}
    first, second = sorted(set(files.values()))
    for file in (first, second):
        save_file({name: one for name, one in state.items() if files[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    look(path, "none")
    for head, message in ((state[HEAD], None), (state[HEAD] * 2, "with other values")):
        rest = {name: one for name, one in state.items() if files[name] == second}
        save_file({**rest, HEAD: head.clone()}, path / second)
        if message is None:
            look(path, "none")
            continue
        with pytest.raises(QdxError, match=message):
            look(path, "none")


def test_gpt_2_s_turned_layers_run_quantized(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from qdx.models import gptq
    from qdx.models.quantize import round_to_nearest
    from tests.backends.test_transformers import phases

    path = folder("gptq")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1200, n_embd=128, n_layer=1, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config).float().eval()
    state: State = {}
    for name, tensor in model.state_dict().items():
        if ".c_" not in name or not name.endswith("weight"):
            state[name] = tensor.half().contiguous()
            continue
        weight = round_to_nearest(tensor.t().half(), 128, symmetric=True)
        state |= {name.replace("weight", part): one for part, one in gptq.pack(weight).items()}
        tensor.copy_(weight.dequantize().float())
    del state[HEAD]
    quantization = json.loads((path / "config.json").read_text())["quantization_config"]
    (path / "config.json").write_text(
        json.dumps(
            {**config.to_dict(), "architectures": ["GPT2LMHeadModel"], "quantization_config": quantization}
        )
    )
    save_file(state, path / "model.safetensors")
    look(path, "gptq")
    assert context_length(path) == 64
    engine = TransformersBackend(
        checkpoint=resolve(str(path), format="gptq"),
        quant=Quant("q", "gptq", "marlin"),
        dtype="float16",
        threads=1,
    )
    prompt = list(range(5, 35))
    rows, _, _ = phases(engine, [prompt], 2)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    for (_, position), row in rows.logits.items():
        torch.testing.assert_close(row.float(), expected[position - 1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("stated", "length"),
    [
        ({"n_positions": 1024}, 1024),
        ({"max_seq_len": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, 131072),
        ({}, None),
    ],
)
def test_positions_are_found_as_each_architecture_states_them(
    tmp_path: Path, stated: dict[str, Any], length: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert context_length(tmp_path) == length


@pytest.mark.parametrize(
    ("stated", "length"),
    [
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 512}}, 512),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 2048}, 2048),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 512}}, None),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, None),
        ({}, None),
    ],
)
def test_rotations_that_depend_on_a_call_s_length_are_known(
    tmp_path: Path, stated: dict[str, Any], length: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert switching_length(tmp_path) == length


@pytest.mark.parametrize(
    ("generation", "config", "tokens"),
    [
        ('{"eos_token_id": [3, 4]}', "{}", {3, 4}),
        ("{}", '{"eos_token_id": 7}', set()),
        (None, '{"text_config": {"eos_token_id": 7}}', {7}),
        (None, "{}", None),
    ],
)
def test_ends_of_generation(
    tmp_path: Path, generation: str | None, config: str, tokens: set[int] | None
) -> None:
    (tmp_path / "config.json").write_text(config)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(generation)
    assert eos_token_ids(tmp_path) == tokens


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"tokenizer_class": "FooTokenizer", "auto_map": {"AutoTokenizer": ["foo.FooTokenizer", None]}},
            "code of its own .* never run: .*PreTrainedTokenizerFast",
        ),
        ({"tokenizer_class": "BertTokenizer"}, "its files do not fit each other"),
    ],
)
def test_tokenizer_that_transformers_cannot_make_is_named(
    folder: Callable[[str], Path], changed: dict[str, Any], message: str
) -> None:
    path = folder("none")
    restate(path, "tokenizer_config.json", **changed)
    with pytest.raises(QdxError, match=message):
        load_tokenizer(path)
    file = path / "tokenizer_config.json"
    stated = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps({key: value for key, value in stated.items() if key != "auto_map"}))
    load_tokenizer(path)


@pytest.mark.parametrize(
    ("lengths", "tokens", "refused"),
    [((20, 25), 7, False), ((40, 60), 7, False), ((30,), 7, True), ((20, 40), 7, True)],
)
def test_prompts_on_both_sides_of_a_rotation_s_switch_are_refused(
    tmp_path: Path, lengths: tuple[int, ...], tokens: int, refused: bool
) -> None:
    stated = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 32}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    references = [SimpleNamespace(name=f"ref_{i}", token_ids=range(n)) for i, n in enumerate(lengths)]
    job: Any = SimpleNamespace(
        checkpoint=SimpleNamespace(path=tmp_path, source="the model"),
        prompts=SimpleNamespace(references=references, producers=[]),
        experiment=SimpleNamespace(generate=SimpleNamespace(tokens=tokens)),
    )
    if not refused:
        check_rotation(job)
        return
    with pytest.raises(QdxError, match=r"beyond 32 positions .* all prompts and outputs lie on one side"):
        check_rotation(job)
