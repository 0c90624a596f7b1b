"""A challenge between two folders: the honest answer is confirmed, and what each lie is caught by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdx.report.__main__ import main as report_main
from qdx.verification.binding import BoundConfig, Commitment
from tests.protocol.world import DRAWN, REFERENCES, TOKENS, Forgery, Groups, World, judge, run, state

NOT_MET = "obligation not met"


def test_an_honest_exchange_is_confirmed_in_its_drawn_rows(world: World) -> None:
    summary = json.loads((world.folder / "verifier" / "summary.json").read_text())
    (claim,) = summary["verdicts"]["claims"]
    assert claim["verdict"] == "confirmed in s drawn rows"
    assert claim["drawn_rows"] == DRAWN
    # 1 − 0.05^(1/20) = 13.91 %, rounded up.
    assert f"{DRAWN} of {DRAWN} drawn rows bit-equal" in claim["because"]
    assert "share of false rows is under 14.0 % at 95 %" in claim["because"]
    assert f"bound by the root {world.bound.commitment.root[:16]}…" in claim["because"]
    assert claim["unmet"] == ""


def test_what_is_demanded_and_met_leaves_the_verdict_as_it_is(world: World, tmp_path: Path) -> None:
    found = judge(
        world,
        tmp_path / "judged",
        require={
            "references": REFERENCES, "units": REFERENCES, "tokens": TOKENS, "rows": DRAWN, "within": 10**9,
            "class": "here", "threads": [1, 2], "dtype": "float16", "batch_size": 1,
            "prompts": str(world.opened["provenance"]["references_sha256"].values[0]),
        },
        whole=True,
    )  # fmt: skip
    assert (found.verdict, found.unmet, found.status) == ("confirmed in s drawn rows", "", 0)


DEMANDS = {
    "too few references": ({"references": 10}, "references: got 4, wanted 10 or more"),
    "too short": ({"tokens": 64}, "tokens: got 5, wanted 64 or more"),
    "too few independent transcripts": ({"units": 5}, "units: got 4, wanted 5 or more"),
    "too few drawn rows": ({"rows": 59}, "rows: got 20, wanted 59 or more"),
    "other prompts": ({"prompts": "0" * 64}, "prompts: got "),
    "another GPU than stated": (
        {"gpu": "NVIDIA H100 80GB HBM3"},
        "gpu: got nothing (it is not stated), wanted",
    ),
    "another engine": ({"backend": "vllm"}, "backend: got transformers, wanted vllm"),
    "a thread count that is not allowed": ({"threads": [2, 4]}, "threads: got 1, wanted 2 or 4"),
    "nobody signed": ({"signed_by": "prover@example.org"}, "signed_by: got nothing"),
}


def test_what_is_demanded_and_not_met_is_named(world: World, tmp_path: Path) -> None:
    """All at once: a demand that is met less than wanted, each with what was got."""
    require = {name: value for demand, _ in DEMANDS.values() for name, value in demand.items()}
    found = judge(world, tmp_path / "judged", require=require)
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert found.because.startswith(found.unmet)
    lines = found.unmet.split("; ")
    assert len(lines) == len(DEMANDS)
    for name, (_, said) in DEMANDS.items():
        assert any(line.startswith(said) for line in lines), name


def test_another_machine_stated_from_the_beginning_does_not_meet_the_class(
    world: World, tmp_path: Path
) -> None:
    made = Forgery(world.honest, record=state(cpu="Another CPU", threads="64")).make(world)
    found = judge(world, tmp_path / "judged", made, require={"class": "here", "threads": 1})
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert "class: other CPU, threads" in found.unmet
    assert "threads: got 64, wanted 1" in found.unmet
    # Without a demand the escape is what it always was: equal rows confirm on whatever machine.
    assert judge(world, tmp_path / "free", made).verdict == "confirmed in s drawn rows"


def test_a_root_that_came_late_is_not_met(world: World, tmp_path: Path) -> None:
    late = replace(world.ledger, issued="2026-01-01T00:00:00Z", received="2026-01-01T02:00:00Z")
    found = judge(world, tmp_path / "judged", own=late, require={"within": 3600}, whole=True)
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert found.unmet == "within: the root came after 7200 s, wanted after 3600 s at most"


def shift(groups: Groups) -> None:
    groups["opened"]["row_logit"].values[3, 0] += 1


def bend(groups: Groups) -> None:
    groups["opened"]["path"].values[3, 0, 0] ^= 1


def swap_positions(groups: Groups) -> None:
    """Two rows of one reference and phase say that each stands where the other does."""
    opened = groups["opened"]
    keys = list(zip(opened["of_reference"].values, opened["of_phase"].values, strict=True))
    at = next((i, j) for i in range(len(keys)) for j in range(i) if keys[i] == keys[j])
    position = opened["of_position"].values
    position[list(at)] = position[list(at)[::-1]]


def twice(groups: Groups) -> None:
    """The first row stands in the place of the second as well."""
    for name in groups["opened"].data_vars:
        groups["opened"][name].values[1] = groups["opened"][name].values[0]


def repeat_last(groups: Groups) -> None:
    opened = groups["opened"]
    groups["opened"] = opened.isel(row=[*range(opened.sizes["row"]), 0])


def drop(groups: Groups) -> None:
    groups["opened"] = groups["opened"].isel(row=slice(1, None))


def reordered(leaves: list[bytes]) -> list[bytes]:
    return leaves[::-1]


def truncated(leaves: list[bytes]) -> list[bytes]:
    """The tree has half of the leaves; the commitment says that it has all."""
    return [*leaves[: len(leaves) // 2], *leaves[: len(leaves) - len(leaves) // 2]]


CHEATS: dict[str, tuple[Callable[[World], Forgery], str]] = {
    "an opened row that differs from the bound one": (
        lambda w: Forgery(w.honest, after=shift),
        "rows: 1 of 20 drawn ones do not fit the root",
    ),
    "rows copied from the verifier after garbage was bound": (
        lambda w: Forgery({row: np.zeros_like(v) for row, v in w.honest.items()}, shown=w.honest),
        "rows: 20 of 20 drawn ones do not fit the root",
    ),
    "another format's rows bound, the claim's rows opened": (
        lambda w: Forgery(w.other, shown=w.honest),
        "rows: 20 of 20 drawn ones do not fit the root",
    ),
    "a wrong path": (
        lambda w: Forgery(w.honest, after=bend),
        "rows: 1 of 20 drawn ones do not fit the root",
    ),
    "two rows that change places": (
        lambda w: Forgery(w.honest, after=swap_positions),
        "rows: 2 of 20 drawn ones do not fit the root",
    ),
    "a row opened twice in place of another": (
        lambda w: Forgery(w.honest, after=twice),
        "rows: 1 of 20 drawn ones were not opened",
    ),
    "a row that stands twice": (
        lambda w: Forgery(w.honest, after=repeat_last),
        "rows: 1 of 20 drawn ones stand twice",
    ),
    "a drawn row left out": (
        lambda w: Forgery(w.honest, after=drop),
        "rows: 1 of 20 drawn ones were not opened",
    ),
    "leaves in another order": (
        lambda w: Forgery(w.honest, order=reordered),
        "drawn ones do not fit the root",
    ),
    "half of the leaves stand for the others": (
        lambda w: Forgery(w.honest, order=truncated),
        "drawn ones do not fit the root",
    ),
    "bound under another nonce": (
        lambda w: Forgery(w.honest, nonce="0" * 32),
        "tokens: the root binds other ones",
    ),
    "other tokens bound than shown": (
        lambda w: Forgery(w.honest, tokens=w.opened["output"]["token_id"].values[0, 0] + 1),
        "tokens: the root binds other ones",
    ),
    "another machine stated after the rows were named": (
        lambda w: Forgery(w.honest, after=state(cpu="Another CPU")),
        "record: the root binds other facts than the file states",
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_what_does_not_fit_the_root_is_an_obligation_not_met(name: str, world: World, tmp_path: Path) -> None:
    make, said = CHEATS[name]
    found = judge(world, tmp_path / "judged", make(world).make(world))
    assert (found.verdict, found.status) == (NOT_MET, 4), found.because
    assert said in found.unmet
    assert found.drawn == DRAWN


def test_values_that_round_to_the_bound_row_are_that_row(world: World, tmp_path: Path) -> None:
    """What is bound are the values of the model's type: float32 digits beyond them say nothing."""
    shown = {row: np.nextafter(values, np.float32(np.inf)) for row, values in world.honest.items()}
    found = judge(world, tmp_path / "judged", Forgery(world.honest, shown=shown).make(world))
    assert (found.verdict, found.status) == ("confirmed in s drawn rows", 0)


