"""Labels, folders and overrides of any spelling: a usable folder, or one line before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from qdx.commands import flags_first
from qdx.errors import QdxError
from qdx.new_file import FILES
from qdx.schema import LONGEST_LABEL, Settings, label
from tests.sweeping import qdx

NAMES = st.one_of(
    st.text(max_size=300),
    st.sampled_from(
        [
            *FILES,
            "Sweep.NC",
            "challenge.json",
            ".hidden",
            "..",
            "a/b",
            "a\\b",
            "x" * 161,
            "é" * 81,
            "awq,seed=1",
        ]
    ),
)


@given(name=NAMES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_label_is_refused_in_one_line_or_names_a_new_folder(name: str, tmp_path: Path) -> None:
    try:
        Settings(label=name)
    except QdxError as error:
        assert str(error).startswith("label=") and "\n" not in str(error) and len(str(error)) < 2000
        return
    assert name.casefold() not in FILES and len(name.encode()) <= LONGEST_LABEL
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)  # the file system takes it
    (folder / "repeat_0").mkdir(exist_ok=True)
    assert folder.parent == tmp_path and folder.resolve().parent == tmp_path.resolve()


@given(values=st.lists(st.text(min_size=1, max_size=260), min_size=2, max_size=5, unique=True))
@settings(max_examples=300, deadline=None)
def test_labels_that_qdx_makes_are_usable_and_apart(values: list[str]) -> None:
    made = []
    for value in values:
        root = OmegaConf.create({"quant": {"name": "awq"}, "prompts": {"path": value.replace("$", "S")}})
        made.append(label(["quant", "prompts.path"], root))
    for one in made:
        assert len(one.encode()) <= LONGEST_LABEL and not set(one) & set("/\\:\n\t ")
    plain = {value.replace("$", "S") for value in values}
    assert len(set(made)) == len(plain)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["label=sweep.nc"], "label=sweep.nc: a file of the sweep's folder has that name"),
        (["label=RUN.nc"], "label=RUN.nc: a file of the sweep's folder has that name"),
        (["label=opened.nc"], "label=opened.nc: a file of the sweep's folder has that name"),
        (["label=Summary.json"], "label=Summary.json: a file of the sweep's folder has that name"),
        ([f"label={'x' * 300}"], "has 300 bytes, at most 160"),
    ],
)
def test_a_label_that_cannot_be_is_named_before_anything_runs(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    ended = qdx("quant=none", "model=local", "model.checkpoint.none=/no", *overrides, cwd=tmp_path)
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr


def test_own_groups_of_config_dir_are_among_the_choices(tmp_path: Path) -> None:
    (tmp_path / "mine" / "prompts").mkdir(parents=True)
    (tmp_path / "mine" / "prompts" / "treaties.yaml").write_text(
        "_target_: qdx.prompts.Text\nname: treaties\n"
    )
    ended = qdx("--config-dir", "mine", "prompts=treatys", cwd=tmp_path)
    assert ended.returncode == 2 and "did you mean 'treaties'?" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["quant=awq", "-m", "seed=1,2"], ["-m", "quant=awq", "seed=1,2"]),
        (["a=1", "--config-dir", "mine", "b=2", "-m"], ["--config-dir", "mine", "-m", "a=1", "b=2"]),
        (["a=1", "--config-dir=mine", "b=2"], ["--config-dir=mine", "a=1", "b=2"]),
        (["a=1", "--info", "plugins"], ["--info", "plugins", "a=1"]),
        (["--info", "a=1"], ["--info=all", "a=1"]),
        (["a=1", "--cfg", "job"], ["--cfg", "job", "a=1"]),
        (["a=1", "--config-dir"], ["--config-dir", "a=1"]),
        ([], []),
    ],
)
def test_flags_may_stand_between_overrides(given: list[str], ordered: list[str]) -> None:
    assert flags_first(given) == ordered
