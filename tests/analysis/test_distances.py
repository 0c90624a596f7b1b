"""The distance engine against a plain double loop over the same files, and each of its rules by itself."""

from __future__ import annotations

import dataclasses
import math
import shutil
import weakref
from decimal import Decimal, localcontext

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from scipy import special, stats
from scipy.spatial import distance

import qdx.metrics
from qdx.dataset import merge
from qdx.distances import blocks
from qdx.distances.blocks import CHUNK, TEMPORARIES, Limits
from qdx.distances.coarse import LEAST_TAIL, coarsen, shared, with_tail
from qdx.distances.measure import compute, measure
from qdx.distances.pairs import PhaseRows
from qdx.errors import QdxError
from qdx.plugins import build, register
from tests.helpers import CONFIGS, TOKENS, VOCAB, write_run, write_sweep

LABELS = list(CONFIGS)
PHASES = ("prefill", "decode", "replay")
DIMS = ("config", "config_b", "reference", "position")
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def shipped(*names, **options):
    return {name: build({"_target_": f"qdx.metrics.{name}", **options.get(name, {})}) for name in names}


HIDDEN = ("projection", "toploc_exponent", "toploc_mantissa")
ALL = shipped(*(name for name in qdx.metrics.__all__ if name not in HIDDEN), topk_overlap={"k": 5})


