"""The parts of the vllm backend that need no vLLM: adapters, arguments, names, tokens, errors."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from qdx.backends import Facts, OnePass, require
from qdx.backends.selfcheck import Listener, replays_exactly
from qdx.backends.vllm import VllmBackend, simulated, start
from qdx.backends.vllm import tap as tapping
from qdx.backends.vllm.errors import advice, explained, out_of_memory_explained
from qdx.backends.vllm.first_runner import FirstRunnerTap
from qdx.backends.vllm.kernel_choice import (
    BY_LINEAR_BACKEND,
    BY_QUANTIZATION,
    Generation,
    generation,
    parsed,
    request,
)
from qdx.backends.vllm.kernels import (
    Layer,
    compiled_kernels,
    model_runner,
    normalized,
    on_worker,
    summary,
)
from qdx.backends.vllm.observed import of_workers, settings
from qdx.backends.vllm.second_runner import SecondRunnerTap
from qdx.backends.vllm.start import prepare_environment, require_runner
from qdx.backends.vllm.tap import ITEM, Seen, Spill, Tap, Wanted, joined
from qdx.errors import QdxError
from qdx.plugins import check, conf_dir
from qdx.schema import FORMAT_KERNELS, Quant, VllmOptions


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("0.11.2", BY_QUANTIZATION),
        ("0.20.2+cu130", BY_QUANTIZATION),
        ("0.21.5", BY_QUANTIZATION),
        ("0.22.0", BY_LINEAR_BACKEND),
        ("0.25.1", BY_LINEAR_BACKEND),
        ("0.33.1", BY_LINEAR_BACKEND),
    ],
)
def test_each_version_is_asked_as_its_generation_is(version: str, known: Generation) -> None:
    assert generation(version) is known


@pytest.mark.parametrize("version", ["0.10.0", "0.11.1", "0.34.0", "1.0"])
def test_a_version_of_no_generation_is_refused_with_one_that_is_known(version: str) -> None:
    with pytest.raises(QdxError, match=r"0\.11\.2 to 0\.33.*pip install vllm==0\.20\.2"):
        request("none", "dense", version)


def test_marlin_is_asked_for_by_disabling_what_hopper_prefers() -> None:
    asked = request("awq", "marlin", "0.20.2")
    assert asked.engine == {"quantization": "awq_marlin"}
    assert "MacheteLinearKernel" in asked.disabled
    machete = request("gptq", "machete", "0.20.2")
    assert machete.engine == {"quantization": "gptq_marlin"} and machete.disabled == ()


def test_machete_for_awq_in_the_first_version_says_that_it_runs_marlin_only() -> None:
    needs = "awq_marlin of vLLM 0.11 runs Marlin only"
    assert needs in request("awq", "machete", "0.11.2").remedy
    assert needs not in request("awq", "machete", "0.12.0").remedy
    assert needs not in request("gptq", "machete", "0.11.2").remedy


def test_the_old_kernels_are_asked_for_by_name() -> None:
    assert request("awq", "awq_gemm", "0.20.2").engine == {"quantization": "awq"}
    assert request("gptq", "exllama", "0.20.2").engine == {"quantization": "gptq"}


def test_the_new_generation_asks_by_linear_backend() -> None:
    asked = request("gptq", "exllama", "0.25.1")
    assert asked.engine == {"quantization": "gptq", "linear_backend": "exllama"}
    assert asked.disabled == ()


def test_awq_gemm_after_its_removal_says_which_versions_have_it() -> None:
    assert request("awq", "awq_gemm", "0.23").engine == {"quantization": "awq"}
    with pytest.raises(QdxError, match=r"vLLM 0\.25\.1 has no kernel awq_gemm.*0\.11\.2 to 0\.23"):
        request("awq", "awq_gemm", "0.25.1")


@pytest.mark.parametrize("known", [BY_QUANTIZATION, BY_LINEAR_BACKEND])
@pytest.mark.parametrize("form", FORMAT_KERNELS)
def test_every_kernel_of_the_schema_but_dense_and_any_says_what_it_needs(
    known: Generation, form: str
) -> None:
    for kernel in FORMAT_KERNELS[form]:
        asked = known.request(form, kernel, known.first)
        assert bool(asked.remedy) == (kernel not in ("dense", "any"))
        assert bool(asked.engine) == (kernel not in ("dense", "any"))


@pytest.mark.parametrize(
    ("method", "kernel", "name"),
    [
        ("UnquantizedLinearMethod", "", "dense"),
        ("AWQLinearMethod", "", "awq_gemm"),
        ("GPTQLinearMethod", "", "exllama"),
        ("AWQMarlinLinearMethod", "", "marlin"),
        ("AWQMarlinLinearMethod", "MacheteLinearKernel", "machete"),
        ("AutoGPTQLinearMethod", "ExllamaLinearKernel", "exllama"),
        ("GPTQMarlinLinearMethod", "MarlinLinearKernel", "marlin"),
        ("UnquantizedFusedMoEMethod", "TritonExperts", "dense"),
        ("AutoAWQMoEMethod", "MarlinExperts", "marlin"),
        ("SomethingNew", "", "SomethingNew"),
        ("GPTQMarlinLinearMethod", "SomethingNewKernel", "SomethingNewKernel"),
    ],
)
def test_classes_become_names_and_an_unknown_one_passes_for_no_other(
    method: str, kernel: str, name: str
) -> None:
    assert normalized(method, kernel) == name


class LinearBase(torch.nn.Module):
    """Named like vLLM's class, by which the observation goes."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.quant_method = method


