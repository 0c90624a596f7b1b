"""Watching a provider: false alarms over long quiet runs, delay after a change, and a state that survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx2")

from qdx import watch as command
from qdx.endpoints import client as client_module
from qdx.endpoints.martingale import Gambler, conformal_p, strangeness
from qdx.errors import QdxError
from qdx.statistics import Floats
from tests.endpoints.server import RECORDED, send, serving
from tests.sweeping import environment

ALPHA = 0.05
FLOOR = np.full(6, 1e-3)
Law = Callable[[np.random.Generator, int], Floats]


def discrete(random_: np.random.Generator, rounds: int) -> Floats:
    return random_.choice([0.0, 0.5, 1.0], (rounds, 6), p=[0.05, 0.15, 0.8])


def batches(random_: np.random.Generator, rounds: int) -> Floats:
    """Answers that now and then come from a busy batch, in which all features move together."""
    busy = random_.random((rounds, 1)) < 0.3
    return np.where(busy, 0.4, 0.0) + 0.01 * random_.standard_normal((rounds, 6))


LAWS: dict[str, Law] = {
    "normal": lambda random_, rounds: random_.standard_normal((rounds, 6)),
    "heavy tails": lambda random_, rounds: random_.standard_t(1.5, (rounds, 6)),
    "a few values": discrete,
    "busy batches": batches,
    "always the same": lambda random_, rounds: np.ones((rounds, 6)),
}


def crossing(feature_TF: Floats, u: Floats, limit: float) -> int:
    """Return the first round in which the martingale reaches the limit; −1: never."""
    gambler = Gambler()
    for t in range(1, len(feature_TF) + 1):
        if gambler.bet(conformal_p(strangeness(feature_TF[:t], FLOOR), u[t - 1])) >= limit:
            return t - 1
    return -1


@pytest.mark.parametrize("law", LAWS)
def test_a_provider_that_changes_nothing_is_seldom_reported(law: str) -> None:
    random_ = np.random.default_rng(9)
    runs, rounds = 120, 120
    false = sum(
        crossing(LAWS[law](random_, rounds), 1 - random_.random(rounds), 1 / ALPHA) >= 0 for _ in range(runs)
    )
    assert false <= ALPHA * runs + 3.1 * np.sqrt(runs * ALPHA * (1 - ALPHA)), false  # 1 in 1,000


# A change by so much, in so many of the six features. A busy batch moves all of them by 0.4.
CHANGES = {
    "normal": (3.0, 3),
    "heavy tails": (5.0, 6),
    "a few values": (0.6, 3),
    "busy batches": (2.0, 6),
    "always the same": (0.01, 1),
}


@pytest.mark.parametrize("law", LAWS)
def test_a_change_is_found_soon_also_after_a_long_time(law: str) -> None:
    random_ = np.random.default_rng(10)
    delays = []
    by, features = CHANGES[law]
    for before in (20, 90) * 8:
        feature_TF = LAWS[law](random_, before + 30)
        feature_TF[before:, :features] -= by
        found = crossing(feature_TF, 1 - random_.random(len(feature_TF)), 1 / 0.01)
        delays.append(found - before if found >= before else 99)
    assert np.median(delays) <= 10, delays


def test_a_score_that_depends_on_the_order_would_be_reported() -> None:
    """What the level rests on: compared with the first rounds alone, a quiet provider is reported often."""
    random_ = np.random.default_rng(11)
    false = 0
    for _ in range(60):
        feature_TF, gambler = random_.standard_normal((120, 6)), Gambler()
        for t in range(5, 120):
            known_TF = feature_TF[:5]
            spread_F = np.abs(known_TF - known_TF.mean(0)).mean(0)
            score_T = np.abs((feature_TF[:t] - known_TF.mean(0)) / spread_F).mean(1)
            if gambler.bet(conformal_p(np.append(score_T[:5], score_T[-1]), random_.random())) >= 1 / ALPHA:
                false += 1
                break
    assert false > 0.2 * 60


# One text of the recorded answers to each of two prompts; a server that changes its weights gives the other.
FIRST, SECOND = (one["response"] for one in RECORDED if one["path"] == "completions" and one["status"] == 200)


def config(folder: Path, address: str, **more: Any) -> Path:
    value = {
        "targets": {"one": {"base_url": address, "model": "demo", "retries": 0}},
        "prompts": ["a matrix product", "is many sums"],
        "every": 0,
        **more,
    }
    path = folder / "watch.yaml"
    path.write_text(json.dumps(value))  # JSON is YAML
    return path


def test_the_how_to_s_configuration_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "watch.md").read_text()
    path = tmp_path / "watch.yaml"
    path.write_text(page.partition("<<'END'\n")[2].partition("END\n")[0])
    found = command.Watch.read(path)
    assert list(found.targets) == ["one", "two"] and found.limit == 200 and len(found.prompts) == 2


def noisy(changes_at: int) -> Callable[[Any, int, Any], bool]:
    """A server whose log-probabilities jitter, and that gives other answers from a request on."""

    def fault(handler: Any, number: int, body: Any) -> bool:
        answer = json.loads(json.dumps(SECOND if number >= changes_at else FIRST))
        jitter = random.Random(number).gauss(0, 1e-3)
        values = answer["choices"][0]["logprobs"]
        values["token_logprobs"] = [one + jitter for one in values["token_logprobs"]]
        values["top_logprobs"] = [
            {name: one + jitter for name, one in each.items()} for each in values["top_logprobs"]
        ]
        send(handler, 200, answer)
        return True

    return fault


def test_weights_that_change_on_the_way_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(noisy(2 * 25)) as (address, asked):
        path = config(tmp_path, address)
        assert command.main([str(path), "--rounds", "40"]) == command.CHANGED
    said = capsys.readouterr().out
    rounds = len(asked.bodies) // 2
    assert 25 <= rounds <= 34 and "one: round 24" in said and "CHANGED: reported in round" in said
    assert command.main([str(path), "--status"]) == command.CHANGED
    with serving(noisy(10**6)) as (address, asked):
        path = config(tmp_path, address, state="other.jsonl")
        assert command.main([str(path), "--rounds", "40"]) == 0
    assert len(asked.bodies) == 80


def test_several_share_the_level_and_the_cost_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as (address, _):
        one = {"base_url": address, "model": "demo", "price_in": 1.0, "price_out": 2.0}
        path = config(tmp_path, address, targets={"one": one, "two": one}, every=3600, alpha=0.02)
        assert command.main([str(path), "--rounds", "1"]) == 0
        assert command.main([str(path), "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    usage = FIRST["usage"]
    tokens = 2 * usage["total_tokens"] * 24
    price = 2 * (usage["prompt_tokens"] + 2 * usage["completion_tokens"]) * 24 / 1e6
    assert f"one: a day takes 48 requests, {tokens:,} tokens, {price:.4f} at its prices" in said
    assert "reported at 100" in said  # two of 0.01 each


def test_a_cut_line_is_asked_again_and_the_end_is_the_same(tmp_path: Path) -> None:
    def martingale(folder: Path, cut: bool) -> tuple[list[float], int]:
        folder.mkdir()
        with serving(noisy(10**6)) as (address, asked):
            path = config(folder, address)
            state = folder / "watch.jsonl"
            command.main([str(path), "--rounds", "6"])
            if cut:
                data = state.read_bytes()
                state.write_bytes(data[:-40])
            command.main([str(path), "--rounds", "2"])
            found = command.State(state, command.Watch.read(path))
        return found.targets["one"].p, len(asked.bodies)

    whole, cut = martingale(tmp_path / "a", False), martingale(tmp_path / "b", True)
    assert len(whole[0]) == 7 and len(cut[0]) == 6 and whole[1] == cut[1] == 16
    assert all(0 < p <= 1 for p in (*whole[0], *cut[0]))


@pytest.mark.parametrize("limit", ["max_requests", "max_tokens"])
def test_a_budget_holds_over_restarts_of_the_command(
    tmp_path: Path, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a_request = FIRST["usage"]["total_tokens"]
    reserved = command.most_tokens("a matrix product", 24)
    # Two rounds of two, and one request more.
    most = {"max_requests": 5, "max_tokens": 4 * a_request + reserved}[limit]
    with serving() as (address, asked):
        one = {"base_url": address, "model": "demo", "retries": 0, limit: most}
        path = config(tmp_path, address, targets={"one": one})
        for _ in range(6):
            assert command.main([str(path), "--rounds", "1"]) == 0
        assert len(asked.bodies) == 5
        state = command.State(tmp_path / "watch.jsonl", command.Watch.read(path))
        assert state.targets["one"].requests == 5 and state.targets["one"].rounds == 2
        assert f"backend.{limit}={most}" in capsys.readouterr().out
        assert command.main([str(path)]) == 0, "a watch whose budget is used up ends"
        assert "every budget is used up" in capsys.readouterr().out and len(asked.bodies) == 5
        # More is allowed: what was spent still counts.
        path = config(tmp_path, address, targets={"one": one | {limit: most + 2 * reserved}})
        assert command.main([str(path), "--rounds", "1"]) == 0
        assert len(asked.bodies) == 7


def test_an_attempt_that_was_killed_counts(tmp_path: Path) -> None:
    """What is spent is on the disk before the request is sent."""

    def dies(handler: Any, number: int, body: Any) -> bool:
        seen.append(command.State(tmp_path / "watch.jsonl", command.Watch.read(path)).targets["one"].requests)
        return False

    seen: list[int] = []
    with serving(dies) as (address, _):
        path = config(tmp_path, address)
        command.main([str(path), "--rounds", "2"])
    assert seen == [1, 2, 3, 4]


def test_every_request_has_a_seed_of_its_own(tmp_path: Path) -> None:
    with serving() as (address, asked):
        one = {"base_url": address, "model": "demo", "seed": 5, "temperature": 1.0}
        path = config(tmp_path, address, targets={"one": one})
        command.main([str(path), "--rounds", "2"])
        command.main([str(path), "--rounds", "1"])
    assert [body["seed"] for body in asked.bodies] == [5, 6, 7, 8, 9, 10]


def test_a_round_that_fails_is_none_and_the_next_one_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.01)

    def fault(handler: Any, number: int, body: Any) -> bool:
        if number != 3:
            return False
        send(handler, 500, b"")
        return True

    with serving(fault) as (address, _):
        path = config(tmp_path, address)
        assert command.main([str(path), "--rounds", "4"]) == 0
    said = capsys.readouterr().out
    assert "one: no round 1: 1 attempts failed" in said and "one: round 2, p" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": {}}, "targets is empty"),
        ({"targets": {"one": {"model": "demo"}}}, "give base_url and model"),
        (
            {"targets": {"one": {"base_url": "http://127.0.0.1:9/v1", "model": "x", "temprature": 1}}},
            "temperature",
        ),
        ({"prompts": []}, "prompts"),
        ({"alpha": 2}, "above 0 and below 1"),
        ({"prompt": ["a"]}, "did you mean 'prompts'"),
    ],
)
def test_a_config_that_makes_no_sense(
    tmp_path: Path, change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(config(tmp_path, "http://127.0.0.1:9/v1", **change)), "--rounds", "1"]) == 2
    assert said in capsys.readouterr().err


def test_a_state_of_another_watch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (address, _):
        command.main([str(config(tmp_path, address)), "--rounds", "1"])
        assert command.main([str(config(tmp_path, address, prompts=["another"])), "--rounds", "1"]) == 2
    assert "of other prompts" in capsys.readouterr().err
    state = tmp_path / "watch.jsonl"
    state.write_text("{}\n" + state.read_text())
    with pytest.raises(QdxError, match="not a state of a watch"):
        command.State(state, command.Watch.read(config(tmp_path, address)))


@pytest.mark.slow
def test_a_watch_that_is_killed_goes_on(tmp_path: Path) -> None:
    with serving(noisy(10**6), seconds=0.02) as (address, _):
        path = config(tmp_path, address)
        state = tmp_path / "watch.jsonl"
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-m", "qdx.watch", str(path)],
                stdout=subprocess.DEVNULL,
                env=environment(),
                cwd=tmp_path,
            )
            size = state.stat().st_size if state.exists() else 0
            ends = time.monotonic() + 60
            while time.monotonic() < ends and (not state.exists() or state.stat().st_size < size + 4000):
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        found = command.State(state, command.Watch.read(path)).targets["one"]
        assert found.rounds >= 4 and found.changed < 0
        assert command.main([str(path), "--rounds", "1"]) == 0
        assert command.State(state, command.Watch.read(path)).targets["one"].rounds == found.rounds + 1
