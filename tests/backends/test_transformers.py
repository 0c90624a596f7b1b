"""The transformers backend on a tiny checkpoint: what it computes, and what it says it loaded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from qdx.backends import Facts, identity, require
from qdx.backends.sampling import plain_greedy
from qdx.backends.transformers import TransformersBackend
from qdx.errors import QdxError
from qdx.models import resolve
from qdx.schema import Quant

QUANTS = {
    "none": Quant("none", "none", "dense"),
    "awq": Quant("awq", "awq", "awq_gemm"),
    "awq_marlin": Quant("awq_marlin", "awq", "marlin"),
    "gptq": Quant("gptq", "gptq", "exllama"),
    "gptq_machete": Quant("gptq_machete", "gptq", "machete"),
}
TARGET = "qdx.backends.transformers.TransformersBackend"
PROMPTS = [list(range(5, 75)), list(range(200, 260))]


class Rows:
    """Keeps what a backend hands over; wants every row of a prefill."""

    def __init__(self, batch: list[list[int]]) -> None:
        self.lengths = [len(ids) for ids in batch]
        self.logits: dict[tuple[int, int], torch.Tensor] = {}
        self.targets: dict[tuple[int, int], int] = {}

    def wanted(self, item: int) -> np.ndarray:
        return np.arange(1, self.lengths[item] + 1)

    def rows(self, item: int, positions: np.ndarray, logits: torch.Tensor, targets: torch.Tensor) -> None:
        for position, row, target in zip(positions.tolist(), logits, targets.tolist(), strict=True):
            assert (item, position) not in self.logits
            self.logits[item, position] = row.clone()
            self.targets[item, position] = target


def backend(paths: dict[str, Path], name: str, dtype: str = "float16") -> TransformersBackend:
    quant = QUANTS[name]
    checkpoint = resolve(str(paths[quant.format]), format=quant.format)
    return TransformersBackend(checkpoint=checkpoint, quant=quant, dtype=dtype, seed=3, threads=1)


def phases(
    engine: TransformersBackend, batch: list[list[int]], count: int = 6
) -> tuple[Rows, Rows, list[list[int]]]:
    prefill, decode = Rows(batch), Rows(batch)
    engine.prefill(batch, prefill)  # type: ignore[arg-type]
    tokens = engine.generate(batch, count, decode)  # type: ignore[arg-type]
    return prefill, decode, tokens


def test_the_loop_that_states_plain_greedy_is(tiny_models: dict[str, Path]) -> None:
    engine = backend(tiny_models, "awq")
    assert plain_greedy(engine.observe().sampling) is True
    _, decode, tokens = phases(engine, PROMPTS)
    for (item, position), row in decode.logits.items():
        assert int(row.argmax()) == tokens[item][position - len(PROMPTS[item])]


def test_dense_rows_agree_with_transformers_in_float32(tiny_models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    prefill, decode, tokens = phases(backend(tiny_models, "none"), PROMPTS[:1])
    model = AutoModelForCausalLM.from_pretrained(tiny_models["none"], dtype=torch.float32)
    ids = torch.tensor([PROMPTS[0] + tokens[0]])
    with torch.inference_mode():
        expected = model(ids).logits[0]
    for rows in (prefill, decode):
        for (_, position), row in rows.logits.items():
            assert row.dtype == torch.float16
            # fp16 activations through two layers: a few hundred roundings of relative size 2^-11
            torch.testing.assert_close(row.float(), expected[position - 1], rtol=0.02, atol=0.05)
    assert sorted(p for _, p in decode.logits) == list(range(71, 76))


def test_generated_tokens_are_the_greatest_logits_of_the_rows_before_them(
    tiny_models: dict[str, Path],
) -> None:
    prefill, decode, tokens = phases(backend(tiny_models, "awq"), PROMPTS[:1])
    chosen = [int(prefill.logits[0, 70].argmax())]
    chosen += [int(decode.logits[0, p].argmax()) for p in range(71, 76)]
    assert chosen == tokens[0]
    assert prefill.targets[0, 70] == -1 and prefill.targets[0, 1] == PROMPTS[0][1]
    assert [decode.targets[0, p] for p in range(71, 76)] == tokens[0][1:]


@pytest.mark.parametrize("name", ["awq", "awq_marlin", "gptq_machete", "none"])
def test_replaying_its_own_tokens_gives_the_generation_back_bit_for_bit(
    tiny_models: dict[str, Path], name: str
) -> None:
    engine = backend(tiny_models, name)
    _, decode, tokens = phases(engine, PROMPTS[:1])
    replay = Rows(PROMPTS[:1])
    engine.replay(PROMPTS[:1], tokens, replay)  # type: ignore[arg-type]
    assert replay.targets == decode.targets
    assert all(torch.equal(replay.logits[key], row) for key, row in decode.logits.items())


def test_exllama_repeats_its_prefill_and_not_its_decode(tiny_models: dict[str, Path]) -> None:
    engine = backend(tiny_models, "gptq")
    one, two = phases(engine, PROMPTS[:1])[0], phases(engine, PROMPTS[:1])[0]
    assert all(torch.equal(one.logits[key], two.logits[key]) for key in one.logits)
    forced = [list(range(300, 320))]
    rows = []
    for _ in range(2):
        record = Rows(PROMPTS[:1])
        engine.replay(PROMPTS[:1], forced, record)  # type: ignore[arg-type]
        rows.append(record.logits)
    assert any(not torch.equal(rows[0][key], rows[1][key]) for key in rows[0])
    engine.reseed(8)
    again = []
    for _ in range(2):
        engine.reseed(8)
        record = Rows(PROMPTS[:1])
        engine.replay(PROMPTS[:1], forced, record)  # type: ignore[arg-type]
        again.append(record.logits)
    assert all(torch.equal(again[0][key], again[1][key]) for key in again[0])


def test_a_batch_of_two_lengths_gives_each_reference_its_own_rows(tiny_models: dict[str, Path]) -> None:
    engine = backend(tiny_models, "none")
    together = phases(engine, PROMPTS)
    for item, prompt in enumerate(PROMPTS):
        alone = phases(engine, [prompt])
        assert together[2][item] == alone[2][0]
        for kind in (0, 1):
            for (_, position), row in alone[kind].logits.items():  # type: ignore[union-attr]
                other = together[kind].logits[item, position]  # type: ignore[union-attr]
                torch.testing.assert_close(other.float(), row.float(), rtol=0.02, atol=0.05)


def test_generation_without_a_prefill_is_a_mistake_of_the_caller(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="prefill"):
        backend(tiny_models, "none").generate(PROMPTS[:1], 3, Rows(PROMPTS[:1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", QUANTS)
def test_observed_kernels_are_models_of_what_was_asked(tiny_models: dict[str, Path], name: str) -> None:
    facts = backend(tiny_models, name).observe()
    assert facts.simulated
    assert facts.observed_kernel == f"model:{QUANTS[name].kernel}"
    assert facts.kernel["lm_head"] == "model:dense"
    require(QUANTS[name], facts)


def test_another_kernel_than_asked_stops_the_run() -> None:
    facts = Facts({"q_proj": "Marlin"}, {"q_proj": "marlin"}, frozenset({"q_proj"}), "float16", 8, "e", "1")
    with pytest.raises(QdxError, match=r"asks for kernel machete, e loaded q_proj: marlin"):
        require(Quant("awq_machete", "awq", "machete"), facts)


def test_a_checkpoint_that_lacks_weights_is_refused_not_filled_at_random(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("none", "awq"):
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_models[name].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        state = load_file(folder / "model.safetensors")
        del state["model.norm.weight"]
        save_file(state, folder / "model.safetensors")
        with pytest.raises(QdxError, match=r"1 weights are missing, such as model\.norm\.weight"):
            backend({name: folder}, name)


def test_prefill_in_blocks_of_rows_gives_the_same_rows(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import qdx.backends.transformers as module

    engine = backend(tiny_models, "awq_marlin")
    whole = phases(engine, PROMPTS[:1])[0]
    monkeypatch.setattr(module, "HEAD_ROWS", 7)
    blocks = phases(engine, PROMPTS[:1])[0]
    assert whole.logits.keys() == blocks.logits.keys()
    for key, row in whole.logits.items():
        # One dot product is the same in a block of any size up to the order of its float32 sum.
        torch.testing.assert_close(blocks.logits[key].float(), row.float(), rtol=2**-10, atol=1e-3)


def test_identity_states_what_can_change_the_rows() -> None:
    one, two = (identity({"_target_": TARGET, "threads": n, "sm_count": 132}) for n in (1, 2))
    assert one["threads"] == 1 and two["threads"] == 2
    assert one["engine_version"] == two["engine_version"] != ""
    unset = identity({"_target_": TARGET, "threads": None})
    assert unset["threads"] == len(os.sched_getaffinity(0))


def test_a_kernel_of_any_name_cannot_be_modelled(tiny_models: dict[str, Path]) -> None:
    checkpoint = resolve(str(tiny_models["awq"]), format="awq")
    with pytest.raises(QdxError, match="name one"):
        TransformersBackend(checkpoint, Quant("x", "awq", "any"), "float16")


def test_a_kernel_that_takes_no_bfloat16_says_so(tiny_models: dict[str, Path]) -> None:
    engine = backend(tiny_models, "gptq", "bfloat16")
    with pytest.raises(QdxError, match="float16"):
        engine.prefill(PROMPTS[:1], Rows(PROMPTS[:1]))  # type: ignore[arg-type]
