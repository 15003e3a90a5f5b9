"""Laws of run folders: one writer, no half row, no lost summary, whatever kills the writer."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from iris import runs as module_under_test
from iris.locks import process_lives
from iris.runs import Run, RunError, read_config, read_metrics, read_summary

fork_only = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


def forked(target: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "stage"


# --- metrics -------------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order(path: Path) -> None:
    with Run.open(path, {"dim": 8}) as run:
        run.log(1, loss=0.5, lr=1e-4)
        run.log(2, loss=torch.tensor(0.25), by_depth={4: np.float32(1.5)}, by_t=torch.arange(3), note="late", none=None)
        run.log(np.int64(2), held_out_loss=0.75)
        expected = [
            {"step": 1, "loss": 0.5, "lr": 1e-4},
            {"step": 2, "loss": 0.25, "by_depth": {"4": 1.5}, "by_t": [0, 1, 2], "note": "late", "none": None},
            {"step": 2, "held_out_loss": 0.75},
        ]
        assert run.metrics() == expected
    assert read_metrics(path) == expected and read_config(path) == {"dim": 8}


def test_numbers_that_are_not_finite_become_null_and_the_file_stays_json(path: Path) -> None:
    with Run.open(path) as run:
        row = run.log(1, loss=float("nan"), parts=[1.0, float("inf")], norm=torch.tensor(float("-inf")))
    assert row == {"step": 1, "loss": None, "parts": [1.0, None], "norm": None} == read_metrics(path)[0]

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads((path / "metrics.jsonl").read_text(), parse_constant=refuse)


def test_what_is_not_data_is_refused_and_writes_nothing(path: Path) -> None:
    with Run.open(path) as run:
        with pytest.raises(RunError, match="model is a Linear"):
            run.log(1, loss=1.0, model=torch.nn.Linear(1, 1))
        assert run.metrics() == []


def test_a_torn_last_line_is_ignored_by_readers_and_removed_by_the_next_writer(path: Path) -> None:
    with Run.open(path) as run:
        run.log(1, loss=1.0)
        run.log(2, loss=2.0)
    whole = (path / "metrics.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        (path / "metrics.jsonl").write_bytes(whole[:cut])
        assert [row["step"] for row in read_metrics(path)] == [1]
        with Run.open(path) as run:
            run.log(3, loss=3.0)
            assert [row["step"] for row in run.metrics()] == [1, 3]


def test_damage_inside_the_file_is_named(path: Path) -> None:
    with Run.open(path) as run:
        run.log(1)
        run.log(2)
    for bad in (b"\0" * 9, b"[1]", b"{}", b'{"step": "x"}'):
        (path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + bad + b"\n")
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
            read_metrics(path)


def test_rewinding_drops_what_will_be_computed_again(path: Path) -> None:
    with Run.open(path) as run:
        for step in range(1, 7):
            run.log(step, loss=1 / step)
        before = run.metrics()
        assert run.rewind(4) == 2 and run.metrics() == before[:4]
        assert run.rewind(4) == 0
        run.log(5, loss=1 / 5)
        run.log(6, loss=1 / 6)
        assert run.metrics() == before  # killed and resumed = never interrupted
        assert run.rewind(0) == 6 and run.metrics() == []


def test_a_disk_that_fills_up_leaves_no_torn_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.open(path) as run:
        run.log(1, loss=1.0)
        real = os.write
        with monkeypatch.context() as patch:
            patch.setattr(module_under_test.os, "write", lambda descriptor, data: real(descriptor, data[: len(data) // 2]))
            with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written"):
                run.log(2, loss=2.0)
        run.log(3, loss=3.0)
        assert [row["step"] for row in run.metrics()] == [1, 3]


@fork_only
def test_a_writer_killed_at_a_random_moment_leaves_a_prefix(path: Path) -> None:
    def write_forever() -> None:
        run = Run.open(path)
        start = len(run.metrics())
        for step in range(start, 1_000_000):
            run.log(step, values=list(range(50)))
            run.write_summary({"step": step, "values": list(range(50))})

    rng = random.Random(0)
    rows: list[dict] = []
    for _ in range(5):
        writer = forked(write_forever)
        while len(read_metrics(path)) <= len(rows):
            time.sleep(0.001)
        time.sleep(0.02 * rng.random())
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        rows = read_metrics(path)
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert all(row["values"] == list(range(50)) for row in rows)
        assert read_summary(path).get("values", list(range(50))) == list(range(50))


# --- summary and places --------------------------------------------------------------------------------------------


def test_the_summary_is_replaced_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.open(path) as run:
        assert run.summary() == {}
        run.write_summary({"psnr": torch.tensor(26.5), "bad": float("nan"), "path": Path("a")})
        assert run.summary() == {"psnr": 26.5, "bad": None, "path": "a"}
        with monkeypatch.context() as patch:
            patch.setattr(module_under_test.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(RunError, match=r"summary\.json cannot be written: No space left"):
                run.write_summary({"psnr": 1.0})
        with pytest.raises(RunError, match="model is a Linear"):
            run.write_summary({"model": torch.nn.Linear(1, 1)})
    assert read_summary(path)["psnr"] == 26.5
    assert sorted(entry.name for entry in path.iterdir()) == ["summary.json"]


def test_places_inside_the_run(path: Path) -> None:
    with Run.open(path) as run:
        assert run.path == path and run.checkpoint_path == path / "checkpoints" and run.pipeline_path == path / "pipeline"
        assert run.figure_path("loss") == run.figure_path("loss.png") == path / "figures" / "loss.png"
        assert (path / "figures").is_dir()
        for name in ("", "../x", "a/b", ".hidden"):
            with pytest.raises(RunError, match="figure name"):
                run.figure_path(name)


def test_readers_need_no_run(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none") == [] and read_summary(tmp_path / "none") == {} == read_config(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(RunError, match="JSON object"):
        read_summary(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Run.open(tmp_path / "file" / "run")


# --- continuing ----------------------------------------------------------------------------------------------------


def test_a_run_continues_with_the_same_config_only(path: Path) -> None:
    with Run.open(path, {"dim": 8, "channels": (1, 2)}) as run:
        run.log(1)
    with Run.open(path, {"dim": 8, "channels": [1, 2]}) as run:
        run.log(2)
    with Run.open(path) as run:
        assert len(run.metrics()) == 2
    with pytest.raises(RunError, match=r"another configuration .*dim, extra"):
        Run.open(path, {"dim": 9, "channels": [1, 2], "extra": 1})
    assert not (path / "lock.json").exists()


def test_what_a_run_settled_on_stays(path: Path) -> None:
    with Run.open(path, {"a": 1}) as run:
        run.settle(pictures="x")
        run.settle(pictures="x", autoencoder="y")
    with Run.open(path, {"a": 1}) as run:
        run.settle(autoencoder="y")
        with pytest.raises(RunError, match=r"started from something else \(it differs in autoencoder, pictures\); use another folder"):
            run.settle(autoencoder="z", pictures="w")
    with Run.open(path, {"a": 1}, resume=False) as run:
        run.settle(autoencoder="z", pictures="w")
    with pytest.raises(RunError, match="closed"):
        run.settle(autoencoder="z")


def test_starting_over_moves_the_old_run_aside(path: Path) -> None:
    for number in range(3):
        with Run.open(path, {"number": number}, resume=False) as run:
            assert run.metrics() == []
            run.log(number)
            run.pipeline_path.mkdir()
    assert read_metrics(path / "previous-1") == [{"step": 0}] and read_config(path / "previous-2") == {"number": 1}
    assert read_metrics(path) == [{"step": 2}]


# --- one writer ----------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(path: Path) -> None:
    with Run.open(path) as run:
        with pytest.raises(RunError, match="open for writing already"):
            Run.open(path)
        run.log(1)  # the first is not disturbed
    with Run.open(path):
        pass
    with pytest.raises(RunError, match="is closed"):
        run.log(2)
    run.close()


def test_an_error_or_a_forgotten_run_gives_the_lock_back(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run.open(path):
        raise KeyboardInterrupt
    run = Run.open(path)
    del run
    Run.open(path).close()


@fork_only
def test_only_one_of_many_gets_a_dead_lock(path: Path) -> None:
    dead = forked(lambda: None)
    dead.join()
    path.mkdir(parents=True)
    for _ in range(3):
        (path / "lock.json").write_text(json.dumps({"pid": dead.pid, "started": "1", "host": socket.gethostname()}))

        everyone_tried = multiprocessing.get_context("fork").Barrier(4)

        def compete(everyone_tried: object = everyone_tried) -> None:
            try:
                run = Run.open(path)
            except RunError:
                run = None
            everyone_tried.wait(60)
            if run:
                run.close()
            os._exit(0 if run else 1)

        writers = [forked(compete) for _ in range(4)]
        for writer in writers:
            writer.join()
        assert sorted(writer.exitcode for writer in writers) == [0, 1, 1, 1]


def write_lock(path: Path, age: float = 0.0, **holder: object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "lock.json").write_text(json.dumps(holder))
    os.utime(path / "lock.json", (time.time() - age, time.time() - age))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_that_ended_and_was_never_asked_how_is_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    try:
        assert process_lives(os.getpid(), None) and not process_lives(pid, None)
    finally:
        os.waitpid(pid, 0)
    assert not process_lives(pid, None)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times come from /proc")
def test_a_process_number_used_again_is_not_the_writer(path: Path) -> None:
    write_lock(path, pid=os.getppid(), started="1", host=socket.gethostname())
    Run.open(path).close()


def test_a_lock_of_another_computer_is_dead_when_it_is_old(path: Path) -> None:
    write_lock(path, age=60, pid=1, started=None, host="another")
    with pytest.raises(RunError, match="open for writing"):
        Run.open(path)
    write_lock(path, age=3600, pid=1, started=None, host="another")
    Run.open(path).close()


def test_a_writer_that_is_busy_keeps_its_lock_fresh(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another computer could not ask it, and would take the run over after a quarter of an hour without a row."""
    monkeypatch.setattr("iris.locks.REFRESH_SECONDS", 0.02)
    lock = path / "lock.json"
    with Run.open(path) as run:
        os.utime(lock, (0, 0))
        waited = time.monotonic() + 10
        while lock.stat().st_mtime < 1 and time.monotonic() < waited:
            time.sleep(0.01)
        assert time.time() - lock.stat().st_mtime < 10
        refreshing = [thread for thread in threading.enumerate() if thread.name == "iris-lock"]
        assert refreshing
    for thread in refreshing:
        thread.join(10)
    assert run.path == path and not any(thread.is_alive() for thread in refreshing)


