"""One exchange between two folders, run once, and what a liar makes of her part of it.

The verifier's replay depends on the tokens alone. So every forged file with the honest tokens is judged by
``python -m qdx.report`` in a copy of the verifier's folder, where it takes the place of the file that was
replayed, with the ledger that the verifier would have. Most are judged by the function that the command
calls.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from qdx import open_rows as open_command
from qdx.challenge import main as challenge_main
from qdx.commit import Bound, bound, write_groups
from qdx.commit import main as commit_main
from qdx.dataset.opening import open_file
from qdx.open_rows import main as open_main
from qdx.prompts import challenge
from qdx.report.__main__ import main as report_main
from qdx.verification import binding, ledger, sections
from qdx.verification.binding import BoundConfig, Commitment, Row
from qdx.verification.commitments import row_bytes
from qdx.verification.ledger import Ledger
from qdx.verification.merkle import Tree
from qdx.verification.verdicts import exit_status
from tests.sweeping import checkpoints, qdx
from tests.verification.world import FEW

REFERENCES, TOKENS = 4, 5
ROWS = 20  # of each phase, of which decode has fewer
PREFILL, DECODE = 36, 16  # rows of the two phases that can be drawn
DRAWN = ROWS + DECODE
LENGTHS = [
    f"prompts.references={REFERENCES}",
    "prompts.snippet_tokens=40",
    f"generate.tokens={TOKENS}",
    "capture.prefill_positions=8",
]
Groups = dict[str, xr.Dataset]
Rows = Mapping[Row, np.ndarray]


@dataclass(frozen=True)
class World:
    """Folders of an honest exchange.

    Attributes
    ----------
    folder : Path
        ``challenge.json`` and its ledger; ``prover`` ran awq, ``cheap`` ran gptq, both the challenge;
        ``verifier`` replayed awq.
    models : list of str
        Overrides that choose the checkpoints.
    """

    folder: Path
    models: list[str]

    @classmethod
    def build(cls, folder: Path, models: dict[str, Path]) -> World:
        """Run the exchange, each step as its user would."""
        world = cls(folder, checkpoints(models))
        run(challenge_main, world.challenge, *LENGTHS, *world.models)
        for name, quant in (("prover", "awq"), ("cheap", "gptq")):
            done = qdx(
                *("-m", "prompts=challenge", f"prompts.path='{world.challenge}'", f"quant={quant}"),
                *("repeats=1", f"hydra.sweep.dir={name}", *FEW, *world.models),
                cwd=folder,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        run(commit_main, world.prover)
        run(open_main, "draw", world.challenge, world.prover / binding.NAME, "--rows", ROWS)
        run(open_main, "open", world.prover, folder / open_command.NAME)
        return world

    @property
    def challenge(self) -> Path:
        """The challenge's file."""
        return self.folder / "challenge.json"

    @property
    def prover(self) -> Path:
        """The honest prover's sweep folder."""
        return self.folder / "prover"

    @cached_property
    def asked(self) -> challenge.ChallengeFile:
        """What the challenge asks for."""
        return challenge.read(self.challenge)[0]

    @cached_property
    def ledger(self) -> Ledger:
        """The verifier's, after the draw."""
        return ledger.read(ledger.path_of(self.challenge), *challenge.read(self.challenge))

    @cached_property
    def bound(self) -> Bound:
        """What the honest prover bound."""
        return bound(self.prover)

    @cached_property
    def opened(self) -> Groups:
        """Her file of opened rows."""
        return read(self.prover / open_command.OPENED)

    @cached_property
    def rows(self) -> list[Row]:
        """Every row of a run."""
        return binding.rows_of(self.asked)

    def logits(self, folder: str, label: str) -> dict[Row, np.ndarray]:
        """The rows of a run."""
        return dict(binding.RunRows(self.folder / folder / label / "run.nc").read(self.rows))

    @cached_property
    def honest(self) -> dict[Row, np.ndarray]:
        """The rows of awq."""
        return self.logits("prover", "awq")

    @cached_property
    def other(self) -> dict[Row, np.ndarray]:
        """The rows of gptq."""
        return self.logits("cheap", "gptq")

    def copy(self) -> Groups:
        """The honest file, to be forged."""
        return {name: data.copy(deep=True) for name, data in self.opened.items()}


def read(path: Path) -> Groups:
    """Return the groups of a file."""
    tree = open_file(path)
    try:
        return {name: child.to_dataset().load() for name, child in tree.children.items()}
    finally:
        tree.close()


