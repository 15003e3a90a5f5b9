"""Laws of the reliability report: it names tests that exist, counts what they told, and hides no failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import reliability
from reports.reliability import ROWS, Outcome, Row, find_tests, join, markdown, read_results

# Tests of editing come with iris.editing.
LATER = {"test_pixels_outside_the_mask_stay_bit_for_bit"}
JUNIT = """<testsuites><testsuite>
<testcase name="test_a[one]"><properties><property name="tries" value="20"/><property name="figure" value="20 | 20"/></properties></testcase>
<testcase name="test_a[two]"><properties><property name="tries" value="3"/></properties><failure message="no">...</failure></testcase>
<testcase name="test_b"><skipped message="Skipped: needs a moon"/></testcase>
<testcase name="test_c"/>
</testsuite></testsuites>"""


def test_every_row_names_tests_that_exist() -> None:
    for row in ROWS:
        found = {node.partition("::")[2] for node in find_tests(row.tests)}
        assert set(row.tests) - found <= LATER, row.fault


def test_what_the_tests_told_is_counted_and_failures_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    outcomes = read_results(tmp_path / "junit.xml")
    both = join(list(outcomes.values()))
    assert (both.tests, both.tries, both.failed, both.skipped, both.figures) == (3, 24, ["test_a[two]"], ["needs a moon"], ["20 | 20"])
    (tmp_path / "test_x.py").write_text("def test_a(")
    monkeypatch.setattr(reliability, "TESTS", tmp_path)
    rows = [(Row("Data", "kicked", "stands", ("test_a",)), outcomes["test_a"]), (Row("Data", "moved", "stays", ("test_b",)), outcomes["test_b"]),
            (Row("Server", "left", "alone", ("test_d",)), None)]
    page = markdown(rows, False, "2026-01-02", 3.4, "abc1234")
    assert "SHORT form" in page and "2026-01-02, commit abc1234" in page and "1 of 3 rows run, 2 tests, 23 tries, 1 failed" in page
    assert "| 23 | **1** (test_a[two]) | 20 / 20 | `pytest tests/test_x.py -k \"test_a\"` |" in page
    assert "| – | – | not run: needs a moon |" in page and "| – | – | not run | no test here |" in page
    assert join([Outcome()]).failed == []
