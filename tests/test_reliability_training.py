"""Laws of a training left alone: what fails is taken back, what was good is kept, and a kill at any instant changes no bit."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import reliability_worker as worker
import torch
from conftest import subprocess_environment

from iris.checkpoint import read_checkpoint, write_checkpoint
from iris.runs import Run, RunError, read_metrics
from iris.step_checkpoints import best_checkpoint, latest_checkpoint, prune_checkpoints, step_folder
from iris.training import guard, loop
from iris.training.guard import PATIENCE, TRIES, Guard, TrainingError
from iris.training.loop import TrainConfig, fit
from iris.training.losses import LossOutput, RectifiedFlowLoss

LONG = TrainConfig(train_steps=20, batch_size=4, warmup_steps=2, decay_share=0.0, log_every=1, eval_every=4, checkpoint_seconds=0.0, precision="fp32")
PARTS = ("module", "average", "optimizer")
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def state_at(run: Path, step: int) -> dict:
    return read_checkpoint(step_folder(run / "checkpoints", step)).tensors


def same_state(a: dict, b: dict, parts: tuple[str, ...] = PARTS) -> bool:
    return all(a[part].keys() == b[part].keys() and all(torch.equal(a[part][key], b[part][key]) for key in a[part]) for part in parts)


class Troubled(RectifiedFlowLoss):
    """The flow loss, with trouble at some steps: `how` changes a step's output, or the module behind its back."""

    def __init__(self, steps: range | set[int], how) -> None:
        super().__init__()
        self.steps, self.how, self.step = steps, how, 0

    def at_step(self, step: int) -> None:
        self.step = step

    def __call__(self, module, draw) -> LossOutput:
        output = super().__call__(module, draw)
        return self.how(output, module) if self.step in self.steps else output


def spike(output: LossOutput, module) -> LossOutput:
    return dataclasses.replace(output, loss=output.loss * 100, per_sample=output.per_sample * 100)


def not_a_number(output: LossOutput, module) -> LossOutput:
    return dataclasses.replace(output, loss=output.loss * float("nan"))


