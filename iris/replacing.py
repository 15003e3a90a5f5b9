"""A folder replaced whole: whoever looks, or is killed, at any moment finds the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def backup_of(folder: Path) -> Path:
    """Where the old folder waits during the instant between the two renames."""
    return folder.parent / f".{folder.name}.before"


def put_in_place(draft: Path, folder: Path, durable: bool = True) -> None:
    """Rename draft -> folder. A full folder cannot be replaced in one rename, so the old one steps aside first, and back if that fails.

    durable: flush the parent folder before the old one is deleted. A mounted Drive need not know how, and keeps what is deleted in
    a bin: there the old files are emptied first.
    """
    backup = backup_of(folder)
    if folder.exists():
        _delete(backup)
        os.rename(folder, backup)
    try:
        os.rename(draft, folder)
    except OSError:
        if backup.exists():
            os.rename(backup, folder)
        raise
    if durable:
        flush_folder(folder.parent)
        _delete(backup)
    else:
        delete_emptied(backup)


def delete_emptied(folder: Path) -> None:
    """Delete a folder whose files take no more room afterwards, not even in the bin of a mounted Drive, which counts against its quota.

    What a link leads to stays, and so does a file with another name elsewhere, as snapshots of hard links give it.
    """
    for file in [] if folder.is_symlink() else folder.rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and not file.is_symlink() and file.stat().st_nlink <= 1:
                os.truncate(file, 0)
    _delete(folder)


def _delete(folder: Path) -> None:
    """Delete a folder if it is there; of a link the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    if os.name == "posix":  # other systems cannot open a folder; there the rename itself is journalled
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
