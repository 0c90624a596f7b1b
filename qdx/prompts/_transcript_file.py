"""Reads what a stranger's file says that producers ran, and refuses, by name, what does not fit together.

Everything in the file is data: ids and numbers are checked against each other, names and texts are only
printed. Nothing in it is executed, and no path in it is opened.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdx.errors import QdxError
from qdx.prompts._reference import Ids, Reference, references_sha256

if TYPE_CHECKING:
    import xarray as xr

    from qdx.dataset.layout import Producer

GROUPS = ("references", "provenance", "prefill", "decode", "output")
KINDS = ("sweep", "commitments")
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode categories
LONGEST_NAME = 200


@dataclass(frozen=True)
class Transcripts:
    """What producers say that they generated, and from what.

    Attributes
    ----------
    path : Path
        The file.
    references : list of Reference
    producers : list of Producer
        With the tokens of their first repeats.
    vocab : int
        Logits in a row.
    tokenizer_sha256 : str
    lacking : tuple of str
        Lines on what the file does not state; see `qdx.dataset.lacking`.
    """

    path: Path
    references: list[Reference]
    producers: list[Producer]
    vocab: int
    tokenizer_sha256: str
    lacking: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Generated tokens of each reference."""
        return int(self.producers[0].token_ids.shape[1])

    @property
    def sha256(self) -> str:
        """Hash of what a replay depends on: who produced which tokens, and how they were batched."""
        digest = hashlib.sha256(references_sha256(self.references).encode())
        for producer in self.producers:
            about = sorted((name, str(value)) for name, value in producer.coords.items())
            digest.update(f"{producer.name}{about}{producer.token_ids.shape}".encode())
            digest.update(np.ascontiguousarray(producer.token_ids, np.int32).tobytes())
        return digest.hexdigest()


def locate(path: object) -> Path:
    """Return the file that the option ``prompts.path`` names: a file, or the merged one of a sweep folder.

    Raises
    ------
    QdxError
        When there is none.
    """
    from hydra.utils import to_absolute_path

    if not isinstance(path, str | Path) or not str(path).strip():
        raise QdxError(f"prompts.path={path}: give the producers' sweep.nc, its folder or a commitments file")
    found = Path(to_absolute_path(str(Path(path).expanduser())))
    if found.is_dir():
        if not (found / "sweep.nc").is_file():
            raise QdxError(f"{found} holds no sweep.nc: make it with python -m qdx.report {found}")
        return found / "sweep.nc"
    if not found.is_file():
        raise QdxError(f"prompts.path: {found}: no such file: give the producers' sweep.nc")
    return found


