"""A second copy of a run's folder, on a disk that outlives the machine: a mounted Drive, a Kaggle output.

What can be made again (latents), what belongs to one machine (the lock) and hidden drafts are left out. Files and checkpoint
folders are copied beside their place and renamed into it, so a copy cut off at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from iris.replacing import delete_emptied, put_in_place

FILES = ("metrics.jsonl", "summary.json", "run.json")
_MANIFEST = "manifest.json"


def newest_step(run: Path) -> int:
    """The step of the newest folder RUN/checkpoints/step-N; -1 when there is none."""
    steps = (entry.name.removeprefix("step-") for entry in (run / "checkpoints").glob("step-*") if entry.is_dir())
    return max((int(step) for step in steps if step.isdigit()), default=-1)


def copy_run(source: Path, target: Path, prune: bool = True) -> None:
    """Make `target` a copy of the run folder `source`; the same function brings a run back. Raises OSError.

    Checkpoints come first and what says where the run stands comes after them, so a copy that is cut off in between is the
    run of a moment earlier. With `prune` checkpoints that `source` no longer keeps are deleted at the end.
    """
    target.mkdir(parents=True, exist_ok=True)
    for left in (target / "checkpoints").glob(".step-*.copying"):  # by a copy that was killed; a Drive fills up with them
        delete_emptied(left)
    kept = [folder for folder in _folders(source) if (folder / _MANIFEST).is_file()]
    for folder in kept:
        _copy_folder(folder, target / folder.relative_to(source))
    figures = [path for path in (source / "figures").rglob("*") if path.is_file() and not path.name.startswith(".")]
    for file in [*(source / name for name in FILES), *figures]:
        if file.is_file():
            _copy_file(file, target / file.relative_to(source))
    wanted = {folder.relative_to(source) for folder in kept}
    for folder in list(_folders(target)) if prune else []:
        if folder.relative_to(target) not in wanted and folder.parent.name == "checkpoints":
            delete_emptied(folder)


def _folders(run: Path) -> Iterator[Path]:
    """The folders of a run that are whole or nothing: its checkpoints and its model."""
    yield from sorted(entry for entry in (run / "checkpoints").glob("step-*") if entry.is_dir())
    if (run / "pipeline").is_dir():
        yield run / "pipeline"


def _copy_folder(source: Path, target: Path) -> None:
    manifest = target / _MANIFEST
    if manifest.is_file() and manifest.read_bytes() == (source / _MANIFEST).read_bytes():
        return
    draft = target.with_name(f".{target.name}.copying")
    delete_emptied(draft)
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, draft)
        put_in_place(draft, target, durable=False)
    finally:
        delete_emptied(draft)


def _copy_file(source: Path, target: Path) -> None:
    here = source.stat()
    if target.is_file() and (target.stat().st_size, int(target.stat().st_mtime)) == (here.st_size, int(here.st_mtime)):
        return
    draft = target.with_name(f".{target.name}.copying")
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy2(source, draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
