"""One writer a run: a lock file that says which process holds it, and whether that process still lives."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

import psutil

LOCK_FILE = "lock.json"
# Where the writer cannot be asked (another computer on a shared disk), its lock is dead when not refreshed for so long.
FOREIGN_LOCK_SECONDS = 900.0
REFRESH_SECONDS = 30.0


class LockError(ValueError):
    """Another process writes to the run; the message says what to do."""


def take_lock(path: Path) -> None:
    """Create RUN/lock.json for this process; a dead process's lock is taken over, a living one's raises LockError."""
    lock = path / LOCK_FILE
    for _ in range(3):
        try:
            _create(lock, _mine())
        except FileExistsError:
            _clear_dead_lock(lock)
            continue
        return
    raise LockError(f"another process has just opened the run {path}.")


def _mine() -> bytes:
    """What this process writes into a lock. A process of another computer, or after it, may have the same number, but not all three."""
    return json.dumps({"pid": os.getpid(), "started": start_time(os.getpid()), "host": socket.gethostname()}).encode()


def _create(lock: Path, data: bytes) -> None:
    """Write a lock where there is none; FileExistsError where there is."""
    descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(descriptor, data)
    except OSError:  # a full disk takes the name and not the content: an empty lock would shut out the next try
        lock.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _clear_dead_lock(lock: Path) -> None:
    """Remove the lock of a process that no longer lives; raise LockError if it lives."""
    try:
        data, age = lock.read_bytes(), time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    if _holder_lives(data, age):
        raise LockError(f"the run {lock.parent} is open for writing already; close that one, or delete {lock} if there is none.")
    # Two processes may have come here. Rename is atomic, so one of them gets the file; if that was already the other's
    # new lock, it is given back.
    taken = lock.with_name(f".{lock.name}.{uuid.uuid4().hex[:8]}")
    try:
        os.rename(lock, taken)
    except FileNotFoundError:
        return
    found = taken.read_bytes()
    taken.unlink()
    if found != data:
        with contextlib.suppress(FileExistsError):  # a third one has taken the name meanwhile: a rename would have shut it out unheard
            _create(lock, found)
        raise LockError(f"another process has just opened the run {lock.parent}.")


def _holder_lives(data: bytes, age: float) -> bool:
    try:
        holder = json.loads(data)
        pid, started, host = int(holder["pid"]), holder["started"], holder["host"]
    except (ValueError, KeyError, TypeError):
        return age < REFRESH_SECONDS  # empty for the instant between its creation and its writing, else damaged
    if host != socket.gethostname():
        return age < FOREIGN_LOCK_SECONDS
    return process_lives(pid, started)


def process_lives(pid: int, started: str | None) -> bool:
    """Whether process `pid` of this computer is there, and is the one that began at `started` (None: any)."""
    if not psutil.pid_exists(pid):
        return False
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # it has ended; in a container often nobody asks how, and it stays so
            return False
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        pass
    return started is None or started == start_time(pid)  # numbers are used again, above all inside containers


def start_time(pid: int) -> str | None:
    """When a process began: in clock ticks since boot where /proc tells (Linux), which no setting of the clock moves; None of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def keep_lock_fresh(path: Path) -> threading.Event:
    """Refresh the lock's age every half minute, whatever the process is busy with, until the event that is returned is set.

    Another computer cannot ask whether the writer lives, and encoding a large data set writes nothing for longer than its patience.
    """
    lock, given_back = path / LOCK_FILE, threading.Event()

    def refresh() -> None:
        while not given_back.wait(REFRESH_SECONDS):
            with contextlib.suppress(OSError):  # a disk that is away for a moment; the lock itself if it was deleted
                if lock.read_bytes() == _mine():  # after a long sleep it may be another computer's
                    os.utime(lock)

    threading.Thread(target=refresh, name="iris-lock", daemon=True).start()
    return given_back


def release_lock(path: Path, refreshing: threading.Event | None = None) -> None:
    """Remove the lock if it is this process's (a forked worker must not remove its parent's), and end its refreshing."""
    if refreshing is not None:
        refreshing.set()
    lock = path / LOCK_FILE
    try:
        if lock.read_bytes() == _mine():
            lock.unlink()
    except OSError:
        pass
