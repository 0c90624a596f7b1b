"""A document's text as token ids, in which nothing that it writes can act as a control token.

A document may spell ``<|im_end|>`` or ``</think>``. A tokenizer reads such a string as one control token,
which ends the user's message, wherever the string is one of its added tokens, special or not, or a piece of
its vocabulary. Its own option ``split_special_tokens`` leaves the added tokens that are not special. So a
copy of the tokenizer is made in which every control token has another, unspeakable name; all ids stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from qdx.errors import QdxError

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MARKER = re.compile(r"[<\[{|(].*\w.*[>\]}|)]", re.DOTALL)
_NEVER = -1e6  # a score that every other way to write a text beats
_SHOWN = 3


class AsText:
    """Tokenises text as text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase

    Attributes
    ----------
    control : dict of int to str
        The control tokens that no text may become: special ones, those that the chat template writes, and
        all added ones but plain words and white space.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.control = control_tokens(tokenizer)
        self._unknown = tokenizer.unk_token_id
        fast = bool(getattr(tokenizer, "is_fast", False))
        self._core = _without(tokenizer, self.control) if fast else None

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Return the ids of a text, and each one's (first, last + 1) characters.

        Returns
        -------
        ids : list of int
        offsets : list of (int, int) or None
            None for tokenizers that cannot tell them (those not in Rust).

        Raises
        ------
        QdxError
            When a part of the text comes out as a control token all the same.
        """
        if self._core is not None:
            found = self._core.encode(text, add_special_tokens=False)
            ids, offsets = list(found.ids), [(first, last) for first, last in found.offsets]
        else:
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            ids, offsets = list(self._tokenizer(text, **options)["input_ids"]), None
        acting = sorted({token for token in ids if token in self.control and token != self._unknown})
        if acting:
            names = ", ".join(repr(self.control[token]) for token in acting[:_SHOWN])
            raise QdxError(
                f"the text writes {names}, which this tokenizer can only read as a control token: remove it "
                "from the text, or choose a model with a tokenizer.json"
            )
        return ids, offsets

    def spoken(self, text: str) -> list[str]:
        """Return the control tokens that a text spells."""
        return sorted({name for name in self.control.values() if len(name) > 2 and name in text})


_made: WeakKeyDictionary[Any, AsText] = WeakKeyDictionary()


def as_text(tokenizer: Any) -> AsText:
    """Return the `AsText` of a tokenizer, made once."""
    if tokenizer not in _made:
        _made[tokenizer] = AsText(tokenizer)
    return _made[tokenizer]


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the tokens of a tokenizer that steer a model: id → how it is written."""
    source = str(getattr(tokenizer, "chat_template", None) or "")
    found = {}
    for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        content = str(getattr(added, "content", added))
        word = content.isspace() or content.strip().isalnum()
        if getattr(added, "special", False) or not word or (content.strip() and content.strip() in source):
            found[int(token)] = content
    for token, content in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False):
        found.setdefault(int(token), str(content))
    if source:
        for piece in re.findall(r"[<\[{|(][^\s<>\[\]{}'\"]*\w[^\s<>\[\]{}'\"]*[>\]}|)]", source):
            token = tokenizer.convert_tokens_to_ids(piece)
            if isinstance(token, int) and token != tokenizer.unk_token_id and _MARKER.fullmatch(piece):
                found.setdefault(token, piece)
    return found


def _without(tokenizer: Any, control: dict[int, str]) -> Any:
    """Return a copy of a fast tokenizer's core in which the control tokens cannot be written."""
    from tokenizers import Tokenizer

    core: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    core["truncation"] = core["padding"] = None
    model = core["model"]
    bytes_matter = bool(model.get("byte_fallback"))
    names: dict[str, str] = {}  # as it is written → unspeakable
    for token, content in control.items():
        if not (bytes_matter and _BYTE.fullmatch(content)):
            names[content] = f"\U0010ffff{token}\U0010ffff"
    for added in core["added_tokens"]:
        if added["content"] in names:
            added["content"] = names[added["content"]]
            added["normalized"] = False
    _rename(model, names, bytes_matter)
    return Tokenizer.from_str(json.dumps(core))


def _rename(model: dict[str, Any], names: dict[str, str], bytes_matter: bool) -> None:
    """Rename entries of a vocabulary; bytes keep their names, by which the fallback finds them."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: [piece, score], and the id is the place
        for entry in vocabulary:
            if entry[0] in names:
                entry[0] = names[entry[0]]
            elif bytes_matter and _BYTE.fullmatch(entry[0]):
                entry[1] = _NEVER
    elif isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): token for piece, token in vocabulary.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        kept = [m for m in model["merges"] if not _makes_control(m, names, bytes_matter)]
        model["merges"] = kept


def _makes_control(merge: str | Sequence[str], names: dict[str, str], bytes_matter: bool) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    made = left + right
    return bool({left, right, made} & set(names)) or (bytes_matter and bool(_BYTE.fullmatch(made)))
