"""The one training loop. It does not know what a loss means: a new stage is a new loss or new data.

Every random draw depends on (seed, step) alone and the whole batch is drawn before it is shared among processes, so a
resumed run and a run on another number of processes repeat the same arithmetic. The last two checkpoints are kept, and the
one with the lowest held-out loss. A step that is not finite or a spike is skipped; after several in a row, or when a weight
is no longer finite, the run takes up the weights of its anchor, a checkpoint made at a fixed step, and goes on with the
batches that follow. The average never sees a step that failed.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from threading import Lock
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from iris.checkpoint import Checkpoint, CheckpointError, load_module, read_checkpoint, write_checkpoint
from iris.config import ConfigError
from iris.nn.fourier import keep_factors
from iris.nn.generator import CodaBlock, CoreLayer, Generator
from iris.nn.layers import ConvBlock
from iris.rng import rng_for
from iris.runs import Run
from iris.step_checkpoints import latest_checkpoint, prune_checkpoints, step_folder
from iris.training.batches import each_tensor
from iris.training.ending import told_to_end, training_goes_on
from iris.training.guard import Guard, TrainingError
from iris.training.losses import T_BINS, LossOutput
from iris.training.optimizer import OPTIMIZERS, build_optimizer, cpu_computes_in_bf16

DRAW, HELD_OUT = 20, 21  # purposes of the random streams of a training seed
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp64")
OnLog = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train. `minutes` > 0 ends a run by the clock, with a checkpoint; it never changes a step.

    compile: make the generator's blocks anew for the device at hand (torch.compile), a minute or so, for long runs on a GPU.
    """

    train_steps: int = 1000
    minutes: float = 0.0
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    optimizer: str = "muon"
    ema_decay: float = 0.999
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 20
    eval_every: int = 250
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("train_steps", "batch_size", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 1 or more.")
        for name in ("minutes", "learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 0 or more.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; use 0 or more.")
        if not self.clip_norm > 0:
            raise ConfigError(f"clip_norm is {self.clip_norm}; use a number above 0, a large one for no clipping.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}; use one of {', '.join(PRECISIONS)}.")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}; use one of {', '.join(OPTIMIZERS)}.")
        if not 0 <= self.decay_share <= 1:
            raise ConfigError(f"decay_share is {self.decay_share}; use 0 to 1.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; use 0 or more and less than 1.")

    def rate(self, step: int) -> float:
        """Learning rate of `step`, which decides alone: linear warm-up, constant, then a cosine over the last `decay_share`."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        begin = self.train_steps * (1 - self.decay_share)
        progress = min(max((step - begin) / max(self.train_steps - begin, 1), 0.0), 1.0)
        return self.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress) if step > begin else 1.0)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; mixed precision casts on the way."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def recipe(self) -> dict[str, Any]:
        """What decides the result of a step: everything but how long to run and how often to look."""
        free = ("minutes", "log_every", "eval_every", "checkpoint_seconds", "compile")
        return {name: value for name, value in self.__dict__.items() if name not in free}


@dataclass(frozen=True)
class FitResult:
    """The averaged module, the step reached, training seconds over all sessions, and whether `train_steps` was reached."""

    module: nn.Module
    step: int
    seconds: float
    finished: bool


def accelerate_precision(precision: str) -> str:
    """accelerate's name for a precision; "auto" is bf16 where the GPU (capability 8) or CPU has units for it, fp16 on older GPUs."""
    if precision == "auto":
        if not torch.cuda.is_available():
            return "bf16" if cpu_computes_in_bf16() else "no"
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return "no" if precision in ("fp32", "fp64") else precision