def test_rows_of_another_format_that_were_bound_refute_the_claim(world: World, tmp_path: Path) -> None:
    """Prefill is another config's, in the class of here; decode and text are the claim's."""
    rows = {row: (world.other if row.phase == "prefill" else world.honest)[row] for row in world.rows}
    # The row that predicts the first token is left honest, so that no text misfits and rows alone decide.
    lengths = {one.name: len(one.token_ids) for one in world.asked.references}
    rows |= {row: world.honest[row] for row in world.rows if row.position == lengths[row.reference]}
    found = judge(world, tmp_path / "judged", Forgery(rows).make(world))
    assert (found.verdict, found.status) == ("refuted", 3), found.because
    # All four references differ, none of eight reruns did: 1/C(12, 4) = 1/495.
    assert found.p["prefill rows"] == pytest.approx(1 / 495)
    assert found.unmet == ""


def test_the_same_rows_with_another_machine_stated_refute_nothing(world: World, tmp_path: Path) -> None:
    rows = {row: (world.other if row.phase == "prefill" else world.honest)[row] for row in world.rows}
    lengths = {one.name: len(one.token_ids) for one in world.asked.references}
    rows |= {row: world.honest[row] for row in world.rows if row.position == lengths[row.reference]}
    made = Forgery(rows, record=state(cpu="Another CPU")).make(world)
    assert judge(world, tmp_path / "judged", made).verdict == "undecided"
    found = judge(world, tmp_path / "demanded", made, require={"class": "here"})
    assert (found.verdict, found.status) == (NOT_MET, 4)


