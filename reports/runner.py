"""Run the notebooks of a profile in order through papermill: skip what is finished, continue what was stopped.

    runs/PROFILE/NN/           the run folder of notebook NN: metrics, model, figures, summary
    runs/PROFILE/notebooks/    executed copies, and one JSON record beside each: what it was run with, and how it ended
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from iris.runs import RunError, read_metrics, read_summary
from reports.notebooks import ROOT, Notebook
from reports.profiles import Profile

FREE = {"minutes", "vae_minutes", "prompts"}  # how long to run and what to draw decide nothing about a step, so a run is continued with others
UNTOLD = ("start_over", "run_folder", "repo_url")  # parameters that decide nothing about what comes out
CODE = ("iris", "notebooks", "demo/models", "reports/*.py", "reports/profiles")  # what decides a figure
_RUN = re.compile(r"runs/(\d\d)(?:/|$)")  # a run of the same profile, wherever it lies; any other folder is what it says
FINISHED, CONTINUE, CHANGED, NEW = "finished", "continue", "changed", "new"


@dataclass(frozen=True)
class Task:
    """One notebook with all its parameters, ready to run. `inputs` are the runs (by number) that its folders name."""

    notebook: Notebook
    parameters: Mapping[str, Any]
    folder: Path
    executed: Path
    inputs: tuple[str, ...]

    @property
    def record_file(self) -> Path:
        return self.executed.with_suffix(".json")

    def record(self) -> dict[str, Any]:
        """What the last attempt left, or {}."""
        try:
            return json.loads(self.record_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def write_record(self, **values: Any) -> None:
        """Replace the record atomically."""
        self.record_file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.record_file.with_suffix(".draft")
        draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, self.record_file)

    def state(self) -> str:
        """NEW, FINISHED, CONTINUE (stopped, or given more time) or CHANGED (another recipe or another model to start from)."""
        record = self.record()
        if not record:
            return NEW
        others = self.other_parameters()
        if record.get("start_over") or self.other_models() or others.keys() - FREE:
            return CHANGED
        return FINISHED if self.ended() and not others else CONTINUE

    def ended(self) -> bool:
        """Whether the last attempt came to the notebook's end, whatever it ran with."""
        return bool(self.record().get("finished")) and self.summary().get("notebook") == self.notebook.name

    def other_parameters(self) -> dict[str, Any]:
        """What the last attempt ran with where this task says otherwise; a parameter that the notebook has gained since stood at its default."""
        gained = {name: _moved(value, self.folder.parent) for name, value in self.notebook.defaults().items()}
        before = gained | self.record().get("parameters", {})
        return {name: value for name, value in before.items() if name not in UNTOLD and value != self.parameters.get(name)}

    def settings(self) -> str:
        """Twelve hex digits of what the task says otherwise than its notebook by itself and what decides a figure; the same wherever its runs lie."""
        usual = {name: _moved(value, self.folder.parent) for name, value in self.notebook.defaults().items()}
        said = {name: str(value).replace(str(self.folder.parent), "runs") for name, value in sorted(self.parameters.items())
                if name not in UNTOLD and name not in FREE and value != usual.get(name)}
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]

    def other_models(self) -> list[str]:
        """Parameters that name a folder whose model is not the one that the last attempt read there."""
        before, now = self.record().get("models", {}), self.models()
        return [name for name in {**before, **now} if before.get(name, "") != now.get(name, "")]

    def summary(self) -> dict[str, Any]:
        """The run's summary.json, or {}."""
        try:
            return read_summary(self.folder)
        except RunError:
            return {}

    def models(self) -> dict[str, str]:
        """Parameter -> twelve digits of the model in the folder that it names; "" where there is none yet."""
        manifests = {name: Path(value) / "manifest.json" for name, value in self.parameters.items() if name in self._folders()}
        return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "" for name, file in manifests.items()}

    def _folders(self) -> list[str]:
        return [name for name, default in self.notebook.defaults().items() if _run_of(default) and name != "run_folder"]


def _run_of(value: Any) -> str:
    """The number of the notebook whose run the value names, as runs/04/pipeline does; "" for any other value."""
    named = _RUN.match(value) if isinstance(value, str) else None
    return named[1] if named else ""


def _moved(value: Any, home: Path) -> Any:
    """A folder runs/NN... as it lies under `home`; any other value as it is."""
    return str(home / value.removeprefix("runs/")) if _run_of(value) else value


def plan(profile: Profile, notebooks: Mapping[str, Notebook], runs: Path) -> list[Task]:
    """A task for each notebook of the profile, its folders moved under runs/PROFILE."""
    home = runs / profile.name
    tasks = []
    for number, settings in profile.settings.items():
        notebook = notebooks[number]
        values = {**notebook.defaults(), **settings}
        inputs = [_run_of(value) for name, value in values.items() if _run_of(value) and name != "run_folder"]
        values = {name: _moved(value, home) for name, value in values.items()}
        tasks.append(Task(notebook, values, home / number, home / "notebooks" / f"{notebook.name}.ipynb", tuple(inputs)))
    return tasks


@dataclass(frozen=True)
class Outcome:
    """How a task ended: `status` is "finished" (now or before), "failed" or "left out" (its input failed), with a sentence why.

    `ran`: a kernel worked on it just now.
    """

    task: Task
    status: str
    why: str = ""
    ran: bool = False