def ema_update(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Update rule for AveragedModel: decay min(decay, (1 + n) / (10 + n)), so a short run is not its own beginning."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return update


def _laid_out(values: Tensor, like: Tensor) -> Tensor:
    """`values` in the memory layout of `like`, if they have its shape.

    The fused AdamW walks memory: it would pair a channels-last weight with the wrong elements of a contiguous gradient
    or moment, silently.
    """
    return torch.empty_like(like).copy_(values) if values.shape == like.shape else values


class _Meters:
    """Means since the last log: of the loss, of its named parts and of its groups. A refused step may have no number; the others' mean counts."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.groups: dict[str, dict[int, list[float]]] = {}

    def add(self, output: LossOutput) -> None:
        for name, value in {"loss": output.loss.detach(), **output.logs}.items():
            self.values.setdefault(name, []).append(float(value))
        for name, group in output.groups.items():
            for key, value in zip(group.tolist(), output.per_sample.tolist(), strict=True):
                self.groups.setdefault(name, {}).setdefault(key, []).append(value)

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {name: _mean(values) for name, values in self.values.items()}
        for name, group in self.groups.items():
            means = {key: _mean(values) for key, values in sorted(group.items())}
            row[f"loss_by_{name}"] = [means.get(index) for index in range(T_BINS)] if name == "t" else means
        return row


def _mean(values: list[float]) -> float:
    """Of the finite ones; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def join_processes() -> PartialState:
    """The processes this one was launched with, joined: over NCCL with GPUs, over gloo without (accelerate joins no CPUs by itself).

    Where there is no CUDA the CPU computes, on a Mac too: accelerate would take its GPU by itself, which knows no double precision.
    They wait for each other up to two hours, for the first one may encode a large data set meanwhile.
    """
    together = {"timeout": timedelta(hours=2)} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
    return PartialState(cpu=not torch.cuda.is_available(), **together)


class _Session:
    """One process's part of a fit: model, optimizer, average, and their way to and from a checkpoint."""

    def __init__(self, module: nn.Module, train: TrainConfig, run: Run | None) -> None:
        self.train, self.run = train, run
        join_processes()
        AcceleratorState._reset_state()  # it keeps the first precision of a process; the joined processes stay as they are
        self.accelerator = Accelerator(mixed_precision=accelerate_precision(train.precision), cpu=not torch.cuda.is_available())
        self.module = module.to(self.accelerator.device, train.dtype).train()
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.raw_optimizer = build_optimizer(module, train.learning_rate, train.weight_decay, train.optimizer)
        self.optimizer = self.accelerator.prepare(self.raw_optimizer)
        self.average = AveragedModel(self.module, multi_avg_fn=ema_update(train.ema_decay))
        if train.compile:
            compile_blocks(self.module)  # after the average was copied off, which is only ever evaluated
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        self.guard = Guard()
        self.anchor: int | None = None  # the step of the checkpoint to roll back to
        self.best: dict[str, Any] | None = None  # {"step", "held_out_loss"} of the best checkpoint
        self.drawing = Lock()  # a loss knows one step at a time
        self._saved: int | None = None

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def restore(self) -> None:
        """Continue from the newest good checkpoint, and drop the metrics that will be computed again; else store the beginning."""
        if self.run is None:
            return
        found = latest_checkpoint(self.run.checkpoint_path)
        if found is None:
            self.anchor = 0
            return self.save()
        told = found.metadata
        self.step, self.seconds, self.skipped, self.best = told["step"], told["seconds"], told["skipped"], told.get("best")
        self.guard = Guard(**told.get("guard", {}))
        # The anchor is gone if newer checkpoints were damaged; then this one is the best there is.
        self.anchor = told["anchor"] if step_folder(self.run.checkpoint_path, told.get("anchor", -1)).is_dir() else self.step
        self._load(found)
        if self.accelerator.scaler is not None and told["scaler"]:
            self.accelerator.scaler.load_state_dict(told["scaler"])
        if self.is_main:
            self.run.rewind(self.step)

    def _load(self, found: Checkpoint) -> None:
        """Weights, average and optimizer of a checkpoint."""
        load_module(self.module, found.tensors["module"])
        load_module(self.average, found.tensors["average"])
        state = {**self.raw_optimizer.state_dict(), "state": {}}
        owners = [parameter for group in self.raw_optimizer.param_groups for parameter in group["params"]]
        for key, value in found.tensors["optimizer"].items():
            index, name = key.split(".")
            if value.ndim and value.shape != owners[int(index)].shape:
                raise CheckpointError(f"the optimizer's state in {found.folder} belongs to another version of this code; start over, with --init RUN/pipeline to keep the weights.")
            state["state"].setdefault(int(index), {})[name] = _laid_out(value, owners[int(index)])
        self.raw_optimizer.load_state_dict(state)

    def save(self) -> None:
        """Write the state after `step` steps; the last two checkpoints, the best one and the anchor are kept."""
        if self.run is None or not self.is_main or self._saved == self.step:
            return
        optimizer = {f"{index}.{name}": value for index, entry in self.raw_optimizer.state_dict()["state"].items() for name, value in entry.items()}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        write_checkpoint(step_folder(self.run.checkpoint_path, self.step), {"recipe": self.train.recipe()},
                         {"module": self.module.state_dict(), "average": self.average.state_dict(), "optimizer": optimizer},
                         {"step": self.step, "seconds": self.seconds, "skipped": self.skipped, "scaler": scaler, "anchor": self.anchor,
                          "best": self.best, "guard": asdict(self.guard)}, shard_bytes=1 << 30)
        self._saved = self.step
        prune_checkpoints(self.run.checkpoint_path, keep=2, newest=self.step, spare={self.anchor, self.best and self.best["step"]})
        self.run.copy_to_mirror()

    def set_anchor(self) -> bool:
        """Whether this step's state is the one to roll back to from now on: at fixed steps, twenty a run, unless the last step failed."""
        due = self.step % max(10, self.train.train_steps // 20) == 0 and self.guard.failures == 0
        if due:
            self.anchor, self.guard.tries = self.step, 0
        return due

    def set_best(self, held_out_loss: float) -> bool:
        """Whether the averaged weights have the lowest held-out loss so far."""
        better = math.isfinite(held_out_loss) and (self.best is None or held_out_loss < self.best["held_out_loss"])
        if better:
            self.best = {"step": self.step, "held_out_loss": held_out_loss}
        return better

    def roll_back(self) -> None:
        """Take up weights, average and optimizer of the anchor. The step goes on, so the batches that failed are not drawn again."""
        if self.run is None:
            raise TrainingError(f"the weights are no longer finite at step {self.step}, and without a run folder there is nothing to go back to.")
        self.guard.note_rollback(self.step)
        self.accelerator.wait_for_everyone()
        try:
            found = read_checkpoint(step_folder(self.run.checkpoint_path, self.anchor))
        except CheckpointError:
            found = latest_checkpoint(self.run.checkpoint_path)
        if found is None:
            raise TrainingError(f"step {self.step} has to be taken back, but {self.run.checkpoint_path} holds no good checkpoint any more.")
        self._load(found)

    def place(self, draw: Any) -> Any:
        """This process's share of a global draw, on its device and in its precision."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        dtype = torch.float64 if self.train.precision == "fp64" else None

        def share(tensor: Tensor) -> Tensor:
            if len(tensor) % world:
                raise ConfigError(f"batch_size is {len(tensor)}; use a multiple of the number of processes ({world}).")
            piece = tensor.chunk(world)[rank] if world > 1 else tensor
            return piece.to(self.accelerator.device, dtype if piece.is_floating_point() else None)

        return each_tensor(draw, share)

    def _average_over_processes(self, output: LossOutput) -> tuple[float, float]:
        """The loss and its unweighted mean. With many processes these and the gradients are averaged in one collective: no hooks,
        so iterations without a graph need no care."""
        losses = torch.stack([output.loss.detach().double(), output.per_sample.double().mean()])
        if self.accelerator.num_processes == 1:
            return tuple(losses.tolist())
        gradients = [parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in self.parameters]
        pieces = [losses.to(gradients[0].dtype), *(gradient.flatten() for gradient in gradients)]
        mean, *means = self.accelerator.reduce(torch.cat(pieces), reduction="mean").split([len(piece) for piece in pieces])
        for parameter, piece in zip(self.parameters, means, strict=True):
            parameter.grad = _laid_out(piece.view(parameter.shape), parameter)
        return tuple(mean.tolist())

    def update(self, loss: Callable, draw: Any) -> tuple[LossOutput, float]:
        """One optimizer step on a drawn batch; a step whose loss or gradient is not finite, or whose loss is a spike, changes nothing."""
        for group in self.raw_optimizer.param_groups:
            group["lr"] = self.train.rate(self.step)
        with self.accelerator.autocast():
            output = loss(self.module, draw)
        self.accelerator.backward(output.loss)
        mean, unweighted = self._average_over_processes(output)
        refused, scaler = not (math.isfinite(mean) and self.guard.trusts(unweighted)), self.accelerator.scaler
        if refused:  # its gradient may be finite: x^2 overflows before 2x
            self.parameters[0].grad = torch.full_like(self.parameters[0], math.nan)
        scale = scaler.get_scale() if scaler is not None and math.isfinite(mean) and refused else None
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.train.clip_norm))
        if math.isfinite(norm) or scaler is not None:  # the scaler skips such a step itself
            self.optimizer.step()
        if scale is not None:
            scaler.update(scale)  # a spike was no overflow: it says nothing about the scale
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        broken = not bool(torch.stack(torch._foreach_norm(self.parameters)).isfinite().all())
        if math.isfinite(norm) and not broken:
            self.average.update_parameters(self.module)
            self.guard.accept(unweighted)
        else:
            self.skipped += 1
            output, mean = output.without_numbers(), math.nan
            if (self.guard.refuse() and self.run is not None) or broken:
                self.roll_back()
        return replace(output, loss=torch.tensor(mean)), norm  # what is logged is the whole batch's


def compile_blocks(module: nn.Module, backend: str | Callable = "inductor") -> None:
    """Compile the blocks of a generator in place, each kind once: whole iterations would be made anew for every depth."""
    if isinstance(module, Generator):
        side, weight = module.config.latent_size // module.config.core_stride, module.output.weight
        keep_factors(side, side, weight.dtype, weight.device)
    for block in module.modules():
        if isinstance(block, (CoreLayer, ConvBlock, CodaBlock)):
            block.compile(dynamic=False, backend=backend)


def _make_draw(session: _Session, batches: Callable[[int], Any], loss: Any, step: int, purpose: int) -> Any:
    batch = batches(step)
    with session.drawing:
        if hasattr(loss, "at_step"):
            loss.at_step(step if purpose == DRAW else None)
        draw = loss.draw(session.module, batch, rng_for(session.train.seed, purpose, step))
    return session.place(draw)


class _Draws:
    """The draws of the steps, in order. Beside a GPU the next one is made in a thread meanwhile; a CPU has its hands full."""

    def __init__(self, make: Callable[[int], Any], is_ahead: bool) -> None:
        self._make, self._thread = make, ThreadPoolExecutor(1) if is_ahead else None
        self._next: Future | None = None

    def __call__(self, step: int) -> Any:
        if self._thread is None:
            return self._make(step)
        draw = (self._next or self._thread.submit(self._make, step)).result()
        self._next = self._thread.submit(self._make, step + 1)
        return draw

    def close(self) -> None:
        """Let go of the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


@torch.no_grad()
def held_out_loss(session: _Session, batches: Callable[[int], Any], loss: Any, count: int = 4) -> float:
    """Mean loss of the averaged module on `count` held-out batches with draws that are the same at every evaluation."""
    module = session.average.module.eval()
    outputs = [loss(module, _make_draw(session, batches, loss, index, HELD_OUT)).per_sample.mean() for index in range(count)]
    return float(session.accelerator.gather(torch.stack(outputs).mean()[None]).mean())


def fit(module: nn.Module, batches: Callable[[int], Any], loss: Any, train: TrainConfig, run: Run | None = None,
        held_out: Callable[[int], Any] | None = None, on_log: OnLog | None = None) -> FitResult:
    """Train `module` on `batches(step)` with `loss` until `train_steps` or `minutes`, or until the process is told to end; continue if the run has a checkpoint.

    Logs to run.metrics.jsonl: loss and its parts, by t-bin and by depth where the loss reports them, learning rate,
    gradient norm, images a second, held-out loss of the averaged weights. Returns the averaged module.
    """
    session = _Session(module, train, run)
    session.restore()
    meters, started, saved = _Meters(), time.monotonic(), time.monotonic()
    before, logged = session.seconds, (session.step, time.monotonic())
    ended = session.step >= train.train_steps or _time_is_up(session, train)
    draws = _Draws(lambda step: _make_draw(session, batches, loss, step, DRAW), session.accelerator.device.type == "cuda")
    with contextlib.closing(draws), training_goes_on(), tqdm(total=train.train_steps, initial=session.step, unit="step", disable=not session.is_main, mininterval=2.0, dynamic_ncols=True) as bar:
        while not ended:
            output, norm = session.update(loss, draws(session.step))
            session.seconds = before + time.monotonic() - started
            meters.add(output)
            bar.update()
            ended = session.step >= train.train_steps or _time_is_up(session, train)
            due = session.step % train.log_every == 0 or ended
            keep = session.set_anchor()
            evaluate = held_out is not None and (session.step % train.eval_every == 0 or ended)
            if due or evaluate:
                speed = (session.step - logged[0]) * train.batch_size / max(time.monotonic() - logged[1], 1e-9)
                row = {**meters.row(), "lr": train.rate(session.step - 1), "grad_norm": norm, "images_per_second": speed,
                       "seconds": session.seconds, "skipped": session.skipped, "rollbacks": session.guard.rollbacks}
                if evaluate:
                    row["held_out_loss"] = held_out_loss(session, held_out, loss)
                    keep = session.set_best(row["held_out_loss"]) or keep
                bar.set_postfix(loss=f"{row['loss']:.4f}", images_s=f"{speed:.1f}")
                meters, logged = _Meters(), (session.step, time.monotonic())
                if run is not None and session.is_main:
                    row = run.log(session.step, **row)
                    if on_log is not None:
                        on_log(row)
            if keep or time.monotonic() - saved > train.checkpoint_seconds:
                session.save()
                saved = time.monotonic()
        if session.step > 0 and session.seconds > before:
            session.save()
    session.accelerator.wait_for_everyone()
    averaged = session.average.module if session.step else session.module
    return FitResult(averaged.eval(), session.step, session.seconds, session.step >= train.train_steps)


def _time_is_up(session: _Session, train: TrainConfig) -> bool:
    """Whether the clock has run out, or the process was told to end; decided by the first process for all."""
    up = told_to_end() or 0 < train.minutes * 60 <= session.seconds
    if session.accelerator.num_processes > 1:
        up = bool(session.accelerator.gather(torch.tensor([float(up)], device=session.accelerator.device))[0] > 0)
    return up
