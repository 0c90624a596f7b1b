"""Kill what writes, at random moments: ``python scripts/soak.py N`` kills -9 N times, prints what survived.

Three places, in turn: a sweep (its writer, and the merge and the report at its end), ``python -m qdx.report``
(the merger), and the preparation of a model in the cache. After every kill each finished run opens and is
whole, an unfinished one opens or is refused in one line, and ``sweep.nc`` is the earlier one or the new one.
The same command is then started again, until it ends by itself: everything is there, and no part, lock or
half-made folder is left. Only the command line and files are used. Failures are printed with their folder,
which is kept; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere, also as a file

import qdx
from qdx.errors import QdxError
from tests import tiny
from tests.sweeping import SMALL, checkpoints

ROOT = Path(__file__).parents[1]
LABELS = ("awq", "gptq")
PREPARE = """
import sys
from pathlib import Path
from qdx.models.cache import prepare
from tests import tiny
prepare(Path(sys.argv[1]), lambda folder: tiny.build(folder / "x"))
"""


class Place:
    """Something that writes: its command, what must hold after a kill, and after its end."""

    def __init__(self, command: list[str], killed: Callable[[], None], ended: Callable[[], None]) -> None:
        self.command, self.killed, self.ended = command, killed, ended
        self.lasts = 0.0  # seconds that the command takes; measured at every whole run


def check_run(path: Path, captured: int | None = None) -> int:
    """Open a finished run and return its number of rows; all arrays are read."""
    tree = qdx.open(path)
    try:
        assert tree.attrs["status"] == "complete", f"{path}: status {tree.attrs['status']}"
        for phase in tree.children.values():
            phase.to_dataset().load()
        rows = int(tree["replay"]["captured"].sum())
        logit = tree["replay"]["logit"].values[tree["replay"]["captured"].values]
        assert np.isfinite(logit).all(), f"{path}: rows that are captured and not there"
        assert captured is None or rows == captured, f"{path}: {rows} rows, other runs {captured}"
        return rows
    finally:
        tree.close()


def check_part(path: Path) -> str:
    """Open what an unfinished run left; "" or why it does not open."""
    try:
        tree = qdx.open(path)
    except QdxError as error:
        return str(error)
    try:
        assert tree.attrs["status"] != "complete", f"{path}: an unfinished run says that it is complete"
        for phase in tree.children.values():
            phase.to_dataset().load()
    finally:
        tree.close()
    return ""


def leftovers(folder: Path) -> list[str]:
    """Parts, locks and half-made folders."""
    return [
        str(p)
        for pattern in ("*.part", "*.lock", "run.nc.rows", "run.nc.new", "*building-*", "repeat_*")
        for p in folder.rglob(pattern)
    ]


def sweep(folder: Path, models: dict[str, Path], counts: Counter[str], repeats: int) -> Place:
    small = [s for s in SMALL if not s.startswith("repeats")]
    arguments = ["-m", f"quant={','.join(LABELS)}", *small, f"repeats={repeats}", *checkpoints(models)]

    def killed() -> None:
        for path in folder.glob("*/run.nc"):
            check_run(path)
            counts["finished runs read"] += 1
        for path in folder.glob("*/run.nc.part"):
            why = check_part(path)
            counts["unfinished runs refused" if why else "unfinished runs read"] += 1
        if (folder / "sweep.nc").exists():
            qdx.open(folder / "sweep.nc").close()

    def ended() -> None:
        rows = check_run(folder / LABELS[0] / "run.nc")
        check_run(folder / LABELS[1] / "run.nc", rows)
        tree = qdx.open(folder)
        assert tree["replay"].config.values.tolist() == list(LABELS) and tree["metrics"].children
        tree.close()
        assert (folder / "report.html").is_file() and not leftovers(folder), leftovers(folder)

    return Place(["-m", "qdx", *arguments, f"hydra.sweep.dir='{folder}'"], killed, ended)


def merger(folder: Path, counts: Counter[str]) -> Place:
    def killed() -> None:
        if (folder / "sweep.nc").exists():
            tree = qdx.open(folder / "sweep.nc")
            assert tree["metrics"].children, "sweep.nc without its distances"
            tree.close()
            counts["merged files read"] += 1

    def ended() -> None:
        killed()
        assert not leftovers(folder), leftovers(folder)

    return Place(["-m", "qdx.report", str(folder)], killed, ended)


def preparation(folder: Path, counts: Counter[str]) -> Place:
    target = folder / "model"

    def whole() -> None:
        for form in ("none", "awq", "gptq"):
            for name in ("config.json", "tokenizer.json", "model.safetensors"):
                assert (target / "x" / form / name).is_file(), f"{target}: no {form}/{name}"

    def killed() -> None:
        if target.exists():
            whole()
            counts["prepared models whole"] += 1

    def ended() -> None:
        whole()
        left = [
            name for name in leftovers(folder) if not name.endswith("model.lock")
        ]  # a name, held by nobody
        assert not left, left
        shutil.rmtree(target)

    return Place(["-c", PREPARE, str(target)], killed, ended)


def kill_once(place: Place, log: Path, generator: random.Random) -> bool:
    """Start a place's command and kill it at a random moment of its life; False when it ended before."""
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *place.command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        # The first time it is only measured; the first fifth of its life is Python starting.
        code = process.wait(timeout=generator.uniform(0.2, 1.05) * place.lasts if place.lasts else None)
    except subprocess.TimeoutExpired:
        # The whole group (the machine's memory runs out), or the parent alone, whose child must follow it.
        if generator.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        limit = time.monotonic() + 60
        while alive(process.pid):
            assert time.monotonic() < limit, "a child process outlives its parent"
            time.sleep(0.05)
        place.killed()
        return True
    place.lasts = max(place.lasts, time.monotonic() - started)  # a resumed sweep takes less
    assert code == 0, f"exit status {code}: {log.read_text(errors='replace')[-3000:]}"
    place.ended()
    return False


