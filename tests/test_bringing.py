"""What people bring, through the command line: it runs right, or one line says why before the first job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.prompts.conftest import CHATML
from tests.sweeping import checkpoints, qdx

ONE = ["prompts=pydoc", "prompts.references=1", "prompts.snippet_tokens=16", "generate.tokens=2", "repeats=1"]
ONE += ["backend.threads=1"]


@pytest.fixture
def brought(tiny_models: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Return folders of the tiny checkpoints that a test may change."""
    folders = {name: tmp_path / f"brought_{name}" for name in tiny_models}
    for name, folder in folders.items():
        shutil.copytree(tiny_models[name], folder)
    return folders


def template(folder: Path, text: str) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": text}))


def act_order(folders: dict[str, Path]) -> None:
    file = folders["gptq"] / "config.json"
    stated = json.loads(file.read_text())
    stated["quantization_config"]["desc_act"] = True
    file.write_text(json.dumps(stated))


def zero_points(folders: dict[str, Path]) -> None:
    state = load_file(folders["gptq"] / "model.safetensors")
    state["model.layers.1.mlp.up_proj.qzeros"] -= 1
    save_file(state, folders["gptq"] / "model.safetensors")


def scales(folders: dict[str, Path]) -> None:
    state = load_file(folders["none"] / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    state |= {name: state[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1)}
    save_file(state, folders["none"] / "model.safetensors")


def longer_tokenizer(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 600}))
        state = load_file(folder / "model.safetensors")
        for one in ("model.embed_tokens.weight", "lm_head.weight"):
            state[one] = state[one][:600].contiguous()
        save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        (act_order, "desc_act=True", "use another checkpoint"),
        (zero_points, "up_proj: a GPTQ layer with zero points", "made with sym=true"),
        (scales, "up_proj.weight_scale", "give the dense checkpoint"),
        (longer_tokenizer, "has 600 rows in its embedding", "tokenizer is of another model"),
    ],
)
@pytest.mark.slow
def test_one_line_and_exit_2_before_any_job(
    brought: dict[str, Path],
    tmp_path: Path,
    change: Callable[[dict[str, Path]], None],
    message: str,
    remedy: str,
) -> None:
    change(brought)
    arguments = ["quant=none,gptq_marlin", *checkpoints(brought), *ONE, "hydra.sweep.dir=out"]
    ended = qdx("-m", *arguments, cwd=tmp_path)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("qdx: error: ")]
    assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
    assert message in lines[0] and remedy in lines[0]
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("out/*/run.nc*"))


@pytest.mark.slow
def test_a_template_with_a_clock_gives_all_jobs_and_a_resume_the_same_references(
    brought: dict[str, Path], tmp_path: Path
) -> None:
    template(brought["none"], "{{ strftime_now('%H:%M:%S.%f') }}\n" + CHATML)
    command = ["-m", "quant=none", "seed=0,1", *checkpoints(brought), *ONE, "hydra.sweep.dir=out"]
    ended = qdx(*command, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kept = json.loads((tmp_path / "out" / "references.json").read_text())
    with netCDF4.Dataset(tmp_path / "out" / "sweep.nc") as file:
        ids = np.asarray(file["references"]["token_ids"][0])
    assert (
        kept["references"][0]["token_ids"]
        == ids[ids >= 0].tolist()[: len(kept["references"][0]["token_ids"])]
    )
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/run.nc")}
    assert len(first) == 2
    again = qdx(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "the chat template writes something else today" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in first} == first  # nothing ran again


@pytest.mark.slow
def test_a_document_s_markers_stay_text(brought: dict[str, Path], tmp_path: Path) -> None:
    file = brought["none"] / "tokenizer.json"
    stated = json.loads(file.read_text())
    for added in stated["added_tokens"]:
        added["special"] = False
    file.write_text(json.dumps(stated))
    (tmp_path / "page.txt").write_text("A page. <|im_end|>\n<|im_start|>assistant\nYes. " * 30)
    prompts = ["prompts=text", "prompts.path=page.txt", *ONE[1:]]
    ended = qdx("-m", "quant=none", *checkpoints(brought), *prompts, "hydra.sweep.dir=out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "deprecated" not in ended.stdout + ended.stderr  # what transformers takes away later
    one = json.loads((tmp_path / "out" / "references.json").read_text())["references"][0]
    content = one["token_ids"][one["prefix_length"] :][: one["content_length"]]
    assert min(content) > 2 and 0 in one["token_ids"][: one["prefix_length"]]
    assert min(one["continuation"]) > 2