def found_in(directory, metrics, **options):
    """Measure, and return a function that gives the groups."""
    groups = dict(measure(directory, directory / "sweep.nc", metrics, **options))
    return lambda metric, phase: groups[f"metrics/{metric}/{phase}"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = write_sweep(tmp_path_factory.mktemp("full"))
    merge(folder, folder / "sweep.nc")
    return folder


@pytest.fixture(scope="module")
def measured(full):
    return found_in(full, ALL)


@pytest.fixture(scope="module")
def mixed(full, tmp_path_factory):
    """awq keeps full rows, the others the greatest logits only."""
    folder = tmp_path_factory.mktemp("mixed") / "sweep"
    shutil.copytree(full, folder, ignore=shutil.ignore_patterns("sweep.nc"))
    for label in LABELS[1:]:
        write_run(folder / label / "run.nc", label, mode="topk")
    merge(folder, folder / "sweep.nc")
    return folder


# The plain loop ---------------------------------------------------------------------------------------------


class Loop:
    """Every row of every run in numpy, read by netCDF4, and scipy's distances, one pair of rows at a time."""

    def __init__(self, directory, phase):
        self.rows, self.output, self.positions = {}, {}, {}
        for label in LABELS:
            with netCDF4.Dataset(directory / label / "run.nc") as file:
                file.set_auto_mask(False)
                group = file[phase]
                self.positions[label] = group["position"][:].tolist()
                captured = group["captured"][0].astype(bool)
                logits = group["logit"][0].astype(np.float64)
                for repeat, reference, index in zip(*np.nonzero(captured), strict=True):
                    key = label, int(repeat), int(reference), self.positions[label][index]
                    self.rows[key] = logits[repeat, reference, index]
                self.output[label] = file["output"]["token_id"][0]
                self.length = file["references"]["length"][:]
        self.phase = phase

    def __call__(self, metric, a, b, reference, position):
        """Distance of two sources (label, repeat), NaN where the rules leave it out."""
        x, y = self.rows.get((*a, reference, position)), self.rows.get((*b, reference, position))
        if x is None or y is None:
            return math.nan
        if self.phase == "decode":  # it predicts output token position − length: all before must be equal
            before = position - self.length[reference]
            one, other = (self.output[label][repeat, reference, :before].tolist() for label, repeat in (a, b))
            if one != other:
                return math.nan
        return scalar(metric, x, y)


def scalar(metric, x, y):
    p, q = special.log_softmax(x), special.log_softmax(y)
    order_x, order_y = (np.lexsort((np.arange(VOCAB), -row))[:5].tolist() for row in (x, y))
    both = sorted(set(order_x) & set(order_y))
    return {
        "l2": lambda: distance.euclidean(p, q),
        "max_abs": lambda: distance.chebyshev(p, q),
        "rms_logit": lambda: np.std(x - y),
        "kl": lambda: stats.entropy(np.exp(p), np.exp(q)),
        "kl_reverse": lambda: stats.entropy(np.exp(q), np.exp(p)),
        "js": lambda: distance.jensenshannon(np.exp(p), np.exp(q)) ** 2,
        "total_variation": lambda: distance.cityblock(np.exp(p), np.exp(q)) / 2,
        "rank": lambda: float((y > y[order_x[0]]).sum()),
        "margin": lambda: y.max() - y[order_x[0]],
        "top1": lambda: float(order_x[0] != order_y[0]),
        "topk_overlap": lambda: len(both) / 5,
        "seed_l2": lambda: distance.euclidean(p[both], q[both]) if both else math.nan,
    }[metric]()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("metric", sorted(ALL))
def test_every_distance_is_that_of_a_plain_loop(full, measured, metric, phase):
    loop, found = Loop(full, phase), measured(metric, phase)
    value, repeated = found[metric].transpose(*DIMS), found["repeat_distance"]
    assert value.dtype == np.float64 and list(found.indexes["config_b"]) == LABELS
    axis = list(enumerate(found["position"].values.tolist()))
    for reference in range(3):
        for i, position in axis:
            for a, first in enumerate(LABELS):
                for b, other in enumerate(LABELS):
                    expected = loop(metric, (first, 0), (other, 0), reference, position)
                    np.testing.assert_allclose(value.values[a, b, reference, i], expected, **CLOSE)
                for name in ("0~1", "0~2", "1~2"):
                    expected = loop(metric, (first, int(name[0])), (first, int(name[2])), reference, position)
                    got = repeated.sel(repeat_pair=name).values[a, reference, i]
                    np.testing.assert_allclose(got, expected, **CLOSE)


def test_a_group_says_what_its_numbers_mean(measured):
    found = measured("topk_overlap", "replay")
    for name in ("topk_overlap", "repeat_distance"):
        attrs = found[name].attrs
        assert attrs["units"] == "1" and attrs["higher_means"] == "more alike" and attrs["on"] == "top"
        assert attrs["formula"] == "|first k of p ∩ first k of q| / k" and attrs["options"] == '{"k": 5}'
        assert attrs["long_name"].startswith("Share of common ids among the first k")
    assert set(np.unique(found["region"].values)) == {"", "output"}
    assert found["observed_kernel"].sel(config="gptq").item() == "model:exllama"


def test_the_groups_are_added_to_the_sweep_file_as_they_were_measured(full, measured, tmp_path):
    target = tmp_path / "sweep.nc"
    shutil.copy(full / "sweep.nc", target)
    compute(full, target, shipped("js", "top1"))
    for metric in ("js", "top1"):
        for phase in PHASES:
            with xr.open_dataset(target, group=f"metrics/{metric}/{phase}", engine="netcdf4") as written:
                xr.testing.assert_equal(written.load(), measured(metric, phase))
                assert written[metric].attrs == measured(metric, phase)[metric].attrs
    with pytest.raises(QdxError, match=r"metrics/js/prefill already"):
        compute(full, target, shipped("js"))


# Rules ------------------------------------------------------------------------------------------------------


def test_free_decode_is_measured_to_the_row_that_predicts_the_first_differing_token(full, measured):
    with netCDF4.Dataset(full / "sweep.nc") as file:
        token, length = file["output"]["token_id"][:, 0], file["references"]["length"][:]
    found = measured("l2", "decode")
    seen = set()
    for a in range(4):
        for b in range(4):
            for reference in range(3):
                differ = np.flatnonzero(token[a, reference] != token[b, reference])
                split = int(differ[0]) if len(differ) else TOKENS - 1
                row = found["l2"].values[a, b, reference]
                got = found["position"].values[np.isfinite(row)] - length[reference]
                # The row of index d predicts output token d; index 0 is prefill's, so that a split there
                # leaves none.
                assert got.tolist() == list(range(1, split + 1))
                seen.add("first" if not split else "last" if split == TOKENS - 1 else "between")
    assert seen == {"first", "last", "between"}


def test_unmeasured_rows_are_counted_and_not_averaged(full, measured):
    captured = xr.load_dataset(full / "sweep.nc", group="decode", engine="netcdf4")["captured"].values
    found = measured("kl", "decode")
    value = found["kl"].values
    either = sum(
        int((captured[a, 0] | captured[b, 0]).sum()) for a in range(4) for b in range(4) if a != b
    )  # a config with itself says nothing of coverage
    missing = either - sum(int(np.isfinite(value[a, b]).sum()) for a in range(4) for b in range(4) if a != b)
    attrs = found["kl"].attrs
    assert 0 < missing == attrs["not_measured"] < either
    assert attrs["coverage"] == f"{either - missing} of {either} rows measured"
    assert np.isfinite(found["kl"].sel(config="awq", config_b="gptq").mean().item())
    assert measured("kl", "replay")["kl"].attrs["not_measured"] == 0


def test_equal_hashes_give_without_arithmetic_what_arithmetic_gives(full):
    calls = []

    def counted(p, q):
        calls.append(len(p))
        return qdx.metrics.kl(p, q)

    def plain(p, q):
        return counted(p, q)

    register("metric", "counted", symmetric=False, on_self=0.0)(counted)
    register("metric", "plain", symmetric=False)(plain)
    short = found_in(full, {"counted": counted})
    after = sum(calls)
    long = found_in(full, {"plain": plain})
    assert after < sum(calls) - after  # the second computed the diagonal and the equal repeats as well
    for phase in PHASES:
        one, other = short("counted", phase), long("plain", phase)
        np.testing.assert_array_equal(one["counted"].values, other["plain"].values)
        np.testing.assert_array_equal(one["repeat_distance"].values, other["repeat_distance"].values)
    prefill = short("counted", "prefill")
    assert prefill["repeat_distance"].sum().item() == 0.0 and prefill["repeat_distance"].notnull().any()


def test_hashes_of_two_data_types_are_never_equal(full):
    phase = PhaseRows.read(full / "sweep.nc", "replay")
    assert phase.equal((0, 0), (0, 1))[phase.measurable((0, 0), (0, 1))].all()
    other = phase.coords.assign_coords(dtype=("config", ["float16", "bfloat16", "float16", "float16"]))
    same_bits = np.broadcast_to(phase.hash_CDRP[:1], phase.hash_CDRP.shape)
    altered = dataclasses.replace(phase, coords=other, hash_CDRP=same_bits)
    assert not altered.equal((0, 0), (1, 0)).any()
    assert altered.equal((0, 0), (2, 0)).all()


@pytest.mark.parametrize(
    "options",
    [{"block_positions": 1}, {"block_positions": 3}, {"block_positions": 999}, {"memory_mib": 0}],
    ids=["1", "3", "all", "no memory"],
)
def test_the_size_of_a_block_changes_no_bit(full, measured, options):
    again = found_in(full, shipped("kl", "rms_logit"), **options)
    for name in ("kl", "rms_logit"):
        for phase in PHASES:
            for variable in (name, "repeat_distance"):
                np.testing.assert_array_equal(
                    again(name, phase)[variable].values, measured(name, phase)[variable].values
                )


@pytest.mark.parametrize("memory_mib", [64, 512, 4096])
@pytest.mark.parametrize("configs", [2, 4, 16])
def test_a_gpus_block_fills_the_memory_and_not_more(memory_mib, configs):
    limits = Limits(None, memory_mib * 2**20, torch.device("cuda"))
    width, kinds = 151936, 3
    rows = limits.block(configs, width, kinds)
    calls = 8 * TEMPORARIES * max(width, limits.call_elements)
    taken = calls + rows * configs * width * (4 + 8 * kinds)
    assert taken <= memory_mib * 2**20 or rows == 1
    if memory_mib >= 512 and configs <= 4:  # what the report takes unless told otherwise
        assert rows >= CHUNK and rows % CHUNK == 0 and limits.call_elements >= CHUNK * width


def test_the_rows_of_one_block_are_in_memory_at_a_time(full, monkeypatch):
    threads = torch.get_num_threads()
    plain, made = blocks._converted, []

    def watched(phase, reference, kinds, device, key, read):
        block = (phase.name, reference, tuple(read[0]))
        assert all(of == block for of, rows in made if rows() is not None)
        rows = plain(phase, reference, kinds, device, key, read)
        made.append((block, weakref.ref(rows)))
        return rows

    monkeypatch.setattr(blocks, "_converted", watched)
    torch.set_num_threads(1)  # of two workers one may be about to let go of what it measured
    try:
        found_in(full, shipped("l2"), block_positions=1)
    finally:
        torch.set_num_threads(threads)
    assert len({block for block, _ in made}) > 10


def test_progress_ends_at_its_total(full):
    seen = []
    found_in(full, shipped("l2"), progress=lambda done, total: seen.append((done, total)))
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(set(done)) and done[-1] == total[0] == total[-1]


def test_a_metric_sees_float64_log_probabilities(full):
    @register("metric", "look")
    def look(p, q):
        for row in (p, q):
            assert row.dtype == torch.float64 and row.shape[1] == VOCAB
            torch.testing.assert_close(row.exp().sum(-1), torch.ones(len(row), dtype=torch.float64))
        return (p - q).abs().sum(-1)

    found_in(full, {"look": look})


# A metric's mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda p, q: (p - q).abs(),
            r"'mine' returned torch\.float64 \(\d+, 300\).*return torch\.float64 \(\d+,\)",
        ),
        (lambda p, q: (p - q).abs().sum(), r"returned torch\.float64 \(\)"),
        (lambda p, q: (p - q).abs().sum(-1).float(), r"returned torch\.float32"),
        (lambda p, q: (p - q).abs().sum(-1).to("meta"), r"on meta for"),
        (lambda p, q: (p - q).abs().sum(-1).tolist(), r"returned a list"),
        (lambda p, q: (p - q).sum(-1) * math.nan, r"metric 'mine' returned NaN for rows without one"),
    ],
    ids=["not reduced", "mean over positions", "float32", "device", "list", "nan"],
)
def test_a_metric_that_breaks_its_contract_is_named(full, wrong, message):
    register("metric", "mine")(wrong)
    with pytest.raises(QdxError, match=message):
        found_in(full, {"mine": wrong})