def _method(name: str, kernel: str = "") -> Any:
    made = type(name, (), {})()
    if kernel:
        made.kernel = type(kernel, (), {})()
    return made


def test_every_layer_type_is_observed_once_and_embeddings_are_not() -> None:
    model = torch.nn.Module()
    for index in range(2):
        layer = torch.nn.Module()
        layer.qkv_proj = LinearBase(_method("AWQMarlinLinearMethod", "MacheteLinearKernel"))
        layer.embed = torch.nn.Module()
        layer.embed.quant_method = _method("UnquantizedEmbeddingMethod")
        setattr(model, f"layer_{index}", layer)
    model.lm_head = torch.nn.Module()
    model.lm_head.quant_method = _method("UnquantizedEmbeddingMethod")
    worker = SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model))
    assert on_worker(worker) == [
        Layer("lm_head", "UnquantizedEmbeddingMethod", ""),
        Layer("qkv_proj", "AWQMarlinLinearMethod", "MacheteLinearKernel"),
    ]
    assert on_worker(worker)[1].kernel_class == "AWQMarlinLinearMethod/MacheteLinearKernel"


def test_the_kernel_of_a_compressed_tensors_layer_is_its_schemes() -> None:
    model = torch.nn.Module()
    method = _method("CompressedTensorsLinearMethod")
    model.up_proj, model.down_proj = LinearBase(method), LinearBase(method)
    model.up_proj.scheme = _method("CompressedTensorsWNA16", "MarlinLinearKernel")
    model.down_proj.scheme = _method("CompressedTensorsW8A8Fp8")
    worker = SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model))
    assert [layer.kernel_class for layer in on_worker(worker)] == [
        "CompressedTensorsLinearMethod/CompressedTensorsW8A8Fp8",
        "CompressedTensorsLinearMethod/MarlinLinearKernel",
    ]


@pytest.mark.parametrize("place", ["kernel", "fp8_linear", "linear_kernel", "ocp_mx_linear"])
def test_the_kernel_is_found_where_a_method_or_its_scheme_keeps_it(place: str) -> None:
    model = torch.nn.Module()
    kernel = type("CutlassFP8ScaledMMLinearKernel", (), {})()
    model.up_proj, model.down_proj = (LinearBase(_method("Fp8LinearMethod")) for _ in range(2))
    setattr(model.up_proj.quant_method, place, kernel)
    model.down_proj.scheme = _method("CompressedTensorsW8A8Fp8")
    setattr(model.down_proj.scheme, place, kernel)
    worker = SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model))
    assert {layer.kernel for layer in on_worker(worker)} == {"CutlassFP8ScaledMMLinearKernel"}


def test_the_experts_of_a_mixture_are_a_layer_type_of_their_own() -> None:
    class RoutedExperts(torch.nn.Module): ...

    model = torch.nn.Module()
    model.experts, model.others = RoutedExperts(), RoutedExperts()
    called = type("MarlinExperts", (), {})()
    model.experts.quant_method = _method("AutoAWQMoEMethod")
    model.experts.quant_method.moe_kernel = SimpleNamespace(impl=SimpleNamespace(fused_experts=called))
    model.others.quant_method = _method("Fp8MoEMethod")
    model.others.quant_method.experts_cls = type("TritonExperts", (), {})  # not built yet
    worker = SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model))
    assert on_worker(worker) == [
        Layer("experts", "AutoAWQMoEMethod", "MarlinExperts"),
        Layer("experts", "Fp8MoEMethod", "TritonExperts"),
    ]


def test_the_model_runner_is_named_by_where_its_class_lives() -> None:
    def worker(module: str, *bases: type) -> SimpleNamespace:
        return SimpleNamespace(model_runner=type("GPUModelRunner", bases, {"__module__": module})())

    first = type(worker("vllm.v1.worker.gpu_model_runner").model_runner)
    assert model_runner(worker("vllm.v1.worker.gpu_model_runner")) == "v1"
    assert model_runner(worker("vllm.v1.worker.cpu_model_runner", first)) == "v1"
    assert model_runner(worker("vllm.v1.worker.gpu.model_runner")) == "v2"
    assert model_runner(worker("elsewhere")) == "elsewhere.GPUModelRunner"


