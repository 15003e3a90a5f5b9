"""Laws of reports/: nothing wrong starts a kernel, nothing finished runs twice, and a table says only what was measured."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from iris.evaluation.footprint import measure_footprint
from iris.evaluation.laws import weigh_variant
from iris.runs import Run
from reports import __main__ as command
from reports import runner
from reports.claims import CLAIMS, FAILS, HOLDS, NOT_MEASURED, Claim, check_claims, measure, read_value
from reports.notebooks import ReportError, find_notebooks, read_notebook
from reports.page import notebook_page, page, write_index, write_pages
from reports.profiles import Profile, load_profile, override, profile_names
from reports.results import collect, order, read_results, write_figures, write_results
from reports.runner import CHANGED, CONTINUE, FINISHED, NEW, plan, run_tasks
from reports.writing import judge, report_markdown

ROOT = Path(__file__).resolve().parent.parent
TRAINED = '''steps: int = 5  # optimizer steps
minutes: float = 0.0  # by the clock
init: str = "runs/{before}/pipeline"  # where to start
run_folder: str = "runs/{number}"  # what comes out
start_over: bool = False  # from nothing'''


def make_notebook(folder: Path, name: str, parameters: str, title: str = "A title") -> None:
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {title}"), cell]), folder / f"{name}.ipynb")


@pytest.fixture
def small(tmp_path):
    """Three notebooks, of which 02 builds on 01, and a profile that runs them."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    make_notebook(folder, "01_first", TRAINED.format(before="00", number="01"))
    make_notebook(folder, "02_second", TRAINED.format(before="01", number="02"))
    make_notebook(folder, "10_look", 'run_folder: str = "runs/10"  # what comes out', "Look & see")
    notebooks = find_notebooks(folder)
    return notebooks, Profile("small", {"cost": "Nothing.", "reaches": "Nothing."}, {"01": {}, "02": {"steps": 7}, "10": {}})


