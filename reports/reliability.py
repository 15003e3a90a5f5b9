"""python -m reports.reliability [--short] [--only 3 Server] [--out DIR]

Runs every test behind a promise of reliability in its long form (`make soak`) and writes RELIABILITY.md: row, tries, failures,
figure, command, date. A row is one fault or kind of bad input; what its tests did and counted, they tell themselves. Rows that
are not run keep what reliability.json remembers of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from iris.evaluation.reading import machine
from reports.notebooks import ROOT, ReportError
from reports.results import write_text

TESTS = ROOT / "tests"


@dataclass(frozen=True)
class Row:
    """A promise: what is done to IRIS, what must come of it, and the names of the test functions that try it."""

    area: str
    fault: str
    target: str
    tests: tuple[str, ...]


ROWS = (
    Row("Training", "kill -9 at random moments, half of them inside a save; resume", "20 of 20 bitwise",
        ("test_kill_9_at_random_moments_and_inside_saves_changes_no_bit",)),
    Row("Training", "SIGTERM to the notebooks mid-cell, the same command again", "continues, at most 60 s lost",
        ("test_sigterm_to_the_notebooks_mid_cell_and_the_same_command_again",)),
    Row("Training", "full disk or read-only folder during a save", "old checkpoint intact, one sentence",
        ("test_a_full_disk_and_a_read_only_one_leave_the_old_checkpoint_and_a_sentence", "test_a_failing_disk_leaves_the_old_checkpoint",
         "test_a_real_limit_on_file_size", "test_places_that_cannot_be_written")),
    Row("Training", "NaN or Inf in batch, gradient or weight; loss spikes", "skipped, then rolled back; the average stays finite",
        ("test_one_spike_changes_nothing_and_the_next_step_is_taken", "test_failures_end_in_a_rollback_to_the_anchor_and_a_stop_changes_no_bit_of_it",
         "test_a_run_that_cannot_get_past_a_step_says_so")),
    Row("Training", "another number of data readers", "the same batches bitwise", ("test_a_different_number_of_readers_changes_no_bit",)),
    Row("Training", "the last two checkpoints damaged", "the best one and the anchor are still there", ("test_the_best_checkpoint_is_kept_beside_the_last_two",)),
    Row("Training", "the machine is lost; the copy to a second folder cut off at any operation", "the mirror continues bitwise",
        ("test_a_lost_machine_is_continued_from_the_mirror_bitwise", "test_a_copy_cut_off_at_any_moment_leaves_a_run_that_continues",
         "test_a_mirror_that_cannot_be_written_is_a_warning")),
    Row("Artefacts", "truncated, zeroed, bit-flipped, mis-shaped, swapped or missing files", "all found before use, the file named, the checkpoint before used",
        ("test_100_damaged_models_are_all_refused_before_use_and_the_file_is_named", "test_100_damaged_checkpoints_are_passed_over_for_the_one_before")),
    Row("Artefacts", "a pickle bomb under every name that a loader might look for", "0 executions",
        ("test_a_bomb_under_any_name_is_never_run_by_a_loader_of_models_or_runs", "test_a_bomb_in_data_in_a_cache_or_in_an_encoder_is_never_run")),
    Row("Data", "corrupt, CMYK, 16-bit, palette, 1x1, animated, rotated pictures; empty or giant captions; missing rows", "skipped and counted; refused above 1 %",
        ("test_bad_pictures_are_skipped_counted_and_reported_up_to_one_in_a_hundred", "test_rows_that_are_missing_mute_or_point_elsewhere_are_counted",
         "test_a_giant_caption_is_cut_and_costs_no_picture_but_its_own", "test_every_mode_becomes_the_same_rgb", "test_an_animation_gives_its_first_frame",
         "test_exif_rotation_is_applied_and_the_middle_is_kept", "test_what_cannot_be_used_is_one_sentence", "test_a_shard_with_bad_members_counts_them",
         "test_a_torn_shard_is_refused_wherever_it_breaks_off")),
    Row("Data", "zip slip, links, bombs, lying sizes, damage", "nothing outside the folder, no more than the limit",
        ("test_one_bad_member_is_counted_and_two_refuse_the_archive", "test_a_bomb_stops_at_the_limit_whatever_it_says_of_itself",
         "test_damage_anywhere_is_found_or_harmless", "test_memory_is_bounded_by_the_method")),
    Row("Data", "pictures of 0 bytes to 400 megapixels, every format", "a picture or one sentence, at most 150 MB and 2 s",
        ("test_no_picture_takes_more_than_two_seconds_and_150_megabytes", "test_a_picture_is_pixels_or_one_sentence")),
    Row("Entries", "fuzzed calls (10,000 with masks): prompts, seeds, counts, pictures, masks, configs, captions, PNG metadata", "a result or one sentence of our own",
        ("test_the_pipeline", "test_the_demos_request", "test_the_metadata_of_a_png", "test_any_picture_file", "test_any_config",
         "test_a_model_whose_config_was_changed_and_signed_anew", "test_any_caption", "test_any_folder_of_pictures", "test_any_mask")),
    Row("Entries", "prompts: empty, 100k characters, NUL, joined emoji, right to left, HTML, None, numbers", "a picture or a sentence",
        ("test_odd_prompts_are_drawn", "test_impossible_prompts_are_refused_with_a_sentence")),
    Row("Entries", 'seeds -1, 1.7, 2^31, 1e99, "abc", NaN; counts out of range', "a sentence that names the field", ("test_values_out_of_range_are_refused_with_a_sentence",)),
    Row("Entries", "masks: empty, full, of another size", "a sentence; outside the mask every pixel stays", ("test_any_mask", "test_pixels_outside_the_mask_stay_bit_for_bit")),
    Row("Entries", "PNG to its parameters to the picture again", "bitwise equal", ("test_png_to_its_parameters_to_the_same_picture",)),
    Row("Entries", "a batch of 1 or 8, 1 or 2 threads", "at most one level of 255 apart", ("test_a_batch_and_a_number_of_threads_change_no_picture",)),
    Row("Server", "64 clients x 3 requests, a queue of 32", "0 hangs, own prompt and seed, the rest told within 100 ms",
        ("test_a_crowd_is_served_in_turn_and_whoever_is_too_many_is_told_at_once",)),
    Row("Server", "Stop, or a closed tab, mid-drawing", "worker free within a step and 200 ms", ("test_a_stop_frees_the_worker",)),
    Row("Server", "500 generations", "less than 0.1 MB growth each", ("test_long_use_does_not_grow",)),
    Row("Server", "junk at every endpoint", "no 5xx, no path, no trace, still alive", ("test_junk_at_every_endpoint_is_answered_and_tells_nothing",
                                                                                   "test_malformed_requests_tell_nothing_about_the_machine")),
    Row("Server", "requests for files, uploads of odd names and sizes", "only the own cache is read or written", ("test_no_file_but_its_own_is_served", "test_uploads_are_bounded")),
    Row("Server", "one visitor who asks too often, too much, or for an address", "429, 413, 411 or 400; the others are served",
        ("test_a_server_with_limits_refuses_with_a_sentence_and_serves_the_others", "test_no_window_holds_more_than_the_rate_and_a_wait_is_exact")),
    Row("Server", "no network: serving and training", "0 outbound connections, no prompt in the log", ("test_nothing_of_a_visitor_is_logged_and_nothing_leaves_the_machine",)),
)


@dataclass
class Outcome:
    """What the tests of one row did: tries they counted (1 for one that counts none), failed tests, what they told; when and how."""

    tests: int = 0
    tries: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    date: str = ""
    form: str = ""


def find_tests(names: Sequence[str]) -> list[str]:
    """tests/FILE.py::NAME for every name that exists; test functions may move between files."""
    texts = {file: file.read_text(encoding="utf-8") for file in sorted(TESTS.glob("test_*.py"))}
    return [f"tests/{file.name}::{name}" for name in names for file, text in texts.items() if re.search(rf"^def {name}\(", text, re.MULTILINE)]


def run_tests(nodes: Sequence[str], soak: bool) -> dict[str, Outcome]:
    """Run them in one pytest; test function -> outcome over its parameters. ReportError when pytest could not run them all."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", *nodes, *(["--soak"] if soak else []), f"--junitxml={result}", "-o", "junit_family=xunit1", "-p", "no:cacheprovider"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code > 1 or not result.is_file():  # 1: tests failed. More: stopped, a file that cannot be imported, nothing found
            raise ReportError(f"pytest ended with {code} before all tests were run; nothing was written.")
        return read_results(result)


