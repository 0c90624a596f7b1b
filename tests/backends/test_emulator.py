"""The emulator on a tiny checkpoint: near the transformers backend, repeatable, plain about its limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from qdx.backends import require
from qdx.backends.emulator import EmulatorBackend
from qdx.backends.selfcheck import generates_as_it_replays
from qdx.errors import QdxError
from qdx.models import resolve
from tests.backends.test_transformers import QUANTS, Rows, backend, phases
from tests.test_config import composed

PROMPTS = [list(range(5, 25)), list(range(200, 212))]


def emulator(paths: dict[str, Path], name: str, **options: object) -> EmulatorBackend:
    quant = QUANTS[name]
    checkpoint = resolve(str(paths[quant.format]), format=quant.format)
    return EmulatorBackend(checkpoint=checkpoint, quant=quant, dtype="float16", threads=1, **options)


@pytest.mark.parametrize(
    ("name", "attention"),
    [("none", "FLASH_ATTN"), ("awq_marlin", "TRITON_ATTN"), ("gptq_machete", "FLASH_ATTN")],
)
def test_rows_are_near_the_transformers_backends(
    tiny_models: dict[str, Path], name: str, attention: str
) -> None:
    own, other = emulator(tiny_models, name, attention_backend=attention), backend(tiny_models, name)
    for engine in (own, other):
        facts = engine.observe()
        require(QUANTS[name], facts)
        assert facts.simulated
    rows = []
    for engine in (own, other):
        prefill = Rows(PROMPTS)
        engine.prefill(PROMPTS, prefill)  # type: ignore[arg-type]
        replayed = Rows(PROMPTS)
        engine.replay(PROMPTS, [[7, 8, 9, 10], [3, 4, 5, 6]], replayed)  # type: ignore[arg-type]
        rows.append({**prefill.logits, **{(*key, "replay"): one for key, one in replayed.logits.items()}})
    assert rows[0].keys() == rows[1].keys() and len(rows[0]) == 20 + 12 + 6
    for key, row in rows[0].items():
        spread = rows[1][key].float().std()
        assert (row.float() - rows[1][key].float()).abs().max() < 0.05 * spread, key


def test_rows_of_a_replay_are_those_of_the_generation(tiny_models: dict[str, Path]) -> None:
    engine = emulator(tiny_models, "awq_marlin")
    assert generates_as_it_replays(engine, PROMPTS, 4)
    first, second = phases(engine, PROMPTS, 3), phases(engine, PROMPTS, 3)  # type: ignore[arg-type]
    assert first[2] == second[2]
    assert all(torch.equal(row, second[1].logits[key]) for key, row in first[1].logits.items())


def test_a_transcript_that_ends_leaves_the_batch(tiny_models: dict[str, Path]) -> None:
    engine = emulator(tiny_models, "none")
    engine.prefill(PROMPTS, Rows(PROMPTS))  # type: ignore[arg-type]
    rows = Rows(PROMPTS)
    engine.replay(PROMPTS, [[7, 8], [3, 4, 5, 6]], rows)  # type: ignore[arg-type]
    assert sorted(rows.logits) == [(0, 21), (1, 13), (1, 14), (1, 15)]


def test_the_card_and_the_engine_are_stated(tiny_models: dict[str, Path]) -> None:
    facts = emulator(tiny_models, "awq_marlin", card="h200").observe()
    assert facts.observed_kernel == "model:marlin" and facts.gpu == "" and facts.compute_capability == ""
    assert facts.attrs == {
        "emulated_card": "h200",
        "emulated_engine": "vllm 0.33.0",
        "compared_with_a_card": "yes",
    }
    assert facts.settings["attention_backend"] == "FLASH_ATTN" and facts.sm_count == 132


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head_dim": 128}, "has head_dim 128, known bit for bit is 64 alone"),
        ({"hidden_act": "gelu"}, "has hidden_act gelu"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "has rope_type llama3"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "known bit for bit is ['LlamaForCausalLM']"),
    ],
)
def test_what_is_not_known_bit_for_bit_is_refused(
    tiny_models: dict[str, Path], tmp_path: Path, change: dict[str, object], said: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_models["none"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    checkpoint = resolve(str(folder), format="none")
    with pytest.raises(QdxError) as caught:
        EmulatorBackend.rehearse(checkpoint, QUANTS["none"], "float16", 1)
    assert said in str(caught.value)


def test_other_dtypes_batches_and_long_steps_are_refused(tiny_models: dict[str, Path]) -> None:
    checkpoint = resolve(str(tiny_models["none"]), format="none")
    with pytest.raises(QdxError, match=r"set model\.dtype=float16"):
        EmulatorBackend.rehearse(checkpoint, QUANTS["none"], "bfloat16", 1)
    with pytest.raises(QdxError, match=r"batch_size=3 is more than backend\.max_num_seqs=2"):
        EmulatorBackend.rehearse(checkpoint, QUANTS["none"], "float16", 3, max_num_seqs=2)
    with pytest.raises(QdxError, match="the card would cut them into steps"):
        emulator(tiny_models, "none", max_num_batched_tokens=16).prefill(PROMPTS, Rows(PROMPTS))  # type: ignore[arg-type]
    with pytest.raises(QdxError, match=r"backend.card=v100: not one of h100, h200, a100"):
        emulator(tiny_models, "none", card="v100")


def test_a_card_that_nothing_was_compared_with_is_refused_or_marked(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(QdxError, match=r"backend.card=a100: no row was compared with such a card"):
        emulator(tiny_models, "awq_marlin", card="a100")
    with pytest.raises(QdxError, match=r"backend.card=a100: Machete runs on Hopper alone"):
        emulator(tiny_models, "gptq_machete", card="a100", approximate=True)
    engine = emulator(tiny_models, "awq_marlin", card="a100", approximate=True)
    facts = engine.observe()
    assert facts.sm_count == 108 and facts.attrs["compared_with_a_card"].startswith("no: how its cuBLAS cuts")
    rows, hoppers = Rows(PROMPTS), Rows(PROMPTS)
    engine.prefill(PROMPTS, rows)  # type: ignore[arg-type]
    emulator(tiny_models, "awq_marlin").prefill(PROMPTS, hoppers)  # type: ignore[arg-type]
    differ = [key for key, row in rows.logits.items() if not torch.equal(row, hoppers.logits[key])]
    assert len(differ) > len(rows.logits) / 2  # 8 products a step, not 16
    for key, row in rows.logits.items():
        other = hoppers.logits[key].float()
        assert (row.float() - other).abs().max() < 0.05 * other.std(), key


def test_layers_of_one_input_are_merged(tiny_models: dict[str, Path]) -> None:
    from qdx.backends.emulator.llama import merged
    from qdx.models import iter_quantized

    found = dict(iter_quantized(tiny_models["awq"]))
    parts = [found[f"model.layers.0.self_attn.{name}"] for name in ("q_proj", "k_proj", "v_proj")]
    both = merged(parts)
    assert both.out_features == 128 + 64 + 64  # type: ignore[union-attr]
    assert torch.equal(both.dequantize(), torch.cat([one.dequantize() for one in parts], 1))  # type: ignore[union-attr]
    with pytest.raises(QdxError, match="quantize all of a layer alike"):
        merged([parts[0], torch.zeros(4, 128)])


def test_kernels_of_other_versions_are_refused() -> None:
    assert composed("backend=emulator", "quant=awq_marlin").backend.engine == "0.33.0"
    with pytest.raises(QdxError, match=r"emulates vLLM 0.33.0 with dense, marlin, machete"):
        composed("backend=emulator", "quant=awq")
    assert composed("backend=emulator", "backend.engine=0.20.2", "quant=awq").quant.kernel == "awq_gemm"
