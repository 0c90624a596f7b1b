"""Windows of exactly so many tokens, cut evenly out of documents."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdx.errors import QdxError
from qdx.prompts._as_text import as_text
from qdx.prompts._reference import Ids, Reference, SourceFile, Summary
from qdx.prompts._template import split_template

LONGEST = 1 << 25  # characters of a document: its tokens take some fifty times that in bytes
MOST_UNKNOWN = 0.5  # of a window's tokens: chosen, not measured


@dataclass(frozen=True)
class Document:
    """One source's text.

    Attributes
    ----------
    name : str
    text : str
    sha256 : str
    page_starts : tuple of int
        Index in `text` of each page's first character, ascending; empty where there are no pages.
    note : str
        What a reader of the prompts should know of the reading, in one line.
    """

    name: str
    text: str
    sha256: str
    page_starts: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Tokens:
    """A document's ids, and each token's (first, last + 1) characters where the tokenizer tells them."""

    ids: Ids
    offsets: list[tuple[int, int]] | None


@dataclass(frozen=True)
class Placement:
    """Place the windows: for each document, ascending token indices at which they begin."""

    starts: tuple[tuple[int, ...], ...]
    continuations_overlap: bool


@dataclass(kw_only=True)
class WindowSource(ABC):
    """Options and loading of every source that cuts windows; what it cuts them from is its `documents`.

    Attributes
    ----------
    references : int
        Windows to cut, spread evenly over all documents.
    snippet_tokens : int
        Tokens of each window, exactly.
    continuation_tokens : int
        Tokens after each window that are kept as the shared continuation.
    instruction : str
        Stands before the snippet in the user's message.
    summary : Summary or None
        What was found; None before `load`.
    """

    references: int = 4
    snippet_tokens: int = 256
    continuation_tokens: int = 16
    instruction: str = "Summarize the following text:\n\n"
    summary: Summary | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_counts(self.references, self.snippet_tokens, self.continuation_tokens)

    @abstractmethod
    def documents(self) -> list[Document]:
        """Return the source's documents, in the order in which references are numbered; at least one."""

    def load(self, tokenizer: Any) -> list[Reference]:
        """Return the references; see `PromptSource.load`."""
        found, self.summary = cut(
            self.documents(),
            tokenizer,
            references=self.references,
            snippet_tokens=self.snippet_tokens,
            continuation_tokens=self.continuation_tokens,
            instruction=self.instruction,
        )
        return found


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def tokenize(tokenizer: Any, text: str) -> Tokens:
    """Tokenise a document as text: one that mentions ``<|im_end|>`` does not end the user's message.

    Returns
    -------
    Tokens
        Offsets are None for tokenizers that cannot tell them (those not in Rust).
    """
    ids, offsets = as_text(tokenizer).encode(text)
    return Tokens(np.asarray(ids, dtype=np.int32).reshape(-1), offsets)


