"""Where models and runs lie: in the working folder, in the clone that a notebook makes, and in the mirror on a disk that outlives the machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from iris.replacing import backup_of

CLONE = "iris-code"  # of this repository, beside a notebook in Colab or Kaggle
SHIPPED = "demo/models/iris-scenes"


def mirror_home() -> Path | None:
    """The folder that IRIS_MIRROR names; None without the variable."""
    home = os.environ.get("IRIS_MIRROR", "")
    return Path(os.path.expanduser(home)) if home else None


def mirror_of(folder: str | Path) -> Path | None:
    """IRIS_MIRROR/runs/cpu/03 for the run folder runs/cpu/03; None without the variable.

    A run outside the working folder has its last name there and eight digits of its whole path, so that two of one name do not meet.
    """
    home, whole = mirror_home(), Path(os.path.abspath(folder))
    if home is None:
        return None
    if whole.is_relative_to(Path.cwd()):
        return home / whole.relative_to(Path.cwd())
    return home / f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"


def find_model(name: str) -> str:
    """The folder of the model `name`: here, in the clone or in the mirror. A hub id stays as it is; "" where there is nothing.

    So "demo/models/iris-scenes" means the same in Colab, and on a new machine the stage before is found where it was kept.
    """
    for folder in _places(name):
        if any((place / "manifest.json").is_file() for place in (folder, backup_of(folder))):  # what reads it knows about both
            return str(folder)
    looks_local = Path(name).exists() or name.startswith((".", "/", "~", "runs/")) or name.count("/") != 1
    return "" if looks_local else name


def _places(name: str) -> Iterator[Path]:
    if name:
        here = Path(os.path.expanduser(name))
        yield here
        if not here.is_absolute():
            yield CLONE / here
            if mirror := mirror_home():
                yield mirror / here


def is_of_a_stage(name: str) -> bool:
    """Whether `name` is what a stage leaves, RUN/pipeline: it may not have been run yet. What is named otherwise has to be there."""
    return Path(name).name == "pipeline"


def can_draw(folder: Path) -> bool:
    """Whether a model folder holds a generator; stage 1 leaves an autoencoder alone."""
    manifest = folder / "manifest.json"
    return manifest.is_file() and "generator" in manifest.read_text(encoding="utf-8")


def newest_pipeline(runs: str | Path = "runs") -> str:
    """The model that a stage below `runs`, here or in the mirror, wrote last and that can draw; "" when there is none."""
    homes = [Path(runs), *(home / runs for home in (mirror_home(),) if home)]
    found = [folder for home in homes for folder in home.glob("*/pipeline") if can_draw(folder)]
    return str(max(found, key=lambda folder: (folder / "manifest.json").stat().st_mtime)) if found else ""
