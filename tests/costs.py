"""Which files' slow tests take longest: `.ci/run` starts them first.

Two processes take whole files, one after the other. xdist alone starts those with the most tests, and most of
the longest files have few: one of 140 s in a single test came among the last, and a process idled meanwhile.
With ``--no-loadscope-reorder`` they start in the order of this list, so that what is left for the end is
short.

The seconds are those of a process beside another one on two cores, with what fixtures take. They need not be
exact: measure again (``--durations=0``) when a file of more than half a minute comes or goes.
"""

from __future__ import annotations

import pytest

SECONDS = {
    "verification/test_forgeries.py": 400,
    "test_verification.py": 380,
    "launchers/test_launchers.py": 310,
    "test_places.py": 310,
    "test_docs.py": 260,
    "report/test_access.py": 250,
    "protocol/test_cheats.py": 200,
    "backends/test_architectures.py": 140,
    "test_sweep.py": 100,
    "test_harsh.py": 100,
    "records/test_drawn.py": 80,
    "records/test_listed.py": 80,
    "verification/test_parameters.py": 80,
    "test_advice.py": 80,
    "test_mistakes.py": 80,
    "protocol/test_two_configs.py": 80,
    "test_warm.py": 75,
    "dataset/test_damage.py": 75,
    "verification/test_recipe.py": 70,
    "fuzz/test_fuzz.py": 60,
    "test_terminal.py": 60,
    "hostile/test_reading.py": 55,
    "records/test_seeded.py": 50,
    "endpoints/test_command.py": 45,
    "verification/test_drawn.py": 40,
    "test_bringing.py": 40,
    "analysis/test_claims.py": 40,
    "test_safety.py": 37,
    "report/test_html.py": 35,
    "test_api.py": 35,
    "report/test_report.py": 35,
    "capture/test_recorder.py": 32,
}
UNKNOWN = 30  # a new file: neither among the first nor in the tail, where only what is short may be


def by_cost(item: pytest.Item) -> tuple[float, str]:
    """Sort key of a test: files by cost, dearest first; the tests of a file stay together in their order."""
    file = item.nodeid.partition("::")[0].removeprefix("tests/")
    return -SECONDS.get(file, UNKNOWN), file
