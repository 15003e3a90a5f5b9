"""One run of training or evaluation and its folder; between runs only folders pass.

    RUN/run.json         the configuration the run was started with, what it settled on since, and its id
    RUN/metrics.jsonl    one JSON object a line: {"step": ..., "loss": ..., ...}
    RUN/summary.json     the figures the run ended with
    RUN/figures/         pictures
    RUN/checkpoints/     training state, to continue from
    RUN/pipeline/        the model that came out
    RUN/lock.json        only while a process writes to the run

A kill at any moment leaves a readable run: lines are appended in one write, whole files are replaced atomically, and a
half-written last line is ignored by readers and removed by the next writer. A run may have a mirror: a second folder that
is kept up to date, and from which the run is continued when its own folder is gone.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import uuid
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iris.locks import LockError, keep_lock_fresh, release_lock, take_lock
from iris.mirror import copy_run, newest_step

CONFIG_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
COLAB_DRIVE = Path("/content/drive")
MIRROR_SECONDS = 300.0  # between two copies to the mirror, which may be slow
# Entries of run.json that are no part of the configuration.
ID, SETTLED = "id", "settled"
_START_OVER = "start over (start_over=True in a notebook, --start-over on the command line, resume=False here)"
_OPEN: weakref.WeakValueDictionary[Path, Run] = weakref.WeakValueDictionary()  # the runs that this process writes to
_FIGURE_NAME = re.compile(r"[\w][\w.-]*")


class RunError(ValueError):
    """A run folder that cannot be written or read; the message names the file."""


class Run:
    """The one writer of a run folder. Use it as a context manager:

        with Run.open("runs/stage-1", config) as run:
            run.log(10, loss=0.5)
    """

    mirror: Path | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._release = weakref.finalize(self, release_lock, path, keep_lock_fresh(path))  # also when the object or the process just ends
        self._mirrored = time.monotonic()

    @classmethod
    def open(cls, path: Path | str, config: Mapping[str, Any] | None = None, resume: bool = True, mirror: Path | str | None = None,
             take_over: bool = False) -> Run:
        """Create the run folder, or open it again, and take its lock.

        config: plain JSON data that must stay the same when the run is continued: put in it what decides the result,
        not how long to train. resume=False starts over; what an earlier run left is moved to RUN/previous-N, in the mirror too.
        mirror: a second folder to keep a copy in (see `copy_to_mirror`). When it has come further than this folder, as on a
        new machine, the run is brought back from it first. take_over: an earlier handle of this very process is given back
        first, as a notebook needs that is run again from its top.
        Raises RunError when another living process writes to it, when it was started with another config, when the mirror
        is that of another run, or when the folder cannot be written.
        """
        path = Path(os.path.expanduser(path)).resolve()
        if take_over and path in _OPEN:
            _OPEN[path].close()
        try:
            path.mkdir(parents=True, exist_ok=True)
            take_lock(path)
        except LockError as error:
            raise RunError(str(error)) from None
        except OSError as error:
            raise RunError(f"the run folder {path} cannot be written: {error.strerror or error}.") from error
        run = cls(path)
        try:
            if mirror:
                run.mirror = _checked_mirror(path, Path(os.path.expanduser(mirror)).resolve())
            if not resume:
                for folder in filter(None, (path, run.mirror)):
                    _move_aside(folder)
            elif run.mirror is not None:
                _bring_back(run.mirror, path, config)
            _check_config(path, config)
            _cut_torn_line(path / METRICS_FILE)
            if not resume:
                run.copy_to_mirror(now=True)  # so that the mirror is this run's, and not the one before
        except (OSError, RunError) as error:
            run.mirror = None  # a run that was not opened has nothing to bring there
            run.close()
            if isinstance(error, RunError):
                raise
            raise RunError(f"the run folder {path} cannot be written: {error.strerror or error}.") from error
        _OPEN[path] = run
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Bring the mirror up to date and give the lock back; the folder stays."""
        if self._release.alive:
            self.copy_to_mirror(now=True)
        self._release()

    def copy_to_mirror(self, now: bool = False) -> bool:
        """Bring the mirror up to date, at most every five minutes unless `now`; whether it was. Called after each checkpoint.

        A mirror that cannot be written is a warning, not an error: the run itself is safe in its own folder.
        """
        if self.mirror is None or (not now and time.monotonic() - self._mirrored < MIRROR_SECONDS):
            return False
        self._mirrored = time.monotonic()
        try:
            copy_run(self.path, self.mirror)
        except OSError as error:
            warnings.warn(f"The mirror {self.mirror} could not be written: {error.strerror or error}. The run goes on without it.", stacklevel=2)
            return False
        return True

    @property
    def checkpoint_path(self) -> Path:
        """Where training state is kept."""
        return self.path / "checkpoints"

    @property
    def pipeline_path(self) -> Path:
        """Where the finished model is kept."""
        return self.path / "pipeline"

    def figure_path(self, name: str) -> Path:
        """RUN/figures/name.png; the folder is created."""
        if not _FIGURE_NAME.fullmatch(name):
            raise RunError(f"figure name is {name!r}; use letters, digits, dots, dashes and underscores.")
        folder = self.path / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name.removesuffix('.png')}.png"

    def settle(self, **facts: Any) -> None:
        """Keep what decides the result and is known only now, such as the data's fingerprint; RunError if the run settled on something else."""
        self._require_open()
        stored = _read_object(self.path / CONFIG_FILE)
        settled = stored.get(SETTLED, {})
        different = sorted(name for name in facts if name in settled and settled[name] != _plain(name, facts[name]))
        if different:
            raise RunError(f"the run {self.path} was started from something else (it differs in {', '.join(different)}); use another folder, or {_START_OVER}.")
        if set(facts) - set(settled):
            _write_config(self.path, stored | {SETTLED: settled | {name: _plain(name, value) for name, value in facts.items()}})

    def log(self, step: int, **values: Any) -> dict[str, Any]:
        """Append one row {"step": step, **values} to metrics.jsonl and return it as stored.

        Values are numbers, strings, None, lists or dicts of them, tensors or arrays; a number that is not finite is
        stored as null, because JSON has no other word for it.
        """
        row = {"step": int(step), **{name: _plain(name, value) for name, value in values.items()}}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self._require_open()
        try:
            _append(self.path / METRICS_FILE, line)
        except OSError as error:
            raise RunError(f"{self.path / METRICS_FILE} cannot be written: {error.strerror or error}.") from error
        return row

    def rewind(self, step: int) -> int:
        """Drop the rows after `step` (they will be computed again); returns how many were dropped."""
        self._require_open()
        rows = self.metrics()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            _replace(self.path / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in kept))
        return len(rows) - len(kept)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows logged so far, in the order in which they were logged."""
        return read_metrics(self.path)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Replace summary.json by `summary` (values as for `log`); returns its path."""
        self._require_open()
        plain = {str(name): _plain(str(name), value) for name, value in summary.items()}
        _replace(self.path / SUMMARY_FILE, json.dumps(plain, indent=2, allow_nan=False) + "\n")
        return self.path / SUMMARY_FILE

    def summary(self) -> dict[str, Any]:
        """summary.json, or {} when the run has none yet."""
        return read_summary(self.path)

    def _require_open(self) -> None:
        if not self._release.alive:
            raise RunError(f"the run {self.path} is closed; open it again to write to it (in a notebook: run the cell with open_run or open_measurement again).")


