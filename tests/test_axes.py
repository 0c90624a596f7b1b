"""Keys other than the format as axes: every value has its label, and what was observed is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import qdx as package
from qdx import compose
from tests.sweeping import SMALL, checkpoints, qdx

VLLM = {
    "backend.kv_cache_dtype": ("auto", "fp8"),
    "backend.attention_backend": ("FLASH_ATTN", "FLASHINFER"),
    "backend.max_num_batched_tokens": (4096, 16384),
    "backend.enforce_eager": (True, False),
    "backend.tensor_parallel_size": (1, 2),
    "model.dtype": ("float16", "bfloat16"),
    "batch_size": (1, 4),
}


@pytest.mark.parametrize("key", VLLM)
def test_every_value_of_a_vllm_key_is_a_config_of_its_own(key: str) -> None:
    values = VLLM[key]
    jobs = compose(["quant=awq_marlin", "backend=vllm", f"{key}={','.join(map(str, values))}"])
    assert [job.label for job in jobs] == [f"awq_marlin,{key}={value}" for value in values]
    group, _, name = key.rpartition(".")
    assert tuple((job[group] if group else job)[name] for job in jobs) == values


@pytest.mark.slow
def test_values_are_recorded_as_observed_and_in_the_config(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    axes = ["model.dtype=float16,bfloat16", "backend.sm_count=132,108", "repeats=1", "seed=3"]
    done = qdx(
        "-m",
        "quant=awq_marlin",
        *SMALL,
        *checkpoints(tiny_models),
        *axes,
        "hydra.sweep.dir=out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    tree = package.open(tmp_path / "out")
    coords = tree["replay"].coords
    found = dict(
        zip(
            coords["config"].values,
            zip(coords["dtype"].values, coords["sm_count"].values, strict=True),
            strict=True,
        )
    )
    expected = {
        f"awq_marlin,backend.sm_count={count},model.dtype={dtype}": (dtype, count)
        for dtype in ("float16", "bfloat16")
        for count in (132, 108)
    }
    assert found == expected
    stored = tree["provenance"].to_dataset()
    for label, (dtype, count) in expected.items():
        one = stored.sel(config=label)
        config = yaml.safe_load(str(one["config_yaml"].item()))
        assert (config["model"]["dtype"], config["backend"]["sm_count"]) == (dtype, count)
        assert str(coords["backend_threads"].sel(config=label).item()) == "1"
        assert (int(one["threads"]), int(one["seed"]), str(one["sm_count"].item())) == (1, 3, str(count))
    assert len(set(stored["config_hash"].values)) == 4
