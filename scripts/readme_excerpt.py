"""Does the README's excerpt stand in what a sweep printed? ``python scripts/readme_excerpt.py PRINTED``.

PRINTED is a file of what the sweep, or ``python -m qdx.report OUTPUTS``, printed. Prints the excerpt's lines
that are not found there, in the excerpt's order; nothing and status 0 when all are. Another processor may
round other last digits, so this is for whoever renews the excerpt, no test.
"""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
FIRST = "4 configs of 2 formats"


def missing(readme: str, report: str) -> list[str]:
    """Return the lines of the excerpt that the printed ones do not have after those before them."""
    excerpt = next(block for block in readme.split("```") if block.lstrip().startswith(FIRST))
    lines, at, lacking = report.splitlines(), 0, []
    for line in excerpt.strip().splitlines():
        if line.strip() in ("", "…"):
            continue
        try:
            at = lines.index(line.rstrip(), at) + 1
        except ValueError:
            lacking.append(line)
    return lacking


def main() -> None:
    """Print what is missing."""
    lacking = missing(README.read_text(), Path(sys.argv[1]).read_text())
    print("\n".join(lacking), end="\n" if lacking else "")
    sys.exit(bool(lacking))


if __name__ == "__main__":
    main()