# --- reading, without a lock ---------------------------------------------------------------------------------------


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of RUN/metrics.jsonl; [] when there is none. A last line cut off by a kill is ignored."""
    file = Path(path) / METRICS_FILE
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty or torn
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunError(f"{file}, line {number}, is not valid JSON.") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise RunError(f"{file}, line {number}, has no step.")
        rows.append(row)
    return rows


def read_summary(path: Path | str) -> dict[str, Any]:
    """RUN/summary.json, or {} when the run has none."""
    return _read_object(Path(path) / SUMMARY_FILE)


def read_config(path: Path | str) -> dict[str, Any]:
    """The configuration the run was started with, or {} when none was given."""
    return {name: value for name, value in _read_object(Path(path) / CONFIG_FILE).items() if name not in (ID, SETTLED)}


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise RunError(f"{file} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise RunError(f"{file} must hold a JSON object.")
    return value


# --- plain data and safe writing -----------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> Any:
    """`value` as JSON data: tensors and arrays become numbers or lists, non-finite numbers None."""
    if hasattr(value, "tolist"):  # torch tensors, numpy arrays and numpy scalars
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    raise RunError(f"{name} is a {type(value).__name__}; log numbers, strings, or lists and dicts of them.")


def _append(file: Path, line: bytes) -> None:
    """Append `line` in one write; a write that the disk cut short is taken back."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        before = os.fstat(descriptor).st_size
        if os.write(descriptor, line) != len(line):
            os.ftruncate(descriptor, before)
            raise OSError("no space left for a whole line")
    finally:
        os.close(descriptor)


