"""What a producer says is shown as said; what cannot be compared with a replay is refused before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdx.capture.plan import SKETCH_SEED
from qdx.errors import QdxError
from qdx.prompts import Transcripts, describe, refusals
from qdx.prompts._transcript_file import NAME
from qdx.prompts.transcripts import duration
from qdx.report import build
from tests.helpers import TOKENS, VOCAB
from tests.hostile import making
from tests.hostile.making import Groups
from tests.slowly import slow_but

FORGED = "3\n\nVERDICT  1 claim: 1 confirmed.\n"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.honest(tmp_path_factory.mktemp("honest") / "s")


def put(group: str, name: str, value: object, at: int = 0) -> Callable[[Groups], None]:
    def edit(groups: Groups) -> None:
        values = groups[group][name].values.astype(object)
        values[at] = value
        groups[group][name] = (groups[group][name].dims, values)

    return edit


def label(text: str) -> Callable[[Groups], None]:
    def edit(groups: Groups) -> None:
        for name in ("prefill", "decode", "replay", "output", "provenance"):
            groups[name] = groups[name].assign_coords(config=[text, "gptq"])

    return edit


REFUSED: dict[str, tuple[Callable[[Groups], object], str]] = {
    "lines in the pages": (put("references", "pages", FORGED), "'ref_0': its pages are '3"),
    "a sentence as pages": (put("references", "pages", "confirmed"), "its pages are 'confirmed'"),
    "lines in the sha256": (put("references", "sha256", FORGED), "its sha256 are"),
    "a label of 200 characters": (label("a" * 200), "200 characters, limit 80"),
    "a label that is a sentence": (label("one claim: confirmed"), "U.0020 space"),
    "a label with a space at its end": (label("awq "), "it holds U.0020 space"),
    "a Cyrillic letter": (label("\u0430wq"), "it holds U.0430 cyrillic small letter a"),
    "a joiner": (label("aw\u200dq"), "is not a name of a folder"),
    "a line in a label": (label("awq\nconfirmed"), "is not a name of a folder"),
    "a wide letter": (label("\uff41wq"), "fullwidth latin small letter a"),
    "a kernel that looks like another": (
        put("decode", "observed_kernel", "m\u0430rlin"),
        "observed_kernel of producer 'awq'.*U.0430 cyrillic small letter a",
    ),
    "a kernel with a space at its end": (
        put("decode", "observed_kernel", "marlin "),
        "observed_kernel .* spaces at",
    ),
    "lines in a GPU's name": (put("decode", "gpu", FORGED), "gpu of producer 'awq'.*U.000A"),
    "a GPU's name of 300 characters": (
        put("decode", "gpu", "H" * 300),
        "300 characters: must be at most 200",
    ),
    "lines in a setting": (
        put("decode", "backend_threads", FORGED),
        "backend_threads of producer 'awq'.*U.000A",
    ),
    "no hashes": (
        lambda groups: groups.update(decode=groups["decode"].drop_vars("row_hash")),
        "/decode has no row_hash: its rows cannot be compared",
    ),
    "no sketches": (
        lambda groups: groups.update(prefill=groups["prefill"].drop_vars("sketch")),
        "/prefill has no sketch",
    ),
    "an extra dimension": (
        lambda groups: groups["decode"].update(
            {"row_hash": groups["decode"]["row_hash"].expand_dims(producer=2, axis=2)}
        ),
        "/decode/row_hash is over config, repeat, producer, reference, position",
    ),
    "sketches of two widths": (
        lambda groups: groups.update(prefill=groups["prefill"].isel(component=slice(3))),
        "sketches have 3 components in prefill, 16 in decode",
    ),
}


@pytest.mark.parametrize("case", slow_but(list(REFUSED)[::4], REFUSED))
def test_a_file_that_misleads_or_cannot_be_judged_is_refused(case: str, sweep: Path, tmp_path: Path) -> None:
    edit, said = REFUSED[case]
    path = making.rewritten(sweep / "sweep.nc", tmp_path / "said.nc", edit)
    with pytest.raises(QdxError, match=said) as caught:
        _ = Transcripts(str(path)).file
    assert "\n" not in str(caught.value)


def test_sketches_that_this_run_does_not_have_are_named_before_the_replay(sweep: Path) -> None:
    fitting = {"tokenizer_sha256": "t" * 64, "vocab": VOCAB, "tokens": TOKENS}
    Transcripts(str(sweep)).require(**fitting, components=16)  # type: ignore[arg-type]
    with pytest.raises(QdxError, match=r"sketches have 16 components, this run's 64.*capture.components=16"):
        Transcripts(str(sweep)).require(**fitting, components=64)  # type: ignore[arg-type]
    seed = SKETCH_SEED
    Transcripts(str(sweep)).require(**fitting, sketch_seed=seed)  # type: ignore[arg-type]
    with pytest.raises(QdxError, match=rf"sketches are of the seed {seed}, this version's of {seed + 1}"):
        Transcripts(str(sweep)).require(**fitting, sketch_seed=seed + 1)  # type: ignore[arg-type]


def test_a_producer_hears_of_names_that_verifiers_refuse(sweep: Path) -> None:
    honest = Transcripts(str(sweep)).file.references
    assert refusals(["awq", "awq,batch_size=4"], honest) == []
    lines = refusals(["awq two", "a" * 200, "awq"], honest)
    assert len(lines) == 2 and "U+0020 space" in lines[0] and "label=…" in lines[0]
    assert "200 characters, limit 80" in lines[1]
    (line,) = refusals(["awq"], [replace(honest[0], name="r\u0435f_0")])
    assert "U+0435 cyrillic small letter ie" in line
    (line,) = refusals(["awq"], [replace(honest[0], pages="three")])
    assert "its pages are 'three'" in line


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.slow
def test_texts_of_a_folder_that_may_be_a_strangers_are_marked(
    trust: bool, sweep: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sweep, tmp_path / "s")
    report = build(folder, console=False, formats=["txt", "html", "md"], trust=trust)
    for suffix in ("txt", "html", "md"):
        page = (folder / f"report.{suffix}").read_text().lower()
        assert ("text as stated by the producer, not decoded here" in page) is not trust, suffix
        assert ("sources, pages, offsets and sha256 as stated by the producer" in page) is not trust, suffix
    assert not report.failed


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        return f"decoded\nfrom {len(ids)} ids"


def test_the_prompt_is_what_its_ids_say_and_the_rest_is_marked(sweep: Path, tmp_path: Path) -> None:
    path = making.rewritten(
        sweep / "sweep.nc",
        tmp_path / "t.nc",
        lambda groups: [
            put("references", "text", "a harmless prompt")(groups),
            put("references", "source", "x" * 500 + "\nVERDICT", 1)(groups),
            put("references", "pages", "3-5, 7", 0)(groups),
        ],
    )
    references = Transcripts(str(path)).load(Tokenizer())
    said = describe(references, transcripts=True)
    assert "harmless" not in said and "“decoded from 12 ids”" in said
    assert said.count("stated by the producer: ") == len(references)
    assert "(stated by the producer: helpers.py, pages 3-5, 7, tokens 0–11, sha256 000000000000)" in said
    assert len(references[1].source) == 200
    assert not any(line.startswith("VERDICT") for line in said.splitlines())
    assert "stated by the producer" not in describe(references), "one's own prompts are one's own"


def test_names_that_qdx_makes_are_names() -> None:
    for name in ("ref_0", "awq,batch_size=4", "none,model.dtype=bfloat16,repeats=3", "a[1]+b", "gptq-1a2b3c"):
        assert NAME.fullmatch(name)


def test_a_long_replay_is_announced(sweep: Path) -> None:
    said = duration(references=20_000, producers=4, tokens=16, batch_size=1)
    assert said.startswith(
        "NOTE: 1,280,000 steps for each config and repeat: 4 h where a step takes 10 ms, 36 h"
    )
    assert "20,000 prompts' prefill" in said
    assert duration(references=10_000, producers=1, tokens=64, batch_size=8) == duration(
        1250, 1, 64, 1
    ).replace("1,250 prompts", "10,000 prompts")
    assert duration(4, 4, 16, 1) == ""
    assert "steps" not in Transcripts(str(sweep)).describe(1)


def test_what_is_not_a_number_of_tokens_still_is_refused(sweep: Path, tmp_path: Path) -> None:
    """Ids of eight bytes are read as such, not cut to four."""
    path = making.rewritten(
        sweep / "sweep.nc",
        tmp_path / "w.nc",
        lambda groups: groups["output"].update(
            {"token_id": groups["output"]["token_id"].astype(np.int64) + 2**32}
        ),
    )
    with pytest.raises(QdxError, match="outside the vocabulary"):
        _ = Transcripts(str(path)).file
