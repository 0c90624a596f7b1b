"""``python -m qdx.open_rows``: the verifier names rows that were bound, and the prover opens them.

``receive CHALLENGE ROOT`` notes when a root arrived that was sent or published before its commitment.
``draw CHALLENGE COMMITMENT`` notes the root, and draws rows by the secret seed: the verifier sends
``drawn.json``. ``open DIR DRAWN`` writes ``opened.nc`` of the prover's sweep folder: those rows with their
paths in the tree, all tokens and all facts. The verifier judges it with ``prompts=transcripts
prompts.path=opened.nc verify.challenge=CHALLENGE``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from qdx import new_file
from qdx.commit import NAMESPACE, Bound, bound, write_groups
from qdx.dataset import guarded_json
from qdx.dataset.folder import RUN
from qdx.dataset.guarding import Limits
from qdx.dataset.size import readable
from qdx.document.format import plural
from qdx.errors import QdxError
from qdx.locking import locked
from qdx.program import of_disk, run
from qdx.prompts import challenge
from qdx.prompts._transcript_file import check_name
from qdx.verification import binding, ledger, merkle
from qdx.verification.binding import Row, share_text

KIND, VERSION = "drawn_rows", 1
NAME, OPENED = "drawn.json", "opened.nc"
ROWS = 59  # of each phase: all equal, the share of false ones is under 5 % at 95 % confidence
HEX = guarded_json.HEX


def receive(path: Path, root: str) -> ledger.Ledger:
    """Note that the root of a challenge arrived now.

    Parameters
    ----------
    path : Path
        The challenge.
    root : str
        64 hexadecimal digits.

    Raises
    ------
    QdxError
        When another root arrived before.
    """
    if len(root) != 64 or not HEX.fullmatch(root):
        raise QdxError(f"{guarded_json.shown(root)} is not a root: give a SHA-256, 64 hexadecimal digits")
    asked, digest = challenge.read(path)
    beside = ledger.path_of(path)
    with locked(beside.with_name(f"{beside.name}.lock"), wait=True):
        own = ledger.read(beside, asked, digest).receive(root, ledger.now(), path)
        ledger.write(beside, own)
    return own


def draw(
    path: Path,
    commitment: Path,
    count: int | None = None,
    out: Path | None = None,
    *,
    signers: Path | None = None,
    signed_by: str = "",
) -> tuple[Path, ledger.Ledger]:
    """Draw rows of each phase of every config that a commitment binds.

    Parameters
    ----------
    path : Path
        The challenge.
    commitment : Path
        What the prover sent.
    count : int, optional
        Rows of each phase of every config; of a phase that has fewer, all are drawn. Default: `ROWS`, or as
        many as the larger phase has.
    out : Path, optional
        Default ``drawn.json`` beside the challenge.
    signers : Path, optional
        A file of allowed signers (see ``man ssh-keygen``); the signature is ``<commitment>.sig``.
    signed_by : str
        The name in that file whose signature is asked for.

    Returns
    -------
    Path
        The list of rows, for the prover.
    Ledger

    Raises
    ------
    QdxError
        When the commitment answers another challenge, binds another number of rows, is not the one whose
        root arrived first, or is not signed as asked; when rows were drawn before in another number; or when
        more are asked for than there are, or than the prover's qdx would read. Nothing is noted then.
    """
    asked, digest = challenge.read(path)
    given, root = binding.read(commitment)
    if (given.challenge_sha256, given.nonce) != (digest, asked.nonce):
        raise QdxError(
            f"{commitment} answers another challenge: its nonce is {given.nonce}, not {asked.nonce}"
        )
    rows = binding.rows_of(asked)
    for label, one in given.configs.items():
        if one.rows != len(rows):
            raise QdxError(
                f"{commitment} binds {one.rows:,} rows of {label}, the challenge asks for {len(rows):,}"
            )
    count = _checked_count(count, rows, len(given.configs))
    if signers is not None or signed_by:
        verify_signature(commitment, signers, signed_by)
    beside = ledger.path_of(path)
    with locked(beside.with_name(f"{beside.name}.lock"), wait=True):
        own = ledger.read(beside, asked, digest).receive(root, ledger.now(), path)
        if own.drawn and own.drawn != count:
            raise QdxError(
                f"{path}: {own.drawn} rows were drawn before, now --rows {count}: the draw is made once"
            )
        own = ledger.Ledger(
            own.challenge_sha256, own.seed, own.issued, own.root, own.received, signed_by or own.signed_by,
            count, given,
        )  # fmt: skip
        text = _drawn_text(own, given, rows)
        ledger.write(beside, own)
    target = path.with_name(NAME) if out is None else Path(out)
    try:
        new_file.write_text(target, text)
    except OSError as error:
        raise QdxError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target, own


def _checked_count(count: int | None, rows: Sequence[Row], configs: int) -> int:
    """Return how many rows of each phase are drawn; refuse a number that is not drawn or not read."""
    have = {one.phase: one.of for one in binding.drawn_of(rows, 0)}
    most = max(have.values())
    if count is None:
        count = min(ROWS, most)
    if not 1 <= count <= most:
        there = " and ".join(f"{of:,} of {phase}" for phase, of in have.items())
        raise QdxError(
            f"--rows {count}: draw from 1 to {most:,} rows of each phase: the challenge has {there} that can "
            f"be drawn, and --rows {most} draws them all"
        )
    total = configs * sum(one.rows for one in binding.drawn_of(rows, count))
    if total > ledger.MOST_ROWS:
        raise QdxError(f"--rows {count}: {total:,} rows in all, limit {ledger.MOST_ROWS:,}: draw fewer")
    return count


def _drawn_text(own: ledger.Ledger, given: binding.Commitment, rows: Sequence[Row]) -> str:
    """The list of drawn rows, which the prover's qdx has to be able to read."""
    seed = bytes.fromhex(own.seed)
    named = [
        {"config": label, "reference": row.reference, "phase": row.phase, "position": row.position}
        for label in given.configs
        for row in (rows[i] for i in binding.draw(seed, own.root, label, rows, own.drawn))
    ]
    head = {"kind": KIND, "schema_version": VERSION, "challenge_sha256": own.challenge_sha256}
    text = json.dumps({**head, "root": own.root, "rows": named}, indent=1) + "\n"
    if len(text) > guarded_json.LARGEST:  # ASCII: as many bytes
        raise QdxError(
            f"--rows {own.drawn}: the list of {len(named):,} rows has {len(text):,} bytes, and a reader "
            f"takes {guarded_json.LARGEST:,}: draw fewer"
        )
    return text


