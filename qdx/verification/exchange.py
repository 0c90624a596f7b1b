"""Holds a prover's file against the challenge: prompts, tokens, record, and the rows that she opened.

Everything is computed anew from the verifier's own files, the challenge and its ledger. What does not fit is
an obligation that the prover did not meet, and then nothing of the file is judged: whoever edits a file on
its way must not be able to have an honest prover refuted. A row counts as evidence only where it was drawn,
was opened, and stands at its own place in the tree whose root had arrived before anybody knew that it would
be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.dataset.layout import SCHEMA_VERSION
from qdx.prompts.challenge import ChallengeFile
from qdx.verification import binding, merkle
from qdx.verification.binding import PHASES, Drawn, Row
from qdx.verification.commitments import BYTES, DTYPES, commit, row_bytes
from qdx.verification.ledger import Ledger

KIND = "opened"  # of the file that python -m qdx.open_rows writes
COLUMNS = ("of_config", "of_reference", "of_phase", "of_position")
UNBOUND = "no root was received, so nothing shows that its rows were fixed before the verifier had his own"
MOST_SAID = 2  # rows that a message names
UNBOUND_OF_PROMPTS = ("source", "pages", "sha256", "token_offset", "continuation", "text")


@dataclass(frozen=True)
class Answer:
    """Hold what one producer's part of a file says to the challenge.

    Attributes
    ----------
    unmet : list of str
        What does not fit, each in a few words; empty where all does.
    drawn : tuple of Drawn
        Rows that were drawn of this producer, phase by phase; empty: none were.
    misread : list of str
        Opened rows whose greatest logits are not those of the token that follows them.
    not_numbers : list of str
        Opened rows that hold NaN: they have no greatest logit, and are not compared.
    """

    unmet: list[str] = field(default_factory=list)
    drawn: tuple[Drawn, ...] = ()
    misread: list[str] = field(default_factory=list)
    not_numbers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Exchange:
    """Hold what a file says to the challenge.

    Attributes
    ----------
    tree : xarray.DataTree
        The file; of one with opened rows nothing but what is bound: tokens and record of each config,
        ``captured`` and ``commitment`` of the rows that fit, and what the challenge says of the references,
        whatever the file says of them.
    answers : dict of str to Answer
        By producer. Where anything does not fit, each has something unmet: a file answers as a whole.
    seconds : int or None
        From the challenge to the root; None where no root was received.
    signed_by : str
        "" where no signature was asked for.
    said : str
        A sentence on the root and its time.
    configs : int
        That the root binds, each of which could pass by chance.
    """

    tree: xr.DataTree
    answers: dict[str, Answer]
    seconds: int | None
    signed_by: str
    said: str
    configs: int = 1

    @property
    def fits(self) -> bool:
        """Return whether the file is what was asked for and bound; otherwise nothing of it is judged."""
        return not any(answer.unmet for answer in self.answers.values())


def examine(tree: xr.DataTree, challenge: ChallengeFile, challenge_sha256: str, ledger: Ledger) -> Exchange:
    """Hold a producers' file against a challenge.

    Parameters
    ----------
    tree : xarray.DataTree
        A file that `qdx.prompts._transcript_file.read` has accepted.
    challenge : ChallengeFile
    challenge_sha256 : str
    ledger : Ledger
        The verifier's own; see `qdx.verification.ledger.read`.

    Raises
    ------
    QdxError
        When the opened rows have another shape than a row of logits.
    """
    labels = [str(label) for label in tree["output"].to_dataset()["config"].values]
    answers = {label: Answer() for label in labels}
    opened = str(tree.attrs.get("kind")) == KIND
    common = _prompts(tree, challenge)
    binds = bool(ledger.root) or opened  # a root was agreed on, so nothing counts without it
    if binds:
        common += _root(tree, labels, challenge_sha256, ledger, opened)
    rows = binding.rows_of(challenge)
    fitting = _Fitting(tree, challenge) if opened else None
    if fitting is not None and not common:
        reader = _Opened(tree[KIND].to_dataset())
        for label in labels:
            answers[label] = _answer(tree, fitting, challenge, ledger, rows, label, reader)
    _spread(answers, common)
    return Exchange(
        tree if fitting is None else fitting.tree(),
        answers,
        ledger.seconds if ledger.root else None,
        ledger.signed_by,
        _said(ledger) if binds else UNBOUND,
        len(ledger.commitment.configs) if ledger.commitment is not None else 1,
    )


def _spread(answers: dict[str, Answer], common: Sequence[str]) -> None:
    """Let what does not fit in one config count for all: a prover cannot withhold the rows of the bad one."""
    own = {label: list(answer.unmet) for label, answer in answers.items()}
    for label, answer in answers.items():
        others = [f"{other}: {line}" for other, lines in own.items() if other != label for line in lines]
        if len(others) > MOST_SAID:
            others[MOST_SAID:] = [f"{len(others) - MOST_SAID} more of other configs"]
        answer.unmet.extend([*common, *others])


def _said(ledger: Ledger) -> str:
    if not ledger.root:
        return "no root was received"
    signed = f", signed by {ledger.signed_by}" if ledger.signed_by else ""
    return (
        f"bound by the root {ledger.root[:16]}…, received {ledger.received}, {ledger.seconds:,} s after the "
        f"challenge{signed}"
    )


def _prompts(tree: xr.DataTree, challenge: ChallengeFile) -> list[str]:
    """Return what of a file's prompts and lengths is not the challenge's."""
    stored = tree["references"].to_dataset()
    names = [str(name) for name in stored["reference"].values]
    ids_RN = stored["token_ids"].transpose("reference", "token").values
    parts = [stored[f"{part}_length"].values.tolist() for part in ("prefix", "content", "suffix")]
    lengths = stored["length"].values.tolist()
    given = [
        (*of, ids[:n].astype("<i4").tobytes())
        for *of, n, ids in zip(names, *parts, lengths, ids_RN, strict=True)
    ]
    wanted = [
        (
            one.name,
            one.prefix_length,
            one.content_length,
            one.suffix_length,
            one.token_ids.astype("<i4").tobytes(),
        )
        for one in challenge.references
    ]
    found = []
    if given != wanted:
        same = len(set(given) & set(wanted))
        order = ", in another order" if same == len(wanted) == len(given) else ""
        found.append(
            f"prompts: {same} of the challenge's {len(wanted)} with the nonce {challenge.nonce}{order}; the "
            f"file has {len(given)}"
        )
    tokens = tree["output"].to_dataset().sizes["output_token"]
    if tokens != challenge.tokens:
        found.append(f"output tokens: {tokens}, the challenge asks for {challenge.tokens}")
    return found


def _root(
    tree: xr.DataTree, labels: Sequence[str], challenge_sha256: str, ledger: Ledger, opened: bool
) -> list[str]:
    """Return what of a file's root is not what the verifier received."""
    if not ledger.root:
        return ["the file opens rows, and no root was received before (python -m qdx.open_rows draw)"]
    if not opened:
        return [f"no row is opened: the file does not answer the root {ledger.root[:16]}… that was received"]
    if ledger.commitment is None:
        return ["no row was drawn yet: python -m qdx.open_rows draw"]
    found = []
    for name, wanted in (("root", ledger.root), ("challenge_sha256", challenge_sha256)):
        if (got := str(tree.attrs.get(name, ""))) != wanted:
            found.append(f"{name}: the file states {_short(got)}, received was {_short(wanted)}")
    bound = list(ledger.commitment.configs)
    if set(bound) != set(labels):
        found.append(f"configs: the root binds {', '.join(bound)}, the file has {', '.join(labels)}")
    return found


