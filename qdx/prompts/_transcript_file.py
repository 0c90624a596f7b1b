"""Reads what a stranger's file says that producers ran, and refuses, by name, what does not fit together.

Everything in the file is data: ids and numbers are checked against each other, names and texts are only
printed, on one line. Nothing in it is executed, and no path in it is opened: `qdx.dataset.guarding.guard` has
looked at its structure before it is read. The text of the prompts is not read at all: who shows it decodes
the token ids.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdx.dataset.layout import RECORDS
from qdx.endpoints.answers import ANSWERS
from qdx.errors import QdxError, printable
from qdx.prompts._reference import Ids, Reference, references_sha256

if TYPE_CHECKING:
    import xarray as xr

    from qdx.dataset.layout import Producer

GROUPS = ("references", "provenance", "prefill", "decode", "output")
OF_RECORDS = ("references", "provenance", "decode", "output", "stated")
KINDS = ("sweep", "commitments", "opened", RECORDS)
OPENED = "opened"  # the kind of python -m qdx.open_rows, and the group of its rows
OPENED_ROWS = {  # their dimensions and kinds of values
    "of_config": (("row",), "OUTS"),
    "of_reference": (("row",), "OUTS"),
    "of_phase": (("row",), "OUTS"),
    "of_position": (("row",), "iu"),
    "row_logit": (("row", "vocab"), "f"),
    "path": (("row", "level", "byte"), "u"),
}
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode categories
LONGEST_NAME = 80
LONGEST_TEXT = 200  # of a source or of a fact, which a report shows on one line
# A label or a name is a word in a table and not a sentence: no space, no quotes, nothing outside ASCII, where
# letters of other alphabets look alike and joiners are invisible.
NAME = re.compile(r"[A-Za-z0-9_.,=+:@%~^&;!?#()\[\]{}$-]+")
PAGES = re.compile(r"([0-9]{1,7}(-[0-9]{1,7})?(, ?[0-9]{1,7}(-[0-9]{1,7})?)*)?")
DIGEST = re.compile(r"([0-9a-f]{64})?")


@dataclass(frozen=True)
class Transcripts:
    """Hold what producers say that they generated, and from what.

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
    components : int
        Values of a row's sketch; 0 in a file of commitments, which has no sketches.
    sketch_seed : str
        Of their projection; "" where the file does not state it.
    kind : str
        One of `KINDS`.
    notes : tuple of str
        Lines on how records of other programs were read.
    opened : bool
        Whether it opens rows that were bound before, which are judged with the challenge that they answer.
    draw_seed : str
        With which answers were drawn of records of other programs; "" where all were taken.
    """

    path: Path
    references: list[Reference]
    producers: list[Producer]
    vocab: int
    tokenizer_sha256: str
    lacking: tuple[str, ...] = ()
    components: int = 0
    sketch_seed: str = ""
    kind: str = "sweep"
    notes: tuple[str, ...] = ()
    opened: bool = False
    draw_seed: str = ""

    @property
    def tokens(self) -> int:
        """Generated tokens of each reference; of records, whose answers have own lengths, the most."""
        return int(self.producers[0].token_ids.shape[1])

    @property
    def replayed(self) -> int:
        """Tokens of all transcripts together."""
        return sum(int((producer.token_ids >= 0).sum()) for producer in self.producers)

    @property
    def sha256(self) -> str:
        """Hash of what a replay depends on: who produced which tokens, and how they were batched."""
        digest = hashlib.sha256(references_sha256(self.references).encode())
        for producer in self.producers:
            about = sorted((name, str(value)) for name, value in producer.coords.items())
            digest.update(f"{producer.name}{about}{producer.token_ids.shape}".encode())
            digest.update(np.ascontiguousarray(producer.token_ids, np.int32).tobytes())
            if producer.samplers is not None:
                digest.update(np.ascontiguousarray(producer.samplers, "<f8").tobytes())
            if producer.noise:
                digest.update(f"{producer.noise}{producer.seeds}".encode())
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
        raise QdxError(
            f"prompts.path={path}: give the producers' sweep.nc, its folder, a commitments file or "
            "records of another program"
        )
    found = Path(to_absolute_path(str(Path(path).expanduser())))
    if found.is_dir():
        if (found / ANSWERS).is_file() and not (found / "sweep.nc").is_file():
            return found / ANSWERS
        if not (found / "sweep.nc").is_file():
            raise QdxError(f"{found} holds no sweep.nc: make it with python -m qdx.report {found}")
        return found / "sweep.nc"
    if found.exists() and not found.is_file():
        raise QdxError(f"prompts.path: {found} is a fifo, device or socket: give the producers' sweep.nc")
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
        For a file that the guard refuses (`qdx.dataset.guarding`), that is truncated, of another schema
        version or no sweep's, lacks a group or a variable, is a verifier's, holds no transcript, or whose
        parts contradict each other. The message names the file and what is wrong.
    DamageError
        When any of its values is not what was written: what the report reads is found before the replay.
    """
    from qdx.dataset.checked import require
    from qdx.dataset.checksums import is_checked
    from qdx.dataset.guarding import guard
    from qdx.dataset.opening import open_file

    guard(path)
    if is_checked(path):
        require(path)
    try:
        tree = open_file(path)
    except QdxError:
        raise
    except Exception as error:  # what a stranger wrote into attributes
        raise QdxError(f"{path} is not a file that qdx wrote: {error}") from error
    try:
        return _Reader(path, tree).transcripts()
    except QdxError as error:
        raise QdxError(f"{path}: {error}") from error
    except Exception as error:  # a damaged chunk, a variable of another shape or type
        raise QdxError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        tree.close()


