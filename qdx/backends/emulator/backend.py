"""The backend: a GPU's forward pass emulated on this machine's CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qdx.backends import Facts, sampling
from qdx.backends.emulator.cards import card_of
from qdx.backends.emulator.llama import MERGED, Cache, Llama, Shape
from qdx.capture import Recorder, greedy
from qdx.errors import QdxError
from qdx.kernel_names import simulated
from qdx.models import dense_state, eos_token_ids, iter_quantized
from qdx.plugins import register
from qdx.schema import EmulatorOptions

if TYPE_CHECKING:
    from qdx.models import Checkpoint
    from qdx.schema import Quant

HEAD_ROWS = 256  # rows of logits that are in memory at once


@register("backend", "emulator", options=EmulatorOptions)
class EmulatorBackend:
    """vLLM's eager forward pass of a Llama on a Hopper card, bit for bit where that is known.

    What is computed is a numerical model throughout, and a record says so: kernels are named ``model:…``, and
    the environment class is this machine's. Which operations were equal to a card's is in docs/results.

    Parameters
    ----------
    checkpoint : Checkpoint
    quant : Quant
        The kernel to compute its layers with: one of the engine's (`qdx.schema.EMULATED_ENGINES`).
    dtype : str
        float16.
    seed : int
        Not used: nothing is left to chance.
    **options
        See `qdx.schema.EmulatorOptions`.

    Raises
    ------
    QdxError
        For an architecture, dtype or kernel that is not known bit for bit.
    """

    def __init__(
        self, checkpoint: Checkpoint, quant: Quant, dtype: str, seed: int = 0, **options: Any
    ) -> None:
        self._options = EmulatorOptions(**options)
        self.rehearse(checkpoint, quant, dtype, batch_size=1, **options)
        self._card = card_of(self._options.card, quant.kernel, approximate=self._options.approximate)
        torch.set_num_threads(_threads(self._options.threads))
        shape = Shape.read(checkpoint.path)
        weights: dict[str, Any] = dict(iter_quantized(checkpoint.path)) if checkpoint.format != "none" else {}
        dense = dict(dense_state(checkpoint.path))
        if checkpoint.format == "none":
            weights = {
                name.removesuffix(".weight"): tensor
                for name, tensor in dense.items()
                if name.endswith("_proj.weight")
            }
        wrong = sorted(name for name, one in dense.items() if one.dtype != torch.float16)
        if wrong:
            raise QdxError(
                f"backend=emulator: {wrong[0]} of {checkpoint.source} is {dense[wrong[0]].dtype}, known bit "
                "for bit are float16 checkpoints alone: convert it"
            )
        self._llama = Llama(
            shape,
            weights,
            dense,
            quant.kernel,
            card=self._options.card,
            sm_count=self._card.sm_count,
            flash_version=3 if self._card.hopper else 2,
            most_sequences=self._options.max_num_seqs,
            attention_backend=self._options.attention_backend,
            exactly=not self._options.approximate,
        )
        self._quant = quant
        self._state: tuple[Cache, Tensor] | None = None
        self._eos_token_ids = eos_token_ids(checkpoint.path) or frozenset()

    @staticmethod
    def identity(**options: Any) -> dict[str, Any]:
        """Return the emulated engine's version; threads divide no sum."""
        return {"emulates": f"vllm {options.get('engine', EmulatorOptions.engine)}"}

    @staticmethod
    def rehearse(checkpoint: Checkpoint, quant: Quant, dtype: str, batch_size: int, **options: Any) -> None:
        """Refuse what is not known bit for bit.

        Raises
        ------
        QdxError
        """
        chosen = EmulatorOptions(**options)
        if dtype != "float16":
            raise QdxError(
                f"model.dtype={dtype}: backend=emulator knows float16 alone bit for bit: "
                "set model.dtype=float16"
            )
        if batch_size > chosen.max_num_seqs:
            raise QdxError(
                f"batch_size={batch_size} is more than backend.max_num_seqs={chosen.max_num_seqs}: raise that"
            )
        card_of(chosen.card, quant.kernel, approximate=chosen.approximate)
        Shape.read(checkpoint.path)

    def observe(self) -> Facts:
        """Return the kernels of every layer type; all are numerical models."""
        options = self._options
        kernel = simulated(self._quant.kernel)
        projections = [name.split(".")[-1] for name in MERGED]
        names = {**dict.fromkeys(projections, kernel), "lm_head": simulated("dense")}
        return Facts(
            kernel_class={layer: f"qdx.kernels.{name} on {options.card}" for layer, name in names.items()},
            kernel=names,
            quantized=frozenset(projections if self._quant.format != "none" else ()),
            dtype="float16",
            vocab=self._llama.shape.vocab,
            engine="emulator",
            engine_version=f"vllm {options.engine}",
            sm_count=self._card.sm_count,
            hidden=self._llama.shape.hidden,
            eos_token_ids=self._eos_token_ids,
            settings={
                "attention_backend": options.attention_backend,
                "card": options.card,
                "approximate": str(options.approximate),
                "threads": str(torch.get_num_threads()),
            },
            sampling=sampling.greedy(),  # `generate` takes `greedy` of the bare logits
            attrs={
                "emulated_card": options.card,
                "emulated_engine": f"vllm {options.engine}",
                "compared_with_a_card": "yes" if self._card.compared else f"no: {self._card.unknown}",
            },
        )

    @torch.inference_mode()
    def prefill(self, batch: list[list[int]], recorder: Recorder) -> None:
        """Run the references of a batch together, as one step, and record the wanted rows."""
        tokens = sum(map(len, batch))
        if tokens > self._options.max_num_batched_tokens:
            raise QdxError(
                f"the {len(batch)} references of a batch have {tokens} tokens, "
                f"backend.max_num_batched_tokens is {self._options.max_num_batched_tokens}: the card would "
                "cut them into steps, which is not emulated: raise it, or lower batch_size"
            )
        cache = Cache.empty(self._llama.shape, len(batch))
        hidden_TH = self._llama.step(batch, cache)
        ends = np.cumsum([len(ids) for ids in batch])
        for item, ids in enumerate(batch):
            positions = recorder.wanted(item)
            rows = ends[item] - len(ids) + positions - 1  # the row that predicts position p is row p - 1
            targets = torch.tensor([*ids, -1])[torch.as_tensor(positions)]
            for first in range(0, len(rows), HEAD_ROWS):
                part = slice(first, first + HEAD_ROWS)
                kept_PH = hidden_TH[rows[part]]
                logits_PV = self._llama.head(kept_PH)
                recorder.rows(item, positions[part], logits_PV, targets[part], **_hidden(recorder, kept_PH))
        self._state = cache, self._llama.head(hidden_TH[ends - 1])

    @torch.inference_mode()
    def generate(self, batch: list[list[int]], count: int, recorder: Recorder) -> list[list[int]]:
        """Generate `count` tokens for each reference from the last prefill's cache."""
        cache, logits_BV = self._begin()
        tokens_B = greedy(logits_BV)
        generated = [[int(token)] for token in tokens_B]
        for step in range(1, count):
            hidden_BH = self._llama.step([[line[-1]] for line in generated], cache)
            logits_BV = self._llama.head(hidden_BH)
            tokens_B = greedy(logits_BV)
            for item, (ids, line) in enumerate(zip(batch, generated, strict=True)):
                line.append(int(tokens_B[item]))
                self._record(item, len(ids) + step, hidden_BH[item], logits_BV[item], line[-1], recorder)
        return generated

    @torch.inference_mode()
    def replay(self, batch: list[list[int]], forced: list[list[int]], recorder: Recorder) -> None:
        """Step through the forced tokens from the last prefill's cache; a transcript that ends leaves."""
        cache, _ = self._begin()
        items = list(range(len(batch)))
        for step in range(1, max(map(len, forced))):
            going = [item for item in items if step < len(forced[item])]
            if going != items:
                cache, items = _only(cache, [items.index(item) for item in going]), going
            hidden_BH = self._llama.step([[forced[item][step - 1]] for item in items], cache)
            logits_BV = self._llama.head(hidden_BH)
            for row, item in enumerate(items):
                self._record(
                    item,
                    len(batch[item]) + step,
                    hidden_BH[row],
                    logits_BV[row],
                    forced[item][step],
                    recorder,
                )

    @staticmethod
    def _record(
        item: int, position: int, hidden_H: Tensor, logits_V: Tensor, target: int, recorder: Recorder
    ) -> None:
        recorder.rows(
            item,
            np.array([position]),
            logits_V[None],
            torch.tensor([target]),
            **_hidden(recorder, hidden_H[None]),
        )

    def _begin(self) -> tuple[Cache, Tensor]:
        if self._state is None:
            raise RuntimeError("generate and replay start from a prefill's cache: call prefill first")
        cache, logits_BV = self._state
        return cache.copy(), logits_BV

    def reseed(self, seed: int) -> None:
        """Do nothing: nothing is drawn."""


def _only(cache: Cache, items: list[int]) -> Cache:
    return Cache(
        [[line[item] for item in items] for line in cache.keys],
        [[line[item] for item in items] for line in cache.values],
        [cache.lengths[item] for item in items],
    )


def _hidden(recorder: Recorder, hidden_PH: Tensor) -> dict[str, Tensor]:
    return {"hidden_PH": hidden_PH} if getattr(recorder, "wants_hidden", False) else {}


def _threads(asked: int | None) -> int:
    return asked or len(os.sched_getaffinity(0))
