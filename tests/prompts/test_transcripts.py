"""A producers' file as prompts: it gives back what was generated, and a file that does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from omegaconf import OmegaConf

import qdx
from qdx.commit import commit
from qdx.dataset import merge
from qdx.errors import QdxError
from qdx.prompts import Transcripts, references_sha256
from qdx.prompts.transcripts import COPY, repeats_needed, settle
from tests.helpers import TOKENS, VOCAB, coords, small_references, write_run, write_sweep
from tests.hostile.making import Groups, rewritten
from tests.slowly import slow_but

LABELS = ["awq", "gptq"]
FITTING = {"tokenizer_sha256": "t" * 64, "vocab": VOCAB, "tokens": TOKENS}


def attrs() -> dict[str, object]:
    stated = references_sha256(small_references())  # type: ignore[arg-type]
    return {"tokenizer_sha256": "t" * 64, "references_sha256": stated, "config": "", "seed": 0}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"kv_cache_dtype": "auto", "threads": "1"}
    folder = write_sweep(
        tmp_path_factory.mktemp("made") / "s", LABELS, repeats=2, attrs=attrs(), settings=settings
    )
    merge(folder, folder / "sweep.nc")
    return folder


class Tokenizer:
    """Decodes ids as their numbers."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_references_and_first_transcripts_come_back_as_they_are(sweep: Path) -> None:
    source = Transcripts(str(sweep))
    loaded = source.load(Tokenizer())
    for mine, theirs in zip(small_references(), loaded, strict=True):
        for name in ("token_ids", "continuation"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        for name in ("name", "prefix_length", "content_length", "suffix_length", "source", "sha256"):
            assert getattr(mine, name) == getattr(theirs, name)
        content = mine.token_ids[mine.prefix_length : mine.prefix_length + mine.content_length]
        assert theirs.text == Tokenizer().decode(content.tolist()), "not what the file says"
    with qdx.open(sweep / "sweep.nc") as tree:
        tokens = tree["output/token_id"].isel(repeat=0)
        for producer in source.producers:
            np.testing.assert_array_equal(producer.token_ids, tokens.sel(config=producer.name))
            assert producer.coords == coords(producer.name)
    source.require(**FITTING)


def test_a_sweep_folder_its_file_and_its_commitments_say_the_same(sweep: Path, tmp_path: Path) -> None:
    small = commit(sweep, tmp_path / "small.nc")
    hashes = {Transcripts(str(path)).file.sha256 for path in (sweep, sweep / "sweep.nc", small)}
    assert len(hashes) == 1
    with qdx.open(sweep / "sweep.nc") as whole, qdx.open(small) as committed:
        for name in ("observed_kernel", "backend_kv_cache_dtype", "backend_threads"):
            assert committed["decode"][name].values.tolist() == whole["decode"][name].values.tolist(), name


def test_the_hash_of_transcripts_changes_with_one_token(sweep: Path, tmp_path: Path) -> None:
    def edit(groups: Groups) -> None:
        last = {"config": 0, "repeat": 0, "reference": 0}
        for group in ("output", "decode"):
            ids = groups[group]["token_id"]
            own = np.flatnonzero(groups[group]["captured"][0, 0, 0]) if group == "decode" else [TOKENS - 1]
            ids[{**last, ids.dims[-1]: own[-1]}] += 1

    other = rewritten(sweep / "sweep.nc", tmp_path / "o.nc", edit)
    assert Transcripts(str(other)).file.sha256 != Transcripts(str(sweep)).file.sha256


def set_to(group: str, name: str, value: object, *at: int) -> Callable[[Groups], None]:
    def edit(groups: Groups) -> None:
        groups[group][name].values[at] = value

    return edit


def drop(group: str, name: str = "") -> Callable[[Groups], object]:
    def edit(groups: Groups) -> None:
        if name:
            groups[group] = groups[group].drop_vars(name)
        else:
            del groups[group]

    return edit


def state(name: str, value: str) -> Callable[[Groups], object]:
    return lambda groups: groups["/"].attrs.update({name: value})


def of_a_verifier(groups: Groups) -> None:
    groups["replay"] = groups["replay"].expand_dims(producer=["awq"])


def other_names(groups: Groups) -> None:
    groups["references"] = groups["references"].assign_coords(reference=["ref_0", "ref_1", "x"])


def escape_in_a_name(groups: Groups) -> None:
    groups["output"] = groups["output"].assign_coords(config=["awq", "\x1b[2Jgptq"])


def no_repeat(groups: Groups) -> None:
    groups["output"] = groups["output"].isel(repeat=slice(0))


def floats(groups: Groups) -> None:
    groups["output"]["token_id"] = groups["output"]["token_id"].astype(float)


TAMPERED = {
    "another schema version": (state("schema_version", "99"), "schema version 99, this qdx reads 1 and 2"),
    "a schema version that is not a number": (state("schema_version", "x"), "has schema version x"),
    "another kind": (state("kind", "summary"), "kind is 'summary', neither sweep nor commitments"),
    "one run": (state("kind", "run"), "is damaged: its attribute vocab"),
    "a verifier's": (of_a_verifier, "verifier's sweep.*give the producers' file"),
    "no decode": (drop("decode"), "no group /decode"),
    "no output": (drop("output"), "no group /output"),
    "no provenance": (drop("provenance"), "no group /provenance"),
    "no token ids": (drop("output", "token_id"), "/output has no token_id"),
    "no transcripts": (no_repeat, "is damaged: /output/text"),
    "ids that are not integers": (floats, "holds float64, must be i4"),
    "a generated id over the vocabulary": (
        set_to("output", "token_id", VOCAB, 1, 0, 2, 3),
        f"token 3 of 'gptq', 'ref_2' is {VOCAB}, outside the vocabulary of {VOCAB} tokens",
    ),
    "a generated id below 0": (
        set_to("output", "token_id", -1, 0, 0, 0, 7),
        "token 7 of 'awq', 'ref_0' is -1",
    ),
    "a generated id that its rows do not have": (
        set_to("output", "token_id", 0, 0, 0, 1, 4),
        "/decode: the token ids of 'awq', 'ref_1' are not those",
    ),
    "a first id that prefill does not have": (
        lambda groups: [set_to("output", "token_id", 1, 0, 0, 1, 0)(groups)],
        "the token ids of 'awq', 'ref_1' are not those",
    ),
    "a prompt id": (set_to("references", "token_ids", 5, 0, 4), "references have the sha256.*were changed"),
    "a prompt id over the vocabulary": (
        set_to("references", "token_ids", VOCAB + 3, 1, 0),
        "reference 'ref_1' does not hold 17 ids of a vocabulary of 300",
    ),
    "a hole in a prompt": (set_to("references", "token_ids", -1, 0, 3), "'ref_0' does not hold 17 ids"),
    "a length": (set_to("references", "length", 16, 0), "do not add up to 16"),
    "a negative part": (set_to("references", "prefix_length", -3, 0), "parts of .-3, 12, 2. tokens"),
    "a continuation id": (set_to("references", "continuation", 1, 2, 2), "references have the sha256"),
    "a reference's name": (other_names, "references have the sha256"),
    "the stated sha": (
        set_to("provenance", "references_sha256", "0" * 64, 0),
        "expected one for all configs",
    ),
    "the stated vocabulary": (set_to("provenance", "vocab", "", 0), "/provenance/vocab"),
    "a name that acts on a terminal": (escape_in_a_name, "'�\\[2Jgptq' is not a name: it holds U.001B"),
    "a GPU that acts on a terminal": (
        set_to("decode", "gpu", "\x1b[31mH100", 0),
        "gpu of producer 'awq' is '�\\[31mH100': it holds U.001B control character",
    ),
    "a batch of nothing": (set_to("decode", "batch_size", 0, 0), "states batch_size 0"),
}


@pytest.mark.parametrize("case", slow_but(list(TAMPERED)[::4], TAMPERED))
def test_a_changed_file_is_refused_by_what_was_changed(case: str, sweep: Path, tmp_path: Path) -> None:
    edit, said = TAMPERED[case]
    path = rewritten(sweep / "sweep.nc", tmp_path / "tampered.nc", edit)
    with pytest.raises(QdxError, match=said) as caught:
        _ = Transcripts(str(path)).file
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_an_untouched_copy_is_taken(sweep: Path, tmp_path: Path) -> None:
    same = rewritten(sweep / "sweep.nc", tmp_path / "same.nc", lambda groups: None)
    assert Transcripts(str(same)).file.sha256 == Transcripts(str(sweep)).file.sha256


def test_a_truncated_file_and_one_of_something_else_are_refused(sweep: Path, tmp_path: Path) -> None:
    whole = (sweep / "sweep.nc").read_bytes()
    cut, text, empty = (tmp_path / name for name in ("cut.nc", "text.nc", "empty.nc"))
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("import os; os.system('echo owned')")
    with netCDF4.Dataset(empty, "w"):
        pass
    for path, said in (
        (cut, "is not read: it is not a whole NetCDF-4 file: .*truncated"),
        (text, "is not read: it is not a whole NetCDF-4 file: its first bytes are not HDF5's"),
        (empty, "qdx did not write"),
    ):
        with pytest.raises(QdxError, match=said):
            _ = Transcripts(str(path)).file


def test_a_file_that_is_damaged_in_the_middle_is_refused(sweep: Path, tmp_path: Path) -> None:
    damaged = bytearray((sweep / "sweep.nc").read_bytes())
    with netCDF4.Dataset(sweep / "sweep.nc") as file:
        ids = file["output"]["token_id"][:].tobytes()
    assert ids not in damaged, "compressed"
    damaged[len(damaged) // 3 : 2 * len(damaged) // 3] = bytes(len(damaged) // 3)
    (tmp_path / "d.nc").write_bytes(damaged)
    with pytest.raises(QdxError):
        _ = Transcripts(str(tmp_path / "d.nc")).file


@pytest.mark.parametrize(
    ("path", "said"),
    [("/no/such.nc", "no such file"), ("", "give the producers' sweep.nc"), (".", "holds no sweep.nc")],
)
def test_a_path_that_leads_nowhere_is_named(path: str, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QdxError, match=said):
        _ = Transcripts(path).file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_sha256": "u" * 64}, "tokenizer has the sha256 tttttttttttttttt…, this model's uuuu"),
        ({"vocab": 299}, "rows have 300 logits, this model's 299"),
        ({"tokens": 5}, "generate.tokens=5: the transcripts.* have 8 tokens"),
    ],
)
def test_another_model_is_refused(change: dict[str, object], said: str, sweep: Path) -> None:
    with pytest.raises(QdxError, match=said):
        Transcripts(str(sweep)).require(**{**FITTING, **change})  # type: ignore[arg-type]


