"""Runs the command line as a user would, in a process of its own: see `tests.warm`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import warm

# Snippets over 50 tokens: exllama's prefill repeats from there on, its decode does not.
SMALL = [
    "prompts.references=2",
    "prompts.snippet_tokens=60",
    "repeats=2",
    "generate.tokens=5",
    "backend.threads=1",
]
# What is computed and written at the end, where that is not the question: a third of a small sweep's time.
PLAIN = ["metric=[l2]", "analysis=[effects]", "report.formats=[txt]"]


def qdx(*arguments: str, cwd: Path, module: str = "qdx") -> subprocess.CompletedProcess[str]:
    """Run ``python -m qdx`` with these arguments and return how it ended."""
    return _lasting(warm.run(module, arguments, cwd, environment(), timeout=600))


def qdx_anew(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Do the same in a new interpreter, whose jobs are new interpreters too."""
    return _lasting(
        subprocess.run(
            [sys.executable, "-m", "qdx", *arguments],
            cwd=cwd,
            text=True,
            capture_output=True,
            timeout=600,
            env=environment(),
        )
    )


def _lasting(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Fail where a library says that it will take away what the command uses."""
    announced = re.findall(r".*(?:is deprecated|will be removed).*", done.stdout + done.stderr)
    assert not announced, announced
    return done


def environment() -> dict[str, str]:
    """Return this process's environment without what a test runner or a developer may have set."""
    return {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "PYTHONPATH")}


def checkpoints(paths: dict[str, Path]) -> list[str]:
    """Return overrides that choose local checkpoints."""
    return ["model=local", *(f"model.checkpoint.{name}='{path}'" for name, path in paths.items())]
