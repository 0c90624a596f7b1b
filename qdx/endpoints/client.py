"""Send a request to a server and get its answer whole, whatever the server does; within a budget."""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qdx.errors import QdxError

LARGEST = 64 * 2**20  # bytes of one response
LONGEST_WAIT_S = 60.0  # between two attempts, also where the server asks for more
FIRST_WAIT_S = 0.5
# Statuses after which the same request may succeed: the others say that it is wrong.
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
LONGEST_SAID = 300  # characters of a server's own words in a message
REDACTED = "[key]"


class RefusedError(QdxError):
    """The server says that the request itself is wrong; `status` is its HTTP status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the server answers {status}: {said}")
        self.status = status


class LostError(QdxError):
    """No attempt brought an answer."""


class SpentError(QdxError):
    """The budget does not cover another request."""


@dataclass
class Budget:
    """Bound what may be asked for; every attempt counts, since a server may charge for one that failed.

    Attributes
    ----------
    max_requests, max_tokens : int or None
        None: no limit.
    requests, tokens : int
        Attempts so far, and tokens of prompts and answers: what the server counted, or, where it did not say
        or did not answer, the most that it could have been.
    save : callable, optional
        Told both before every attempt, so that whoever is killed knows afterwards what was asked.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    requests: int = 0
    tokens: int = 0
    save: Callable[[int, int], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take(self, most: int) -> None:
        """Reserve an attempt of at most so many tokens.

        Raises
        ------
        SpentError
            When it could go beyond a limit.
        """
        with self._lock:
            if self.max_requests is not None and self.requests >= self.max_requests:
                raise SpentError(f"backend.max_requests={self.max_requests} is reached")
            if self.max_tokens is not None and self.tokens + most > self.max_tokens:
                raise SpentError(
                    f"backend.max_tokens={self.max_tokens} does not cover another request: {self.tokens} are "
                    f"used and it may take {most}"
                )
            self.requests += 1
            self.tokens += most
            if self.save is not None:
                self.save(self.requests, self.tokens)

    def settle(self, most: int, used: int | None) -> None:
        """Replace what was reserved by what the server counted."""
        if used is not None:
            with self._lock:
                self.tokens += min(used, most) - most


@dataclass(frozen=True)
class Reply:
    """Hold a server's answer.

    Attributes
    ----------
    body : dict
        The response's JSON, as it was sent but for the key, should the server repeat it.
    seconds : float
        From sending the attempt that succeeded to its last byte.
    attempts : int
        How often the request was sent.
    """

    body: dict[str, Any]
    seconds: float
    attempts: int


class Client:
    """Sends requests to one server; several threads may use it.

    Parameters
    ----------
    base_url : str
    key : str
        "" sends none. It goes to this address alone: redirects are not followed.
    timeout : float
        Seconds for one whole answer: a server that sends a byte now and then does not hold it for ever.
    retries : int
        Further attempts of one request.
    budget : Budget
    wait : callable, optional
        Sleeps; tests give another.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout: float,
        retries: int,
        budget: Budget,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        httpx = needed()
        self.base_url, self._key = base_url.rstrip("/"), key
        self._timeout, self._retries, self.budget, self._wait = timeout, retries, budget, wait
        self._failures: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # trust_env: a proxy or a netrc of the environment must not see the key of another server.
        self._http = httpx.Client(
            headers={**headers, "Accept": "application/json"},
            timeout=timeout,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=256),
        )
        self.stopping = threading.Event()  # set: no further attempt begins

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, path: str, body: Mapping[str, Any], most: int) -> Reply:
        """Send a request until it is answered, refused, or given up.

        Parameters
        ----------
        path : str
            Such as ``completions``.
        body : Mapping
        most : int
            Tokens that it may take, prompt and answer.

        Raises
        ------
        RefusedError
            For a status that another attempt would not change.
        LostError
            When the attempts are used up; says what each kind of them ended with.
        SpentError
            When the budget does not cover another attempt.
        """
        ends: list[str] = []
        for attempt in range(1, self._retries + 2):
            if self.stopping.is_set():
                raise LostError("it was stopped before it was sent")
            self.budget.take(most)
            begun, asked_for = time.monotonic(), 0.0
            try:
                status, data, headers = self._send(path, body)
            except _SlowError as error:
                ends.append(str(error))
            except self._failures as error:
                ends.append(self._clean(f"{type(error).__name__}: {error}"))
            else:
                if status == 200:
                    try:
                        reply = self._parsed(data)
                    except ValueError as error:
                        ends.append(self._clean(f"a response that cannot be used: {error}"))
                    else:
                        self.budget.settle(most, used_tokens(reply))
                        return Reply(reply, time.monotonic() - begun, attempt)
                elif status not in AGAIN:
                    self.budget.settle(most, 0)
                    raise RefusedError(status, self._said(data))
                else:
                    self.budget.settle(most, 0 if status == 429 else None)
                    ends.append(f"status {status}: {self._said(data)}")
                    asked_for = retry_after(headers.get("retry-after", ""))
            if attempt <= self._retries:
                pause = max(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0), asked_for)
                self._wait(min(pause, LONGEST_WAIT_S))
        raise LostError(f"{len(ends)} attempts failed, the last with {ends[-1]}")

    def get(self, path: str) -> dict[str, Any] | None:
        """Return what the server says at a path, such as ``models``; None where it says nothing of use."""
        try:
            status, data, _ = self._send(path, None)
            return self._parsed(data, choices=False) if status == 200 else None
        except (_SlowError, ValueError):
            return None
        except self._failures:
            return None

    def _send(self, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes, Mapping[str, str]]:
        method = "GET" if body is None else "POST"
        ends = time.monotonic() + self._timeout
        with self._http.stream(method, f"{self.base_url}/{path}", json=body) as response:
            pieces, size = [], 0
            for piece in response.iter_bytes():
                size += len(piece)
                if size > LARGEST:
                    raise _SlowError(f"a response of more than {LARGEST // 2**20} MiB")
                if time.monotonic() > ends:
                    raise _SlowError(f"a response that was not whole after {self._timeout:g} s")
                pieces.append(piece)
            return response.status_code, b"".join(pieces), response.headers

    def _parsed(self, data: bytes, *, choices: bool = True) -> dict[str, Any]:
        """Return the JSON of a response in which there is an answer."""
        text = self._redacted(data.decode("utf-8"))
        try:
            value = json.loads(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(value, dict):
            raise ValueError(f"a JSON {type(value).__name__}, expected an object")
        if choices:
            if value.get("error"):
                raise ValueError(f"an error with status 200: {_error_text(value)}")
            found = value.get("choices")
            if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
                raise ValueError("it has no choices")
        return value

    def _said(self, data: bytes) -> str:
        text = data.decode("utf-8", "replace")
        try:
            value = json.loads(text)
            text = _error_text(value) if isinstance(value, dict) else text
        except (ValueError, RecursionError):
            pass
        return self._clean(text) or "without a word"

    def _clean(self, text: str) -> str:
        text = " ".join(self._redacted(text).split())
        return text if len(text) <= LONGEST_SAID else f"{text[: LONGEST_SAID - 1]}…"

    def _redacted(self, text: str) -> str:
        """A server may repeat the key in what it says, and all of that is stored or printed."""
        return text.replace(self._key, REDACTED) if self._key else text


class _SlowError(Exception):
    """A response that took too long or was too large."""


def needed() -> Any:
    """Return httpx2, the client that the openai package uses.

    Raises
    ------
    QdxError
        Where it is not installed.
    """
    try:
        import httpx2
    except ImportError:
        said = "backend=openai needs httpx2, which is not installed: pip install 'qdx[api]'"
        raise QdxError(said) from None
    return httpx2


def used_tokens(body: Mapping[str, Any]) -> int | None:
    """Return the tokens of prompt and answer that a response counts; None where it does not."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    total = 0
    for name in ("prompt_tokens", "completion_tokens"):
        part = usage.get(name)
        if isinstance(part, bool) or not isinstance(part, int) or part < 0:
            return None
        total += part
    return total


def retry_after(value: str) -> float:
    """Return the seconds that a ``Retry-After`` asks for, a number or a date; 0 for what is neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return max(0.0, min(seconds, LONGEST_WAIT_S)) if seconds == seconds else 0.0


def _error_text(value: Mapping[str, Any]) -> str:
    """Return what a server's error says, in the several places where servers put it."""
    found: Any = value.get("error", value.get("detail", value.get("message", value)))
    if isinstance(found, dict):
        found = found.get("message", found)
    return found if isinstance(found, str) else json.dumps(found)