def test_what_compiling_chose_is_found_in_a_frozen_heap_and_a_kernel_that_has_not_run_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gc

    class CachingAutotuner:
        def __init__(self, name: str, blocks: list[int], warps: int = 2) -> None:
            self.inductor_meta = {"kernel_name": name}
            self.launchers = [
                SimpleNamespace(
                    config=SimpleNamespace(kwargs={"XBLOCK": block}, num_warps=warps, num_stages=1)
                )
                for block in blocks
            ]

    module = ModuleType("heuristics")
    module.CachingAutotuner = CachingAutotuner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch._inductor.runtime.triton_heuristics", module)
    alive = [
        CachingAutotuner("norm", [8]),
        CachingAutotuner("mul", [512], 4),
        CachingAutotuner("new", [1, 8]),
    ]
    gc.freeze()
    try:
        found = compiled_kernels(SimpleNamespace())
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
    assert found == ["mul: XBLOCK 512, 4 warps, 1 stages", "norm: XBLOCK 8, 2 warps, 1 stages"]
    assert summary(found).startswith("2 kernels, sha256 ") and summary(found) != summary(found[:1])
    assert summary([]) == "" and len(alive) == 3


def test_eager_mode_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._inductor.runtime.triton_heuristics", raising=False)
    assert compiled_kernels(SimpleNamespace()) == []


def test_workers_that_differ_are_stated_beside_each_other() -> None:
    one, other = {"cublas_version": "13.1.0", "blas": ""}, {"cublas_version": "12.8.4", "blas": ""}
    assert of_workers([one, one]) == one
    assert of_workers([one, other]) == {"cublas_version": "12.8.4 | 13.1.0", "blas": ""}


def _facts(**kernels: str) -> Facts:
    return Facts(
        kernels,
        kernels,
        frozenset(kernels),
        "float16",
        8,
        "vllm",
        "0.20.2",
        remedy="Machete needs capability 9.0",
    )


def test_a_kernel_other_than_asked_names_both_and_the_remedy() -> None:
    facts = _facts(qkv_proj="marlin", o_proj="machete")
    with pytest.raises(QdxError, match=r"kernel machete, vllm loaded qkv_proj: marlin \(Machete needs"):
        require(Quant("awq_machete", "awq", "machete"), facts)


def test_any_accepts_what_was_loaded() -> None:
    require(Quant("awq", "awq", "any"), _facts(qkv_proj="marlin", o_proj="machete"))


def _head(dtype: torch.dtype) -> Any:
    """An output head whose logits name their hidden state."""
    return SimpleNamespace(compute_logits=lambda hidden: (hidden[:, :1] * torch.ones(1, 4)).to(dtype))


class FirstRunner:
    """As much of vLLM's first model runner as its tap reads."""

    tap = FirstRunnerTap

    def __init__(self, prompts: list[int], done: list[int], scheduled: list[int], dtype: torch.dtype) -> None:
        names = [f"r{i}" for i in range(len(prompts))]
        self.requests = {
            name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args={ITEM: i}))
            for i, name in enumerate(names)
        }
        self.input_batch = SimpleNamespace(
            num_reqs=len(prompts),
            req_ids=names,
            num_computed_tokens_cpu=np.array(done),
            num_prompt_tokens=np.array(prompts),
        )
        self.query_start_loc = SimpleNamespace(np=np.r_[0, np.cumsum(scheduled), 99, 99])
        self.scheduled = dict(zip(names, scheduled, strict=True))
        self.model = _head(dtype)
        self.prompt_calls = 0

    def get_model(self) -> Any:
        return self.model

    def _get_prompt_logprobs_dict(self, hidden: Any, scheduled: Any) -> dict[str, Any]:
        self.prompt_calls += 1
        return {}

    def consumed(self, count: int) -> None:
        """Say how many tokens every request has consumed before the next step."""
        self.input_batch.num_computed_tokens_cpu[:] = count

    def step(self) -> torch.Tensor:
        """Run one step as vLLM does: sampled rows first, then the prompts' rows."""
        total = sum(self.scheduled.values())
        hidden = torch.arange(total, dtype=torch.float32)[:, None]
        ends = self.query_start_loc.np[1 : len(self.scheduled) + 1] - 1
        logits: torch.Tensor = self.model.compute_logits(hidden[torch.as_tensor(ends)])
        self._get_prompt_logprobs_dict(hidden, self.scheduled)
        return logits


class SecondRunner:
    """As much of vLLM's second model runner as its tap reads; slots of requests are not in their order."""

    tap = SecondRunnerTap

    def __init__(self, prompts: list[int], done: list[int], scheduled: list[int], dtype: torch.dtype) -> None:
        count = len(prompts)
        slots = np.arange(count)[::-1] + 2
        lengths = np.zeros(count + 2, np.int32)
        lengths[slots] = prompts
        starts = np.r_[0, np.cumsum(scheduled), 99, 99].astype(np.int32)
        self.req_states = SimpleNamespace(prompt_len=SimpleNamespace(np=lengths))
        self.batch = SimpleNamespace(
            num_reqs=count,
            req_ids=[f"r{i}" for i in range(count)],
            idx_mapping_np=slots,
            query_start_loc_np=starts,
            num_computed_tokens_np=np.array(done, np.int32),
            num_scheduled_tokens=np.array(scheduled, np.int32),
            prefill_len_np=np.array(prompts, np.int32),
            logits_indices=torch.as_tensor(starts[1 : count + 1] - 1).long(),
        )
        self.model = _head(dtype)
        self.sampler = self.sampled
        self.new = True

    def get_model(self) -> Any:
        return self.model

    def sampled(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return logits

    def add_requests(self, scheduler_output: Any) -> None:
        self.new = False

    def local(self, batch: Any) -> Any:
        """The share of the batch that this worker samples."""
        return batch

    def sample(self, hidden: torch.Tensor, batch: Any, grammar: Any) -> torch.Tensor:
        own = self.local(batch)
        logits: torch.Tensor = self.sampler(self.model.compute_logits(hidden[own.logits_indices]), own)
        return logits

    def consumed(self, count: int) -> None:
        self.batch.num_computed_tokens_np[:] = count

    def step(self) -> torch.Tensor:
        """Run one step as vLLM does, the requests' parameters first."""
        if self.new:
            new = [
                SimpleNamespace(req_id=f"r{i}", sampling_params=SimpleNamespace(extra_args={ITEM: i}))
                for i in range(self.batch.num_reqs)
            ]
            self.add_requests(SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set()))
        hidden = torch.arange(int(self.batch.num_scheduled_tokens.sum()), dtype=torch.float32)[:, None]
        return self.sample(hidden, self.batch, None)


