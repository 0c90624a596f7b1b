"""A challenge between two folders: the honest answer is confirmed, and what each lie is caught by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from qdx.commit import write_groups
from qdx.report.__main__ import main as report_main
from qdx.verification.binding import BoundConfig, Commitment, Row
from tests.protocol.world import (
    DECODE,
    DRAWN,
    PREFILL,
    REFERENCES,
    ROWS,
    TOKENS,
    Forgery,
    Groups,
    Judged,
    World,
    judge,
    run,
    state,
)
from tests.sweeping import qdx
from tests.verification.world import FEW

pytestmark = pytest.mark.slow

NOT_MET, CONFIRMED = "obligation not met", "confirmed in s drawn rows"
PAGE = Path(__file__).parents[2] / "docs" / "verification.md"


def test_an_honest_exchange_is_confirmed_in_its_drawn_rows(world: World) -> None:
    summary = json.loads((world.folder / "verifier" / "summary.json").read_text())
    (claim,) = summary["verdicts"]["claims"]
    assert claim["verdict"] == "confirmed in s drawn rows"
    assert claim["drawn_rows"] == DRAWN
    assert claim["concerns"] == "drawn rows of prefill and decode, and text"
    # Fewer decode rows than were asked for: all of them. 1 − 0.05^(1/20) = 13.91 %, rounded up.
    rows = f"prefill {ROWS} of {ROWS} (of {PREFILL} rows), decode {DECODE} of {DECODE} (of {DECODE} rows)"
    assert f"drawn rows bit-equal: {rows}" in claim["because"].lower()
    share = "under 14.0 % in prefill and 0 (all rows were drawn) in decode, at 95 %"
    assert f"the share of false rows is {share}" in claim["because"]
    assert (claim["drawn_prefill"], claim["drawn_decode"]) == (ROWS, DECODE)
    assert claim["false_share_prefill"] == pytest.approx(1 - 0.05 ** (1 / ROWS))
    assert claim["false_share_decode"] == 0
    assert f"bound by the root {world.bound.commitment.root[:16]}…" in claim["because"]
    assert claim["unmet"] == ""


def test_what_is_demanded_and_met_leaves_the_verdict_as_it_is(world: World, tmp_path: Path) -> None:
    found = judge(
        world,
        tmp_path / "judged",
        require={
            "references": REFERENCES, "units": REFERENCES, "tokens": TOKENS, "rows": ROWS, "within": 10**9,
            "class": "here", "threads": [1, 2], "dtype": "float16", "batch_size": 1,
            "prompts": str(world.opened["provenance"]["references_sha256"].values[0]),
        },
        whole=True,
    )  # fmt: skip
    assert (found.verdict, found.unmet, found.status) == (CONFIRMED, "", 0)


DEMANDS = {
    "too few references": ({"references": 10}, "references: got 4, wanted 10 or more"),
    "too short": ({"tokens": 64}, "tokens: got 5, wanted 64 or more"),
    "too few independent transcripts": ({"units": 5}, "units: got 4, wanted 5 or more"),
    "too few drawn rows": ({"rows": 59}, "rows: got 20 of 36 of prefill, 16 of 16 of decode, wanted 59"),
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


def drop_prefill(groups: Groups) -> None:
    opened = groups["opened"]
    groups["opened"] = opened.isel(row=np.flatnonzero(opened["of_phase"].values == "decode"))


def reordered(leaves: list[bytes]) -> list[bytes]:
    return leaves[::-1]


def truncated(leaves: list[bytes]) -> list[bytes]:
    """The tree has half of the leaves; the commitment says that it has all."""
    return [*leaves[: len(leaves) // 2], *leaves[: len(leaves) - len(leaves) // 2]]


def another_layer(groups: Groups) -> None:
    """A fact of no config: the names that its kernels belong to."""
    groups["provenance"]["note"] = ((), "a fact that was not bound")


def of_prefill(world: World) -> dict[Row, np.ndarray]:
    """Rows of another format in prefill, but not the one that predicts the first token: text alone fits."""
    lengths = {one.name: len(one.token_ids) for one in world.asked.references}
    false = [row for row in world.rows if row.phase == "prefill" and row.position != lengths[row.reference]]
    return {**world.honest, **{row: world.other[row] for row in false}}


def of_decode(world: World) -> dict[Row, np.ndarray]:
    """Decode rows whose least logit is another: they say the same text."""
    found = dict(world.honest)
    for row, row_V in world.honest.items():
        if row.phase == "decode":
            found[row] = row_V.copy()
            found[row][row_V.argmin()] -= 1
    return found


def without_numbers(world: World, count: int) -> dict[Row, np.ndarray]:
    """Some decode rows, all of which are drawn, hold NaN."""
    some = [row for row in world.rows if row.phase == "decode"][:count]
    return {**world.honest, **{row: np.full_like(world.honest[row], np.nan) for row in some}}


def asked_anew(world: World, target: Path) -> Judged:
    """The verifier asks anew; the prover sends what she has."""
    fields = json.loads(world.challenge.read_bytes()) | {"nonce": "f" * 32}
    for one in fields["references"]:  # the nonce stands in the prompt: its tokens are others
        one["token_ids"][one["prefix_length"]] += 1
    new = json.dumps(fields).encode()
    own = replace(world.ledger, challenge_sha256=_sha256(new), root="", received="", drawn=0, commitment=None)
    return judge(world, target, own=own, asked=new)


def asked_for(change: str) -> Callable[[World, Path], Judged]:
    """The challenge has other prompts or lengths than were run."""

    def done(world: World, target: Path) -> Judged:
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
        return judge(world, target, own=replace(world.ledger, challenge_sha256=_sha256(new)), asked=new)

    return done


def shown_one_of_two(world: World, target: Path) -> Judged:
    honest = world.bound.commitment
    both = {**honest.configs, "gptq": BoundConfig(len(world.rows), "1" * 64, "2" * 64, "3" * 64)}
    return judge(world, target, (Commitment(honest.challenge_sha256, honest.nonce, both), world.copy()))


def bound_again(world: World, target: Path) -> Judged:
    """The honest root was received, and the file answers another."""
    return judge(world, target, Forgery(world.other).make(world), own=world.ledger)


def late(world: World, target: Path) -> Judged:
    own = replace(world.ledger, issued="2026-01-01T00:00:00Z", received="2026-01-01T02:00:00Z")
    return judge(world, target, own=own, require={"within": 3600})


@dataclass(frozen=True)
class Cheat:
    """What somebody does, how it ends, and what the reason says that caught it."""

    judge: Callable[[World, Path], Judged]
    verdict: str
    said: str


def forged(
    make: Callable[[World], Forgery], verdict: str, said: str, require: dict[str, object] | None = None
) -> Cheat:
    return Cheat(lambda w, t: judge(w, t, make(w).make(w), require=require), verdict, said)


ELSEWHERE = state(cpu="Another CPU", threads="64")
UNFIT, TOKENS_UNFIT = f"of {DRAWN} drawn ones do not fit the root", "tokens: the root binds other ones"
RECORD_UNFIT = "record: the root binds other facts than the file states"
# By the name that docs/verification.md has of each.
CHEATS: dict[str, Cheat] = {
    "an opened row that differs from the bound one": forged(
        lambda w: Forgery(w.honest, after=shift), NOT_MET, f"rows: 1 {UNFIT}"
    ),
    "rows copied from the verifier after garbage was bound": forged(
        lambda w: Forgery({row: np.zeros_like(v) for row, v in w.honest.items()}, shown=w.honest),
        NOT_MET,
        f"rows: {DRAWN} {UNFIT}",
    ),
    "another format's rows bound, the claim's rows opened": forged(
        lambda w: Forgery(w.other, shown=w.honest), NOT_MET, f"rows: {DRAWN} {UNFIT}"
    ),
    "a wrong path": forged(lambda w: Forgery(w.honest, after=bend), NOT_MET, f"rows: 1 {UNFIT}"),
    "two rows that change places": forged(
        lambda w: Forgery(w.honest, after=swap_positions), NOT_MET, f"rows: 2 {UNFIT}"
    ),
    "a row opened twice in place of another": forged(
        lambda w: Forgery(w.honest, after=twice), NOT_MET, f"rows: 1 of {DRAWN} drawn ones were not opened"
    ),
    "a row that stands twice": forged(
        lambda w: Forgery(w.honest, after=repeat_last), NOT_MET, f"rows: 1 of {DRAWN} drawn ones stand twice"
    ),
    "a drawn row left out": forged(
        lambda w: Forgery(w.honest, after=drop), NOT_MET, f"rows: 1 of {DRAWN} drawn ones were not opened"
    ),
    "the rows left out that would refute": forged(
        lambda w: Forgery(of_prefill(w), after=drop_prefill),
        NOT_MET,
        f"rows: {ROWS} of {DRAWN} drawn ones were not opened",
    ),
    "leaves in another order": forged(lambda w: Forgery(w.honest, order=reordered), NOT_MET, UNFIT),
    "half of the leaves stand for the others": forged(
        lambda w: Forgery(w.honest, order=truncated), NOT_MET, UNFIT
    ),
    "bound under another nonce": forged(lambda w: Forgery(w.honest, nonce="0" * 32), NOT_MET, TOKENS_UNFIT),
    "other tokens bound than shown": forged(
        lambda w: Forgery(w.honest, tokens=w.opened["output"]["token_id"].values[0, 0] + 1),
        NOT_MET,
        TOKENS_UNFIT,
    ),
    "another machine stated after the rows were named": forged(
        lambda w: Forgery(w.honest, after=state(cpu="Another CPU")), NOT_MET, RECORD_UNFIT
    ),
    "other weights written into an honest file": forged(
        lambda w: Forgery(w.honest, after=state(weights_sha256='{"model.safetensors": "00"}')),
        NOT_MET,
        RECORD_UNFIT,
    ),
    "a fact added to an honest file": forged(
        lambda w: Forgery(w.honest, after=another_layer), NOT_MET, RECORD_UNFIT
    ),
    "another machine stated from the beginning, where the class is demanded": forged(
        lambda w: Forgery(w.honest, record=ELSEWHERE), NOT_MET, "class: other CPU, threads", {"class": "here"}
    ),
    "another format's rows in prefill": forged(
        lambda w: Forgery(of_prefill(w)), "refuted", "prefill rows: p = 0.002"
    ),
    "false decode rows beside honest prefill rows": forged(
        lambda w: Forgery(of_decode(w)), "refuted", "decode rows: p = 0.002"
    ),
    "another format's rows, another machine stated": forged(
        lambda w: Forgery(of_prefill(w), record=ELSEWHERE), "undecided", "other CPU, threads"
    ),
    "another format's rows, another machine stated, where the class is demanded": forged(
        lambda w: Forgery(of_prefill(w), record=ELSEWHERE), NOT_MET, "class: other CPU", {"class": "here"}
    ),
    "a text that is not what its own opened rows say": forged(
        lambda w: Forgery(
            {row: np.roll(v, 1) if row.phase == "decode" else v for row, v in w.honest.items()},
            record=ELSEWHERE,
        ),
        "refuted",
        "not among the greatest logits of the row that the producer bound and opened",
    ),
    "a drawn row of NaN": forged(
        lambda w: Forgery(without_numbers(w, 1)), "undecided", "1 drawn row with NaN, which no token is read"
    ),
    "every decode row of NaN": forged(
        lambda w: Forgery(without_numbers(w, DECODE)), "undecided", f"{DECODE} drawn rows with NaN"
    ),
    "a row of NaN beside another format's rows": forged(
        lambda w: Forgery({**of_prefill(w), **_only_nan(without_numbers(w, 1))}),
        "refuted",
        "prefill rows: p = 0.002",
    ),
    "an older answer to a new challenge": Cheat(
        asked_anew, NOT_MET, f"prompts: 0 of the challenge's {REFERENCES} with the nonce {'f' * 32}"
    ),
    "fewer prompts": Cheat(
        asked_for("more"), NOT_MET, f"prompts: {REFERENCES} of the challenge's {REFERENCES + 1}"
    ),
    "prompts in another order": Cheat(asked_for("order"), NOT_MET, "in another order"),
    "shorter outputs": Cheat(
        asked_for("longer"), NOT_MET, f"output tokens: {TOKENS}, the challenge asks for {TOKENS + 1}"
    ),
    "a file that opens nothing": Cheat(
        lambda w, t: judge(w, t, file=w.prover / "sweep.nc"), NOT_MET, "no row is opened"
    ),
    "a config that was bound and is not shown": Cheat(
        shown_one_of_two, NOT_MET, "configs: the root binds awq, gptq, the file has awq"
    ),
    "another root than the received one": Cheat(bound_again, NOT_MET, "root: the file states "),
    "a root that came late": Cheat(late, NOT_MET, "within: the root came after 7200 s"),
}


def _only_nan(rows: dict[Row, np.ndarray]) -> dict[Row, np.ndarray]:
    return {row: values for row, values in rows.items() if np.isnan(values).any()}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_ends_as_the_page_says(name: str, world: World, tmp_path: Path) -> None:
    cheat = CHEATS[name]
    found = cheat.judge(world, tmp_path / "judged")
    assert found.verdict == cheat.verdict, found.because
    assert found.status == (3 if cheat.verdict == "refuted" else 4)
    assert cheat.said in found.because
    assert bool(found.unmet) == (cheat.verdict == NOT_MET)


def test_the_page_has_every_cheat_and_how_it_ends() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("| cheat | verdict | caught by |\n|---|---|---|\n")[2]
    rows = [line.split(" | ") for line in text.partition("\n\n")[0].splitlines()]
    assert {row[0].removeprefix("| "): row[1] for row in rows} == {n: c.verdict for n, c in CHEATS.items()}


def test_a_row_of_nan_is_named(world: World, tmp_path: Path) -> None:
    """It has no greatest logit, so it is not a text that misfits: that would refute an honest overflow."""
    row = next(row for row in world.rows if row.phase == "decode")
    found = CHEATS["a drawn row of NaN"].judge(world, tmp_path / "judged")
    assert f"({row})" in found.because
    assert "does not fit the rows" not in found.because


@pytest.mark.parametrize("name", ["weights", "kernel", "tokens"])
def test_an_edit_of_a_file_whose_rows_would_refute_decides_nothing(
    name: str, world: World, tmp_path: Path
) -> None:
    """Neither way: whoever edits it can clear a liar as little as have an honest prover refuted."""
    edits = {
        "weights": {"after": state(weights_sha256='{"model.safetensors": "00"}')},
        "kernel": {"after": state(observed_kernel="gptq_marlin")},
        "tokens": {"tokens": world.opened["output"]["token_id"].values[0, 0] + 1},
    }
    for rows in (world.honest, of_prefill(world), of_decode(world)):
        found = judge(world, tmp_path / str(id(rows)), Forgery(rows, **edits[name]).make(world))  # type: ignore[arg-type]
        assert (found.verdict, found.status) == (NOT_MET, 4)
        assert found.because == found.unmet
        assert set(found.p.values()) == {None}


def another_document(groups: Groups) -> None:
    """All prompts are said to overlap."""
    groups["references"]["sha256"].values[:] = "a" * 64
    groups["references"]["token_offset"].values[:] = 0
    groups["references"]["source"].values[:] = "other.pdf"


def other_reruns(groups: Groups) -> None:
    for phase in ("prefill", "decode"):
        groups[phase]["reruns"].values[:] = 9
        groups[phase]["reruns_equal"].values[:] = 0


def facts_of_prefill(groups: Groups) -> None:
    groups["prefill"] = groups["prefill"].assign_coords(
        batch_size=("config", [64]), observed_kernel=("config", ["marlin"])
    )


def another_repeat(groups: Groups) -> None:
    output = groups["output"]
    groups["output"] = xr.concat([output, (output * 0 + 5).assign_coords(repeat=[1])], "repeat")


def another_group(groups: Groups) -> None:
    groups["metrics"] = xr.Dataset({"l2": ("config", [9.0])})


def a_row_that_was_not_drawn(groups: Groups) -> None:
    opened = groups["opened"]
    more = opened.isel(row=[0]).copy(deep=True)
    more["of_position"].values[:] = 2
    more["row_logit"].values[:] = 0
    groups["opened"] = xr.concat([opened, more], "row")


FREE = {
    "documents of the prompts": another_document,
    "how the prover's runs repeat": other_reruns,
    "coordinates of prefill": facts_of_prefill,
    "a further repeat of the output": another_repeat,
    "a group that nobody reads": another_group,
    "a row that was not drawn": a_row_that_was_not_drawn,
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_not_bound_moves_no_verdict(name: str, world: World, tmp_path: Path) -> None:
    """Everything that stands in the file beside what the root binds, of an honest prover and of a liar."""
    for who, rows, verdict in (("honest", world.honest, CONFIRMED), ("liar", of_prefill(world), "refuted")):
        plain = judge(world, tmp_path / f"{who}_plain", Forgery(rows).make(world))
        edited = judge(world, tmp_path / f"{who}_edited", Forgery(rows, after=FREE[name]).make(world))
        assert plain.verdict == verdict
        assert edited == plain


def test_tokens_that_were_changed_on_the_way_refute_nobody(world: World) -> None:
    """The replay of the changed tokens is asked for by hand: their text fits no row, and is not judged."""
    groups = world.copy()
    groups["output"]["token_id"].values[..., -1] = (groups["output"]["token_id"].values[..., -1] + 1) % 1200
    folder = world.folder / "changed"
    folder.mkdir()
    stated = {"root": world.bound.commitment.root, "challenge_sha256": world.ledger.challenge_sha256}
    write_groups(folder / "opened.nc", "opened", groups, **stated)
    arguments = [
        *("-m", "prompts=transcripts", "prompts.path=changed/opened.nc", "quant=awq", "repeats=3"),
        *("verify.challenge=challenge.json", "hydra.sweep.dir=changed/verifier", *FEW, *world.models),
    ]
    done = qdx(*arguments, cwd=world.folder)
    assert (done.returncode, (folder / "verifier").exists()) == (4, False), done.stdout + done.stderr
    assert f"obligation not met: awq: {TOKENS_UNFIT}" in done.stdout
    done = qdx(*arguments, "verify.go_on=true", cwd=world.folder)
    assert done.returncode == 4, done.stdout + done.stderr
    (claim,) = json.loads((folder / "verifier" / "summary.json").read_text())["verdicts"]["claims"]
    assert (claim["verdict"], claim["answer"]) == (NOT_MET, "not judged")
    assert claim["because"] == claim["unmet"] == TOKENS_UNFIT
    assert claim["tests"] and all(test["p"] is None for test in claim["tests"].values())


def test_values_that_round_to_the_bound_row_are_that_row(world: World, tmp_path: Path) -> None:
    """What is bound are the values of the model's type: float32 digits beyond them say nothing."""
    shown = {row: np.nextafter(values, np.float32(np.inf)) for row, values in world.honest.items()}
    found = judge(world, tmp_path / "judged", Forgery(world.honest, shown=shown).make(world))
    assert (found.verdict, found.status) == (CONFIRMED, 0)