def check_name(text: str, what: str) -> None:
    """Hold a label or a name of a stranger's to an alphabet and a length.

    Parameters
    ----------
    text : str
    what : str
        Where it stands, for the message.

    Raises
    ------
    QdxError
        Naming the first character that is outside, by its number: it may look like one that is inside.
    """
    if len(text) > LONGEST_NAME:
        raise QdxError(
            f"{what}: {clean(text[:40])!r}… is not a name: {len(text)} characters, limit {LONGEST_NAME}: its "
            "maker can give it another one (label=…)"
        )
    if NAME.fullmatch(text):
        return
    outside = next((c for c in text if not NAME.fullmatch(c)), "")
    said = f"it holds U+{ord(outside):04X} {_called(outside)}" if outside else "it is empty"
    raise QdxError(
        f"{what}: {clean(text)!r} is not a name: {said}; letters, digits and _.,=+:@-()[]{{}} are allowed: "
        "its maker can give it another one (label=…)"
    )


def refusals(labels: Sequence[str], references: Sequence[Reference]) -> list[str]:
    """Say what of a sweep's own names a verifier will refuse, for its maker to change before it runs.

    Returns
    -------
    list of str
        One line for each label, and for the first name, list of pages or sha256 of a reference that `read`
        does not take.
    """
    lines = []
    for label in labels:
        try:
            check_name(label, "label")
        except QdxError as error:
            lines.append(str(error))
    for one in references:
        try:
            check_name(one.name, "reference")
            _check_origin(one.name, {"pages": one.pages, "sha256": one.sha256})
        except QdxError as error:
            return [*lines, str(error)]
    return lines


def _check_origin(name: str, texts: Mapping[str, str]) -> None:
    """Hold what a reference states of its document to its form."""
    for about, pattern in (("pages", PAGES), ("sha256", DIGEST)):
        text = texts[about]
        if len(text) > LONGEST_NAME or not pattern.fullmatch(text):
            raise QdxError(f"reference {name!r}: its {about} are {clean(text[:40])!r}: it was changed")


def _called(character: str) -> str:
    return unicodedata.name(character, "control character").lower()