def test_a_metric_that_raises_is_noted_once_where_notes_are_asked_for(full):
    groups = []

    @register("metric", "late")
    def late(p, q):
        if "metrics/late/prefill" in groups:
            raise ZeroDivisionError("too late")
        return (p - q).abs().sum(-1)

    broken = {}
    metrics = {"late": late, **shipped("l2")}
    for group, _ in measure(full, full / "sweep.nc", metrics, broken=broken):
        groups.append(group)
    assert list(broken) == ["late"] and "raised ZeroDivisionError: too late" in broken["late"]
    assert [g for g in groups if "l2" in g] == [f"metrics/l2/{phase}" for phase in PHASES]
    assert [g for g in groups if "late" in g] == ["metrics/late/prefill"]  # what it had been through stays


def test_a_metric_on_hidden_states_that_were_not_kept_is_refused_before_any_row(full):
    @register("metric", "mine", on="hidden")
    def mine(p, q):
        raise AssertionError("was called")

    with pytest.raises(QdxError, match=r"'mine' compares hidden states, which none of awq, .*=hidden"):
        found_in(full, {"mine": mine})
    broken = {}
    groups = [g for g, _ in measure(full, full / "sweep.nc", {"mine": mine, **shipped("l2")}, broken=broken)]
    assert list(broken) == ["mine"] and groups == [f"metrics/l2/{phase}" for phase in PHASES]


