"""The commands of an exchange: what each refuses, and what it says before anybody waits for it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdx import compose
from qdx.challenge import main as challenge_main
from qdx.commit import main as commit_main
from qdx.errors import QdxError
from qdx.open_rows import main as open_main
from qdx.prompts import Challenge, Transcripts
from qdx.prompts import challenge as challenges
from qdx.prompts._reference import Reference
from qdx.report.__main__ import main as report_main
from qdx.report.state import Facts, next_command
from qdx.schema import validate
from qdx.schema_verify import Verify
from qdx.sweep.prepare import NotMetError, keep_for_the_report, look_at_obligations, unmet
from qdx.verification import ledger, obligations
from qdx.verification.binding import NAME, BoundConfig, Commitment, rows_of
from tests.prompts.conftest import build_tokenizer
from tests.protocol.world import DECODE, LENGTHS, PREFILL, REFERENCES, ROWS, TOKENS, World, run
from tests.sweeping import qdx
from tests.verification.world import FEW

needs_openssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
NAMESPACE = "qdx-commitment"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture
def fresh(exchange: World, tmp_path: Path) -> Path:
    """The challenge with a ledger that has received nothing, and the prover's small files."""
    shutil.copy(exchange.challenge, tmp_path)
    own = replace(exchange.ledger, root="", received="", drawn=0, commitment=None)
    ledger.write(tmp_path / "challenge.verifier.json", own)
    shutil.copy(exchange.prover / NAME, tmp_path)
    return tmp_path


def root_of(folder: Path) -> str:
    return hashlib.sha256((folder / NAME).read_bytes()).hexdigest()


def test_every_prompt_begins_with_the_nonce_and_every_challenge_has_another(
    exchange: World, tmp_path: Path, tokenizer: Any
) -> None:
    run(challenge_main, tmp_path / "challenge.json", *LENGTHS, *exchange.models)
    new, old = challenges.read(tmp_path / "challenge.json")[0], exchange.asked
    assert new.nonce != old.nonce
    assert new.seed_sha256 != old.seed_sha256
    assert len(new.references) == REFERENCES
    for one, two in zip(new.references, old.references, strict=True):
        ids = [tuple(r.token_ids[r.prefix_length : r.prefix_length + 12].tolist()) for r in (one, two)]
        assert ids[0] != ids[1]
    texts = Challenge(str(tmp_path / "challenge.json")).load(tokenizer)
    assert all(one.text.startswith(new.nonce) for one in texts)


def test_the_seed_is_for_the_verifier_alone(exchange: World) -> None:
    own = ledger.path_of(exchange.challenge)
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    seed = json.loads(own.read_text())["seed"]
    for path in exchange.folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".verifier.json") and path.stat().st_size < 2**20:
            assert seed.encode() not in path.read_bytes(), path


def test_a_challenge_is_not_written_over_another(exchange: World, tmp_path: Path) -> None:
    said = run(challenge_main, exchange.challenge, *LENGTHS, *exchange.models, status=2)
    assert "is there already: a challenge is used once" in said
    said = run(challenge_main, tmp_path / "c.json", "quant=awq,gptq", *exchange.models, status=2)
    assert "2 configs: a challenge is made for one model's tokenizer" in said
    again = ["prompts=challenge", f"prompts.path='{exchange.challenge}'"]
    said = run(challenge_main, tmp_path / "c.json", *again, *exchange.models, status=2)
    assert "a challenge is cut from documents" in said
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_without_the_nonce_is_not_run(exchange: World, tmp_path: Path, tokenizer: Any) -> None:
    fields = json.loads(exchange.challenge.read_bytes()) | {"nonce": "f" * 32}
    (tmp_path / "challenge.json").write_text(json.dumps(fields))
    with pytest.raises(QdxError, match=r"not with the nonce f{32}: it could have been run before"):
        Challenge(str(tmp_path / "challenge.json")).load(tokenizer)


def test_a_run_of_a_challenge_takes_its_lengths_and_keeps_full_rows(exchange: World) -> None:
    arguments = ["prompts=challenge", f"prompts.path='{exchange.challenge}'", *exchange.models]
    (cfg,) = compose(arguments)
    assert (cfg.generate.tokens, cfg.capture.prefill_positions) == (TOKENS, 8)
    for capture in ("topk", "hidden"):
        with pytest.raises(QdxError, match=f"capture={capture}: prompts=challenge binds the full row"):
            compose([*arguments, f"capture={capture}"])
    source = Challenge(str(exchange.challenge))
    asked = {
        "tokenizer_sha256": source.file.tokenizer_sha256, "vocab": source.file.vocab, "tokens": TOKENS,
        "prefill_positions": 8,
    }  # fmt: skip
    source.require(**asked)
    for change, said in (
        ({"tokens": 9}, "generate.tokens=9: .* asks for 5: remove"),
        ({"prefill_positions": "all"}, "capture.prefill_positions=all: .* asks for 8"),
        ({"vocab": 9}, "made for a model with 1200 logits"),
        ({"tokenizer_sha256": "0" * 64}, "choose the model that the verifier asks for"),
    ):
        with pytest.raises(QdxError, match=said):
            source.require(**{**asked, **change})