def _short(text: str) -> str:
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:16])
    return f"{plain}…" if len(text) > 16 else plain or "none"


class _Fitting:
    """The rows that fit the root, and what else is bound, in place of what a file says."""

    def __init__(self, tree: xr.DataTree, challenge: ChallengeFile) -> None:
        self._tree = tree
        self._stated = {phase: tree[phase].to_dataset() for phase in PHASES}
        self._axes: dict[str, dict[str, list[Any]]] = {}
        self._captured: dict[str, NDArray[np.bool_]] = {}
        self._commitment: dict[str, NDArray[np.uint8]] = {}
        wanted = binding.rows_of(challenge)
        for phase, data in self._stated.items():
            planned = [row.position for row in wanted if row.phase == phase]
            position = np.union1d(data["position"].values, planned)
            axes: dict[str, list[Any]] = {
                "config": [str(label) for label in data["config"].values],
                "repeat": [0],
                "reference": [str(name) for name in data["reference"].values],
                "position": position.astype(int).tolist(),
            }
            shape = tuple(map(len, axes.values()))
            self._axes[phase] = axes
            self._captured[phase] = np.zeros(shape, bool)
            self._commitment[phase] = np.zeros((*shape, BYTES), np.uint8)

    def put(self, label: str, row: Row, commitment: NDArray[np.uint8]) -> None:
        """Take a row."""
        of = {"config": label, "repeat": 0, "reference": row.reference, "position": row.position}
        at = tuple(axis.index(of[dim]) for dim, axis in self._axes[row.phase].items())
        self._captured[row.phase][at] = True
        self._commitment[row.phase][at] = commitment

    def tree(self) -> xr.DataTree:
        """Return what is bound of the file, as a file of commitments.

        Documents that prompts are cut from, and how the prover's runs repeat, are not bound and left out:
        the first could make one unit of several, the second is nothing that a verdict rests on.
        """
        references = self._tree["references"].to_dataset()
        groups = {
            "references": references.drop_vars([name for name in UNBOUND_OF_PROMPTS if name in references]),
            "provenance": self._tree["provenance"].to_dataset(),
            "output": self._tree["output"].to_dataset()[["token_id"]].isel(repeat=[0]),
        }
        for phase, data in self._stated.items():
            axes = self._axes[phase]
            dims = tuple(axes)
            stated = {n: c for n, c in data.coords.items() if c.dims in ((), ("config",)) and n not in dims}
            if phase != "decode":  # whose coordinates alone are in the record
                stated = {}
            none = ("config", np.zeros(len(axes["config"]), np.int32))
            groups[phase] = xr.Dataset(
                {
                    "captured": (dims, self._captured[phase]),
                    "commitment": ((*dims, "byte"), self._commitment[phase]),
                    "reruns": none,
                    "reruns_equal": none,
                },
                coords={
                    **{dim: (dim, np.array(axis)) for dim, axis in axes.items()},
                    **{n: c.variable for n, c in stated.items()},
                },
            )
        attrs = {"kind": KIND, "schema_version": SCHEMA_VERSION}
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **groups})


