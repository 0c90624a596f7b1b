"""One config of a sweep that asks a server: every prompt is sent, every answer is kept as it came."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qdx import new_file
from qdx.endpoints.answers import ANSWERS, FACTS, lines_of
from qdx.endpoints.client import Budget, Client, LostError, RefusedError, Reply, SpentError, needed
from qdx.endpoints.requests import PATHS, Manner, Question, body, questions
from qdx.errors import QdxError
from qdx.schema_endpoint import OpenaiBackend, is_loopback

if TYPE_CHECKING:
    from qdx.progress import Progress
    from qdx.prompts import Reference

SPENT = "spent.json"  # beside the answers
MOST_LOST = 3  # requests in a row that brought nothing: then the server is taken for gone


class Endpoint:
    """Stands in a config as its backend; a job that has it asks instead of running a model."""

    @staticmethod
    def identity(**options: Any) -> dict[str, Any]:
        """Return what beside the options decides about an answer: nothing that can be observed."""
        return {}

    @staticmethod
    def rehearse(**options: Any) -> None:
        """Refuse, before the first request, what every one of them would fail on.

        Raises
        ------
        QdxError
            When httpx2 is missing, or the key would travel readable.
        """
        needed()
        key_of(str(options["key"]), str(options["base_url"]), bool(options.get("insecure")))


def key_of(variable: str, base_url: str, insecure: bool) -> str:
    """Return the key from the environment; "" where there is none.

    Raises
    ------
    QdxError
        When it would travel over http to another machine, or cannot be a header's value.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return ""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise QdxError(
            f"the environment variable {variable} holds what cannot be a key (backend.key): ASCII, no spaces"
        )
    if urlsplit(base_url).scheme == "http" and not is_loopback(base_url) and not insecure:
        raise QdxError(
            f"backend.base_url={base_url}: the key in {variable} would be readable on its way: use https, or "
            f"unset {variable}, or say backend.insecure=true"
        )
    return key


@dataclass(frozen=True)
class Job:
    """Hold what one config asks.

    Attributes
    ----------
    label : str
    backend : OpenaiBackend
    references : sequence of Reference
    tokens : int
        Of an answer, at most.
    identity : Mapping
        What is stored with the answers; ``config_hash`` says whether earlier ones are to the same questions.
    """

    label: str
    backend: OpenaiBackend
    references: Sequence[Reference]
    tokens: int
    identity: Mapping[str, Any]


def ask(job: Job, folder: Path, progress: Progress) -> str:
    """Ask for what is missing in a config's folder.

    Every answer is on the disk before the next one is waited for; a job that is started again asks for the
    others only.

    Parameters
    ----------
    job : Job
    folder : Path
        Of the config.
    progress : Progress

    Returns
    -------
    str
        What happened, in a few words.

    Raises
    ------
    QdxError
        When the server refuses, is gone, or the budget is spent; answers that came before are kept.
    """
    backend = job.backend
    path = folder / ANSWERS
    spent = _earlier(folder, str(job.identity["config_hash"]))
    wanted = questions(job.references, backend.answers)
    done = _kept(path) if spent else set()
    if not spent:
        path.unlink(missing_ok=True)
    open_ones = [one for one in wanted if one.name not in done]
    budget = Budget(
        backend.max_requests,
        backend.max_tokens,
        spent.get("requests", 0),
        spent.get("tokens", 0),
        save=lambda requests, tokens: _save(folder, job.identity, requests, tokens),
    )
    client = Client(
        backend.base_url,
        key_of(backend.key, backend.base_url, backend.insecure),
        timeout=backend.timeout,
        retries=backend.retries,
        budget=budget,
    )
    facts = {
        **job.identity,
        "wanted": len(wanted),
        "base_url": backend.base_url,
        "model": backend.model,
        "route": backend.route,
        "started": _now(),
    }
    run = _Run(job, client, progress, len(wanted), len(done))
    end = ""
    try:
        _write(folder, facts, budget, "running", run.manner)
        if open_ones:
            progress.start(f"asking {urlsplit(backend.base_url).netloc}", len(wanted))
            with new_file.appended(path) as stream:
                run.all(open_ones, stream)
        end = "complete"
    except SpentError as error:
        end = "budget"
        raise QdxError(
            f"{error}: {run.answered} of {len(wanted)} answers are in {path}: raise it and resume the sweep"
        ) from None
    except (RefusedError, LostError) as error:
        end = "failed"
        raise QdxError(
            f"{backend.base_url}: {error}; {run.answered} of {len(wanted)} answers are in {path}: resume the "
            "sweep when that is mended"
        ) from None
    finally:
        client.close()
        _write(folder, {**facts, "listed": run.listed}, budget, end or "stopped", run.manner)
        _save(folder, job.identity, budget.requests, budget.tokens)
    failed = len(wanted) - run.answered
    return f"{run.answered} of {len(wanted)} answers" + (f", {failed} requests failed" if failed else "")