def test_the_root_is_the_sha256_of_the_file_and_the_ledger_says_when_it_came(fresh: Path) -> None:
    said = run(open_main, "receive", fresh / "challenge.json", root_of(fresh))
    assert f"root {root_of(fresh)[:16]}… received at" in said
    first = ledger.read(fresh / "challenge.verifier.json", *challenges.read(fresh / "challenge.json"))
    run(open_main, "draw", fresh / "challenge.json", fresh / NAME, "--rows", 9)
    own = ledger.read(fresh / "challenge.verifier.json", *challenges.read(fresh / "challenge.json"))
    assert (own.root, own.received, own.drawn) == (root_of(fresh), first.received, 9)
    rows = json.loads((fresh / "drawn.json").read_text())["rows"]
    assert [sum(row["phase"] == phase for row in rows) for phase in ("prefill", "decode")] == [9, 9]
    # The same again, and not in another number.
    before = (fresh / "drawn.json").read_bytes()
    run(open_main, "draw", fresh / "challenge.json", fresh / NAME, "--rows", 9)
    assert (fresh / "drawn.json").read_bytes() == before
    said = run(open_main, "draw", fresh / "challenge.json", fresh / NAME, "--rows", 10, status=2)
    assert "9 rows were drawn before, now --rows 10: the draw is made once" in said


def test_one_challenge_takes_one_root(fresh: Path) -> None:
    """A prover who sees that her false rows were drawn cannot bind again."""
    run(open_main, "draw", fresh / "challenge.json", fresh / NAME)
    plain = json.loads((fresh / NAME).read_text())
    plain["configs"][0]["tokens_sha256"] = "0" * 64
    (fresh / NAME).write_text(json.dumps(plain, indent=1) + "\n")
    said = run(open_main, "draw", fresh / "challenge.json", fresh / NAME, status=2)
    assert "a prover who binds twice could wait for a draw that misses her false rows" in said
    said = run(open_main, "receive", fresh / "challenge.json", "0" * 64, status=2)
    assert "make a new challenge" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nonce": "0" * 32}, "answers another challenge: its nonce is 0{32}"),
        ({"challenge_sha256": "0" * 64}, "answers another challenge"),
        ({"rows": 99}, "binds 99 rows of awq, the challenge asks for"),
    ],
)
def test_a_commitment_to_something_else_draws_nothing(
    change: dict[str, object], said: str, fresh: Path
) -> None:
    plain = json.loads((fresh / NAME).read_text())
    (plain["configs"][0] if "rows" in change else plain).update(change)
    (fresh / NAME).write_text(json.dumps(plain, indent=1) + "\n")
    assert re.search(said, run(open_main, "draw", fresh / "challenge.json", fresh / NAME, status=2))
    assert not (fresh / "drawn.json").exists()
    own = ledger.read(fresh / "challenge.verifier.json", *challenges.read(fresh / "challenge.json"))
    assert own.root == ""


def test_a_root_is_64_digits_and_rows_are_a_number(fresh: Path) -> None:
    said = run(open_main, "receive", fresh / "challenge.json", "root", status=2)
    assert "'root' is not a root" in said
    for count in (0, PREFILL + 1):
        said = run(open_main, "draw", fresh / "challenge.json", fresh / NAME, "--rows", count, status=2)
        assert (
            f"--rows {count}: draw from 1 to {PREFILL} rows of each phase: the challenge has {PREFILL} of "
            in said
        )
        assert f"prefill and {DECODE} of decode that can be drawn" in said
    own = ledger.read(fresh / "challenge.verifier.json", *challenges.read(fresh / "challenge.json"))
    assert (own.root, own.drawn) == ("", 0)
    assert not (fresh / "drawn.json").exists()


def test_a_draw_says_what_it_will_show_of_each_phase(fresh: Path) -> None:
    said = run(open_main, "draw", fresh / "challenge.json", fresh / NAME, "--rows", ROWS)
    assert f"{ROWS} of {PREFILL} rows of prefill and {DECODE} of {DECODE} rows of decode" in said
    # 1 − 0.05^(1/20) = 13.91 %, rounded up.
    assert "share of false rows is under 14.0 % in prefill and 0 (all rows were drawn) in decode" in said


