"""The dataclass of ``backend=openai``; `qdx.schema` has the others and the check."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qdx.errors import QdxError, nearest

ENDPOINT = "qdx.endpoints.Endpoint"  # the backend's target
ROUTES = ("completions", "chat")
MOST_LOGPROBS = 20
# What qdx puts into a request itself; `extra` may not say otherwise.
OWN = ("model", "prompt", "messages", "max_tokens", "n", "stream", "temperature", "top_p", "top_k", "min_p",
       "seed", "logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids")  # fmt: skip


@dataclass
class OpenaiBackend:
    """A server of the OpenAI interface that is asked for answers; what it runs cannot be observed.

    ``base_url`` is what comes before ``/completions``, mostly ending in ``/v1``; ``model`` is the name by
    which the server knows its model. ``key`` is the *name* of the environment variable that holds the key:
    the key itself is never stored. ``route`` says how a prompt is sent: as token ids to ``/completions``, or
    as a conversation to ``/chat/completions``. ``max_requests`` and ``max_tokens`` (prompts and answers
    together) bound what one config may cost. ``extra`` holds further fields of every request.
    """

    _target_: str
    name: str
    base_url: str
    model: str
    route: str = "completions"
    key: str = "OPENAI_API_KEY"
    insecure: bool = False
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    answers: int = 1
    logprobs: int | None = 5
    concurrency: int = 4
    timeout: float = 120.0
    retries: int = 6
    max_requests: int | None = None
    max_tokens: int | None = None
    price_in: float | None = None
    price_out: float | None = None
    extra: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_address(self.base_url)
        if self.route not in ROUTES:
            raise QdxError(
                f"backend.route={self.route}: one of {', '.join(ROUTES)}{nearest(self.route, ROUTES)}"
            )
        if not self.model.strip() or not self.model.isprintable():
            raise QdxError("backend.model is empty: give the name by which the server knows its model")
        for name, least in (("answers", 1), ("concurrency", 1), ("retries", 0), ("max_requests", 1),
                            ("max_tokens", 1), ("logprobs", 0), ("top_k", -1), ("temperature", 0),
                            ("price_in", 0), ("price_out", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise QdxError(f"backend.{name}={value}: must be at least {least}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise QdxError(f"backend.{name}={value}: must be from 0 to 1")
        if self.logprobs is not None and self.logprobs > MOST_LOGPROBS:
            raise QdxError(f"backend.logprobs={self.logprobs}: at most {MOST_LOGPROBS}, as servers give them")
        if not 0 < self.timeout < float("inf"):
            raise QdxError(f"backend.timeout={self.timeout}: must be a number of seconds above 0")
        for name in self.extra or {}:
            if name in OWN:
                raise QdxError(
                    f"backend.extra.{name}: qdx writes this field itself: set backend.{name}, or remove it"
                )

    @property
    def prices(self) -> tuple[float, float] | None:
        """Price of a million prompt tokens and of a million answered ones; None where one is not given."""
        if self.price_in is None or self.price_out is None:
            return None
        return self.price_in, self.price_out


def check_address(base_url: str) -> None:
    """Refuse what is not an address, or holds a secret that would be stored with the results.

    Raises
    ------
    QdxError
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise QdxError(f"backend.base_url={base_url}: {error}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise QdxError(
            "backend.base_url holds a user, a query or a fragment: it is stored with the results, so no "
            "secret may be in it: put the key into the environment variable that backend.key names"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise QdxError(f"backend.base_url={base_url}: must be an address such as https://api.example.org/v1")
    if not base_url.isprintable() or " " in base_url:
        raise QdxError(f"backend.base_url={base_url!r}: an address has no spaces or control characters")


def is_loopback(base_url: str) -> bool:
    """Return whether an address is this machine's own, so that nobody reads what is sent there."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
