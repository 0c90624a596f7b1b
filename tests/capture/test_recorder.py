"""The recorder: what comes back is what was given, and nothing is lost, invented or silently missing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import qdx
from qdx.capture import CaptureSettings, row_hash
from qdx.dataset import layout
from qdx.errors import QdxError
from tests.capture import victim
from tests.helpers import REPEATS, TOKENS, VOCAB, coords, logits, recorder, small_references, write_run
from tests.slowly import slow_but

ROOT = Path(__file__).parents[2]
GROUPS = ("provenance", "references", *layout.PHASES, "output")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "awq" / "run.nc"
    write_run(path, "awq")
    return path


def fill(record, make, *, skip=None) -> None:
    """Hand over everything that is planned, with rows of ``make(positions)``."""
    for repeat in range(record._run.repeats):
        for reference in range(len(record._run.references)):
            for phase in layout.PHASES:
                if (phase, repeat, reference) == skip:
                    continue
                record.begin(phase, repeat, [reference])
                if len(record.wanted(0)):
                    record.rows(0, record.wanted(0), make(record.wanted(0)))
            record.output(repeat, reference, [0] * record._run.output_tokens, "", -1)
            record.sync()


def test_run_file_has_what_was_computed(run) -> None:
    tree = qdx.open(run)
    for i, reference in enumerate(small_references()):
        length = len(reference.token_ids)
        own = tree["prefill"].to_dataset().sel(config="awq", repeat=1, reference=f"ref_{i}")
        positions = own["position"].values[own["captured"].values]
        assert positions.tolist() == [1, 2, *range(length - 10, length + 1)]
        assert (
            own["token_id"].sel(position=positions[:-1]).values.tolist()
            == reference.token_ids[positions[:-1]].tolist()
        )
        output = tree["output"].to_dataset().sel(config="awq", repeat=1, reference=f"ref_{i}")
        decoded = tree["decode"]["token_id"].sel(config="awq", repeat=1, reference=f"ref_{i}")
        assert output["token_id"].values.tolist() == [
            int(own["token_id"].sel(position=length)),
            *decoded.sel(position=slice(length + 1, length + TOKENS - 1)).values.tolist(),
        ]
        assert str(output["text"].values) == " ".join(map(str, output["token_id"].values))
        replay = tree["replay"].to_dataset().sel(config="awq", repeat=0, reference=f"ref_{i}")
        assert (
            replay["token_id"].values[replay["captured"].values].tolist()
            == reference.continuation[1:].tolist()
        )
        row = logits("awq", i, length + 1, int(reference.continuation[0]))
        np.testing.assert_array_equal(replay["logit"].sel(position=length + 1).values, row[0].float().numpy())
        assert int(replay["row_hash"].sel(position=length + 1)) == int(row_hash(row)[0]) % 2**64
    assert tree.attrs["status"] == "complete" and tree.attrs["engine"] == "helpers"
    assert not run.with_name("run.nc.part").exists()


def test_every_variable_is_that_of_the_table_with_unit_and_meaning(run) -> None:
    tree = qdx.open(run)
    for phase in layout.PHASES:
        dataset = tree[phase].to_dataset()
        assert set(dataset.data_vars) == set(layout.PHASE)
        assert set(dataset.coords) == {*layout.INDEX, *layout.CONFIG_COORDS, "region"}
        for name, expected in layout.PHASE.items():
            assert dataset[name].dims == expected.dims, name
            assert dataset[name].dtype == np.dtype(expected.dtype if expected.dtype != "bool" else bool), name
    for group in GROUPS:
        for name, variable in tree[group].to_dataset().variables.items():
            assert variable.attrs.get("units") in ("1", "nat"), (group, name)
            assert len(variable.attrs.get("long_name", "")) > 5, (group, name)


def test_what_was_not_captured_is_marked_and_filled(run) -> None:
    replay = qdx.open(run)["replay"].to_dataset().load()
    gaps = ~replay["captured"]
    assert 0 < int(gaps.sum()) < gaps.size  # references differ in length by one token
    for name, variable in layout.PHASE.items():
        values = replay[name].values[gaps.values]
        assert np.isnan(values).all() if variable.dtype[0] == "f" else (values == variable.fill).all(), name
    for name in ("token_id", "target_rank", "row_hash", "top_id", "captured"):
        assert "_FillValue" not in replay[name].encoding, name
    assert (replay["region"].values == "").sum() == (~replay["captured"].any(("config", "repeat"))).sum()


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_opens_by_itself_with_its_coordinates(run, group) -> None:
    with xr.open_dataset(run, group=group) as alone:
        assert dict(alone.sizes)
        assert set(alone.dims) & set(alone.coords)


def any_bits(dtype: torch.dtype, positions: int, vocab: int) -> torch.Tensor:
    """Rows of every kind of finite number, subnormal ones and −0.0 too."""
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    limits = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(positions)
    rows = torch.randint(limits.min, limits.max, (positions, vocab), dtype=integer, generator=generator).view(
        dtype
    )
    return torch.where(torch.isfinite(rows), rows, torch.tensor(-0.0, dtype=dtype))


@pytest.mark.parametrize("vocab", [300, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("portable", [False, True], ids=["blosc", "portable"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_come_back_bit_equal(tmp_path, dtype, portable, vocab) -> None:
    references = small_references(2)
    given = {}

    def make(positions):
        rows = any_bits(dtype, len(positions), vocab)
        given[record._now[0], record._now[1], record._now[2][0]] = rows
        return rows

    with recorder(
        tmp_path / "run.nc", references=references, repeats=2, vocab=vocab, dtype=dtype, portable=portable
    ) as record:
        fill(record, make)
        record.finish()
    tree = qdx.open(tmp_path)
    for (phase, repeat, reference), rows in given.items():
        own = tree[phase].to_dataset().isel(config=0, repeat=repeat, reference=reference)
        back = own["logit"].values[own["captured"].values]
        assert np.array_equal(back.view(np.uint32), rows.float().numpy().view(np.uint32))
        again = row_hash(torch.from_numpy(back).to(dtype))
        assert np.array_equal(own["row_hash"].values[own["captured"].values], again.numpy().view(np.uint64))


def test_rows_in_any_split_order_and_interleaving_give_the_same_file(tmp_path, run) -> None:
    """A backend may hand over one row a step for a batch of references, or a prompt in chunks, last first."""
    references = small_references()
    with recorder(tmp_path / "run.nc") as record:
        for repeat in range(REPEATS):
            record.begin("prefill", repeat, [0, 1, 2])
            first = []
            for i, reference in enumerate(references):
                ids, length = reference.token_ids, len(reference.token_ids)
                positions = record.wanted(i)
                rows = torch.cat([logits("awq", i, int(p), int(ids[p - 1])) for p in positions])
                targets = torch.tensor([*ids[positions[:-1]].tolist(), -1])
                for block in (slice(9, None), slice(0, 1), slice(1, 9)):
                    buffer = rows[block].clone()
                    record.rows(i, positions[block], buffer, targets[block])
                    buffer.zero_()  # the recorder may not hold on to a backend's buffer
                assert length == positions[-1]
                first.append(int(rows[-1].argmax()))
            record.begin("decode", repeat, [0, 1, 2])
            generated = [[token] for token in first]
            for step in range(TOKENS - 1):
                for i in (2, 0, 1):
                    position = record.wanted(i)[step]
                    row = logits("awq", i, int(position), generated[i][-1])
                    record.rows(i, np.array([position]), row)
                    generated[i].append(int(row[0].argmax()))
            record.begin("replay", repeat, [0, 1, 2])
            for step in range(TOKENS - 1):
                for i, reference in enumerate(references):
                    row = logits("awq", i, int(record.wanted(i)[step]), int(reference.continuation[step]))
                    record.rows(
                        i,
                        record.wanted(i)[step : step + 1],
                        row,
                        torch.tensor([int(reference.continuation[step + 1])]),
                    )
            for i in range(3):
                record.output(repeat, i, generated[i], " ".join(map(str, generated[i])), -1)
            record.sync()
        record.finish()
    one, other = qdx.open(run), qdx.open(tmp_path)
    for phase in (*layout.PHASES, "output"):
        xr.testing.assert_identical(one[phase].to_dataset().load(), other[phase].to_dataset().load())


def test_topk_keeps_no_full_rows_and_the_same_numbers(tmp_path, run) -> None:
    write_run(tmp_path / "run.nc", "awq", mode="topk")
    full, topk = qdx.open(run), qdx.open(tmp_path)
    for phase in layout.PHASES:
        assert "logit" not in topk[phase]
        xr.testing.assert_identical(
            full[phase].to_dataset().drop_vars("logit").load(), topk[phase].to_dataset().load()
        )


def test_one_output_token_leaves_decode_and_replay_empty(tmp_path) -> None:
    with recorder(tmp_path / "run.nc", repeats=1, output_tokens=1) as record:
        fill(record, lambda positions: any_bits(torch.float16, len(positions), VOCAB))
        record.finish()
    tree = qdx.open(tmp_path)
    assert tree["decode"].sizes["position"] == 0
    assert bool(tree["prefill"]["captured"].isel(reference=0, position=-2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_nan_or_infinite_logit_stops_the_run_and_names_its_place(tmp_path, value) -> None:
    def make(positions):
        rows = any_bits(torch.float16, len(positions), VOCAB)
        if record._now == ("replay", 1, [2], None):
            rows[3, 17] = value
        return rows

    message = r"awq: replay, repeat 1, ref_2, position 22: a logit is NaN"
    with pytest.raises(QdxError, match=message), recorder(tmp_path / "run.nc") as record:
        fill(record, make)
    part = qdx.open(tmp_path / "run.nc.part")
    assert part.attrs["status"] == "failed" and "position 22" in part.attrs["error"]
    assert not (tmp_path / "run.nc").exists()


@pytest.mark.parametrize("skip", [("replay", 1, 2), ("prefill", 0, 0)])
def test_a_backend_that_forgets_rows_is_found_at_the_end(tmp_path, skip) -> None:
    message = rf"did not hand over {skip[0]}, repeat {skip[1]}, ref_{skip[2]}"
    with pytest.raises(QdxError, match=message), recorder(tmp_path / "run.nc", repeats=2) as record:
        fill(record, lambda positions: any_bits(torch.float16, len(positions), VOCAB), skip=skip)
        record.finish()
    assert not (tmp_path / "run.nc").exists()


def test_breaking_the_contract_is_an_error_at_once(tmp_path) -> None:
    row = torch.zeros(1, VOCAB, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="without finish"), recorder(tmp_path / "run.nc") as record:
        with pytest.raises(ValueError, match="begin"):
            record.rows(0, np.array([1]), row)
        record.begin("prefill", 0, [0])
        for positions, rows in (
            ([3], row),
            ([1], row.float()),
            ([1], row[:, :-1]),
            ([1, 1], row.expand(2, -1)),
        ):
            with pytest.raises(ValueError):
                record.rows(0, np.array(positions), rows)
        record.rows(0, np.array([1]), row)
        with pytest.raises(ValueError, match="twice"):
            record.rows(0, np.array([1]), row)
        with pytest.raises(ValueError, match="phases"):
            record.begin("warmup", 0, [0])
        with pytest.raises(ValueError, match="output tokens"):
            record.output(0, 0, [1], "")
    with pytest.raises(ValueError, match="coords"):
        recorder(tmp_path / "run.nc", coords={"format": "awq"})


def test_an_exception_of_the_backend_passes_and_is_written_down(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), recorder(tmp_path / "run.nc") as record:
        record.begin("prefill", 0, [0])
        record.rows(0, np.array([1]), torch.ones(1, VOCAB, dtype=torch.float16))
        record.sync()
        1 / 0  # noqa: B018
    part = qdx.open(tmp_path / "run.nc.part")
    assert part.attrs["status"] == "failed" and part.attrs["error"].startswith("ZeroDivisionError")
    assert int(part["prefill"]["captured"].sum()) == 1
    assert str(part["provenance"]["status"].values[0]) == "failed"


def test_a_folder_that_is_a_file_is_an_error_before_anything_runs(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QdxError, match="cannot write to"), recorder(tmp_path / "file" / "run.nc"):
        raise AssertionError("must not begin")


def test_attributes_that_netcdf_cannot_hold_are_written_as_text(tmp_path) -> None:
    odd = {
        "nothing": None,
        "yes": True,
        "many": {"b": [1, 2], "a": "ü"},
        "number": np.int64(3),
        "long": "x" * 70_000,
    }
    with recorder(tmp_path / "run.nc", repeats=1, attrs=odd) as record:
        fill(record, lambda positions: any_bits(torch.float16, len(positions), VOCAB))
        record.finish()
    attrs = qdx.open(tmp_path).attrs
    assert (attrs["nothing"], attrs["yes"], attrs["number"], attrs["long"]) == ("", 1, 3, "x" * 70_000)
    assert '"b": [1, 2]' in attrs["many"]


def test_k_over_the_vocabulary_is_cut_to_it(tmp_path) -> None:
    with recorder(tmp_path / "run.nc", repeats=1, vocab=4, k=20) as record:
        fill(record, lambda positions: any_bits(torch.float16, len(positions), 4))
        record.finish()
    assert qdx.open(tmp_path)["prefill"].sizes["rank"] == 4
    assert CaptureSettings().k == 20


FULL_DISK = """
import resource, signal, sys
# Python ignores SIGXFSZ: a write over the limit fails as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
from qdx.errors import QdxError
from tests.capture import victim
try:
    victim.main(sys.argv[1], sys.argv[2])
