"""A Hugging Face causal LM on the CPU, its matrix products computed by numerical models of GPU kernels.

The model runs in its own 16-bit dtype: torch's CPU code computes an elementwise 16-bit operation in float32
and rounds the result once, which is where a GPU rounds too. Only matrix products and attention need care:
every ``nn.Linear`` becomes a kernel of `qdx.kernels`, and attention is computed in float32 and rounded once.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qdx.backends import ANY, Facts, sampling
from qdx.capture import Recorder, greedy
from qdx.errors import QdxError
from qdx.kernel_names import simulated
from qdx.kernels import make
from qdx.models import dense_state, iter_quantized
from qdx.plugins import register

if TYPE_CHECKING:
    from qdx.kernels.weights import QuantizedWeight
    from qdx.models import Checkpoint
    from qdx.schema import Quant

ATTENTION = "qdx_float32"
HEAD_ROWS = 64  # rows of logits that are in memory at once


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in float32, its output rounded once to the model's dtype."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    output, _ = sdpa_attention_forward(
        module, query.float(), key.float(), value.float(), attention_mask, **kwargs
    )
    return output.to(query.dtype), None


@contextlib.contextmanager
def _named(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """Name the checkpoint that transformers fails on; it and its libraries raise anything."""
    try:
        yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise QdxError(
            f"{checkpoint.source}: transformers {what} ({type(error).__name__}: {lines[-1].strip()}): "
            f"download or build the checkpoint again"
        ) from error


def _load(checkpoint: Checkpoint, dtype: torch.dtype, weights: Mapping[str, QuantizedWeight]) -> nn.Module:
    """Load a causal LM; its quantized layers hold zeros without memory, until kernels take their place."""
    from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig
    from transformers.masking_utils import sdpa_mask
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    with _named(checkpoint, "cannot read its config.json"):
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise QdxError(f"{checkpoint.source}: transformers knows no causal LM of type {config.model_type!r}")
    state = dict(dense_state(checkpoint.path))
    for name, weight in weights.items():
        shape = (weight.out_features, weight.in_features)
        state[f"{name}.weight"] = torch.zeros((), dtype=dtype).expand(shape)
    with _named(checkpoint, "cannot load its weights as its config.json describes them"):
        model, found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            attn_implementation=ATTENTION,
            output_loading_info=True,
        )
    if missing := sorted(found["missing_keys"]):
        # transformers would draw them at random
        raise QdxError(
            f"{checkpoint.source}: {len(missing)} weights are missing, such as {missing[0]}: "
            f"download or build the checkpoint again"
        )
    evaluated: nn.Module = model.eval()
    return evaluated


@register("backend", "transformers")
class TransformersBackend:
    """Any causal LM that transformers knows, on this machine's CPU.

    Parameters
    ----------
    checkpoint : Checkpoint
    quant : Quant
        The kernel to compute its quantized layers with.
    dtype : str
        Of activations and logits: float16, bfloat16 or float32.
    seed : int
        Of the order in which a kernel with atomic additions adds.
    threads : int, optional
        torch threads; as many as there are cores when None.
    sm_count : int
        Streaming multiprocessors of the GPU that is modelled.

    Raises
    ------
    QdxError
        When the checkpoint cannot be loaded, or a kernel does not take a layer's shape or dtype.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        quant: Quant,
        dtype: str,
        seed: int = 0,
        threads: int | None = None,
        sm_count: int = 132,
    ) -> None:
        if quant.kernel == ANY:
            raise QdxError(
                "quant.kernel=any: backend=transformers models a kernel, name one: dense, marlin, …"
            )
        torch.set_num_threads(_threads(threads))
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._sm_count = sm_count
        self._generator = torch.Generator().manual_seed(seed)
        weights = {} if checkpoint.format == "none" else dict(iter_quantized(checkpoint.path))
        self._model = _load(checkpoint, self._dtype, weights)
        self._layers: dict[str, set[str]] = defaultdict(set)
        self._quantized: set[str] = set()
        self._insert_kernels(weights, quant.kernel)
        self._state: _State | None = None
        self._hidden_BTH = torch.empty(0)  # of the last forward pass
        self._model.base_model.register_forward_hook(self._keep_hidden)
        self._eos_token_ids = _eos_token_ids(checkpoint, self._model)

    @staticmethod
    def identity(threads: int | None = None, **_: Any) -> dict[str, Any]:
        """Return the engine's version and the threads: a sum that is split among them rounds elsewhere."""
        return {"engine_version": version("transformers"), "threads": _threads(threads)}

    def _insert_kernels(self, weights: dict[str, QuantizedWeight], kernel: str) -> None:
        for name in list(weights):
            bias = self._model.get_submodule(name).bias
            self._replace(name, make(kernel, weights.pop(name), _data(bias), **self._options()))
            self._quantized.add(name.rpartition(".")[2])
        dense = [(name, m) for name, m in self._model.named_modules() if isinstance(m, nn.Linear)]
        for name, linear in dense:
            self._replace(name, make("dense", linear.weight.data, _data(linear.bias), **self._options()))

    def _keep_hidden(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        self._hidden_BTH = output.last_hidden_state

    def _options(self) -> dict[str, Any]:
        return {"sm_count": self._sm_count, "generator": self._generator}

    def _replace(self, name: str, kernel: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self._model.get_submodule(parent), child, kernel)
        self._layers[child].add(kernel.name)

    def observe(self) -> Facts:
        """Return the kernels of every layer type; all are numerical models."""
        names = {layer: sorted(kernels) for layer, kernels in self._layers.items()}
        return Facts(
            kernel_class={layer: f"qdx.kernels.{'+'.join(kernels)}" for layer, kernels in names.items()},
            kernel={layer: "+".join(simulated(k) for k in kernels) for layer, kernels in names.items()},
            quantized=frozenset(self._quantized),
            dtype=str(self._dtype).removeprefix("torch."),
            vocab=int(self._model.config.vocab_size),
            engine="transformers",
            engine_version=version("transformers"),
            sm_count=self._sm_count,
            hidden=int(self._model.config.get_text_config().hidden_size),
            eos_token_ids=self._eos_token_ids,
            settings={"threads": str(torch.get_num_threads())},
            sampling=sampling.greedy(),  # the loop in `generate` takes `greedy` of the bare logits
        )

    @torch.inference_mode()
    def prefill(self, batch: list[list[int]], recorder: Recorder) -> None:
        """Run a batch of references, left-padded to one length, and record the wanted rows."""
        longest = max(len(ids) for ids in batch)
        pads = [longest - len(ids) for ids in batch]
        ids_BT = torch.tensor([[0] * pad + ids for pad, ids in zip(pads, batch, strict=True)])
        mask_BT = torch.arange(longest) >= torch.tensor(pads)[:, None]
        wanted = [recorder.wanted(item) for item in range(len(batch))]
        # The row that predicts position p of a reference is row pad + p − 1 of the padded batch.
        rows = [torch.as_tensor(p) + pad - 1 for p, pad in zip(wanted, pads, strict=True)]
        output = self._model.base_model(
            input_ids=ids_BT,
            attention_mask=mask_BT.long(),
            position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        )
        hidden_BTH = output.last_hidden_state
        for item, positions in enumerate(wanted):
            targets = self._targets(batch[item], positions)
            for start in range(0, len(positions), HEAD_ROWS):
                block = slice(start, start + HEAD_ROWS)
                hidden_PH = hidden_BTH[item, rows[item][block]]
                kept = _hidden(recorder, hidden_PH)
                recorder.rows(item, positions[block], self._head(hidden_PH), targets[block], **kept)
        self._state = _State(output.past_key_values, mask_BT, self._head(hidden_BTH[:, -1]))

    def _head(self, hidden_PH: Tensor) -> Tensor:
        """Return the logits of hidden states, as the model's own forward makes them (scaled, capped, …)."""
        model = self._model
        body = getattr(model, model.base_model_prefix)
        setattr(model, model.base_model_prefix, _Computed(hidden_PH[None]))
        try:
            logits_PV: Tensor = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits[
                0
            ]
        finally:
            setattr(model, model.base_model_prefix, body)
        return logits_PV

    @staticmethod
    def _targets(ids: list[int], positions: Any) -> Tensor:
        # The last row predicts the first output token: −1 asks the recorder for the row's own greedy choice.
        return torch.tensor([*ids, -1])[torch.as_tensor(positions)]

    @torch.inference_mode()
    def generate(self, batch: list[list[int]], count: int, recorder: Recorder) -> list[list[int]]:
        """Generate `count` tokens for each reference from the last prefill's cache."""
        state = self._begin()
        tokens_B = greedy(state.logits_BV)
        generated = [tokens_B]
        for step in range(1, count):
            logits_BV = state.step(self._model, tokens_B)
            tokens_B = greedy(logits_BV)
            generated.append(tokens_B)
            self._record(batch, step, logits_BV, tokens_B, recorder)
        return [[int(token) for token in row] for row in torch.stack(generated, 1)]

    @torch.inference_mode()
    def replay(self, batch: list[list[int]], forced: list[list[int]], recorder: Recorder) -> None:
        """Step through the forced tokens from the last prefill's cache."""
        state = self._begin()
        forced_BT = torch.tensor(forced)
        for step in range(1, forced_BT.shape[1]):
            logits_BV = state.step(self._model, forced_BT[:, step - 1])
            self._record(batch, step, logits_BV, forced_BT[:, step], recorder)

    def _record(
        self, batch: list[list[int]], step: int, logits_BV: Tensor, targets_B: Tensor, recorder: Recorder
    ) -> None:
        import numpy as np

        for item, ids in enumerate(batch):
            positions = np.array([len(ids) + step])
            one = slice(item, item + 1)
            kept = _hidden(recorder, self._hidden_BTH[one, -1])
            recorder.rows(item, positions, logits_BV[one], targets_B[one], **kept)

    def _begin(self) -> _State:
        if self._state is None:
            raise RuntimeError("generate and replay start from a prefill's cache: call prefill first")
        return copy.deepcopy(self._state)

    def reseed(self, seed: int) -> None:
        """Start the order of atomic additions anew."""
        self._generator.manual_seed(seed)


class _Computed(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """Stands where a model's body is and returns hidden states that it computed before."""

    def __init__(self, hidden_1PH: Tensor) -> None:
        super().__init__()
        self._hidden_1PH = hidden_1PH

    def forward(self, **_: Any) -> Any:
        """Return the hidden states, in whatever form the head's model reads them."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self._hidden_1PH)


class _State:
    """The cache of a prefilled batch, its padding mask and the last logits."""

    def __init__(self, cache: Any, mask_BT: Tensor, logits_BV: Tensor) -> None:
        self.cache = cache
        self.mask_BT = mask_BT
        self.logits_BV = logits_BV.clone()

    def step(self, model: nn.Module, tokens_B: Tensor) -> Tensor:
        """Feed one token to each sequence of the batch; return the logits that follow, (batch, vocab)."""
        position_ids = self.mask_BT.sum(1, keepdim=True)
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(self.mask_BT[:, :1])], 1)
        output = model(
            input_ids=tokens_B[:, None],
            attention_mask=self.mask_BT.long(),
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def _hidden(recorder: Recorder, hidden_PH: Tensor) -> dict[str, Tensor]:
    return {"hidden_PH": hidden_PH} if getattr(recorder, "wants_hidden", False) else {}


def _threads(asked: int | None) -> int:
    return asked or len(os.sched_getaffinity(0))


def _data(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.data


def _eos_token_ids(checkpoint: Checkpoint, model: nn.Module) -> frozenset[int]:
    """Return the tokens that end a generation, as generation_config.json says, or else config.json."""
    from transformers import GenerationConfig

    stated = (checkpoint.path / "generation_config.json").is_file()
    ids = (GenerationConfig.from_pretrained(checkpoint.path) if stated else model.config).eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])
