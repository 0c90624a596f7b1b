"""Asking a server: what is sent, what is kept, what a budget stops, and what each fault of a server costs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx2")

from qdx.endpoints import ANSWERS, FACTS, Job, ask, asked_of
from qdx.endpoints import client as client_module
from qdx.errors import QdxError
from qdx.progress import Progress
from qdx.prompts import Reference
from qdx.records import choose
from qdx.schema_endpoint import OpenaiBackend
from tests.endpoints.server import RECORDED, recorded, send, serving

PROMPTS = [one["request"]["prompt"] for one in RECORDED if one["request"] and "prompt" in one["request"]][:2]
KEY = "sk-a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once, and no key is in the environment."""
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def reference(number: int, ids: list[int]) -> Reference:
    array = np.array(ids, np.int32)
    return Reference(
        f"ref_{number}", array, 0, len(ids), 0, array[:0], "a matrix product", "doc", "", 0, "0" * 64
    )


def asking(address: str, folder: Path, *, count: int = 4, config_hash: str = "one", **options: Any) -> str:
    """Ask as a job of a sweep does."""
    folder.mkdir(exist_ok=True)
    backend = OpenaiBackend("qdx.endpoints.Endpoint", "openai", address, "demo", **options)
    references = [reference(i, PROMPTS[i % 2]) for i in range(count)]
    job = Job("none", backend, references, 12, {"config_hash": config_hash, "label": "none"})
    return ask(job, folder, Progress("none", shown=False))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]


def test_answers_are_kept_as_they_came_and_read_as_records(tmp_path: Path) -> None:
    with serving() as (address, asked):
        said = asking(address, tmp_path / "none", seed=7, answers=2, top_p=0.9, temperature=0.8)
    assert said == "8 of 8 answers"
    found = lines(tmp_path / "none")
    assert {line["custom_id"] for line in found} == {f"ref_{r}/{n}" for r in range(4) for n in range(2)}
    for line in found:
        number = int(line["custom_id"][-1]) * 4 + int(line["custom_id"][4])
        sent = line["request"]
        assert sent in asked.bodies
        assert (sent["seed"], sent["temperature"], sent["top_p"]) == (7 + number, 0.8, 0.9)
        original = [
            one for one in RECORDED if one["request"] and one["request"].get("prompt") == sent["prompt"]
        ]
        assert line["response"] == original[0]["response"]
    name, reader = choose(tmp_path / "none" / ANSWERS, "", "")
    records = list(reader.read(tmp_path / "none" / ANSWERS))
    assert name == "vllm" and len(records) == 8
    assert {record.provider for record in records} == {"none"}
    assert all(len(record.output_ids) == 12 and record.sampling.temperature == 0.8 for record in records)


def test_a_conversation_is_sent_to_chat(tmp_path: Path) -> None:
    with serving() as (address, asked):
        asking(address, tmp_path / "none", count=1, route="chat", logprobs=3)
    assert asked.bodies[0]["messages"] == [{"role": "user", "content": "a matrix product"}]
    assert (asked.bodies[0]["logprobs"], asked.bodies[0]["top_logprobs"]) == (True, 3)
    _, reader = choose(tmp_path / "none" / ANSWERS, "", "")
    (record,) = reader.read(tmp_path / "none" / ANSWERS)
    assert len(record.tokens) == 6 and len(record.tokens[0].top) == 3


def test_no_more_requests_are_open_than_asked_for(tmp_path: Path) -> None:
    with serving(seconds=0.1) as (address, asked):
        asking(address, tmp_path / "none", count=9, concurrency=3)
    assert asked.at_once == 3 and len(asked.bodies) == 9


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(tmp_path: Path, status: int) -> None:
    def busy(handler: Any, number: int, body: Any) -> bool:
        if number % 3 == 2:
            return False
        send(handler, status, {"error": {"message": "busy"}}, Retry_After="0")
        return True

    with serving(busy) as (address, asked):
        assert asking(address, tmp_path / "none", count=3, concurrency=1) == "3 of 3 answers"
    assert len(asked.bodies) == 9
    assert [line["qdx"]["attempts"] for line in lines(tmp_path / "none")] == [3, 3, 3]


def test_a_server_says_how_long_to_wait(tmp_path: Path) -> None:
    def busy(handler: Any, number: int, body: Any) -> bool:
        if number:
            return False
        send(handler, 429, {"error": "slow down"}, Retry_After="1")
        return True

    with serving(busy) as (address, _):
        begun = time.monotonic()
        asking(address, tmp_path / "none", count=1)
    assert time.monotonic() - begun >= 1


def drip(handler: Any, number: int, body: Any) -> bool:
    """Send a byte now and then: no read of the client's waits long."""
    if number:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass
    handler.close_connection = True
    return True