class _Opened:
    """The opened rows of a file, by what they are."""

    def __init__(self, data: xr.Dataset) -> None:
        self._data = data
        columns = [data[name].values.tolist() for name in COLUMNS]
        self._index: dict[tuple[str, str, str, int], int] = {}
        self.twice: set[tuple[str, str, str, int]] = set()
        for i, (label, reference, phase, position) in enumerate(zip(*columns, strict=True)):
            key = (str(label), str(reference), str(phase), int(position))
            if key in self._index:
                self.twice.add(key)
            self._index[key] = i
        self._path = np.asarray(data["path"].values, np.uint8)

    def find(self, label: str, row: Row) -> int | None:
        """The index of a row; None where it is not there."""
        return self._index.get((label, row.reference, row.phase, row.position))

    def stands_twice(self, label: str, row: Row) -> bool:
        """Return whether a row is there more than once."""
        return (label, row.reference, row.phase, row.position) in self.twice

    def logits(self, index: int) -> NDArray[np.float32]:
        """A row, (1, vocab)."""
        return np.asarray(self._data["row_logit"].isel(row=[index]).values, np.float32)

    def path(self, index: int, length: int) -> list[bytes]:
        """The path of a row: as many hashes as its place in the tree asks for."""
        return [level.tobytes() for level in self._path[index, :length]]


