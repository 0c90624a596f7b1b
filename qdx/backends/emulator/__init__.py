"""A GPU's forward pass on a CPU: ``llama.py`` computes it, ``backend.py`` hands its rows to a recorder."""

from __future__ import annotations

from qdx.backends.emulator.backend import EmulatorBackend

__all__ = ["EmulatorBackend"]