def test_all_rows_are_drawn_where_there_are_fewer_than_usual(fresh: Path) -> None:
    said = run(open_main, "draw", fresh / "challenge.json", fresh / NAME)
    assert f"{PREFILL} of {PREFILL} rows of prefill and {DECODE} of {DECODE} rows of decode" in said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (2, "and a reader takes 67,108,864: draw fewer"),
        (8, "1,120,008 rows in all, limit 1,000,000: draw fewer"),
    ],
)
def test_more_rows_than_a_prover_s_qdx_would_read_are_refused_at_the_draw(
    labels: int, said: str, tmp_path: Path
) -> None:
    """Rows whose names are long: a list of over 64 MiB, which `open` would refuse hours later."""
    count, name = 140_000, "r" * 80
    ids = np.arange(count, dtype=np.int32) % 100
    reference = Reference(name, ids, 0, count, 0, ids[:2], "", "", "", 0, "")
    seed = b"s" * 32
    asked = challenges.ChallengeFile(
        "a" * 32,
        "2026-11-28T01:15:00Z",
        hashlib.sha256(seed).hexdigest(),
        "c" * 64,
        100,
        2,
        count,
        [reference],
    )
    (tmp_path / "challenge.json").write_bytes(asked.dump())
    digest = hashlib.sha256(asked.dump()).hexdigest()
    ledger.write(
        tmp_path / "challenge.verifier.json", ledger.Ledger(digest, seed.hex(), "2026-11-28T01:15:00Z")
    )
    one = BoundConfig(len(rows_of(asked)), "1" * 64, "2" * 64, "3" * 64)
    made = Commitment(digest, asked.nonce, {f"{i}" * 80: one for i in range(labels)})
    (tmp_path / NAME).write_bytes(made.dump())
    before = (tmp_path / "challenge.verifier.json").read_bytes()
    told = run(open_main, "draw", tmp_path / "challenge.json", tmp_path / NAME, "--rows", count, status=2)
    assert said in told
    assert (tmp_path / "challenge.verifier.json").read_bytes() == before
    assert not (tmp_path / "drawn.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "0" * 64}, "its seed is not that whose SHA-256 is in the challenge"),
        ({"challenge_sha256": "0" * 64}, "is of another challenge, or the challenge was changed"),
        ({"root": "0" * 64}, "root and time, or rows and commitment, stand alone"),
        ({"drawn": 5}, "stand alone"),
        ({"issued": "yesterday"}, "issued is 'yesterday': must match"),
    ],
)
def test_a_ledger_that_was_changed_is_refused(change: dict[str, object], said: str, fresh: Path) -> None:
    path = fresh / "challenge.verifier.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(QdxError, match=said):
        ledger.read(path, *challenges.read(fresh / "challenge.json"))


def test_a_challenge_without_its_ledger_is_of_no_use(fresh: Path) -> None:
    (fresh / "challenge.verifier.json").unlink()
    said = run(open_main, "draw", fresh / "challenge.json", fresh / NAME, status=2)
    assert "it holds the seed of the draw" in said


def key(folder: Path, name: str) -> Path:
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@needs_openssh
def test_a_signature_is_verified_by_openssh_before_rows_are_drawn(fresh: Path, exchange: World) -> None:
    own, foreign = key(fresh, "own"), key(fresh, "foreign")
    signers = fresh / "signers"
    signers.write_text(f"prover@example.org {own.with_suffix('.pub').read_text()}")
    asked = ("draw", fresh / "challenge.json", fresh / NAME)
    named = ("--signers", signers, "--signed-by", "prover@example.org")
    assert "the commitment is not signed" in run(open_main, *asked, *named, status=2)
    assert "belong together" in run(open_main, *asked, "--signed-by", "prover@example.org", status=2)
    prover = fresh / "prover"
    shutil.copytree(exchange.prover, prover)
    for signed, status in ((foreign, 2), (own, 0)):
        run(commit_main, prover, "--sign", signed)
        shutil.copy(prover / f"{NAME}.sig", fresh)
        said = run(open_main, *asked, *named, status=status)
        if status:
            assert f"{fresh / NAME} is not signed by prover@example.org" in said
            assert not (fresh / "drawn.json").exists()
    found = ledger.read(fresh / "challenge.verifier.json", *challenges.read(fresh / "challenge.json"))
    assert found.signed_by == "prover@example.org"
    # A signature of other bytes by the right key.
    (fresh / f"{NAME}.sig").unlink()
    (fresh / "other").write_text("other")
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", str(own), "-n", NAMESPACE, str(fresh / "other")], check=True
    )
    (fresh / "other.sig").rename(fresh / f"{NAME}.sig")
    assert "is not signed by" in run(open_main, *asked, *named, status=2)


