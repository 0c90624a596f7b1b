"""Run a notebook and store what its cells print: ``python scripts/run_notebook.py examples/notebook.ipynb``.

With ``--check`` nothing is stored; it fails where a cell raises, or prints other text than the file holds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

SECONDS = 300  # that a cell may take


def executed(path: Path) -> Any:
    """Return the notebook with new outputs; its cells run in its folder, in a kernel of this interpreter.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
    return notebook


def texts(notebook: Any) -> list[list[str]]:
    """Return what each cell prints and shows as text; drawings are left out, which depend on fonts."""
    found = []
    for cell in notebook.cells:
        shown = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                shown.append(str(output.text))
            elif "image/png" not in output.get("data", {}):
                shown.append(str(output.get("data", {}).get("text/plain", "")))
        found.append(shown)
    return found


def main() -> int:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--check", action="store_true", help="store nothing; fail where the text differs")
    chosen = parser.parse_args()
    fresh = executed(chosen.notebook)
    if not chosen.check:
        nbformat.write(fresh, chosen.notebook)
        return 0
    stored = texts(nbformat.read(chosen.notebook, as_version=4))
    for number, (one, two) in enumerate(zip(stored, texts(fresh), strict=True)):
        if one != two:
            print(f"cell {number} of {chosen.notebook} prints other text than it holds", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