def _answer(
    tree: xr.DataTree,
    fitting: _Fitting,
    challenge: ChallengeFile,
    ledger: Ledger,
    rows: Sequence[Row],
    label: str,
    opened: _Opened,
) -> Answer:
    """Check one producer, and take her rows that fit."""
    assert ledger.commitment is not None
    own = ledger.commitment.configs[label]
    nonce = challenge.nonce
    output = tree["output"].to_dataset()["token_id"].sel(config=label).isel(repeat=0)
    ids_RT = output.transpose("reference", "output_token").values
    decode = tree["decode"].to_dataset()
    chosen = binding.draw(bytes.fromhex(ledger.seed), ledger.root, label, rows, ledger.drawn)
    drawn = binding.drawn_of(rows, ledger.drawn)
    unmet, misread, not_numbers = list[str](), list[str](), list[str]()
    if binding.tokens_sha256(nonce, label, ids_RT) != own.tokens_sha256:
        unmet.append("tokens: the root binds other ones")
    record = binding.record_of(tree["provenance"].to_dataset(), decode, label)
    if binding.record_sha256(nonce, label, record) != own.record_sha256:
        unmet.append("record: the root binds other facts than the file states")
    dtype = str(np.broadcast_to(decode["dtype"].sel(config=label).values, 1)[0])
    if dtype not in DTYPES:
        unmet.append(f"record: rows of {_short(dtype)}, which are bound of {', '.join(DTYPES)} only")
        return Answer(unmet, drawn)
    missing, wrong, twice = list[Row](), list[Row](), list[Row]()
    for i in chosen:
        row = rows[i]
        at = opened.find(label, row)
        if at is None:
            missing.append(row)
            continue
        if opened.stands_twice(label, row):
            twice.append(row)
            continue
        exact_V = _exact(opened.logits(at), dtype)
        leaf = binding.row_leaf(nonce, label, row, dtype, row_bytes(exact_V, dtype).tobytes())
        path = opened.path(at, merkle.path_length(i, own.rows))
        if not merkle.fits(leaf, i, own.rows, path, bytes.fromhex(own.rows_root)):
            wrong.append(row)
            continue
        if unmet:
            continue  # of a record or tokens that are not the bound ones nothing is taken
        if np.isnan(exact_V).any():
            not_numbers.append(str(row))
            continue
        fitting.put(label, row, commit(exact_V, dtype)[0])
        if not _emits(challenge, ids_RT, row, exact_V[0]):
            misread.append(str(row))
    for what, some in (
        ("were not opened", missing),
        ("do not fit the root", wrong),
        ("stand twice", twice),
    ):
        if some:
            names = "; ".join(map(str, some[:MOST_SAID])) + ("; …" if len(some) > MOST_SAID else "")
            unmet.append(f"rows: {len(some)} of {len(chosen)} drawn ones {what} ({names})")
    return Answer(unmet, drawn, misread, not_numbers)


def _exact(rows_PV: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The values that the data type holds: what is bound, whatever float32 the file has in their place."""
    with np.errstate(over="ignore", invalid="ignore"):
        data = row_bytes(rows_PV, dtype)
    if dtype == "bfloat16":
        return (data.astype("<u4") << 16).view("<f4").astype(np.float32)
    return np.asarray(data, np.float32)


def _emits(challenge: ChallengeFile, ids_RT: NDArray[Any], row: Row, logits_V: NDArray[np.float32]) -> bool:
    """Return whether the token that a row predicts is among its greatest logits; not asked of the prompt."""
    names = [one.name for one in challenge.references]
    r = names.index(row.reference)
    t = row.position - len(challenge.references[r].token_ids)
    if t < 0:
        return True
    return bool(logits_V[int(ids_RT[r, t])] == logits_V.max())