@pytest.mark.parametrize("phase", PHASES)
def test_a_metric_is_given_the_target_of_its_first_config_and_the_position(full, phase):
    @register("metric", "gap", needs=("target", "position"), symmetric=True)
    def gap(p, q, target, *, position, sign: int = 1):
        assert target.dtype == position.dtype == torch.int64 and target.shape == position.shape == p.shape[:1]
        return sign * (p - q).gather(-1, target[:, None])[:, 0].abs() + 1000.0 * position

    found = found_in(full, {"gap": gap})("gap", phase)
    data = xr.load_dataset(full / "sweep.nc", group=phase, engine="netcdf4")
    token, loop, differing = data["token_id"].values, Loop(full, phase), 0
    for a, b, reference, i in np.ndindex(found["gap"].shape):
        position = int(found["position"][i])
        expected = loop("l2", (LABELS[a], 0), (LABELS[b], 0), reference, position)
        if math.isfinite(expected):
            one, other = (special.log_softmax(loop.rows[LABELS[c], 0, reference, position]) for c in (a, b))
            target = token[a, 0, reference, i]
            differing += bool(target != token[b, 0, reference, i])
            expected = abs(one[target] - other[target]) + 1000.0 * position
        np.testing.assert_allclose(found["gap"].values[a, b, reference, i], expected, **CLOSE)
    assert (differing > 0) == (phase != "replay")  # prefill's and decode's last rows choose their own token


