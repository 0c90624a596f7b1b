"""The package as others see it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qdx.prompts
from qdx.plugins import build, plugin_of


def test_importing_prompts_imports_no_torch_transformers_or_pypdf():
    heavy = "{'torch', 'transformers', 'pypdf', 'tokenizers'}"
    code = f"import sys, qdx.prompts; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("name", "member"), [("pdf", "Pdf"), ("text", "Text"), ("pydoc", "Pydoc"), ("inline", "Inline")]
)
def test_every_source_is_registered_under_its_name(name, member):
    assert plugin_of(getattr(qdx.prompts, member)).name == name
    assert plugin_of(getattr(qdx.prompts, member)).kind == "prompts"


def test_a_source_builds_from_its_config_node(tokenizer):
    source = build({"_target_": "qdx.prompts.Pydoc", "references": 2, "snippet_tokens": 64})()
    assert [reference.content_length for reference in source.load(tokenizer)] == [64, 64]
