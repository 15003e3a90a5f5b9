"""What the runs of a profile measured, as one small JSON file: reports/results/PROFILE.json. REPORT.md is written from these files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.claims import CLAIMS, measure
from reports.profiles import Profile
from reports.runner import FINISHED, NEW, Task

SERIOUS = ("shipped", "emoji", "release", "t4", "cpu", "smoke")  # whose figures stand in the report when several profiles measured them
FIGURE_WIDTH = 1000
NOT_RUN = "not run"


def order(profiles: Sequence[str]) -> list[str]:
    """The shipped models first, then profiles by how long they train, the longest first; unknown ones last."""
    return sorted(profiles, key=lambda name: (SERIOUS.index(name) if name in SERIOUS else len(SERIOUS), name))


def collect(profile: Profile, tasks: Sequence[Task], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything the report says about a profile, from records, summaries and figures of its runs. Plain JSON without local paths.

    `tasks` are the profile's own, without what a command line changed: a notebook that ran otherwise is shown, and answers for no
    claim. A notebook without a record here keeps what `before`, the last results of this profile, told of it.
    """
    before = before or {}
    here, told = [task for task in tasks if task.state() != NEW], standings(tasks)
    rows, ended = {task.notebook.number: _row(task, told[task.notebook.number]) for task in tasks}, [task for task in here if task.ended()]
    kept = _kept(tasks, before)
    rows |= kept
    totals = _totals(rows)
    measured = measure(CLAIMS, profile.name, {task.notebook.number: task.summary() for task in ended if told[task.notebook.number] == FINISHED} | totals)
    answers = {claim.key: before["measured"][claim.key] for claim in CLAIMS if claim.notebook in kept and claim.key in before["measured"]}
    answers |= {claim.key: {"value": measured[claim.key], "commit": _commit(rows, claim.notebook)} for claim in CLAIMS if claim.key in measured}
    return {
        "profile": profile.name, "about": dict(profile.about), "date": time.strftime("%Y-%m-%d"),
        "machine": "; ".join(dict.fromkeys(row["machine"] for row in rows.values() if row["machine"])),
        "notebooks": rows, "totals": totals.get("all", {}), "measured": answers,
        "readings": _of(before, "readings", kept) | {task.notebook.number: task.summary().get("reading", []) for task in ended},
        "figures": _of(before, "figures", kept) | {task.notebook.number: [path.stem for path in _figures(task)] for task in ended},
    }


