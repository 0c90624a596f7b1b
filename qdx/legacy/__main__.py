"""``python -m qdx.legacy FILE.json OUT.nc``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qdx.errors import QdxError


def main() -> None:
    """Convert one file and print what was found; exit 2 with one line when it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m qdx.legacy", description=__doc__)
    parser.add_argument("file", type=Path, help="a result or verification file of the original experiment")
    parser.add_argument("out", type=Path, help="the NetCDF file to write; an existing one is replaced")
    options = parser.parse_args()
    from qdx.legacy.convert import convert

    try:
        print("\n".join(convert(options.file, options.out)))
    except QdxError as error:
        print(f"qdx.legacy: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