def alive(group: int) -> bool:
    """Whether a process of a group is there that is not a zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=60, help="of a sweep: how long its writer writes")
    parser.add_argument("--place", action="append", choices=("sweep", "merger", "preparation"))
    options = parser.parse_args()
    generator, counts = random.Random(options.seed), Counter[str]()
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    models = tiny.build(base / "models")
    swept = base / "sweep 0"
    log = base / "log"
    chosen = options.place or ["sweep", "merger", "preparation"]
    places = {"sweep": sweep(swept, models, counts, options.repeats)}
    if "merger" in chosen:  # on a sweep of its own, run once
        once = sweep(base / "merged", models, counts, 4)
        subprocess.run([sys.executable, *once.command], cwd=ROOT, check=True, capture_output=True)
        places["merger"] = merger(base / "merged", counts)
    (base / "cache").mkdir()
    places["preparation"] = preparation(base / "cache", counts)
    failures = 0
    while sum(counts[f"kills: {name}"] for name in chosen) < options.kills:
        name = min(chosen, key=lambda n: counts[f"kills: {n}"])
        place = places[name]
        try:
            counts[f"kills: {name}" if kill_once(place, log, generator) else f"ended: {name}"] += 1
            failed = False
        except Exception as error:
            failures, failed = failures + 1, True
            kept = base.with_name(f"{base.name}-failure-{failures}")
            shutil.copytree(base, kept, ignore=shutil.ignore_patterns("models"))
            print(f"FAILURE {name}: {type(error).__name__}: {error} (kept: {kept})", flush=True)
            counts[f"kills: {name}"] += 1
        if name == "sweep" and (failed or (swept / "report.html").exists()):
            shutil.rmtree(swept, ignore_errors=True)
            counts["sweeps resumed to their end"] += not failed
        done = sum(counts[f"kills: {n}"] for n in chosen)
        if done % 10 == 0:
            print(f"{done} kills, {failures} failures: {dict(counts)}", flush=True)
    print(f"{sum(counts[f'kills: {n}'] for n in chosen)} kills, {failures} failures")
    for what, count in sorted(counts.items()):
        print(f"{count:>6} {what}")
    if not failures:
        shutil.rmtree(base)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
