"""A causal LM of transformers whose matrix products and attention are computed as qdx models them.

What the rest of a model does (norms, rotation, activations, recurrent layers) is transformers' own code, run
in the model's dtype: torch's CPU code computes an elementwise 16-bit operation in float32 and rounds the
result once, which is where a GPU rounds too. Replaced are linear layers, GPT-2's transposed ones, the
experts of a mixture, and attention where the architecture lets one choose it.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qdx.errors import QdxError
from qdx.kernels import make

if TYPE_CHECKING:
    from qdx.kernels import KernelModel
    from qdx.kernels.weights import QuantizedWeight

ATTENTION = EXPERTS = "qdx_float32"
CACHES = ("cache", "past_key_values", "cache_params")  # as transformers calls it, the newest name first
GATE, UP, DOWN = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")  # of an expert, in checkpoints


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in float32, its output rounded once to the model's dtype."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = kwargs["position_bias"].float()
    chosen = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    attend = _written_out if chosen else sdpa_attention_forward
    output, _ = attend(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output.to(query.dtype), None


def _written_out(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with capped scores (Gemma-2) or a sink for each head (gpt-oss), which torch's has not."""
    batch, heads, rows, width = query.shape
    groups = heads // key.shape[1]
    output = torch.empty(batch, rows, heads, value.shape[-1])
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    for head in range(heads):  # one head at a time: rows × keys of all heads at once may be gigabytes
        score_BQK = query[:, head] @ key[:, head // groups].transpose(1, 2)
        score_BQK *= width**-0.5 if scaling is None else scaling
        if softcap is not None:
            score_BQK = softcap * torch.tanh(score_BQK / softcap)
        if position_bias is not None:
            score_BQK += position_bias[:, head]
        if attention_mask is not None:
            mask = attention_mask[:, head if attention_mask.shape[1] > 1 else 0, :, : key.shape[2]]
            score_BQK = (
                score_BQK.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else score_BQK + mask
            )
        elif causal and rows > 1:
            later = torch.ones(rows, key.shape[2], dtype=torch.bool).triu(key.shape[2] - rows + 1)
            score_BQK = score_BQK.masked_fill(later, -torch.inf)
        score_BQK = score_BQK.nan_to_num(neginf=torch.finfo(torch.float32).min)  # rows of padding alone
        if s_aux is not None:
            sink = s_aux.float()[head].expand(batch, rows, 1)
            weight_BQK = torch.cat([score_BQK, sink], -1).softmax(-1)[..., :-1]
        else:
            weight_BQK = score_BQK.softmax(-1)
        output[:, :, head] = weight_BQK @ value[:, head // groups]
    return output, None


def experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run the experts of a mixture one after another, each through its own modelled layers.

    The weighted outputs of a token are added in float32 and rounded once.

    Parameters
    ----------
    module : nn.Module
        An experts class of transformers after `insert_experts`.
    hidden : Tensor
        (tokens, hidden).
    top_k_index, top_k_weights : Tensor
        (tokens, k): the experts of each token and their weights.
    """
    shape = hidden.shape
    hidden_TH = hidden.reshape(-1, shape[-1])
    index_TK = top_k_index.reshape(hidden_TH.shape[0], -1)
    weight_TK = top_k_weights.reshape(index_TK.shape).float()
    sum_TH = torch.zeros(hidden_TH.shape, dtype=torch.float32)
    for expert in index_TK.unique().tolist():
        if expert >= len(module.qdx_down):  # transformers marks a token that has no expert so
            continue
        token, k = torch.where(index_TK == expert)
        first = torch.cat([layer(hidden_TH[token]) for layer in module.qdx_first[expert]], -1)
        inner = module._apply_gate(first) if module.has_gate else module.act_fn(first)
        out = module.qdx_down[expert](inner)
        if getattr(module, "has_post_expert_norm", False):
            out = module.post_expert_norm(out)
        sum_TH.index_add_(0, token, out.float() * weight_TK[token, k, None])
    return sum_TH.to(hidden.dtype).view(shape)


def mapping() -> Any:
    """Return transformers' table from config class to causal LM, after registering what qdx adds to it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import sdpa_mask
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, experts)
    return MODEL_FOR_CAUSAL_LM_MAPPING


def language_model(config: Any, architecture: Any) -> tuple[Any, Any]:
    """Return a config and its class, of the language model alone where that has a class of its own."""
    inner = getattr(config, "text_config", None)
    return (inner if inner is not None and architecture.config_class is type(inner) else config), architecture


def attention_of(architecture: Any) -> str:
    """Return the attention that an architecture runs with here: the modelled one where it lets one choose."""
    choosable = getattr(architecture, "_supports_attention_backend", False) and architecture._supports_sdpa
    return ATTENTION if choosable else "eager"


class CausalLM:
    """A model with its layers replaced, and how rows are got out of it.

    Parameters
    ----------
    model : nn.Module
        A causal LM of transformers; its linear layers are replaced in place.
    weights : dict of str to QuantizedWeight
        Quantized layers by the names that the checkpoint gives them; emptied.
    kernel : str
        What computes them.
    sm_count : int
    generator : torch.Generator

    Attributes
    ----------
    layers : Mapping of str to set of str
        Layer type to the kernels of its layers.
    quantized : set of str
        Layer types that are quantized.

    Raises
    ------
    QdxError
        For a quantized layer that the model does not have, or a kernel that does not take one's shape.
    """

    def __init__(
        self,
        model: Any,
        weights: dict[str, QuantizedWeight],
        kernel: str,
        *,
        sm_count: int = 132,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.layers: dict[str, set[str]] = defaultdict(set)
        self.quantized: set[str] = set()
        self._options: dict[str, Any] = {"sm_count": sm_count, "generator": generator}
        self._rows: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        self.hidden_BTH = torch.empty(0)  # of the last forward pass
        self._insert_quantized(weights, kernel)
        self._insert_dense()
        self._takes = set(inspect.signature(model.forward).parameters)
        self._cache_name = next((name for name in CACHES if name in self._takes), CACHES[0])
        self._body().register_forward_hook(self._keep_hidden)

    def _body(self) -> nn.Module:
        """Return the module whose output the head reads."""
        body: nn.Module = self.model.base_model
        # OPT's and BART's heads call the decoder in it, Llama 4's prefix names another class's body
        if body is self.model:
            inner: nn.Module = getattr(body, "model", body)
            return inner
        return body.get_decoder() if hasattr(body, "decoder") and hasattr(body, "get_decoder") else body

    def _keep_hidden(self, _module: nn.Module, _arguments: Any, output: Any) -> Any:
        if not hasattr(output, "last_hidden_state"):
            return None
        if self._rows is None:
            return None
        hidden = output.last_hidden_state  # Llama 4 gives its tokens without the batch
        self.hidden_BTH = hidden.reshape(*self._shape, hidden.shape[-1])
        hidden_NH = self.hidden_BTH.flatten(0, 1)[self._rows]
        output.last_hidden_state = hidden_NH[None]
        return output

    def run(self, ids_BT: Tensor, mask_BT: Tensor, rows: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Run tokens through the model and return the logits of some of their rows.

        Parameters
        ----------
        ids_BT : Tensor
            (batch, tokens) after what the cache holds.
        mask_BT : Tensor
            (batch, tokens of cache and ids), False where a sequence is padded on the left.
        rows : Tensor
            Indices into batch × tokens.
        cache : optional
            What an earlier call returned; it is written to.

        Returns
        -------
        logits_NV : Tensor
            (rows, vocabulary)
        cache
        """
        position_ids = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        arguments = {
            "attention_mask": mask_BT.long(),
            "position_ids": position_ids,
            self._cache_name: cache,
            "use_cache": True,
        }
        self._rows, self._shape = rows, ids_BT.shape
        try:
            output = self.model(input_ids=ids_BT, **{k: v for k, v in arguments.items() if k in self._takes})
        finally:
            self._rows = None
        return output.logits[0], getattr(output, self._cache_name, None)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits of hidden states as the model's own forward makes them (scaled, capped, …).

        The model runs over one token, and what its body returns is replaced: architectures differ in how
        their heads are called, not in that they read the body's output.
        """
        body = self._body()
        handle = body.register_forward_hook(lambda *a: _with(a[2], hidden_NH[None]))
        try:
            logits: Tensor = self.model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits
        finally:
            handle.remove()
        return logits[0]

    def _insert_quantized(self, weights: dict[str, QuantizedWeight], kernel: str) -> None:
        stacked: dict[str, dict[tuple[int, str], str]] = defaultdict(dict)
        for name in list(weights):
            part = re.fullmatch(r"(.+)\.(\d+)\.(\w+)", name)
            if part and part[3] in (*GATE, *UP, *DOWN) and (home := self._experts_of(part[1])):
                stacked[home][int(part[2]), part[3]] = name
                continue
            place = module_named(self.model, name)
            bias = self.model.get_submodule(place).bias
            self._replace(place, make(kernel, weights.pop(name), _data(bias), **self._options))
            self.quantized.add(place.rpartition(".")[2])
        for home, names in stacked.items():
            module = self.model.get_submodule(home)

            def layer(
                expert: int, choices: Sequence[str], names: Any = names, home: str = home
            ) -> KernelModel:
                found = [names[expert, one] for one in choices if (expert, one) in names]
                if not found:
                    raise QdxError(
                        f"{home}: expert {expert} has no quantized {choices[0]}: the experts are mixed"
                    )
                return make(kernel, weights.pop(found[0]), **self._options)

            count = getattr(module, "gate_up_proj" if module.has_gate else "up_proj").shape[0]
            first = [
                [layer(e, GATE), layer(e, UP)] if module.has_gate else [layer(e, UP)] for e in range(count)
            ]
            self._put_experts(home, first, [layer(e, DOWN) for e in range(count)])
            self.quantized.add(home.rpartition(".")[2])

    def _experts_of(self, name: str) -> str | None:
        """Return the module of fused experts that a checkpoint calls `name`, if the model has one."""
        homes = [home for home, module in self.model.named_modules() if is_experts(module)]
        return one_like(name, homes)

    def _insert_dense(self) -> None:
        from transformers.pytorch_utils import Conv1D

        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
                self._replace(name, make("dense", module.weight.data, _data(module.bias), **self._options))
            elif isinstance(module, Conv1D):
                self._replace(
                    name, make("dense", module.weight.data.t(), _data(module.bias), **self._options)
                )
            elif is_experts(module) and not hasattr(module, "qdx_down"):
                self._insert_dense_experts(name, module)

    def _insert_dense_experts(self, name: str, module: Any) -> None:
        def layer(parameter: str, expert: int) -> KernelModel:
            weight = getattr(module, parameter).data[expert]
            bias = getattr(module, f"{parameter}_bias").data[expert] if module.has_bias else None
            return make("dense", weight.t() if module.is_transposed else weight, bias, **self._options)

        first = "gate_up_proj" if module.has_gate else "up_proj"
        count = getattr(module, first).shape[0]
        self._put_experts(
            name, [[layer(first, e)] for e in range(count)], [layer("down_proj", e) for e in range(count)]
        )

    def _put_experts(self, name: str, first: list[list[KernelModel]], down: list[KernelModel]) -> None:
        module = self.model.get_submodule(name)
        for parameter in [one for one in module._parameters if one.endswith(("_proj", "_proj_bias"))]:
            del module._parameters[parameter]
        module.qdx_first = nn.ModuleList([nn.ModuleList(layers) for layers in first])
        module.qdx_down = nn.ModuleList(down)
        self.layers[name.rpartition(".")[2]].update(layer.name for layer in down)

    def _replace(self, name: str, kernel: KernelModel) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, kernel)
        self.layers[child].add(kernel.name)


def is_experts(module: Any) -> bool:
    """Return whether a module is one of transformers' fused experts, whose implementation one may choose."""
    return (
        hasattr(module, "_apply_gate") and hasattr(module, "is_transposed") and hasattr(module, "down_proj")
    )


def module_named(model: Any, name: str) -> str:
    """Return the name by which the model calls the linear layer that a checkpoint calls `name`.

    Raises
    ------
    QdxError
        When it has none, or more than one, that could be meant.
    """
    from transformers.pytorch_utils import Conv1D

    linear = [place for place, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    found = one_like(name, linear)
    if found is None:
        raise QdxError(
            f"the checkpoint has a quantized layer {name}, and {type(model).__name__} of transformers has "
            "no linear layer of that name: its config.json is of another model, or of another version of it"
        )
    return found


def stored_shapes(model: Any, packed: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of dense weights in place of packed layers, as the model's own layers store them.

    Parameters
    ----------
    model : nn.Module
        Of the checkpoint's architecture; its weights are not read.
    packed : Mapping
        Layer as the checkpoint calls it → (out, in). GPT-2's layers are stored the other way round.
    """
    from transformers.pytorch_utils import Conv1D

    turned = [place for place, module in model.named_modules() if isinstance(module, Conv1D)]
    return {
        f"{name}.weight": shape[::-1] if one_like(name, turned) else shape for name, shape in packed.items()
    }


def one_like(name: str, places: Sequence[str]) -> str | None:
    """Return the place of that name, or the only one that ends alike from its layer's number on."""
    if name in places:
        return name

    def tail(place: str) -> str:
        found = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+\..+)$", place)
        return found[1] if found else place

    def bare(place: str) -> str:  # Mixtral's block_sparse_moe.experts is mlp.experts today
        return re.sub(r"\.(block_sparse_moe|mlp|feed_forward|moe)\.", ".", tail(place))

    for shortened in (tail, bare):
        found = [place for place in places if shortened(place) == shortened(name)]
        if len(found) == 1:
            return found[0]
    return None


def _with(output: Any, hidden: Tensor) -> Any:
    output.last_hidden_state = hidden
    return output


def _data(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.data


@contextlib.contextmanager
def one_line(source: str, what: str, remedy: str) -> Iterator[None]:
    """Name the checkpoint that transformers fails on; it and its libraries raise anything."""
    try:
        yield
    except QdxError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise QdxError(
            f"{source}: transformers {what} ({type(error).__name__}: {lines[-1].strip()[:200]}): {remedy}"
        ) from error


def zeros_like_stored(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return zeros of these shapes that take no memory, to load a model's layout with."""
    return {name: torch.zeros((), dtype=dtype).expand(shape) for name, shape in shapes.items()}