def read_results(file: Path) -> dict[str, Outcome]:
    """A JUnit file of pytest -> outcomes."""
    outcomes: dict[str, Outcome] = {}
    for case in ElementTree.parse(file).iter("testcase"):
        outcome = outcomes.setdefault(case.get("name", "").partition("[")[0], Outcome())
        told = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        skip, broken = case.find("skipped"), [*case.findall("failure"), *case.findall("error")]
        if skip is not None:
            outcome.skipped.append(skip.get("message", "").removeprefix("Skipped: "))
            continue
        outcome.tests += 1
        outcome.tries += int(told.get("tries") or 1)
        if broken:
            outcome.failed.append(case.get("name", ""))
        if told.get("figure"):
            outcome.figures.append(told["figure"])
    return outcomes


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of one row as one."""
    total = Outcome()
    for one in outcomes:
        total.tests, total.tries = total.tests + one.tests, total.tries + one.tries
        total.failed, total.skipped, total.figures = total.failed + one.failed, total.skipped + one.skipped, total.figures + one.figures
    return total


def markdown(outcomes: Mapping[str, Outcome], commit: str) -> str:
    """The text of RELIABILITY.md; `outcomes` by the rows' faults, none for a row that was never run."""
    ran = [outcomes[row.fault] for row in ROWS if row.fault in outcomes and outcomes[row.fault].tests]
    failed = sum(len(outcome.failed) for outcome in ran)
    lines = ["# Reliability: what was tried and what came of it", "",
             "Generated by `python -m reports.reliability` (`make soak`); do not edit. `python -m reports.reliability --only N` repeats row N. "
             "A try is what a test counts as one: a kill, a damaged file, a call, a visitor's request. A failure is a test that failed. Times are told and never "
             "asserted: compare figure and target. The short form makes fewer tries than the target names; `make test` runs it.", "",
             f"Written at commit {commit} on {machine()}. {len(ran)} of {len(ROWS)} rows run, {sum(outcome.tests for outcome in ran)} tests, "
             f"{sum(outcome.tries for outcome in ran):,} tries, {failed} failed; a test of two rows counts in both.", "",
             "| N | fault or input | target | tries | failures | figure | run |", "|---|---|---|---|---|---|---|"]
    for number, row in enumerate(ROWS, 1):
        lines.append("| " + " | ".join([f"{number} {row.area}", row.fault, row.target, *_cells(outcomes.get(row.fault))]) + " |")
    lines += ["", "## The tests of each row", ""]
    lines += [f"{number}. {', '.join(f'`{node}`' for node in find_tests(row.tests)) or 'none here'}" for number, row in enumerate(ROWS, 1)]
    return "\n".join(lines) + "\n"


