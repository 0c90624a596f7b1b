"""The process that fuzz inputs run in: a crash or a hang of it is a finding, not the end of the search.

A line of JSON on standard input names a kind, a folder with the input and options; a line on standard output
says what came of it: ``accepted``, ``refused`` with the message, or ``bug`` with a traceback.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import resource
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG_S = 180  # a loaded machine is slow, HDF5 in a loop never ends
MEMORY = 12 * 2**30  # of addresses: torch alone maps some GB; more is a runaway allocation


@functools.cache
def tokenizer() -> Any:
    from tests.prompts.conftest import build_tokenizer

    return build_tokenizer()


def pdf(folder: Path, _: Any) -> None:
    from qdx.prompts.pdf import read_pdf

    read_pdf("input.pdf", folder / "input.pdf")


def text(folder: Path, options: Any) -> None:
    from qdx.prompts import Text, check_references, describe

    source = Text(path=str(folder / "input.txt"), **options)
    found = source.load(tokenizer())
    check_references(found, who="text", tokens=options["continuation_tokens"])
    describe(found, source.summary)


def inline(_: Path, options: Any) -> None:
    from qdx.prompts import Inline, check_references, describe

    source = Inline(**options)
    found = source.load(tokenizer())
    check_references(found, who="inline", tokens=source.continuation_tokens)
    describe(found, source.summary)


def overrides(_: Path, given: Any) -> None:
    import qdx

    qdx.compose(given)


def command_line(folder: Path, given: Any) -> None:
    from qdx.errors import QdxError

    nowhere = "model.checkpoint={awq:/no/model,gptq:/no/model,none:/no/model}"  # so that nothing runs
    done = subprocess.run(
        [sys.executable, "-m", "qdx", *given, "model=local", nowhere],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1, f"exit status {done.returncode}\n{done.stderr}"
    raise QdxError(lines[0])


def run_file(folder: Path, _: Any) -> None:
    import qdx

    read(lambda: qdx.open(folder / "run.nc"))


def read(opened: Callable[[], Any]) -> None:
    """Open a tree, look at all of it, read it."""
    tree = opened()
    try:
        repr(tree)
        try:
            for node in tree.subtree:
                node.to_dataset().load()
        except (RuntimeError, OSError, UnicodeDecodeError):  # as `qdx.open` says
            return
    finally:
        tree.close()


def sweep_file(folder: Path, _: Any) -> None:
    import qdx

    read(lambda: qdx.open(folder / "sweep.nc"))


def rows(folder: Path, _: Any) -> None:
    from qdx.dataset import layout
    from qdx.dataset.run_reader import RunReader

    reader = RunReader(folder / "run.nc")
    try:
        for name in layout.PHASES:
            phase = reader.phase(name)
            if phase.has_rows:
                reader.rows(name, 0, 0, slice(0, 2))
    finally:
        reader.close()


def transcripts(folder: Path, _: Any) -> None:
    import qdx
    from qdx.prompts import Transcripts, check_references, describe
    from qdx.verification.environment import facts_of
    from tests.helpers import TOKENS, VOCAB

    source = Transcripts(str(folder / "received.nc"))
    source.require(tokenizer_sha256="t" * 64, vocab=VOCAB, tokens=TOKENS)
    found = source.load(tokenizer())
    check_references(found, who="transcripts", tokens=TOKENS)
    describe(found, transcripts=True)
    source.describe(1)
    with qdx.open(source.file.path) as tree:
        for label in tree["decode"]["config"].values:
            facts_of(tree, "decode", str(label))


def folder(path: Path, _: Any) -> None:
    import qdx
    from qdx.report import build

    read(lambda: qdx.open(path / "sweep"))
    build(path / "sweep", console=False)


def report(path: Path, _: Any) -> None:
    from qdx.report import build

    build(path / "sweep", console=False)


def legacy(folder: Path, _: Any) -> None:
    from qdx.legacy import convert

    convert(folder / "input.json", folder / "out.nc")


def checkpoint(folder: Path, options: Any) -> None:
    from qdx import models
    from qdx.models import reading

    form = options["format"]
    found = models.resolve(str(folder / "model"), format=form)
    models.vocab_size(found.path)
    models.context_length(found.path)
    models.tokenizer_sha256(found.path)
    models.weights_sha256(found.path)
    models.load_tokenizer(found.path)
    if form != "none":
        for _ in reading.iter_quantized(found.path):
            pass
    for _ in reading.dense_state(found.path):
        pass


def load_model(folder: Path, options: Any) -> None:
    from qdx.backends.transformers import TransformersBackend
    from qdx.models import resolve
    from qdx.schema import Quant

    form = options["format"]
    kernel = {"none": "dense", "awq": "marlin", "gptq": "marlin"}[form]
    found = resolve(str(folder / "model"), format=form)
    TransformersBackend(found, Quant(form, form, kernel), "float16", threads=1).observe()


KINDS: dict[str, Callable[[Path, Any], None]] = {
    "pdf": pdf,
    "text": text,
    "inline": inline,
    "overrides": overrides,
    "command line": command_line,
    "run.nc": run_file,
    "run.nc rows": rows,
    "sweep.nc": sweep_file,
    "transcripts": transcripts,
    "sweep folder": folder,
    "report": report,
    "legacy": legacy,
    "checkpoint": checkpoint,
    "model": load_model,
}


def judged(request: dict[str, Any]) -> dict[str, str]:
    """Run one input and say what came of it."""
    from qdx.errors import QdxError, printable

    try:
        KINDS[request["kind"]](Path(request["folder"]), request["options"])
    except QdxError as error:
        said = str(error)
        fine = len(said.splitlines()) == 1 and printable(said) == said and len(said) < 2000
        return {"is": "refused" if fine else "bug", "said": said if fine else f"message: {said!r}"}
    except BaseException:
        return {"is": "bug", "said": traceback.format_exc()}
    return {"is": "accepted", "said": ""}


def main() -> None:
    """Serve requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an input makes a library print is not an answer
    for line in sys.stdin:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        with contextlib.redirect_stdout(sys.stderr):
            answer = judged(json.loads(line))
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