RUNNERS = pytest.mark.parametrize("runner_class", [FirstRunner, SecondRunner])


def _seen(tap: Tap) -> dict[tuple[int, int], float]:
    found = {}
    for part in tap.drain():
        for item, position, row in zip(part.items, part.positions, part.logits_PV, strict=True):
            assert (item, position) not in found
            found[int(item), int(position)] = float(row[0])
    return found


def _wanted(*positions: list[int], **more: Any) -> Wanted:
    return Wanted([np.array(one, np.int32) for one in positions], **more)


@RUNNERS
def test_the_tap_picks_wanted_prompt_rows_and_the_first_output(runner_class: Any) -> None:
    runner = runner_class(prompts=[5, 3], done=[0, 0], scheduled=[5, 3], dtype=torch.float16)
    tap = runner_class.tap(runner)
    tap.open(_wanted([2, 4], [1]))
    runner.step()
    # Hidden states are numbered through the batch: item 0 has 0…4, item 1 has 5…7.
    assert _seen(tap) == {(0, 5): 4.0, (1, 3): 7.0, (0, 2): 1.0, (0, 4): 3.0, (1, 1): 5.0}
    assert runner_class is SecondRunner or runner.prompt_calls == 1  # vLLM's own prompt log-probabilities


@RUNNERS
def test_a_chunk_of_a_prompt_gives_its_rows_with_their_hidden_states_and_no_output(runner_class: Any) -> None:
    runner = runner_class(prompts=[6, 3], done=[2, 4], scheduled=[3, 1], dtype=torch.float16)
    tap = runner_class.tap(runner)
    tap.open(_wanted([1, 3, 5], [1], hidden=True))
    runner.step()
    rows = {}
    for part in tap.drain():
        assert part.hidden_PH is not None
        for item, position, logit, hidden in zip(
            part.items, part.positions, part.logits_PV, part.hidden_PH, strict=True
        ):
            rows[int(item), int(position)] = (float(logit[0]), float(hidden[0]))
    # Item 0 consumes tokens 2, 3, 4: rows 3 and 5 of the wanted ones; item 1 decodes and predicts position 5.
    assert rows == {(0, 3): (0.0, 0.0), (0, 5): (2.0, 2.0), (1, 5): (3.0, 3.0)}


@RUNNERS
def test_float32_rows_are_kept_apart_from_what_the_sampler_changes(runner_class: Any) -> None:
    runner = runner_class(prompts=[2], done=[0], scheduled=[2], dtype=torch.float32)
    tap = runner_class.tap(runner)
    tap.open(_wanted([]))
    runner.step().fill_(-1.0)
    assert _seen(tap) == {(0, 2): 1.0}


@RUNNERS
def test_a_closed_tap_keeps_nothing_and_neither_does_one_that_wants_no_rows(runner_class: Any) -> None:
    runner = runner_class(prompts=[2], done=[0], scheduled=[2], dtype=torch.float16)
    tap = runner_class.tap(runner)
    runner.step()
    assert tap.drain() == []
    tap.open(_wanted([1], rows=False))
    runner.step()
    assert tap.drain() == []


@RUNNERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_sampler_gets_the_forced_token_and_the_record_the_models_row(
    dtype: torch.dtype, runner_class: Any
) -> None:
    # Item 0 is at its second output, item 1 amid its prompt, item 2 has no forced token left.
    runner = runner_class(prompts=[3, 9, 2], done=[3, 0, 3], scheduled=[1, 4, 1], dtype=dtype)
    tap = runner_class.tap(runner)
    tap.open(_wanted([], [], [], forced=[[0, 2], [1, 1], [3, 3]]))
    logits = runner.step()
    assert logits[0].tolist() == [-torch.inf, -torch.inf, 0.0, -torch.inf]
    assert logits[1].tolist() == [4.0] * 4 and logits[2].tolist() == [5.0] * 4
    assert _seen(tap) == {(0, 4): 0.0, (2, 4): 5.0}