def run_tasks(tasks: Sequence[Task], force: bool, say: Callable[[str], None]) -> Iterator[Outcome]:
    """Run the tasks in order and yield each outcome. What builds on a failed notebook is left out; the others go on."""
    failed: set[str] = set()
    for index, task in enumerate(tasks, start=1):
        head = f"[{index}/{len(tasks)}] {task.notebook.name}"
        broken = [number for number in task.inputs if number in failed]
        state = task.state()
        if broken:
            failed.add(task.notebook.number)
            outcome = Outcome(task, "left out", f"it builds on notebook {', '.join(broken)}, which failed.")
        elif state == FINISHED and not force:
            outcome = Outcome(task, "finished", "nothing to do: finished before with the same parameters.")
        else:
            say(f"{head}: {'starting over' if force or state == CHANGED else 'continuing' if state == CONTINUE else 'starting'}")
            outcome = _execute(task, force or state == CHANGED, say)
        if outcome.status == "failed":
            failed.add(task.notebook.number)
        say(f"{head}: {outcome.status}{', ' + outcome.why if outcome.why else ''}")
        yield outcome


def _execute(task: Task, start_over: bool, say: Callable[[str], None]) -> Outcome:
    """One notebook in a kernel of its own. Its record says from the start what it runs with, so that a kill leaves that behind.

    The record says `start_over` until the run folder has been begun anew: an attempt that fails before that is no start to continue.
    """
    record = task.record()
    spent = 0.0 if start_over else record.get("seconds", 0.0)
    about = {"parameters": dict(task.parameters), "models": task.models(), "commit": code_version(), "started": time.strftime("%Y-%m-%d %H:%M")}
    start_over = start_over and "start_over" in task.notebook.parameters
    config, begun = task.folder / "run.json", time.time()
    task.write_record(**about, finished=False, seconds=spent, start_over=start_over)
    task.folder.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in task.parameters.items() if name != "start_over"}
    if start_over:
        values["start_over"] = True
    began, outcome = time.monotonic(), Outcome(task, "failed", "stopped; the same command continues.")

    def keep(finished: bool = False) -> None:  # now and then, so that the time of a killed attempt counts too
        pending = start_over and not finished and not (config.is_file() and config.stat().st_mtime >= begun)
        task.write_record(**about, finished=finished, seconds=spent + time.monotonic() - began, start_over=pending)

    try:
        with _watched(task, say, keep):
            _papermill(task, values)
        outcome = Outcome(task, "finished", f"{(time.monotonic() - began) / 60:.1f} min.", True)
    except Exception as error:  # a notebook may fail in any way; the next one must still run
        outcome = Outcome(task, "failed", _reason(error), True)
    finally:  # Ctrl-C too
        keep(outcome.status == "finished")
    return outcome


def _papermill(task: Task, values: Mapping[str, Any]) -> None:
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill.execute_notebook(str(task.notebook.path), str(task.executed), parameters=dict(values), kernel_name="python3", cwd=str(ROOT),
                               start_timeout=180, autosave_cell_every=15,
                               progress_bar={"desc": task.notebook.name, "leave": False, "mininterval": 1.0})


def _reason(error: Exception) -> str:
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {' '.join(str(value).split())[:300]}"


@contextmanager
def _watched(task: Task, say: Callable[[str], None], keep: Callable[[], None], every_seconds: float = 30.0) -> Iterator[None]:
    """While the kernel works, tell what the run's metrics say (a cell that trains for an hour is no silent cell), and `keep` the time it took."""
    done = threading.Event()

    began = time.time()

    def watch() -> None:
        told = -1
        while not done.wait(every_seconds):
            keep()
            row = _last_row(task.folder, began)
            if row and row["step"] != told:
                told = row["step"]
                say("    " + ", ".join([f"step {told:,} of {task.parameters.get('train_steps', 0):,}", *_parts(row)]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _last_row(folder: Path, began: float) -> dict[str, Any] | None:
    """The newest row of a run's metrics, if it was written after `began`."""
    try:
        rows = read_metrics(folder) if (folder / "metrics.jsonl").stat().st_mtime > began else []
    except (RunError, OSError):
        return None
    return rows[-1] if rows else None


def _parts(row: Mapping[str, Any]) -> list[str]:
    known = {"loss": "loss {:.4f}", "images_per_second": "{:.1f} images/s", "seconds": "{:.0f} s of training"}
    return [text.format(row[name]) for name, text in known.items() if isinstance(row.get(name), (int, float))]


def code_version() -> str:
    """Short commit of the repository, with + when tracked files differ from it; "" outside of git."""
    if shutil.which("git") is None:
        return ""
    answer = [subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
              for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "--", *CODE))]
    return answer[0].stdout.strip() + ("+" if answer[1].stdout.strip() else "") if answer[0].returncode == 0 else ""


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends the reports as Ctrl-C does, so that the kernel is closed and the record is written."""
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def printer() -> Callable[[str], None]:
    """Print lines without breaking a progress bar."""
    return lambda line: tqdm.write(f"{time.strftime('%H:%M:%S')}  {line}")
