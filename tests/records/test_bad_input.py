"""A record that is wrong is named by file, line and field, and the others go on; nothing is executed."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdx.dataset.guarding import allow
from qdx.errors import QdxError
from qdx.prompts._record_collect import Collected, Request, collect, groups_of
from qdx.prompts._record_ids import Ids
from qdx.records import Record, Unreadable, choose
from tests.records import FILES

VOCAB = 1200
GOOD = (FILES / "vllm_chat_greedy.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def ids() -> Ids:
    from transformers import AutoTokenizer

    return Ids(AutoTokenizer.from_pretrained(str(FILES / "tokenizer")), VOCAB)


def changed(edit: Callable[[Any], object], line: int = 1) -> str:
    value = json.loads(GOOD[line])
    edit(value)
    return json.dumps(value)


def choice(value: Any) -> Any:
    return value["response"]["choices"][0]


def put(name: str, new: object) -> Callable[[Any], object]:
    return lambda value: choice(value).__setitem__(name, new)


def put_position(name: str, new: object) -> Callable[[Any], object]:
    return lambda value: choice(value)["logprobs"]["content"][3].__setitem__(name, new)


DEEP = "[" * 100_000 + "]" * 100_000
WRONG: dict[str, tuple[str, str]] = {
    "cut JSON": (GOOD[1][:400], "it is not JSON"),
    "no JSON": ("import os; os.system('touch owned')", "it is not JSON"),
    "a key twice": ('{"request": {}, "request": {}}', "the key 'request' stands twice"),
    "deep nesting": ('{"response": ' + DEEP + "}", "nested too deeply"),
    "not UTF-8": ("\udcff{}", "not"),
    "a list": ("[1, 2]", "an object"),
    "another format": ('{"doc_id": 1, "arguments": {}, "resps": []}', "this line is not an answer"),
    "an answer of the provider's that is an error": (
        '{"request": {}, "response": {"error": {"message": "overloaded"}}}',
        "response.error is 'overloaded'",
    ),
    "no choices": (changed(lambda v: v["response"].update(choices=[])), "response.choices is None"),
    "a log-probability above 0": (
        changed(put_position("logprob", 0.5)),
        r"response.choices\[0\].logprobs.content\[3\].logprob is 0.5: expected a log-probability, at most 0",
    ),
    "NaN": (
        changed(put_position("logprob", float("nan"))),
        r"logprobs.content\[3\].logprob is nan: expected a finite number",
    ),
    "an infinite one": (changed(put_position("logprob", float("-inf"))), r"content\[3\].logprob is -inf"),
    "a text for a number": (changed(put_position("logprob", "-1")), r"content\[3\].logprob is '-1'"),
    "bytes that are none": (changed(put_position("bytes", [300])), r"content\[3\].bytes is a list of 1"),
    "ids of another number": (changed(put("token_ids", [1, 2])), r"choices\[0\].token_ids is a list of 2"),
    "an id below 0": (changed(put("token_ids", [-4])), r"choices\[0\].token_ids\[0\] is -4"),
    "an id that is a text": (changed(put("token_ids", ["4"])), r"token_ids\[0\] is '4'"),
    "an id that is true": (changed(put("token_ids", [True])), r"token_ids\[0\] is True"),
    "a message that is none": (changed(put("message", "hi")), r"choices\[0\].message is 'hi'"),
    "no text": (changed(lambda v: choice(v)["message"].update(content=None)), "message.content is None"),
    "a temperature below 0": (
        changed(lambda v: v["request"].update(temperature=-1)),
        "request.temperature is -1: expected a finite number of at least 0",
    ),
    "a temperature that is a text": (
        changed(lambda v: v["request"].update(temperature="hot")),
        "request.temperature is 'hot'",
    ),
    "a top-p above 1": (changed(lambda v: v["request"].update(top_p=7)), "request.top_p is 7"),
    "a seed of half": (changed(lambda v: v["request"].update(seed=0.5)), "request.seed is 0.5"),
    "messages that are a text": (changed(lambda v: v["request"].update(messages="hi")), "request.messages"),
    "a number too long for a number": ('{"response": {"choices": ' + "9" * 5000 + "}}", "not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_named_by_line_and_field_and_the_others_go_on(case: str, tmp_path: Path) -> None:
    text, said = WRONG[case]
    path = tmp_path / "responses.jsonl"
    path.write_bytes("\n".join([GOOD[0], text, GOOD[2]]).encode("utf-8", "surrogateescape"))
    found = list(choose(path)[1].read(path))
    lost = [one for one in found if isinstance(one, Unreadable)]
    assert [one.where for one in lost] == ["responses.jsonl:2"]
    assert len(found) == 3, "the first and the third line are read"
    import re

    assert re.search(said, lost[0].what), lost[0].what
    assert len(lost[0].what) < 400
    assert not (tmp_path / "owned").exists()


def test_control_characters_act_on_no_terminal(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "responses.jsonl"
    bad = changed(lambda v: v["request"].update(temperature="\x1b[2J"))
    path.write_text(f"{GOOD[0]}\n{bad}\n")
    found = gathered(path, ids)
    from qdx.prompts._record_collect import notes

    assert "\x1b" not in "\n".join(notes(Request(path), found, {}))


def gathered(path: Path, ids: Ids, **options: Any) -> Collected:
    return collect(Request(path, **options), ids, {})


def test_ids_of_another_model_are_named_and_counted(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "responses.jsonl"
    other = changed(lambda v: v["response"]["prompt_token_ids"].__setitem__(2, 151_643))
    path.write_text(f"{GOOD[0]}\n{other}\n")
    found = gathered(path, ids)
    assert len(found.transcripts) == 1 and found.losses.count == 1
    assert "responses.jsonl:2: prompt_token_ids[2] is 151643" in found.losses.named[0]


def test_answers_without_prompts_are_left_out_and_counted(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "responses.jsonl"
    answer = json.loads(GOOD[1])["response"]
    answer["prompt_token_ids"] = None
    path.write_text(f"{GOOD[0]}\n{json.dumps(answer)}\n")
    found = gathered(path, ids)
    assert dict(found.left_out) == {"it has no prompt: neither ids nor messages nor a text": 1}


def test_an_answer_that_stands_twice_is_one_unit(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join([GOOD[0], GOOD[1], GOOD[0]]))
    found = gathered(path, ids)
    assert (len(found.transcripts), found.duplicates) == (3, 0), "nobody who asked gave them a name"
    assert groups_of(found.transcripts).tolist() == [0, 1, 0]


def test_a_file_of_which_nothing_can_be_used_says_why(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text(
        "\n".join(GOOD[1][:300] for _ in range(3)) + "\n" + GOOD[0].replace('"choices"', '"other"')
    )
    with pytest.raises(QdxError, match=r"responses.jsonl: no reader recognises it|no answer can be replayed"):
        gathered(path, ids)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it begins with no JSON object"),
        (b"hello", "it begins with no JSON object"),
        (b'{"some": 1, "keys": 2}', "its first object has the keys 'some', 'keys'"),
        (b"PK\x03\x04not a zip", "no whole zip archive"),
    ],
)
def test_a_file_that_no_reader_knows_is_refused_by_what_it_begins_with(
    content: bytes, said: str, tmp_path: Path, ids: Ids
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(QdxError, match=said):
        gathered(path, ids)


def test_a_line_of_ten_megabytes_is_read_and_one_beyond_the_limit_is_skipped_unread(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    long = changed(lambda v: v["response"].update(padding="x" * 10_000_000))
    path.write_text("\n".join([GOOD[0], long, GOOD[2]]))
    assert sum(isinstance(one, Record) for one in choose(path)[1].read(path)) == 3
    allow(max_length=1_000_000)
    found = list(choose(path)[1].read(path))
    (lost,) = [one for one in found if isinstance(one, Unreadable)]
    assert lost.where == "responses.jsonl:2" and "limit 1,000,000 (max_length)" in lost.what
    assert len(found) == 3


def eval_file(path: Path, samples: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    log = json.loads((FILES / "inspect_log.json").read_text())
    header = {name: value for name, value in log.items() if name != "samples"}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, content in samples.items():
            archive.writestr(f"samples/{name}.json", content)
    return path


def test_a_member_of_an_archive_that_unpacks_without_end_is_refused_by_its_name(tmp_path: Path) -> None:
    sample = json.dumps(json.loads((FILES / "inspect_log.json").read_text())["samples"][0]).encode()
    bomb = b'{"a": "' + b"0" * 60_000_000 + b'"}'
    path = eval_file(tmp_path / "log.eval", {"good": sample, "bomb": bomb})
    assert path.stat().st_size < 1_000_000
    found = list(choose(path)[1].read(path))
    assert sum(isinstance(one, Record) for one in found) == 1
    (lost,) = [one for one in found if isinstance(one, Unreadable)]
    assert "samples/bomb.json" in lost.where and "unpacked (max_length)" in lost.what


def test_an_archive_of_too_many_members_or_bytes_is_refused(tmp_path: Path) -> None:
    path = eval_file(tmp_path / "log.eval", {f"s{i}": b'{"a": "' + b"x" * 1000 + b'"}' for i in range(30)})
    allow(max_objects=20)
    with pytest.raises(QdxError, match=r"31 members, limit 20 \(max_objects\)"):
        list(choose(path)[1].read(path))
    allow(max_objects=20_000, max_bytes=20_000)
    with pytest.raises(QdxError, match=r"more than 20,000 bytes unpacked \(max_bytes\)"):
        list(choose(path)[1].read(path))


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    whole = (FILES / "inspect_log.eval").read_bytes()
    place = whole.index(b"samples/s0_epoch_1.json") + 200
    path = tmp_path / "log.eval"
    path.write_bytes(whole[:place] + b"\0" * 40 + whole[place + 40 :])
    found = list(choose(path)[1].read(path))
    lost = [one for one in found if isinstance(one, Unreadable)]
    assert len(found) == 3 and ["s0_epoch_1" in one.where for one in lost] == [True]


def test_more_answers_than_are_replayed_unasked_are_refused_with_the_way_out(
    tmp_path: Path, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdx.prompts._record_collect.MOST", 20)
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(changed(lambda v, i=i: v["response"].update(id=f"c{i}")) for i in range(30)))
    with pytest.raises(QdxError, match=r"more than 20 answers.*prompts.records=2 draws so many of them"):
        gathered(path, ids)
    five = gathered(path, ids, records=5)
    assert len(five.transcripts) == 5 and five.read == 30


def test_which_answers_are_taken_is_the_verifiers_seeds_matter_and_not_the_providers_ids(
    tmp_path: Path, ids: Ids
) -> None:
    path = tmp_path / "many.jsonl"
    taken: dict[tuple[str, int], list[str]] = {}
    for prefix in ("c", "chosen-by-the-provider-"):
        lines = [changed(lambda v, i=i, p=prefix: v["response"].update(id=f"{p}{i}")) for i in range(30)]
        path.write_text("\n".join(lines))
        for seed in range(20):
            found = gathered(path, ids, records=7, draw_seed=seed)
            taken[prefix, seed] = [str(one.stated["where"]) for one in found.transcripts]
    assert all(len(set(one)) == 7 for one in taken.values()) and found.read == 30
    for seed in range(20):
        assert taken["c", seed] == taken["chosen-by-the-provider-", seed], "ids and contents draw nothing"
    assert len({tuple(one) for one in taken.values()}) == 20, "another seed draws others"
    drawn = Counter(where for seed in range(20) for where in taken["c", seed])
    assert len(drawn) >= 28, "every line can be drawn: each is missed by 20 draws with probability 0.5 %"


def test_what_is_assumed_has_to_be_a_parameter_and_a_number() -> None:
    with pytest.raises(QdxError, match=r"prompts.assume.temprature: one of .*did you mean 'temperature'"):
        Request(Path("x"), assume={"temprature": 0})
    with pytest.raises(QdxError, match=r"prompts.assume.temperature=hot: must be a number"):
        Request(Path("x"), assume={"temperature": "hot"})
    with pytest.raises(QdxError, match=r"prompts.records=0: must be 1 or more"):
        Request(Path("x"), records=0)


def test_a_mode_of_log_probabilities_is_assumed_by_its_name_alone(tmp_path: Path, ids: Ids) -> None:
    with pytest.raises(
        QdxError, match=r"assume.logprobs_mode=cooked: one of raw_logprobs, processed_logprobs"
    ):
        Request(Path("f"), assume={"logprobs_mode": "cooked"})
    path = tmp_path / "responses.jsonl"
    stated = changed(lambda v: v["request"].update(logprobs_mode="raw_logprobs"))
    path.write_text(f"{GOOD[0]}\n{stated}\n")
    found = gathered(path, ids, assume={"logprobs_mode": "processed_logprobs"})
    modes = [one.stated["logprobs_mode"] for one in found.transcripts]
    assert modes == ["processed_logprobs", "raw_logprobs"], "what a record states is not replaced"


def test_two_requests_of_one_name_answer_nothing(tmp_path: Path) -> None:
    requests = tmp_path / "input.jsonl"
    lines = (FILES / "batch_input.jsonl").read_text().splitlines()
    requests.write_text("\n".join([*lines, lines[0]]))
    path = FILES / "vllm_batch_output.jsonl"
    found = list(choose(path, requests=str(requests))[1].read(path))
    assert "custom_id is 'request-0': expected one request of that name" in str(found[0])
    assert isinstance(found[1], Record) and found[1].messages


def test_a_template_that_a_request_brings_along_is_not_run(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "responses.jsonl"
    own = changed(lambda v: v["request"].update(chat_template="{{ 1 / 0 }}"))
    path.write_text(f"{GOOD[0]}\n{own}\n")
    found = gathered(path, ids)
    assert len(found.transcripts) == 1 and "request.chat_template is '{{ 1 / 0 }}'" in found.losses.named[0]


def test_what_the_model_has_no_positions_for_is_left_out_and_counted(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join(GOOD))
    short = Ids(ids._tokenizer, VOCAB, context=60)
    assert [len(one.prompt.ids) + len(one.answer.ids) for one in gathered(path, ids).transcripts] == [
        46,
        48,
        60,
        66,
    ]
    found = gathered(path, short)
    assert len(found.transcripts) == 3
    assert dict(found.left_out) == {"prompt and answer are longer than the model's 60 positions": 1}


def test_every_provider_has_a_name_that_can_be_typed_and_is_no_other_ones(tmp_path: Path, ids: Ids) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from qdx.prompts._record_collect import labels
    from qdx.prompts._transcript_file import check_name

    path = tmp_path / "responses.jsonl"
    lines = []
    for i, (provider, model) in enumerate(
        [
            ("Together", "qwen/qwen3-8b"),
            ("Together", "qwen_qwen3-8b"),
            ("", "/home/me/models/qwen"),
            ("a b\x1b", "é"),
        ]
    ):
        lines.append(
            changed(lambda v, p=provider, m=model, i=i: v["response"].update(provider=p, model=m, id=f"c{i}"))
        )
    path.write_text("\n".join(lines))
    names = list(labels(gathered(path, ids).transcripts).values())
    assert names[:2] == ["Together+qwen_qwen3-8b", "Together+qwen_qwen3-8b@2"]
    assert names[2] == "models_qwen" and len(set(names)) == 4
    for name in names:
        check_name(name, "a label")
        text = f"verify.claims={{{name}: none}}"
        assert OverridesParser.create().parse_override(text).value() == {name: "none"}


def test_log_probabilities_of_a_prompt_are_kept(tmp_path: Path, ids: Ids) -> None:
    found = gathered(FILES / "vllm_completions.jsonl", ids)
    for one in found.transcripts:
        assert one.prompt_id_PK.shape[0] == len(one.prompt.ids)
        assert one.prompt_id_PK[1:, 0].tolist() == list(one.prompt.ids[1:]), (
            "vLLM lists the token itself first"
        )
        assert (one.prompt_logprob_PK[1:, 0] < 0).all()


def test_given_ids_that_the_template_does_not_make_of_the_request_are_reported_first(
    tmp_path: Path, ids: Ids
) -> None:
    from qdx.prompts._record_collect import notes

    path = tmp_path / "responses.jsonl"
    same_length = changed(lambda v: v["response"]["prompt_token_ids"].__setitem__(3, 5), 0)
    path.write_text("\n".join([same_length, *GOOD[1:]]))
    found = gathered(path, ids)
    assert [one.prompt.differs for one in found.transcripts] == [True, False, False, False]
    first = notes(Request(path), found, {})[0]
    assert (
        first.startswith("PROMPT:")
        and "(1 of 4 answers, first responses.jsonl:1)" in first
        and "these are not judged" in first
    )