class _Run:
    """Sends questions at once and writes what comes back in the order in which it comes."""

    def __init__(self, job: Job, client: Client, progress: Progress, wanted: int, done: int) -> None:
        self.job, self.client, self.progress = job, client, progress
        self.wanted, self.answered, self.lost = wanted, done, 0
        self.manner = Manner(ids=True, logprobs=job.backend.logprobs is not None)
        self.listed: list[str] = []

    def all(self, waiting: Sequence[Question], stream: IO[bytes]) -> None:
        """Ask every question."""
        models = (self.client.get("models") or {}).get("data")
        if isinstance(models, list):
            self.listed = [str(one.get("id"))[:200] for one in models if isinstance(one, dict)][:20]
        first, others = waiting[0], list(waiting[1:])
        self._keep(first, self._first(first), stream)
        others.reverse()
        pool = ThreadPoolExecutor(self.job.backend.concurrency)
        running: dict[Future[Reply], Question] = {}
        try:
            while others or running:
                while others and len(running) < self.job.backend.concurrency:
                    question = others.pop()
                    running[pool.submit(self._send, question)] = question
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for one in ended:
                    question = running.pop(one)
                    try:
                        self._keep(question, one.result(), stream)
                    except LostError as error:
                        self._lose(question, error, stream)
        except QdxError:
            self.client.stopping.set()
            for one, question in running.items():  # what is on its way is paid for, so it is kept
                if not one.cancel():
                    with contextlib.suppress(QdxError):
                        self._keep(question, one.result(), stream)
            raise
        except BaseException:  # somebody wants this to end now
            self.client.stopping.set()
            self.client.close()
            raise
        finally:
            self.client.stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _first(self, question: Question) -> Reply:
        """Ask the first question, with fewer wishes each time that the server refuses them."""
        try:
            return self._send(question)
        except RefusedError as error:
            if error.status not in (400, 422):
                raise
            for manner in self.manner.without():
                self.manner, before = manner, self.manner
                try:
                    reply = self._send(question)
                except RefusedError:
                    continue
                self.progress.note(f"the server gives {self.manner.said()}: it refused more ({error})")
                return reply
            self.manner = before
            raise

    def _send(self, question: Question) -> Reply:
        job = self.job
        request = body(question, job.backend, self.manner, job.tokens)
        most = job.tokens + len(question.reference.token_ids)
        return self.client.ask(PATHS[job.backend.route], request, most)

    def _keep(self, question: Question, reply: Reply, stream: IO[bytes]) -> None:
        self.answered, self.lost = self.answered + 1, 0
        own = {"asked": _now(), "seconds": round(reply.seconds, 4), "attempts": reply.attempts}
        self._append(question, {"response": reply.body, "qdx": own}, stream)
        self.progress.step(f"{self.answered} of {self.wanted} answers, {self._cost()}")

    def _lose(self, question: Question, error: LostError, stream: IO[bytes]) -> None:
        """Note a request that brought nothing, and stop where nothing comes any more."""
        self.lost += 1
        self._append(question, {"error": {"message": str(error)}, "qdx": {"asked": _now()}}, stream)
        self.progress.note(f"{question.name}: {error}")
        if self.lost >= MOST_LOST:
            raise LostError(f"{self.lost} requests in a row brought no answer: {error}")

    def _append(self, question: Question, line: Mapping[str, Any], stream: IO[bytes]) -> None:
        request = body(question, self.job.backend, self.manner, self.job.tokens)
        whole = {"custom_id": question.name, "provider": self.job.label, "request": request, **line}
        stream.write(json.dumps(whole, ensure_ascii=True).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())

    def _cost(self) -> str:
        budget, prices = self.client.budget, self.job.backend.prices
        said = f"{budget.requests} requests, {budget.tokens:,} tokens"
        if prices is None:
            return said
        # The split between prompt and answer is not counted apart: the dearer price is an upper limit.
        return f"{said}, at most {budget.tokens * max(prices) / 1e6:.4f} at backend.price_in and price_out"


def _earlier(folder: Path, config_hash: str) -> dict[str, int]:
    """Return what an earlier start of the same job used of its budget; empty where there was none."""
    try:
        spent = json.loads((folder / SPENT).read_text(encoding="utf-8"))
        if spent["config_hash"] != config_hash:
            return {}
        return {"requests": int(spent["requests"]), "tokens": int(spent["tokens"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save(folder: Path, identity: Mapping[str, Any], requests: int, tokens: int) -> None:
    """Write what is spent before it is: a process that is killed must not ask for it again unseen."""
    spent = {"config_hash": identity["config_hash"], "requests": requests, "tokens": tokens}
    new_file.write_text(folder / SPENT, json.dumps(spent) + "\n")


def _kept(path: Path) -> set[str]:
    """Keep the lines with an answer, in a new file; return their names. The others are asked again."""
    if not path.is_file():
        return set()
    names = set()
    with new_file.rewritten(path) as stream:
        for line in lines_of(path):
            if isinstance(line.get("response"), dict) and line["custom_id"] not in names:
                names.add(str(line["custom_id"]))
                stream.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
    return names


def _write(folder: Path, facts: Mapping[str, Any], budget: Budget, end: str, manner: Manner) -> None:
    stated = {
        **facts,
        "ended": _now(),
        "end": end,
        "requests": budget.requests,
        "tokens": budget.tokens,
        "asked_for": manner.said(),
    }
    new_file.write_text(folder / FACTS, json.dumps(stated, indent=1) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