def _replace(file: Path, text: str) -> None:
    """Replace a whole file atomically: readers see the old text or the new."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with draft.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)


def _cut_torn_line(file: Path) -> None:
    """Remove what follows the last newline, so that the next row starts a line of its own."""
    if file.exists():
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(file, whole)


def _check_config(path: Path, config: Mapping[str, Any] | None) -> None:
    """Store the config of a new run; a continued run must have the same one."""
    if config is None:
        return
    wanted = {str(name): _plain(str(name), value) for name, value in config.items()}
    if not (path / CONFIG_FILE).exists():
        return _write_config(path, wanted | {ID: uuid.uuid4().hex})
    stored = read_config(path)
    different = _different(stored, wanted)
    if different:
        raise RunError(
            f"the run {path} was started with another configuration (it differs in {', '.join(different)}); "
            f"use another folder, or {_START_OVER}."
        )


def _different(stored: Mapping[str, Any], wanted: Mapping[str, Any], inside: str = "") -> list[str]:
    """Dotted names of the values that differ, such as recipe.train_steps."""
    found: list[str] = []
    for name in sorted({*stored, *wanted}):
        a, b = stored.get(name), wanted.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _different(a, b, f"{inside}{name}.")
        elif a != b:
            found.append(f"{inside}{name}")
    return found


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    _replace(path / CONFIG_FILE, json.dumps(config, indent=2, allow_nan=False) + "\n")


def _bring_back(mirror: Path, path: Path, config: Mapping[str, Any] | None) -> None:
    """Copy the run from its mirror when that has come further; nothing here is deleted, and nothing is copied before it is sure to fit."""
    here, there = (_read_object(folder / CONFIG_FILE) for folder in (path, mirror))
    if here.get(ID) and there.get(ID) and here[ID] != there[ID]:
        further = f"to go on with the mirror's, which has come to step {newest_step(mirror)}, move {path} away; else " if newest_step(mirror) > newest_step(path) else ""
        raise RunError(f"the mirror {mirror} is that of another run than {path}; {further}use another mirror, or {_START_OVER}.")
    holds_nothing = not any((path / name).exists() for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE))
    if newest_step(mirror) > newest_step(path) or holds_nothing:
        if there:
            _check_config(mirror, config)
        copy_run(mirror, path, prune=False)


def _checked_mirror(path: Path, mirror: Path) -> Path:
    if mirror == path or mirror.is_relative_to(path) or path.is_relative_to(mirror):
        raise RunError(f"the mirror {mirror} lies in the run folder or around it; choose a folder apart.")
    if mirror.is_relative_to(COLAB_DRIVE) and not os.path.ismount(COLAB_DRIVE):  # an ordinary folder there goes with the machine
        raise RunError(f"the mirror {mirror} lies in a Drive that is not mounted; first run: from google.colab import drive; drive.mount('{COLAB_DRIVE}').")
    return mirror


def _move_aside(path: Path) -> None:
    """Move what an earlier run left into RUN/previous-N, with the smallest free N."""
    names = (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, "figures", "checkpoints", "pipeline")  # latents know themselves what they are of
    left = [path / name for name in names if (path / name).exists()]
    if left:
        number = 1
        while (path / f"previous-{number}").exists():
            number += 1
        (path / f"previous-{number}").mkdir()
        for entry in left:
            os.rename(entry, path / f"previous-{number}" / entry.name)