@needs_openssh
def test_only_the_commitment_of_a_challenge_is_signed(exchange: World, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(exchange.prover, plain)
    (plain / "challenge.json").unlink()
    said = run(commit_main, plain, "--sign", tmp_path / "key", status=2)
    assert "--sign signs the commitment of a challenge" in said
    # A sweep that answers no challenge has the file of commitments that it always had.
    run(commit_main, plain)
    assert (plain / "commitments.nc").is_file()
    said = run(commit_main, exchange.prover, tmp_path / "out.json", "--sign", tmp_path / "absent", status=2)
    assert "ssh-keygen did not sign" in said


def test_a_prover_opens_what_she_bound_and_nothing_else(exchange: World, tmp_path: Path) -> None:
    prover, drawn = tmp_path / "prover", tmp_path / "drawn.json"
    shutil.copytree(exchange.prover, prover)
    fields = json.loads((exchange.folder / "drawn.json").read_text())
    drawn.write_text(json.dumps(fields | {"root": "0" * 64}))
    assert "names rows of the root 0000000000000000…; that of" in run(
        open_main, "open", prover, drawn, status=2
    )
    row = fields["rows"][0]
    for change in ({"config": "gptq"}, {"reference": "ref_99"}, {"position": 1 << 20}):
        drawn.write_text(json.dumps(fields | {"rows": [row | change]}))
        assert "names a row that was not bound" in run(open_main, "open", prover, drawn, status=2)
    # The run was made anew since, by another config.
    (prover / "awq" / "run.nc").unlink()  # HDF5 still has it open: a new file, and not new content
    shutil.copyfile(exchange.folder / "cheap" / "gptq" / "run.nc", prover / "awq" / "run.nc")
    said = run(open_main, "open", prover, exchange.folder / "drawn.json", status=2)
    assert "no longer holds what commitment.json binds (awq: rows_root)" in said


def test_opened_rows_are_refused_before_the_replay_where_nobody_can_judge_them(
    exchange: World, tmp_path: Path
) -> None:
    source = Transcripts(str(exchange.prover / "opened.nc"))
    with pytest.raises(QdxError, match=r"add verify\.challenge=challenge\.json"):
        keep_for_the_report(source, Verify(), tmp_path / "sweep")
    file = source.file
    fitting = {"tokenizer_sha256": file.tokenizer_sha256, "vocab": file.vocab, "tokens": file.tokens}
    source.require(**fitting, mode="full")  # type: ignore[arg-type]
    with pytest.raises(QdxError, match=r"capture\.mode=topk: opened rows are compared"):
        source.require(**fitting, mode="topk")  # type: ignore[arg-type]


def replayed(exchange: World, *arguments: str, name: str = "never") -> subprocess.CompletedProcess[str]:
    return qdx(
        *("-m", "prompts=transcripts", "prompts.path=prover/opened.nc", "verify.challenge=challenge.json"),
        *("quant=awq", "repeats=1", f"hydra.sweep.dir={name}", *arguments, *FEW, *exchange.models),
        cwd=exchange.folder,
    )


def test_what_the_files_alone_show_not_to_be_met_is_not_replayed(exchange: World) -> None:
    require = "verify.require={threads: 64, rows: 59, references: 9, within: 1000000}"
    done = replayed(exchange, require)
    assert done.returncode == 4, done.stdout + done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "obligation not met: awq: threads: got 1, wanted 64",
        f"obligation not met: awq: rows: got {ROWS} of {PREFILL} of prefill, {DECODE} of {DECODE} of decode, "
        "wanted 59 or more of each phase, or all",
        f"obligation not met: awq: references: got {REFERENCES}, wanted 9 or more",
    ]
    assert done.stderr == (
        "qdx: obligation not met: the files alone show it, so nothing was replayed: verify.go_on=true "
        "replays anyway\n"
    )
    assert not (exchange.folder / "never").exists()