def test_texts_that_act_on_a_terminal_are_shown_harmless(sweep: Path, tmp_path: Path) -> None:
    path = rewritten(
        sweep / "sweep.nc",
        tmp_path / "t.nc",
        lambda groups: [
            set_to("references", "text", "a\x1b]0;owned\x07b\nc", 0)(groups),
            set_to("references", "source", "\u202efdp.x\nVERDICT", 0)(groups),
        ],
    )
    source = Transcripts(str(path))
    first = source.load(Tokenizer())[0]
    assert "owned" not in first.text, "the token ids say what the prompt is"
    assert first.source == "\ufffdfdp.x\ufffdVERDICT"
    assert "\x1b" not in source.describe(1)


def config(path: Path, **more: object) -> OmegaConf:
    prompts = {
        "name": "transcripts",
        "_target_": "qdx.prompts.Transcripts",
        "path": str(path),
        "references": 4,
    }
    given = {"prompts": prompts, "generate": {"tokens": 16}, "batch_size": 1, "verify": {"alpha": 0.05}}
    return OmegaConf.create({**given, **more})


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Producers of batch sizes 3, 3 and 1."""
    folder = tmp_path_factory.mktemp("batched") / "s"
    for label, size in (("awq", 3), ("gptq", 3), ("gptq_marlin", 1)):
        path = folder / label / "run.nc"
        write_run(path, label, repeats=1, attrs=attrs(), coords={**coords(label), "batch_size": size})
    merge(folder, folder / "sweep.nc")
    return folder


def test_tokens_and_batching_come_from_the_file_unless_given(batched: Path) -> None:
    cfg = config(batched)
    settle(cfg, ["quant=awq"])
    assert (cfg.generate.tokens, cfg.batch_size) == (TOKENS, 3)
    assert "references" not in cfg.prompts, "of another source's options"
    cfg = config(batched, batch_size=4)
    settle(cfg, ["batch_size=4", "generate.tokens=16"])
    assert (cfg.generate.tokens, cfg.batch_size) == (16, 4)


def test_references_that_share_a_batch_count_once_for_the_repeats(batched: Path) -> None:
    references = len(Transcripts(str(batched)).file.references)
    repeats = {}
    for size in (1, references):
        cfg = config(batched, batch_size=size)
        settle(cfg, [f"batch_size={size}"])
        repeats[size] = cfg.repeats
    assert repeats == {size: repeats_needed(references // size, 3, 0.05) for size in (1, references)}
    assert repeats_needed(16, 5, 0.05) == 3 and repeats_needed(16 // 4, 5, 0.05) == 5


def test_producers_that_were_batched_otherwise_are_named(batched: Path) -> None:
    said = Transcripts(str(batched)).describe(3)
    assert "NOTE: batch_size=3, and gptq_marlin ran another" in said
    assert "batch_size=1,3 meets them all" in said
    assert "batch_size=1, and awq, gptq ran another" in Transcripts(str(batched)).describe(1)


def test_producers_that_were_batched_alike_need_no_note(sweep: Path) -> None:
    assert "NOTE: batch_size" not in Transcripts(str(sweep)).describe(1)


def test_the_copy_is_the_file_and_keeping_it_again_changes_nothing(sweep: Path, tmp_path: Path) -> None:
    Transcripts(str(sweep)).keep(tmp_path)
    assert (tmp_path / COPY).read_bytes() == (sweep / "sweep.nc").read_bytes()
    before = (tmp_path / COPY).stat().st_mtime_ns
    Transcripts(str(tmp_path / COPY)).keep(tmp_path)
    assert (tmp_path / COPY).stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [COPY]
