"""A working folder of its own, and a registry that forgets what a test put into it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from qdx.plugins import KINDS, _discovery

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes ``plugins/<name>`` in the working folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    store = ConfigStore.instance()
    before, modules = {kind: dict(store.repo.get(kind, {})) for kind in KINDS}, set(sys.modules)
    monkeypatch.setattr(_discovery, "_also", [])

    def write(name: str, text: str) -> Path:
        path = tmp_path / "plugins" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    yield write
    store.repo.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith(_discovery.PACKAGE):
            del sys.modules[name]
