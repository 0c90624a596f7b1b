"""A Hugging Face causal LM on the CPU, its matrix products computed by numerical models of GPU kernels.

The model runs in its own 16-bit dtype: torch's CPU code computes an elementwise 16-bit operation in float32
and rounds the result once, which is where a GPU rounds too. Only matrix products and attention need care:
every ``nn.Linear`` becomes a kernel of `qdx.kernels`, and attention is computed in float32 and rounded once.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qdx.backends import ANY, Facts, causal_lm, rehearsal, sampling
from qdx.capture import Recorder, greedy
from qdx.errors import QdxError
from qdx.kernel_names import simulated
from qdx.models import dense_state, eos_token_ids, iter_quantized
from qdx.models.checkpoint import read_config
from qdx.models.contents import BUFFERS, PACKINGS, contents
from qdx.models.identity import weight_files
from qdx.models.reading import check_packing, zero_biases
from qdx.plugins import register

if TYPE_CHECKING:
    from qdx.models import Checkpoint
    from qdx.schema import Quant

ANY_KERNEL = "quant.kernel=any: backend=transformers models a kernel, name one: dense, marlin, …"
REMEDY = "download or build the checkpoint again"
OTHER_PARTS = (
    "vision_tower",
    "vision_model",
    "visual",
    "vision_embed_tokens",
    "multi_modal_projector",
    "mm_projector",
    "image_newline",
    "audio_tower",
    "audio_model",
    "audio_encoder",
    "embed_vision",
    "embed_audio",
    "mtp",
    "aligner",
    "connector",
    "talker",
    "code2wav",
)
MOST_LAYERS = 10_000
HEAD_ROWS = 512  # rows of logits that are in memory at once


def _layout(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Return the config of a checkpoint and its causal LM's class.

    Raises
    ------
    QdxError
        When transformers cannot read config.json, or knows no causal LM of its type.
    """
    from transformers import AutoConfig

    mapping = causal_lm.mapping()
    stated = read_config(checkpoint.path)
    _known_type(checkpoint, stated)
    with causal_lm.one_line(checkpoint.source, "cannot read its config.json", REMEDY):
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
        for one in (config, config.get_text_config()):
            if hasattr(one, "quantization_config"):
                del one.quantization_config
    if type(config) not in mapping:
        raise QdxError(
            f"{checkpoint.source}: transformers {version('transformers')} knows no causal LM of type "
            f"{config.model_type!r}: backend=transformers runs none of it, an engine may (backend=vllm)"
        )
    _as_stated(checkpoint, stated, config, mapping[type(config)])
    return causal_lm.language_model(config, mapping[type(config)])