def cut(handler: Any, number: int, body: Any) -> bool:
    """Send half an answer and hang up."""
    if number:
        return False
    data = json.dumps(recorded("completions")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True
    return True


def wrong(what: bytes) -> Any:
    def fault(handler: Any, number: int, body: Any) -> bool:
        if number:
            return False
        send(handler, 200, what)
        return True

    return fault


FAULTS = {
    "slow bytes": (drip, "was not whole after 0.5 s"),
    "cut": (cut, "RemoteProtocolError"),
    "no JSON": (wrong(b"<html>busy</html>"), "cannot be used"),
    "half a JSON": (wrong(b'{"choices": [{"text": "a"'), "cannot be used"),
    "a list": (wrong(b"[1, 2]"), "a JSON list, expected an object"),
    "no choices": (wrong(b'{"id": "x"}'), "it has no choices"),
    "an error with status 200": (wrong(b'{"error": {"message": "overloaded"}}'), "overloaded"),
    "not UTF-8": (wrong(b'{"choices": [{"text": "\xff"}]}'), "cannot be used"),
    "nested": (wrong(b"[" * 100_000), "nested too deeply"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_answer_is_asked_for_again_and_never_kept(tmp_path: Path, name: str) -> None:
    fault, said = FAULTS[name]
    with serving(fault) as (address, asked):
        assert asking(address, tmp_path / "none", count=1, timeout=0.5) == "1 of 1 answers"
    assert len(asked.bodies) == 2
    assert lines(tmp_path / "none")[0]["response"] == recorded("completions")
    with serving(fault) as (address, _), pytest.raises(QdxError, match="attempts failed") as error:
        asking(address, tmp_path / "other", count=1, timeout=0.5, retries=0)
    assert said in str(error.value)


def test_a_response_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LARGEST", 10_000)
    big = wrong(b" " * 100_000)
    with serving(big) as (address, _), pytest.raises(QdxError, match="more than"):
        asking(address, tmp_path / "none", count=1, retries=0)


@pytest.mark.parametrize(("field", "status"), [("model", 404), ("max_tokens", 400)])
def test_a_request_that_is_wrong_is_not_sent_again(tmp_path: Path, field: str, status: int) -> None:
    body = recorded("completions", status, field)

    def refuse(handler: Any, number: int, _: Any) -> bool:
        send(handler, status, body)
        return True

    with serving(refuse) as (address, asked), pytest.raises(QdxError) as error:
        asking(address, tmp_path / "none")
    assert str(status) in str(error.value) and body["error"]["message"][:40] in str(error.value)
    assert len(asked.bodies) <= 3  # as it is, and twice with fewer wishes
    assert "0 of 4 answers" in str(error.value)


def test_a_server_that_knows_fewer_fields_is_asked_for_less(tmp_path: Path) -> None:
    def strict(handler: Any, number: int, body: Any) -> bool:
        unknown = [name for name in ("return_token_ids", "logprobs") if name in body]
        if unknown:
            send(handler, 422, {"detail": f"unknown field {unknown[0]}"})
        return bool(unknown)

    with serving(strict) as (address, asked):
        asking(address, tmp_path / "none")
    assert all("return_token_ids" not in body and "logprobs" not in body for body in asked.bodies[2:])
    assert (
        json.loads((tmp_path / "none" / FACTS).read_text())["asked_for"]
        == "no token ids, no log-probabilities"
    )
    # What is written as the request is what was sent.
    assert all("logprobs" not in line["request"] for line in lines(tmp_path / "none"))


def test_a_server_that_dies_keeps_what_it_gave_and_is_resumed(tmp_path: Path) -> None:
    def dies(handler: Any, number: int, body: Any) -> bool:
        if number < 5:
            return False
        handler.close_connection = True
        return True

    with serving(dies) as (address, _), pytest.raises(QdxError, match="5 of 12 answers") as error:
        asking(address, tmp_path / "none", count=12, concurrency=1, retries=1)
    assert "3 requests in a row brought no answer" in str(error.value)
    assert json.loads((tmp_path / "none" / FACTS).read_text())["end"] == "failed"
    first = [line for line in lines(tmp_path / "none") if "response" in line]
    with serving() as (address, asked):
        said = asking(address, tmp_path / "none", count=12, concurrency=1)
    assert said == "12 of 12 answers" and len(asked.bodies) == 7
    assert lines(tmp_path / "none")[:5] == first


def test_a_line_that_a_crash_cut_is_asked_for_again(tmp_path: Path) -> None:
    with serving() as (address, _):
        asking(address, tmp_path / "none")
        path = tmp_path / "none" / ANSWERS
        path.write_bytes(path.read_bytes()[:-200])
        assert asked_of(tmp_path / "none").answered == 3
        assert asking(address, tmp_path / "none") == "4 of 4 answers"
    assert len({line["custom_id"] for line in lines(tmp_path / "none")}) == 4


def test_other_questions_begin_anew(tmp_path: Path) -> None:
    with serving() as (address, asked):
        asking(address, tmp_path / "none")
        asking(address, tmp_path / "none", config_hash="two", temperature=1.0)
    assert len(asked.bodies) == 8 and all(line["request"]["temperature"] for line in lines(tmp_path / "none"))


def test_a_budget_of_requests_counts_every_attempt(tmp_path: Path) -> None:
    def every_second(handler: Any, number: int, body: Any) -> bool:
        if number % 2:
            return False
        send(handler, 500, b"")
        return True

    with serving(every_second) as (address, asked), pytest.raises(QdxError, match="max_requests=6") as error:
        asking(address, tmp_path / "none", count=9, concurrency=1, max_requests=6)
    assert len(asked.bodies) == 6 and "3 of 9 answers" in str(error.value)
    with serving() as (address, asked), pytest.raises(QdxError, match="max_requests=6"):
        asking(address, tmp_path / "none", count=9, concurrency=1, max_requests=6)
    assert not asked.bodies  # also after a new start
    with serving() as (address, asked):
        assert asking(address, tmp_path / "none", count=9, max_requests=20) == "9 of 9 answers"
    assert len(asked.bodies) == 6


@pytest.mark.parametrize("concurrency", [1, 5])
def test_a_budget_of_tokens_is_never_passed(tmp_path: Path, concurrency: int) -> None:
    length = [len(prompt) for prompt in PROMPTS]
    cost = [n + 12 for n in length]
    budget = sum(cost) + 40  # two answers, and not a third
    with serving() as (address, asked), pytest.raises(QdxError, match="max_tokens") as error:
        asking(address, tmp_path / "none", count=6, concurrency=concurrency, max_tokens=budget)
    assert len(asked.bodies) == 2 and "2 of 6 answers" in str(error.value)
    assert json.loads((tmp_path / "none" / FACTS).read_text())["tokens"] == sum(cost) <= budget


def test_the_key_is_sent_and_is_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)

    def echo(handler: Any, number: int, body: Any) -> bool:
        """A server that repeats the key in its errors and its answers."""
        said = handler.headers["Authorization"]
        if number == 0:
            send(handler, 500, {"error": {"message": f"bad {said}"}})
            return True
        answer = dict(recorded("completions"), system_fingerprint=said)
        send(handler, 200, answer) if number < 3 else send(handler, 401, {"error": said})
        return True

    with serving(echo) as (address, asked), pytest.raises(QdxError, match="401") as error:
        asking(address, tmp_path / "none", key="SOME_KEY", concurrency=1)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in asked.headers)
    assert KEY not in str(error.value) and KEY not in "".join(capfd.readouterr())
    for path in (tmp_path / "none").iterdir():
        assert KEY not in path.read_text(), path
    assert lines(tmp_path / "none")[0]["response"]["system_fingerprint"] == "Bearer [key]"


def test_a_key_goes_to_no_other_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as (other, seen):

        def elsewhere(handler: Any, number: int, body: Any) -> bool:
            send(handler, 307, b"", Location=f"{other}/completions")
            return True

        with serving(elsewhere) as (address, _), pytest.raises(QdxError, match="307"):
            asking(address, tmp_path / "none", count=1)
    assert not seen.bodies
    with pytest.raises(QdxError, match="readable on its way"):
        asking("http://192.0.2.1/v1", tmp_path / "none", count=1)


def test_the_environment_has_no_say_in_where_a_request_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as (proxy, seen), serving() as (address, asked):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.removesuffix("/v1"))
        asking(address, tmp_path / "none", count=1)
    assert not seen.bodies and len(asked.bodies) == 1


