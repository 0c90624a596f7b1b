"""Prover → verifier through the command line, on tiny checkpoints: honest claims stand, false ones fall."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from omegaconf import OmegaConf

import qdx as package
from qdx.backends.sampling import plain_greedy
from qdx.capture import row_hash
from qdx.dataset.lacking import SINCE_2, lacking
from qdx.verification.environment import record_differs
from tests.hostile.making import Groups, rewritten
from tests.sweeping import PLAIN, SMALL, checkpoints, qdx

pytestmark = pytest.mark.slow

CONFIGS = ["awq", "awq_marlin", "gptq"]
SCRIPTS = Path(__file__).parents[1] / "scripts"
FIVE = [*(a for a in SMALL if not a.startswith("prompts.references")), "prompts.references=5"]
HERE = ["repeats=3", "backend.threads=1", "metric=[l2]", "report.formats=[txt]"]


@pytest.fixture(scope="module")
def produced(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Path:
    cwd = tmp_path_factory.mktemp("producers")
    arguments = [f"quant={','.join(CONFIGS)}", *FIVE, *PLAIN, *checkpoints(tiny_models)]
    done = qdx("-m", *arguments, "hydra.sweep.dir=made", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd / "made"


def replay(file: Path, folder: Path, models: dict[str, Path], *more: str, quant: str = "awq,awq_marlin,gptq"):
    """Run the verifier on a file of transcripts; return its folder and how it ended."""
    folder.mkdir(exist_ok=True)
    chosen = ["prompts=transcripts", f"prompts.path='{file}'", f"quant={quant}", *HERE, *checkpoints(models)]
    done = qdx("-m", *chosen, *more, "hydra.sweep.dir=verified", cwd=folder)
    return folder / "verified", done


def verdicts(folder: Path) -> dict[str, str]:
    with package.open(folder / "sweep.nc") as tree:
        result = tree["analysis/verify"].to_dataset().load()
    return dict(zip(result["producer"].values.tolist(), result["verdict"].values.tolist(), strict=True))


@pytest.fixture(scope="module")
def verified(produced: Path, tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Path:
    """A verifier's sweep whose producers' folder has gone since."""
    copy = tmp_path_factory.mktemp("sent") / "sweep.nc"
    shutil.copy(produced / "sweep.nc", copy)
    html = "report.formats=[txt,html]"
    folder, done = replay(copy, tmp_path_factory.mktemp("verifier"), tiny_models, html)
    assert done.returncode == 0, done.stdout + done.stderr
    copy.unlink()
    return folder


def test_honest_claims_are_confirmed_on_the_same_machine(verified: Path) -> None:
    # exllama's prefill repeats over 50 rows, its decode does not
    assert verdicts(verified) == {
        "awq": "confirmed",
        "awq_marlin": "confirmed",
        "gptq": "confirmed in prefill",
    }
    report = (verified / "report.txt").read_text()
    assert "VERDICT  3 claims: 2 confirmed, 1 confirmed in prefill." in report
    assert "\n    ✗" not in report
    page = (verified / "report.html").read_text()
    assert "<h1>3 claims: 2 confirmed, 1 confirmed in prefill.</h1>" in page


def test_a_verifier_repeats_in_processes_and_says_so(produced: Path, verified: Path) -> None:
    for folder, processes, scope in ((produced, 1, "engine"), (verified, 3, "process")):
        for label in CONFIGS:
            with package.open(folder / label / "run.nc") as tree:
                attrs = dict(tree.attrs)
                assert tree["prefill"].sizes["repeat"] == (2 if folder is produced else 3)
            assert attrs["repeat_processes"] == processes
            assert OmegaConf.create(attrs["config"]).repeat_scope == scope
            assert plain_greedy(attrs["sampling"]) is True
            assert attrs["batch_layout"] == "in order, batch_size"
        with package.open(folder / "sweep.nc") as tree:
            assert lacking(tree) == []
            assert tree["provenance/repeat_processes"].values.tolist() == [str(processes)] * 3
    assert not list(verified.glob("*/repeat_*"))


@pytest.mark.slow
def test_the_command_line_may_still_repeat_in_the_engine(
    produced: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    folder, done = replay(produced, tmp_path, tiny_models, "repeat_scope=engine", quant="awq")
    assert done.returncode == 4, done.stdout + done.stderr
    assert package.open(folder / "awq" / "run.nc").attrs["repeat_processes"] == 1
    _, done = replay(produced, tmp_path, tiny_models, quant="awq")
    assert done.returncode == 4 and "complete already" not in done.stderr  # by the hash another config
    assert package.open(folder / "awq" / "run.nc").attrs["repeat_processes"] == 3


@pytest.mark.slow
def test_a_file_of_the_version_before_is_replayed_and_says_what_it_lacks(
    tmp_path: Path, produced: Path, tiny_models: dict[str, Path]
) -> None:
    def edit(groups: Groups) -> None:
        groups["provenance"] = groups["provenance"].drop_vars(list(SINCE_2))
        groups["provenance"]["schema_version"].values[:] = "1"
        groups["/"].attrs["schema_version"] = 1

    file = rewritten(produced / "sweep.nc", tmp_path / "old.nc", edit)
    folder, done = replay(file, tmp_path, tiny_models, "repeats=1", quant="awq")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "NOTE: awq, awq_marlin, gptq (schema version 1, now 2) does not state sampling" in " ".join(
        done.stdout.split()
    )
    assert package.open(folder / "awq" / "run.nc").attrs["repeat_processes"] == 1


def test_every_config_in_turn_is_a_stranger(produced: Path, verified: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "strangers.py"), str(produced), str(verified), "--alpha", "0.4"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == list(CONFIGS)
    for line in lines:
        label, counts = line.split(":")[0], line.rpartition(": ")[2]
        assert label not in counts.split()[::2]  # nobody is named who did not replay
        assert sum(int(part.rsplit(" ", 1)[1]) for part in counts.split(", ")) == 5


def compared(*paths: Path) -> list[str]:
    command = [sys.executable, str(SCRIPTS / "gpu" / "compare_hashes.py"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_hashes_are_compared_between_sweeps_and_within_one(produced: Path, tmp_path: Path) -> None:
    path = produced / "sweep.nc"
    rows = int(package.open(path)["decode"]["captured"].sel(config="awq")[0].sum())
    two = compared(path, path)
    assert f"awq decode {rows} of {rows} rows model:awq_gemm ~ model:awq_gemm" in two
    one = compared(path)
    assert f"decode awq: {rows} of {rows} rows equal in all 2 repeats" in one
    assert f"replay gptq: 0 of {rows} rows equal in all 2 repeats" in one  # exllama's atomics
    assert not [line for line in one if "~" in line]  # three kernels

    def once(groups: Groups) -> None:
        for name, data in groups.items():
            if "repeat" in data.dims:
                groups[name] = data.isel(repeat=[0])

    single = compared(rewritten(path, tmp_path / "once.nc", once))
    assert "decode gptq: not run again" in single
    assert not [line for line in single if "equal in all" in line]


def test_replay_gives_the_rows_of_the_generation_back(produced: Path, verified: Path) -> None:
    with package.open(produced / "sweep.nc") as made, package.open(verified / "sweep.nc") as here:
        replay, decode = here["replay"].to_dataset().load(), made["decode"].to_dataset().load()
        prefill, output = here["prefill"].to_dataset().load(), made["output"].to_dataset().load()
        length = made["references/length"].load()
    assert replay["captured"].dims == ("config", "repeat", "producer", "reference", "position")
    for config in CONFIGS:
        for producer in CONFIGS:
            at = {"config": config, "producer": producer, "repeat": 0}
            own = decode.sel(config=producer, repeat=0)
            np.testing.assert_array_equal(replay["token_id"].sel(at), own["token_id"])
            equal = (replay["row_hash"].sel(at) == own["row_hash"]).values
            assert equal.all() == (config == producer != "gptq")
            first = prefill.sel(at)
            np.testing.assert_array_equal(
                first["first_token_id"],
                output["token_id"].sel(config=producer, repeat=0, output_token=0)
                if "output_token" in output.coords
                else output["token_id"].sel(config=producer, repeat=0)[..., 0],
            )
            greatest = first["top_logit"].isel(rank=0).sel(position=length)
            greedy = (first["first_rank"] == 0).values
            np.testing.assert_array_equal(greedy, (greatest == first["first_logit"]).values)
            assert greedy.all() or config != producer


def test_the_first_token_is_judged_too(verified: Path) -> None:
    with package.open(verified / "sweep.nc") as tree:
        result = tree["analysis/verify"].to_dataset().load()
    assert (result["tokens"] == 5).all()
    assert (result["rows_compared"] == 4).all()
    own = result.sel(producer="awq", config="awq")
    assert (own["tokens_greedy"] == 5).all() and (own["margin"] == 0).all()


def test_scripts_find_the_verdict_in_the_summary(verified: Path) -> None:
    told = json.loads((verified / "summary.json").read_text())["verdicts"]
    assert (told["schema_version"], told["alpha"], told["exit_status"]) == (1, 0.05, 0)
    one = {claim["producer"]: claim for claim in told["claims"]}["gptq"]
    assert one["verdict"] == "confirmed in prefill" and one["concerns"] == "prefill rows"
    assert one["plain_greedy"] == "yes" and one["units"] == 5 and one["false_at_least"] == 0
    assert one["tests"]["prefill rows"]["p"] == 1 and one["tests"]["decode rows"]["p"] is None
    assert "does not repeat" in one["tests"]["decode rows"]["against"]
    assert "3 repeats here, each in a process of its own" in one["tests"]["distances"]["against"]


@pytest.mark.slow
def test_the_report_is_made_again_without_the_producers_file(verified: Path) -> None:
    before = verdicts(verified)
    done = qdx(str(verified), module="qdx.report", cwd=verified)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert verdicts(verified) == before
    (verified / "producers.nc").rename(verified / "away.nc")
    done = qdx(str(verified), module="qdx.report", cwd=verified)
    (verified / "away.nc").rename(verified / "producers.nc")
    assert done.returncode == 1
    assert "producers.ncismissing" in "".join(done.stdout.split())  # lines break anywhere in a long path
    assert "Traceback" not in done.stderr
    assert qdx(str(verified), module="qdx.report", cwd=verified).returncode == 0


def test_matrices_are_smallest_on_the_diagonal(verified: Path) -> None:
    with package.open(verified / "sweep.nc") as tree:
        result = tree["analysis/crossing"].to_dataset().load()
    for phase in ("prefill", "decode"):
        distance = result["distance"].sel(phase=phase).values
        assert (distance.argmin(1) == np.arange(3)).all()
        assert distance[0, 0] == distance[1, 1] == 0
        counts = result.sel(phase=phase, producer="awq", config="awq")
        assert counts["rows_equal"] == counts["rows_compared"] > 0


def liar(produced: Path, target: Path) -> Path:
    """The producers' file with gptq's transcripts and rows where awq's belong, and awq's record."""

    def edit(groups: Groups) -> None:
        for name in ("output", "prefill", "decode", "replay"):
            data = groups[name]
            awq, gptq = (data["config"].values.tolist().index(c) for c in ("awq", "gptq"))
            for variable in data.data_vars.values():
                if variable.dims[0] == "config":
                    variable.values[awq] = variable.values[gptq]

    return rewritten(produced / "sweep.nc", target, edit)


def test_a_false_claim_is_refuted(produced: Path, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    file = liar(produced, tmp_path / "lies.nc")
    folder, done = replay(file, tmp_path, tiny_models, quant="awq,awq_marlin")
    assert done.returncode == 3, done.stdout + done.stderr
    assert verdicts(folder) == {"awq": "refuted", "awq_marlin": "confirmed", "gptq": "undecided"}
    said = " ".join((folder / "report.txt").read_text().split())
    assert "Decode: 0 of 20 rows bit-equal" in said
    assert "further processes, all bit-equal" in said
    assert "1 refuted" in said
    assert "gptq was not replayed: add it to quant=…" in said
    with package.open(folder / "sweep.nc") as tree:
        result = tree["analysis/verify"].to_dataset().load()
        environment = tree["analysis/environment_validation"].to_dataset().load()
    assert float(result["p_test_holm"].sel(producer="awq")) <= 0.05
    # the record was forged too, so the environment says nothing
    assert bool(environment["agrees"].all())


def test_a_numerical_model_bears_its_kernels_name() -> None:
    real, model = {"observed_kernel": "marlin"}, {"observed_kernel": "model:marlin"}
    assert record_differs(real, model) == "" == record_differs(model, real)
    assert record_differs(real, {"observed_kernel": "model:machete"}) == "kernel (marlin; here model:machete)"


@pytest.mark.slow
def test_a_label_over_another_configs_record_is_seen_in_the_record(
    produced: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    def edit(groups: Groups) -> None:
        for name, data in groups.items():
            if "config" in data.dims:
                groups[name] = data.sel(config=["gptq"]).assign_coords(config=["awq"])

    file = rewritten(produced / "sweep.nc", tmp_path / "relabelled.nc", edit)
    folder, done = replay(file, tmp_path, tiny_models, quant="awq,gptq")
    assert done.returncode == 3, done.stdout + done.stderr
    assert verdicts(folder) == {"awq": "other config"}
    said = " ".join((folder / "report.txt").read_text().split())
    assert "its own record states other" in said.lower()
    assert "✗ kernel" in said and "✗ weights' sha256" in said
    with package.open(folder / "awq" / "run.nc") as tree:
        assert tree["replay"].sizes["repeat"] == 3
        assert tree["replay"].sizes["producer"] == 1


@pytest.mark.slow
def test_commitments_confirm_and_refute_without_hashes(
    produced: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    small = tmp_path / "small.nc"
    done = qdx(str(produced), str(small), module="qdx.commit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert small.stat().st_size < (produced / "sweep.nc").stat().st_size
    with xr.open_dataset(small, group="decode") as data:
        assert {"commitment", "captured"} <= set(data.data_vars)
        assert not {"row_hash", "sketch", "top_logit", "logit"} & set(data.data_vars)
    folder, done = replay(small, tmp_path / "full", tiny_models, quant="awq_marlin,gptq")
    assert done.returncode == 4, done.stdout + done.stderr
    assert verdicts(folder) == {
        "awq": "undecided",
        "awq_marlin": "confirmed",
        "gptq": "not refuted",  # its decode rows differ, and commitments say nothing of distances
    }
    with package.open(folder / "sweep.nc") as tree:
        result = tree["analysis/verify"].to_dataset().load()
    assert int(result["rows_equal"].sel(producer="awq", config="awq_marlin").sum()) == 0
    tested = result["test_p"].sel(producer="gptq")
    assert np.isnan(tested.sel(test="distances")) and np.isfinite(tested.sel(test="text"))
    folder, done = replay(
        small, tmp_path / "topk", tiny_models, "capture=topk", "repeat_scope=engine", quant="awq"
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert verdicts(folder)["awq"] == "undecided"
    assert "the verifier kept no full rows" in " ".join((folder / "report.txt").read_text().split())


def test_commit_needs_the_full_rows(produced: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(produced / "sweep.nc", copy)
    done = qdx(str(copy), module="qdx.commit", cwd=tmp_path)
    assert done.returncode == 2
    assert "run.nc is missing: commitments are made of its full rows" in done.stderr
    assert not list(copy.glob("commitments*"))


@pytest.mark.slow
def test_a_report_takes_another_calibration_and_other_claims(verified: Path, tmp_path: Path) -> None:
    folder, earlier = tmp_path / "again", tmp_path / "earlier"
    shutil.copytree(verified, folder)
    shutil.copytree(verified, earlier)
    settings = json.loads((folder / "sweep.json").read_text())
    settings["verify"]["claims"] = {"gptq": "awq"}
    (folder / "sweep.json").write_text(json.dumps(settings))
    done = qdx(str(folder), "--calibration", str(earlier), module="qdx.report", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    shutil.rmtree(earlier)
    assert qdx(str(folder), module="qdx.report", cwd=tmp_path).returncode == 3
    report = " ".join((folder / "report.txt").read_text().split())
    assert "too few references that are not judged themselves" in report
    assert "gptq as awq: REFUTED" in report
    done = qdx(str(folder), "--calibration", str(tmp_path), module="qdx.report", cwd=tmp_path)
    assert done.returncode == 2 and "it holds no sweep.nc" in done.stderr


MISTAKES = {
    "tokens": (["generate.tokens=4"], "generate.tokens=4: the transcripts of"),
    "a claim of nobody": (["verify.claims={awk: awq}"], "verify.claims names 'awk'"),
    "no calibration": (["verify.calibration=/no/where"], "it holds no sweep.nc"),
    "alpha": (["verify.alpha=2"], "verify.alpha=2"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_before_anything_runs(
    case: str, produced: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments, said = MISTAKES[case]
    folder, done = replay(produced, tmp_path, tiny_models, *arguments, quant="awq")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "awq").exists()


def test_a_verifiers_file_is_refused_as_transcripts(
    verified: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    _, done = replay(verified, tmp_path, tiny_models, quant="awq")
    assert done.returncode == 2
    assert "this is a verifier's sweep" in done.stderr


@pytest.mark.slow
def test_resume_keeps_what_was_replayed_and_redoes_it_for_other_transcripts(
    produced: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    folder, done = replay(produced, tmp_path, tiny_models, quant="awq")
    assert done.returncode == 4, done.stdout + done.stderr  # two claims were not replayed
    _, done = replay(produced, tmp_path, tiny_models, quant="awq")
    assert "complete already, kept" in done.stderr
    _, done = replay(liar(produced, tmp_path / "lies.nc"), tmp_path, tiny_models, quant="awq")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "complete already" not in done.stderr
    assert json.loads((folder / "summary.json").read_text())["analyses"]["verify"]["verdict"]["awq"]
    assert verdicts(folder)["awq"] != "confirmed"


def test_a_commitment_is_the_digest_of_the_row_that_the_hash_is_of(produced: Path, tmp_path: Path) -> None:
    import hashlib

    import torch

    from qdx.verification.commitments import of_run

    path = produced / "awq" / "run.nc"
    found = of_run(path, "decode")
    assert found is not None
    with package.open(path) as tree:
        data = tree["decode"].to_dataset().load()
    for r in range(3):
        for p in np.flatnonzero(data["captured"].values[0, 0, r]):
            row = data["logit"].values[0, 0, r, p].astype("<f2")
            assert found.values[0, 0, r, p].tobytes() == hashlib.sha256(row.tobytes()).digest()[:16]
            own = int(row_hash(torch.from_numpy(row)[None])[0]) % 2**64
            assert own == int(data["row_hash"].values[0, 0, r, p])