def broken_weight(output: LossOutput, module) -> LossOutput:
    with torch.no_grad():
        next(module.parameters()).view(-1)[3] = float("inf")
    return output


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spike can be told after five steps instead of twenty, so that tests are short."""
    monkeypatch.setattr(guard, "_WARM", 5)


# --- what fails is skipped, then taken back ----------------------------------------------------------------------------


def test_a_spike_is_told_from_a_beginning_and_from_a_new_level() -> None:
    watch = Guard()
    assert watch.trusts(1e9) and not watch.trusts(float("nan")) and not watch.trusts(float("inf"))
    for _ in range(30):
        watch.accept(1.0)
    assert watch.trusts(9.9) and not watch.trusts(10.1)
    assert [watch.refuse() for _ in range(PATIENCE)] == [False] * (PATIENCE - 1) + [True]
    watch.note_rollback(30)
    assert watch.trusts(50.0), "after a rollback another level is a beginning again"


@pytest.mark.usefixtures("soon")
def test_one_spike_changes_nothing_and_the_next_step_is_taken(tmp_path: Path) -> None:
    module, batches, _ = worker.flow()
    for until in (8, 9):
        with Run.open(tmp_path / "run") as run:
            fit(module, batches, Troubled({7}, spike), dataclasses.replace(LONG, train_steps=until), run)
        if until == 8:
            assert same_state(state_at(tmp_path / "run", 7), state_at(tmp_path / "run", 8))
    assert not same_state(state_at(tmp_path / "run", 8), state_at(tmp_path / "run", 9), ("module",))
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows][-3:] == [0, 1, 1]
    assert rows[-2]["loss"] is None and rows[-1]["loss"] < 10 * rows[-3]["loss"]  # what changed nothing is no part of the curve


TROUBLES = {"spikes in a row": (range(12, 12 + PATIENCE), spike, 11 + PATIENCE), "nan in a row": (range(12, 12 + PATIENCE), not_a_number, 11 + PATIENCE),
            "a weight turns infinite": ({15}, broken_weight, 15)}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("trouble", TROUBLES)
def test_failures_end_in_a_rollback_to_the_anchor_and_a_stop_changes_no_bit_of_it(trouble: str, tmp_path: Path, soak: bool, record_property) -> None:
    """The anchor is step 10. The stopped run ends again and again from there on (with --soak at every step) and is continued each time."""
    steps, how, last = TROUBLES[trouble]
    module, batches, _ = worker.flow()
    kept = {}

    def watch(row: dict) -> None:
        if row["step"] == last + 1:  # logged right after the step that rolled back
            kept.update(module={name: value.clone() for name, value in module.state_dict().items()}, rollbacks=row["rollbacks"])

    with Run.open(tmp_path / "whole") as run:
        whole = fit(module, batches, Troubled(steps, how), LONG, run, on_log=watch)
        end = read_checkpoint(step_folder(run.checkpoint_path, 20))
    with Run.open(tmp_path / "clean") as run:
        fit(worker.flow()[0], batches, Troubled(set(), how), dataclasses.replace(LONG, train_steps=10), run)
    assert kept["rollbacks"] == 1 and all(torch.equal(kept["module"][key], value) for key, value in state_at(tmp_path / "clean", 10)["module"].items())
    assert end.metadata["anchor"] == 20 and end.metadata["guard"]["rollbacks"] == 1
    assert all(value.isfinite().all() for part in ("module", "average") for value in end.tensors[part].values())
    for until in range(11, 21) if soak else (13, 16, 20):
        with Run.open(tmp_path / "stopped") as run:
            resumed = fit(worker.flow()[0], batches, Troubled(steps, how), dataclasses.replace(LONG, train_steps=until), run)
    assert same_state(state_at(tmp_path / "stopped", 20), end.tensors) and resumed.step == whole.step == 20
    record_property("tries", 10 if soak else 3)


def test_a_run_that_cannot_get_past_a_step_says_so(tmp_path: Path) -> None:
    module, batches, _ = worker.flow()
    with Run.open(tmp_path / "run") as run, pytest.raises(TrainingError, match=rf"rolled back {TRIES} times .* lower learning rate") as stopped:
        fit(module, batches, Troubled(range(11, 99), not_a_number), dataclasses.replace(LONG, train_steps=40), run)
    assert str(stopped.value).endswith(".")
    last = latest_checkpoint(tmp_path / "run" / "checkpoints").tensors
    assert same_state(last, state_at(tmp_path / "run", 10)), "what is left on the disk is the last good state"
    with pytest.raises(TrainingError, match="without a run folder"):
        fit(worker.flow()[0], batches, Troubled({2}, broken_weight), LONG)


# --- what was good is kept -----------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept_beside_the_last_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, float("nan"), 2.0, 3.0, 2.5, 4.0, 2.0, 9.0, 9.0, 9.0])
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: next(losses))
    assert best_checkpoint(tmp_path / "run" / "checkpoints") is None
    module, batches, loss = worker.flow()
    for until in (14, 26):  # the best is remembered by the second session
        with Run.open(tmp_path / "run") as run:
            fit(module, batches, loss, dataclasses.replace(LONG, train_steps=until, eval_every=4, checkpoint_seconds=0.0), run, batches)
    folder = tmp_path / "run" / "checkpoints"
    assert best_checkpoint(folder).metadata["step"] == 12 and best_checkpoint(folder).metadata["best"] == {"step": 12, "held_out_loss": 2.0}
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000012", "step-00000020", "step-00000025", "step-00000026"]
    for step in (25, 26):
        (step_folder(folder, step) / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match="is not used"):
        assert latest_checkpoint(folder).metadata["step"] == 20  # then the anchor, then the best


def test_checkpoints_that_did_not_verify_do_not_crowd_out_good_ones(tmp_path: Path) -> None:
    for step in (3, 4, 8, 9):
        step_folder(tmp_path, step).mkdir(parents=True)
    assert prune_checkpoints(tmp_path, keep=2, newest=4, spare={9, None}) == [step_folder(tmp_path, 9), step_folder(tmp_path, 8)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


# --- a second folder -------------------------------------------------------------------------------------------------------


def test_a_lost_machine_is_continued_from_the_mirror_bitwise(tmp_path: Path) -> None:
    _, batches, loss = worker.flow()
    short = dataclasses.replace(LONG, train_steps=12)
    whole = fit(worker.flow()[0], batches, loss, short)
    with Run.open(tmp_path / "here", {"a": 1}, mirror=tmp_path / "drive" / "run") as run:
        fit(worker.flow()[0], batches, loss, dataclasses.replace(short, train_steps=5), run)
    names = {path.relative_to(tmp_path / "drive" / "run").parts[:2] for path in (tmp_path / "drive").rglob("*") if path.is_file()}
    assert names == {("run.json",), ("metrics.jsonl",), *(("checkpoints", f"step-{step:08d}") for step in (0, 4, 5))}
    shutil.rmtree(tmp_path / "here")
    with pytest.raises(RunError, match="another configuration"):
        Run.open(tmp_path / "here", {"a": 2}, mirror=tmp_path / "drive" / "run")
    with Run.open(tmp_path / "here", {"a": 1}, mirror=tmp_path / "drive" / "run") as run:
        resumed = fit(worker.flow()[0], batches, loss, short, run)
        assert [row["step"] for row in run.metrics()] == list(range(1, 13))
    assert all(torch.equal(value, whole.module.state_dict()[key]) for key, value in resumed.module.state_dict().items())
    assert same_state(state_at(tmp_path / "drive" / "run", 12), state_at(tmp_path / "here", 12))


def test_what_leaves_the_mirror_leaves_nothing_in_a_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted Drive keeps what is deleted, and counts it: so it is empty by then."""
    from iris import mirror

    _, batches, loss = worker.flow()
    deleted: list[int] = []
    real = shutil.rmtree

    def rmtree(folder: Path, **options: object) -> None:
        if str(folder).startswith(str(tmp_path / "drive")):
            deleted.extend(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        real(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for until in (4, 8):
        with Run.open(tmp_path / "here", {}) as run:
            fit(worker.flow()[0], batches, loss, dataclasses.replace(LONG, train_steps=until), run)
            write_checkpoint(run.pipeline_path, {}, {"generator": {"step": torch.tensor([until])}})
        left = tmp_path / "drive" / "checkpoints" / ".step-00000001.copying"  # by a copy that was killed
        left.mkdir(parents=True)
        (left / "weights").write_bytes(b"much")
        mirror.copy_run(tmp_path / "here", tmp_path / "drive")
        assert not left.exists()
    assert len(deleted) > 4 and set(deleted) == {0}
    assert latest_checkpoint(tmp_path / "drive" / "checkpoints").metadata["step"] == 8


def test_a_mirror_of_another_run_never_takes_a_runs_place(tmp_path: Path) -> None:
    """A run that was started over is younger than its mirror until the first copy; what is older by then has more steps."""
    _, batches, loss = worker.flow()
    here, drive = tmp_path / "here", tmp_path / "drive"

    def train(steps: int, **options: object) -> None:
        with Run.open(here, {"a": 1}, **options) as run:
            fit(worker.flow()[0], batches, loss, dataclasses.replace(LONG, train_steps=steps), run)

    train(8, mirror=drive)
    train(3, resume=False)  # and the machine ends before anything is mirrored
    before = sorted((here / "checkpoints").iterdir())
    with pytest.raises(RunError, match=r"is that of another run.*come to step 8, move .*here away"):
        Run.open(here, {"a": 1}, mirror=drive)
    assert sorted((here / "checkpoints").iterdir()) == before and (drive / "checkpoints" / "step-00000008").is_dir()
    train(3, resume=False, mirror=drive)  # said outright: the mirror follows at once, and what it held steps aside there too
    assert (drive / "previous-1" / "checkpoints" / "step-00000008").is_dir() and len(read_metrics(drive)) == 3
    train(5, mirror=drive)
    assert latest_checkpoint(drive / "checkpoints").metadata["step"] == 5
    shutil.rmtree(here / "checkpoints" / "step-00000005")  # brought back, and nothing that is here is lost
    (here / "checkpoints" / "step-00000002").mkdir()
    with Run.open(here, {"a": 1}, mirror=drive):
        assert {"step-00000002", "step-00000005"} <= {path.name for path in (here / "checkpoints").iterdir()}


def test_a_copy_cut_off_at_any_moment_leaves_a_run_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property) -> None:
    """Every rename and every file's copy fails once; what is in the mirror then verifies, as the old run or as the new one."""
    _, batches, loss = worker.flow()
    for until, folder in ((4, "old"), (8, "new")):
        with Run.open(tmp_path / folder, {}) as run:
            fit(worker.flow()[0], batches, loss, dataclasses.replace(LONG, train_steps=until), run)
            write_checkpoint(run.pipeline_path, {}, {"generator": {"step": torch.tensor([until])}})
    from iris import mirror

    cut, total = 0, 99
    while cut < total:
        cut += 1
        shutil.rmtree(tmp_path / "mirror", ignore_errors=True)
        mirror.copy_run(tmp_path / "old", tmp_path / "mirror")
        calls = 0

        def failing(real, cut: int = cut):
            def call(*arguments, **named):
                nonlocal calls
                calls += 1
                if calls == cut:
                    raise OSError("the Drive is gone")
                return real(*arguments, **named)
            return call

        with monkeypatch.context() as patch:
            for owner, name in ((os, "rename"), (os, "replace"), (shutil, "copyfile")):
                patch.setattr(owner, name, failing(getattr(owner, name)))
            try:
                mirror.copy_run(tmp_path / "new", tmp_path / "mirror")
            except OSError:
                pass
            else:
                total = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no checkpoint may be half there
            assert latest_checkpoint(tmp_path / "mirror" / "checkpoints").metadata["step"] in (4, 7, 8)
            assert read_checkpoint(tmp_path / "mirror" / "pipeline").tensors["generator"]["step"] in (4, 8)
        read_metrics(tmp_path / "mirror")
    assert cut > 10
    record_property("tries", cut)


def test_a_mirror_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    module, batches, loss = worker.flow()
    with pytest.warns(UserWarning, match=r"mirror .* could not be written: .* goes on without it"), \
            Run.open(tmp_path / "run", {}, mirror=tmp_path / "file" / "mirror") as run:
        assert fit(module, batches, loss, dataclasses.replace(LONG, train_steps=3), run).finished
    for inside in ("run", "run/mirror", "."):
        with pytest.raises(RunError, match="choose a folder apart"):
            Run.open(tmp_path / "run", {}, mirror=tmp_path / inside)


# --- kill -9, SIGTERM, a full disk -----------------------------------------------------------------------------------------


def kill_once(folder: Path, rng: random.Random, in_save: bool) -> bool:
    """Train in a forked process and kill it at a random moment, or inside the next save after that; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            worker.train(folder)
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0.05, worker.SECONDS))
    while in_save and not list((folder / "checkpoints").glob(".step-*.writing-*")) and os.waitpid(child, os.WNOHANG) == (0, 0):
        pass
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        return False  # it had ended
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@posix_only
def test_kill_9_at_random_moments_and_inside_saves_changes_no_bit(tmp_path: Path, soak: bool, record_property) -> None:
    whole = worker.train(tmp_path / "whole")
    tries, killed, torn, rng = 20 if soak else 2, 0, 0, random.Random(0)
    while killed < tries:
        folder = tmp_path / f"killed-{killed}"
        if not kill_once(folder, rng, in_save=killed % 2 == 1):
            shutil.rmtree(folder)
            continue
        torn += len(list((folder / "checkpoints").glob(".step-*.writing-*"))) > 0
        resumed = worker.train(folder)
        assert same_state(state_at(folder, resumed.step), state_at(tmp_path / "whole", whole.step)), f"kill {killed}"
        assert [row["step"] for row in read_metrics(folder)] == list(range(1, worker.RECIPE.train_steps + 1))
        killed += 1
    assert torn > 0, "no kill fell into a save"
    record_property("tries", tries)
    record_property("figure", f"{killed} of {tries} resumed bitwise; {torn} kills left a half-written save")


@posix_only
@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one_leave_the_old_checkpoint_and_a_sentence(tmp_path: Path, soak: bool, record_property) -> None:
    """On a real file system of its own: filled up before a run, filled up but for 200 kB so that a save breaks off, and read-only."""
    if not soak or shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs --soak and user namespaces")
    disk, train = tmp_path / "disk", f"{sys.executable} {worker.__file__}"
    disk.mkdir()
    fill = f"head -c $(( $(stat -f -c '%a * %S' {disk}) - {{left}} )) /dev/zero > {disk}/ballast"
    faults = {fill.format(left=0): "No space left", fill.format(left=200_000): "No space left", f"mount -o remount,ro {disk}": "Read-only file system"}
    for fault, sentence in faults.items():
        script = (f"mount -t tmpfs -o size=32m none {disk} && {train} {disk}/run 6; echo first $?; {fault}; {train} {disk}/run 20; echo second $?; "
                  f"mount -o remount,rw {disk}; rm -f {disk}/ballast; {train} {disk}/run 20; echo third $?; ls {disk}/run/checkpoints")
        done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, env=subprocess_environment(), timeout=300, check=False)
        assert [word in done.stdout for word in ("first 0", "second 2", "third 0", "step-00000020")] == [True] * 4, done.stdout + done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert len(told) == 1 and sentence in told[0] and "Traceback" not in done.stderr, done.stderr
    record_property("tries", len(faults))


@posix_only
@pytest.mark.slow
def test_sigterm_to_the_notebooks_mid_cell_and_the_same_command_again(tmp_path: Path, soak: bool, record_property) -> None:
    if not soak:
        pytest.skip("needs --soak: two runs of a notebook")
    command = [sys.executable, "-m", "reports", "--profile", "smoke", "--only", "01", "-p", "01.train_steps=400", "--out", str(tmp_path)]
    run = tmp_path / "runs" / "smoke" / "01"
    first = subprocess.Popen(command, env=subprocess_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while (not run.is_dir() or len(read_metrics(run)) < 60) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130
    reached, kept = read_metrics(run)[-1], latest_checkpoint(run / "checkpoints").metadata
    assert 0 < kept["step"] <= reached["step"] < 400
    lost = reached["seconds"] - kept["seconds"]
    subprocess.run(command, env=subprocess_environment(), check=True, capture_output=True, timeout=600)
    rows = read_metrics(run)
    assert rows[-1]["step"] == 400 and lost <= 60
    record_property("figure", f"stopped at step {reached['step']} of 400, continued from {kept['step']}: {lost:.1f} s lost")


def test_a_different_number_of_readers_changes_no_bit() -> None:
    """Batches are functions of the step, so reading ahead in threads gives what reading in turn gives."""
    from concurrent.futures import ThreadPoolExecutor

    _, batches, _ = worker.flow()
    with ThreadPoolExecutor(3) as readers:
        ahead = list(readers.map(batches, range(12)))
    assert all(torch.equal(getattr(ahead[step], name), getattr(batches(step), name)) for step in range(12) for name in ("latents", "tokens", "mask"))
    assert not torch.equal(ahead[0].latents, ahead[1].latents)
