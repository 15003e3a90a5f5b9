"""python -m reports --profile smoke|cpu|t4|release|shipped|emoji [--only 03 05] [-p 03.train_steps=500] [--force] [--out DIR]

Runs the notebooks of a profile in order. The same command again skips what is finished and continues what was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.claims import check_claims
from reports.notebooks import ROOT, ReportError, choose, find_notebooks
from reports.page import write_index, write_pages
from reports.profiles import Profile, load_profile, override, profile_names
from reports.results import collect, read_results, write_figures, write_results, write_text
from reports.runner import Task, plan, printer, run_tasks, stoppable
from reports.writing import judge, report_markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every notebook is finished, 1 when one failed, 2 for a request that cannot be run, 130 when stopped."""
    options = _parser().parse_args(arguments)
    say = printer()
    try:
        check_claims()
        notebooks = find_notebooks()
        own = load_profile(options.profile, notebooks)
        profile = override(own, notebooks, options.parameter)
        only = [choose(notebooks, word).number for word in options.only]
        for number in only:
            if number not in profile.settings:
                raise ReportError(f"the profile {profile.name} does not run {notebooks[number].name}.")
    except ReportError as error:
        print(f"reports: {error}", file=sys.stderr)
        return 2
    home = ROOT / "reports" if options.out is None else options.out.resolve()
    runs = Path("runs") if options.out is None else home / "runs"
    os.chdir(ROOT)  # as the kernels do, so that the same paths mean the same folders
    everything = plan(profile, notebooks, runs)
    chosen = [task for task in everything if not only or task.notebook.number in only]
    say(f"profile {profile.name}: {profile.about['cost']}")
    outcomes = []
    try:
        with stoppable():
            for outcome in run_tasks(chosen, options.force, say):
                outcomes.append(outcome)
                if outcome.ran:
                    write_pages(everything, home / "site", profile.name)
            assemble(own, plan(own, notebooks, runs), home)
    except KeyboardInterrupt:
        say("stopped; the same command continues where it ended.")
        return 130
    say(f"read {home / 'site' / 'index.html'} and {home / 'REPORT.md'}")
    return 0 if all(outcome.status == "finished" for outcome in outcomes) else 1


def assemble(profile: Profile, tasks: Sequence[Task], home: Path) -> None:
    """Results, REPORT.md with its figures, and the pages: from whatever of the profile has been run, now, before, or elsewhere."""
    results = collect(profile, tasks, read_results(home).get(profile.name))
    write_results(results, home)
    known = read_results(home)
    if next(iter(known)) == profile.name:  # the report shows the figures of the most serious profile
        write_figures(tasks, results, home)
    write_text(home / "REPORT.md", report_markdown(known, {number: notebook.name for number, notebook in find_notebooks().items()}))
    write_index(results, judge(known), write_pages(tasks, home / "site", profile.name), tasks, home / "site")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reports", description="Run the notebooks of a profile and report what they measured.")
    parser.add_argument("--profile", required=True, help=f"one of {', '.join(profile_names())}")
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="run these notebooks alone")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NN.NAME=VALUE",
                        help="set a parameter of one notebook, or without NN of all that have it; may be repeated")
    parser.add_argument("--force", action="store_true", help="run again what is finished, from the start")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="where runs and reports go; the repository by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
