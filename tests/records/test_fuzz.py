"""Whatever stands in a field, a reader gives records or names what it cannot read; it never fails."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdx.prompts._record_collect import Request, collect, groups_of, labels, notes
from qdx.prompts._record_file import write
from qdx.prompts._record_ids import Ids
from qdx.prompts._transcript_file import read as read_transcripts
from qdx.records import Record, Unreadable, choose
from tests.records import FILES
from tests.slowly import slow_but

SEEDS = (
    "vllm_chat_greedy.jsonl",
    "vllm_chat_chunks.jsonl",
    "vllm_completions.jsonl",
    "k2_results.jsonl",
    "difr_readme.json",
    "difr_package_list.json",
    "inspect_log.json",
    "lm_eval_samples_chat.jsonl",
    "openrouter.jsonl",
    "vllm_batch_output.jsonl",
)
NUMBERS: list[Any] = [None, True, -1, 0, 2**70, 1e308, float("nan"), float("-inf")]
TEXTS: list[Any] = ["", "\ud800", "\x00\x1b[2J", "token_id:99999999", "attachment://x", "x" * 5000]
OTHERS: list[Any] = [[], {}, [[]], [None], {"a": None}, [{"type": "image"}], {"content": 3}, [1, "2"]]
JUNK = [*NUMBERS, *TEXTS, *OTHERS]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))


def changed(value: Any, generator: random.Random) -> Any:
    """A value of which one to three places hold junk, or nothing."""
    made = copy.deepcopy(value)
    for _ in range(generator.randint(1, 3)):
        path = generator.choice(list(places(made)))
        if not path:
            continue
        owner = made
        for key in path[:-1]:
            owner = owner[key]
        if generator.random() < 0.3:
            del owner[path[-1]]
        else:
            owner[path[-1]] = copy.deepcopy(generator.choice(JUNK))
    return made


@pytest.mark.parametrize("name", slow_but(["k2_results.jsonl"], SEEDS))
def test_a_reader_survives_whatever_stands_in_a_field(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ids = Ids(AutoTokenizer.from_pretrained(str(FILES / "tokenizer")), 1200, 2048)
    generator = random.Random(name)
    text = (FILES / name).read_text()
    values = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else [json.loads(text)]
    requests = str(FILES / "batch_input.jsonl") if "batch" in name else ""
    chosen, _ = choose(FILES / name)
    path = tmp_path / ("changed.jsonl" if name.endswith("l") else "changed.json")
    many = [changed(value, generator) for value in values for _ in range(25)]
    batches = [many] if name.endswith("l") else [[one] for one in many]
    read = 0
    for batch in batches:
        path.write_text("\n".join(json.dumps(one) for one in batch), encoding="utf-8")
        found = list(choose(path, chosen, requests)[1].read(path))
        assert all(isinstance(one, Record | Unreadable) for one in found)
        assert all(
            len(str(one)) < 2000 and str(one).isprintable() for one in found if isinstance(one, Unreadable)
        )
        if not any(isinstance(one, Record) for one in found):
            continue
        try:
            taken = collect(Request(path, chosen, requests), ids, {})
        except Exception as error:
            assert type(error).__name__ == "QdxError", error
            continue
        read += len(taken.transcripts)
        assert len(groups_of(taken.transcripts)) == len(taken.transcripts)
        assert labels(taken.transcripts) and notes(Request(path, chosen), taken, {})
        if name.endswith("l"):
            target = tmp_path / "made.nc"
            write(
                Request(path, chosen),
                taken,
                target,
                record_sha256="r" * 64,
                tokenizer_sha256="t" * 64,
                vocab=1200,
            )
            assert read_transcripts(target).replayed == sum(len(one.answer.ids) for one in taken.transcripts)
    assert read, "a change elsewhere leaves most of them readable"
