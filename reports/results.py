"""What the runs of a profile measured, as one small JSON file: reports/results/PROFILE.json. REPORT.md is written from these files."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.claims import CLAIMS, measure
from reports.profiles import Profile
from reports.runner import Task

SERIOUS = ("shipped", "emoji", "release", "t4", "cpu", "smoke")  # whose figures stand in the report when several profiles measured them
FIGURE_WIDTH = 1000


def order(profiles: Sequence[str]) -> list[str]:
    """The shipped models first, then profiles by how long they train, the longest first; unknown ones last."""
    return sorted(profiles, key=lambda name: (SERIOUS.index(name) if name in SERIOUS else len(SERIOUS), name))


def collect(profile: Profile, tasks: Sequence[Task]) -> dict[str, Any]:
    """Everything the report says about a profile, from records, summaries and figures of its runs. Plain JSON without local paths."""
    summaries = {task.notebook.number: task.summary() for task in tasks if _complete(task)}
    rows = {task.notebook.number: _row(task) for task in tasks}
    totals = _totals(rows)
    summaries_and_totals = summaries | ({"all": totals} if totals else {})
    measured = measure(CLAIMS, profile.name, summaries_and_totals)
    commits = {claim.key: rows.get(claim.notebook, {}).get("commit", "") for claim in CLAIMS}
    commits |= {claim.key: next((row["commit"] for row in rows.values() if row["commit"]), "") for claim in CLAIMS if claim.notebook == "all"}
    return {
        "profile": profile.name, "about": dict(profile.about), "date": time.strftime("%Y-%m-%d"),
        "machine": next((summary["machine"] for summary in summaries.values() if summary.get("machine")), ""),
        "notebooks": rows, "totals": totals,
        "measured": {key: {"value": value, "commit": commits[key]} for key, value in measured.items()},
        "readings": {number: summary.get("reading", []) for number, summary in summaries.items()},
        "figures": {task.notebook.number: [path.stem for path in _figures(task)] for task in tasks if _complete(task)},
    }


def _complete(task: Task) -> bool:
    return bool(task.record().get("finished")) and task.summary().get("notebook") == task.notebook.name


def _row(task: Task) -> dict[str, Any]:
    record, summary = task.record(), task.summary()
    status = "finished" if _complete(task) else "failed or stopped" if record else "not run"
    return {"name": task.notebook.name, "title": task.notebook.title, "status": status, "seconds": round(record.get("seconds", 0.0), 1),
            "commit": record.get("commit", ""), "started": record.get("started", ""), "step": summary.get("step") if record else None,
            "data": _without_path(str(summary.get("data", task.parameters.get("data", ""))))}


def _without_path(source: str) -> str:
    """A data source without the folder of whoever ran it."""
    return "+".join(f"{part.split(':')[0]}:…" if "/" in part and part.startswith(("folder:", "webdataset:")) else part for part in source.split("+"))


def _totals(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Time of the whole profile; {} unless every notebook of it is finished."""
    if not rows or any(row["status"] != "finished" for row in rows.values()):
        return {}
    seconds = sum(row["seconds"] for row in rows.values())
    return {"minutes": round(seconds / 60, 2), "hours": round(seconds / 3600, 3)}


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


def write_figures(tasks: Sequence[Task], folder: Path) -> int:
    """Small copies of the runs' figures as FOLDER/figures/NN-name.png in place of earlier ones; returns how many."""
    from PIL import Image

    target = folder / "figures"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    count = 0
    for task in tasks:
        for path in _figures(task) if _complete(task) else ():
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
