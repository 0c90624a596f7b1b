"""``python -m qdx.legacy FILE.json OUT.nc``, and ``python -m qdx.legacy --kernels FILE.json``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qdx.errors import QdxError, printable
from qdx.program import PLAIN, run


def main() -> None:
    """Convert one file and print what was found; exit 2 with one line when it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m qdx.legacy", description=__doc__)
    parser.add_argument("file", type=Path, help="a JSON file of the original experiment")
    parser.add_argument(
        "out", type=Path, nargs="?", help="the NetCDF file to write; an existing one is replaced"
    )
    parser.add_argument(
        "--kernels", action="store_true",
        help="of a verification file: print which config likelihood and least distance name; OUT is optional",
    )  # fmt: skip
    options = parser.parse_args()
    if options.out is None and not options.kernels:
        parser.error("give OUT.nc, the file to write")
    try:
        lines = []
        if options.out is not None:
            from qdx.legacy.convert import convert

            lines += convert(options.file, options.out)
        if options.kernels:
            from qdx.legacy.kernels import kernels

            lines += kernels(options.file)
    except QdxError as error:
        _print(f"qdx.legacy: error: {error}", sys.stderr)
        sys.exit(2)
    _print("\n".join(lines), sys.stdout)


def _print(text: str, stream: object) -> None:
    """Print what may quote a stranger's file: nothing in it acts on a terminal, whatever its encoding."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, errors=PLAIN).decode(encoding), file=stream)  # type: ignore[call-overload]


if __name__ == "__main__":
    run(main, "qdx.legacy")