def read_once(path: Path) -> Transcripts:
    """`read`, but not again while the file is as it was: every job of a sweep asks."""
    state = path.stat()
    return _read_state(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read_state(path: Path, _mtime_ns: int, _size: int) -> Transcripts:
    return read(path)


def read(path: Path) -> Transcripts:
    """Read and check a file; see `Transcripts`.

    Raises
    ------
    QdxError
        For a file that is truncated, of another schema version or no sweep's, lacks a group or a variable, is
        a verifier's, holds no transcript, or whose parts contradict each other. The message names the file
        and what is wrong.
    DamageError
        When any of its values is not what was written: what the report reads is found before the replay.
    """
    from qdx.dataset.checked import require
    from qdx.dataset.checksums import is_checked
    from qdx.dataset.opening import open_file

    if is_checked(path):
        require(path)
    try:
        tree = open_file(path)
    except QdxError:
        raise
    except Exception as error:  # what a stranger wrote into attributes
        raise QdxError(f"{path} is no file that qdx wrote: {error}") from error
    try:
        return _Reader(path, tree).transcripts()
    except QdxError as error:
        raise QdxError(f"{path}: {error}") from error
    except Exception as error:  # a damaged chunk, a variable of another shape or type
        raise QdxError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        tree.close()


def clean(text: object) -> str:
    """Text without what acts on a terminal: control, formatting and surrogate characters become �."""
    return "".join(
        c if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in UNSEEN else "\ufffd" for c in str(text)
    )


class _Reader:
    """One file on its way to `Transcripts`; errors do not name the file."""

    def __init__(self, path: Path, tree: xr.DataTree) -> None:
        self._path, self._tree = path, tree

    def transcripts(self) -> Transcripts:
        """Check everything and return it."""
        from qdx.dataset.lacking import lacking

        self._check_kind()
        vocab = int(self._one_fact("vocab"))
        references = self._references(vocab)
        names = self._names("output", "config")
        tokens_CRT = self._tokens(names, references, vocab)
        self._check_rows(names, references, tokens_CRT)
        return Transcripts(
            self._path,
            references,
            self._producers(names, tokens_CRT),
            vocab,
            self._one_fact("tokenizer_sha256"),
            tuple(clean(line) for line in lacking(self._tree)),
        )

    def _check_kind(self) -> None:
        kind = str(self._tree.attrs.get("kind", ""))
        if kind == "run":
            raise QdxError("this is the run of one config: give the sweep.nc of its sweep")
        if self._tree.attrs.get("origin"):  # by python -m qdx.legacy
            raise QdxError(
                "this is an import of the original experiment's file: it lacks the size of the vocabulary, "
                "the tokenizer's hash and the parts of the prompts, so nothing can be replayed from it"
            )
        if kind not in KINDS:
            raise QdxError(f"kind is {clean(kind)!r}, neither {' nor '.join(KINDS)}: it holds no transcripts")
        replay = self._tree.children.get("replay")
        if replay is not None and "producer" in replay.dims:
            raise QdxError(
                "this is a verifier's sweep, whose configs replayed and generated nothing: give the "
                "producers' file that it replayed"
            )
        missing = [name for name in GROUPS if name not in self._tree.children]
        if missing:
            raise QdxError(f"no group /{missing[0]}: it holds no transcripts, or was changed")

    def _values(self, group: str, name: str, *dims: str) -> NDArray[Any]:
        dataset = self._tree[group].to_dataset()
        if name not in dataset.variables:
            raise QdxError(f"/{group} has no {name}: it was changed, or made by something else")
        variable = dataset[name]
        if set(variable.dims) != set(dims):
            raise QdxError(f"/{group}/{name} is over {variable.dims}, expected {dims}")
        return np.asarray(variable.transpose(*dims).values)

    def _integers(self, group: str, name: str, *dims: str) -> NDArray[np.int64]:
        values = self._values(group, name, *dims)
        if values.dtype.kind not in "iu":
            raise QdxError(f"/{group}/{name} holds {values.dtype}, expected integers")
        return values.astype(np.int64)

    def _names(self, group: str, name: str) -> list[str]:
        names = [str(value) for value in self._values(group, name, name)]
        for text in names:
            if clean(text) != text or not text.strip() or len(text) > LONGEST_NAME or "\n" in text:
                raise QdxError(
                    f"/{group}/{name}: {clean(text[:40])!r} is no name: control characters or length"
                )
        if not names or len(set(names)) < len(names):
            raise QdxError(f"/{group}/{name} has {len(names)} names, each must stand once")
        return names

    def _one_fact(self, name: str) -> str:
        """What all configs state alike in ``/provenance``."""
        values = sorted({str(value) for value in self._values("provenance", name, "config")})
        if len(values) != 1 or not values[0]:
            raise QdxError(f"/provenance/{name} is {clean(values)}: expected one for all configs")
        return values[0]

    def _references(self, vocab: int) -> list[Reference]:
        names = self._names("references", "reference")
        ids_RN = self._integers("references", "token_ids", "reference", "token")
        next_RN = self._integers("references", "continuation", "reference", "continuation_token")
        counts = {
            name: self._integers("references", name, "reference")
            for name in ("length", "prefix_length", "content_length", "suffix_length", "token_offset")
        }
        present = self._tree["references"].to_dataset()
        about = ("source", "pages", "sha256", *(["text"] if "text" in present else []))
        texts = {name: self._values("references", name, "reference") for name in about}
        found = []
        for r, name in enumerate(names):
            parts = [int(counts[f"{part}_length"][r]) for part in ("prefix", "content", "suffix")]
            length = int(counts["length"][r])
            if min(parts) < 0 or parts[1] < 1 or sum(parts) != length or length > ids_RN.shape[1]:
                raise QdxError(f"reference {name!r}: parts of {parts} tokens do not add up to {length}")
            found.append(
                Reference(
                    name=name,
                    token_ids=_ids(ids_RN[r], vocab, f"reference {name!r}", length),
                    prefix_length=parts[0],
                    content_length=parts[1],
                    suffix_length=parts[2],
                    continuation=_ids(next_RN[r], vocab, f"continuation of reference {name!r}"),
                    text=clean(texts["text"][r]) if "text" in texts else "",  # commitments come without
                    source=clean(texts["source"][r]),
                    pages=clean(texts["pages"][r]),
                    token_offset=int(counts["token_offset"][r]),
                    sha256=clean(texts["sha256"][r]),
                )
            )
        if "references_sha256" not in self._tree["provenance"].to_dataset():  # of an early version
            return found
        stated, own = self._one_fact("references_sha256"), references_sha256(found)
        if stated != own:
            raise QdxError(
                f"the references have the sha256 {own[:16]}…, the producers state {clean(stated[:16])}…: "
                "names, lengths or token ids were changed"
            )
        return found

    def _tokens(self, names: Sequence[str], references: Sequence[Reference], vocab: int) -> NDArray[np.int64]:
        order = ("config", "repeat", "reference", "output_token")
        if self._names("output", "reference") != [one.name for one in references]:
            raise QdxError("/output and /references name other references: it was changed")
        tokens_CQRT = self._integers("output", "token_id", *order)
        if 0 in tokens_CQRT.shape or tokens_CQRT.shape[-1] < 2:
            raise QdxError("/output holds no transcript of two tokens or more: nothing to replay")
        first_CRT = tokens_CQRT[:, 0]
        outside = np.argwhere((first_CRT < 0) | (first_CRT >= vocab))
        if len(outside):
            c, r, t = outside[0]
            raise QdxError(
                f"/output: token {t} of {names[c]!r}, {references[r].name!r} is {first_CRT[c, r, t]}, "
                f"outside the vocabulary of {vocab} tokens: it was changed, or the transcript is shorter"
            )
        return first_CRT

    def _check_rows(
        self, names: Sequence[str], references: Sequence[Reference], tokens_CRT: NDArray[np.int64]
    ) -> None:
        """Hold the ids beside the rows against the references and the generated tokens."""
        heads = [one.token_ids.tolist() for one in references]
        expected = {
            "prefill": [[[*head, own[0]] for own in tokens_CRT[:, r]] for r, head in enumerate(heads)],
            "decode": [[[*head, *own] for own in tokens_CRT[:, r]] for r, head in enumerate(heads)],
        }
        for phase, of in expected.items():
            for coordinate, wanted in (("config", list(names)), ("reference", [r.name for r in references])):
                if self._names(phase, coordinate) != wanted:
                    raise QdxError(f"/{phase} and /output differ in {coordinate}: it was changed")
            if "token_id" not in self._tree[phase].to_dataset():  # a commitments file has none
                continue
            order = ("config", "repeat", "reference", "position")
            ids = self._integers(phase, "token_id", *order)[:, 0]
            captured = self._values(phase, "captured", *order)[:, 0].astype(bool)
            position = self._integers(phase, "position", "position")
            for c, r in np.ndindex(captured.shape[:2]):
                path = np.asarray(of[r][c])
                here = position[captured[c, r]]
                fits = len(here) == 0 or (here.min() >= 0 and here.max() < len(path))
                if not fits or (ids[c, r, captured[c, r]] != path[here]).any():
                    raise QdxError(
                        f"/{phase}: the token ids of {names[c]!r}, {references[r].name!r} are not those of "
                        "the reference and of /output: it was changed"
                    )

    def _producers(self, names: Sequence[str], tokens_CRT: NDArray[np.int64]) -> list[Producer]:
        from qdx.dataset.layout import CONFIG_COORDS, Producer

        decode = self._tree["decode"].to_dataset()
        # What the report will say of the producers: text that cannot be read is found before the replay.
        for stated in (decode.coords.to_dataset(), self._tree["provenance"].to_dataset()):
            stated.load()
        columns = {name: np.broadcast_to(decode[name].values, len(names)) for name in CONFIG_COORDS}
        found = []
        for c, name in enumerate(names):
            coords: dict[str, Any] = {}
            for key, variable in CONFIG_COORDS.items():
                value = columns[key][c]
                kind = {"str": str, "bool": bool, "i4": int}[variable.dtype]
                coords[key] = clean(value) if kind is str else kind(value)
            if coords["batch_size"] < 1:
                raise QdxError(f"producer {name!r} states batch_size {coords['batch_size']}: it was changed")
            found.append(Producer(name, tokens_CRT[c].astype(np.int32), coords))
        return found


def _ids(values_N: NDArray[np.int64], vocab: int, whose: str, length: int | None = None) -> Ids:
    """The ids before the −1 that fill an array up."""
    own = values_N >= 0
    count = int(own.sum()) if length is None else length
    if own[:count].sum() != count or own[count:].any() or (values_N >= vocab).any():
        raise QdxError(f"{whose} does not hold {count} ids of a vocabulary of {vocab} tokens: it was changed")
    return values_N[:count].astype(np.int32)
