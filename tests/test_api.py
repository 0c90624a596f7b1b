"""The public API: what it imports, `run`, `compose`, and the accessor against what the report measured."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from scipy.special import log_softmax

import qdx
from qdx import arrays
from qdx.accessor import DatasetAccessor, TreeAccessor
from qdx.dataset import merge
from qdx.distances.measure import compute, measure
from qdx.errors import QdxError
from qdx.metrics import l2, total_variation
from qdx.plugins import build
from tests.helpers import write_sweep
from tests.plugins.test_contract import BAD
from tests.sweeping import SMALL, checkpoints
from tests.sweeping import qdx as command

NODES = {name: {"_target_": f"qdx.metrics.{name}"} for name in ("l2", "kl", "top1", "rms_logit")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged sweep of two configs, one of which does not repeat."""
    directory = write_sweep(tmp_path_factory.mktemp("api") / "sweep", ["awq", "gptq"])
    merge(directory, directory / "sweep.nc")
    compute(directory, directory / "sweep.nc", {name: build(node) for name, node in NODES.items()})
    return directory


@pytest.fixture
def tree(folder: Path) -> xr.DataTree:
    return qdx.open(folder)


@pytest.fixture
def replay(tree: xr.DataTree) -> xr.Dataset:
    return tree["replay"].to_dataset()


