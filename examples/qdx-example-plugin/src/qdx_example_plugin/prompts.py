"""A prompt source: any class with ``load(tokenizer)`` that returns the same references at every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import qdx
from qdx.errors import QdxError

if TYPE_CHECKING:
    from qdx.prompts import Reference

COUNTRIES = ("Chile", "Kenya", "Nepal", "Norway", "Peru", "Portugal", "Senegal", "Thailand")


@qdx.register("prompts", "capitals")
class Capitals:
    """One question about the capital of a country for each reference.

    Parameters
    ----------
    references : int
        How many, 1…8.
    continuation_tokens : int
        Tokens of the shared continuation; qdx gives it ``generate.tokens``.

    Raises
    ------
    QdxError
        For more references than there are countries, or fewer than one.
    """

    def __init__(self, references: int = 4, continuation_tokens: int = 16) -> None:
        if not 1 <= references <= len(COUNTRIES):
            raise QdxError(
                f"prompts.references={references}: capitals has 1 to {len(COUNTRIES)} questions: "
                f"set prompts.references={min(max(references, 1), len(COUNTRIES))}, or add to COUNTRIES"
            )
        self.countries = COUNTRIES[:references]
        self.continuation_tokens = continuation_tokens

    def load(self, tokenizer: Any) -> list[Reference]:
        """Return the references."""
        from qdx.prompts import Inline

        texts = [f"What is the capital of {country}, and what is it known for?" for country in self.countries]
        return Inline(texts, continuation_tokens=self.continuation_tokens).load(tokenizer)