@RUNNERS
def test_a_reference_that_the_engine_begins_again_ends_the_run(runner_class: Any) -> None:
    runner = runner_class(prompts=[3], done=[3], scheduled=[1], dtype=torch.float16)
    tap = runner_class.tap(runner)
    tap.open(_wanted([]))
    runner.step()
    with pytest.raises(QdxError, match=r"reference 0 .* position 4: lower batch_size"):
        runner.step()


@RUNNERS
def test_rows_beyond_the_budget_come_back_in_order(
    monkeypatch: pytest.MonkeyPatch, runner_class: Any
) -> None:
    monkeypatch.setattr(tapping, "ON_DEVICE", 9)  # one row of four fp16 numbers stays where it is
    runner = runner_class(prompts=[1], done=[0], scheduled=[1], dtype=torch.float16)
    numbers = iter(range(7))
    runner.model.compute_logits = lambda hidden: torch.full((1, 4), next(numbers), dtype=torch.float16)
    tap = runner_class.tap(runner)
    tap.open(_wanted([]))
    for step in range(7):
        runner.consumed(step)
        runner.step()
    assert _seen(tap) == {(0, step + 1): float(step) for step in range(7)}


@RUNNERS
def test_a_reference_whose_output_is_consumed_again_as_prompt_ends_the_run(runner_class: Any) -> None:
    # Three prompt tokens and the two that came after them in one step: its row is not a decode row.
    runner = runner_class(prompts=[3], done=[0], scheduled=[5], dtype=torch.float16)
    tap = runner_class.tap(runner)
    tap.open(_wanted([]))
    with pytest.raises(QdxError, match=r"reference 0 .* position 5: lower batch_size"):
        runner.step()


def test_the_second_runners_output_as_prompt_ends_the_run_whatever_its_steps() -> None:
    runner = SecondRunner(prompts=[3], done=[4], scheduled=[1], dtype=torch.float16)
    runner.batch.prefill_len_np[:] = 5
    tap = SecondRunnerTap(runner)
    tap.open(_wanted([]))
    with pytest.raises(QdxError, match=r"reference 0 .* position 5: lower batch_size"):
        runner.step()


def test_a_worker_that_samples_a_share_of_the_requests_keeps_their_rows_and_workers_are_joined() -> None:
    class Sharded(SecondRunner):
        def __init__(self, own: list[int]) -> None:
            super().__init__(prompts=[2, 4, 3], done=[0, 0, 3], scheduled=[2, 4, 1], dtype=torch.float16)
            self.own = own

        def local(self, batch: Any) -> Any:
            """What vLLM's BatchSharder leaves as it was are the whole batch's numbers of tokens."""
            names = [batch.req_ids[i] for i in self.own]
            return SimpleNamespace(
                **{**vars(batch), "req_ids": names, "num_reqs": len(names)}
                | {"logits_indices": batch.logits_indices[self.own]}
            )

    workers = []
    for own in ([2, 0], [1]):
        runner = Sharded(own)
        tap = SecondRunnerTap(runner)
        tap.open(_wanted([1], [2], [], hidden=True))
        runner.step()
        workers.append(tap.drain())
    assert {tuple(zip(p.items.tolist(), p.positions.tolist(), strict=True)) for p in workers[0]} == {
        ((2, 4), (0, 2)),
        ((0, 1),),
        ((1, 2),),
    }
    rows = {}
    for part in joined(workers):
        assert part.hidden_PH is not None
        for item, position, logits, hidden in zip(
            part.items, part.positions, part.logits_PV, part.hidden_PH, strict=True
        ):
            assert (item, position) not in rows and float(logits[0]) == float(hidden[0])
            rows[int(item), int(position)] = float(logits[0])
    # Hidden states are numbered through the batch: item 0 has 0 and 1, item 1 has 2…5, item 2 has 6.
    assert rows == {(0, 2): 1.0, (2, 4): 6.0, (1, 4): 5.0, (0, 1): 0.0, (1, 2): 3.0}


def test_workers_that_all_have_all_rows_give_each_once() -> None:
    rows = Seen(np.array([0, 1], np.int32), np.array([3, 3], np.int32), torch.tensor([[1.0], [2.0]]))
    assert joined([[], [rows], [rows]]) == [rows]
    other = rows._replace(positions=np.array([3, 4], np.int32))
    assert [part.logits_PV.tolist() for part in joined([[rows], [other]])] == [[[1.0], [2.0]], [[2.0]]]


def test_a_second_runner_that_is_built_otherwise_is_refused() -> None:
    runner = SecondRunner(prompts=[3], done=[0], scheduled=[3], dtype=torch.float16)
    del runner.sampler
    with pytest.raises(QdxError, match=r"has no sampler, .*set backend\.model_runner=v1"):
        SecondRunnerTap(runner)


def test_the_second_runners_sampler_is_still_the_engines() -> None:
    class Sampler:
        penalties_state = "penalties"

        def __call__(self, logits: Any, batch: Any) -> Any:
            return logits

    runner: Any = SecondRunner(prompts=[3], done=[0], scheduled=[3], dtype=torch.float16)
    runner.sampler = Sampler()
    SecondRunnerTap(runner)
    assert runner.sampler.penalties_state == "penalties"
    assert not hasattr(runner.sampler, "rejections")