def test_a_model_that_changes_its_name_is_seen(tmp_path: Path) -> None:
    def renamed(handler: Any, number: int, body: Any) -> bool:
        send(handler, 200, dict(recorded("completions"), model="demo" if number < 2 else "other"))
        return True

    with serving(renamed) as (address, _):
        asking(address, tmp_path / "none", concurrency=1)
    assert dict(asked_of(tmp_path / "none").models) == {"demo": 2, "other": 2}


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        ("https://user:hunter2@host/v1", "holds a user"),
        ("https://host/v1?key=hunter2", "holds a user, a query"),
        ("ftp://host", "must be an address"),
        ("host/v1", "must be an address"),
        ("http://", "must be an address"),
        ("http://host:port/v1", "backend.base_url"),
        ("http://ho st/v1", "no spaces"),
    ],
)
def test_an_address_is_checked_and_its_secret_not_repeated(base_url: str, said: str) -> None:
    with pytest.raises(QdxError, match=said) as error:
        OpenaiBackend("qdx.endpoints.Endpoint", "openai", base_url, "demo")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"route": "chats"}, "did you mean 'chat'"),
        ({"model": " "}, "backend.model is empty"),
        ({"logprobs": 21}, "at most 20"),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"temperature": -1.0}, "at least 0"),
        ({"timeout": 0.0}, "above 0"),
        ({"concurrency": 0}, "at least 1"),
        ({"extra": {"n": 4}}, "qdx writes this field itself"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(QdxError, match=said):
        OpenaiBackend("qdx.endpoints.Endpoint", "openai", "https://host/v1", **{"model": "demo", **options})