def verify_signature(commitment: Path, signers: Path | None, signed_by: str) -> None:
    """Have ``ssh-keygen`` verify who signed a commitment.

    Raises
    ------
    QdxError
        When it is not signed, or not by that name's key.
    """
    if signers is None or not signed_by:
        raise QdxError("--signers FILE and --signed-by NAME belong together: give both")
    signature = commitment.with_name(f"{commitment.name}.sig")
    if not signature.is_file():
        raise QdxError(f"{signature}: no such file: the commitment is not signed")
    command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", signed_by, "-n", NAMESPACE]
    try:
        done = subprocess.run(
            [*command, "-s", str(signature)],
            input=guarded_json.read_bytes(commitment, largest=binding.LARGEST),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise QdxError("ssh-keygen is not installed: it verifies the signature") from error
    if done.returncode:
        told = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise QdxError(f"{commitment} is not signed by {signed_by}: {told}")


def open_rows(directory: Path, drawn: Path, out: Path | None = None) -> Path:
    """Open the rows that a verifier named.

    Parameters
    ----------
    directory : Path
        The prover's sweep folder, with ``commitment.json`` and every ``<label>/run.nc``.
    drawn : Path
        What the verifier sent.
    out : Path, optional
        Default ``DIR/opened.nc``.

    Returns
    -------
    Path
        The file: rows with their paths, tokens, references and provenance.

    Raises
    ------
    QdxError
        When the list asks for what was not bound, or the folder is no longer what was committed.
    """
    root, named = read_drawn(drawn)
    given, own_root = binding.read(directory / binding.NAME)
    if own_root != root:
        raise QdxError(
            f"{drawn} names rows of the root {root[:16]}…; that of {directory} is {own_root[:16]}…"
        )
    made = bound(directory)
    if made.commitment.root != root:
        raise QdxError(
            f"{directory} no longer holds what {binding.NAME} binds "
            f"({_changed(given, made.commitment)}): its runs were made anew, or their record was"
        )
    index = {row: i for i, row in enumerate(made.rows)}
    plain = {(row.reference, row.phase, row.position): row for row in made.rows}
    asked: dict[str, list[Row]] = {}
    for label, reference, phase, position in named:
        row = plain.get((reference, phase, position))
        if label not in made.trees or row is None:
            raise QdxError(
                f"{drawn} names a row that was not bound: {label}, {phase} {position} of {reference}"
            )
        asked.setdefault(label, []).append(row)
    ordered = {label: sorted(rows, key=index.__getitem__) for label, rows in asked.items()}
    groups = _opened(directory, made, ordered)
    target = directory / OPENED if out is None else Path(out)
    write_groups(target, "opened", groups, root=root, challenge_sha256=given.challenge_sha256)
    return target


def read_drawn(path: Path) -> tuple[str, list[tuple[str, str, str, int]]]:
    """Read a verifier's list of rows: the root that they are of, and (config, reference, phase, position).

    Raises
    ------
    QdxError
    """
    fields = guarded_json.read(path, KIND, VERSION)
    fields.hexadecimal("challenge_sha256")
    root, found = fields.hexadecimal("root"), []
    for one in fields.objects("rows", most=ledger.MOST_ROWS):
        label, reference = one.text("config", most=80), one.text("reference", most=80)
        for name in (label, reference):
            check_name(name, str(path))
        phase = one.text("phase", most=20)
        if phase not in binding.PHASES:
            raise QdxError(f"{path}: a phase is {phase!r}, neither {' nor '.join(binding.PHASES)}")
        found.append((label, reference, phase, one.integer("position", 0, 2**31 - 1)))
        one.done()
    fields.done()
    if not found or len(set(found)) < len(found):
        raise QdxError(f"{path} names {len(found)} rows: each must stand once, and at least one")
    return root, found


def _changed(one: binding.Commitment, two: binding.Commitment) -> str:
    """Say what two commitments of a folder differ in."""
    for label, own in one.configs.items():
        other = two.configs.get(label)
        if other is None:
            return f"{label} is missing"
        if own != other:
            names = [name for name, value in vars(own).items() if value != vars(other)[name]]
            return f"{label}: {', '.join(names)}"
    return "other configs"


def _opened(directory: Path, made: Bound, asked: dict[str, list[Row]]) -> dict[str, xr.Dataset]:
    """The groups of the file: of the phases, which rows are opened."""
    groups = dict(made.groups)
    index = {row: i for i, row in enumerate(made.rows)}
    columns: dict[str, list[Any]] = {name: [] for name in ("config", "reference", "phase", "position")}
    logits, paths = [], []
    levels = max(merkle.path_length(i, len(made.rows)) for i in (0, len(made.rows) - 1)) or 1
    for label, rows in asked.items():
        for row, logits_V in binding.RunRows(directory / label / RUN).read(rows):
            for name, value in zip(columns, (label, row.reference, row.phase, row.position), strict=True):
                columns[name].append(value)
            logits.append(logits_V)
            path = b"".join(made.trees[label].path(index[row]))
            paths.append(np.frombuffer(path.ljust(levels * merkle.BYTES, b"\0"), np.uint8))
    path_RLB = np.stack(paths).reshape(len(paths), levels, merkle.BYTES)
    for phase in binding.PHASES:
        groups[phase] = groups[phase].assign(captured=_of_phase(groups[phase]["captured"], columns, phase))
    texts = {name: ("row", np.array(columns[name], object)) for name in ("config", "reference", "phase")}
    groups["opened"] = xr.Dataset(
        {
            **{f"of_{name}": value for name, value in texts.items()},
            "of_position": ("row", np.array(columns["position"], np.int32)),
            "row_logit": (("row", "vocab"), np.stack(logits)),
            "path": (("row", "level", "byte"), path_RLB),
        }
    )
    return groups


def _of_phase(captured: xr.DataArray, columns: dict[str, list[Any]], phase: str) -> xr.DataArray:
    """True at the opened rows of a phase."""
    found = xr.zeros_like(captured, dtype=bool)
    for label, reference, own, position in zip(*columns.values(), strict=True):
        if own == phase:
            found.loc[{"config": label, "reference": reference, "position": position}] = True
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (2: nothing was written)."""
    parser = argparse.ArgumentParser(prog="python -m qdx.open_rows", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("receive", help="verifier: note when a root arrived")
    one.add_argument("challenge", metavar="CHALLENGE", type=Path)
    one.add_argument("root", metavar="ROOT", help="64 hexadecimal digits")
    two = steps.add_parser("draw", help="verifier: draw rows of what was bound")
    two.add_argument("challenge", metavar="CHALLENGE", type=Path)
    two.add_argument("commitment", metavar="COMMITMENT", type=Path)
    two.add_argument(
        "--rows",
        type=int,
        help=f"of each phase of every config (default: {ROWS}, or all where there are fewer)",
    )
    two.add_argument("--out", metavar="FILE", type=Path, help=f"default: {NAME} beside the challenge")
    two.add_argument("--signers", metavar="FILE", type=Path, help="allowed signers, as ssh-keygen takes them")
    two.add_argument("--signed-by", metavar="NAME", default="", help="whose signature is asked for")
    three = steps.add_parser("open", help="prover: open the rows that the verifier named")
    three.add_argument("directory", metavar="DIR", type=Path)
    three.add_argument("drawn", metavar="DRAWN", type=Path)
    three.add_argument("--out", metavar="FILE", type=Path, help=f"default: DIR/{OPENED}")
    chosen = parser.parse_args(arguments)
    try:
        print(_run(chosen))
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 1 if of_disk(error) else 2
    return 0


def _run(chosen: argparse.Namespace) -> str:
    if chosen.step == "receive":
        own = receive(chosen.challenge, chosen.root)
        return f"root {own.root[:16]}… received at {own.received}, {own.seconds:,} s after the challenge"
    if chosen.step == "draw":
        target, own = draw(
            chosen.challenge,
            chosen.commitment,
            chosen.rows,
            chosen.out,
            signers=chosen.signers,
            signed_by=chosen.signed_by,
        )
        return _draw_text(chosen.challenge, own, target)
    count = len(read_drawn(chosen.drawn)[1])
    target = open_rows(chosen.directory, chosen.drawn, chosen.out)
    return (
        f"{target}: {plural(count, 'row')}, {readable(target.stat().st_size)}; the verifier runs\n"
        f"  python -m qdx -m prompts=transcripts prompts.path={target.name} verify.challenge=challenge.json "
        "quant=…"
    )


def _draw_text(path: Path, own: ledger.Ledger, target: Path) -> str:
    """Say what was drawn, what it will show, and what is to be done next."""
    assert own.commitment is not None
    asked, configs = challenge.read(path)[0], len(own.commitment.configs)
    drawn = binding.drawn_of(binding.rows_of(asked), own.drawn)
    counts = " and ".join(f"{one.rows:,} of {one.of:,} rows of {one.phase}" for one in drawn)
    shares = " and ".join(f"{share_text(one.false_share(configs))} in {one.phase}" for one in drawn)
    lines = [
        f"root {own.root[:16]}… received at {own.received}, {own.seconds:,} s after the challenge",
        f"{target}: {counts}, of each of {plural(configs, 'config')}: send it to the prover",
        f"if all are right, the share of false rows is {shares} (at 95 %)",
    ]
    unpacked = configs * sum(one.rows for one in drawn) * asked.vocab * 4
    if unpacked > (limit := Limits().max_bytes):
        lines.append(
            f"NOTE: the opened rows will have {readable(unpacked)}, and a verifier reads {readable(limit)}: "
            f"replay them with prompts.max_bytes={2 * unpacked}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
