"""The training checkpoints of a run, one folder a step: FOLDER/step-00001234. Which one to continue from, which ones to keep."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from iris.checkpoint import Checkpoint, CheckpointError, read_checkpoint, remove_drafts

_STEP_NAME = re.compile(r"step-(\d{8,})")


def step_folder(folder: Path | str, step: int) -> Path:
    """The sub-folder of a training checkpoint: folder/step-00001234."""
    return Path(folder) / f"step-{step:08d}"


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _step_folders(folder: Path) -> Iterator[Path]:
    """Training checkpoints under `folder`, newest first."""
    found = [entry for entry in folder.iterdir() if entry.is_dir() and _STEP_NAME.fullmatch(entry.name)] if folder.is_dir() else []
    yield from sorted(found, key=_step_of, reverse=True)


def latest_checkpoint(folder: Path | str) -> Checkpoint | None:
    """The newest checkpoint folder/step-XXXXXXXX that verifies, or None when there is none at all.

    A damaged one is reported by a warning and the one before it is used; when none verifies, CheckpointError is raised
    rather than a training silently begun again.
    """
    first_error: CheckpointError | None = None
    for candidate in _step_folders(Path(folder)):
        try:
            return read_checkpoint(candidate)
        except CheckpointError as error:
            warnings.warn(f"The checkpoint {candidate.name} is not used: {error} The one before it is tried.", stacklevel=2)
            first_error = first_error or error
    if first_error is not None:
        raise CheckpointError(f"no checkpoint under {folder} can be used; move it away to start again. {first_error}") from first_error
    return None


def best_checkpoint(folder: Path | str) -> Checkpoint | None:
    """The checkpoint with the lowest held-out loss so far, as the newest one that can be read remembers it; None when there is none.

    Raises CheckpointError when it is remembered but damaged.
    """
    for candidate in _step_folders(Path(folder)):
        try:
            best = read_checkpoint(candidate, parts=()).metadata.get("best")
        except CheckpointError:
            continue
        return read_checkpoint(step_folder(folder, best["step"])) if best else None
    return None


def prune_checkpoints(folder: Path | str, keep: int = 2, spare: Collection[int] = (), newest: int | None = None) -> list[Path]:
    """Delete all but the `keep` newest checkpoints and those of the steps `spare`, and what killed saves left; returns the deleted.

    newest: the step a run has reached. Folders of later steps are left from before it fell back to an earlier
    checkpoint, because they did not verify; they are deleted and do not count among the newest.
    """
    if keep < 1:
        raise CheckpointError(f"keep is {keep}; use 1 or more.")
    remove_drafts(Path(folder), "step-*")
    for doomed in Path(folder).glob(".step-*.deleted"):
        shutil.rmtree(doomed, ignore_errors=True)
    found = list(_step_folders(Path(folder)))
    reached = [path for path in found if newest is None or _step_of(path) <= newest]
    surplus = [path for path in found if path not in reached[:keep] and (path not in reached or _step_of(path) not in spare)]
    for path in surplus:
        doomed = path.parent / f".{path.name}.deleted"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)  # a half-deleted folder must never look like a checkpoint
        shutil.rmtree(doomed, ignore_errors=True)
    return surplus
