"""The parts of the vllm backend that need no vLLM: adapters, arguments, names, tokens, errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qdx.backends import Facts, OnePass, require
from qdx.backends.selfcheck import Listener, replays_exactly
from qdx.backends.vllm import VllmBackend, by_backend, by_name
from qdx.backends.vllm.backend import advice, explained, prepare_environment
from qdx.backends.vllm.kernels import Layer, normalized, on_worker
from qdx.backends.vllm.pinning import FORCED, ITEM, Pins
from qdx.backends.vllm.tap import Tap
from qdx.backends.vllm.versions import adapter, parsed
from qdx.errors import QdxError
from qdx.schema import FORMAT_KERNELS, Quant


@pytest.mark.parametrize(
    ("version", "module"),
    [
        ("0.11.2", by_name),
        ("0.20.2+cu130", by_name),
        ("0.21.5", by_name),
        ("0.22.0", by_backend),
        ("0.25.1", by_backend),
        ("0.33.1", by_backend),
    ],
)
def test_each_version_gets_the_adapter_of_its_generation(version: str, module: Any) -> None:
    assert adapter(version) is module


@pytest.mark.parametrize("version", ["0.10.0", "0.11.1", "0.34.0", "1.0"])
def test_a_version_that_no_adapter_knows_is_refused_with_one_that_is(version: str) -> None:
    with pytest.raises(QdxError, match=r"0\.11\.2 to 0\.33.*pip install vllm==0\.20\.2"):
        adapter(version)


def test_marlin_is_asked_for_by_disabling_what_hopper_prefers() -> None:
    request = by_name.request("awq", "marlin", (0, 20, 2))
    assert request.engine == {"quantization": "awq_marlin"}
    assert "MacheteLinearKernel" in request.disabled
    assert by_name.request("gptq", "machete", (0, 20, 2)).disabled == ()


def test_the_old_kernels_are_asked_for_by_name() -> None:
    assert by_name.request("awq", "awq_gemm", (0, 20, 2)).engine == {"quantization": "awq"}
    assert by_name.request("gptq", "exllama", (0, 20, 2)).engine == {"quantization": "gptq"}


def test_the_new_generation_asks_by_linear_backend() -> None:
    request = by_backend.request("gptq", "exllama", (0, 25, 1))
    assert request.engine == {"quantization": "gptq", "linear_backend": "exllama"}


def test_awq_gemm_after_its_removal_says_which_versions_have_it() -> None:
    assert by_backend.request("awq", "awq_gemm", (0, 23)).engine == {"quantization": "awq"}
    with pytest.raises(QdxError, match=r"vLLM 0\.25\.1 has no kernel awq_gemm.*0\.11\.2 to 0\.23"):
        by_backend.request("awq", "awq_gemm", (0, 25, 1))


@pytest.mark.parametrize("module", [by_name, by_backend])
@pytest.mark.parametrize("form", FORMAT_KERNELS)
def test_every_kernel_of_the_schema_but_dense_and_any_says_what_it_needs(module: Any, form: str) -> None:
    for kernel in FORMAT_KERNELS[form]:
        request = module.request(form, kernel, module.FIRST)
        assert bool(request.remedy) == (kernel not in ("dense", "any"))
        assert bool(request.engine) == (kernel not in ("dense", "any"))


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


def _added(row: int, forced: list[int] | None, output: list[int]) -> tuple[int, Any, None, list[int]]:
    extra = None if forced is None else {FORCED: forced}
    return row, SimpleNamespace(extra_args=extra), None, output


def test_pins_follow_rows_that_come_move_swap_and_leave() -> None:
    pins, outputs = Pins(), [[] for _ in range(3)]
    added = [_added(0, [5, 6], outputs[0]), _added(1, None, outputs[1]), _added(2, [7, 8, 9], outputs[2])]
    pins.update([], added, [], bool)
    assert pins.now() == {0: 5, 2: 7}
    outputs[0].append(5), outputs[2].append(7)
    pins.update([], [], [(0, 2, True)], bool)  # swap
    assert pins.now() == {0: 8, 2: 6}
    pins.update([2], [], [(0, 1, False)], bool)  # row 2 leaves, row 0 moves to 1
    assert pins.now() == {1: 8}
    outputs[2] += [8, 9]
    assert pins.now() == {}
    pins.update([], [_added(1, None, [])], [], bool)
    outputs[2].clear()
    assert pins.now() == {}, "a request that replaces a pinned one is not pinned"


class Runner:
    """As much of vLLM's model runner as the tap reads; logits name their hidden state."""

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
        self.model = SimpleNamespace(
            compute_logits=lambda hidden: (hidden[:, :1] * torch.ones(1, 4)).to(dtype)
        )
        self.prompt_calls = 0

    def get_model(self) -> Any:
        return self.model

    def _get_prompt_logprobs_dict(self, hidden: Any, scheduled: Any) -> dict[str, Any]:
        self.prompt_calls += 1
        return {}

    def step(self) -> torch.Tensor:
        """Run one step as vLLM does: sampled rows first, then the prompts' rows."""
        total = sum(self.scheduled.values())
        hidden = torch.arange(total, dtype=torch.float32)[:, None]
        ends = self.query_start_loc.np[1 : len(self.scheduled) + 1] - 1
        logits: torch.Tensor = self.model.compute_logits(hidden[torch.as_tensor(ends)])
        self._get_prompt_logprobs_dict(hidden, self.scheduled)
        return logits