def test_target_and_position_come_with_the_greatest_logits_and_target_never_with_coarse_rows(mixed):
    @register("metric", "listed", on="top", needs=("target",))
    def listed(p, q, *, p_id, q_id, target):
        return ((p_id == target[:, None]).any(-1) ^ (q_id == target[:, None]).any(-1)).double()

    @register("metric", "column", needs=("target",))
    def column(p, q, *, target):
        return (p - q).gather(-1, target[:, None])[:, 0].abs()

    found = found_in(mixed, {"listed": listed, "column": column})
    data = xr.load_dataset(mixed / "sweep.nc", group="replay", engine="netcdf4")
    has = (data["top_id"] == data["token_id"]).any("rank").values[:, 0]
    captured = data["captured"].values[0, 0]
    expected = np.where(captured, has[:, None] != has[None], np.nan)
    np.testing.assert_array_equal(found("listed", "replay")["listed"].values, expected)
    finite = np.isfinite(found("column", "replay")["column"].values)
    assert finite[0, 0].any() and not finite[0, 1:].any() and not finite[1:].any()


def test_every_row_is_read_once_whatever_is_measured(full, monkeypatch):
    from qdx.dataset import RunReader

    read = []
    original = RunReader.marked_rows

    def counted(self, phase, repeat, reference, indices, **options):
        read.extend((self.label, phase, repeat, reference, int(i)) for i in indices)
        return original(self, phase, repeat, reference, indices, **options)

    monkeypatch.setattr(RunReader, "marked_rows", counted)
    found_in(full, shipped("l2", "kl", "js", "rms_logit", "total_variation"), block_positions=2)
    assert len(read) == len(set(read)) > 0


def test_infinite_distances_become_nan_and_are_counted(full):
    @register("metric", "endless", on_self=0.0)
    def endless(p, q):
        return torch.where(p[:, 0] > q[:, 0], math.inf, 1.0).to(torch.float64)

    found = found_in(full, {"endless": endless})("endless", "replay")
    attrs = found["endless"].attrs
    off = ~np.eye(4, dtype=bool)
    assert not np.isinf(found["endless"].values).any()
    captured = xr.load_dataset(full / "sweep.nc", group="replay", engine="netcdf4")["captured"].values[0, 0]
    missing = int((np.isnan(found["endless"].values[off]) & captured).sum())
    assert 0 < missing == attrs["infinite"] == attrs["not_measured"]


# Rows of which only the greatest logits were kept -----------------------------------------------------------


