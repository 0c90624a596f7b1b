"""Write docs/architectures.md: every causal LM that the installed transformers maps, tried on this machine.

Usage: ``python docs/build_architectures.py``; it takes about two minutes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).with_name("architectures.md")
INTRODUCTION = """# Which architectures run on the CPU

This page is for those who want to run a model other than the demo model on a CPU.

`backend=transformers` computes a model's layers with numerical models of GPU kernels. Before the first job of
a sweep it builds a small random model of the checkpoint's own config and computes it both ways in float32. It
goes on only if the logits agree. What does not agree is refused in one line, whatever this table says.

The table shows the outcome for the default config of each causal LM that transformers {version} maps. Of
{count}, {right} are right. {alone} more are right while prompts of unequal length are not in one batch
(`batch_size=1`), and {refused} are refused. A checkpoint whose config differs from the default may fare
otherwise. vLLM (`backend=vllm`) has a list of its own. This page is written by
`python docs/build_architectures.py`.

| model type | class | outcome |
|---|---|---|
"""


def page(found: Iterable[tuple[str, str, str]], version: str) -> str:
    """Return the page's text for what `qdx.backends.rehearsal.survey` yields."""
    rows = sorted(found)
    alone = sum("use batch_size=1" in trouble for _, _, trouble in rows)
    right = sum(not trouble for _, _, trouble in rows)
    counts = {"count": len(rows), "right": right, "alone": alone, "refused": len(rows) - right - alone}
    text = INTRODUCTION.format(version=version, **counts)
    for name, architecture, trouble in rows:
        outcome = f"refused: {trouble}" if trouble else "right"
        if "use batch_size=1" in trouble:
            outcome = f"right with batch_size=1; {trouble.removesuffix(': use batch_size=1')}"
        text += f"| `{name}` | {architecture} | {outcome.replace('|', '∣')} |\n"
    return text


def main() -> None:
    """Try them all and write the page."""
    from importlib.metadata import version

    from qdx.backends.rehearsal import survey

    PAGE.write_text(page(survey(), version("transformers")), encoding="utf-8")


if __name__ == "__main__":
    main()
