"""Ask providers the same prompts again and again, and say when one has changed.

``python -m qdx.watch watch.yaml`` asks a round, waits, and asks the next one. Nothing is needed but the
addresses: the first round is what the others are compared with. It reports a provider as soon as its
martingale reaches what a provider who changes nothing reaches with probability α at most, over all rounds and
all providers together. All it knows is in one file, to which every round is appended: a watch that was killed
goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from qdx import new_file
from qdx.endpoints.answers import lines_of
from qdx.endpoints.ask import key_of
from qdx.endpoints.client import Budget, Client, SpentError
from qdx.endpoints.martingale import Gambler, conformal_p, strangeness
from qdx.endpoints.requests import PATHS, Manner
from qdx.endpoints.requests import fields as fields_of
from qdx.errors import QdxError, nearest, printable
from qdx.locking import locked
from qdx.program import of_disk, run
from qdx.schema_endpoint import ENDPOINT, OpenaiBackend
from qdx.statistics import Floats

CHANGED = 3  # exit status, as of a claim that is refuted
DAY_S = 86_400
TEMPLATE_TOKENS = 200  # of a chat template around a short prompt, at most
LEAST_LISTED = -20.0  # nat, of an alternative that is not listed any more
FLOORS = {"agreement": 0.02, "length": 0.02, "logprob": 1e-3, "listed": 1e-3}


@dataclass(frozen=True)
class Watch:
    """Hold what is watched: the fields of the configuration file.

    Attributes
    ----------
    targets : Mapping
        Name of a provider → options of ``backend=openai``: ``base_url``, ``model``, ``route``, ``key``,
        ``temperature`` …
    prompts : list of str
        Asked in every round.
    state : str
        File with all answers; beside the configuration where the path is relative.
    tokens : int
        Of an answer, at most.
    alpha : float
        Probability of any false report, over all rounds and providers.
    every : float
        Seconds from the start of a round to that of the next.
    """

    targets: Mapping[str, OpenaiBackend]
    prompts: Sequence[str]
    state: str = "watch.jsonl"
    tokens: int = 24
    alpha: float = 0.01
    every: float = 3600.0

    def __post_init__(self) -> None:
        if not self.targets:
            raise QdxError("targets is empty: name a provider with its base_url and model")
        if not self.prompts or not all(isinstance(one, str) and one.strip() for one in self.prompts):
            raise QdxError("prompts: must be a list of texts, at least one")
        if not 0 < self.alpha < 1:
            raise QdxError(f"alpha={self.alpha}: must be above 0 and below 1")
        if self.tokens < 1 or self.every < 0:
            raise QdxError("tokens must be at least 1, and every at least 0 seconds")

    @property
    def limit(self) -> float:
        """The capital at which a provider is reported."""
        return len(self.targets) / self.alpha

    @classmethod
    def read(cls, path: Path) -> Watch:
        """Read a configuration file.

        Raises
        ------
        QdxError
            Naming the field, what it holds and what it may hold.
        """
        from omegaconf import OmegaConf

        try:
            value: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except OSError as error:
            raise QdxError(f"{path}: {error.strerror}: give the file that says what is watched") from error
        except Exception as error:
            raise QdxError(f"{path} is not YAML that can be read: {error}") from error
        if not isinstance(value, dict) or not isinstance(value.get("targets"), dict):
            raise QdxError(f"{path}: must have targets, {{name: {{base_url: …, model: …}}}}, and prompts")
        known = [one.name for one in fields(cls)]
        for name in value:
            if name not in known:
                raise QdxError(f"{path}: {name}: one of {', '.join(known)}{nearest(name, known)}")
        targets = {str(name): _target(path, str(name), one) for name, one in value.pop("targets").items()}
        try:
            return cls(targets=targets, **value)
        except TypeError as error:
            raise QdxError(f"{path}: {error}") from error


def _target(path: Path, name: str, options: Any) -> OpenaiBackend:
    known = [one.name for one in fields(OpenaiBackend) if one.name not in ("_target_", "name")]
    if not isinstance(options, dict) or not {"base_url", "model"} <= set(options):
        raise QdxError(f"{path}: targets.{name}: give base_url and model")
    if not name.isprintable() or len(name) > 60:
        raise QdxError(f"{path}: the name of a provider is one line of at most 60 characters: {name[:60]}")
    for key in options:
        if key not in known:
            raise QdxError(f"{path}: targets.{name}.{key}: one of {', '.join(known)}{nearest(key, known)}")
    try:
        return OpenaiBackend(ENDPOINT, "openai", **options)
    except TypeError as error:
        raise QdxError(f"{path}: targets.{name}: {error}") from error


@dataclass
class Target:
    """Hold what is known of one provider.

    Attributes
    ----------
    features : list of list of float
        Of every round after the first, beside the first one's answers.
    base : list of Mapping
        The first round's answers.
    p : list of float
    gambler : Gambler
    changed : int
        The round in which it was reported; −1: it was not.
    tokens, answer_tokens : int
        Of prompts and answers, all rounds; and of the answers alone.
    requests, budgeted : int
        What all starts of the command took of a budget: attempts, and tokens as `Budget` counts them.
    spent : bool
        Whether this start ended because the budget was used up.
    """

    base: list[Mapping[str, Any]] = field(default_factory=list)
    features: list[list[float]] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    p: list[float] = field(default_factory=list)
    gambler: Gambler = field(default_factory=Gambler)
    changed: int = -1
    tokens: int = 0
    answer_tokens: int = 0
    requests: int = 0
    budgeted: int = 0
    spent: bool = False

    @property
    def rounds(self) -> int:
        """Rounds that were asked, the first one among them."""
        return len(self.features) + bool(self.base)

    def take(self, answers: Sequence[Mapping[str, Any]], u: float, limit: float) -> None:
        """Take a round's answers; `u` breaks ties."""
        self.tokens += sum(int(one.get("tokens") or 0) for one in answers)
        self.answer_tokens += sum(int(one.get("answer_tokens", one.get("tokens")) or 0) for one in answers)
        if not self.base:
            self.base = list(answers)
            return
        pairs = [features_of(one, base) for one, base in zip(answers, self.base, strict=True)]
        self.features.append([value for values in pairs for _, value in values])
        self.floors = [FLOORS[kind] for values in pairs for kind, _ in values]
        score_T: Floats = strangeness(np.array(self.features), np.array(self.floors))
        self.p.append(conformal_p(score_T, u))
        if self.gambler.bet(self.p[-1]) >= limit and self.changed < 0:
            self.changed = self.rounds - 1


