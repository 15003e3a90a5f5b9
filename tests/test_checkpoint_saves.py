"""Laws of saving: a failing disk or a kill at any moment leaves the old checkpoint or the new one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_samples import assert_same, snapshot, some_tensors

from iris import checkpoint as module_under_test
from iris.checkpoint import (
    CheckpointError,
    read_checkpoint,
    resolve_folder,
    write_checkpoint,
)
from iris.places import find_model
from iris.replacing import delete_emptied

fork_only = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


def count_disk_steps(monkeypatch: pytest.MonkeyPatch, action: object, fail_at: int, fail: object) -> int:
    """Run `action`; the `fail_at`-th fsync or rename calls `fail` instead. Returns how many there were."""
    calls = 0

    def counted(real):
        def step(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == fail_at:
                fail()
            return real(*arguments, **named)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(module_under_test.os, "fsync", counted(os.fsync))
        patch.setattr(module_under_test.os, "rename", counted(os.rename))
        action()
    return calls


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failing_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"

    def save_new() -> None:
        write_checkpoint(folder, {"v": 2}, some_tensors(1), shard_bytes=300)

    write_checkpoint(folder, {"v": 1}, some_tensors(0), shard_bytes=300)
    steps = count_disk_steps(monkeypatch, save_new, fail_at=-1, fail=full_disk)
    write_checkpoint(folder, {"v": 1}, some_tensors(0), shard_bytes=300)
    old = snapshot(folder)
    assert steps > 5
    for fail_at in range(1, steps):  # the last step flushes the parent folder, when the new one is in place
        with pytest.raises(CheckpointError, match="could not be written: No space left on device"):
            count_disk_steps(monkeypatch, save_new, fail_at, full_disk)
        assert snapshot(folder) == old, fail_at
        assert [path.name for path in tmp_path.iterdir()] == ["model"], fail_at


def run_forked(target: object) -> int:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    return process.exitcode


@fork_only
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    seen = set()
    steps = 99
    fail_at = 1
    while fail_at <= steps:
        write_checkpoint(folder, {"v": 1}, some_tensors(0), shard_bytes=300)

        def save_and_die(fail_at: int = fail_at) -> None:
            def save() -> None:
                write_checkpoint(folder, {"v": 2}, some_tensors(1), shard_bytes=300)

            count_disk_steps(monkeypatch, save, fail_at, lambda: os._exit(9))

        died = run_forked(save_and_die) == 9
        checkpoint = read_checkpoint(folder)
        assert_same(checkpoint.tensors, some_tensors(checkpoint.config["v"] - 1))
        assert resolve_folder(folder) == folder
        seen.add(checkpoint.config["v"])
        write_checkpoint(folder, {"v": 3}, some_tensors(2))  # the next save cleans up behind the killed one
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        if not died:
            break
        fail_at += 1
    assert seen == {1, 2} and fail_at > 5


@fork_only
def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import signal

    folder = write_checkpoint(tmp_path / "model", {"v": 1}, some_tensors())

    def save_under_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_checkpoint(folder, {"v": 2}, {"p": {"w": torch.randn(5000)}})
        except CheckpointError as error:
            os._exit(0 if "could not be written" in str(error) else 2)
        os._exit(1)

    assert run_forked(save_under_limit) == 0
    assert read_checkpoint(folder).config == {"v": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_checkpoint(tmp_path / "file" / "model", {}, {})
    with pytest.raises(CheckpointError, match="is a file"):
        write_checkpoint(tmp_path / "file", {}, {})
    if sys.platform != "win32" and os.geteuid() != 0:
        folder = write_checkpoint(tmp_path / "locked" / "model", {"v": 1}, {})
        folder.parent.chmod(0o500)
        try:
            with pytest.raises(CheckpointError, match="could not be written"):
                write_checkpoint(folder, {"v": 2}, {})
            assert read_checkpoint(folder).config == {"v": 1}
        finally:
            folder.parent.chmod(0o700)


def test_a_save_never_deletes_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis.tex is not part of a checkpoint"):
        write_checkpoint(tmp_path, {}, {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_save_keeps_the_card_and_drops_stale_shards(saved: Path) -> None:
    (saved / "README.md").write_text("a card")
    write_checkpoint(saved, {"dim": 9}, {"ema": {}})
    assert sorted(snapshot(saved)) == ["README.md", "config.json", "ema-00001-of-00001.safetensors", "manifest.json"]
    assert (saved / "README.md").read_text() == "a card"


def test_what_a_mirror_deletes_is_emptied_but_nothing_behind_a_link(tmp_path: Path) -> None:
    """A snapshot of hard links, a linked file and a linked folder keep what they hold; a file of its own takes no room in a bin."""
    other, doomed = tmp_path / "other", tmp_path / "doomed"
    other.mkdir()
    doomed.mkdir()
    for name in ("snapshot", "linked", "inside"):
        (other / name).write_text(name)
    own = doomed / "own"
    own.write_text("own")
    os.link(other / "snapshot", doomed / "snapshot")
    (doomed / "linked").symlink_to(other / "linked")
    (doomed / "folder").symlink_to(other)
    with own.open() as held:
        delete_emptied(doomed)
        assert held.read() == "" and not doomed.exists()
    (tmp_path / "link").symlink_to(other)
    delete_emptied(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink() and {(other / name).read_text() for name in ("snapshot", "linked", "inside")} == {"snapshot", "linked", "inside"}


def test_a_manifest_that_cannot_be_read_is_a_damaged_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "manifest.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        read_checkpoint(saved)


def test_a_model_is_found_after_a_kill_between_the_two_renames(saved: Path) -> None:
    saved.rename(saved.parent / f".{saved.name}.before")
    assert find_model(str(saved)) == str(saved) and read_checkpoint(saved).tensors
    assert find_model("~nobody-of-this-name/model") == ""


def test_drafts_of_a_folder_whose_name_is_a_pattern_are_removed(tmp_path: Path) -> None:
    left = tmp_path / ".z[1].writing-999999999-0a0a0a0a"
    left.mkdir()
    write_checkpoint(tmp_path / "z[1]", {}, some_tensors())
    assert not left.exists()


def test_a_linked_folder_is_written_through(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    write_checkpoint(tmp_path / "link", {"dim": 10}, {})
    assert (tmp_path / "link").is_symlink() and read_checkpoint(saved).config == {"dim": 10}