def _kept(tasks: Sequence[Task], before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The earlier rows of notebooks that have no record here, unless a model that they measured, or what the profile says of them, is another here."""
    kept = {}
    for task in tasks:
        row, now = before.get("notebooks", {}).get(task.notebook.number), task.models()
        if row and task.state() == NEW and row.get("settings", task.settings()) == task.settings() and all(now.get(name) in ("", model) for name, model in row.get("models", {}).items() if model):
            kept[task.notebook.number] = {"machine": before.get("machine", ""), **row}
    return kept


def _of(before: Mapping[str, Any], part: str, numbers: Iterable[str]) -> dict[str, Any]:
    return {number: before[part][number] for number in numbers if number in before[part]}


def standings(tasks: Sequence[Task]) -> dict[str, str]:
    """Number -> how the notebook stands. FINISHED alone means: as its profile says, on models that are still there and came about so too."""
    told: dict[str, str] = {}
    for task in tasks:
        astray = [number for number in task.inputs if told.get(number, "").startswith(f"{FINISHED},")]
        others = {name: value for name, value in task.other_parameters().items() if name in task.parameters}
        if task.state() == NEW:
            status = NOT_RUN
        elif not task.ended():
            status = "failed or stopped"
        elif others:
            status = f"{FINISHED}, but with " + ", ".join(f"{name} = {_briefly(value)}" for name, value in others.items())
        elif task.state() != FINISHED:
            status = f"{FINISHED}, but what it builds on has changed since"
        else:
            status = f"{FINISHED}, but on notebook {' and '.join(astray)}, which ran otherwise" if astray else FINISHED
        told[task.notebook.number] = status
    return told


def _briefly(value: Any) -> str:
    """A parameter's value in a table: short, and without the folder of whoever ran it."""
    text = _without_path(" ".join(str(value).split())).replace("|", "/")
    text = f"…/{Path(text).name}" if text.startswith(("/", "~")) else text
    return text if len(text) <= 40 else f"{text[:39]}…"


def _row(task: Task, status: str) -> dict[str, Any]:
    """A notebook's line. Its time is at least that of the training: the record of a session that was lost may be lost with it."""
    record, summary = task.record(), task.summary() if task.record() else {}
    return {"name": task.notebook.name, "title": task.notebook.title, "status": status, "settings": task.settings(),
            "seconds": round(max(record.get("seconds", 0.0), 60 * summary.get("minutes", 0.0)), 1),
            "models": record.get("models", {}), "commit": record.get("commit", ""), "started": record.get("started", ""), "step": summary.get("step"), "machine": summary.get("machine", ""),
            "data": _without_path(str(summary.get("data", task.parameters.get("data", ""))))}


def _commit(rows: Mapping[str, Mapping[str, Any]], notebook: str) -> str:
    """Where a figure of the notebook comes from; of all notebooks, if they come from one commit."""
    commits = dict.fromkeys(row["commit"] for row in ([rows[notebook]] if notebook in rows else rows.values()))
    return next(iter(commits)) if len(commits) == 1 else f"{len(commits)} commits"


def _without_path(source: str) -> str:
    """A data source without the folder of whoever ran it."""
    return "+".join(f"{part.split(':')[0]}:…" if "/" in part and part.startswith(("folder:", "webdataset:")) else part for part in source.split("+"))


def _totals(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Time of the whole profile as the summary of a notebook "all"; {} unless every notebook of it is finished."""
    if not rows or any(row["status"] != FINISHED for row in rows.values()):
        return {}
    seconds = sum(row["seconds"] for row in rows.values())
    return {"all": {"minutes": round(seconds / 60, 2), "hours": round(seconds / 3600, 3), "machines": sorted({row["machine"] for row in rows.values()})}}


def _figures(task: Task) -> list[Path]:
    return sorted((task.folder / "figures").glob("*.png"))


# --- on disk -------------------------------------------------------------------------------------------------------


def write_results(results: Mapping[str, Any], folder: Path) -> Path:
    """FOLDER/results/PROFILE.json, replaced atomically."""
    file = folder / "results" / f"{results['profile']}.json"
    write_text(file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return file


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Profile -> results of every file in FOLDER/results, the most serious profile first."""
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (folder / "results").glob("*.json")}
    return {name: found[name] for name in order(list(found))}


def write_figures(tasks: Sequence[Task], results: Mapping[str, Any], folder: Path) -> int:
    """Small copies of the runs' figures as FOLDER/figures/NN-name.png, and nothing else but what the results still name; returns how many."""
    from PIL import Image

    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    named = {figure_name(number, stem) for number, stems in results["figures"].items() for stem in stems}
    for path in target.glob("*.png"):
        if path.name not in named:
            path.unlink()
    count = 0
    for task in tasks:
        for path in _figures(task) if task.state() != NEW and task.ended() else ():
            image = Image.open(path).convert("RGB")
            image.thumbnail((FIGURE_WIDTH, 4 * FIGURE_WIDTH), Image.Resampling.LANCZOS)
            image.quantize(192, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(target / figure_name(task.notebook.number, path.stem), optimize=True)
            count += 1
    return count


def figure_name(number: str, stem: str) -> str:
    """File name of a figure in reports/figures."""
    return f"{number}-{stem}.png"


def write_text(file: Path, text: str) -> None:
    """Replace a text file atomically; folders are created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)