def features_of(answer: Mapping[str, Any], base: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Describe an answer by numbers, beside the first answer to the same prompt.

    Returns
    -------
    list of (kind, value)
        Always of the same length for one `base`: how long it agrees with it and its length (shares of the
        first one's), the mean log-probability of its tokens, and the log-probabilities of the alternatives
        that were listed for the first token then.
    """
    mine, other = answer["pieces"], base["pieces"]
    agree = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
    agree = min(len(mine), len(other)) if agree is None else agree
    whole = max(1, len(other))
    found = [("agreement", agree / whole), ("length", len(mine) / whole)]
    if base.get("logprob") is not None:
        value = answer.get("logprob")
        found.append(("logprob", LEAST_LISTED if value is None else float(value)))
    listed: Mapping[str, float] = answer.get("first") or {}
    found += [("listed", float(listed.get(name, LEAST_LISTED))) for name in base.get("first") or {}]
    return found


def body_of(prompt: str, target: OpenaiBackend, tokens: int, number: int) -> dict[str, Any]:
    """Return the request of a prompt; a seed that is given counts on from request to request.

    Parameters
    ----------
    number : int
        Of the request, over all rounds: equal seeds would give answers equal noise.
    """
    found: dict[str, Any] = {"model": target.model}
    if target.route == "chat":
        found["messages"] = [{"role": "user", "content": prompt}]
    else:
        found["prompt"] = prompt
    return found | fields_of(target, Manner(ids=False), tokens, number)


def most_tokens(prompt: str, tokens: int) -> int:
    """Return the most tokens that a request may take: one for each byte of the prompt, and the template's."""
    return len(prompt.encode()) + TEMPLATE_TOKENS + tokens


def compact(response: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a response what rounds are compared by.

    Raises
    ------
    QdxError
        When it is not an answer that a record can be made of.
    """
    from qdx.records.openai import answers
    from qdx.records.record import FieldError, Fields, Unreadable

    try:
        record = next(iter(answers("answer", None, Fields(dict(response)))))
    except FieldError as error:
        raise QdxError(f"a response that is not an answer: {error}") from None
    if isinstance(record, Unreadable):
        raise QdxError(f"a response that is not an answer: {record}")
    text = (record.output or "") + record.reasoning
    values = [one.logprob for one in record.tokens if math.isfinite(one.logprob)]
    first = {one.text: one.logprob for one in record.tokens[0].top} if record.tokens else {}
    usage = response.get("usage")
    stated = usage if isinstance(usage, dict) else {}
    counted = {
        name: value
        for name in ("prompt_tokens", "completion_tokens")
        if isinstance(value := stated.get(name), int) and value > 0
    }
    return {
        "pieces": [one.text for one in record.tokens] or list(text),
        "logprob": float(np.mean(values)) if values else None,
        "first": {name: value for name, value in first.items() if math.isfinite(value)},
        "model": str(response.get("model") or ""),
        "fingerprint": str(response.get("system_fingerprint") or ""),
        "tokens": sum(counted.values()),
        "answer_tokens": counted.get("completion_tokens", 0),
    }


class State:
    """The file of a watch: a first line that says what is watched, a line a round, and one an attempt.

    An attempt is written down before it is made, with all that was spent until then, so that a budget holds
    over any number of starts, however they ended.

    Parameters
    ----------
    path : Path
    watch : Watch

    Raises
    ------
    QdxError
        When the file is of another watch, or is damaged before its last line.
    """

    def __init__(self, path: Path, watch: Watch) -> None:
        self.path, self.watch = path, watch
        self.targets = {name: Target() for name in watch.targets}
        about = self._about()
        if not path.exists():
            self.seed = secrets.token_hex(16)
            head = {"kind": "watch", "version": 1, "seed": self.seed, "about": about}
            self._append(head)
            return
        lines = self._lines()
        head = lines[0] if lines else {}
        if head.get("kind") != "watch" or head.get("version") != 1:
            raise QdxError(f"{path} is not a state of a watch: name another file as state")
        if head.get("about") != about:
            raise QdxError(
                f"{path} is of other prompts, providers or options, and rounds of both cannot be compared: "
                "name a new file as state"
            )
        self.seed = str(head["seed"])
        for line in lines[1:]:
            if "spent" in line:
                self._spend(line)
            else:
                self._take(line)

    def _about(self) -> dict[str, Any]:
        """Return what an answer depends on; how it is fetched does not count."""
        skipped = ("concurrency", "timeout", "retries", "max_requests", "max_tokens", "price_in", "price_out",
                   "key", "insecure")  # fmt: skip
        targets = {
            name: {key: value for key, value in asdict(one).items() if key not in skipped}
            for name, one in self.watch.targets.items()
        }
        return {"targets": targets, "prompts": list(self.watch.prompts), "tokens": self.watch.tokens}

    def _lines(self) -> list[dict[str, Any]]:
        """Read the lines that were written whole, and cut off one that was not."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        return list(lines_of(self.path))

    def add(self, name: str, answers: Sequence[Mapping[str, Any]]) -> Target:
        """Write a round down, then bet on it."""
        line = {
            "target": name,
            "round": self.targets[name].rounds,
            "asked": datetime.now(UTC).isoformat(timespec="seconds"),
            "answers": list(answers),
        }
        self._append(line)
        self._take(line)
        return self.targets[name]

    def budget(self, name: str) -> Budget:
        """Return what may still be asked of a provider; what it says before an attempt goes into the file."""
        options, target = self.watch.targets[name], self.targets[name]
        return Budget(
            options.max_requests,
            options.max_tokens,
            target.requests,
            target.budgeted,
            save=lambda requests, tokens: self.spend(name, requests, tokens),
        )

    def spend(self, name: str, requests: int, tokens: int) -> None:
        """Write down what all starts together took of a provider's budget."""
        line = {"target": name, "spent": [requests, tokens]}
        self._append(line)
        self._spend(line)

    def _spend(self, line: Mapping[str, Any]) -> None:
        try:
            requests, tokens = (int(one) for one in line["spent"])
            target = self.targets[str(line["target"])]
        except (KeyError, TypeError, ValueError) as error:
            raise QdxError(
                f"{self.path}: a line of what was spent is damaged ({type(error).__name__}: {error})"
            ) from None
        target.requests, target.budgeted = requests, tokens

    def _append(self, line: Mapping[str, Any]) -> None:
        with new_file.appended(self.path) as stream:
            stream.write(json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _take(self, line: Mapping[str, Any]) -> None:
        try:
            target = self.targets[str(line["target"])]
            # The tie-breaker of a round is fixed by the file's seed, before the round is asked.
            u = 1 - random.Random(f"{self.seed} {line['target']} {line['round']}").random()
            target.take(line["answers"], u, self.watch.limit)
        except (KeyError, TypeError, ValueError) as error:
            raise QdxError(f"{self.path}: a round is damaged ({type(error).__name__}: {error})") from None


def ask_round(state: State, clients: Mapping[str, Client]) -> list[str]:
    """Ask every provider once; return a line for each."""
    said = []
    for name, options in state.watch.targets.items():
        number = state.targets[name].rounds
        answers = []
        try:
            for i, prompt in enumerate(state.watch.prompts):
                request = number * len(state.watch.prompts) + i
                body = body_of(prompt, options, state.watch.tokens, request)
                reply = clients[name].ask(PATHS[options.route], body, most_tokens(prompt, state.watch.tokens))
                answers.append(compact(reply.body))
        except SpentError as error:
            state.targets[name].spent = True
            said.append(f"{name}: no round {number}: {error}")
            continue
        except QdxError as error:  # a round that is not whole is none: the next one will be
            said.append(f"{name}: no round {number}: {error}")
            continue
        budget = clients[name].budget
        state.spend(name, budget.requests, budget.tokens)  # as the server counted it
        said.append(said_of(name, state.add(name, answers), state.watch))
    return said


def said_of(name: str, target: Target, watch: Watch) -> str:
    """Say in a line how it stands with a provider."""
    if not target.p:
        return f"{name}: round 0, which the others are compared with"
    now = (
        f"{name}: round {target.rounds - 1}, p = {target.p[-1]:.2g}, martingale {target.gambler.capital:.3g}"
    )
    if target.changed < 0:
        return f"{now} (greatest {target.gambler.greatest:.3g}; reported at {watch.limit:g})"
    return (
        f"{now}; CHANGED: reported in round {target.changed}; who changes nothing is reported with "
        f"probability {watch.alpha:g} at most, all rounds and providers together"
    )


def cost(state: State) -> list[str]:
    """Say what a day of it takes, by the rounds that were asked."""
    said = []
    for name, target in state.targets.items():
        if not target.rounds or not state.watch.every:
            continue
        a_day = DAY_S / state.watch.every
        tokens = target.tokens / target.rounds * a_day
        line = f"{name}: a day takes {a_day * len(state.watch.prompts):,.0f} requests, {tokens:,.0f} tokens"
        if (prices := state.watch.targets[name].prices) is not None:
            price_in, price_out = prices
            prompt_tokens = target.tokens - target.answer_tokens
            price = (
                (prompt_tokens * price_in + target.answer_tokens * price_out) / target.rounds * a_day / 1e6
            )
            line += f", {price:.4f} at its prices"
        said.append(
            f"{line}; asked so far: {target.requests:,} requests, {target.tokens:,} tokens of whole rounds"
        )
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 3 when a provider has changed."""
    parser = argparse.ArgumentParser(prog="python -m qdx.watch", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", type=Path, help="YAML: targets, prompts, alpha, every …")
    parser.add_argument("--rounds", type=int, help="end after so many rounds (default: never)")
    parser.add_argument("--status", action="store_true", help="ask nothing, say how it stands")
    chosen = parser.parse_args(arguments)
    try:
        watch = Watch.read(chosen.config)
        path = chosen.config.absolute().parent / watch.state
        if chosen.status and not path.exists():
            raise QdxError(f"{path} is not there: nothing has been asked yet")
        with locked(path.with_name(f"{path.name}.lock"), wait=False):
            return _watch(watch, path, chosen.rounds, status=chosen.status)
    except BlockingIOError:
        print("qdx: error: another watch has this state: wait for its end, or name another", file=sys.stderr)
        return 2
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 1 if of_disk(error) else 2


def _watch(watch: Watch, path: Path, rounds: int | None, *, status: bool) -> int:
    state = State(path, watch)
    if status:
        lines = [said_of(name, one, watch) for name, one in state.targets.items() if one.rounds]
        print(printable("\n".join([*lines, *cost(state)])))
        return _status(state)
    clients = {
        name: Client(
            one.base_url,
            key_of(one.key, one.base_url, one.insecure),
            timeout=one.timeout,
            retries=one.retries,
            budget=state.budget(name),
        )
        for name, one in watch.targets.items()
    }
    count = 0
    try:
        while rounds is None or count < rounds:
            begun = time.monotonic()
            print(printable("\n".join(ask_round(state, clients))), flush=True)
            count += 1
            if count == 1:
                print(printable("\n".join(cost(state))), flush=True)
            if _status(state):
                break
            if all(one.spent for one in state.targets.values()):
                print("every budget is used up: raise max_requests or max_tokens to go on", flush=True)
                break
            if rounds is None or count < rounds:
                time.sleep(max(0.0, watch.every - (time.monotonic() - begun)))
    finally:
        for client in clients.values():
            client.close()
    return _status(state)


def _status(state: State) -> int:
    return CHANGED if any(one.changed >= 0 for one in state.targets.values()) else 0


if __name__ == "__main__":
    run(main)
