"""Laws of training: it learns; a kill, a clock and a second process change no bit; what is not finite changes nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import training_worker
from conftest import build_generator, seeded, some_latents, subprocess_environment
from safetensors.torch import load_file
from torch import Tensor, nn

from iris.checkpoint import read_checkpoint, write_checkpoint
from iris.config import ConfigError, preset
from iris.data.scenes import Scenes
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import INITIAL_STATE_STD, Generator
from iris.pipeline import state_dicts
from iris.rng import rng_for
from iris.runs import Run, read_metrics
from iris.step_checkpoints import step_folder
from iris.training import loop
from iris.training.batches import ImageBatches, LatentBatch, LatentBatches
from iris.training.loop import TrainConfig, ema_update, fit
from iris.training.losses import ConsistencyLoss, LossOutput, ReconstructionLoss, RectifiedFlowLoss

NANO = preset("nano")
SHORT = TrainConfig(train_steps=8, batch_size=4, warmup_steps=2, log_every=1, eval_every=4, checkpoint_seconds=0.0)
CLOCKED = ("seconds", "images_per_second")  # the only figures of a row that may differ between two runs


def autoencoder_setup() -> tuple:
    torch.manual_seed(0)
    return WaveletVAE(NANO.autoencoder), ImageBatches(Scenes(32, count=12), 4, 0), ReconstructionLoss(None)


def flow_setup() -> tuple:
    torch.manual_seed(0)
    return Generator(NANO.generator), LatentBatches(some_latents(), 4, 0), RectifiedFlowLoss()


def distillation_setup() -> tuple:
    loss = ConsistencyLoss(build_generator(NANO), 3.0, teacher_steps=3)
    return build_generator(NANO), LatentBatches(some_latents(), 4, 0), loss


SETUPS = {"autoencoder": autoencoder_setup, "flow": flow_setup, "distillation": distillation_setup}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def same_rows(a: list[dict], b: list[dict]) -> bool:
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in a] == [{k: v for k, v in row.items() if k not in CLOCKED} for row in b]


# --- it learns ---------------------------------------------------------------------------------------------------------


class Fixed:
    """A loss whose draw is the same at every step: the same batch, noise, t, depth and initial state."""

    def __init__(self, loss, draw) -> None:
        self.loss, self.fixed = loss, draw

    def draw(self, *_):
        return self.fixed

    def __call__(self, module, draw) -> LossOutput:
        return self.loss(module, draw)


def overfit(name: str, batch_size: int, train_steps: int, learning_rate: float) -> tuple[nn.Module, float]:
    """A module trained on one batch whose draw is fixed, and its last loss over its first."""
    module, batches, loss = SETUPS[name]()
    batches.batch_size, loss.random_depth = batch_size, False
    fixed = Fixed(loss, loss.draw(module, batches(0), rng_for(0)))
    train = TrainConfig(train_steps=train_steps, batch_size=batch_size, learning_rate=learning_rate, warmup_steps=10, decay_share=0.6,
                        weight_decay=0.0, ema_decay=0.0, optimizer="adamw")  # its rates were found with AdamW
    with torch.no_grad():
        before = float(loss(module, fixed.fixed).loss)
        with torch.enable_grad():
            trained = fit(module, batches, fixed, train).module
        return trained, float(loss(trained, fixed.fixed).loss) / before


@pytest.fixture(scope="module")
def learned_flow() -> tuple[nn.Module, float]:
    return overfit("flow", batch_size=4, train_steps=100, learning_rate=8e-3)


@pytest.mark.slow
def test_stage_1_learns_one_fixed_batch_below_five_percent_of_its_first_loss() -> None:
    assert overfit("autoencoder", batch_size=2, train_steps=350, learning_rate=1e-2)[1] < 0.05


@pytest.mark.slow
def test_stages_2_to_4_learn_one_fixed_batch_below_five_percent_of_its_first_loss(learned_flow: tuple[nn.Module, float]) -> None:
    """They share their loss."""
    assert learned_flow[1] < 0.05


@pytest.mark.slow
@torch.no_grad()
def test_two_initial_states_converge_to_one_over_64_iterations_after_training(learned_flow: tuple[nn.Module, float]) -> None:
    generator, batch = learned_flow[0], LatentBatches(some_latents(), 4, 0)(0)
    context = generator.condition(batch.tokens, batch.mask)
    for t in (0.2, 0.9):
        embedded = generator.embed(batch.latents, torch.full((4,), t))
        runs = [generator.iterate(embedded, context, 64, state=state)
                for state in (None, INITIAL_STATE_STD * seeded(4, 8, 8, 32, seed=9))]
        apart = [float(((second.tokens - first.tokens).norm(dim=-1) / first.tokens.norm(dim=-1)).mean((1, 2)).max()) for first, second in zip(*runs, strict=True)]
        assert apart[0] > 0.05 and apart[-1] < 0.01 * apart[0]


# --- a run that stops and goes on --------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing in the loop may catch it."""


