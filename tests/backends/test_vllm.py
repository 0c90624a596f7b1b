"""The vllm backend through the real engine; runs where vLLM is installed: on a GPU, or in the environment of
``scripts/vllm_cpu_venv.sh``."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

pytest.importorskip(
    "vllm", reason="vLLM is not in this environment: scripts/vllm_cpu_venv.sh makes one for a CPU"
)

from qdx.backends import require
from qdx.backends.sampling import plain_greedy
from qdx.backends.selfcheck import Listener, replays_exactly
from qdx.backends.vllm import VllmBackend
from qdx.errors import QdxError
from qdx.models import resolve
from qdx.schema import Quant
from tests.backends.test_transformers import Rows

PROMPTS = [list(range(5, 75)), list(range(200, 260))]
ON_GPU = torch.cuda.is_available()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


def start(paths: dict[str, Path], dtype: str, quant: Quant | None = None, **options: Any) -> VllmBackend:
    quant = quant or Quant("none", "none", "dense")
    settings = {"max_model_len": 256, "max_num_batched_tokens": 512, "max_num_seqs": 4}
    return VllmBackend(
        resolve(str(paths[quant.format]), format=quant.format),
        quant,
        dtype,
        **{**settings, "gpu_memory_utilization": 0.3, **options},  # type: ignore[arg-type]
    )


def stop() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def roundings(dtype: torch.dtype) -> float:
    """Relative distance that some dozen roundings of activations leave, or orders of float32 sums.

    On a GPU vLLM's float32 attention multiplies in TF32, 10 bits of mantissa (1.4e-3 was seen on an H100).
    """
    if ON_GPU and dtype == torch.float32:
        return 6 * 2.0**-10
    return max(6 * torch.finfo(dtype).eps, 1e-5)


@pytest.fixture(scope="module", params=["float16" if ON_GPU else "bfloat16", "float32"])
def engine(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Iterator[VllmBackend]:
    yield start(tiny_models, request.param)
    stop()


def _one_pass(engine: VllmBackend, batch: list[list[int]], count: int) -> tuple[Any, Any, list[list[int]]]:
    rows: Any = Rows(batch)
    phases: list[str] = []
    tokens = engine.prefill_generate(batch, count, rows, phases.append)
    assert phases == ["prefill", "decode"]
    return rows.logits, rows.targets, tokens


def _same(mine: torch.Tensor, theirs: dict[int, Any]) -> None:
    """The engine's own log-probabilities are a float32 log-softmax: equal but for the order of its sum."""
    expected = torch.tensor([theirs[i].logprob for i in range(len(mine))])
    torch.testing.assert_close(mine.float().cpu().log_softmax(-1), expected, rtol=1e-6, atol=2e-5)
    most = max(range(len(mine)), key=lambda i: theirs[i].logprob)
    assert float(mine[most]) == float(mine.max())


def test_every_row_is_the_engines_own_log_probabilities(engine: VllmBackend) -> None:
    from vllm import SamplingParams

    logits, _, tokens = _one_pass(engine, PROMPTS, 6)
    output = engine._engine.generate(
        [{"prompt_token_ids": ids} for ids in PROMPTS],
        SamplingParams(
            temperature=0.0,
            max_tokens=6,
            ignore_eos=True,
            detokenize=False,
            logprobs=-1,
            prompt_logprobs=-1,
        ),
        use_tqdm=False,
    )
    compared = 0
    for item, ids in enumerate(PROMPTS):
        assert list(output[item].outputs[0].token_ids) == tokens[item]
        theirs = [*output[item].prompt_logprobs, *output[item].outputs[0].logprobs]
        for position in range(1, len(ids) + 6):
            _same(logits[item, position], theirs[position])
            compared += 1
    assert compared == len(logits) == 75 + 65