except QdxError as error:
    print("QdxError:", error)
    sys.exit(3)
"""


@pytest.mark.parametrize("portable", ["0", "1"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, portable) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "run.nc"), portable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr[-2000:]
    assert f"cannot write {tmp_path / 'run.nc.part'}" in done.stdout and "GB free" in done.stdout
    assert not (tmp_path / "run.nc").exists()


@pytest.mark.parametrize(
    ("portable", "syncs", "delay"),
    slow_but(
        [("0", 1, 0.01)], [("0", 0, 0.0), ("0", 1, 0.01), ("0", 7, 0.05), ("1", 3, 0.03), ("0", 40, 0.02)]
    ),
)
def test_a_killed_run_leaves_a_file_whose_synchronised_references_are_whole(
    tmp_path, portable, syncs, delay
) -> None:
    path = tmp_path / "run.nc"
    command = [sys.executable, "-m", "tests.capture.victim", str(path), portable]
    done = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "open\n"
        for _ in range(syncs):
            done.append(tuple(map(int, process.stdout.readline().split())))
        time.sleep(delay)
        process.kill()
        done += [tuple(map(int, line.split())) for line in process.stdout if len(line.split()) == 2]
    assert process.returncode == -9 and len(done) < victim.REPEATS * victim.REFERENCES
    assert not path.exists()
    tree = qdx.open(tmp_path / "run.nc.part")
    assert tree.attrs["status"] == "running"
    for phase in layout.PHASES:
        dataset = tree[phase].to_dataset()
        captured = dataset["captured"].values[0]
        for repeat, reference in done:
            positions = dataset["position"].values[captured[repeat, reference]]
            assert len(positions) == (13 if phase == "prefill" else TOKENS - 1)
            own = dataset.isel(config=0, repeat=repeat, reference=reference).sel(position=positions)
            expected = np.stack([victim.row(phase, repeat, reference, int(p)) for p in positions])
            np.testing.assert_array_equal(own["logit"].values, expected.astype(np.float32))
            hashes = row_hash(torch.from_numpy(expected)).numpy().view(np.uint64)
            np.testing.assert_array_equal(own["row_hash"].values, hashes)
    tokens = tree["output"]["token_id"].values[0]
    assert all(tokens[repeat, reference].tolist() == list(range(TOKENS)) for repeat, reference in done)


def test_a_sync_changes_values_only_and_never_the_structure_of_the_unfinished_file(tmp_path) -> None:
    """What a kill in the middle of a sync can leave half-written is then a value, not the file."""
    import h5py

    with recorder(tmp_path / "run.nc") as record:
        part = tmp_path / "run.nc.part"
        before = np.fromfile(part, np.uint8)
        fill(record, lambda positions: any_bits(torch.float16, len(positions), VOCAB))
        after = np.fromfile(part, np.uint8)
        assert len(after) == len(before)
        changed = np.flatnonzero(after != before)
        inside = np.zeros(len(changed), bool)
        with h5py.File(part, "r", locking=False) as file:
            extents = []
            file.visititems(
                lambda name, node: (
                    extents.append((node.id.get_offset(), node.id.get_storage_size()))
                    if isinstance(node, h5py.Dataset) and node.chunks is None
                    else None
                )
            )
        for start, size in extents:
            if start is not None:
                inside |= (changed >= start) & (changed < start + size)
        assert len(changed) > 1000 and inside.all()
        record.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.nc"]


def test_rows_of_an_unfinished_run_are_read_from_its_journal(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), recorder(tmp_path / "run.nc", dtype=torch.bfloat16) as record:
        record.begin("prefill", 1, [2])
        rows = any_bits(torch.bfloat16, len(record.wanted(0)), VOCAB)
        record.rows(0, record.wanted(0), rows)
        record.sync()
        tree = qdx.open(tmp_path / "run.nc.part")
        1 / 0  # noqa: B018
    for found in (tree, qdx.open(tmp_path / "run.nc.part")):
        own = found["prefill"].to_dataset().isel(config=0, repeat=1, reference=2)
        captured = own["captured"].values
        assert np.array_equal(own["logit"].values[captured], rows.float().numpy())
        assert np.isnan(own["logit"].values[~captured]).all()
        assert np.isnan(found["replay"]["logit"].values).all()


def producers(references) -> list[layout.Producer]:
    generator = np.random.default_rng(3)
    ids = generator.integers(0, VOCAB, (2, len(references), TOKENS)).astype(np.int32)
    ids[1, 0, 5:] = -1  # a shorter transcript
    of = [{**coords("awq"), "gpu": "H100"}, coords("gptq")]
    return [layout.Producer(f"p{i}", ids[i], of[i]) for i in range(2)]


def test_replays_of_transcripts_have_a_producer_and_judge_its_first_token(tmp_path) -> None:
    references = small_references()
    made = producers(references)
    given = {}
    with recorder(tmp_path / "run.nc", references=references, repeats=2, producers=made) as record:
        for repeat in range(2):
            for i in range(len(references)):
                record.begin("prefill", repeat, [i])
                given["prefill", repeat, i] = any_bits(torch.float16, len(record.wanted(0)), VOCAB)
                record.rows(0, record.wanted(0), given["prefill", repeat, i])
                for d, producer in enumerate(made):
                    record.begin("replay", repeat, [i], producer=d)
                    positions = record.wanted(0)
                    assert len(positions) == producer.length(i) - 1
                    rows = any_bits(torch.float16, len(positions) + 7 * d, VOCAB)[: len(positions)]
                    given["replay", repeat, d, i] = rows
                    targets = torch.from_numpy(producer.token_ids[i, 1 : len(positions) + 1])
                    record.rows(0, positions, rows, targets)
            record.sync()
        for bad in (None, 2):
            with pytest.raises(ValueError, match="producer"):
                record.begin("replay", 0, [0], producer=bad)
        with pytest.raises(ValueError, match="phases are prefill, replay"):
            record.begin("decode", 0, [0])
        record.finish()
    tree = qdx.open(tmp_path)
    assert set(tree.children) == {"prefill", "replay", "references", "provenance"}
    replay = tree["replay"].to_dataset()
    assert replay["logit"].dims == ("config", "repeat", "producer", "reference", "position", "vocab")
    assert replay["producer"].values.tolist() == ["p0", "p1"]
    assert replay["producer_gpu"].values.tolist() == ["H100", ""] and "producer_gpu" in replay.coords
    for (phase, repeat, *middle, i), rows in given.items():
        own = tree[phase].to_dataset().isel(config=0, repeat=repeat, reference=i)
        own = own.isel(producer=middle[0]) if middle else own
        captured = own["captured"].values
        assert np.array_equal(own["logit"].values[captured], rows.float().numpy())
        if middle:
            expected = made[middle[0]].token_ids[i, 1 : int(captured.sum()) + 1]
            assert np.array_equal(own["token_id"].values[captured], expected)
            continue
        last = rows[-1].float().numpy()
        assert int(own["token_id"].values[captured][-1]) == -1
        assert np.isnan(own["target_logit"].values[captured][-1])
        for d, producer in enumerate(made):
            token = producer.token_ids[i, 0]
            assert int(own["first_token_id"][d]) == token
            assert float(own["first_logit"][d]) == last[token]
            assert int(own["first_rank"][d]) == int((last > last[token]).sum())


def test_hidden_states_are_kept_in_place_of_logits_and_come_back_bit_equal(tmp_path) -> None:
    given = {}
    with recorder(tmp_path / "run.nc", repeats=1, mode="hidden", hidden=48) as record:
        assert record.wants_hidden
        for i in range(3):
            for phase in layout.PHASES:
                record.begin(phase, 0, [i])
                positions = record.wanted(0)
                rows = any_bits(torch.float16, len(positions), VOCAB)
                given[phase, i] = any_bits(torch.float16, len(positions), 48)
                with pytest.raises(ValueError, match="hidden states must be"):
                    record.rows(0, positions, rows)
                record.rows(0, positions, rows, None, given[phase, i])
            record.output(0, i, [0] * TOKENS, "", -1)
        record.finish()
    tree = qdx.open(tmp_path)
    for (phase, i), states in given.items():
        own = tree[phase].to_dataset().isel(config=0, repeat=0, reference=i)
        assert "logit" not in own
        assert np.array_equal(own["hidden"].values[own["captured"].values], states.float().numpy())
    with pytest.raises(QdxError, match="gives no hidden states"):
        recorder(tmp_path / "other.nc", mode="hidden")