def test_a_lock_that_another_computer_took_meanwhile_is_left_to_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sleep longer than its patience, though the other writer has the same process number, as in containers: neither refreshed nor removed."""
    monkeypatch.setattr("iris.locks.REFRESH_SECONDS", 0.02)
    with Run.open(path):
        write_lock(path, age=500, pid=os.getpid(), started="7", host="another")
        time.sleep(0.3)
        assert time.time() - (path / "lock.json").stat().st_mtime > 400
    assert json.loads((path / "lock.json").read_text())["host"] == "another"


def test_a_lock_given_back_shuts_out_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead lock is taken away; it was a new one already, and before it is given back a third process has its own there."""
    write_lock(path, pid=os.getpid(), started="1", host=socket.gethostname())
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        write_lock(path, pid=1, started="2", host="second")  # took the dead lock over first
        rename(source, target)
        write_lock(path, pid=1, started="3", host="third")

    monkeypatch.setattr("iris.locks.os.rename", late)
    with pytest.raises(RunError, match="just opened"):
        Run.open(path)
    assert json.loads((path / "lock.json").read_text())["host"] == "third"


def test_a_measurement_opened_again_keeps_what_its_mirror_has_not(path: Path, tmp_path: Path) -> None:
    """It has no configuration that could tell whose it is, as in notebooks that train nothing."""
    with Run.open(path, mirror=tmp_path / "mirror") as run:
        run.log(1, loss=1.0)
    run = Run.open(path, mirror=tmp_path / "mirror")
    run.log(2, loss=2.0)
    run.mirror = None  # killed before the mirror was brought up to date
    run.close()
    with Run.open(path, mirror=tmp_path / "mirror") as run:
        assert [row["step"] for row in run.metrics()] == [1, 2]
    shutil.rmtree(path)
    with Run.open(path, mirror=tmp_path / "mirror") as run:  # a new machine
        assert [row["step"] for row in run.metrics()] == [1, 2]


def test_a_damaged_lock_is_taken_over_once_it_is_old(path: Path) -> None:
    write_lock(path, age=3600)
    Run.open(path).close()


@fork_only
def test_a_forked_worker_does_not_release_its_parents_lock(path: Path) -> None:
    with Run.open(path) as run:
        forked(run.close).join()
        assert (path / "lock.json").exists()
