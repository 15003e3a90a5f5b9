"""Laws of the reliability report: it names tests that exist, counts what they told, and hides no failure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from reports import reliability
from reports.reliability import ROWS, Outcome, Row, choose, find_tests, join, main, markdown, read_results, recall

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
    monkeypatch.setattr(reliability, "ROWS", tuple(Row("Data", fault, "stands", (test,)) for fault, test in (("kicked", "test_a"), ("moved", "test_b"), ("left", "test_d"))))
    page = markdown({"kicked": dataclasses.replace(outcomes["test_a"], date="2026-01-02", form="short"), "moved": outcomes["test_b"]}, "abc1234")
    assert "Written at commit abc1234" in page and "1 of 3 rows run, 2 tests, 23 tries, 1 failed" in page
    assert "| 1 Data | kicked | stands | 23 | **1** (test_a[two]) | 20 / 20 | short, 2026-01-02 |" in page
    assert "| – | – | left out: needs a moon |" in page and "| 3 Data | left | stands | – | – | not run | – |" in page
    assert "1. `tests/test_x.py::test_a`\n2. none here" in page


@pytest.mark.parametrize("source", ["import no_such_module\n", "def test_a(:\n", "def test_b(): pass\n"])
def test_tests_that_cannot_run_are_no_result_and_erase_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, source: str) -> None:
    """A file that cannot be imported or read, a test that is gone: status 2, and what was known stays."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(f"{source}def test_a(): pass\n" if "test_b" not in source else source)
    (tmp_path / "reliability.json").write_text("{}")
    monkeypatch.setattr(reliability, "find_tests", lambda names: ["tests/test_x.py::test_a"])
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    assert main(["--short", "--only", "1", "--out", str(tmp_path)]) == 2
    assert "nothing was written" in capfd.readouterr().err
    assert (tmp_path / "reliability.json").read_text() == "{}" and not (tmp_path / "RELIABILITY.md").exists()


def test_rows_are_chosen_by_number_and_area_and_the_others_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose([]) == list(ROWS) and choose(["2"]) == [ROWS[1]] and {row.area for row in choose(["Data"])} == {"Data"}
    with pytest.raises(SystemExit):
        main(["--only", "Moon", "--out", str(tmp_path)])
    monkeypatch.setattr(reliability, "run_tests", lambda nodes, soak: {ROWS[0].tests[0]: Outcome(1, 20 if soak else 2), ROWS[1].tests[0]: Outcome(1, 1, ["x"])})
    assert main(["--only", "1", "--out", str(tmp_path)]) == 0
    assert main(["--only", "2", "--short", "--out", str(tmp_path)]) == 1
    kept = recall(tmp_path / "reliability.json")
    assert [(kept[row.fault].tries, kept[row.fault].form) for row in ROWS[:2]] == [(20, "soak"), (1, "short")] and len(kept) == 2