def test_rows_of_another_format_that_were_bound_refute_the_claim(world: World, tmp_path: Path) -> None:
    """Prefill is another config's, in the class of here; decode and text are the claim's."""
    found = judge(world, tmp_path / "judged", Forgery(of_prefill(world)).make(world))
    assert (found.verdict, found.status) == ("refuted", 3), found.because
    # All four references differ, none of eight reruns did: 1/C(12, 4) = 1/495.
    assert found.p["prefill rows"] == pytest.approx(1 / 495)
    assert found.unmet == ""


def test_a_text_that_is_not_what_its_own_opened_rows_say_refutes(world: World, tmp_path: Path) -> None:
    """Rows of another machine would not be the verifier's: they still have to say the text beside them."""
    rows = {row: np.roll(v, 1) if row.phase == "decode" else v for row, v in world.honest.items()}
    made = Forgery(rows, record=state(cpu="Another CPU")).make(world)
    found = judge(world, tmp_path / "judged", made, whole=True)
    assert (found.verdict, found.status) == ("refuted", 3)
    assert "not among the greatest logits of the row that the producer bound and opened" in found.because


def test_a_file_that_opens_nothing_does_not_answer_a_root(world: World, tmp_path: Path) -> None:
    found = judge(world, tmp_path / "judged", file=world.prover / "sweep.nc")
    assert (found.verdict, found.status) == (NOT_MET, 4)
    assert "no row is opened" in found.unmet
    # Before any root was received the prompts alone are held against the challenge, and the verdict says so.
    before = replace(world.ledger, root="", received="", drawn=0, commitment=None)
    found = judge(world, tmp_path / "before", own=before, file=world.prover / "sweep.nc")
    assert (found.verdict, found.status) == ("confirmed", 0)
    assert "no root was received, so nothing shows that its rows were fixed before" in found.because


def test_opened_rows_without_their_challenge_are_not_judged(world: World, tmp_path: Path) -> None:
    target = tmp_path / "judged"
    judge(world, target)
    (target / "verify_challenge.json").unlink()
    said = " ".join(run(report_main, target, status=1).split())
    assert "opened rows are judged with the challenge that they answer" in said


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
