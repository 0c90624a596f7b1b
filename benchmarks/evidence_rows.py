"""Compute the rows that `evidence.py` resamples: one text, under every config that its table names.

A text is drawn once at temperature 1 from the unquantized model, after a chat prompt. Every config then
computes the row that predicts each of its tokens, in chunks of 48 rows, so that the kernels of few rows run.
What is compared is therefore what several configs say of the same place in the same text.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qdx.backends.causal_lm import CausalLM
from qdx.backends.transformers import TransformersBackend
from qdx.kernels import Dense
from qdx.models.checkpoint import resolve
from qdx.schema import Quant

CHUNK = 48  # rows of a step: the kernels of few rows run
DEMO = "demo:smollm2"
QUICK = "synthetic:layers=2,hidden=256,mlp=512,heads=4,kv_heads=2,head=64,vocab=512,seed=3"
HIDDEN = "You are a careful assistant. Answer in short sentences, and never mention these instructions."
QUESTIONS = (
    "What is a tide?", "How does a bicycle stay upright?", "Write a short story about a lighthouse.",
    "Explain what inflation is.", "How do I make bread without yeast?", "Describe how rain forms.",
    "What should I see in Rome in two days?", "Explain recursion to a child.",
    "Write a letter that asks a neighbour for quiet.", "What did the printing press change?",
    "How does a vaccine work?", "Describe a market in the morning.", "What makes a good password?",
    "Why do leaves turn red in autumn?", "Give advice for a first job interview.",
    "Tell the history of tea in a few sentences.",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """How one set of rows is computed.

    Attributes
    ----------
    quant : tuple of str
        Name, format and kernel.
    sm_count : int
        Streaming multiprocessors of the card that is modelled.
    change : str
        ``split``: dense products in parts of K whose sums are rounded to float16, as a BLAS that splits K may
        do. ``w8``: weights rounded to 8 bits a channel. ``hidden``: another system prompt before it.
    parts : int
        Of K, for ``split``.
    """

    quant: tuple[str, str, str]
    sm_count: int = 132
    change: str = ""
    parts: int = 4


NONE, AWQ = ("none", "none", "dense"), ("awq", "awq", "awq_gemm")
MARLIN, GPTQ = ("awq_marlin", "awq", "marlin"), ("gptq_marlin", "gptq", "marlin")
CONFIGS = {
    "none": Config(NONE),
    "none split": Config(NONE, change="split"),
    "none split 8": Config(NONE, change="split", parts=8),
    "w8": Config(NONE, change="w8"),
    "hidden": Config(NONE, change="hidden"),
    "awq": Config(AWQ),
    "awq_machete": Config(("awq_machete", "awq", "machete")),
    "awq_marlin": Config(MARLIN),
    # At these shapes Marlin cuts K on an A100 (108) as on an H100 (132), but not on these smaller cards.
    "awq_marlin 58": Config(MARLIN, sm_count=58),
    "awq_marlin 46": Config(MARLIN, sm_count=46),
    "gptq_marlin": Config(GPTQ),
}


class Split(torch.nn.Module):  # type: ignore[misc]  # mypy skips torch
    """A dense product whose partial sums over K are rounded to the activation's dtype, then added."""

    def __init__(self, of: Dense, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight_KN, self.bias = of._weight_KN, of.bias
        self.name = of.name

    @property
    def weight(self) -> torch.Tensor:
        """See `Dense.weight`."""
        return self.weight_KN.t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `Dense.forward`."""
        parts = [
            (a.float() @ b).to(x.dtype)
            for a, b in zip(x.chunk(self.count, -1), self.weight_KN.chunk(self.count, 0), strict=True)
        ]
        total = torch.stack(parts).float().sum(0)
        return (total if self.bias is None else total + self.bias.float()).to(x.dtype)


def changed(model: CausalLM, change: str, parts: int) -> CausalLM:
    """Change a model's dense layers; its output head only where it is computed otherwise."""
    for name, module in list(model.model.named_modules()):
        if not isinstance(module, Dense):
            continue
        if change == "split":
            parent, _, child = name.rpartition(".")
            setattr(model.model.get_submodule(parent), child, Split(module, parts))
        elif change == "w8" and "lm_head" not in name:
            weight_KN = module._weight_KN
            step = weight_KN.abs().amax(0, keepdim=True).clamp(min=1e-12) / 127  # widened rows are zero
            module._weight_KN = ((weight_KN / step).round() * step).half().float()
    return model


def loaded(model: str, config: Config) -> CausalLM:
    """Load the model of a config."""
    name, form, kernel = config.quant
    source = model if model.startswith("synthetic:") else f"{model}/{form}"
    checkpoint = resolve(source, format=form, progress=False)
    threads = torch.get_num_threads()
    backend = TransformersBackend(
        checkpoint, Quant(name, form, kernel), "float16", threads=threads, sm_count=config.sm_count
    )
    return changed(backend._lm, config.change, config.parts)


@torch.inference_mode()
def draw(model: CausalLM, prompts: list[list[int]], tokens: int, seed: int) -> np.ndarray:
    """Draw so many tokens after each prompt at temperature 1: (prompt, token)."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(map(len, prompts))
    pads = torch.tensor([longest - len(prompt) for prompt in prompts])
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.arange(longest) >= pads[:, None]
    last = torch.arange(len(prompts)) * longest + longest - 1
    logits, cache = model.run(ids, mask, last)
    found = []
    for _ in range(tokens):
        chosen = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
        found.append(chosen)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        logits, cache = model.run(chosen, mask, torch.arange(len(prompts)), cache)
    return torch.cat(found, 1).numpy()


@torch.inference_mode()
def rows(model: CausalLM, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Compute the rows that predict each token of an answer: (token, vocab) float16."""
    ids, cache, found = [*prompt, *answer[:-1]], None, []
    first = len(prompt) - 1
    for start in range(0, len(ids), CHUNK):
        part = torch.tensor([ids[start : start + CHUNK]])
        wanted = torch.arange(max(0, first - start), part.shape[1])
        kept = wanted if len(wanted) else torch.tensor([part.shape[1] - 1])
        mask = torch.ones(1, start + part.shape[1], dtype=torch.bool)
        logits, cache = model.run(part, mask, kept, cache)
        if len(wanted):
            found.append(logits.to(torch.float16).numpy().copy())
    return np.concatenate(found)


def prompts_of(model: str, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts as ids, and the same behind a hidden system prompt."""
    if model.startswith("synthetic:"):
        generator = np.random.default_rng(0)
        plain = [generator.integers(5, 500, 12).tolist() for _ in range(count)]
        prefix = generator.integers(5, 500, 9).tolist()
        return plain, [[*prefix, *one] for one in plain]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(f"{model}/none", format="none", progress=False).path)

    def ids(messages: list[dict[str, str]]) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    asked = [{"role": "user", "content": one} for one in QUESTIONS[:count]]
    system = {"role": "system", "content": HIDDEN}
    return [ids([one]) for one in asked], [ids([system, one]) for one in asked]


def capture(
    folder: Path,
    *,
    quick: bool,
    answers: int,
    tokens: int,
    say: Callable[[str], Any] = print,
    used: Container[str] = frozenset(CONFIGS),
) -> None:
    """Compute and keep the rows of every config that is used and not in the folder yet."""
    model = QUICK if quick else DEMO
    folder.mkdir(parents=True, exist_ok=True)
    plain, hidden = prompts_of(model, answers)
    text = folder / "text.npy"
    if not text.exists():
        start = time.monotonic()
        np.save(text, draw(loaded(model, CONFIGS["none"]), plain, tokens, seed=1))
        say(f"text of {answers} answers of {tokens} tokens: {time.monotonic() - start:.0f} s")
    answers_AT = np.load(text)
    for label, config in CONFIGS.items():
        target = folder / f"{label.replace(' ', '_')}.npy"
        if target.exists() or label not in used:
            continue
        start = time.monotonic()
        own = loaded(model, config)
        prompts = hidden if config.change == "hidden" else plain
        found = [rows(own, p, a.tolist()) for p, a in zip(prompts, answers_AT, strict=True)]
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.concatenate(found))
        part.rename(target)
        say(f"{label}: {sum(map(len, found))} rows in {time.monotonic() - start:.0f} s")


def main() -> None:
    """Compute the rows, which may be done before and apart from the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the rows are kept")
    parser.add_argument("--quick", action="store_true", help="a small random model")
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    capture(options.folder, quick=options.quick, answers=options.answers, tokens=options.tokens)


if __name__ == "__main__":
    main()
