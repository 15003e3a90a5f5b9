"""A training that is told to end does so after its step, as if its minutes were over: with a checkpoint and a model.

For programs of their own (the command line, the demo's jobs). A notebook's kernel keeps its signals to itself. Before its first step
there is nothing to keep, and the process ends at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_training, _asked = threading.Event(), threading.Event()
_files: list[Path] = []


def end_when_told(file: Path | None = None) -> None:
    """From now on the first SIGTERM or Ctrl-C asks a training for its end, and the second one ends the process at once. For a process's main thread.

    file: whoever makes it asks too. On Windows a process cannot be sent a signal that it may answer.
    """
    _files[:] = [] if file is None else [file]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


@contextlib.contextmanager
def training_goes_on() -> Iterator[None]:
    """Around the steps: what is asked for meanwhile is heard after one."""
    _training.set()
    try:
        yield
    finally:
        _training.clear()


def told_to_end() -> bool:
    """Whether this process was asked to end its training."""
    return _asked.is_set() or any(file.exists() for file in _files)


def _note(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if _training.is_set():
        _asked.set()
    else:
        signal.raise_signal(number)