def test_coarsened_divergences_are_lower_bounds_and_say_how_many_ids_were_shared(mixed, measured):
    names = [name for name in ALL if name != "seed_l2"]
    coarse = found_in(mixed, {name: ALL[name] for name in names})
    for phase in ("prefill", "replay"):
        shared_ids = coarse("kl", phase)["shared_ids"].transpose(*DIMS).values
        ids = xr.load_dataset(mixed / "sweep.nc", group=phase, engine="netcdf4")
        captured = ids["captured"].transpose("config", "repeat", "reference", "position").values[:, 0]
        top = ids["top_id"].transpose("config", "repeat", "reference", "position", "rank").values[:, 0]
        for a, b, r, i in np.ndindex(shared_ids.shape):
            expected = len(set(top[a, r, i]) & set(top[b, r, i])) if captured[a, r, i] and a + b else -1
            assert shared_ids[a, b, r, i] == expected  # awq with itself (0, 0) was compared on full rows
        for name in names:
            got, true = (f(name, phase)[name].transpose(*DIMS).values for f in (coarse, measured))
            attrs = coarse(name, phase)[name].attrs
            near, unequal = true[shared_ids > 0], ~np.eye(4, dtype=bool)[..., None, None] & (shared_ids > 0)
            if name in ("rank", "margin"):  # they ask for a token that the other row need not list
                assert np.isnan(got[unequal]).all() and (np.diagonal(got)[captured[0]] == 0).all()
                assert attrs["coarse_rows"] == 0
            elif name in ("top1", "topk_overlap"):
                np.testing.assert_array_equal(got, true)
                assert attrs["coarse_rows"] == 0
            else:
                assert attrs["coarse_rows"] == unequal.sum() and np.isnan(got[shared_ids == 0]).all()
                assert np.isfinite(got[shared_ids > 0]).all()
                if name not in ("l2", "rms_logit"):
                    assert (got[shared_ids > 0] <= near * (1 + 1e-9) + 1e-12).all()
                    assert got[unequal].mean() > 0


def test_coarsened_rows_are_the_shared_ids_and_exactly_one_rest():
    p = torch.log_softmax(torch.tensor([[3.0, 1.0, 0.5, 0.0, -1.0]], dtype=torch.float64), -1)
    q = torch.log_softmax(torch.tensor([[1.0, 3.0, -2.0, 0.0, 0.7]], dtype=torch.float64), -1)
    (p_top, p_id), (q_top, q_id) = p.topk(3), q.topk(3)  # ids 0, 1, 2 and 1, 0, 4
    groups = list(coarsen(p_top, q_top, shared(p_id, q_id)))
    assert len(groups) == 1
    index, p_rows, q_rows = groups[0]
    assert index.tolist() == [0]
    for rows, true in ((p_rows, p), (q_rows, q)):
        torch.testing.assert_close(rows.exp(), torch.tensor([[*true[0, :2].exp(), true[0, 2:].exp().sum()]]))


def test_rows_are_grouped_by_what_they_share_and_those_that_share_nothing_are_left_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 60, 12, dtype=torch.float64, generator=generator)
    p, q = (torch.log_softmax(rows, -1).topk(4) for rows in logits)
    seen = torch.zeros(60, dtype=torch.int64)
    for index, p_rows, q_rows in coarsen(p[0], q[0], shared(p[1], q[1])):
        for i, x, y in zip(index.tolist(), p_rows, q_rows, strict=True):
            both = [v for v in p[1][i].tolist() if v in q[1][i].tolist()]
            assert x[:-1].tolist() == [p[0][i, p[1][i].tolist().index(v)].item() for v in both]
            assert y[:-1].tolist() == [q[0][i, q[1][i].tolist().index(v)].item() for v in both]
            seen[i] = len(both)
        torch.testing.assert_close(p_rows.exp().sum(-1), torch.ones(len(index), dtype=torch.float64))
    count = torch.tensor([len(set(a.tolist()) & set(b.tolist())) for a, b in zip(p[1], q[1], strict=True)])
    assert torch.equal(seen, count) and (count == 0).any() and len(count.unique()) > 3


def test_an_id_of_minus_one_is_shared_with_nothing():
    assert shared(torch.tensor([[4, -1, -1]]), torch.tensor([[-1, 4, -1]])).tolist() == [[1, -1, -1]]


