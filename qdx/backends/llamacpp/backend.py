"""The backend: a GGUF file, run by llama.cpp itself, row by row."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qdx.backends import ANY, Facts, sampling
from qdx.backends.llamacpp import library
from qdx.capture import Recorder, greedy
from qdx.errors import QdxError
from qdx.models.gguf_file import read
from qdx.models.identity import GGUF
from qdx.plugins import register
from qdx.schema_gguf import FLASH_ATTENTION, LlamacppOptions

if TYPE_CHECKING:
    from qdx.models import Checkpoint
    from qdx.schema import Quant

CELLS = 256  # a context's length is a multiple of it
FLOATS = ("f32", "f16", "bf16")
REPACKED = re.compile(r"repack tensor (\S+) with (\S+)")


@register("backend", "llamacpp", options=LlamacppOptions)
class LlamacppBackend:
    """A GGUF file on this machine's CPU, by the kernels of the llama.cpp that the package xllamacpp brings.

    A prompt is computed as llama.cpp's server computes it, in pieces of `n_ubatch` tokens of which the last
    row alone is wanted. Where other rows of a prompt are captured, it is computed twice, since a piece of
    which more rows are wanted may run another kernel for its head.

    Parameters
    ----------
    checkpoint : Checkpoint
    quant : Quant
        Its kernel is ``any``: which one runs is the library's choice, and read from what it says.
    dtype : str
        Not used: a GGUF file has the types of its tensors, and llama.cpp's logits are float32.
    seed : int
        Not used: nothing is left to chance.
    **options
        See `qdx.schema_gguf.LlamacppOptions`.

    Raises
    ------
    QdxError
        For a missing library, or a file that llama.cpp does not load.
    """

    def __init__(
        self, checkpoint: Checkpoint, quant: Quant, dtype: str, seed: int = 0, **options: Any
    ) -> None:
        self._options = LlamacppOptions(**options)
        self.rehearse(checkpoint, quant, dtype, batch_size=1, **options)
        self._lib = library.library()
        self._checkpoint, self._quant = checkpoint, quant
        file = (checkpoint.path / GGUF).resolve()
        _, self._types = read(file)
        library.heard.clear()
        wanted = self._lib.llama_model_default_params()
        wanted.n_gpu_layers = 0
        wanted.use_extra_bufts = self._options.repack
        self._model = self._lib.llama_model_load_from_file(os.fsencode(file), wanted)
        if not self._model:
            raise QdxError(f"llama.cpp {library.build()} does not load {file}: {_last_words()}")
        if self._lib.llama_model_has_encoder(self._model):
            raise QdxError(f"{file} holds an encoder: backend=llamacpp runs models that only decode")
        vocab = self._lib.llama_model_get_vocab(self._model)
        self._vocab = int(self._lib.llama_vocab_n_tokens(vocab))
        self._ends = frozenset(i for i in range(self._vocab) if self._lib.llama_vocab_is_eog(vocab, i))
        self._repacked = {one: kind.lower() for one, kind in REPACKED.findall("".join(library.heard))}
        self._context: Any = None
        self._memory: Any = None
        self._flash = ""
        self._room = self._sequences = 0
        self._state: tuple[list[list[int]], Tensor] | None = None
        self._open(1, CELLS)

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._lib.llama_free(self._context)
        if getattr(self, "_model", None):
            self._lib.llama_model_free(self._model)

    @staticmethod
    def identity(threads: int | None = None, **_: Any) -> dict[str, Any]:
        """Return the library's build and what it uses of this processor, and the threads."""
        return {"llamacpp": library.stated(), "threads": _threads(threads)}

    @staticmethod
    def rehearse(checkpoint: Checkpoint, quant: Quant, dtype: str, batch_size: int, **options: Any) -> None:
        """Refuse what a job would fail on.

        Raises
        ------
        QdxError
        """
        LlamacppOptions(**options)
        library.version()
        if not (checkpoint.path / GGUF).is_file():
            raise QdxError(
                f"{checkpoint.source} is not a GGUF file, and backend=llamacpp runs no other: give one with "
                f"model.checkpoint.{quant.format}=FILE.gguf"
            )
        if quant.kernel != ANY:
            raise QdxError(
                f"quant.kernel={quant.kernel}: llama.cpp chooses its kernels itself: set quant.kernel=any"
            )

    def observe(self) -> Facts:
        """Return what is loaded: of every kind of layer its tensors' types, and how they were repacked."""
        kernels: dict[str, set[str]] = {}
        for tensor, kind in self._types.items():
            if (layer := _layer(tensor)) is not None:
                kernels.setdefault(layer, set()).add(self._repacked.get(tensor, kind))
        if "output" not in kernels and "token_embd" in kernels:  # the head is the embedding
            kernels["output"] = kernels["token_embd"]
        kernels.pop("token_embd", None)  # a row of it is looked up: no matrix product
        quantized = {layer for layer, names in kernels.items() if not names <= set(FLOATS)}
        return Facts(
            kernel_class={layer: "+".join(sorted(names)) for layer, names in kernels.items()},
            kernel={
                layer: "+".join(f"ggml_{one}" for one in sorted(names)) for layer, names in kernels.items()
            },
            quantized=frozenset(quantized),
            dtype="float32",
            vocab=self._vocab,
            engine="llama.cpp",
            engine_version=library.build(),
            eos_token_ids=self._ends,
            settings={
                "threads": str(self._lib.llama_n_threads(self._context)),
                "n_ubatch": str(self._lib.llama_n_ubatch(self._context)),
                "repack": str(self._options.repack),
                "flash_attention": self._flash,
                "cpu_features": library.features(),
            },
            sampling=sampling.greedy(),  # the loop in `generate` takes `greedy` of the bare logits
            attrs={"gguf_tensor_types": json.dumps(self._types, sort_keys=True)},
        )

    def prefill(self, batch: list[list[int]], recorder: Recorder) -> None:
        """Run the references of a batch one after another, each as a sequence of its own."""
        self._open(len(batch), max(len(ids) for ids in batch) + CELLS)
        for item, ids in enumerate(batch):
            wanted = [int(position) for position in recorder.wanted(item)]
            if [position for position in wanted if position != len(ids)]:
                targets = np.array([*ids, -1])
                for positions, logits_PV in self._pieces(item, ids, set(wanted)):
                    at = np.array(positions, np.int32)
                    inner = at < len(ids)
                    if inner.any():
                        chosen = torch.from_numpy(targets[at[inner]])
                        recorder.rows(item, at[inner], logits_PV[torch.from_numpy(inner)], chosen)
                self._lib.llama_memory_seq_rm(self._memory, item, -1, -1)
        last_BV = self._prompts(batch)
        for item, ids in enumerate(batch):
            if len(ids) in recorder.wanted(item):
                # The last row predicts the first output token: −1 asks for the row's own greedy choice.
                target = torch.tensor([-1])
                recorder.rows(item, np.array([len(ids)], np.int32), last_BV[item : item + 1], target)
        self._state = [list(ids) for ids in batch], last_BV

    def generate(self, batch: list[list[int]], count: int, recorder: Recorder) -> list[list[int]]:
        """Generate `count` tokens for each reference from the last prefill's cache."""
        logits_BV = self._begin(batch, count)
        tokens_B = greedy(logits_BV)
        generated = [tokens_B]
        for step in range(1, count):
            logits_BV = self._step(batch, step, tokens_B.tolist())
            tokens_B = greedy(logits_BV)
            generated.append(tokens_B)
            self._record(batch, step, logits_BV, tokens_B, recorder, [True] * len(batch))
        return [[int(token) for token in row] for row in torch.stack(generated, 1)]

    def replay(self, batch: list[list[int]], forced: list[list[int]], recorder: Recorder) -> None:
        """Step through the forced tokens from the last prefill's cache.

        A transcript that ended stays in the batch with its last token, so that the others' kernels see as
        many rows as before; its own rows are not recorded.
        """
        longest = max(len(ids) for ids in forced)
        self._begin(batch, longest)
        padded = [[*ids, *ids[-1:] * (longest - len(ids))] for ids in forced]
        for step in range(1, longest):
            logits_BV = self._step(batch, step, [ids[step - 1] for ids in padded])
            going = [step < len(ids) for ids in forced]
            targets_B = torch.tensor([ids[step] for ids in padded])
            self._record(batch, step, logits_BV, targets_B, recorder, going)

    def reseed(self, seed: int) -> None:
        """Nothing is left to chance."""

    def _open(self, sequences: int, room: int) -> None:
        """Have a context for so many sequences of so many tokens; a new one is empty."""
        if self._context and sequences == self._sequences and room <= self._room:
            self._lib.llama_memory_clear(self._memory, True)
            return
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        # llama.cpp makes a piece of a prompt no longer than the context, without a word.
        room = -(-max(room, self._options.n_ubatch) // CELLS) * CELLS
        wanted = self._lib.llama_context_default_params()
        wanted.n_ctx = room * sequences
        wanted.n_seq_max = sequences
        wanted.n_batch = max(self._options.n_ubatch, sequences)
        wanted.n_ubatch = self._options.n_ubatch
        wanted.n_outputs_max = wanted.n_batch
        wanted.n_threads = wanted.n_threads_batch = _threads(self._options.threads)
        wanted.flash_attn_type = FLASH_ATTENTION[self._options.flash_attention]
        library.heard.clear()
        self._context = self._lib.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise QdxError(
                f"llama.cpp {library.build()} makes no context of {room} tokens for {sequences} sequences of "
                f"{self._checkpoint.source} ({_last_words()}): lower batch_size or prompts.snippet_tokens"
            )
        if (found := int(self._lib.llama_n_ubatch(self._context))) != self._options.n_ubatch:
            raise QdxError(
                f"backend.n_ubatch={self._options.n_ubatch}: llama.cpp settled on {found}: set that"
            )
        self._room, self._sequences = room, sequences
        self._memory = self._lib.llama_get_memory(self._context)
        self._flash = _flash_attention("".join(library.heard), self._options.flash_attention)

    def _begin(self, batch: Sequence[Sequence[int]], more: int) -> Tensor:
        """Go back to the end of the last prefill and return its last rows."""
        if self._state is None or self._state[0] != [list(ids) for ids in batch]:
            raise RuntimeError("generate and replay start from a prefill's cache: call prefill first")
        prompts, last_BV = self._state
        if max(len(ids) for ids in batch) + more > self._room:
            self._open(len(batch), max(len(ids) for ids in batch) + more)
            return self._prompts(prompts)
        cut = [
            self._lib.llama_memory_seq_rm(self._memory, item, len(ids), -1)
            for item, ids in enumerate(prompts)
        ]
        if not all(cut):  # a recurrent state cannot go back: compute it anew
            self._lib.llama_memory_clear(self._memory, True)
            return self._prompts(prompts)
        return last_BV.clone()

    def _prompts(self, batch: Sequence[Sequence[int]]) -> Tensor:
        """Compute every prompt, its last row alone, (batch, vocab)."""
        last = [list(self._pieces(item, ids, {len(ids)})) for item, ids in enumerate(batch)]
        return torch.cat([rows[-1][1] for rows in last])

    def _pieces(self, item: int, ids: Sequence[int], wanted: set[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Feed a prompt in pieces; yield positions and rows of those that are wanted."""
        for start in range(0, len(ids), self._options.n_ubatch):
            piece = ids[start : start + self._options.n_ubatch]
            positions = [start + i + 1 for i in range(len(piece)) if start + i + 1 in wanted]
            logits_PV = self._decode(
                [(item, start + i, token, start + i + 1 in wanted) for i, token in enumerate(piece)]
            )
            if positions:
                yield positions, logits_PV

    def _step(self, batch: Sequence[Sequence[int]], step: int, tokens: Sequence[int]) -> Tensor:
        """Feed one token to each sequence of the batch; return the rows that follow, (batch, vocab)."""
        return self._decode(
            [(item, len(ids) + step - 1, tokens[item], True) for item, ids in enumerate(batch)]
        )

    def _decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> Tensor:
        """Run a batch of (sequence, position, token, wanted); return the wanted rows, float32."""
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, (sequence, position, token, wanted) in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = wanted
            library.heard.clear()
            if code := self._lib.llama_decode(self._context, batch):
                raise QdxError(
                    f"llama.cpp {library.build()} stopped with code {code} at position {tokens[0][1]} of "
                    f"{self._checkpoint.source}: {_last_words()}"
                )
            rows = [
                np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, i), (self._vocab,)).copy()
                for i, one in enumerate(tokens)
                if one[3]
            ]
        finally:
            self._lib.llama_batch_free(batch)
        return torch.from_numpy(np.stack(rows) if rows else np.empty((0, self._vocab), np.float32))

    def _record(
        self,
        batch: Sequence[Sequence[int]],
        step: int,
        logits_BV: Tensor,
        targets_B: Tensor,
        recorder: Recorder,
        going: Sequence[bool],
    ) -> None:
        for item, ids in enumerate(batch):
            if going[item]:
                one = slice(item, item + 1)
                recorder.rows(item, np.array([len(ids) + step], np.int32), logits_BV[one], targets_B[one])


def _layer(tensor: str) -> str | None:
    """The kind of layer of a matrix, such as ``attn_q``; None for norms, biases and factors."""
    name = tensor.removesuffix(".weight")
    if name == tensor or name.endswith("_norm"):
        return None
    return re.sub(r"^blk\.\d+\.", "", name)


def _flash_attention(said: str, asked: str) -> str:
    """Whether flash attention runs, as the library says where it was to choose."""
    if asked != "auto":
        return asked
    found = re.search(r"Flash Attention (enabled|disabled)", said)
    return {"enabled": "on", "disabled": "off"}[found.group(1)] if found else ""


def _last_words() -> str:
    """What the library said last."""
    lines = [line for line in "".join(library.heard).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it does not say why"


def _threads(asked: int | None) -> int:
    return asked or len(os.sched_getaffinity(0))