class Kernel:
    """Instead of papermill: notes what it was asked for, and leaves what a notebook that ends would leave."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.fails: dict[str, BaseException] = {}

    def __call__(self, task, values):
        self.calls.append((task.notebook.number, dict(values)))
        if task.notebook.number in self.fails:
            raise self.fails[task.notebook.number]
        with Run.open(task.folder) as run:
            run.write_summary({"notebook": task.notebook.name, "step": 5, "reading": ["It ran."], "machine": "a test", "data": "scenes"})
            run.pipeline_path.mkdir(exist_ok=True)
            (run.pipeline_path / "manifest.json").write_text(json.dumps({"parameters": task.parameters.get("steps")}))
        task.executed.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {task.notebook.title}")]), task.executed)

    def numbers(self) -> list[str]:
        return [number for number, _ in self.calls]


@pytest.fixture
def kernel(monkeypatch):
    fake = Kernel()
    monkeypatch.setattr(runner, "_papermill", fake)
    return fake


def go(small, runs: Path, force: bool = False, **settings) -> list:
    notebooks, profile = small
    changed = Profile(profile.name, profile.about, {number: {**values, **settings.get(f"n{number}", {})} for number, values in profile.settings.items()})
    return list(run_tasks(plan(changed, notebooks, runs), force, lambda line: None))


# --- what may not start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [
    ["--profile", "moon"],
    ["--profile", "smoke", "-p", "03.train_step=5"],
    ["--profile", "smoke", "-p", "no_such_thing=5"],
    ["--profile", "smoke", "-p", "33.train_steps=5"],
    ["--profile", "smoke", "-p", "03.train_steps=many"],
    ["--profile", "smoke", "-p", "03.train_steps=2.5"],
    ["--profile", "smoke", "-p", "03.start_over=1"],
    ["--profile", "smoke", "-p", "11.train_steps=5"],
    ["--profile", "smoke", "-p", "train_steps"],
    ["--profile", "smoke", "--only", "07"],
])
def test_a_wrong_request_is_one_sentence_before_any_kernel(words, kernel, tmp_path, capsys):
    assert command.main([*words, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("reports: ") and told.count("\n") == 1 and "Traceback" not in told
    assert kernel.calls == [] and not (tmp_path / "runs").exists()


def test_overrides_take_the_parameters_type():
    notebooks = find_notebooks()
    profile = override(load_profile("smoke", notebooks), notebooks, ["03.train_steps=500", "learning_rate=1e-4", "05.data=scenes:1", "12.prompts=[a, b]"])
    assert profile.settings["03"]["train_steps"] == 500 and profile.settings["02"]["train_steps"] != 500
    rates = {number: values["learning_rate"] for number, values in profile.settings.items() if "learning_rate" in values}
    assert set(rates) == {"00", "01", "02", "03", "04", "05"} and set(rates.values()) == {1e-4}
    assert profile.settings["05"]["data"] == "scenes:1" and profile.settings["12"]["prompts"] == ["a", "b"]


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_fits_the_notebooks_and_says_what_it_costs(name):
    notebooks = find_notebooks()
    profile = load_profile(name, notebooks)
    # Two only measure: the models in the repository, so they need no run of another notebook.
    assert list(profile.settings) == {"shipped": ["10", "11", "12", "13"], "emoji": ["10", "11", "12"]}.get(name, list(notebooks))
    assert all(len(sentence) > 20 for sentence in profile.about.values())
    for task in plan(profile, notebooks, Path("runs")):
        assert task.folder == Path("runs") / name / task.notebook.number and task.parameters["run_folder"] == str(task.folder)
        assert all(number in profile.settings for number in task.inputs)


@pytest.mark.parametrize(("source", "told"), [
    ("steps = 5  # no type", "is no parameter"), ("steps: int = 5.0  # wrong", "must be of type int"), ("steps: complex = 1j  # odd", "is of type complex"),
    ("a: int = 1  # one\nb: int = a  # computed", "malformed"),
])
def test_a_parameters_cell_holds_typed_literals_only(tmp_path, source, told):
    make_notebook(tmp_path, "01_bad", source)
    with pytest.raises((ReportError, ValueError), match=told):
        read_notebook(tmp_path / "01_bad.ipynb")


# --- running, skipping, continuing ---------------------------------------------------------------------------------


def test_folders_move_under_the_profile(small, tmp_path):
    notebooks, profile = small
    second = plan(profile, notebooks, tmp_path)[1]
    assert second.parameters == {"steps": 7, "minutes": 0.0, "init": str(tmp_path / "small/01/pipeline"), "run_folder": str(tmp_path / "small/02"),
                                 "start_over": False}
    assert second.inputs == ("01",)


def test_a_finished_notebook_is_skipped_and_force_runs_it_from_the_start(small, kernel, tmp_path):
    assert [task.state() for task in plan(small[1], small[0], tmp_path)] == [NEW] * 3
    go(small, tmp_path)
    assert [task.state() for task in plan(small[1], small[0], tmp_path)] == [FINISHED] * 3
    again = go(small, tmp_path)
    assert kernel.numbers() == ["01", "02", "10"] and {outcome.status for outcome in again} == {"finished"}
    assert not any(values.get("start_over") for _, values in kernel.calls)
    go(small, tmp_path, force=True)
    assert kernel.numbers() == ["01", "02", "10"] * 2
    assert [values.get("start_over") for _, values in kernel.calls[3:]] == [True, True, None]


def test_another_recipe_starts_over_and_more_time_continues(small, kernel, tmp_path):
    go(small, tmp_path)
    go(small, tmp_path, n02={"steps": 9})
    assert kernel.numbers()[3:] == ["02"] and kernel.calls[-1][1]["start_over"] is True
    go(small, tmp_path, n02={"steps": 9, "minutes": 2.0})
    assert kernel.numbers()[4:] == ["02"] and "start_over" not in kernel.calls[-1][1]


def test_a_new_model_upstream_makes_what_builds_on_it_start_over(small, kernel, tmp_path):
    go(small, tmp_path)
    go(small, tmp_path, n01={"steps": 6})
    assert kernel.numbers()[3:] == ["01", "02"] and kernel.calls[-1][1]["start_over"] is True


def test_a_stopped_notebook_continues_with_the_same_command(small, kernel, tmp_path):
    kernel.fails["02"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(small, tmp_path)
    first, second, _ = plan(small[1], small[0], tmp_path)
    assert (first.state(), second.state()) == (FINISHED, CONTINUE) and second.record()["finished"] is False
    kernel.fails.clear()
    go(small, tmp_path)
    assert kernel.numbers() == ["01", "02", "02", "10"] and "start_over" not in kernel.calls[2][1]
    assert second.record()["seconds"] > 0


def test_a_notebook_that_wrote_no_summary_of_its_own_is_not_finished(small, kernel, tmp_path):
    go(small, tmp_path)
    task = plan(small[1], small[0], tmp_path)[1]
    (task.folder / "summary.json").write_text(json.dumps({"finished": True, "step": 5}))  # the stage's, from the middle of a notebook
    assert task.state() == CONTINUE


def test_what_builds_on_a_failure_is_left_out_and_the_rest_goes_on(small, kernel, tmp_path):
    kernel.fails["01"] = ValueError("no\npictures")
    outcomes = go(small, tmp_path)
    assert [outcome.status for outcome in outcomes] == ["failed", "left out", "finished"]
    assert outcomes[0].why == "ValueError: no pictures" and "01" in outcomes[1].why
    assert kernel.numbers() == ["01", "10"]


def test_changed_is_told_apart_from_moved(small, kernel, tmp_path):
    go(small, tmp_path)
    task = plan(small[1], small[0], tmp_path)[0]
    record = task.record()
    task.write_record(**{**record, "parameters": {**record["parameters"], "start_over": True}})
    assert task.state() == FINISHED
    task.write_record(**{**record, "parameters": {**record["parameters"], "init": "elsewhere"}})
    assert task.state() == CHANGED


def test_a_parameter_that_a_notebook_gains_changes_nothing_at_its_default(small, kernel, tmp_path):
    go(small, tmp_path)
    task = plan(small[1], small[0], tmp_path)[1]
    record = task.record()
    for name, state in (("init", FINISHED), ("run_folder", FINISHED), ("minutes", FINISHED), ("steps", CHANGED)):  # steps: 7, and 5 by default
        task.write_record(**{**record, "parameters": {key: told for key, told in record["parameters"].items() if key != name}})
        assert task.state() == state, name


def test_a_start_over_that_failed_before_it_began_starts_over_again(small, kernel, tmp_path):
    go(small, tmp_path)
    kernel.fails["02"] = ValueError("no network")
    go(small, tmp_path, n02={"steps": 9})
    kernel.fails.clear()
    go(small, tmp_path, n02={"steps": 9})
    go(small, tmp_path, n02={"steps": 9})
    assert [values.get("start_over") for number, values in kernel.calls if number == "02"] == [None, True, True]


# --- claims --------------------------------------------------------------------------------------------------------


def test_claims_are_sound():
    check_claims()
    with pytest.raises(ValueError, match="same key"):
        check_claims((CLAIMS[0], CLAIMS[0]))


@pytest.mark.parametrize(("relation", "holds", "fails"), [("below", 4.9, 5.0), ("at most", 5.0, 5.1), ("at least", 5.0, 4.9), ("equals", 5.5, 5.6)])
def test_verdicts(relation, holds, fails):
    claim = Claim("k", "text", "specification", relation, 5.0, "01", "x", tolerance=0.5)
    assert (claim.verdict(holds), claim.verdict(fails), claim.verdict(None)) == (HOLDS, FAILS, NOT_MEASURED)


def test_values_are_read_from_nested_summaries():
    summary = {"a": {"b": {"c": 3}}, "flag": True, "none": None, "word": "x", "list": [1]}
    assert read_value(summary, "a.b.c") == 3.0 and read_value(summary, "flag") == 1.0
    assert [read_value(summary, where) for where in ("a.b", "a.x.c", "none", "word", "list", "word.x")] == [None] * 6


def test_every_claim_is_written_by_its_notebook():
    """The last code cell of the notebook names the entry that the claim reads, or the stage does."""
    from_stages = {"05": {"student_one_step_error", "teacher_one_step_error"}, "01": {"held_out_psnr"}}
    for claim in CLAIMS:
        if claim.notebook == "all":
            assert claim.where in ("minutes", "hours")
            continue
        notebook = find_notebooks()[claim.notebook]
        last = [cell for cell in json.loads(notebook.path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"][-1]
        calls = [node for node in ast.walk(ast.parse("".join(last["source"]))) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "close_run"]
        written = {keyword.arg for keyword in calls[0].keywords}
        if None in written:  # **found, of depth_figures
            written |= {"best_depth", "error_ratio"}
        assert claim.where.split(".")[0] in written | from_stages.get(claim.notebook, set()), claim.key


def test_the_specifications_table_holds_without_a_run():
    """Counted here and now: what notebook 13 will find for everything that needs no process."""
    variants = {name: weigh_variant(name, measure_footprint(name), None) for name in ("tiny", "small")}
    counted = measure(CLAIMS, "smoke", {"13": {"variants": variants}})
    assert {"parameters_tiny", "parameters_small", "compression", "unrolled_small", "unrolled_16", "layers"} <= set(counted)
    assert "memory_tiny" not in counted and "process_memory" not in counted
    assert all(claim.verdict(counted[claim.key]) == HOLDS for claim in CLAIMS if claim.key in counted)


def test_a_profile_answers_only_for_what_it_was_promised_for():
    summaries = {"10": {"accuracy_percent": {"one": 3.0}}, "all": {"minutes": 2.0, "hours": 0.03, "machines": ["2 CPU cores, Python 3.11"]}}
    assert set(measure(CLAIMS, "smoke", summaries)) == {"smoke_minutes"}
    assert set(measure(CLAIMS, "cpu", summaries)) == {"one_object", "cpu_hours"}


def test_a_promise_about_a_machine_is_answered_on_that_machine_alone():
    def answered(profile: str, *machines: str) -> set[str]:
        return set(measure(CLAIMS, profile, {"all": {"minutes": 2.0, "hours": 0.03, "machines": list(machines)}}))

    two, many, t4 = "2 CPU cores, Python 3.11", "64 CPU cores, Python 3.11", "Tesla T4, 2 CPU cores, Python 3.11"
    assert answered("cpu", two) == {"cpu_hours"} and answered("t4", t4) == {"t4_hours"} and answered("cpu", two, "2 CPU cores, Python 3.12")
    for profile, machines in (("cpu", [many]), ("cpu", [two, many]), ("cpu", [t4]), ("cpu", []), ("cpu", [""]), ("t4", [two]), ("t4", [t4, "NVIDIA A100, 12 CPU cores"])):
        assert not answered(profile, *machines), machines


def test_a_recipes_miss_is_not_hidden_behind_a_better_model():
    claim = Claim("a", "Alpha", "workbench", "at least", 30, "01", "a", profiles=("shipped", "cpu"))
    results = {name: {"measured": {"a": {"value": value, "commit": "abc"}}} for name, value in (("shipped", 31.0), ("cpu", 29.0))}
    assert [(item.profile, item.verdict) for item in judge(results, (claim,))] == [("shipped", HOLDS), ("cpu", FAILS)]


def test_the_table_says_not_measured_and_prefers_the_serious_profile():
    claims = (Claim("a", "Alpha", "specification", "at least", 30, "01", "a", "dB", decimals=1), Claim("b", "Beta", "workbench", "below", 1e-5, "03", "b"),
              Claim("c", "Gamma", "workbench", "equals", 1, "03", "c", note="A note."))
    about = {"about": {"cost": "c", "reaches": "r"}, "machine": "m", "date": "d", "totals": {}, "notebooks": {}, "readings": {}, "figures": {}}
    results = {name: {**about, "profile": name, "measured": measured} for name, measured in (
        ("cpu", {"a": {"value": 31.25, "commit": "abc"}}), ("smoke", {"a": {"value": 5.0, "commit": "def"}, "c": {"value": 2.0, "commit": "def"}}))}
    text = report_markdown(results, {"01": "01_wavelet_vae", "03": "03_text_to_image"}, claims)
    assert "| Alpha | specification | at least 30.0 dB | 31.2 dB | holds | [01](../notebooks/01_wavelet_vae.ipynb) | cpu | abc |" in text
    assert "| Beta | workbench | below 1.0e-05 | not measured | not measured | [03](../notebooks/03_text_to_image.ipynb) | – | – |" in text
    assert "| Gamma | workbench | 1.00 | 2.00 | **does not hold** |" in text and "- A note." in text
    assert "Of 3 claims 1 holds, 1 does not hold, and 1 was not measured." in text
    assert [item.verdict for item in judge(results, claims)] == [HOLDS, NOT_MEASURED, FAILS]
    assert order(["smoke", "odd", "cpu", "emoji", "shipped", "release", "t4"]) == ["shipped", "emoji", "release", "t4", "cpu", "smoke", "odd"]


# --- what is written -----------------------------------------------------------------------------------------------


def test_results_pages_and_report_from_runs(small, kernel, tmp_path):
    notebooks, profile = small
    tasks = plan(profile, notebooks, tmp_path / "runs")
    go(small, tmp_path / "runs")
    figure = np.random.default_rng(0).integers(0, 255, (700, 1600, 3), dtype=np.uint8)
    (tasks[0].folder / "figures").mkdir()
    Image.fromarray(figure).save(tasks[0].folder / "figures" / "1_loss.png")
    results = collect(profile, tasks)
    assert [row["status"] for row in results["notebooks"].values()] == ["finished"] * 3 and results["totals"]["minutes"] >= 0
    assert results["figures"]["01"] == ["1_loss"] and str(tmp_path) not in json.dumps(results)
    write_results(results, tmp_path)
    assert read_results(tmp_path) == {"small": json.loads(json.dumps(results))}
    assert write_figures(tasks, results, tmp_path) == 1
    small_copy = tmp_path / "figures" / "01-1_loss.png"
    assert Image.open(small_copy).width == 1000 and small_copy.stat().st_size < (tasks[0].folder / "figures" / "1_loss.png").stat().st_size
    text = report_markdown({"small": results}, {})
    assert "![1 loss](figures/01-1_loss.png)" in text and "- It ran." in text and "01 A title | finished |" in text
    site = tmp_path / "site"
    index = write_index(results, judge({"small": results}), write_pages(tasks, site, "small"), tasks, site).read_text(encoding="utf-8")
    assert 'href="small/01_first.html"' in index and "Look &amp; see" in index and "not measured" in index
    assert (site / "small" / "10_look.html").is_file()


def test_an_unfinished_profile_has_no_total_and_an_old_figure_is_not_reported(small, kernel, tmp_path):
    kernel.fails["10"] = RuntimeError("stop")
    go(small, tmp_path)
    notebooks, profile = small
    results = collect(profile, plan(profile, notebooks, tmp_path))
    assert results["totals"] == {} and "10" not in results["figures"]
    assert results["notebooks"]["10"]["status"] == "failed or stopped"


def rows_of(small, runs: Path, before: dict | None = None) -> dict:
    notebooks, profile = small
    return collect(profile, plan(profile, notebooks, runs), before)


def test_only_what_ran_as_the_profile_says_answers_for_it(small, kernel, tmp_path):
    """Other parameters, more time, a model trained anew upstream, and what was built on any of these: told in the row, judged by no claim."""
    go(small, tmp_path)
    go(small, tmp_path, n01={"steps": 6, "init": "/home/me/first"})
    told = {number: row["status"] for number, row in rows_of(small, tmp_path)["notebooks"].items()}
    assert told == {"01": "finished, but with steps = 6, init = …/first", "02": "finished, but on notebook 01, which ran otherwise", "10": "finished"}
    results = rows_of(small, tmp_path)
    assert results["totals"] == {} and set(results["readings"]) == {"01", "02", "10"}
    go(small, tmp_path)  # as the profile says again, and then the first alone anew with another result
    first = plan(small[1], small[0], tmp_path)[0]
    assert {row["status"] for row in rows_of(small, tmp_path)["notebooks"].values()} == {"finished"}
    (first.folder / "pipeline" / "manifest.json").write_text("another")
    assert rows_of(small, tmp_path)["notebooks"]["02"]["status"] == "finished, but what it builds on has changed since"
    go(small, tmp_path, n02={"minutes": 3.0})
    assert rows_of(small, tmp_path)["notebooks"]["02"]["status"] == "finished, but with minutes = 3.0"


def test_a_claim_is_measured_by_the_profiles_own_run_alone(small, kernel, tmp_path, monkeypatch):
    claim = Claim("seen", "Steps seen", "workbench", "equals", 5, "02", "step")
    monkeypatch.setattr("reports.results.CLAIMS", (claim,))
    go(small, tmp_path)
    assert rows_of(small, tmp_path)["measured"]["seen"]["value"] == 5
    go(small, tmp_path, n02={"steps": 9})
    assert rows_of(small, tmp_path)["measured"] == {}


def test_what_was_run_elsewhere_is_kept_until_it_is_run_here(small, kernel, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.results.CLAIMS", (Claim("seen", "Steps seen", "workbench", "equals", 5, "02", "step"),))
    notebooks, profile = small
    home, away, here = tmp_path / "reports", tmp_path / "away", tmp_path / "here"
    go(small, away)
    before = plan(profile, notebooks, away)
    for task in before:
        (task.folder / "figures").mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(task.folder / "figures" / "1_curve.png")
    results = rows_of(small, away)
    write_figures(before, results, home)
    (home / "figures" / "10-9_old.png").write_bytes(b"what no result names")
    list(run_tasks(plan(profile, notebooks, here)[2:], False, lambda line: None))  # the last notebook alone, on another machine, without a figure
    merged = rows_of(small, here, results)
    assert [row["status"] for row in merged["notebooks"].values()] == ["finished"] * 3 and merged["measured"] == results["measured"]
    assert merged["totals"]["hours"] >= 0 and merged["figures"] == {"01": ["1_curve"], "02": ["1_curve"], "10": []}
    write_figures(plan(profile, notebooks, here), merged, home)
    assert {path.name for path in (home / "figures").iterdir()} == {"01-1_curve.png", "02-1_curve.png"}
    list(run_tasks(plan(Profile("small", profile.about, {"01": {"steps": 6}}), notebooks, here), False, lambda line: None))
    fresh = rows_of(small, here, results)  # 02 was measured on another 01 than the one that lies here now
    assert [row["status"] for row in fresh["notebooks"].values()] == ["finished, but with steps = 6", "not run", "finished"] and fresh["measured"] == {}
    edited = Profile("small", profile.about, {**profile.settings, "02": {"steps": 8}})
    now = collect(edited, plan(edited, notebooks, tmp_path / "nowhere"), results)
    assert [row["status"] for row in now["notebooks"].values()] == ["finished", "not run", "finished"] and now["measured"] == {}


def test_the_time_of_a_lost_session_counts(small, kernel, tmp_path):
    """A mirror brings back the run with its minutes, not the record beside the executed notebook."""
    go(small, tmp_path)
    task = plan(small[1], small[0], tmp_path)[0]
    summary = json.loads((task.folder / "summary.json").read_text())
    (task.folder / "summary.json").write_text(json.dumps({**summary, "minutes": 30.0}))
    assert rows_of(small, tmp_path)["notebooks"]["01"]["seconds"] == 1800.0


def test_a_folder_in_runs_that_is_no_notebooks_is_what_it_says(small, tmp_path):
    notebooks, profile = small
    second = plan(Profile("small", profile.about, {"02": {"init": "runs/cpu/03/pipeline"}}), notebooks, tmp_path)[0]
    assert second.parameters["init"] == "runs/cpu/03/pipeline" and second.inputs == ()


def test_a_promise_that_a_profile_never_measured_is_a_row_of_its_own():
    claim = Claim("a", "Alpha", "workbench", "at least", 30, "01", "a", profiles=("cpu", "release"))
    judged = judge({"cpu": {"measured": {"a": {"value": 31.0, "commit": "abc"}}}}, (claim,))
    assert [(item.profile, item.verdict, item.measured) for item in judged] == [("cpu", HOLDS, "31.00"), ("release", NOT_MEASURED, NOT_MEASURED)]


def test_a_page_has_neither_code_nor_progress_bars(tmp_path):
    cell = nbformat.v4.new_code_cell("secret_code = 1", outputs=[
        nbformat.v4.new_output("stream", name="stderr", text=" 10%|█         | 2/20 [00:01<00:09]\r 20%|██        | 4/20 [00:02<00:08]\n"),
        nbformat.v4.new_output("stream", name="stdout", text="\x1b[31mA <b>figure</b> of 42\x1b[0m\n"),
        nbformat.v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "HBox()"}),
        nbformat.v4.new_output("display_data", data={"text/markdown": "| a | b |\n|---|---|\n| 1 | 2 |", "text/plain": ""}),
    ])
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell]), tmp_path / "n.ipynb")
    html = notebook_page(tmp_path / "n.ipynb", "Title & more")
    assert "of 42" in html and "&lt;b&gt;figure" in html and "<td>2</td>" in html and "Title &amp; more" in html
    assert not any(word in html for word in ("secret_code", "20%", "HBox", "\x1b", "<script", "http://", "https://"))
    assert "<title>a &lt; b</title>" in page("a < b", "")


def test_claims_are_plain_data():
    assert all(json.loads(json.dumps(asdict(claim)))["key"] == claim.key for claim in CLAIMS)