def test_buffers_that_take_turns_lose_no_row_and_mix_none() -> None:
    spill = Spill()
    given = [torch.randn(size, 5) for size in (3, 1, 7, 2, 2, 7, 1, 4, 1)]
    expected = [rows.clone() for rows in given]
    kept = []
    for rows in given:
        kept.append(spill.put(rows))
        rows.fill_(torch.nan)  # the engine uses its memory again
    spill.settle()
    assert all(torch.equal(one, two) for one, two in zip(kept, expected, strict=True))


def test_settings_are_the_engines_not_what_was_asked() -> None:
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=2048, enforce_eager=True),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=512, max_num_seqs=4, async_scheduling=True),
        cache_config=SimpleNamespace(gpu_memory_utilization=0.5, cache_dtype="fp8"),
        parallel_config=SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=1),
    )
    found = settings(config, "FLASH_ATTN", "v2", {"batch_invariant": True})
    assert found["batch_invariant"] == "True"
    assert found["attention_backend"] == "FLASH_ATTN" and found["kv_cache_dtype"] == "fp8"
    assert found["max_model_len"] == "2048" and found["async_scheduling"] == "True"
    assert found["model_runner"] == "v2" and found["trace_replay"] == "False"


def test_every_option_is_in_the_yaml_with_its_default_and_reaches_the_engine_in_one_way() -> None:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "backend" / "vllm.yaml"))
    assert isinstance(node, dict)
    options = {f.name: f for f in fields(VllmOptions)}
    assert {key: value for key, value in node.items() if key not in ("_target_", "name")} == {
        name: option.default for name, option in options.items()
    }
    ways: dict[str, set[str]] = {"argument": set(), "variable": set(), "otherwise": set()}
    for name, option in options.items():
        argument, variable = option.metadata["argument"], option.metadata["variable"]
        ways["argument" if argument else "variable" if variable else "otherwise"].add(name)
        assert not (argument and variable)
    assert ways["variable"] == {"batch_invariant", "marlin_atomic_add"}
    assert ways["otherwise"] == {
        "attention_backend",
        "chunked_prefill",
        "companions",
        "model_runner",
        "replay",
        "trace_replay",
    }


@pytest.mark.parametrize("said", ["500,90", "0", "5+", "+5", "5@", "5@2", "5@-1", "x", "5 + 6"])
def test_companions_that_mean_nothing_are_refused(said: str) -> None:
    with pytest.raises(QdxError, match=re.escape(f"backend.companions={said}: ")):
        VllmOptions(companions=said)


def test_companions_are_lengths_and_the_place_of_the_references_among_them() -> None:
    assert VllmOptions().company == ((), 0)
    assert VllmOptions(companions="500").company == ((500,), 0)
    assert VllmOptions(companions="500+90+233@3").company == ((500, 90, 233), 3)


def test_an_option_that_the_backend_does_not_have_is_refused_with_the_nearest_one() -> None:
    node = {"_target_": "qdx.backends.vllm.VllmBackend", "name": "vllm", "max_num_seq": 3}
    with pytest.raises(QdxError, match=r"backend\.max_num_seq: unknown option.*max_num_seqs"):
        check("backend", "vllm", node)
    with pytest.raises(QdxError, match=r"backend\.enforce_eager=5: must be a bool"):
        check("backend", "vllm", {"_target_": node["_target_"], "name": "vllm", "enforce_eager": 5})


