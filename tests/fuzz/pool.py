"""Runs fuzz inputs in a worker process; says ``crash`` when it dies and ``hang`` when it does not answer.

What happens inside HDF5 is told apart: no code of qdx can prevent it (see the notes of `qdx.open`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class Worker:
    """One process, started anew after a crash or a hang."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the worker
        self._process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, folder: Path, options: Any = None) -> tuple[str, str]:
        """Return what came of an input: accepted, refused, bug, crash or hang, and the message."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        request = {"kind": kind, "folder": str(folder), "options": options}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            self._errors.seek(0)
            said = self._errors.read()[-4000:].decode(errors="replace")
            self._errors.truncate(0)
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            outcome = "hang" if "Timeout (" in said else "crash"
            innermost = next((line for line in said.splitlines() if line.strip().startswith("File ")), "")
            inside = " in HDF5" if "/xarray/backends/" in innermost or "/netCDF4/" in innermost else ""
            return outcome + inside, f"{name}: {said}"
        answer = json.loads(line)
        return answer["is"], answer["said"]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                stream.close()
            self._process = None