def test_importing_qdx_imports_nothing_heavy() -> None:
    heavy = "('torch', 'xarray', 'numpy', 'hydra')"
    code = f"import sys, qdx; qdx.register; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_plug_in_needs_no_import_but_qdx() -> None:
    code = (
        "import qdx; print(qdx.analysis.Section.__name__, qdx.prompts.Inline.__name__, qdx.backends.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Section Inline qdx.backends\n"


def test_the_public_api_is_five_functions_that_help_explains() -> None:
    assert qdx.__all__ == ["compose", "expand", "open", "register", "run"]
    for name in qdx.__all__:
        text = getattr(qdx, name).__doc__
        assert all(part in text for part in ("Parameters", "Returns", "Raises", "Examples")), name


@pytest.mark.parametrize("accessor", [DatasetAccessor, TreeAccessor])
@pytest.mark.parametrize("name", ["logprob", "margin", "pairs", "noise_floor", "against"])
def test_help_of_an_accessor_states_its_parameters_and_no_others(accessor: type, name: str) -> None:
    method = getattr(accessor, name)
    text = inspect.getdoc(method) or ""
    parameters = re.search(r"^Parameters\n-+\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    documented = re.findall(r"^(\**\w+)", parameters[1], re.MULTILINE) if parameters else []
    taken = [f"**{p.name}" if p.kind is p.VAR_KEYWORD else p.name for p in _parameters(method)]
    assert documented == taken
    assert "\nReturns\n-------\nxarray.DataArray\n    float64 (config, " in text


def _parameters(method: Callable[..., object]) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())[1:]


@pytest.mark.parametrize("phase", ["prefill", "replay"])
@pytest.mark.parametrize("metric", list(NODES))
def test_computed_distances_are_the_stored_ones(tree: xr.DataTree, phase: str, metric: str) -> None:
    data = tree[phase].to_dataset()
    for computed, stored in (
        (data.qdx.pairs(metric), tree.qdx.pairs(metric, phase)),
        (data.qdx.noise_floor(metric), tree.qdx.noise_floor(metric, phase)),
        (data.qdx.against("awq", metric), tree.qdx.against("awq", metric, phase)),
    ):
        assert computed.dims == stored.dims
        assert computed.attrs["units"] == stored.attrs["units"]
        np.testing.assert_allclose(computed.values, stored.values, rtol=1e-9, atol=1e-12)
        assert np.isfinite(computed.values).any()


def test_log_probabilities_and_margins_follow_their_definitions(replay: xr.Dataset) -> None:
    rows = replay["logit"].values.astype(np.float64)
    captured = replay["captured"].values
    expected = log_softmax(rows, -1)[captured]
    np.testing.assert_allclose(replay.qdx.logprob("vocab").values[captured], expected, rtol=1e-9)
    token = replay["token_id"].values[captured]
    target = expected[np.arange(len(token)), token]
    np.testing.assert_allclose(replay.qdx.logprob().values[captured], target, rtol=1e-9)
    np.testing.assert_allclose(
        replay.qdx.logprob("top").isel(rank=0).values[captured], expected.max(-1), rtol=1e-9
    )
    np.testing.assert_allclose(
        replay.qdx.margin().values[captured], expected.max(-1) - target, rtol=1e-6, atol=1e-6
    )


def test_everything_is_lazy_on_dask_chunks(replay: xr.Dataset) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed while the result was only described")

    chunked = replay.chunk({"position": 2})
    with dask.config.set(scheduler=refuse):
        lazy = [
            chunked.qdx.logprob(),
            chunked.qdx.logprob("vocab"),
            chunked.qdx.margin(),
            chunked.qdx.pairs("l2"),
            chunked.qdx.pairs("top1"),
            chunked.qdx.noise_floor(),
            chunked.qdx.against("gptq"),
        ]
    assert all(result.chunks is not None for result in lazy)
    np.testing.assert_allclose(lazy[3].compute(), replay.qdx.pairs("l2").compute(), rtol=1e-12)


def test_a_metric_may_be_a_plug_in_with_options_or_a_function(replay: xr.Dataset) -> None:
    twice = replay.qdx.pairs("half_l1", scale=2.0)
    np.testing.assert_allclose(twice, 2 * replay.qdx.pairs(total_variation), rtol=1e-9, atol=1e-12)
    assert replay.qdx.pairs(l2).equals(replay.qdx.pairs("l2"))


@pytest.mark.parametrize("chunks", [None, {"position": 2}])
@pytest.mark.parametrize("case", BAD)
@pytest.mark.slow
def test_a_metric_is_held_to_its_contract_as_in_a_sweep(
    replay: xr.Dataset, case: str, chunks: dict[str, int] | None
) -> None:
    function, message = BAD[case]
    member = qdx.register("metric", "bad")(lambda p, q: function(p, q))
    data = replay if chunks is None else replay.chunk(chunks)
    message = message.replace(r"\(2, 50\)", r"\(\d+, \d+\)").replace(r"\(2,\)", r"\(\d+,\)")
    for ask in (data.qdx.pairs, data.qdx.noise_floor, partial(data.qdx.against, "awq")):
        with pytest.raises(QdxError, match=f"metric 'bad' {message}"):
            ask(member).compute()


def test_a_metric_sees_only_rows_that_both_have(replay: xr.Dataset) -> None:
    @qdx.register("metric", "seen", on="logit")
    def seen(p, q):  # type: ignore[no-untyped-def]
        assert not (p.isnan().any() or q.isnan().any())
        return (p - q).abs().sum(-1)

    some = replay.load()
    number = xr.DataArray(np.arange(some.sizes["position"]), dims="position")
    some["captured"] &= number > 0
    some["logit"] = some["logit"].where((some["config"] == "gptq") | (number > 1))
    value = some.qdx.pairs(seen)
    there = np.isfinite(value).any(["reference"]).values
    assert not there[..., 0].any() and there[..., 2].all()
    assert there[..., 1].tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda tree, data: data.qdx.against("awqq"),
            "no config is labelled 'awqq', only awq.*did you mean 'awq'",
        ),
        (lambda tree, data: data.qdx.pairs("l3"), "unknown metric 'l3', one of .*did you mean 'l2'"),
        (lambda tree, data: data.qdx.logprob("vocabulary"), "did you mean 'vocab'"),
        (
            lambda tree, data: tree["decode"].to_dataset().qdx.pairs(),
            "compared up to the first differing token",
        ),
        (
            lambda tree, data: tree["references"].to_dataset().qdx.margin(),
            "has no variable 'top_logit': take a phase",
        ),
        (lambda tree, data: tree.qdx.pairs("js"), "'js' was not measured, only .*metric=.…., or compute it"),
        (lambda tree, data: tree.qdx.pairs("l2", "reply"), "no phase 'reply' here.*did you mean 'replay'"),
    ],
)
def test_a_wrong_question_is_answered_with_the_choices(tree, replay, ask, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(QdxError, match=message):
        ask(tree, replay)


def test_without_full_rows_the_stored_distances_are_offered(folder: Path) -> None:
    tree = qdx.open(folder / "sweep.nc")
    with pytest.raises(QdxError, match=r"no full rows here.*folder"):
        arrays.pairs(tree["replay"].to_dataset())
    assert tree.qdx.pairs("l2").sizes["config"] == 2


def test_compose_gives_a_checked_config_a_job() -> None:
    jobs = qdx.compose(["quant=awq,gptq", "batch_size=1,2"])
    assert [cfg.label for cfg in jobs] == [f"{q},batch_size={b}" for q in ("awq", "gptq") for b in (1, 2)]
    assert jobs[2].quant.kernel == "exllama" and "hydra" not in jobs[0]
    for overrides, message in (
        (["quant=awk"], "quant=awk: unknown quant, one of .*did you mean 'awq'"),
        (["repeats=0"], "repeats=0: must be at least 1"),
        (["quant"], "is not an override"),
        ("quant=awq", "give a list of strings"),
    ):
        with pytest.raises(QdxError, match=message):
            qdx.compose(overrides)


PLUGIN = """
import qdx
@qdx.register("metric", "tripled", on_self=0.0)
def tripled(p, q, times: int = 3):
    return times * (p.exp() - q.exp()).abs().sum(-1) / 2
"""


@pytest.mark.slow
def test_run_shows_its_progress_and_returns_the_tree_with_a_plug_in_measured(
    tmp_path: Path,
    tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "own"
    (own / "plugins").mkdir(parents=True)
    (own / "plugins" / "tripled.py").write_text(PLUGIN)
    monkeypatch.chdir(own)
    chosen = ["quant=awq,gptq", "metric=[total_variation,tripled,half_l1]", "metric.half_l1.scale=2"]
    chosen += ["analysis=[ties]", "prompts=arithmetic", *(s for s in SMALL if "snippet" not in s)]
    tree = qdx.run([*chosen, *checkpoints(tiny_models)], directory="out")
    assert "gptq: complete" in capsys.readouterr().out
    assert tree.attrs["directory"] == str(own / "out")
    once = tree.qdx.pairs("total_variation")
    np.testing.assert_allclose(tree.qdx.pairs("tripled"), 3 * once, rtol=1e-9)
    np.testing.assert_allclose(tree.qdx.pairs("half_l1"), 2 * once, rtol=1e-9)
    assert "What is 4 times 13?" in str(tree["references/text"].values[0])
    assert set(tree["analysis/ties"].to_dataset()) == {"share"}
    tree.close()
    # A results folder is data: from another folder its plug-ins are run only where the user names theirs.
    done = command(str(own / "out"), cwd=tmp_path, module="qdx.report")
    assert done.returncode == 2 and "'qdx_plugins.tripled.tripled'" in done.stderr, done.stderr
    trusted = ("--plugins", str(own / "plugins"))
    done = command(*trusted, str(own / "out"), cwd=tmp_path, module="qdx.report")
    assert done.returncode == 0, done.stderr


def test_a_failed_run_raises_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(QdxError, match="quant=awk: unknown quant, one of"):
        qdx.run(["quant=awk"], directory=tmp_path / "out")
    with pytest.raises(QdxError, match="directory="):
        qdx.run(["hydra.sweep.dir=out"])


def test_what_only_this_process_registered_is_refused_with_the_file_to_put_it_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = """
import qdx
@qdx.register("metric", "mine")
def mine(p, q):
    return (p - q).abs().sum(-1)
@qdx.register("metric", "unused")
def unused(p, q):
    return (p - q).abs().sum(-1)
for ask in (qdx.run, qdx.compose):
    for overrides in (["metric=[l2,mine]"], ["metric=[l2,mine]", "metric.mine.scale=2"]):
        try:
            ask(overrides)
        except qdx.errors.QdxError as error:
            print(error)
print(len(qdx.compose(["quant=awq", "metric=[l2]"])))
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True)
    said = (
        "metric 'mine' was registered in this notebook or script, which the processes of a sweep do not see: "
        "put it into plugins/mine.py of the working folder\n"
    )
    assert done.stdout == 4 * said + "1\n"
    assert not (tmp_path / "outputs").exists()


def test_a_metric_that_needs_the_target_computes_what_the_sweep_stores(
    folder: Path, tree: xr.DataTree
) -> None:
    @qdx.register("metric", "gap", needs=("target", "position"))
    def gap(p, q, *, target, position):  # type: ignore[no-untyped-def]
        return (p - q).gather(-1, target[:, None])[:, 0].abs() + position

    stored = dict(measure(folder, folder / "sweep.nc", {"gap": gap}))
    for phase in ("prefill", "replay"):
        computed = tree[phase].to_dataset().qdx.pairs(gap)
        np.testing.assert_allclose(computed, stored[f"metrics/gap/{phase}"]["gap"], rtol=1e-9, atol=1e-12)
