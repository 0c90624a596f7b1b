"""Weights whose hash came from the cache are read again before anything is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qdx.commit import hash_weights_anew
from qdx.errors import QdxError
from qdx.experiment import CACHED, READ
from qdx.models import weights_sha256
from qdx.plugins import conf_dir


def provenance(folder: Path, how: str, digests: dict[str, str]) -> xr.Dataset:
    chosen = ["quant=none", "model=local", "backend=transformers", "label=none"]
    chosen += [f"model.checkpoint.none={folder}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=chosen)
    facts = {
        "weights_hash": how,
        "weights_sha256": json.dumps(digests),
        "config_yaml": OmegaConf.to_yaml(cfg, resolve=True),
    }
    return xr.Dataset(
        {name: ("config", np.array([value], object)) for name, value in facts.items()}, {"config": ["none"]}
    )


def test_hashes_from_the_cache_are_made_anew_before_they_are_published(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["none"], folder)
    true, false = weights_sha256(folder), {"model.safetensors": "0" * 64}
    hash_weights_anew(provenance(folder, CACHED, true))
    with pytest.raises(
        QdxError, match=r"config none: the weight files of .* have other hashes than the sweep"
    ):
        hash_weights_anew(provenance(folder, CACHED, false))
    hash_weights_anew(provenance(folder, READ, false))  # what a job has read is its own affair
    hash_weights_anew(provenance(folder, CACHED, true).drop_vars("weights_hash"))  # of an earlier version
    stated = provenance(folder, CACHED, true)
    shutil.rmtree(folder)
    with pytest.raises(QdxError, match="made anew before they are published, and its checkpoint is not here"):
        hash_weights_anew(stated)