def place(lengths: Sequence[int], references: int, snippet: int, continuation: int) -> Placement | None:
    """Choose where windows begin, evenly over all documents.

    Every document that can hold a window gets one before any gets two (with fewer windows than documents,
    evenly spaced documents get them); more are given where they lie thinnest. A document with n windows is
    divided into n equal parts, and each window lies in the middle of its part.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each document.
    references, snippet, continuation : int
        Windows asked for, tokens of each, tokens after each that must exist in the same document.

    Returns
    -------
    Placement or None
        None when the documents cannot hold so many disjoint windows. ``continuations_overlap`` is True when
        they can only if continuations run into the windows after them.
    """
    for overlap in (False, True):
        unit = snippet if overlap else snippet + continuation
        usable = [length - continuation if overlap else length for length in lengths]
        capacities = [max(length, 0) // unit for length in usable]
        if sum(capacities) < references:
            continue
        counts = _share(usable, capacities, references)
        starts = tuple(
            tuple(((2 * j + 1) * length - count * unit) // (2 * count) for j in range(count))
            for length, count in zip(usable, counts, strict=True)
        )
        return Placement(starts, overlap)
    return None


def _share(lengths: Sequence[int], capacities: Sequence[int], references: int) -> list[int]:
    able = [index for index, capacity in enumerate(capacities) if capacity]
    counts = [0] * len(lengths)
    if references < len(able):
        for j in range(references):
            counts[able[(2 * j + 1) * len(able) // (2 * references)]] = 1
        return counts
    for index in able:
        counts[index] = 1
    for _ in range(references - len(able)):
        open_ = [index for index in able if counts[index] < capacities[index]]
        counts[max(open_, key=lambda index: lengths[index] / (counts[index] + 1))] += 1
    return counts


def check_counts(references: int, snippet_tokens: int, continuation_tokens: int) -> None:
    """Refuse counts that no source can satisfy.

    Raises
    ------
    QdxError
        Naming the option, its value and its least value.
    """
    for option, value, least in (
        ("references", references, 1),
        ("snippet_tokens", snippet_tokens, 1),
        ("continuation_tokens", continuation_tokens, 0),
    ):
        if value < least:
            raise QdxError(f"prompts.{option} is {value}, must be at least {least}")


def cut(
    documents: Sequence[Document],
    tokenizer: Any,
    *,
    references: int,
    snippet_tokens: int,
    continuation_tokens: int,
    instruction: str,
) -> tuple[list[Reference], Summary]:
    """Cut references out of documents.

    Parameters
    ----------
    documents : sequence of Document
        At least one.
    tokenizer : transformers.PreTrainedTokenizerBase
    references, snippet_tokens, continuation_tokens : int
    instruction : str
        Put before the snippet in the user's message.

    Returns
    -------
    list of Reference
        Exactly `references`, by document and then by offset.
    Summary

    Raises
    ------
    QdxError
        When the documents are too short, naming their tokens, the tokens needed and what would fit.
    """
    for document in documents:
        if len(document.text) > LONGEST:
            raise QdxError(
                f"{document.name}: {len(document.text):,} characters, at most {LONGEST:,} are read at once: "
                "cut it into several files, for example with split -C 30M, and give these in prompts.path"
            )
    template = split_template(tokenizer, instruction)
    tokens = [tokenize(tokenizer, document.text) for document in documents]
    lengths = [len(found.ids) for found in tokens]
    placement = place(lengths, references, snippet_tokens, continuation_tokens)
    if placement is None:
        raise _too_short(documents, lengths, references, snippet_tokens, continuation_tokens)
    found: list[Reference] = []
    for document, source, starts in zip(documents, tokens, placement.starts, strict=True):
        for start in starts:
            end = start + snippet_tokens
            content = source.ids[start:end]
            text, pages = _locate(tokenizer, document, source, start, end)
            found += [
                Reference(
                    name=f"ref_{len(found)}",
                    token_ids=np.concatenate([template.prefix, content, template.suffix]).astype(np.int32),
                    prefix_length=len(template.prefix),
                    content_length=snippet_tokens,
                    suffix_length=len(template.suffix),
                    continuation=source.ids[end : end + continuation_tokens].copy(),
                    text=text,
                    source=document.name,
                    pages=pages,
                    token_offset=start,
                    sha256=document.sha256,
                )
            ]
    files = tuple(
        SourceFile(document.name, length, len(document.page_starts), document.sha256)
        for document, length in zip(documents, lengths, strict=True)
    )
    notes = tuple(document.note for document in documents if document.note)
    notes += _spelled(found, template.markers)
    notes += _unknown(found, getattr(tokenizer, "unk_token_id", None))
    overlap = placement.continuations_overlap
    return found, Summary(files, sum(lengths), template.present, overlap, notes=notes)


def _spelled(references: Sequence[Reference], markers: Sequence[str]) -> tuple[str, ...]:
    """Say which windows write a marker of the template that is plain text: no tokenizer tells them apart."""
    return tuple(
        f"{one.name} writes {marker!r}, which this model's chat template writes as plain text too: the "
        "model may take it for the template's"
        for one in references
        for marker in markers
        if marker in one.text
    )


def _unknown(references: Sequence[Reference], token: int | None) -> tuple[str, ...]:
    """Say how much of the windows the tokenizer does not know, and refuse what is mostly unknown to it.

    Raises
    ------
    QdxError
        When more than half of a window are unknown tokens: a text in a script that the model never saw.
    """
    counts = {
        one.name: int((one.token_ids[one.prefix_length :][: one.content_length] == token).sum())
        for one in references
    }
    total = sum(counts.values())
    if token is None or not total:
        return ()
    worst = max(references, key=lambda one: counts[one.name] / one.content_length)
    said = f"{counts[worst.name]} of {worst.content_length} tokens of {worst.name} ({worst.source})"
    if counts[worst.name] > worst.content_length * MOST_UNKNOWN:
        raise QdxError(
            f"{said} are unknown to this model's tokenizer, which puts one token in the place of all such "
            "characters: give a text in a language of the model in prompts.path"
        )
    return (
        f"{said} are characters that this model's tokenizer does not know, and it reads one token for all",
    )


def _locate(tokenizer: Any, document: Document, source: Tokens, start: int, end: int) -> tuple[str, str]:
    """Return a window's text and pages."""
    if source.offsets is None:
        return tokenizer.decode(source.ids[start:end].tolist(), clean_up_tokenization_spaces=False), ""
    first, last = source.offsets[start][0], source.offsets[end - 1][1]
    text = document.text[first:last]
    if not document.page_starts:
        return text, ""
    # The token's last character decides: a token with a leading space belongs to the page of its word.
    low = bisect_right(document.page_starts, max(source.offsets[start][1] - 1, 0))
    high = bisect_right(document.page_starts, max(last - 1, 0))
    return text, str(low) if low == high else f"{low}-{high}"


def _too_short(
    documents: Sequence[Document], lengths: Sequence[int], references: int, snippet: int, continuation: int
) -> QdxError:
    names = documents[0].name if len(documents) == 1 else f"{len(documents)} sources ({documents[0].name}, …)"

    def capacity(tokens: int) -> int:
        return sum(max(length - continuation, 0) // tokens for length in lengths)

    remedies = []
    if found := capacity(snippet):
        remedies.append(f"ask for at most {found} with prompts.references")
    # Capacity falls as windows grow: the longest window of which there are enough lies where it crosses.
    longest = bisect_right(range(1, max(lengths) + 1), -references, key=lambda tokens: -capacity(tokens))
    if longest:
        remedies.append(f"lower prompts.snippet_tokens to at most {longest}")
    remedy = ", ".join([*remedies, "or add text" if remedies else "add text"])
    within = (
        ""
        if len(documents) == 1
        else f" (longest source {max(lengths)}; a window never crosses from one into the next)"
    )
    return QdxError(
        f"{names}: too short, {sum(lengths)} tokens{within}, but {references} references of {snippet} tokens "
        f"with {continuation} tokens after each need {references * snippet + continuation}: {remedy}"
    )
