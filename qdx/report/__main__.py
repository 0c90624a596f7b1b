"""``python -m qdx.report DIR``: redo merge, distances, analyses and report of a sweep folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qdx import plugins
from qdx.dataset.guarding import NAMES, Limits, allow
from qdx.errors import QdxError
from qdx.new_file import refuse_links
from qdx.program import of_disk, run
from qdx.report import build, imported
from qdx.report.build import show
from qdx.verification.sections import adopt_calibration


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Returns
    -------
    int
        0: everything is there. 1: a job failed or is missing, or a metric, an analysis or a page raised; the
        report names it.
        2: no report. 3: a claim is refuted, or is another config's. 4: a claim is undecided, or its record is
        not what was demanded.
    """
    parser = argparse.ArgumentParser(prog="python -m qdx.report", description=__doc__)
    parser.add_argument(
        "directory", metavar="DIR", help="a sweep folder, with <label>/run.nc; or a file of qdx.legacy"
    )
    parser.add_argument(
        "--formats", metavar="LIST", help="txt,html,md: files to write (default: as the sweep was asked for)"
    )
    parser.add_argument(
        "--figures", metavar="LIST", help="names of figures to save as DIR/figures/<name>.svg, or all"
    )
    parser.add_argument(
        "--print",
        metavar="WHAT",
        help="what to print: answer (one screen) or full, all of report.txt (default: as the sweep was asked "
        "for)",
    )
    parser.add_argument(
        "--plugins", metavar="FOLDER", action="append", default=[],
        help="a folder of plug-in files that the sweep was measured with; they are run: name it only if you "
        "trust them (plugins/ of the working folder is looked in too, unless that folder holds results)",
    )  # fmt: skip
    parser.add_argument("--no-plugins", action="store_true", help="leave plugins/ of the working folder out")
    for name in NAMES:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="N",
            type=int,
            help=f"what a file may claim before it is read, where that is more than {getattr(Limits, name)} "
            f"(as prompts.{name})",
        )
    parser.add_argument(
        "--calibration",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="of a verifier's sweep: an earlier one, of transcripts whose configs are known; it is copied "
        "(more than once: sets of other kernels, settings and cards)",
    )
    chosen = parser.parse_args(arguments)
    formats = chosen.formats.split(",") if chosen.formats is not None else None
    figures = (chosen.figures == "all" or chosen.figures.split(",")) if chosen.figures is not None else None
    if chosen.no_plugins:
        plugins.leave_out()
    try:
        allow(**{name: getattr(chosen, name) for name in NAMES})
        if (file := imported.find(Path(chosen.directory))) is not None:
            if formats is not None or figures is not None or chosen.calibration:
                raise QdxError(f"{file} is an import: its report is printed as text, without other options")
            show(imported.report(file))
            return 0
        if chosen.calibration:
            refuse_links(Path(chosen.directory))
        for number, folder in enumerate(chosen.calibration, 1):
            adopt_calibration(Path(chosen.directory), folder, number)
        report = build(
            chosen.directory,
            formats=formats,
            figures=figures,
            plugin_folders=chosen.plugins,
            shown=chosen.print,
        )
    except QdxError as error:
        print(f"qdx: error: {error}", file=sys.stderr)
        return 1 if of_disk(error) else 2
    return 1 if report.failed or report.missing else report.verdict_status


if __name__ == "__main__":
    run(main)
