"""Training begun from the page: a folder per job, a process of its own, and what the page reads while it runs.

    python -m demo.training runs/demo/NAME

runs the job that FOLDER/job.json describes: stage 1 where there is no model to go on from, then stage 3. The process belongs
to no page and to no visitor: a closed tab, and a server that ends, leave it alone. It writes FOLDER/state.json. Told to stop, it ends
after its step with the model as it is; told again, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from demo.model import ROOT, RUNS
from demo.request import RequestError, number
from iris.data.emoji import emoji_packs
from iris.locks import process_lives, start_time
from iris.runs import read_metrics

JOBS = RUNS / "demo"
# Examples of 32 that two CPU cores train on in a minute, roughly: the schedule's length, while `minutes` is the limit.
STEPS_A_MINUTE = {"nano": 400, "micro": 60}
LEARNING_RATES = {"nano": 2e-3, "micro": 1e-3}
PRESETS = list(STEPS_A_MINUTE)
PACKS = {"Scenes: coloured shapes": "scenes:one", "Scenes with relations": "scenes", "OpenMoji": "emoji:openmoji"}
MINUTES = (1.0, 120.0)
MAX_PICTURES = 5_000  # more than some minutes can look at; encoding them would take longer than training
AUTOENCODER_SHARE = 0.4  # of the minutes, when stage 1 is needed
STAGES = ("autoencoder", "text-to-image")
STOP_FILE = "stop"  # in a job's folder: it ends after its step
CAPTIONS = "captions.json"
_children: list[subprocess.Popen] = []


@dataclass(frozen=True)
class Job:
    """What to train. data: a source of iris.data; init: a model folder of the same preset to go on from, or ""."""

    data: str
    preset: str
    minutes: float
    init: str = ""
    batch_size: int = 32


@dataclass(frozen=True)
class JobState:
    """status: "running", "stopping" (after its step), "finished", "failed" or "stopped"; message: one sentence; started: of the process `pid`, whose number may be another's later."""

    status: str
    message: str
    pid: int = 0
    started: str | None = None

    @property
    def is_alive(self) -> bool:
        return self.status in ("running", "stopping")


# --- the page's side -----------------------------------------------------------------------------------------------


def packs() -> dict[str, str]:
    """The pictures that can be trained on here, label -> data source: art only where its packages are installed."""
    art = emoji_packs()
    return {label: source for label, source in PACKS.items() if not source.startswith("emoji:") or source.partition(":")[2] in art}


def plan_job(data: object, preset: object, minutes: object, init: str = "") -> Job:
    """Check what a visitor chose; raises RequestError."""
    if preset not in PRESETS:
        raise RequestError(f"The size is unknown; use {' or '.join(PRESETS)}.")
    if not isinstance(data, str) or not data:
        raise RequestError("Choose pictures to train on, or upload a zip of captioned pictures.")
    return Job(data, str(preset), number("minutes", minutes, *MINUTES), init)


def start_job(job: Job, folder: Path) -> None:
    """Run `job` in `folder` in a process of its own; RequestError when another one runs."""
    if running_job() is not None:
        raise RequestError("A training is running already; wait for its end, or stop it.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    with open(folder / "log.txt", "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "demo.training", str(folder)], cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    _children.append(child)
    _write_state(folder, JobState("running", "Starting.", child.pid, start_time(child.pid)))


def new_folder() -> Path:
    """A folder for the next job, named by the time."""
    return JOBS / time.strftime("%Y-%m-%d-%H%M%S")


def latest_job() -> Path | None:
    """The newest job's folder."""
    found = sorted(path.parent for path in JOBS.glob("*/job.json"))
    return found[-1] if found else None


def running_job() -> Path | None:
    """The folder of the job that runs now."""
    folder = latest_job()
    return folder if folder is not None and read_state(folder).is_alive else None


def read_state(folder: Path) -> JobState:
    """What state.json says, corrected where the process is gone."""
    for child in _children:
        child.poll()  # an ended child must not look alive
    try:
        state = JobState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return JobState("failed", "The training left no state.")
    if not state.is_alive or (state.pid > 0 and process_lives(state.pid, state.started)):
        return state
    if state.status == "stopping":
        return JobState("stopped", "Stopped; no model was made.", state.pid)
    return JobState("failed", "The training ended without a word; log.txt in its folder may say why.", state.pid)