def _known_type(checkpoint: Checkpoint, stated: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    name = stated.get("model_type")
    if not isinstance(name, str) or name not in CONFIG_MAPPING:
        own = " (its own code, auto_map, is never run)" if stated.get("auto_map") else ""
        raise QdxError(
            f"{checkpoint.source}: transformers {version('transformers')} knows no model_type {name!r}, "
            f"which its config.json states{own}: backend=transformers runs none of it, an engine may "
            "(backend=vllm)"
        )
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        layers = stated.get(key)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise QdxError(
                f"{checkpoint.source}: its config.json states {key}={layers}, more than {MOST_LAYERS}: it is "
                f"damaged, {REMEDY}"
            )


def _as_stated(checkpoint: Checkpoint, stated: dict[str, Any], config: Any, architecture: Any) -> None:
    """Refuse a checkpoint that is of another class than the one that would run it.

    transformers goes by ``model_type``, engines by ``architectures``.

    Raises
    ------
    QdxError
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = stated.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    if name is None or name.lower() == architecture.__name__.lower():
        return
    known = {str(one) for one in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    headless = not re.search(r"For(CausalLM|ConditionalGeneration|Generation)$|LMHead|WithLMHead", name)
    by = f"model_type={config.model_type!r}, by which {architecture.__name__} would run"
    if name not in known and hasattr(transformers, name) and headless:
        raise QdxError(
            f"{checkpoint.source}: its config.json states architectures=[{name!r}], which has no language "
            f"model's head, and {by}: give a language model's checkpoint, or write {architecture.__name__!r} "
            "there if the head is meant"
        )
    # Some types are run by another family's class, as transformers' authors chose: their own name is free.
    if name in known or (not hasattr(transformers, name) and architecture.config_class is type(config)):
        raise QdxError(
            f"{checkpoint.source}: its config.json states architectures=[{name!r}] and {by}: engines go by "
            f"the first, and its own code is never run; write {architecture.__name__!r} there if it computes "
            "the same"
        )


def _load(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    state: dict[str, Tensor],
    packed: Mapping[str, tuple[int, ...]],
) -> Any:
    """Load a causal LM from tensors, and hold the two to each other.

    Parameters
    ----------
    checkpoint : Checkpoint
    dtype : torch.dtype
    state : dict of str to Tensor
        What its files hold beside packed layers.
    packed : Mapping
        Packed layers and their (out, in): kernels take their places later.

    Raises
    ------
    QdxError
        When a weight is missing or of another shape, or a tensor is read by nothing: a scale, or a part of
        another model.
    """
    config, architecture = _layout(checkpoint)
    with causal_lm.one_line(
        checkpoint.source, "cannot load its weights as its config.json describes them", REMEDY
    ):
        with torch.device("meta"):
            empty = architecture(copy.deepcopy(config))
        state |= causal_lm.zeros_like_stored(causal_lm.stored_shapes(empty, packed), dtype)
        _same_shapes(checkpoint, empty, state)
        model, found = architecture.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            attn_implementation=causal_lm.attention_of(architecture),
            experts_implementation=causal_lm.EXPERTS,
            output_loading_info=True,
        )
    unread = sorted(set(found["unexpected_keys"]) - _elsewhere(found["unexpected_keys"]))
    if unread and checkpoint.format != "none":
        unread = sorted(set(unread) - zero_biases(checkpoint.path))
    if missing := sorted(found["missing_keys"]):
        # transformers would draw them at random
        if unread:
            raise QdxError(
                f"{checkpoint.source}: {len(missing)} weights of {architecture.__name__} are missing, such "
                f"as {missing[0]}, and {len(unread)} tensors are read by nothing, such as {unread[0]}"
                f"{_in_file(checkpoint, unread)}: they are named, fused or packed otherwise than its "
                "config.json says; give a checkpoint whose files agree"
            )
        raise QdxError(
            f"{checkpoint.source}: {len(missing)} weights are missing, such as {missing[0]}: {REMEDY}"
        )
    if unread:
        raise QdxError(
            f"{checkpoint.source}: {len(unread)} tensors are read by nothing in {architecture.__name__}, "
            f"such as {unread[0]}{_in_file(checkpoint, unread)}: its config.json describes another model "
            "than its weights, or weights whose scales would be left out; give a checkpoint whose files agree"
        )
    return model.eval()


def _same_shapes(checkpoint: Checkpoint, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Name a weight whose shape is not config.json's; transformers says that there is one, and not which."""
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
    wrong = [name for name, shape in shapes.items() if name in state and tuple(state[name].shape) != shape]
    if wrong:
        name = min(wrong, key=lambda one: ("layers" in one, one))  # an embedding says most
        raise QdxError(
            f"{checkpoint.source}: {len(wrong)} weights have another shape than its config.json describes, "
            f"such as {name}: {tuple(state[name].shape)} in the file, {shapes[name]} in "
            f"{type(model).__name__}; give the config.json that belongs to these weights"
        )


def _in_file(checkpoint: Checkpoint, names: list[str]) -> str:
    """Say in which file tensors stand, where that is one of several: it may be another set of weights."""
    files = {one.file.name for name, one in contents(checkpoint.path).items() if name in names}
    several = len(weight_files(checkpoint.path)) > 1
    return f" in {min(files)}" if several and len(files) == 1 else ""


def _elsewhere(names: Iterable[str]) -> set[str]:
    """Return the tensors of other parts of a published model, which its language model does not have.

    Towers for pictures and sound, layers that predict several tokens ahead, and buffers that a model
    computes itself. Packed weights and scales are never among them.
    """
    parts = re.compile(rf"(^|\.)({'|'.join(OTHER_PARTS)})\.|{BUFFERS.pattern}")
    own = [name.rpartition(".")[2] for name in names]
    return {
        name for name, last in zip(names, own, strict=True) if parts.search(name) and last not in PACKINGS
    }


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
            raise QdxError(ANY_KERNEL)
        torch.set_num_threads(_threads(threads))
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._sm_count = sm_count
        self._generator = torch.Generator().manual_seed(seed)
        weights = {} if checkpoint.format == "none" else dict(iter_quantized(checkpoint.path))
        state = dict(dense_state(checkpoint.path))
        packed = {name: (one.out_features, one.in_features) for name, one in weights.items()}
        self._lm = causal_lm.CausalLM(
            _load(checkpoint, self._dtype, state, packed),
            weights,
            quant.kernel,
            sm_count=sm_count,
            generator=self._generator,
        )
        self._state: _State | None = None
        self._eos_token_ids = _eos_token_ids(checkpoint, self._lm.model)

    @staticmethod
    def identity(threads: int | None = None, **_: Any) -> dict[str, Any]:
        """Return the engine's version and the threads: a sum that is split among them rounds elsewhere."""
        return {"engine_version": version("transformers"), "threads": _threads(threads)}

    @staticmethod
    def rehearse(
        checkpoint: Checkpoint, quant: Quant, dtype: str, batch_size: int, sm_count: int = 132, **_: Any
    ) -> None:
        """Refuse what a job would fail on: files that disagree, a kernel that does not fit, an architecture.

        The architecture is tried with small random weights of the same config; see `rehearsal.rehearse`.

        Raises
        ------
        QdxError
        """
        if quant.kernel == ANY:
            raise QdxError(ANY_KERNEL)
        config, architecture = _layout(checkpoint)
        eos_token_ids(checkpoint.path)
        shapes = {name: one.shape for name, one in contents(checkpoint.path).items()}
        packed: dict[str, tuple[int, ...]] = {}
        if checkpoint.format != "none":
            shapes, packed = check_packing(checkpoint.path, quant.kernel, shapes)
        rehearsal.rehearse(config, architecture, batch_size=batch_size)
        number_type: torch.dtype = getattr(torch, dtype)
        _load(checkpoint, number_type, causal_lm.zeros_like_stored(shapes, number_type), packed)

    def observe(self) -> Facts:
        """Return the kernels of every layer type; all are numerical models."""
        names = {layer: sorted(kernels) for layer, kernels in self._lm.layers.items()}
        return Facts(
            kernel_class={layer: f"qdx.kernels.{'+'.join(kernels)}" for layer, kernels in names.items()},
            kernel={layer: "+".join(simulated(k) for k in kernels) for layer, kernels in names.items()},
            quantized=frozenset(self._lm.quantized),
            dtype=str(self._dtype).removeprefix("torch."),
            vocab=int(self._lm.model.config.get_text_config().vocab_size),
            engine="transformers",
            engine_version=version("transformers"),
            sm_count=self._sm_count,
            hidden=int(self._lm.model.config.get_text_config().hidden_size),
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
        # The row that predicts position p of a reference is row pad + p − 1 of its line of the padded batch.
        rows = [
            item * longest + pads[item] + int(position) - 1
            for item, positions in enumerate(wanted)
            for position in positions
        ]
        last = [(item + 1) * longest - 1 for item in range(len(batch))]
        first = rows[:HEAD_ROWS]
        logits_NV, cache = self._lm.run(ids_BT, mask_BT, torch.tensor([*first, *last]))
        last_BV = logits_NV[len(first) :]
        hidden_NH = self._lm.hidden_BTH.flatten(0, 1)
        places = [(item, n) for item, positions in enumerate(wanted) for n in range(len(positions))]
        for start in range(0, len(rows), HEAD_ROWS):
            block = rows[start : start + HEAD_ROWS]
            logits_PV = logits_NV[: len(block)] if start == 0 else self._lm.head(hidden_NH[block])
            for item in range(len(batch)):
                own = [i for i, place in enumerate(places[start : start + HEAD_ROWS]) if place[0] == item]
                if not own:
                    continue
                positions = wanted[item][[places[start + i][1] for i in own]]
                kept = _hidden(recorder, hidden_NH[[block[i] for i in own]])
                recorder.rows(item, positions, logits_PV[own], self._targets(batch[item], positions), **kept)
        self._state = _State(cache, mask_BT, last_BV)

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
            logits_BV = state.step(self._lm, tokens_B)
            tokens_B = greedy(logits_BV)
            generated.append(tokens_B)
            self._record(batch, step, logits_BV, tokens_B, recorder)
        return [[int(token) for token in row] for row in torch.stack(generated, 1)]

    @torch.inference_mode()
    def replay(self, batch: list[list[int]], forced: list[list[int]], recorder: Recorder) -> None:
        """Step through the forced tokens from the last prefill's cache."""
        state = self._begin()
        # A transcript that ended stays in the batch with its last token, so that the others' kernels see as
        # many rows as before; its own rows are not recorded.
        longest = max(len(ids) for ids in forced)
        forced_BT = torch.tensor([[*ids, *ids[-1:] * (longest - len(ids))] for ids in forced])
        for step in range(1, longest):
            logits_BV = state.step(self._lm, forced_BT[:, step - 1])
            going = [step < len(ids) for ids in forced]
            self._record(batch, step, logits_BV, forced_BT[:, step], recorder, going)

    def _record(
        self,
        batch: list[list[int]],
        step: int,
        logits_BV: Tensor,
        targets_B: Tensor,
        recorder: Recorder,
        going: list[bool] | None = None,
    ) -> None:
        import numpy as np

        for item, ids in enumerate(batch):
            if going is not None and not going[item]:
                continue
            positions = np.array([len(ids) + step])
            one = slice(item, item + 1)
            kept = _hidden(recorder, self._lm.hidden_BTH[one, -1])
            recorder.rows(item, positions, logits_BV[one], targets_B[one], **kept)

    def _begin(self) -> _State:
        if self._state is None:
            raise RuntimeError("generate and replay start from a prefill's cache: call prefill first")
        return copy.deepcopy(self._state)

    def reseed(self, seed: int) -> None:
        """Start the order of atomic additions anew."""
        self._generator.manual_seed(seed)


class _State:
    """The cache of a prefilled batch, its padding mask and the last logits."""

    def __init__(self, cache: Any, mask_BT: Tensor, logits_BV: Tensor) -> None:
        self.cache = cache
        self.mask_BT = mask_BT
        self.logits_BV = logits_BV.clone()

    def step(self, model: causal_lm.CausalLM, tokens_B: Tensor) -> Tensor:
        """Feed one token to each sequence of the batch; return the logits that follow, (batch, vocab)."""
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(self.mask_BT[:, :1])], 1)
        logits_BV, self.cache = model.run(
            tokens_B[:, None], self.mask_BT, torch.arange(len(tokens_B)), self.cache
        )
        return logits_BV


def _hidden(recorder: Recorder, hidden_PH: Tensor) -> dict[str, Tensor]:
    return {"hidden_PH": hidden_PH} if getattr(recorder, "wants_hidden", False) else {}


def _threads(asked: int | None) -> int:
    return asked or len(os.sched_getaffinity(0))


def _eos_token_ids(checkpoint: Checkpoint, model: nn.Module) -> frozenset[int]:
    """Return the tokens that end a generation; where its files state none, those of its config's class."""
    stated = eos_token_ids(checkpoint.path)
    if stated is not None:
        return stated
    ids: Any = model.config.get_text_config().eos_token_id
    return frozenset() if ids is None else frozenset(ids if isinstance(ids, list) else [ids])
