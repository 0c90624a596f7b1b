"""Bind every row, token and fact of a run, before the prover knows which rows will be looked at.

A commitment is a small JSON file, and the *root* is the SHA-256 of its bytes (``sha256sum commitment.json``).
Of every config it holds the root of a Merkle tree over all rows, the hash of all tokens and the hash of all
facts that the record states. Everything that is hashed begins with a line of JSON that says what it is and
holds the challenge's nonce: no hash of another time, place or config fits.

The rows are in one order, that of `rows_of`: reference by reference as the challenge lists them, prefill
before decode, by position. So a row's index follows from what it is, and nobody can move it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.capture.plan import plan
from qdx.dataset import guarded_json
from qdx.dataset.checksums import damage
from qdx.dataset.guarded_json import Fields
from qdx.dataset.layout import region_of
from qdx.dataset.run_reader import RunReader
from qdx.errors import QdxError
from qdx.prompts._transcript_file import check_name
from qdx.prompts.challenge import ChallengeFile
from qdx.verification.commitments import row_bytes
from qdx.verification.merkle import Tree, leaf_hash
from qdx.verification.p_values import share_bound

KIND, VERSION = "commitment", 2  # 2: the record is all of /provenance
NAME = "commitment.json"
LARGEST = 4 * 2**20  # bytes of the file
MOST_CONFIGS = 1_000
PHASES = ("prefill", "decode")
BLOCK = 64  # rows in memory
TEMPLATE = ("prefix", "suffix")
MISSED = 0.05  # with this probability at most a draw misses false rows whose share is not under the bound


@dataclass(frozen=True)
class Row:
    """One row of a config's first repeat.

    Attributes
    ----------
    reference : str
    phase : str
        ``prefill`` or ``decode``.
    position : int
        Of the token that it predicts.
    drawable : bool
        Whether it says something of a prompt or an output: a template's row is the same for all.
    """

    reference: str
    phase: str
    position: int
    drawable: bool = True

    def __str__(self) -> str:
        return f"{self.phase} row of position {self.position} of {self.reference}"


def rows_of(challenge: ChallengeFile) -> list[Row]:
    """List every row that a run of a challenge records, in the order in which they are bound."""
    planned = plan(
        challenge.references,
        prefill_positions=challenge.prefill_positions,
        output_tokens=challenge.tokens,
    )
    found = []
    for r, reference in enumerate(challenge.references):
        for phase in PHASES:
            positions = planned[phase][r]
            regions = region_of(reference, positions)
            found += [
                Row(reference.name, phase, int(position), region not in TEMPLATE)
                for position, region in zip(positions, regions, strict=True)
            ]
    return found


def _head(nonce: str, what: str, config: str, **more: object) -> bytes:
    line = {"config": config, "nonce": nonce, "what": what, **more}
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def row_leaf(nonce: str, config: str, row: Row, dtype: str, data: bytes) -> bytes:
    """Return the hash of a row's leaf.

    Parameters
    ----------
    nonce, config : str
    row : Row
    dtype : str
        Of the model's logits.
    data : bytes
        The row: see `qdx.verification.commitments.row_bytes`.
    """
    about = {"reference": row.reference, "phase": row.phase, "position": row.position, "dtype": dtype}
    return leaf_hash(_head(nonce, "row", config, **about) + data)


def tokens_sha256(nonce: str, config: str, ids_RT: NDArray[Any]) -> str:
    """Return the hash of all output tokens of a config: (reference, token), in the challenge's order."""
    data = np.ascontiguousarray(ids_RT, "<i4")
    return hashlib.sha256(_head(nonce, "tokens", config, shape=list(data.shape)) + data.tobytes()).hexdigest()


def record_of(provenance: xr.Dataset, decode: xr.Dataset, config: str) -> dict[str, str]:
    """Collect what a file states of a config: variables of ``/provenance`` and coordinates of decode.

    Also those that are not of one config: what is left out here could be stated otherwise after the draw.
    """
    found: dict[str, str] = {}
    facts = (
        ("provenance", provenance, ("config",)),
        ("decode", decode.coords.to_dataset(), ("config", "reference", "position", "repeat", "region")),
    )
    for group, dataset, left in facts:
        for name in dataset.variables:
            if name in left:  # rows say it, or the challenge
                continue
            value = dataset[name]
            if "config" in value.dims:  # others are of all configs, such as the names of layers
                value = value.sel(config=config)
            found[f"{group}/{name}"] = json.dumps(_texts(value.values).tolist())
    return found


def _texts(values: NDArray[Any]) -> NDArray[Any]:
    """Facts as the verdict reads them: bytes are not the text that they hold, and would be another fact."""
    return np.asarray(np.vectorize(str, otypes=[object])(np.asarray(values, object)))