def test_what_can_be_met_by_some_is_replayed_and_what_is_not_is_said_before(
    exchange: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "prompts=transcripts", f"prompts.path='{exchange.prover}/opened.nc'", "quant=awq", *exchange.models,
        f"verify.challenge='{exchange.challenge}'", "verify.require={threads: 64}",
    ]  # fmt: skip
    look_at_obligations(validate(compose([*options, "verify.go_on=true"])[0]))
    assert capsys.readouterr().out == "NOTE: obligation not met: awq: threads: got 1, wanted 64\n"
    with pytest.raises(NotMetError) as refused:
        look_at_obligations(validate(compose(options)[0]))
    assert refused.value.lines == ["obligation not met: awq: threads: got 1, wanted 64"]
    # What the replay decides is not known before it.
    source = Transcripts(str(exchange.prover / "opened.nc"))
    asked = Verify(challenge=str(exchange.challenge), require={"class": "here", "rows": ROWS})
    assert unmet(source, asked) == {"awq": ()}


def test_the_folder_of_a_verifier_keeps_what_its_report_is_judged_by(exchange: World, tmp_path: Path) -> None:
    source = Transcripts(str(exchange.prover / "opened.nc"))
    keep_for_the_report(source, Verify(challenge=str(exchange.challenge)), tmp_path)
    assert (tmp_path / "verify_challenge.verifier.json").stat().st_mode & 0o777 == 0o600
    # A sweep of the folder without a challenge does not judge by the copy in it, and an original stays.
    shutil.copy(exchange.challenge, tmp_path)
    shutil.copy(ledger.path_of(exchange.challenge), tmp_path)
    keep_for_the_report(Transcripts(str(exchange.prover / "sweep.nc")), Verify(), tmp_path)
    left = {path.name for path in tmp_path.glob("*.json")}
    assert left == {"challenge.json", "challenge.verifier.json"}


def test_the_report_of_a_challenge_s_sweep_names_the_next_step(exchange: World, tmp_path: Path) -> None:
    """Bind, open, and what the verifier then runs: never a copy of sweep.nc, which would show all rows."""
    prover = tmp_path / "prover"
    shutil.copytree(exchange.prover, prover, ignore=shutil.ignore_patterns("commitment.json", "opened.nc"))
    steps = [
        ("exchange", f"python -m qdx.commit {prover}"),
        ("exchange", f"python -m qdx.open_rows open {prover} drawn.json"),
        (
            "verifier",
            "python -m qdx -m prompts=transcripts prompts.path=opened.nc verify.challenge=challenge.json",
        ),
    ]
    for name, (key, command) in zip(("", "commitment.json", "opened.nc"), steps, strict=True):
        if name:
            shutil.copy(exchange.prover / name, prover)
        else:
            run(report_main, prover)
            report = (prover / "report.txt").read_text()
            assert command in report
            assert "copy sweep.nc" not in report
            assert json.loads((prover / "summary.json").read_text())["commands"][key] == command
        settings = json.loads((prover / "sweep.json").read_text())
        why, shown = next_command(Facts(prover, ["awq"], [], {}, {}, settings), ["awq"])
        assert shown.startswith(command)
        assert why.startswith("Next command of the exchange" if key == "exchange" else "Next command for the")


def test_a_folder_answers_one_challenge(exchange: World, tmp_path: Path) -> None:
    fields = json.loads(exchange.challenge.read_bytes()) | {"seed_sha256": "0" * 64}
    (tmp_path / "other.json").write_text(json.dumps(fields))
    Challenge(str(exchange.challenge)).keep(tmp_path / "sweep")
    Challenge(str(exchange.challenge)).keep(tmp_path / "sweep")  # a sweep that is resumed
    with pytest.raises(QdxError, match="is another challenge: choose another hydra"):
        Challenge(str(tmp_path / "other.json")).keep(tmp_path / "sweep")


@pytest.mark.parametrize(
    ("require", "said"),
    [
        ({"reference": 4}, r"unknown demand, one of .*\(did you mean 'references'\?\)"),
        ({"references": 0}, "must be a whole number of at least 1"),
        ({"tokens": True}, "must be a whole number of at least 1"),
        ({"class": "there"}, "must be here"),
        ({"rows": 5}, "is about a challenge: add verify.challenge"),
        ({"within": 5}, "is about a challenge"),
        ({"gpu": None}, "must be a value, or a list"),
        ({"gpu": {"name": "H100"}}, "must be a value, or a list"),
    ],
)
def test_a_demand_that_means_nothing_is_refused(require: dict[str, object], said: str) -> None:
    with pytest.raises(QdxError, match=said):
        obligations.check(require, challenge=False)


def test_demands_are_of_transcripts() -> None:
    for option in ("verify.challenge=challenge.json", "verify.require={tokens: 4}"):
        with pytest.raises(QdxError, match="judges transcripts: add prompts=transcripts"):
            compose([option])