def test_rows_are_what_transformers_computes_in_float32(
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
    mine = torch.stack([logits[0, position] for position in range(1, length + 4)])
    assert mine.dtype == getattr(torch, engine.observe().dtype)
    error = (mine.float().cpu() - expected[: length + 3]).norm() / expected[: length + 3].norm()
    assert float(error) < roundings(mine.dtype)


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
    again, _, _ = _one_pass(engine, [PROMPTS[0] + forced[0]], 2)
    for j in range(1, 6):  # the prefill of the same tokens runs other kernels, and computes nearly the same
        mine, other = rows.logits[0, 70 + j].float(), again[0, 70 + j].float()
        assert float((mine - other).norm() / other.norm()) < roundings(again[0, 70].dtype)


def test_a_replay_by_one_prefill_has_the_rows_of_the_decode_steps_but_for_rounding(
    engine: VllmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced = [list(range(30, 36)), list(range(50, 53))]
    steps: Any = Rows(PROMPTS)
    whole: Any = Rows(PROMPTS)
    engine.replay(PROMPTS, forced, steps)
    monkeypatch.setattr(engine, "_options", replace(engine._options, replay="prefill"))
    engine.replay(PROMPTS, forced, whole)
    assert whole.targets == steps.targets and len(whole.logits) == 5 + 2
    for key, row in steps.logits.items():
        mine, theirs = whole.logits[key].float(), row.float()
        assert float((mine - theirs).norm() / theirs.norm()) < roundings(row.dtype)
    other: Any = Rows(PROMPTS)  # another token before a row moves it by far more
    engine.replay(PROMPTS, [[30, 99, 32, 33, 34, 35], forced[1]], other)
    key = (0, len(PROMPTS[0]) + 2)
    moved, row = other.logits[key].float(), steps.logits[key].float()
    assert float((moved - row).norm() / row.norm()) > 5 * roundings(steps.logits[key].dtype)


def test_companions_share_the_batch_at_their_place_and_are_not_recorded(
    engine: VllmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced = [list(range(30, 36)), list(range(50, 53))]
    alone: Any = Rows(PROMPTS)
    shared: Any = Rows(PROMPTS)
    engine.replay(PROMPTS, forced, alone)
    monkeypatch.setattr(engine, "_options", replace(engine._options, companions="40+7@1"))
    given: list[list[int]] = []
    generate = engine._engine.generate

    def watched(prompts: Any, *arguments: Any, **keywords: Any) -> Any:
        given.append([len(one["prompt_token_ids"]) for one in prompts])
        return generate(prompts, *arguments, **keywords)

    monkeypatch.setattr(engine._engine, "generate", watched)
    engine.replay(PROMPTS, forced, shared)
    logits, _, tokens = _one_pass(engine, PROMPTS, 4)
    assert given == [[40, 70, 60, 7]] * 2
    assert len(logits) == sum(len(ids) + 3 for ids in PROMPTS) and [len(ids) for ids in tokens] == [4, 4]
    assert shared.targets == alone.targets and shared.logits.keys() == alone.logits.keys()
    for key, row in alone.logits.items():
        difference = (shared.logits[key].float() - row.float()).norm() / row.float().norm()
        assert float(difference) < roundings(row.dtype)


def test_a_prefill_alone_records_the_row_that_predicts_the_first_output(engine: VllmBackend) -> None:
    whole, _, _ = _one_pass(engine, PROMPTS, 3)
    rows: Any = Rows(PROMPTS)
    engine.prefill(PROMPTS, rows)
    assert sorted(rows.logits) == [(i, p) for i, ids in enumerate(PROMPTS) for p in range(1, len(ids) + 1)]
    assert all(torch.equal(row, whole[key]) for key, row in rows.logits.items())
    assert all(rows.targets[item, len(ids)] == -1 for item, ids in enumerate(PROMPTS))


def test_each_reference_of_a_batch_gets_its_own_rows(engine: VllmBackend) -> None:
    together, _, tokens = _one_pass(engine, PROMPTS, 4)
    for item, prompt in enumerate(PROMPTS):
        alone, _, one = _one_pass(engine, [prompt], 4)
        assert one[0] == tokens[item]
        for (_, position), row in alone.items():
            mine = together[item, position].float()
            assert float((mine - row.float()).norm() / row.float().norm()) < roundings(row.dtype)


class WithHidden(Rows):
    """Asks for hidden states, too, as a recorder of capture=hidden does."""

    wants_hidden = True

    def __init__(self, batch: list[list[int]]) -> None:
        super().__init__(batch)
        self.hidden: dict[tuple[int, int], torch.Tensor] = {}

    def rows(self, item: int, positions: Any, logits: Any, targets: Any, hidden_PH: Any = None) -> None:
        super().rows(item, positions, logits, targets)
        for position, row in zip(positions.tolist(), hidden_PH, strict=True):
            self.hidden[item, position] = row.float().cpu()


def test_hidden_states_are_those_that_the_output_head_reads(
    engine: VllmBackend, tiny_models: dict[str, Path]
) -> None:
    from safetensors.torch import load_file

    head_VH = load_file(tiny_models["none"] / "model.safetensors")["lm_head.weight"].float()
    rows: Any = WithHidden(PROMPTS)
    engine.prefill_generate(PROMPTS, 3, rows, lambda phase: None)
    assert rows.hidden.keys() == rows.logits.keys()
    for key, hidden_H in rows.hidden.items():
        expected = head_VH @ hidden_H
        error = (rows.logits[key].float().cpu() - expected).norm() / expected.norm()
        assert float(error) < roundings(rows.logits[key].dtype)


def test_dense_layers_and_settings_are_observed(engine: VllmBackend) -> None:
    facts = engine.observe()
    assert set(facts.kernel) >= {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"}
    assert set(facts.kernel.values()) == {"dense"} and not facts.quantized
    require(Quant("none", "none", "dense"), facts)
    assert facts.settings["max_num_batched_tokens"] == "512" and facts.settings["enforce_eager"] == "True"
    assert facts.settings["attention_backend"] not in ("", "None")


def test_what_does_not_fit_is_refused_with_the_number_to_set(engine: VllmBackend) -> None:
    rows: Any = Rows([[7] * 600])
    with pytest.raises(QdxError, match=r"600 tokens.*max_num_batched_tokens is 512"):
        engine.generate([[7] * 600], 2, rows)
    with pytest.raises(QdxError, match=r"250 tokens and 16 more do not fit backend\.max_model_len 256"):
        engine.generate([[7] * 250], 16, rows)
    with pytest.raises(QdxError, match=r"batch_size=5 is more than backend\.max_num_seqs=4"):
        engine.generate([[7] * 5] * 5, 2, rows)


def test_rows_beyond_the_device_budget_come_back_the_same(
    engine: VllmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdx.backends.vllm import tap

    first, _, _ = _one_pass(engine, PROMPTS[:1], 4)
    monkeypatch.setattr(tap, "ON_DEVICE", 0)
    second, _, _ = _one_pass(engine, PROMPTS[:1], 4)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.array_equal(sorted(first), sorted(second))


@pytest.fixture
def small_steps(tiny_models: dict[str, Path]) -> Iterator[VllmBackend]:
    yield start(tiny_models, "float32", max_num_batched_tokens=32, chunked_prefill=True)
    stop()


def test_prefill_in_chunks_loses_no_row_and_a_full_device_amid_it_is_one_line(
    small_steps: VllmBackend, tiny_models: dict[str, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    logits, _, tokens = _one_pass(small_steps, PROMPTS, 4)
    model = AutoModelForCausalLM.from_pretrained(tiny_models["none"], dtype=torch.float32)
    assert len(logits) == 73 + 63
    for item, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt + tokens[item]])).logits[0]
        for position in range(1, len(prompt) + 4):
            mine, other = logits[item, position].cpu(), expected[position - 1]
            assert float((mine - other).norm() / other.norm()) < roundings(mine.dtype)
    heard: Any = Listener([len(ids) for ids in PROMPTS])
    tokens = small_steps.prefill_generate(PROMPTS, 8, heard, lambda phase: None)
    assert replays_exactly(small_steps, PROMPTS, tokens, heard)

    steps = 0

    def full(worker: Any) -> None:
        """Let the fourth forward pass from here on fail as CUDA's allocator does."""

        def fail(*_: Any, **__: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        worker.model_runner.get_model().register_forward_pre_hook(fail)

    small_steps._engine.collective_rpc(full)
    with pytest.raises(
        QdxError, match=r"while running: .*out of memory.*lower backend\.max_model_len"
    ) as caught:
        small_steps.generate(PROMPTS, 6, Rows(PROMPTS))  # type: ignore[arg-type]
    assert steps == 4 and "\n" not in str(caught.value)


def test_a_model_that_the_engine_refuses_says_what_to_change(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(QdxError, match=r"did not load .*max_model_len") as caught:
        start(tiny_models, "float32", max_model_len=10**6)
    assert "\n" not in str(caught.value)


on_a_cpu = pytest.mark.skipif(ON_GPU, reason="a GPU runs the kernels themselves")


@on_a_cpu
@pytest.mark.parametrize(
    ("kernel", "format", "dtype"),
    [
        ("marlin", "awq", "bfloat16"),
        ("machete", "gptq", "bfloat16"),
        ("awq_gemm", "awq", "float16"),
        ("exllama", "gptq", "float16"),
    ],
)
def test_on_a_cpu_int4_layers_are_computed_by_the_numerical_model(
    tiny_models: dict[str, Path], kernel: str, format: str, dtype: str
) -> None:
    from qdx.backends.transformers import TransformersBackend

    quant = Quant("q", format, kernel)
    backend = start(tiny_models, dtype, quant)
    try:
        facts = backend.observe()
        require(quant, facts)
        assert facts.simulated and facts.sm_count == 132
        assert facts.quantized == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
        assert {facts.kernel[layer] for layer in facts.quantized} == {f"model:{kernel}"}
        assert facts.kernel["lm_head"] == "dense"
        backend.reseed(0)
        logits, _, _ = _one_pass(backend, PROMPTS, 4)
        backend.reseed(0)
        again, _, _ = _one_pass(backend, PROMPTS, 4)
        assert all(torch.equal(row, again[key]) for key, row in logits.items())
    finally:
        stop()
    other = TransformersBackend(
        resolve(str(tiny_models[format]), format=format), quant, dtype, 0, threads=1, sm_count=132
    )
    rows: Any = Rows(PROMPTS)
    other.prefill(PROMPTS, rows)
    assert len(rows.logits) == sum(len(ids) for ids in PROMPTS)
    for key, row in rows.logits.items():  # the same kernels on unmerged layers, and another attention
        spread = float(row.float().std())
        distance = float((row.float() - logits[key].float()).std())
        assert distance < 40 * torch.finfo(getattr(torch, dtype)).eps * spread, key


@on_a_cpu
@pytest.mark.parametrize(
    ("quant", "dtype", "said"),
    [
        (
            Quant("gptq", "gptq", "exllama"),
            "bfloat16",
            "exllama does not take torch.bfloat16: set model.dtype",
        ),
        (Quant("awq", "awq", "awq_gemm"), "bfloat16", "awq_gemm does not take torch.bfloat16: set model"),
    ],
)
def test_a_kernel_that_does_not_take_the_dtype_is_an_error_and_no_other_kernel(
    tiny_models: dict[str, Path], quant: Quant, dtype: str, said: str
) -> None:
    with pytest.raises(QdxError, match=said) as caught:
        start(tiny_models, dtype, quant)
    assert "\n" not in str(caught.value)


def _qdx(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    fixed = ["backend.gpu_memory_utilization=0.3", "batch_size=2"]
    return subprocess.run(
        [sys.executable, "-m", "qdx", "-m", *fixed, *overrides, f"hydra.sweep.dir={folder}"],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )


def _sweep(folder: Path, *overrides: str) -> Path:
    done = _qdx(folder, "backend=vllm", *overrides)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


DYING = """
import os, torch, qdx
from qdx.backends.vllm import VllmBackend

@qdx.register("backend", "dying")
class Dying(VllmBackend):
    def __init__(self, checkpoint, quant, dtype, seed=0, how: str = "not", gpu_memory_utilization: float = 1):
        super().__init__(
            checkpoint, quant, dtype, seed, max_model_len=512, gpu_memory_utilization=gpu_memory_utilization
        )
        steps = 0

        def fail(*_, **__):
            nonlocal steps
            steps += 1
            if steps == 40 and how == "oom":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            if steps == 40 and how == "abort":
                os.abort()

        def install(worker):
            worker.model_runner.get_model().register_forward_pre_hook(fail)

        self._engine.collective_rpc(install)
"""


def test_a_job_whose_engine_fills_the_device_or_dies_keeps_its_rows_and_the_sweep_goes_on(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    import qdx

    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "dying.py").write_text(DYING)
    done = _qdx(
        tmp_path / "out",
        "backend=dying",
        "backend.how=oom,abort,not",
        f"model.checkpoint.none={tiny_models['none']}",
        f"model.dtype={'float16' if ON_GPU else 'bfloat16'}",
        *("quant=none", "model=local", "prompts=pydoc", "prompts.references=2", "prompts.snippet_tokens=24"),
        *("generate.tokens=6", "repeats=6"),
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "qdx: failed: none,backend.how=oom: " in said and "out of memory" in said
    assert "lower backend.max_model_len" in said
    assert "qdx: failed: none,backend.how=abort: " in said and "SIGABRT" in said
    labels = [f"none,backend.how={how}" for how in ("oom", "abort", "not")]
    for label in labels[:2]:
        with qdx.open(tmp_path / "out" / label / "run.nc.part") as tree:
            captured = tree["replay/captured"].values
            assert 0 < captured.sum() < captured.size
            assert np.isfinite(tree["replay/logit"].values[captured]).all()
    with qdx.open(tmp_path / "out") as tree:
        assert tree["replay"]["config"].values.tolist() == labels[2:]


def test_a_run_checks_itself_and_another_process_replays_its_transcripts_bit_for_bit(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    model = [
        "quant=none",
        "model=local",
        f"model.checkpoint.none={tiny_models['none']}",
        f"model.dtype={'float16' if ON_GPU else 'bfloat16'}",
        "backend.max_model_len=512",
    ]
    prompts = ["prompts=pydoc", "prompts.references=2", "prompts.snippet_tokens=24", "generate.tokens=4"]
    proved = _sweep(tmp_path / "prover", *model, *prompts, "repeats=2", "capture=hidden")
    with xr.open_dataset(proved / "none" / "run.nc") as root:
        assert root.attrs["replay_exact"] == 1
        assert root.attrs["model_runner"] in (("v1", "v2") if ON_GPU else ("v1",))
        assert root.attrs["compiled_kernels"] == ""
        assert plain_greedy(root.attrs["sampling"]) is True
        assert json.loads(root.attrs["kernel_environment"])["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    with xr.open_dataset(proved / "sweep.nc", group="prefill") as prefill:
        assert str(prefill.backend.values[0]) == "vllm"
        assert str(prefill.backend_max_model_len.values[0]) == "512"
        assert str(prefill.backend_model_runner.values[0]) == root.attrs["model_runner"]
        hashes = prefill.row_hash.values
        assert prefill.captured.values.any() and (hashes[:, :1] == hashes).all()
    with xr.open_dataset(proved / "none" / "run.nc", group="decode") as decode:
        captured = decode.captured.values
        assert captured.sum() == 2 * 2 * 3 and np.isfinite(decode.hidden.values[captured]).all()
    verified = _sweep(
        tmp_path / "verifier",
        *(*model, "prompts=transcripts", f"prompts.path={proved / 'sweep.nc'}", "repeat_scope=engine"),
    )
    one = xr.open_dataset(proved / "sweep.nc", group="decode").isel(config=0, repeat=0)
    two = xr.open_dataset(verified / "sweep.nc", group="replay").isel(config=0, repeat=0, producer=0)
    one, two = xr.align(one, two, join="outer", fill_value=0)
    assert (one.captured.values == two.captured.values).all() and one.captured.values.sum() == 6
    assert (one.row_hash.values == two.row_hash.values)[one.captured.values.astype(bool)].all()
    with xr.open_dataset(verified / "sweep.nc", group="prefill") as prefill:
        assert (prefill.first_rank.values == 0).all()


@on_a_cpu
def test_the_demo_checkpoints_repeat_as_their_kernels_do(tmp_path: Path) -> None:
    import qdx

    folder = _sweep(
        tmp_path / "out",
        *("quant=awq_marlin,gptq", "prompts=pydoc", "prompts.references=2", "repeats=2"),
        *("prompts.snippet_tokens=24", "generate.tokens=4", "backend.max_model_len=512"),
    )
    assert "SIMULATED KERNELS" in (folder / "report.txt").read_text()
    with qdx.open(folder / "sweep.nc") as tree:
        for phase in ("prefill", "replay"):
            rows = tree[phase].to_dataset()
            assert rows["observed_kernel"].values.tolist() == ["model:marlin", "model:exllama"]
            for index, repeats in enumerate([True, phase == "prefill"]):
                one = rows.isel(config=index)
                hashes = one["row_hash"].values[:, one["captured"].values.all(0)]
                assert hashes.size and bool((hashes[0] == hashes[1]).all()) == repeats
