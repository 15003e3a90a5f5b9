"""A training that is told to end does so after its step, as if its minutes were over: with a checkpoint and a model.

For programs of their own (the command line, the demo's jobs). A notebook's kernel keeps its signals to itself.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_asked = threading.Event()


def end_when_told() -> None:
    """From now on the first SIGTERM or Ctrl-C asks for an end, and the second one ends the process at once. For a process's main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def told_to_end() -> bool:
    """Whether this process was asked to end its training."""
    return _asked.is_set()


def _note(number: int, frame: FrameType | None) -> None:
    _asked.set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