def test_a_full_gpu_amid_a_capture_is_one_line_and_a_broken_contract_is_not() -> None:
    with (
        pytest.raises(QdxError, match=r"deriving: .*out of memory.*capture\.prefill_positions"),
        out_of_memory_explained("deriving"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(ValueError, match="nobody asked for"), out_of_memory_explained("deriving"):
        raise ValueError("rows nobody asked for")


class Echo:
    """A one-pass backend of known rows: their value is the position, plus noise in a replay."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def prefill_generate(self, batch: Any, count: int, recorder: Any, begin: Any) -> list[list[int]]:
        for phase, first, last in (("prefill", 0, 1), ("decode", 1, count)):
            begin(phase)
            self._hand(batch, first, last, recorder, 0.0)
        return [[9] * count for _ in batch]

    def replay(self, batch: Any, forced: Any, recorder: Any) -> None:
        self._hand(batch, 1, len(forced[0]), recorder, self.noise)

    @staticmethod
    def _hand(batch: Any, first: int, last: int, recorder: Any, noise: float) -> None:
        for item, ids in enumerate(batch):
            positions = np.arange(len(ids) + first, len(ids) + last)
            rows = torch.as_tensor(positions, dtype=torch.float32)[:, None].expand(-1, 4) + noise
            recorder.rows(item, positions, rows.half(), None)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_self_check_is_true_only_when_replay_gives_the_same_bits(noise: float) -> None:
    backend: Any = Echo(noise)
    assert isinstance(backend, OnePass)
    heard = Listener([3, 2])
    batch = [[1, 2, 3], [1, 2]]
    generated = backend.prefill_generate(batch, 4, heard, lambda phase: None)
    assert sorted(heard.decoded) == [(0, 4), (0, 5), (0, 6), (1, 3), (1, 4), (1, 5)]
    assert replays_exactly(backend, batch, generated, heard) == (noise == 0.0)


def test_the_self_check_hears_the_generation_and_not_the_replay_of_the_shared_continuation() -> None:
    from qdx.flow import Flow

    backend: Any = Echo()
    length = 3
    begun: list[str] = []
    recorder = SimpleNamespace(
        begin=lambda phase, *_: begun.append(phase), rows=lambda *_: None, wanted=lambda item: np.array([3])
    )
    listener: Any = Listener([length], recorder)  # type: ignore[arg-type]
    backend.noise = 2.0  # the shared continuation's rows are others
    prompt = SimpleNamespace(token_ids=np.arange(length), continuation=np.arange(4))
    experiment: Any = SimpleNamespace(generate=SimpleNamespace(tokens=4))
    nothing: Any = None
    flow = Flow(backend, nothing, experiment, [prompt], nothing)  # type: ignore[list-item]
    generated = flow._run_batch(listener, 0, [0])
    backend.noise = 0.0
    assert begun == ["prefill", "decode", "replay"]
    assert replays_exactly(backend, [[0, 1, 2]], generated, listener)


def _checked(longest: int, count: int, batch: int, chunked: bool = False) -> None:
    backend = VllmBackend.__new__(VllmBackend)
    backend._options = VllmOptions(max_num_batched_tokens=100, max_num_seqs=4, chunked_prefill=chunked)
    backend._max_len = 120
    backend._check([[1] * longest] * batch, count)


def test_a_batch_that_does_not_fit_a_step_is_refused_with_the_number_to_set() -> None:
    _checked(25, 16, 4)
    with pytest.raises(QdxError, match=r"101 tokens, backend.max_num_batched_tokens is 100.*raise it to 101"):
        _checked(101, 16, 1)
    with pytest.raises(QdxError, match=r"4 references of a batch have 104 tokens.*raise it to 104"):
        _checked(26, 16, 4)
    _checked(101, 16, 4, chunked=True)
    with pytest.raises(QdxError, match=r"do not fit backend.max_model_len 120"):
        _checked(100, 21, 1)
    with pytest.raises(QdxError, match=r"batch_size=5 is more than backend.max_num_seqs=4"):
        _checked(10, 2, 5)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 GiB", "lower backend.max_model_len"),
        ("No available memory for the cache blocks", "raise backend.kv_cache_memory_bytes"),
        ("torch.bfloat16 is not supported for quantization method awq", "model.dtype=float16"),
        # 0.20.2 with kv_cache_dtype=fp8 and float16, on an H100
        (
            "For FP16/BF16 input, output must have the same dtype as inputs. For FP8 input, output must have "
            "dtype BF16",
            "model.dtype=bfloat16",
        ),
        ("Failed to find a kernel that can implement the WNA16 linear layer", "quant.kernel=any"),
        ("Failed to infer device type", "backend=transformers"),
    ],
)
def test_what_the_engine_says_comes_with_what_to_change(said: str, remedy: str) -> None:
    with pytest.raises(QdxError, match="loading") as caught, explained("loading"):
        raise ValueError(said)
    assert said in str(caught.value) and remedy in str(caught.value)
    assert advice(ValueError("something else")) == ""


@pytest.mark.parametrize(("cuda", "there"), [(True, 0), (True, 1), (False, 0)])
def test_an_engine_for_cuda_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, there: int
) -> None:
    platform = ModuleType("vllm.platforms")
    platform.current_platform = SimpleNamespace(is_cuda=lambda: cuda)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platform)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if there or not cuda:
        return start._require_device("0.20.2")
    with pytest.raises(QdxError, match=r"CUDA_VISIBLE_DEVICES=''.*backend=transformers"):
        start._require_device("0.20.2")


def test_kernels_that_the_user_disabled_stay_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_FLASHINFER_SAMPLER"):
        monkeypatch.setenv(name, "1")
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "ConchLinearKernel")
    start._disabled_by_user.cache_clear()
    prepare_environment(("MacheteLinearKernel", "ConchLinearKernel"), VllmOptions())
    assert os.environ["VLLM_DISABLED_KERNELS"] == "ConchLinearKernel,MacheteLinearKernel"
    prepare_environment((), VllmOptions())  # the next engine of this process: what the first one had is over
    assert os.environ["VLLM_DISABLED_KERNELS"] == "ConchLinearKernel"
    start._disabled_by_user.cache_clear()
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


@pytest.mark.parametrize("own", [None, "0"])
def test_the_model_runner_is_vllms_choice_or_the_users_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    import os

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    for name in (*start.ENVIRONMENT, "VLLM_DISABLED_KERNELS"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv(start.RUNNER, raising=False)
    if own is not None:
        monkeypatch.setenv(start.RUNNER, own)
    start._of_user.cache_clear()
    for runner, variable in (("auto", own), ("v2", "1"), ("v1", "0"), ("auto", own)):
        prepare_environment((), VllmOptions(model_runner=runner))
        assert os.environ.get(start.RUNNER) == variable
    start._of_user.cache_clear()
    monkeypatch.delenv(start.RUNNER, raising=False)


@pytest.mark.parametrize("own", [None, "1"])
def test_a_switch_is_set_unset_or_left_as_the_user_has_it(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    import os

    variable = start.SWITCHES["batch_invariant"]
    for name in (*start.ENVIRONMENT, "VLLM_DISABLED_KERNELS", "VLLM_LOGGING_LEVEL", start.RUNNER):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv(variable, own or "0")
    if own is None:
        monkeypatch.delenv(variable)
    start._of_user.cache_clear()
    for wanted, value in ((None, own), (True, "1"), (False, None), (None, own)):
        prepare_environment((), VllmOptions(batch_invariant=wanted))
        assert os.environ.get(variable) == value
    start._of_user.cache_clear()


def test_a_switch_that_this_version_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = ModuleType("vllm")
    vllm.envs = SimpleNamespace(environment_variables={"VLLM_BATCH_INVARIANT": None})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    start._require_switches("0.12.0", VllmOptions(batch_invariant=True))
    with pytest.raises(QdxError, match=r"marlin_atomic_add=true: vLLM 0\.12\.0 does not know VLLM_MARLIN"):
        start._require_switches("0.12.0", VllmOptions(marlin_atomic_add=True))


def test_a_model_runner_other_than_asked_names_both() -> None:
    require_runner("0.33.0", "auto", "v2")
    require_runner("0.33.0", "v1", "v1")
    with pytest.raises(QdxError, match=r"backend\.model_runner=v2: vLLM 0\.20\.2 runs v1 here"):
        require_runner("0.20.2", "v2", "v1")


@pytest.mark.parametrize(
    ("wanted", "version_has_it", "second", "calls"),
    [
        (None, True, True, [True]),
        (None, True, False, [True, False]),
        (None, False, False, [False]),
        (False, True, True, [False]),
        (True, True, True, [True]),
    ],
)
def test_the_engine_replays_by_itself_where_it_can(
    wanted: bool | None, version_has_it: bool, second: bool, calls: list[bool]
) -> None:
    made = []

    def make(enable_trace_replay: bool = False, **_: Any) -> str:
        made.append(enable_trace_replay)
        if enable_trace_replay and not second:
            raise ValueError("1 validation error: trace replay requires Model Runner V2 [type=value_error]")
        return "engine"

    known = {"enable_trace_replay"} if version_has_it else set()
    assert start._with_trace_replay(make, {}, "0.33.0", wanted, known) == "engine"
    assert made == calls


def test_a_trace_replay_that_was_asked_for_and_cannot_be_had_is_an_error() -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("trace replay requires Model Runner V2")

    def fail(**_: Any) -> None:
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="requires Model Runner V2"):
        start._with_trace_replay(refuse, {}, "0.33.0", True, {"enable_trace_replay"})
    with pytest.raises(ValueError, match="no memory"):
        start._with_trace_replay(fail, {}, "0.33.0", None, {"enable_trace_replay"})
    with pytest.raises(QdxError, match=r"vLLM 0\.20\.2 has no trace replay .*backend\.trace_replay=null"):
        start._with_trace_replay(fail, {}, "0.20.2", True, set())


def test_numbers_of_a_version_end_at_its_first_letter() -> None:
    assert parsed("0.20.2rc1.dev3+g1") == (0, 20, 2)


def test_a_run_of_another_vllm_would_be_kept_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    from qdx.backends import identity
    from qdx.backends.vllm import backend, kernel_choice

    node = {"_target_": "qdx.backends.vllm.VllmBackend", "enforce_eager": True}
    monkeypatch.setattr(backend, "gpus", lambda: 1)
    found = []
    for version in ("0.20.2", "0.25.1"):
        monkeypatch.setattr(kernel_choice, "installed_version", lambda version=version: version)
        found.append(identity(node))
    assert found == [{"engine_version": "0.20.2"}, {"engine_version": "0.25.1"}]
    monkeypatch.setattr(backend, "gpus", lambda: 0)
    for threads in ("1", "2"):  # of a CPU they decide where sums are split
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert identity(node)["threads"] == threads


def test_a_numerical_model_runs_eagerly_and_in_one_process() -> None:
    simulated.require(True, 1)
    with pytest.raises(QdxError, match=r"backend\.enforce_eager=false: .*: set backend\.enforce_eager=true"):
        simulated.require(False, 1)
    with pytest.raises(QdxError, match=r"2 workers: .*set backend\.tensor_parallel_size=1"):
        simulated.require(True, 2)
    assert simulated.normalized("MarlinModel") == "model:marlin"
    assert simulated.normalized("MarlinLinearKernel") == ""


def test_four_bits_of_a_word_come_back_in_order() -> None:
    values = torch.arange(16, dtype=torch.int32).reshape(16, 1).repeat(1, 3)
    words = torch.zeros(2, 3, dtype=torch.int32)
    for k in range(16):
        words[k // 8] |= values[k] << (4 * (k % 8))
    assert torch.equal(simulated._unpacked(words), values.to(torch.uint8))