def _seen(tap: Tap) -> dict[tuple[int, int], float]:
    found = {}
    for part in tap.drain():
        for item, position, row in zip(part.items, part.positions, part.logits_PV, strict=True):
            assert (item, position) not in found
            found[int(item), int(position)] = float(row[0])
    return found


def test_the_tap_picks_wanted_prompt_rows_and_the_first_output() -> None:
    runner = Runner(prompts=[5, 3], done=[0, 0], scheduled=[5, 3], dtype=torch.float16)
    tap = Tap(runner)
    tap.open([np.array([2, 4], np.int32), np.array([1], np.int32)])
    runner.step()
    # Hidden states are numbered through the batch: item 0 has 0…4, item 1 has 5…7.
    assert _seen(tap) == {(0, 5): 4.0, (1, 3): 7.0, (0, 2): 1.0, (0, 4): 3.0, (1, 1): 5.0}
    assert runner.prompt_calls == 1


def test_a_chunk_of_a_prompt_gives_its_rows_and_no_output() -> None:
    runner = Runner(prompts=[6, 3], done=[2, 4], scheduled=[3, 1], dtype=torch.float16)
    tap = Tap(runner)
    tap.open([np.array([1, 3, 5], np.int32), np.array([1], np.int32)])
    runner.step()
    # Item 0 consumes tokens 2, 3, 4: rows 3 and 5 of the wanted ones; item 1 decodes and predicts position 5.
    assert _seen(tap) == {(0, 3): 0.0, (0, 5): 2.0, (1, 5): 3.0}


def test_float32_rows_are_kept_apart_from_what_the_sampler_changes() -> None:
    runner = Runner(prompts=[2], done=[0], scheduled=[2], dtype=torch.float32)
    tap = Tap(runner)
    tap.open([np.empty(0, np.int32)])
    runner.step().fill_(-1.0)
    assert _seen(tap) == {(0, 2): 1.0}


def test_a_closed_tap_keeps_nothing() -> None:
    runner = Runner(prompts=[2], done=[0], scheduled=[2], dtype=torch.float16)
    tap = Tap(runner)
    runner.step()
    assert tap.drain() == []


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
    from qdx.experiment import run_batch

    backend: Any = Echo()
    length = 3
    begun: list[str] = []
    recorder = SimpleNamespace(
        begin=lambda phase, *_: begun.append(phase), rows=lambda *_: None, wanted=lambda item: np.array([3])
    )
    listener: Any = Listener([length], recorder)  # type: ignore[arg-type]
    backend.noise = 2.0  # the shared continuation's rows are others
    prompt = SimpleNamespace(token_ids=np.arange(length), continuation=np.arange(4))
    generated = run_batch(backend, listener, 0, [0], [prompt], 4)  # type: ignore[list-item]
    backend.noise = 0.0
    assert begun == ["prefill", "decode", "replay"]
    assert replays_exactly(backend, [[0, 1, 2]], generated, listener)


def _checked(longest: int, count: int, batch: int) -> None:
    backend = VllmBackend.__new__(VllmBackend)
    backend._max_tokens, backend._max_len, backend._max_seqs = 100, 120, 4
    backend._check([[1] * longest] * batch, count)


def test_a_reference_longer_than_a_step_is_refused_with_the_number_to_set() -> None:
    _checked(100, 16, 4)
    with pytest.raises(QdxError, match=r"101 tokens, backend.max_num_batched_tokens is 100.*raise it to 101"):
        _checked(101, 16, 1)
    with pytest.raises(QdxError, match=r"do not fit backend.max_model_len 120"):
        _checked(100, 21, 1)
    with pytest.raises(QdxError, match=r"batch_size=5 is more than backend.max_num_seqs=4"):
        _checked(10, 2, 5)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 GiB", "backend.gpu_memory_utilization"),
        ("No available memory for the cache blocks", "backend.gpu_memory_utilization"),
        ("torch.bfloat16 is not supported for quantization method awq", "model.dtype=float16"),
        ("Failed to find a kernel that can implement the WNA16 linear layer", "quant.kernel=any"),
        ("Failed to infer device type", "backend=transformers"),
    ],
)
def test_what_the_engine_says_comes_with_what_to_change(said: str, remedy: str) -> None:
    with pytest.raises(QdxError, match="loading") as caught, explained("loading"):
        raise ValueError(said)
    assert said in str(caught.value) and remedy in str(caught.value)
    assert advice(ValueError("something else")) == ""


def test_kernels_that_the_user_disabled_stay_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_FLASHINFER_SAMPLER"):
        monkeypatch.setenv(name, "1")
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "ConchLinearKernel")
    prepare_environment(("MacheteLinearKernel", "ConchLinearKernel"), None)
    assert os.environ["VLLM_DISABLED_KERNELS"] == "ConchLinearKernel,MacheteLinearKernel"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_numbers_of_a_version_end_at_its_first_letter() -> None:
    assert parsed("0.20.2rc1.dev3+g1") == (0, 20, 2)


def test_a_run_of_another_vllm_would_be_kept_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    from qdx.backends import identity
    from qdx.backends.vllm import backend

    node = {"_target_": "qdx.backends.vllm.VllmBackend", "enforce_eager": True}
    found = []
    for version in ("0.20.2", "0.25.1"):
        monkeypatch.setattr(backend, "installed_version", lambda version=version: version)
        found.append(identity(node))
    assert found == [{"engine_version": "0.20.2"}, {"engine_version": "0.25.1"}]
