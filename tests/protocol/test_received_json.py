"""JSON of strangers: what is hostile or does not fit is refused in a line, quickly, and without effect."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qdx.dataset import guarded_json
from qdx.errors import QdxError
from qdx.open_rows import read_drawn
from qdx.prompts import challenge
from qdx.prompts._reference import Reference
from qdx.prompts.challenge import ChallengeFile
from qdx.verification import binding
from qdx.verification.binding import BoundConfig, Commitment


def made() -> ChallengeFile:
    reference = Reference(
        "ref_0", np.arange(9, dtype=np.int32), 2, 5, 2, np.arange(3, dtype=np.int32), "", "a.pdf", "1", 0, ""
    )
    return ChallengeFile("a" * 32, "2026-11-28T01:15:00Z", "b" * 64, "c" * 64, 100, 3, 4, [reference])


def commitment() -> Commitment:
    return Commitment("d" * 64, "a" * 32, {"awq": BoundConfig(9, "1" * 64, "2" * 64, "3" * 64)})


def drawn() -> dict[str, object]:
    row = {"config": "awq", "reference": "ref_0", "phase": "decode", "position": 3}
    return {
        "kind": "drawn_rows",
        "schema_version": 1,
        "challenge_sha256": "d" * 64,
        "root": "e" * 64,
        "rows": [row],
    }


def write(path: Path, content: object) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    found, digest = challenge.read(write(tmp_path / "challenge.json", made().dump()))
    assert found.dump() == made().dump()
    assert len(digest) == 64
    got, root = binding.read(write(tmp_path / "commitment.json", commitment().dump()))
    assert (got, root) == (commitment(), commitment().root)
    assert read_drawn(write(tmp_path / "drawn.json", drawn())) == ("e" * 64, [("awq", "ref_0", "decode", 3)])


RAW: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is not read"),
    "no JSON": (b"{", "is not read"),
    "a list": (b"[]", "holds a list, expected an object"),
    "a number": (b"1", "holds a number"),
    "no UTF-8": (b'{"kind": "\xff"}', "byte 10 is not UTF-8"),
    "deep lists": (b"[" * 10**6 + b"]" * 10**6, "nested more than 8 deep"),
    "deep objects": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested more than 8 deep"),
    "quotes without end": (b'"' + b'\\"' * 10**6, "is not read"),
    "brackets in a text are not depth": (b'{"kind": "' + b"[" * 30 + b'"}', "its kind is|expected"),
    "not a number": (b'{"kind": NaN}', "NaN, which is not a number"),
    "infinity": (b'{"kind": -Infinity}', "-Infinity, which is not a number"),
    "a float beyond its range": (b'{"kind": 1e999}', "no field takes"),
    "an integer of a million digits": (b'{"kind": ' + b"9" * 10**6 + b"}", "1000000 digits, limit 18"),
    "a field twice": (b'{"kind": "challenge", "kind": "challenge"}', "a field twice"),
    "no kind": (b'{"a": 1}', "it has no kind"),
    "another kind": (b'{"kind": "drawn"}', "its kind is 'drawn', expected"),
    "another version": (
        b'{"kind": "challenge", "schema_version": 2}',
        "schema_version is 2, this qdx reads 1",
    ),
    "a version that is true": (b'{"kind": "challenge", "schema_version": true}', "schema_version is True"),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_challenge_are_refused_at_once(name: str, tmp_path: Path) -> None:
    data, said = RAW[name]
    start = time.monotonic()
    with pytest.raises(QdxError, match=said):
        challenge.read(write(tmp_path / "challenge.json", data))
    assert time.monotonic() - start < 5


FIELDS: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "a nonce that is short": (
        lambda f: f.update(nonce="a" * 31),
        "nonce is .*: must be 32 hexadecimal digits",
    ),
    "a nonce with letters that look alike": (lambda f: f.update(nonce="а" * 32), "must match"),
    "a nonce that is a list": (lambda f: f.update(nonce=["a"]), "nonce is a list: must be a text"),
    "a time with a line break": (lambda f: f.update(issued="2026-11-28T01:15:00\n"), "must be printable"),
    "no vocabulary": (lambda f: f.pop("vocab"), "it has no vocab"),
    "a vocabulary of nothing": (lambda f: f.update(vocab=0), "vocab is 0: must be a whole number from 1"),
    "a million million tokens": (lambda f: f.update(tokens=10**12), "tokens is 1000000000000: must be"),
    "no prompts": (lambda f: f.update(references=[]), "an empty list"),
    "a prompt that is a number": (
        lambda f: f.update(references=[1]),
        r"references\[0\] is 1: must be an object",
    ),
    "two prompts of one name": (lambda f: f.update(references=f["references"] * 2), "a name stands twice"),  # type: ignore[operator]
    "an unknown field": (lambda f: f.update(hydra="x"), "unknown field 'hydra'"),
    "a float for a number": (lambda f: f.update(vocab=1.5), "vocab is 1.5"),
}
OF_PROMPT: dict[str, tuple[dict[str, object], str]] = {
    "a token outside the vocabulary": ({"token_ids": [*range(8), 100]}, "token_ids is 100"),
    "a token below 0": ({"token_ids": [*range(8), -1]}, "token_ids is -1"),
    "a token that is true": ({"token_ids": [*range(8), True]}, "token_ids is True"),
    "parts that do not add up": ({"prefix_length": 3}, "do not add up to the 9 token_ids"),
    "no content": ({"content_length": 0, "prefix_length": 7}, "do not add up"),
    "a short continuation": ({"continuation": [1]}, "continuation has 1 tokens, expected 3"),
    "a name that is a sentence": ({"name": "1 claim: 1 confirmed"}, "is not a name"),
    "a name that turns the line round": ({"name": "ref_\u202e0"}, "must be printable"),
    "a source with a line break": ({"source": "a.pdf\n1 claim: 1 confirmed"}, "must be printable"),
    "a source of a thousand characters": ({"source": "a" * 1000}, "at most 200 characters"),
    "pages that are a sentence": ({"pages": "see below"}, "pages is 'see below': must match"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    change, said = FIELDS[name]
    fields = json.loads(made().dump())
    change(fields)
    with pytest.raises(QdxError, match=said):
        challenge.read(write(tmp_path / "challenge.json", fields))


@pytest.mark.parametrize("name", OF_PROMPT)
def test_prompts_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    change, said = OF_PROMPT[name]
    fields = json.loads(made().dump())
    fields["references"][0].update(change)
    with pytest.raises(QdxError, match=said):
        challenge.read(write(tmp_path / "challenge.json", fields))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"configs": []}, "it binds no config"),
        ({"configs": {}}, "configs is an object: must be a list"),
        ({"challenge_sha256": "D" * 64}, "must match"),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_a_commitment_that_does_not_fit_is_refused(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(QdxError, match=said):
        binding.read(write(tmp_path / "commitment.json", commitment().plain() | change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"rows_root": "1" * 63}, "must be 64 hexadecimal digits"),
        ({"config": "awq\u200b"}, "must be printable"),
        ({"config": "аwq"}, "is not a name"),
    ],
)
def test_a_bound_config_that_does_not_fit_is_refused(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    plain = commitment().plain()
    plain["configs"][0] |= change
    with pytest.raises(QdxError, match=said):
        binding.read(write(tmp_path / "commitment.json", plain))


def test_a_commitment_of_other_bytes_is_refused_for_its_root_would_be_another(tmp_path: Path) -> None:
    path = write(tmp_path / "commitment.json", json.dumps(commitment().plain()).encode())
    with pytest.raises(QdxError, match="written anew by another program"):
        binding.read(path)


def test_one_config_bound_twice_is_refused(tmp_path: Path) -> None:
    plain = commitment().plain()
    plain["configs"] *= 2
    with pytest.raises(QdxError, match="'awq' stands twice"):
        binding.read(write(tmp_path / "commitment.json", plain))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": []}, "names 0 rows"),
        ({"rows": "all"}, "rows is 'all': must be a list"),
        ({"root": "e" * 65}, "at most 64 characters"),
        ({"phase": "replay"}, "a phase is 'replay'"),
        ({"position": -1}, "position is -1"),
        ({"reference": "../../etc/passwd"}, "is not a name"),
        ({"path": "/etc/passwd"}, "unknown field 'path'"),
    ],
)
def test_a_list_of_rows_that_does_not_fit_is_refused(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    fields = drawn()
    (fields if set(change) & {"rows", "root"} else fields["rows"][0]).update(change)  # type: ignore[attr-defined,index]
    with pytest.raises(QdxError, match=said):
        read_drawn(write(tmp_path / "drawn.json", fields))


def test_a_row_asked_for_twice_is_refused(tmp_path: Path) -> None:
    fields = drawn()
    fields["rows"] = [*fields["rows"], *fields["rows"]]  # type: ignore[misc]
    with pytest.raises(QdxError, match="each must stand once"):
        read_drawn(write(tmp_path / "drawn.json", fields))


def test_what_is_not_a_file_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QdxError, match="not a regular file"):
        challenge.read(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(QdxError, match="not a regular file"):
        challenge.read(tmp_path / "fifo")
    with pytest.raises(QdxError, match="cannot be read"):
        challenge.read(tmp_path / "absent.json")
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(guarded_json.LARGEST + 1)
    with pytest.raises(QdxError, match="limit 67,108,864"):
        challenge.read(tmp_path / "large.json")
    with (tmp_path / "commitment.json").open("wb") as stream:
        stream.truncate(binding.LARGEST + 1)
    with pytest.raises(QdxError, match="limit 4,194,304"):
        binding.read(tmp_path / "commitment.json")


def test_nothing_of_a_file_reaches_the_terminal_as_it_is(tmp_path: Path) -> None:
    fields = json.loads(made().dump())
    fields["references"][0]["source"] = "\x1b[2J\u202e1 claim: 1 confirmed"
    with pytest.raises(QdxError) as caught:
        challenge.read(write(tmp_path / "challenge.json", fields))
    assert str(caught.value).isprintable()
    assert "\u202e" not in str(caught.value)
