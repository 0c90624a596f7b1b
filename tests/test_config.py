"""Config: every shipped file composes, mistakes are named before anything loads, help is there at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from qdx import compose as compose_sweep
from qdx.commands import quoted
from qdx.errors import QdxError
from qdx.plugins import conf_dir
from qdx.schema import CLAIMED_DTYPES, CLAIMED_QUANTS, DTYPES, Experiment, validate
from qdx.schema_gguf import FILE_TYPES
from qdx.sweep import callback
from qdx.sweep.launchers import parallel, require
from tests.sweeping import environment, qdx

GROUPS = [
    "model",
    "quant",
    "backend",
    "prompts",
    "capture",
    "metric",
    "analysis",
    "experiment",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra/callbacks",
]
OPTIONS = [(g, file.stem) for g in GROUPS for file in sorted((conf_dir() / g).glob("*.yaml"))]


ENGINE_ONLY = ("w4a16", "w8a16", "w8a8", "w4a8", "fp8", "fp8_block", "nvfp4", "mxfp4", "bitsandbytes")


def only_vllm(quant: str) -> list[str]:
    """What a format needs that no kernel model computes."""
    if quant in FILE_TYPES:
        return ["backend=llamacpp", "model=local", f"model.checkpoint.{quant}=/somewhere.gguf"]
    if quant not in ENGINE_ONLY:
        return []
    return ["backend=vllm", "model=local", f"model.checkpoint.{quant}=/somewhere"]


def composed(*overrides: str) -> Experiment:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(compose("config", overrides=list(overrides)))


def test_every_group_has_options() -> None:
    assert {g for g, _ in OPTIONS} == set(GROUPS)
    files = conf_dir().rglob("*/*.yaml")
    assert {file.parent.relative_to(conf_dir()).as_posix() for file in files} == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_yaml_composes_and_passes_the_schema(group: str, option: str) -> None:
    extra = only_vllm(option) if group == "quant" else []
    if option == "local":
        extra = ["model.checkpoint.awq=/somewhere"]
    if (group, option) == ("prompts", "text"):
        extra = ["prompts.path=/a.txt"]
    if (group, option) == ("prompts", "challenge"):
        extra = ["prompts.path=/challenge.json"]
    if (group, option) == ("prompts", "transcripts"):
        extra = ["prompts.path=/sweep.nc"]
    if (group, option) == ("backend", "openai"):
        extra = ["backend.base_url=http://127.0.0.1:1/v1", "backend.model=demo"]
    if (group, option) == ("backend", "emulator"):
        extra = ["quant=awq_marlin"]
    if (group, option) == ("backend", "llamacpp"):
        extra = ["quant=q4_1"]
    value = f"[{option}]" if group in ("metric", "analysis") else option
    experiment = composed(f"{group}={value}", *extra)
    assert experiment.label == experiment.quant.name


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "hydra/launcher"])
def test_every_launcher_is_one_that_can_be_imported(option: str) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[f"hydra/launcher={option}"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    pytest.importorskip(".".join(str(launcher._target_).split(".")[:2]))  # hydra_plugins.hydra_…_launcher
    require(launcher)
    assert parallel(launcher)


def test_quant_files_state_their_format_and_kernel() -> None:
    found = {name: composed(f"quant={name}", *only_vllm(name)).quant for g, name in OPTIONS if g == "quant"}
    assert {name: (q.format, q.kernel) for name, q in found.items()} == {
        "none": ("none", "dense"),
        "awq": ("awq", "awq_gemm"),
        "awq_marlin": ("awq", "marlin"),
        "awq_machete": ("awq", "machete"),
        "gptq": ("gptq", "exllama"),
        "gptq_marlin": ("gptq", "marlin"),
        "gptq_machete": ("gptq", "machete"),
        **{name: (name, "any") for name in (*ENGINE_ONLY, *FILE_TYPES)},
    }


def test_what_a_provider_calls_its_weights_maps_to_configs_that_exist() -> None:
    assert set(CLAIMED_DTYPES.values()) <= set(DTYPES) and set(CLAIMED_DTYPES) <= set(CLAIMED_QUANTS)
    known = {name for group, name in OPTIONS if group == "quant"}
    assert {name for quants in CLAIMED_QUANTS.values() for name in quants} <= known
    # every config that is quantized is what some provider may mean
    named = {name for quants in CLAIMED_QUANTS.values() for name in quants}
    # What nobody but llama.cpp has, 2, 3, 5 and 6 bits, is called as its files are.
    assert known - named <= {name for name in FILE_TYPES if re.match(r"i?q[2356]", name)}


@pytest.mark.parametrize("form", ENGINE_ONLY)
def test_a_format_without_a_model_of_its_kernels_names_what_runs_it(form: str) -> None:
    message = f"quant={form}: backend=transformers has no kernel for format {form}, .* use backend=vllm"
    with pytest.raises(QdxError, match=message):
        composed(f"quant={form}")
    with pytest.raises(QdxError, match=f"model.checkpoint.{form} is empty"):
        composed(f"quant={form}", "backend=vllm", "model=local")


def test_quick_and_seed_are_the_documented_sizes() -> None:
    quick, seed = composed("experiment=quick"), composed("experiment=seed")
    assert (quick.prompts.references, quick.prompts.snippet_tokens) == (4, 256)
    assert (quick.generate.tokens, quick.repeats, quick.batch_size) == (16, 3, 1)
    assert (seed.prompts.references, seed.prompts.snippet_tokens) == (4, 8000)
    assert (seed.generate.tokens, seed.repeats, seed.model.name) == (100, 3, "qwen3_8b")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=["experiment=seed"], return_hydra_config=True)
    assert cfg.hydra.sweeper.params.quant == "awq,awq_marlin,gptq_marlin,gptq"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["repeats=0"], "repeats=0: must be at least 1"),
        (["repeats=many"], "repeats=many: must be a whole number"),
        (["batch_size=-1"], "batch_size=-1"),
        (["generate.tokens=1"], "generate.tokens=1: must be at least 2"),
        (["repeat_scope=engin"], "repeat_scope=engin: not one of engine, process (did you mean 'engine'?)"),
        (["capture.prefill_positions=most"], "must be a number from 0, or all"),
        (["capture.mode=half"], "capture.mode=half: not one of full, topk"),
        (["prompts.references=0"], "prompts.references=0: must be at least 1"),
        (["prompts.references=four"], "prompts.references=four: must be a whole number"),
        (
            ["quant.kernel=marlyn"],
            "quant.kernel=marlyn: not one of awq_gemm, marlin, machete, any (did you mean 'marlin'?)",
        ),
        (
            ["quant.format=gguf"],
            "quant.format=gguf: not one of none, awq, gptq, w4a16, w8a16, w8a8, w4a8, fp8, fp8_block, nvfp4",
        ),
        (["model=local"], "model.checkpoint.awq is empty and quant=awq needs it"),
        (["model.dtype=float8"], "model.dtype=float8: not one of float16, bfloat16, float32"),
        (["+prompts.snippet=3"], "prompts.snippet: unknown key"),
        (["+sed=3"], "sed: unknown key"),
        (["backend.threads=0"], "backend.threads=0: must be at least 1"),
        (["prompts=text"], "prompts.path is not set and has no default: add prompts.path=…"),
    ],
)
def test_impossible_values_name_the_key_the_value_and_the_choices(overrides: list[str], message: str) -> None:
    with pytest.raises(QdxError) as caught:
        composed(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quant=awq_marlen"], "quant=awq_marlen: unknown quant"),
        (["quant=awq,awqq"], "(did you mean 'awq'?)"),
        (["prompts.refs=3"], "prompts.refs: unknown key"),
        (["promts=pdf"], "(did you mean 'prompts'?)"),
        (["metric=[l2,kll]"], "metric=kll: unknown metric"),
        (["metric=[topk_overlap]", "metric.topk_overlap.kk=3"], "metric.topk_overlap.kk: unknown key"),
        (
            ["metric=[topk_overlap]", "metric.topk_overlap.k=many"],
            "metric.topk_overlap.k=many: must be an int",
        ),
        (["quant"], "is not an override: write key=value"),
        (["repeats=2,0"], "repeats=0: must be at least 1"),
        (["prompts.path=/no/such.pdf"], "/no/such.pdf"),
    ],
)
@pytest.mark.slow
def test_a_mistake_on_the_command_line_is_one_line_and_nothing_runs(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = qdx("-m", *arguments, "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("qdx: error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("run.nc*"))


@pytest.mark.parametrize("argument", ["--help", "--cfg=job"])
def test_help_and_config_import_no_torch(argument: str) -> None:
    option = argument.split("=")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "qdx", *option],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "vllm", "transformers", "xarray", "netCDF4"}
    assert "awq_marlin" in done.stdout or "kernel: awq_gemm" in done.stdout


@pytest.mark.parametrize("value", ["plain/path-1.0", "with space", "it's", "a,b", "ö=1", "back\\slash"])
def test_quoted_values_come_back_from_hydras_grammar(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"key={quoted(value)}")
    assert override.value() == value


def test_the_dtypes_of_the_kernels_are_the_models_own() -> None:
    from qdx.kernels import KERNELS
    from qdx.schema import DTYPES, KERNEL_DTYPES

    for name, kernel in KERNELS.items():
        own = {str(dtype).removeprefix("torch.") for dtype in kernel.dtypes}
        assert own == set(KERNEL_DTYPES.get(name, DTYPES)), name


def test_labels_are_unique_and_fit_a_file_name() -> None:
    experiment = composed("swept=[quant,batch_size,model]", "batch_size=4", "quant=gptq")
    assert experiment.label == "gptq,batch_size=4,model=smollm2"
    experiment = composed("swept=[prompts.path]", "prompts.path=/tmp/a b.pdf")
    assert re.fullmatch(r"awq,prompts\.path=_tmp_a_b\.pdf-[0-9a-f]{6}", experiment.label)


def test_an_interpolation_in_an_override_is_each_jobs_own() -> None:
    jobs = compose_sweep(["quant=awq,gptq", "label='${quant.name}-b'"])
    assert [cfg.label for cfg in jobs] == ["awq-b", "gptq-b"]


def test_two_paths_that_differ_in_a_separator_have_two_labels() -> None:
    found = {
        composed("swept=[prompts.path]", f"prompts.path='{path}'").label for path in ("a/b", "a b", "a_b")
    }
    assert len(found) == 3 and "awq,prompts.path=a_b" in found


@pytest.mark.parametrize("overrides", [[], ["repeats=2"]])
def test_what_runs_is_said_when_nothing_is_configured(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callback, "spawn", lambda request: {"error": "no preparation here"})
    with initialize_config_dir(str(conf_dir()), job_name="qdx", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("config", overrides, RunMode.MULTIRUN, with_log_configuration=False)
        with pytest.raises(SystemExit):
            callback.start(config)
    said = capsys.readouterr().out
    line = (
        "nothing configured: config awq, model=smollm2, repeats=3, generate.tokens=16; "
        "four configs: python -m qdx -m quant=awq,awq_marlin,gptq,gptq_marlin\n"
    )
    assert (line in said) == (not overrides)


def test_a_configs_hash_material_is_plain_yaml() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config")
    assert OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)) == OmegaConf.create(
        OmegaConf.to_container(cfg, resolve=True)
    )


def test_a_server_is_not_asked_for_transcripts_that_are_there() -> None:
    server = ["backend=openai", "backend.base_url=http://127.0.0.1:1/v1", "backend.model=demo"]
    with pytest.raises(QdxError, match="asks for new answers"):
        composed(*server, "prompts=transcripts", "prompts.path=/sweep.nc")
