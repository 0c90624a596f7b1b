"""A file of any length is read in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.records import FILES
from tests.sweeping import environment

COUNT = """
import resource, sys
from pathlib import Path
from qdx.records import Record, choose
path = Path(sys.argv[1])
reader = choose(path)[1]
count = sum(isinstance(one, Record) for one in reader.read(path))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(path: Path) -> tuple[int, int]:
    """Answers of a file, and the most memory that reading it took, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(path)],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    count, kib = done.stdout.split()
    return int(count), int(kib)


@pytest.mark.parametrize("kind", ["lines", "array", "events"])
@pytest.mark.slow
def test_twenty_times_as_many_answers_take_no_more_memory(kind: str, tmp_path: Path) -> None:
    value = json.loads((FILES / "vllm_chat_text.jsonl").read_text().splitlines()[0])
    pieces = json.loads((FILES / "vllm_chat_chunks.jsonl").read_text().splitlines()[0])["response"]
    sizes = {}
    for count in (500, 10_000):
        path = tmp_path / f"{count}"
        with path.open("w") as file:
            for i in range(count if kind != "events" else count // 10):
                value["response"]["id"] = f"c{i}"
                text = json.dumps(value)
                if kind == "array":
                    file.write(("[" if i == 0 else ",\n") + text)
                elif kind == "events":
                    file.writelines(f"data: {json.dumps({**one, 'id': f'c{i}'})}\n\n" for one in pieces)
                else:
                    file.write(text + "\n")
            file.write("]" if kind == "array" else "")
        read, sizes[count] = peak(path)
        assert read == (count if kind != "events" else count // 10)
    assert sizes[10_000] < sizes[500] + 8 * 1024, sizes
