"""The verdict on files that the recorder wrote and the merge joined."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.capture.fingerprints import Sketcher, row_hash
from qdx.dataset import merge
from qdx.errors import QdxError
from qdx.verification import attribution, verify
from tests.helpers import CONFIGS, VOCAB, logits, small_references, write_sweep

REFERENCES, COMPONENTS = 20, 16
DIMS = ("producer", "config", "repeat", "reference", "position")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = write_sweep(
        tmp_path_factory.mktemp("verdict") / "s", references=small_references(REFERENCES), repeats=2
    )
    merge(folder, folder / "sweep.nc")
    with qdx.open(folder / "sweep.nc") as tree:
        yield tree.load()


@pytest.fixture(scope="module")
def replayed(sweep):
    """Every config's rows at every producer's tokens, by the model of `tests.helpers`."""
    own = sweep["decode"].to_dataset()
    labels, position = list(CONFIGS), own["position"].values
    output = sweep["output/token_id"].transpose("config", "repeat", "reference", "output_token").values[:, 0]
    lengths = sweep["references/length"].values
    noise = np.random.default_rng(99)
    shape = (len(labels), len(labels), 2, REFERENCES, len(position))
    sketch, hashes = np.full((*shape, COMPONENTS), np.nan, np.float32), np.zeros(shape, np.uint64)
    token, captured = np.full(shape, -1, np.int32), np.zeros(shape, bool)
    top, target = np.full((*shape, 1), np.nan, np.float32), np.full(shape, np.nan, np.float32)
    project = Sketcher(VOCAB, COMPONENTS)
    for at in np.ndindex(shape):
        d, c, _, r, t = at
        step = position[t] - lengths[r]  # of the output token that the row predicts
        if not 0 < step < output.shape[-1]:
            continue
        row = logits(labels[c], r, int(position[t]), int(output[d, r, step - 1]), noise)
        sketch[at], captured[at] = project(row)[0].numpy(), True
        hashes[at] = np.int64(row_hash(row)[0]).astype(np.uint64)
        token[at] = output[d, r, step]
        top[at], target[at] = float(row.max()), float(row[0, token[at]])
    data = xr.Dataset(
        {
            "captured": (DIMS, captured),
            "token_id": (DIMS, token),
            "row_hash": (DIMS, hashes),
            "sketch": ((*DIMS, "component"), sketch),
            "top_logit": ((*DIMS, "rank"), top),
            "target_logit": (DIMS, target),
        },
        {
            "producer": labels,
            **{k: v for k, v in own.coords.items() if v.dims in (("config",), ("reference",), ("position",))},
        },
    )
    groups = {k: sweep[k].to_dataset() for k in ("provenance", "references")}
    return xr.DataTree.from_dict({"replay": data, **groups})


def test_claims_of_recorded_transcripts(sweep, replayed):
    result = verify(sweep, replayed, alpha=0.2).result
    captured = sweep["decode/captured"].values[0, 0].sum()
    for c, label in enumerate(CONFIGS):
        rows = result["rows_compared"].values[c, c].sum(), result["rows_equal"].values[c, c].sum()
        assert rows == (captured, 0 if label == "gptq" else captured)
        assert (result["rows_equal"].values[c, 1 - min(c, 1)] == 0).all()
    # The verifier's prefill is not in these replays, and its repeats ran in one process.
    assert set(result["verdict"].values) == {"undecided"}
    assert "no prefill rows" in result["because"].values[0]


def test_kernels_of_recorded_transcripts_are_told_apart(sweep, replayed):
    result = attribution(sweep, replayed, alpha=0.1, draws=50).result
    for label in CONFIGS:
        assert int(result["likeliest_right"].sel(producer=label)) == REFERENCES
        assert int(result["confusion"].sel(producer=label, answer=label)) >= 15
    assert result.attrs["held_out_references"] == 0, "20 references are too few for a split"
    assert "refuted" not in result


@pytest.mark.parametrize(
    ("name", "noun"),
    [("tokenizer_sha256", "tokenizer"), ("vocab", "vocabulary size"), ("sketch_seed", "seed")],
)
def test_a_verifier_of_another_model_is_refused(sweep, replayed, name, noun):
    stored = replayed["provenance"].to_dataset()
    stored = stored.assign({name: ("config", ["7"] * stored.sizes["config"])})
    other = xr.DataTree.from_dict(
        {**{k: v.to_dataset() for k, v in replayed.children.items()}, "provenance": stored}
    )
    with pytest.raises(QdxError, match=f"{noun}.* differs: "):
        verify(sweep, other)