def run(command: Callable[[Sequence[str]], int], *arguments: object, status: int = 0) -> str:
    """Run a command line and return what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found = command([str(argument) for argument in arguments])
    assert found == status, f"{found}: {said.getvalue()}"
    return said.getvalue()


@dataclass(frozen=True)
class Forgery:
    """What a prover bound and opens: `rows` are bound, `shown` are opened.

    Attributes
    ----------
    rows : Mapping of Row to array
        Bound.
    shown : Mapping of Row to array, optional
        Opened; default: what is bound.
    record : callable, optional
        Edits the groups before they are bound.
    tokens : array, optional
        Bound in place of those of the file.
    nonce : str
        "": the challenge's.
    order : callable, optional
        Edits the leaves.
    after : callable, optional
        Edits the groups of the file after they were bound.
    """

    rows: Rows
    shown: Rows | None = None
    record: Callable[[Groups], None] | None = None
    tokens: np.ndarray | None = None
    nonce: str = ""
    order: Callable[[list[bytes]], list[bytes]] | None = None
    after: Callable[[Groups], None] | None = None

    def make(self, world: World) -> tuple[Commitment, Groups]:
        """Return the commitment that the prover sends, and the groups of her file."""
        groups, nonce = world.copy(), self.nonce or world.asked.nonce
        if self.record is not None:
            self.record(groups)
        leaves = [
            binding.row_leaf(
                nonce, "awq", row, "float16", row_bytes(self.rows[row][None], "float16").tobytes()
            )
            for row in world.rows
        ]
        tree = Tree(leaves if self.order is None else self.order(leaves))
        ids_RT = groups["output"]["token_id"].values[0, 0] if self.tokens is None else self.tokens
        record = binding.record_of(groups["provenance"], groups["decode"], "awq")
        one = BoundConfig(
            len(world.rows),
            tree.root.hex(),
            binding.tokens_sha256(nonce, "awq", ids_RT),
            binding.record_sha256(nonce, "awq", record),
        )
        made = Commitment(world.ledger.challenge_sha256, world.asked.nonce, {"awq": one})
        drawn = binding.draw(bytes.fromhex(world.ledger.seed), made.root, "awq", world.rows, ROWS)
        given = Bound(world.asked, made, world.rows, {"awq": tree}, groups)
        groups["opened"] = self._opened(world, given, [world.rows[i] for i in drawn])
        if self.after is not None:
            self.after(groups)
        return made, groups

    def _opened(self, world: World, given: Bound, drawn: Sequence[Row]) -> xr.Dataset:
        groups = open_command._opened(world.prover, given, {"awq": list(drawn)})["opened"]
        shown = self.rows if self.shown is None else self.shown
        groups["row_logit"] = (("row", "vocab"), np.stack([shown[row] for row in drawn]))
        return groups


@dataclass(frozen=True)
class Judged:
    """How a verification ended."""

    verdict: str
    because: str
    unmet: str
    drawn: int
    status: int
    p: Mapping[str, float | None]


def judge(
    world: World,
    target: Path,
    made: tuple[Commitment, Groups] | None = None,
    *,
    require: Mapping[str, Any] | None = None,
    own: Ledger | None = None,
    asked: bytes | None = None,
    file: Path | None = None,
    whole: bool = False,
) -> Judged:
    """Judge a file in a copy of the verifier's folder.

    Parameters
    ----------
    made : (Commitment, groups), optional
        Default: the honest ones.
    own : Ledger, optional
        In place of the one that the verifier would have after these.
    asked : bytes, optional
        Of another challenge.
    file : Path, optional
        In place of the file of the groups.
    whole : bool
        By the command line, with its whole report.
    """
    shutil.copytree(world.folder / "verifier", target)
    commitment, groups = made or (world.bound.commitment, world.opened)
    if file is None:
        attrs = {"root": commitment.root, "challenge_sha256": commitment.challenge_sha256}
        write_groups(target / "producers.nc", "opened", groups, **attrs)
    else:
        shutil.copyfile(file, target / "producers.nc")
    ledger.write(
        target / "verify_challenge.verifier.json",
        own or replace(world.ledger, root=commitment.root, commitment=commitment),
    )
    if asked is not None:
        (target / sections.CHALLENGE).write_bytes(asked)
    plan = json.loads((target / "sweep.json").read_text())
    plan["verify"]["require"] = dict(require or {})
    plan.update(metrics={}, analyses={})
    (target / "sweep.json").write_text(json.dumps(plan))
    return _reported(target) if whole else _judged(target)


def _reported(target: Path) -> Judged:
    """What ``python -m qdx.report`` says of a folder, and how it ends."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = report_main([str(target)])
    summary = json.loads((target / "summary.json").read_text())
    assert "verdicts" in summary, said.getvalue()
    (claim,) = summary["verdicts"]["claims"]
    p = {name: test["p"] for name, test in claim["tests"].items()}
    names = ("verdict", "because", "unmet", "drawn_rows")
    return Judged(*(claim[name] for name in names), status, p)


def _judged(target: Path) -> Judged:
    """The same from what that command calls, without its report: 40 forgeries take a minute, not ten."""
    settings = json.loads((target / "sweep.json").read_text())
    tree = open_file(target / "sweep.nc")
    try:
        found, broken = sections.judge(target, tree, settings, str)
    finally:
        tree.close()
    assert not broken, broken
    result = next(section.result for section in found if section.name == "verify").isel(producer=0)
    texts = (str(result[name].item()) for name in ("verdict", "because", "unmet"))
    values = {str(name): float(result["test_p"].sel(test=name)) for name in result["test"].values}
    p = {name: None if np.isnan(value) else value for name, value in values.items()}
    verdict = str(result["verdict"].item())
    return Judged(*texts, int(result["drawn_rows"]), exit_status([verdict]), p)


def state(**facts: object) -> Callable[[Groups], None]:
    """State other facts in the provenance."""

    def edit(groups: Groups) -> None:
        for name, value in facts.items():
            groups["provenance"][name] = ("config", np.array([str(value)], object))

    return edit