def _cells(outcome: Outcome | None) -> tuple[str, str, str, str]:
    """tries, failures, figure and date of a row."""
    if outcome is None or not (outcome.tests or outcome.skipped):
        return "–", "–", "not run", "–"
    told = [figure.replace("|", "/") for figure in outcome.figures] + [f"left out: {reason}" for reason in dict.fromkeys(outcome.skipped)]
    failures = f"**{len(outcome.failed)}** ({', '.join(outcome.failed)})" if outcome.failed else "0" if outcome.tests else "–"
    return f"{outcome.tries:,}" if outcome.tests else "–", failures, "; ".join(told) or f"{outcome.tests} tests", f"{outcome.form}, {outcome.date}"


def recall(file: Path) -> dict[str, Outcome]:
    """Outcomes by fault as `reliability.json` remembers them."""
    return {fault: Outcome(**told) for fault, told in json.loads(file.read_text(encoding="utf-8")).items()} if file.is_file() else {}


def choose(words: Sequence[str]) -> list[Row]:
    """The rows of these numbers and areas; all of them for no words."""
    return [row for number, row in enumerate(ROWS, 1) if not words or str(number) in words or row.area in words]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing failed, 1 when a test did, 2 when the tests could not be run."""
    parser = argparse.ArgumentParser(prog="python -m reports.reliability", description="Run the tests of reliability and write RELIABILITY.md.")
    parser.add_argument("--short", action="store_true", help="as few tries as in make test")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="numbers of rows, or areas: Training, Artefacts, Data, Entries, Server")
    parser.add_argument("--out", type=Path, default=ROOT / "reports", metavar="DIR")
    options = parser.parse_args(arguments)
    chosen = choose(options.only)
    if not chosen:
        parser.error(f"--only is {' '.join(options.only)}; use numbers from 1 to {len(ROWS)} or {', '.join(dict.fromkeys(row.area for row in ROWS))}.")
    date = f"{datetime.date.today():%Y-%m-%d}"
    try:
        tests = run_tests(list(dict.fromkeys(node for row in chosen for node in find_tests(row.tests))), not options.short)
    except ReportError as error:
        print(f"reliability: {error}", file=sys.stderr)
        return 2
    outcomes = recall(options.out / "reliability.json")
    for row in chosen:
        outcomes[row.fault] = join([tests[name] for name in row.tests if name in tests])
        outcomes[row.fault].date, outcomes[row.fault].form = date, "short" if options.short else "soak"
    outcomes = {row.fault: outcomes[row.fault] for row in ROWS if row.fault in outcomes}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    write_text(options.out / "reliability.json", json.dumps({fault: asdict(told) for fault, told in outcomes.items()}, indent=1, ensure_ascii=False) + "\n")
    write_text(options.out / "RELIABILITY.md", markdown(outcomes, commit))
    return 1 if any(outcomes[row.fault].failed for row in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