def stop_job(folder: Path) -> None:
    """Ask the job to end after its step, with the model as it is. Asked again, its processes end at once; its last checkpoint stays."""
    state = read_state(folder)
    if not state.is_alive:
        return
    at_once = state.status == "stopping"
    if not at_once:
        (folder / STOP_FILE).touch()
        _write_state(folder, JobState("stopping", "Ending after this step, with the model as it is; Stop again ends at once, without one.", state.pid, state.started))
        if os.name == "nt":  # there `terminate` kills
            return
    with contextlib.suppress(psutil.Error):
        job = psutil.Process(state.pid)
        for process in [*(job.children(recursive=True) if at_once else []), job]:
            process.terminate()


def stage_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """stage -> the rows of its metrics so far."""
    return {stage: rows for stage in STAGES if (rows := read_metrics(folder / stage))}


def sample_files(folder: Path) -> list[Path]:
    """The newest samples, one a prompt."""
    files = sorted((folder / STAGES[1] / "figures" / "samples").glob("step-*.png"))
    newest = files[-1].name.rpartition("-")[0] if files else ""
    return [file for file in files if file.name.startswith(newest)]


def sample_captions(folder: Path) -> list[str]:
    """What the samples should show, in their order."""
    try:
        return [str(caption) for caption in json.loads((folder / STAGES[1] / CAPTIONS).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def model_folder(folder: Path) -> Path:
    """Where the job's model is when it has finished."""
    return folder / STAGES[1] / "pipeline"


def _write_state(folder: Path, state: JobState) -> None:
    draft = folder / "state.json.new"
    draft.write_text(json.dumps(asdict(state)), encoding="utf-8")
    draft.replace(folder / "state.json")


# --- the process's side --------------------------------------------------------------------------------------------


def run_job(folder: Path, job: Job) -> JobState:
    """Both stages; returns how it ended. Raises the library's ValueErrors."""
    from iris.training import stages
    from iris.training.ending import told_to_end
    from iris.training.prepare import configure, find_start, load_pictures, open_run, plan_training

    config = configure(job.preset, init=job.init)
    pictures, held_out = load_pictures(job.data, config, MAX_PICTURES)
    batch = min(job.batch_size, len(pictures))
    start = find_start([job.init], config, ("autoencoder",)) if job.init else None
    rest = job.minutes if start else job.minutes * (1 - AUTOENCODER_SHARE)

    def plan(minutes: float) -> Any:
        return plan_training(max(20, round(minutes * STEPS_A_MINUTE[job.preset])), minutes, batch, LEARNING_RATES[job.preset])

    init = start.folder if start else None
    if init is None:
        train = plan(job.minutes - rest)
        with open_run(folder / STAGES[0], config, train, job.data) as run:
            init = stages.train_autoencoder(config, pictures, held_out, train, run).pipeline_path
    if told_to_end():
        return JobState("stopped", "Stopped before the generator's training; no model was made.", os.getpid())
    train = plan(rest)
    with open_run(folder / STAGES[1], config, train, job.data) as run:
        result = stages.train_text_to_image(config, pictures, held_out, train, run, init=init, on_log=_sampler(run, config, init, held_out, train))
    losses = [row["held_out_loss"] for row in read_metrics(folder / STAGES[1]) if row.get("held_out_loss") is not None]
    fall = f" Held-out loss went from {losses[0]:.3f} to {losses[-1]:.3f}." if len(losses) > 1 else ""
    ended = f"Stopped after {result.summary['step']:,} steps." if told_to_end() else "Finished."
    return JobState("finished", f"{ended}{fall} The model is in the list on the Model tab.", os.getpid())


def _sampler(run: Any, config: Any, init: Path, held_out: Any, train: Any) -> Any:
    """Draws the first held-out captions a few times on the way."""
    from iris.evaluation.snapshots import Snapshots

    prompts = list(dict.fromkeys(held_out[index].captions[0] for index in range(min(4, len(held_out)))))
    (run.path / CAPTIONS).write_text(json.dumps(prompts), encoding="utf-8")
    return Snapshots(run, config, init, prompts, train.train_steps)


def main(folder: Path) -> None:
    """Run the folder's job and write how it ended."""
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    _write_state(folder, JobState("running", f"Training {job.preset} for up to {job.minutes:g} minute{'' if job.minutes == 1 else 's'}.", os.getpid(), start_time(os.getpid())))
    try:
        _write_state(folder, run_job(folder, job))
    except ValueError as error:  # the library's own errors are one sentence
        _write_state(folder, JobState("failed", str(error), os.getpid()))
        raise SystemExit(1) from error


if __name__ == "__main__":
    from iris.training.ending import end_when_told

    end_when_told(Path(sys.argv[1]).resolve() / STOP_FILE)
    main(Path(sys.argv[1]).resolve())