def stop_at(batches, step: int):
    def until(index: int):
        if index == step:
            raise Killed
        return batches(index)

    return until


def final_state(folder: Path, step: int) -> dict[str, dict[str, Tensor]]:
    return read_checkpoint(step_folder(folder / "checkpoints", step)).tensors


@pytest.mark.parametrize("name", SETUPS)
def test_killed_and_resumed_is_the_uninterrupted_run_bitwise(name: str, tmp_path: Path) -> None:
    """Weights, averages, optimizer and metrics; the last checkpoint is lost with the kill, so a step is computed twice."""
    module, batches, loss = SETUPS[name]()
    with Run.open(tmp_path / "whole") as run:
        whole = fit(module, batches, loss, SHORT, run, batches)
    module, batches, loss = SETUPS[name]()
    with Run.open(tmp_path / "killed") as run, pytest.raises(Killed):
        fit(module, stop_at(batches, 5), loss, SHORT, run, batches)
    shutil.rmtree(step_folder(tmp_path / "killed" / "checkpoints", 5))
    assert [row["step"] for row in read_metrics(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    seen: list[int] = []
    module, batches, loss = SETUPS[name]()
    torch.manual_seed(99)  # fresh weights and global state that differ must not matter
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    with Run.open(tmp_path / "killed") as run:
        resumed = fit(module, lambda step: (seen.append(step), batches(step))[1], loss, SHORT, run, batches)
    assert seen[0] == 4
    assert same_weights(resumed.module, whole.module) and (resumed.step, resumed.finished) == (8, True)
    states = [final_state(tmp_path / folder, 8) for folder in ("whole", "killed")]
    for part in ("module", "average", "optimizer"):
        assert all(torch.equal(states[0][part][key], states[1][part][key]) for key in states[0][part])
    assert same_rows(read_metrics(tmp_path / "killed"), read_metrics(tmp_path / "whole"))


def test_a_run_ended_by_the_clock_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    module, batches, loss = flow_setup()
    whole = fit(module, batches, loss, SHORT).module
    module, batches, loss = flow_setup()
    with Run.open(tmp_path / "run") as run:
        ended = fit(module, batches, loss, dataclasses.replace(SHORT, minutes=1e-7, checkpoint_seconds=1e9), run)
    assert not ended.finished and ended.step == 1
    with Run.open(tmp_path / "run") as run:
        finished = fit(flow_setup()[0], batches, loss, SHORT, run)
    assert finished.finished and finished.step == 8 and finished.seconds > ended.seconds
    assert same_weights(finished.module, whole)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    module, batches, loss = flow_setup()
    with Run.open(tmp_path / "run") as run:
        first = fit(module, batches, loss, SHORT, run)
        rows = run.metrics()
        again = fit(flow_setup()[0], stop_at(batches, 8), loss, SHORT, run)
    assert same_weights(again.module, first.module) and again.finished and read_metrics(tmp_path / "run") == rows


def test_looking_at_a_run_does_not_change_it() -> None:
    """Logging and held-out losses, however often, leave every bit of the weights."""
    results = []
    for log_every, eval_every in ((1, 1), (1000, 1000)):
        module, batches, loss = distillation_setup()
        train = dataclasses.replace(SHORT, log_every=log_every, eval_every=eval_every)
        results.append(fit(module, batches, loss, train, None, LatentBatches(some_latents(6), 4, 7)).module)
    assert same_weights(*results)


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 1 leaves: a folder with an autoencoder."""
    torch.manual_seed(0)
    autoencoder = WaveletVAE(NANO.autoencoder)
    return write_checkpoint(tmp_path_factory.mktemp("stage-1") / "pipeline", NANO.to_dict(), state_dicts(autoencoder=autoencoder))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_kill_9_in_the_middle_of_stage_3_and_the_same_command_again(stage_1: Path, tmp_path: Path) -> None:
    command = [sys.executable, training_worker.__file__, "stage3", str(tmp_path / "killed"), str(stage_1)]
    process = subprocess.Popen(command, env=subprocess_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "killed").glob("checkpoints/step-0000001*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    reached = [row["step"] for row in read_metrics(tmp_path / "killed")][-1]
    assert 10 <= reached < 24
    subprocess.run(command, env=subprocess_environment(), check=True, capture_output=True, timeout=240)
    whole = training_worker.train_stage_3(tmp_path / "whole", stage_1)
    stored = [read_checkpoint(folder).tensors for folder in (tmp_path / "killed" / "pipeline", whole.pipeline_path)]
    assert all(torch.equal(stored[0][part][name], stored[1][part][name]) for part in stored[1] for name in stored[1][part])
    assert same_rows(read_metrics(tmp_path / "killed"), read_metrics(tmp_path / "whole"))
    assert [row["step"] for row in read_metrics(tmp_path / "killed")] == list(range(1, 25))


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_its_first_step_and_told_twice_a_training_ends_at_once(number: int) -> None:
    """There is no model to keep before: a second stage may not begin with one that learned nothing."""
    def ended(before: str) -> tuple[int | None, int]:
        code = f"import time; from iris.training.ending import *; end_when_told(); {before}; print('ready', flush=True); time.sleep(0.5); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code], env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        process.stdout.readline()
        process.send_signal(number)
        time.sleep(0.3)
        first = process.poll()
        process.send_signal(number)
        return first, process.wait(10)

    assert ended("pass")[0] is not None
    first, second = ended("goes_on = training_goes_on(); goes_on.__enter__()")
    assert first is None and second not in (None, 0)


def test_a_file_asks_too_where_signals_cannot(tmp_path: Path) -> None:
    code = (f"from pathlib import Path; from iris.training.ending import *; file = Path({str(tmp_path / 'stop')!r}); end_when_told(file); "
            "before = told_to_end(); file.touch(); raise SystemExit(0 if told_to_end() and not before else 1)")
    subprocess.run([sys.executable, "-c", code], env=subprocess_environment(), check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_command_that_is_told_to_end_leaves_a_model_and_goes_on_when_given_again(stage_1: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "iris.training", "text-to-image", "--data", "scenes", "--limit", "40", "--preset", "nano", "--init", str(stage_1),
               "--run", str(run), "--train-steps", "1000000", "--batch-size", "4"]
    reached = [0]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        deadline = time.monotonic() + 240
        while not (run.is_dir() and (rows := read_metrics(run)) and rows[-1]["step"] > reached[-1]) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        told = process.communicate(timeout=120)[0]
        stored = read_checkpoint(run / "pipeline", parts=()).metadata["training"]
        assert process.returncode == 130 and f"Stopped as asked after {stored['step']:,} steps; the same command goes on" in told
        assert stored["step"] == read_metrics(run)[-1]["step"] > reached[-1] and not stored["finished"]
        reached.append(stored["step"])


# --- many processes ----------------------------------------------------------------------------------------------------


def launch_two(*arguments: str) -> None:
    """`accelerate launch` with two processes; "multi_gpu" is its word for processes that torch joins, over gloo where there is no GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
                f"--main_process_port={port}"]
    result = subprocess.run([sys.executable, *launcher, *arguments], env=subprocess_environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        torch.testing.assert_close(value, theirs[name], atol=1e-9, rtol=0)


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch_in_stage_1(tmp_path: Path) -> None:
    launch_two(training_worker.__file__, "stage1", str(tmp_path / "two.safetensors"))
    one = training_worker.five_autoencoder_steps()
    assert one["encoder.0.weight"].dtype == torch.float64
    assert_close(load_file(tmp_path / "two.safetensors"), one)


@pytest.mark.slow
def test_two_processes_of_the_command_line_are_one_in_stage_3(stage_1: Path, tmp_path: Path) -> None:
    from iris.training.__main__ import Stage, main

    options = {"data": "scenes", "preset": "nano", "init": str(stage_1), "limit": 24, "train-steps": 5, "batch-size": 8, "precision": "fp64", "optimizer": "adamw"}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    launch_two("-m", "iris.training", "text-to-image", "--run", str(tmp_path / "two"), *flags)
    main(Stage.text_to_image, tmp_path / "one", **{name.replace("-", "_"): value for name, value in options.items()})
    two, one = (final_state(tmp_path / name, 5) for name in ("two", "one"))
    assert one["module"]["input.weight"].dtype == torch.float64
    for part in ("module", "average"):
        assert_close(two[part], one[part])
    assert len(read_checkpoint(tmp_path / "two" / "pipeline").tensors) == 2
    assert [row["step"] for row in read_metrics(tmp_path / "two")] == [row["step"] for row in read_metrics(tmp_path / "one")]


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = loop._Session(nn.Linear(2, 2), SHORT, None)
    monkeypatch.setattr(type(session.accelerator), "num_processes", property(lambda _: 3))
    with pytest.raises(ConfigError, match="batch_size is 4; use a multiple of the number of processes \\(3\\)"):
        session.place(LatentBatch(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 1)))


# --- what is not finite ------------------------------------------------------------------------------------------------


class Spoiled:
    """The flow loss, spoiled at some steps: `how` changes the scalar that is differentiated."""

    def __init__(self, steps: set[int], how) -> None:
        self.inner, self.steps, self.how, self.step = RectifiedFlowLoss(), steps, how, 0

    def at_step(self, step: int) -> None:
        self.step = step

    def draw(self, *arguments):
        return self.inner.draw(*arguments)

    def __call__(self, module: Generator, draw) -> LossOutput:
        output = self.inner(module, draw)
        return dataclasses.replace(output, loss=self.how(output.loss, module)) if self.step in self.steps else output


SPOILS = {
    "loss is nan": lambda loss, module: loss * float("nan"),
    "loss overflows, gradient does not": lambda loss, module: loss + module.output.weight.double().sum().float() + torch.tensor(3e38) + torch.tensor(3e38),
    "gradient alone is not finite": lambda loss, module: loss + (module.output.bias.sum() * 0).sqrt(),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_step_that_is_not_finite_changes_neither_weights_nor_average_nor_optimizer(spoil: str, tmp_path: Path) -> None:
    batches = flow_setup()[1]
    loss = Spoiled({2, 3}, SPOILS[spoil])
    states: dict[int, dict] = {}
    for until in (2, 4, 5):
        with Run.open(tmp_path / "run") as run:
            result = fit(flow_setup()[0], batches, loss, dataclasses.replace(SHORT, train_steps=until, decay_share=0.0), run)
        states[until] = final_state(tmp_path / "run", until)
    for part in ("module", "average", "optimizer"):
        assert all(torch.equal(states[2][part][key], states[4][part][key]) for key in states[2][part])
    assert not torch.equal(states[5]["module"]["output.bias"], states[4]["module"]["output.bias"])
    assert all(value.isfinite().all() for value in result.module.state_dict().values())
    assert read_metrics(tmp_path / "run")[-1]["skipped"] == 2


def test_bad_pictures_in_a_batch_are_survived() -> None:
    module, batches, loss = autoencoder_setup()

    def poisoned(step: int) -> Tensor:
        return batches(step) * (float("inf") if step == 3 else 1.0)

    result = fit(module, poisoned, loss, SHORT)
    assert result.finished and all(value.isfinite().all() for value in result.module.state_dict().values())


# --- parts of the loop -------------------------------------------------------------------------------------------------


def test_the_learning_rate_depends_on_the_step_alone() -> None:
    train = TrainConfig(train_steps=100, learning_rate=2.0, warmup_steps=10, decay_share=0.3)
    rates = [train.rate(step) for step in range(101)]
    assert rates[0] == 0.2 and rates[9] == rates[40] == rates[70] == 2.0 and rates[85] == pytest.approx(1.0) and rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert dataclasses.replace(train, minutes=5.0, log_every=7).rate(33) == train.rate(33)


@pytest.mark.parametrize(("field", "value"), [("train_steps", 0), ("batch_size", 0), ("log_every", 0), ("eval_every", -1), ("precision", "int8"), ("ema_decay", 1.0), ("decay_share", 1.5)])
def test_a_recipe_that_cannot_run_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} is"):
        TrainConfig(**{field: value})


def test_the_average_forgets_its_beginning_first_and_then_decays_at_its_rate() -> None:
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    ema_update(0.9)(averaged, current, 1)
    torch.testing.assert_close(averaged[0], torch.full((3,), 1 - 2 / 11))
    averaged = [torch.zeros(3)]
    ema_update(0.9)(averaged, current, 10_000)
    torch.testing.assert_close(averaged[0], torch.full((3,), 0.1))


def test_an_average_without_memory_is_the_trained_module_and_a_long_one_is_not(tmp_path: Path) -> None:
    for decay in (0.0, 0.999):
        module, batches, loss = flow_setup()
        result = fit(module, batches, loss, dataclasses.replace(SHORT, ema_decay=decay))
        assert same_weights(result.module, module) == (decay == 0.0)
