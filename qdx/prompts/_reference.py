"""Define the references that a prompt source gives back, and print them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError, printable

Ids = NDArray[np.int32]

MOST_LINES = 12  # of files or references that are printed; all of them are in the results file


@dataclass(frozen=True, eq=False)
class Reference:
    """One prompt as token ids: template prefix + content + template suffix.

    Attributes
    ----------
    name : str
        ``ref_0``, ``ref_1`` …
    token_ids : ndarray of int32, (tokens,)
        Prefix, content and suffix, concatenated as ids; no text is tokenised twice.
    prefix_length, content_length, suffix_length : int
        Tokens of each part; they add up to ``len(token_ids)``.
    continuation : ndarray of int32, (continuation_tokens,)
        The tokens that follow the content in its source: the path that every config's replay is fed.
    text : str
        The content as text.
    source : str
        Name of the document that the content was cut from.
    pages : str
        Its pages, such as ``"3"`` or ``"3-5"``; empty where the source has no pages.
    token_offset : int
        Index of the first content token in the tokenised document.
    sha256 : str
        Of the source file's bytes, or of the text (UTF-8) where there is no file.
    """

    name: str
    token_ids: Ids
    prefix_length: int
    content_length: int
    suffix_length: int
    continuation: Ids
    text: str
    source: str
    pages: str
    token_offset: int
    sha256: str


@dataclass(frozen=True)
class SourceFile:
    """One document that a source read: its name, its tokens, its pages (0 where it has none), its sha256."""

    name: str
    tokens: int
    pages: int
    sha256: str


@dataclass(frozen=True)
class Summary:
    """Summarize what a source found when it last loaded.

    Attributes
    ----------
    files : tuple of SourceFile
        In the order in which windows were cut.
    total_tokens : int
        Of all documents, without template.
    has_template : bool
        False when the tokenizer has no chat template, so that the content alone is the prompt.
    continuations_overlap : bool
        True when the source is so short that a window's continuation runs into the next window.
    noun : str
        What the documents are: "file", "text" …
    notes : tuple of str
        What a reader should know of how documents were read, a line each.
    """

    files: tuple[SourceFile, ...]
    total_tokens: int
    has_template: bool
    continuations_overlap: bool = False
    noun: str = "file"
    notes: tuple[str, ...] = ()


class PromptSource(Protocol):
    """Anything that gives references."""

    def load(self, tokenizer: Any) -> list[Reference]:
        """Return the references: the same ids, in the same order, at every call.

        Parameters
        ----------
        tokenizer : transformers.PreTrainedTokenizerBase

        Raises
        ------
        QdxError
            When the source cannot be read or is too short; the message names the file, what was found, the
            limit and the remedy.
        """
        ...


def check_references(references: object, *, who: str, tokens: int) -> None:
    """Hold what a source loaded to the contract.

    Parameters
    ----------
    references : object
        What ``load`` returned.
    who : str
        The source, for the message.
    tokens : int
        Length that every shared continuation must have.

    Raises
    ------
    QdxError
    """
    if not isinstance(references, list) or not all(isinstance(one, Reference) for one in references):
        kind = type(references).__name__
        raise QdxError(f"{who}.load returned a {kind}: return a list of qdx.prompts.Reference")
    if not references:
        raise QdxError(f"{who}.load returned no reference: return at least one")
    names = [one.name for one in references]
    if len(set(names)) < len(names):
        raise QdxError(f"{who}.load returned two references of one name: name them ref_0, ref_1 …")
    for one in references:
        parts = one.prefix_length + one.content_length + one.suffix_length
        if parts != len(one.token_ids) or not one.content_length:
            raise QdxError(
                f"{who}.load: reference {one.name!r} has {len(one.token_ids)} token_ids and parts of {parts} "
                f"tokens, {one.content_length} of them content: prefix, content and suffix must add up"
            )
        if len(one.continuation) != tokens:
            raise QdxError(
                f"{who}.load: reference {one.name!r} has a continuation of {len(one.continuation)} tokens, "
                f"not generate.tokens={tokens}: make the option continuation_tokens its length"
            )


def references_sha256(references: Sequence[Reference]) -> str:
    """Return the SHA-256 of everything of the references that a model sees."""
    digest = hashlib.sha256()
    for r in references:
        parts = (r.name, r.prefix_length, r.content_length, r.suffix_length, len(r.continuation))
        digest.update(f"{parts}".encode())
        for ids in (r.token_ids, r.continuation):
            digest.update(np.ascontiguousarray(ids, np.int32).tobytes())
    return digest.hexdigest()


def describe(
    references: Sequence[Reference], summary: Summary | None = None, *, transcripts: bool = False
) -> str:
    """Return the lines of a report about its prompts.

    Parameters
    ----------
    references : sequence of Reference
        At least one.
    summary : Summary, optional
        The source's ``summary`` after loading; without it, the lines about files and totals are left out.
    transcripts : bool
        Producers' transcripts are replayed, not the shared continuation.

    Returns
    -------
    str
        Lines joined by newlines, without a trailing one.
    """
    lines = []
    if summary is not None:
        lines += _file_lines(summary)
        lines += [f"NOTE: {note}" for note in summary.notes[:MOST_LINES]]
    lines += _length_lines(references)
    if not transcripts:
        tokens = _plural(len(references[0].continuation), "token")
        lines += [f"shared continuation: {tokens} for each reference"]
    if summary is not None and not summary.has_template:
        lines += [
            "no chat template in the tokenizer: the text alone is the prompt, without prompts.instruction"
        ]
    if summary is not None and summary.continuations_overlap:
        lines += ["the source is short: continuations run into the next window (the windows do not overlap)"]
    width = max(len(reference.name) for reference in references)
    shown = references[:MOST_LINES]
    lines += [f"{reference.name:<{width}}  {_provenance(reference, transcripts)}" for reference in shown]
    if len(references) > len(shown):
        lines += [f"… and {len(references) - len(shown)} more, up to {references[-1].name}"]
    return printable("\n".join(lines))


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _file_lines(summary: Summary) -> list[str]:
    total = f"{_plural(summary.total_tokens, 'source token')} in all"
    count = _plural(len(summary.files), summary.noun)
    if len(summary.files) == 1:
        (only,) = summary.files
        pages = f" ({_plural(only.pages, 'page')})" if only.pages else ""
        return [f"{count} found: {only.name}{pages}, {total}"]
    lines = [f"{count} found, {total}"]
    for file in summary.files[:MOST_LINES]:
        pages = f"{_plural(file.pages, 'page')}, " if file.pages else ""
        lines += [f"  {file.name}: {pages}{_plural(file.tokens, 'token')}"]
    if len(summary.files) > MOST_LINES:
        lines += [f"  … and {len(summary.files) - MOST_LINES} more"]
    return lines


def _length_lines(references: Sequence[Reference]) -> list[str]:
    """One line for each distinct shape: windows share one, inline texts may not."""
    shapes: dict[tuple[int, int, int], list[str]] = {}
    for reference in references:
        shape = (reference.prefix_length, reference.content_length, reference.suffix_length)
        shapes.setdefault(shape, []).append(reference.name)
    if len(shapes) > MOST_LINES:
        lengths = sorted(len(reference.token_ids) for reference in references)
        return [f"{_plural(len(references), 'reference')} of {lengths[0]:,} to {lengths[-1]:,} tokens"]
    lines = []
    for (prefix, content, suffix), names in shapes.items():
        who = _plural(len(names), "reference") if len(shapes) == 1 else ", ".join(names)
        total = prefix + content + suffix
        lines += [f"{prefix} prefix + {content} snippet + {suffix} suffix = {total} tokens ({who})"]
    return lines


def _provenance(reference: Reference, stated: bool = False) -> str:
    """Return where a reference came from and how it begins; `stated`: by a producer, whose word it is."""
    parts = [reference.source]
    if reference.pages:
        parts += [f"{'pages' if '-' in reference.pages else 'page'} {reference.pages}"]
    first = reference.token_offset
    parts += [f"tokens {first}–{first + reference.content_length - 1}", f"sha256 {reference.sha256[:12]}"]
    quote = f"“{_excerpt(reference.text)}”"
    where = ", ".join(parts)
    return f"{quote} (stated by the producer: {where})" if stated else f"{where}: {quote}"


def _excerpt(text: str, limit: int = 40) -> str:
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "…"