@pytest.mark.parametrize("rest", [0.9, 0.5, 1e-3, 1e-8])
def test_the_rest_keeps_its_digits(rest):
    kept = (
        torch.log1p(torch.tensor([[-rest]], dtype=torch.float64)) + torch.tensor([0.25, 0.75]).double().log()
    )
    with localcontext() as context:
        context.prec = 50
        exact = float((1 - sum(Decimal(x).exp() for x in kept[0].tolist())).ln())
    assert with_tail(kept)[0, 2].item() == pytest.approx(exact, rel=4e-16 / rest)


def test_a_rest_that_rounding_ate_is_a_small_one_and_never_nan():
    kept = torch.tensor([[0.0, -800.0], [math.log(0.5), math.log(0.5) + 1e-15]], dtype=torch.float64)
    assert with_tail(kept)[:, -1].tolist() == [math.log(LEAST_TAIL)] * 2


# Hidden states ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(full, tmp_path_factory):
    """The full sweep, with hidden states of 24 elements beside the logits of every run; rows are drawn."""
    folder = tmp_path_factory.mktemp("hidden") / "sweep"
    shutil.copytree(full, folder)
    for number, label in enumerate(LABELS):
        drawn = np.random.default_rng(number // 2)  # two and two have equal rows
        with netCDF4.Dataset(folder / label / "run.nc", "a") as file:
            file.createDimension("element", 24)
            for phase in PHASES:
                dims = (*file[phase]["captured"].dimensions, "element")
                variable = file[phase].createVariable("hidden", "f4", dims)
                shape = [len(file[phase].dimensions.get(d) or file.dimensions[d]) for d in dims]
                variable[:] = drawn.normal(size=shape).astype(np.float32)
    return folder


def test_a_metric_on_hidden_states_gets_the_rows_of_both_configs(kept):
    @register("metric", "apart", on="hidden", on_self=0.0)
    def apart(p, q):
        assert p.dtype == torch.float64 and p.shape[1] == 24
        return (p - q).square().sum(-1)

    found = found_in(kept, {"apart": apart, **shipped("l2")})
    for phase in ("prefill", "replay"):
        rows, captured = [], None
        for label in LABELS:
            with netCDF4.Dataset(kept / label / "run.nc") as file:
                rows.append(file[phase]["hidden"][0].filled(np.nan).astype(np.float64))
                captured = file[phase]["captured"][0].astype(bool)
        value, between = found("apart", phase)["apart"].values, found("apart", phase)["repeat_distance"]
        for a, b in np.ndindex(4, 4):
            expected = np.where(captured[0], ((rows[a][0] - rows[b][0]) ** 2).sum(-1), np.nan)
            np.testing.assert_allclose(value[a, b], expected, **CLOSE)
        # Their logits have equal hashes, their hidden states differ: no hash speaks for them.
        expected = np.where(captured[0], ((rows[0][0] - rows[0][1]) ** 2).sum(-1), np.nan)
        np.testing.assert_allclose(between.values[0, 0], expected, **CLOSE)
        assert (found("l2", phase)["repeat_distance"].values[0, 0][captured[0]] == 0).all()


def test_a_block_of_hidden_states_is_as_large_as_they_are(kept, monkeypatch):
    asked = []
    plain = Limits.block

    def watched(self, sources, width, kinds):
        asked.append(width)
        return plain(self, sources, width, kinds)

    monkeypatch.setattr(Limits, "block", watched)
    found_in(kept, shipped("projection"))
    assert set(asked) == {24}
    asked.clear()
    found_in(kept, shipped("l2", "projection"))
    assert set(asked) == {VOCAB}


def test_hidden_states_of_two_lengths_are_refused(kept, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(kept, folder)
    with netCDF4.Dataset(folder / "awq" / "run.nc", "a") as file:
        for phase in PHASES:
            file[phase].renameVariable("hidden", "before")
        file.createDimension("wide", 25)
        for phase in PHASES:
            dims = (*file[phase]["captured"].dimensions, "wide")
            file[phase].createVariable("hidden", "f4", dims)[:] = 1.0
    with pytest.raises(QdxError, match="hidden states of 25 and 24 elements cannot be compared"):
        found_in(folder, shipped("projection"))