def check_fact(text: str, what: str, *, ascii_only: bool = True) -> None:
    """Hold a fact of a stranger's to one line of a limited length that looks like what it is.

    Raises
    ------
    QdxError
    """
    outside = [c for c in text if not c.isprintable() or (ascii_only and not c.isascii())]
    if outside:
        raise QdxError(
            f"{what} is {clean(text[:60])!r}: it holds U+{ord(outside[0]):04X} {_called(outside[0])}"
        )
    if len(text) > LONGEST_TEXT or text != " ".join(text.split()):
        raise QdxError(
            f"{what} is {text[:60]!r}, {len(text)} characters: must be at most {LONGEST_TEXT}, without "
            "spaces at its ends or several in a row"
        )


def one_line(text: object) -> str:
    """Text on one line: what acts on a terminal and line breaks become �, and a long one is cut."""
    shown = (
        printable(str(text)).replace("\n", "\ufffd").replace("\u200c", "\ufffd").replace("\u200d", "\ufffd")
    )
    return shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 1] + "…"


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

        kind = self._check_kind()
        vocab = int(self._one_fact("vocab"))
        recorded = kind == RECORDS
        components = self._check_no_rows() if recorded else self._check_evidence()
        opened = False if recorded else self._check_opened(vocab)
        references = self._references(vocab)
        names = self._names("output", "config")
        tokens_CRT = self._tokens(names, references, vocab, ragged=recorded)
        if not recorded:
            self._check_rows(names, references, tokens_CRT)
        notes = str(self._tree.attrs.get("notes", "")) if recorded else ""
        return Transcripts(
            self._path,
            references,
            self._producers(names, tokens_CRT, least_batch=0 if recorded else 1),
            vocab,
            self._one_fact("tokenizer_sha256"),
            () if recorded else tuple(clean(line) for line in lacking(self._tree)),
            components,
            self._one_fact("sketch_seed") if "sketch_seed" in self._tree["provenance"].to_dataset() else "",
            kind,
            tuple(clean(line) for line in notes.split("\n") if line),
            opened,
            self._draw_seed() if recorded else "",
        )

    def _draw_seed(self) -> str:
        """The seed that a file of records was drawn with; "" where it is not stated, or is not a number."""
        stored = self._tree["provenance"].to_dataset()
        values = {str(value) for value in stored["draw_seed"].values} if "draw_seed" in stored else set()
        text = values.pop() if len(values) == 1 else ""
        return text if text.isascii() and text.isdigit() and len(text) < 20 else ""

    def _check_kind(self) -> str:
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
        groups = OF_RECORDS if kind == RECORDS else GROUPS
        missing = [name for name in groups if name not in self._tree.children]
        if missing:
            raise QdxError(f"no group /{missing[0]}: it holds no transcripts, or was changed")
        return kind

    def _check_no_rows(self) -> int:
        """Refuse rows in a file of records: nobody but qdx records any, and nothing would judge these."""
        rows = [name for name in self._tree.children if name in ("prefill", "replay")]
        held = [str(name) for name in self._tree["decode"].to_dataset().data_vars if name != "captured"]
        if rows or held or self._tree["decode"].to_dataset()["captured"].values.any():
            raise QdxError(
                f"a file of records has no rows, this one has {', '.join([*rows, *held]) or 'some'}"
            )
        return 0

    def _check_evidence(self) -> int:
        """Refuse rows without what they are compared by, now and not after the replay; return components.

        A commitments file has a commitment for every row, a sweep a hash and a sketch.
        """
        row = ("config", "repeat", "reference", "position")
        kind = str(self._tree.attrs.get("kind"))
        committed = kind in ("commitments", OPENED)
        wanted: dict[str, tuple[str, ...]] = {"row_hash": row, "sketch": (*row, "component")}
        if committed:  # opened rows stand in a group of their own
            wanted = {} if kind == OPENED else {"commitment": (*row, "byte")}
        found: dict[str, int] = {}
        for phase in ("prefill", "decode"):
            dataset = self._tree[phase].to_dataset()
            for name in ("captured", *wanted):
                if name not in dataset.variables:
                    raise QdxError(f"/{phase} has no {name}: its rows cannot be compared with a replay's")
            for key, variable in dataset.data_vars.items():
                own = variable.dims
                # Also of what a later version may add: a row has these four dimensions and one of its own.
                if "position" in own and own != ("reference", "position"):
                    extra = [str(dim) for dim in own if dim not in row]
                    if set(row) - set(own) or len(extra) > 1 or "producer" in extra:
                        raise QdxError(
                            f"/{phase}/{key} is over {', '.join(map(str, own))}: expected {', '.join(row)}"
                        )
            for name, dims in wanted.items():
                if set(dataset[name].dims) != set(dims):
                    raise QdxError(f"/{phase}/{name} is over {dataset[name].dims}, expected {dims}")
            if not committed:
                found[phase] = int(dataset.sizes["component"])
        if len(set(found.values())) > 1:
            raise QdxError(
                f"sketches have {found['prefill']} components in prefill, {found['decode']} in decode"
            )
        return found.get("decode", 0)

    def _check_opened(self, vocab: int) -> bool:
        """Refuse opened rows that are not rows of logits with their places; return whether there are any."""
        if str(self._tree.attrs.get("kind")) != OPENED:
            return False
        if OPENED not in self._tree.children:
            raise QdxError(f"no group /{OPENED}: it opens no rows, or was changed")
        data = self._tree[OPENED].to_dataset()
        for row, (over, kinds) in OPENED_ROWS.items():
            if row not in data.variables or data[row].dims != over or data[row].dtype.kind not in kinds:
                found = f"{data[row].dims} of {data[row].dtype}" if row in data.variables else "not there"
                raise QdxError(f"/{OPENED}/{row} is {found}: expected it over {', '.join(over)}")
        if data.sizes["vocab"] != vocab or data.sizes["byte"] != 32 or data["row_logit"].dtype != np.float32:
            raise QdxError(
                f"/{OPENED}: rows of {data.sizes['vocab']} {data['row_logit'].dtype} and hashes of "
                f"{data.sizes['byte']} bytes, expected {vocab} float32 and 32"
            )
        return True

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
        # A copy of eight bytes a value only where four do not hold it: a file may be large.
        return values if values.dtype == np.int32 else values.astype(np.int64)

    def _names(self, group: str, name: str) -> list[str]:
        names = [str(value) for value in self._values(group, name, name)]
        for text in names:
            check_name(text, f"/{group}/{name}")
        if not names or len(set(names)) < len(names):
            raise QdxError(f"/{group}/{name} has {len(names)} names, each must stand once")
        return names

    def _one_fact(self, name: str) -> str:
        """Return what all configs state alike in ``/provenance``."""
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
        texts = {
            name: self._values("references", name, "reference") for name in ("source", "pages", "sha256")
        }
        found = []
        for r, name in enumerate(names):
            parts = [int(counts[f"{part}_length"][r]) for part in ("prefix", "content", "suffix")]
            length = int(counts["length"][r])
            if min(parts) < 0 or parts[1] < 1 or sum(parts) != length or length > ids_RN.shape[1]:
                raise QdxError(f"reference {name!r}: parts of {parts} tokens do not add up to {length}")
            _check_origin(name, {about: str(texts[about][r]) for about in ("pages", "sha256")})
            found.append(
                Reference(
                    name=name,
                    token_ids=_ids(ids_RN[r], vocab, f"reference {name!r}", length),
                    prefix_length=parts[0],
                    content_length=parts[1],
                    suffix_length=parts[2],
                    continuation=_ids(next_RN[r], vocab, f"continuation of reference {name!r}"),
                    text="",  # of the token ids, see `Transcripts.load`: what the file says need not fit them
                    source=one_line(texts["source"][r]),
                    pages=str(texts["pages"][r]),
                    token_offset=int(counts["token_offset"][r]),
                    sha256=str(texts["sha256"][r]),
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

    def _tokens(
        self, names: Sequence[str], references: Sequence[Reference], vocab: int, *, ragged: bool
    ) -> NDArray[np.int64]:
        order = ("config", "repeat", "reference", "output_token")
        if self._names("output", "reference") != [one.name for one in references]:
            raise QdxError("/output and /references name other references: it was changed")
        tokens_CQRT = self._integers("output", "token_id", *order)
        if 0 in tokens_CQRT.shape or tokens_CQRT.shape[-1] < 2:
            raise QdxError("/output holds no transcript of two tokens or more: nothing to replay")
        first_CRT = tokens_CQRT[:, 0]
        least = 0
        if ragged:  # a transcript ends where the first −1 is; who answered nothing to a prompt has none
            least = -1
            ended = np.cumsum(first_CRT < 0, -1) > 0
            if (first_CRT[ended] >= 0).any() or not (first_CRT >= 0).any((1, 2)).all():
                raise QdxError("/output: a transcript has a hole, or somebody has none: it was changed")
        outside = np.argwhere((first_CRT < least) | (first_CRT >= vocab))
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

    def _producers(
        self, names: Sequence[str], tokens_CRT: NDArray[np.int64], *, least_batch: int
    ) -> list[Producer]:
        from qdx.dataset.layout import CONFIG_COORDS, Producer, setting_names

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
                coords[key] = kind(value)
                if kind is str:
                    check_fact(str(value), f"{key} of producer {name!r}", ascii_only=key != "model")
            for key in setting_names(decode.coords):
                values = np.broadcast_to(decode[key].values, len(names))
                check_fact(str(values[c]), f"{key} of producer {name!r}", ascii_only=False)
            if coords["batch_size"] < least_batch:
                raise QdxError(f"producer {name!r} states batch_size {coords['batch_size']}: it was changed")
            noise = self._noise(name)
            seeds = self._seeds(c) if noise else ()
            found.append(
                Producer(name, tokens_CRT[c].astype(np.int32), coords, self._samplers(c), noise, seeds)
            )
        return found

    def _samplers(self, config: int) -> NDArray[np.float64] | None:
        """Return how the transcripts of records were drawn, see `qdx.dataset.layout.Producer`."""
        from qdx.records.decoding import samplers_of

        if str(self._tree.attrs.get("kind")) != RECORDS:
            return None
        found = samplers_of(self._values("stated", "decoding", "config", "reference")[config])
        return None if np.isnan(found).all() else found

    def _noise(self, name: str) -> str:
        """Return how a producer of records made noise of seeds, as the verifier said; "" where he did not."""
        stored = self._tree["provenance"].to_dataset()
        if str(self._tree.attrs.get("kind")) != RECORDS or "noise" not in stored:
            return ""
        said = str(stored["noise"].sel(config=name).values)
        check_fact(said, f"noise of producer {name!r}", ascii_only=True)
        return said

    def _seeds(self, config: int) -> tuple[int | None, ...]:
        """Return the seed of each transcript's noise; None where no number of 64 bits is stated."""
        values = self._values("stated", "noise_seed", "config", "reference")[config]
        return tuple(_seed(str(value)) for value in values)


def _seed(text: str) -> int | None:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    return int(text) if -(2**63) <= int(text) < 2**63 else None


def _ids(values_N: NDArray[np.int64], vocab: int, whose: str, length: int | None = None) -> Ids:
    """The ids before the −1 that fill an array up."""
    own = values_N >= 0
    count = int(own.sum()) if length is None else length
    if own[:count].sum() != count or own[count:].any() or (values_N >= vocab).any():
        raise QdxError(f"{whose} does not hold {count} ids of a vocabulary of {vocab} tokens: it was changed")
    return values_N[:count].astype(np.int32)
