"""The exchange that the tests of the protocol share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.protocol.world import World
from tests.sweeping import qdx
from tests.verification.world import FEW


@pytest.fixture(scope="session")
def exchange(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> World:
    """An honest prover's part, up to the opened rows."""
    return World.build(tmp_path_factory.mktemp("exchange"), tiny_models)


@pytest.fixture(scope="session")
def world(exchange: World) -> World:
    """The same with the verifier's replay: its verdict is the exit status."""
    arguments = [
        "-m",
        "prompts=transcripts",
        "prompts.path=prover/opened.nc",
        "verify.challenge=challenge.json",
    ]
    done = qdx(
        *arguments, "quant=awq", "repeats=3", "hydra.sweep.dir=verifier", *FEW, *exchange.models,
        cwd=exchange.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return exchange