def record_sha256(nonce: str, config: str, record: Mapping[str, str]) -> str:
    """Return the hash of what `record_of` collected."""
    text = json.dumps(dict(record), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(_head(nonce, "record", config) + text.encode()).hexdigest()


@dataclass(frozen=True)
class BoundConfig:
    """Hold what a commitment has of one config.

    Attributes
    ----------
    rows : int
        Leaves of the tree.
    rows_root, tokens_sha256, record_sha256 : str
        Hexadecimal.
    """

    rows: int
    rows_root: str
    tokens_sha256: str
    record_sha256: str


@dataclass(frozen=True)
class Commitment:
    """A prover's commitment.

    Attributes
    ----------
    challenge_sha256, nonce : str
        Of the challenge that it answers.
    configs : dict of str to BoundConfig
        By label.
    """

    challenge_sha256: str
    nonce: str
    configs: dict[str, BoundConfig]

    def dump(self) -> bytes:
        """Return the file's bytes, whose SHA-256 is the root."""
        return (json.dumps(self.plain(), indent=1) + "\n").encode()

    def plain(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "kind": KIND,
            "schema_version": VERSION,
            "challenge_sha256": self.challenge_sha256,
            "nonce": self.nonce,
            "configs": [{"config": label, **vars(one)} for label, one in self.configs.items()],
        }

    @property
    def root(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.dump()).hexdigest()


def parse(data: bytes, path: Path) -> Commitment:
    """Read a commitment that a prover sent.

    Raises
    ------
    QdxError
        See `qdx.dataset.guarded_json.read`; also for bytes that this program would write otherwise.
    """
    fields = guarded_json.parse(data, path, KIND, VERSION)
    found = Commitment(
        fields.hexadecimal("challenge_sha256"),
        fields.hexadecimal("nonce", 32),
        configs_of(fields, str(path)),
    )
    fields.done()
    if found.dump() != data:
        raise QdxError(f"{path}: it was written anew by another program: send the file itself")
    return found


def configs_of(fields: Fields, where: str) -> dict[str, BoundConfig]:
    """Read the field ``configs`` of a commitment."""
    found: dict[str, BoundConfig] = {}
    for one in fields.objects("configs", most=MOST_CONFIGS):
        label = one.text("config", most=80)
        check_name(label, where)
        if label in found:
            raise QdxError(f"{where}: config {label!r} stands twice: each is bound once")
        found[label] = BoundConfig(
            one.integer("rows", 1, 2**40),
            one.hexadecimal("rows_root"),
            one.hexadecimal("tokens_sha256"),
            one.hexadecimal("record_sha256"),
        )
        one.done()
    if not found:
        raise QdxError(f"{where}: it binds no config")
    return found


def read(path: Path) -> tuple[Commitment, str]:
    """Read a commitment and its root."""
    data = guarded_json.read_bytes(path, largest=LARGEST)
    return parse(data, path), hashlib.sha256(data).hexdigest()


def draw(seed: bytes, root: str, config: str, rows: Sequence[Row], count: int) -> list[int]:
    """Draw rows of each phase without replacement, all sets equally likely to whoever does not know the seed.

    The drawn rows of a phase are its `count` drawable ones with the least SHA-256(seed ‖ root ‖ line of JSON
    with config and index). Anybody who has the seed later can draw them again. The phases are drawn apart,
    since a few decode rows beside many prefill rows would hardly ever be drawn.

    Parameters
    ----------
    seed : bytes
        The verifier's secret, whose hash is in the challenge.
    root : str
        Hexadecimal; it was fixed before the seed was used.
    config : str
    rows : sequence of Row
        See `rows_of`.
    count : int
        Of each phase; all drawable ones of a phase that has fewer.

    Returns
    -------
    list of int
        Indices of rows, ascending.
    """

    # Only the number in the line of JSON changes from row to row.
    first, last = _head("", "draw", config, index=0).split(b'"index":0', 1)
    begun = hashlib.sha256(seed + bytes.fromhex(root) + first + b'"index":')

    def key(index: int) -> bytes:
        digest = begun.copy()
        digest.update(b"%d%s" % (index, last))
        return digest.digest()

    found: list[int] = []
    for phase in PHASES:
        drawable = [index for index, row in enumerate(rows) if row.drawable and row.phase == phase]
        found += sorted(drawable, key=key)[:count]
    return sorted(found)


@dataclass(frozen=True)
class Drawn:
    """The draw of one phase of one config.

    Attributes
    ----------
    phase : str
    rows : int
        That were drawn.
    of : int
        Rows of the phase that could have been drawn.
    """

    phase: str
    rows: int
    of: int

    def false_share(self, configs: int = 1) -> float:
        """Bound the share of the phase's rows that are false, where every drawn one is right.

        A share of at least 1 − (0.05/m)^(1/s) is missed by s drawn rows with a probability of at most 0.05/m.
        So of m configs under one root none is called right at such a share, with a probability of 95 %: who
        binds m hypotheses has m chances that the draw misses the false rows of one.

        Parameters
        ----------
        configs : int
            Under the root, m.

        Returns
        -------
        float
            0: all rows were drawn. 1: none was, which bounds nothing.

        Examples
        --------
        >>> [round(Drawn("decode", rows, 1000).false_share(m), 4) for rows, m in ((59, 1), (59, 8), (0, 1))]
        [0.0495, 0.0824, 1.0]
        >>> Drawn("decode", 16, 16).false_share()
        0.0
        """
        if self.rows and self.rows == self.of:
            return 0.0
        return share_bound(self.rows, 1 - MISSED / configs)


def share_text(share: float) -> str:
    """An upper bound in per cent, rounded up.

    Examples
    --------
    >>> share_text(0.1391), share_text(0.0)
    ('under 14.0 %', '0 (all rows were drawn)')
    """
    return f"under {np.ceil(share * 1000) / 10:.1f} %" if share else "0 (all rows were drawn)"


def drawn_of(rows: Sequence[Row], count: int) -> tuple[Drawn, ...]:
    """Say how many rows of each phase `draw` draws."""
    found = []
    for phase in PHASES:
        of = sum(row.drawable and row.phase == phase for row in rows)
        found.append(Drawn(phase, min(count, of), of))
    return tuple(found)


class RunRows:
    """The rows of a finished run's first repeat, by what they are.

    Parameters
    ----------
    path : Path
        A ``run.nc``.

    Raises
    ------
    QdxError
        When the run kept no full rows.
    """

    def __init__(self, path: Path) -> None:
        self._reader, self._path = RunReader(path), path
        self.dtype, self.vocab = self._reader.dtype, self._reader.vocab
        for phase in PHASES:
            if not self._reader.phase(phase).has_rows:
                raise QdxError(f"{path} has no full rows to bind: run the sweep again with capture=full")

    def read(self, rows: Sequence[Row]) -> Iterator[tuple[Row, NDArray[np.float32]]]:
        """Yield rows with their logits, in the order that was asked for; neighbours are read together.

        Raises
        ------
        DamageError
            When a row is not what was written, or not that of its ``row_hash``.
        QdxError
            For a row that the run did not record.
        """
        start = 0
        while start < len(rows):
            first, end = rows[start], start + 1
            while end < min(start + BLOCK, len(rows)) and _beside(rows[end], first):
                end += 1
            some = rows[start:end]
            yield from zip(some, self._block(some), strict=True)
            start = end

    def _block(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        phase, name = rows[0].phase, rows[0].reference
        if name not in self._reader.references:
            raise QdxError(f"{self._path} has no reference {name!r}: give the folder that was committed")
        own, r = self._reader.phase(phase), self._reader.references.index(name)
        wanted = np.array([row.position for row in rows])
        at = np.searchsorted(own.positions, wanted)
        known = at < len(own.positions)
        known &= own.positions[np.where(known, at, 0)] == wanted
        known[known] &= own.captured[0, r, at[known]]
        if not known.all():
            raise QdxError(
                f"{self._path} lacks the {rows[int(np.argmin(known))]}: the challenge asks for it "
                "(capture.prefill_positions, generate.tokens)"
            )
        rows_PV = self._reader.rows(phase, 0, r, at)
        from qdx.distances.blocks import hashes  # torch, which planning and reading a verdict do without

        # A binding of a damaged row would refute an honest prover.
        other_P = hashes(rows_PV, self.dtype) != own.row_hash[0, r, at]
        if other_P.any():
            where = f"/{phase}/logit[config 0, repeat 0, reference {r}, position {at[other_P][0]}]"
            raise damage(self._path, where, "holds another row than its row_hash is of")
        return rows_PV

    def tree(self, nonce: str, config: str, rows: Sequence[Row]) -> Tree:
        """Return the tree over all rows of the run, of which `rows` is the list; see `rows_of`."""
        return Tree(
            [
                row_leaf(nonce, config, row, self.dtype, row_bytes(row_V[None], self.dtype).tobytes())
                for row, row_V in self.read(rows)
            ]
        )


def _beside(row: Row, first: Row) -> bool:
    return (row.reference, row.phase) == (first.reference, first.phase)
