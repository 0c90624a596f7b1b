"""Two configs under one root: each has a chance to pass, and a file answers as a whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from qdx.commit import main as commit_main
from qdx.commit import write_groups
from qdx.open_rows import main as open_main
from qdx.verification import binding, ledger
from tests.protocol.world import DECODE, PREFILL, ROWS, World, read, run
from tests.sweeping import qdx
from tests.verification.world import FEW

pytestmark = pytest.mark.slow

QUANTS = "quant=awq,awq_marlin"


@dataclass(frozen=True)
class Two:
    """A folder with the challenge, the prover's two configs, and what she opened."""

    folder: Path
    models: list[str]

    def replay(self, file: str, name: str, *arguments: str) -> CompletedProcess[str]:
        """Run the verifier's sweep."""
        return qdx(
            *("-m", "prompts=transcripts", f"prompts.path={file}", "verify.challenge=challenge.json"),
            *(QUANTS, "repeats=3", f"hydra.sweep.dir={name}", *arguments, *FEW, *self.models),
            cwd=self.folder,
        )


@pytest.fixture(scope="module")
def two(exchange: World, tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    shutil.copy(exchange.challenge, folder)
    own = replace(exchange.ledger, root="", received="", drawn=0, commitment=None)
    ledger.write(folder / "challenge.verifier.json", own)
    done = qdx(
        *("-m", "prompts=challenge", "prompts.path=challenge.json", QUANTS, "repeats=1"),
        *("hydra.sweep.dir=prover", *FEW, *exchange.models),
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run(commit_main, folder / "prover")
    said = run(open_main, "draw", folder / "challenge.json", folder / "prover" / binding.NAME, "--rows", ROWS)
    assert (
        f"{ROWS} of {PREFILL} rows of prefill and {DECODE} of {DECODE} rows of decode, of each of 2" in said
    )
    assert "under 16.9 % in prefill" in said
    run(open_main, "open", folder / "prover", folder / "drawn.json")
    return Two(folder, exchange.models)


def test_the_bound_of_two_configs_is_wider_than_that_of_one(two: Two) -> None:
    done = two.replay("prover/opened.nc", "verifier")
    assert done.returncode == 0, done.stdout + done.stderr
    claims = json.loads((two.folder / "verifier" / "summary.json").read_text())["verdicts"]["claims"]
    assert [claim["producer"] for claim in claims] == ["awq", "awq_marlin"]
    for claim in claims:
        assert claim["verdict"] == "confirmed in s drawn rows"
        # 1 − (0.05/2)^(1/20) = 16.84 %, and not the 13.91 % of one config.
        assert claim["false_share_prefill"] == pytest.approx(1 - 0.025 ** (1 / ROWS))
        assert "under 16.9 % in prefill" in claim["because"]
        assert "at 95 %, for all 2 configs of the root together" in claim["because"]


def test_a_file_of_which_one_config_was_changed_answers_for_none(two: Two) -> None:
    """The rows of the bad one cannot be withheld, and its changed tokens move no test of the other."""
    groups = read(two.folder / "prover" / "opened.nc")
    groups["output"]["token_id"].values[1, ..., -1] += 1
    made, root = binding.read(two.folder / "prover" / binding.NAME)
    stated = {"root": root, "challenge_sha256": made.challenge_sha256}
    write_groups(two.folder / "changed.nc", "opened", groups, **stated)
    done = two.replay("changed.nc", "never")
    assert done.returncode == 4, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "obligation not met: awq: awq_marlin: tokens: the root binds other ones",
        "obligation not met: awq_marlin: tokens: the root binds other ones",
    ]
    assert not (two.folder / "never").exists()