def test_a_text_that_is_not_what_its_own_opened_rows_say_refutes(world: World, tmp_path: Path) -> None:
    """Rows of another machine would not be the verifier's: they still have to say the text beside them."""
    rows = {row: np.roll(v, 1) if row.phase == "decode" else v for row, v in world.honest.items()}
    made = Forgery(rows, record=state(cpu="Another CPU")).make(world)
    found = judge(world, tmp_path / "judged", made, whole=True)
    assert (found.verdict, found.status) == ("refuted", 3)
    assert "not among the greatest logits of the row that the producer bound and opened" in found.because


def test_an_older_answer_does_not_meet_a_new_challenge(world: World, tmp_path: Path) -> None:
    """The verifier asks anew; the prover sends what she has."""
    nonce = "f" * 32
    fields = json.loads(world.challenge.read_bytes()) | {"nonce": nonce}
    for one in fields["references"]:  # the nonce stands in the prompt: its tokens are others
        one["token_ids"][one["prefix_length"]] += 1
    new = json.dumps(fields).encode()
    own = replace(world.ledger, challenge_sha256=_sha256(new), root="", received="", drawn=0, commitment=None)
    found = judge(world, tmp_path / "judged", own=own, asked=new)
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert f"prompts: 0 of the challenge's {REFERENCES} with the nonce {nonce}" in found.unmet
    assert "no root was received before" in found.unmet


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("more", f"prompts: {REFERENCES} of the challenge's {REFERENCES + 1}"),
        ("order", "in another order"),
        ("longer", f"output tokens: {TOKENS}, the challenge asks for {TOKENS + 1}"),
    ],
)
def test_fewer_prompts_another_order_and_shorter_outputs_are_not_met(
    change: str, said: str, world: World, tmp_path: Path
) -> None:
    fields = json.loads(world.challenge.read_bytes())
    if change == "more":
        fields["references"].append(fields["references"][0] | {"name": "ref_9"})
    if change == "order":
        fields["references"].reverse()
    if change == "longer":
        fields["tokens"] += 1
        for one in fields["references"]:
            one["continuation"].append(5)
    new = json.dumps(fields).encode()
    own = replace(world.ledger, challenge_sha256=_sha256(new))
    found = judge(world, tmp_path / "judged", own=own, asked=new)
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert said in found.unmet


def test_a_file_that_opens_nothing_does_not_answer_a_root(world: World, tmp_path: Path) -> None:
    found = judge(world, tmp_path / "judged", file=world.prover / "sweep.nc")
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert "no row is opened" in found.unmet
    # Before any root was received the prompts alone are held against the challenge, and the verdict says so.
    before = replace(world.ledger, root="", received="", drawn=0, commitment=None)
    found = judge(world, tmp_path / "before", own=before, file=world.prover / "sweep.nc")
    assert (found.verdict, found.status) == ("confirmed", 0)
    assert "no root was received, so nothing shows that its rows were fixed before" in found.because


def test_a_config_that_was_bound_and_is_not_shown_is_missed(world: World, tmp_path: Path) -> None:
    """A prover binds two configs and shows the one that came out well."""
    honest = world.bound.commitment
    both = {**honest.configs, "gptq": BoundConfig(len(world.rows), "1" * 64, "2" * 64, "3" * 64)}
    made = Commitment(honest.challenge_sha256, honest.nonce, both), world.copy()
    found = judge(world, tmp_path / "judged", made)
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert "configs: the root binds awq, gptq, the file has awq" in found.unmet


def test_another_root_than_the_received_one_is_not_met(world: World, tmp_path: Path) -> None:
    commitment, groups = Forgery(world.other, shown=world.other).make(world)
    own = replace(world.ledger)  # the honest root was received
    found = judge(world, tmp_path / "judged", (commitment, groups), own=own)
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert f"root: the file states {commitment.root[:16]}…" in found.unmet


def test_opened_rows_without_their_challenge_are_not_judged(world: World, tmp_path: Path) -> None:
    target = tmp_path / "judged"
    judge(world, target)
    (target / "verify_challenge.json").unlink()
    said = " ".join(run(report_main, target, status=1).split())
    assert "opened rows are judged with the challenge that they answer" in said


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
