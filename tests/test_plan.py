"""The planner's command line: what it says is what the tests then do, and it starts at once."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qdx import plan
from qdx.verification import calibration_size as size
from qdx.verification import p_values as pv
from qdx.verification.evidence import FEWEST_PROCESSES
from tests.sweeping import qdx


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return qdx(*arguments, cwd=Path.cwd(), module="qdx.plan")


def section(text: str, name: str) -> str:
    """Lines of one way to verify."""
    return text[text.index(name) :].split("\n\n")[0]


def test_what_is_found_for_sure_is_refuted_by_the_pooled_test():
    result = run("--transcripts", "20", "--claims", "2", "--expected-false", "5")
    assert result.returncode == 0, result.stderr
    calibration = section(result.stdout, "CALIBRATION")
    counts = re.findall(r"([\d,]+) known ones, of which (\d+) fit the scale, find (\d+) of 20", calibration)
    assert [int(k) for _, _, k in counts] == [20, 10, 5, 2]
    for total, fit, false in ((int(a), int(b), int(c)) for a, b, c in counts):
        assert fit == size.fitting_part(total)
        judged = np.r_[np.full(false, 9.0), np.full(20 - false, -9.0)]
        assert pv.pooled_p(judged, np.zeros(total - fit)) <= Fraction(1, 20) / (2 * 2)
    assert "5 false ones: in 100 % of cases at least" in calibration
    assert "the least p has to be 0.0125 at most" in calibration


def test_every_kind_of_evidence_says_what_it_can_end_in():
    sketches, commitments, text = (run("--evidence", name).stdout for name in plan.EVIDENCE)
    for name in ("EQUAL ROWS", "OWN REPEATS", "CALIBRATION"):
        assert name in sketches
    assert "confirmed in prefill · not refuted" in section(sketches, "OWN REPEATS")
    assert "EQUAL ROWS" in commitments and "OWN REPEATS" not in commitments
    assert "EQUAL ROWS" not in text and "never confirmed" in section(text, "CALIBRATION")
    for output in (sketches, commitments, text):
        assert max(map(len, output.splitlines())) <= 110
        assert output.count("can end in") == len(re.findall("^[A-Z]+ [A-Z]+:|^CALIBRATION:", output, re.M))


def test_equal_rows_are_refuted_from_the_number_that_is_said():
    equal = section(run("--transcripts", "20", "--tests", "1").stdout, "EQUAL ROWS")
    least = int(re.search(r"finds +(\d+) or more of 20", equal)[1])
    assert pv.fisher_equality_p(least, 20, 40) <= Fraction(1, 20)
    assert pv.fisher_equality_p(least - 1, 20, 40) > Fraction(1, 20)
    bound = float(re.search(r"all 640 by ([\d.]+) %", equal)[1]) / 100
    assert bound == pytest.approx(pv.share_bound(640), rel=0.02)


def test_nothing_is_promised_that_so_little_cannot_do():
    alone = run("--evidence", "text", "--transcripts", "1", "--claims", "3", "--known", "30").stdout
    assert "59 known ones find 1 of 1" in alone and "finds       nothing, even if all 1 are false" in alone
    fitted = section(run("--known", "8").stdout, "CALIBRATION")
    assert "all of them fit the scale: nothing is tested" in fitted and "finds" not in fitted
    few = run("--repeats", "2")
    assert "repeats=3 repeat_scope=process" in few.stdout and "finds" not in few.stdout


def test_the_spread_of_one_calibration_set_stands_beside_the_level():
    calibration = section(
        run("--evidence", "text", "--transcripts", "1", "--known", "39").stdout, "CALIBRATION"
    )
    low, high = pv.false_alarm_spread(39, 1)
    said = re.search(r"in ([\d.]+) to ([\d.]+) % \(95 % of sets\)", calibration)
    assert float(said[1]) == pytest.approx(100 * low, abs=0.1)
    assert float(said[2]) == pytest.approx(100 * high, abs=0.1)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--level", "2"], "level 2 is not between 0 and 1"),
        (["--transcripts", "0"], "--transcripts 0: give 1 or more"),
        (["--transcripts", "3", "--expected-false", "4"], "there are 3 transcripts, so give 0 to 3"),
        (["--known", "0"], "--known 0: give 1 or more, or leave it out"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_in_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and not result.stdout
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_the_planner_needs_no_torch_and_agrees_with_the_verdict_about_processes():
    script = "import sys; from qdx.plan import main; main([]); print('torch' in sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "False"
    assert plan.PROCESSES == FEWEST_PROCESSES
