"""The five stages from the command line, on one process or many:

    python -m iris.training autoencoder --data scenes --preset micro --run runs/01
    accelerate launch --multi_gpu -m iris.training text-to-image --data scenes+emoji --preset micro --init runs/01/pipeline --run runs/03

The recipes are those of the notebooks. Ctrl-C or SIGTERM ends a training after its step, with a checkpoint and a model; a second one ends
it at once. A stopped command, given again, continues from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from iris.runs import Run
from iris.training import stages
from iris.training.ending import end_when_told, told_to_end
from iris.training.loop import join_processes
from iris.training.prepare import configure, load_pictures, open_run, plan_training


class Stage(str, Enum):
    """The five stages, in order."""

    autoencoder = "autoencoder"
    class_conditional = "class-conditional"
    text_to_image = "text-to-image"
    aesthetic = "aesthetic"
    distill = "distill"


RECIPES = {Stage.autoencoder: stages.train_autoencoder, Stage.class_conditional: stages.train_class_conditional,
           Stage.text_to_image: stages.train_text_to_image, Stage.aesthetic: stages.train_aesthetic, Stage.distill: stages.distill}

# Batch size and peak rate of each stage's notebook.
BATCH_SIZES = {Stage.autoencoder: 16, Stage.class_conditional: 64, Stage.text_to_image: 64, Stage.aesthetic: 64, Stage.distill: 8}
LEARNING_RATES = {Stage.autoencoder: 2e-3, Stage.class_conditional: 1e-3, Stage.text_to_image: 1e-3, Stage.aesthetic: 3e-4, Stage.distill: 5e-4}

_OF_FLOW = {"exit_weight", "warm_start", "logit_mean", "coarse_until", "grad_iterations", "weighting"}
LOSS_OPTIONS = {Stage.autoencoder: set(), Stage.class_conditional: _OF_FLOW, Stage.text_to_image: _OF_FLOW, Stage.aesthetic: _OF_FLOW,
                Stage.distill: {"exit_weight", "grad_iterations", "guidance_scale", "teacher_steps"}}


class _Follower(Run):
    """The run folder as the processes beside the first one see it: they read, and write nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        """Nothing is held."""

    def write_summary(self, summary) -> Path:
        return self.path / "summary.json"

    def settle(self, **facts: object) -> None:
        """The first process compares."""


def _loss_options(stage: Stage, **said: float | str | None) -> dict[str, float | str]:
    """What was said of the loss; BadParameter where the stage knows no such thing."""
    options = {name: value for name, value in said.items() if value is not None}
    unknown = sorted(options.keys() - LOSS_OPTIONS[stage])
    if unknown:
        raise typer.BadParameter(f"stage {stage.value} has no {' and no '.join(name.replace('_', ' ') for name in unknown)}.")
    return options


def _told(result: stages.StageResult) -> str:
    """How a stage ended, in words."""
    told = result.summary
    why, how = ("as asked", "the same command goes on") if told_to_end() else ("by the clock", "with more --minutes the same command goes on")
    ended = f"Trained {told['step']:,} steps" if told["finished"] else f"Stopped {why} after {told['step']:,} steps; {how}"
    loss = "" if told["held_out_loss"] is None else f" Held-out loss {told['held_out_loss']:.4f}."
    if (best := told["best"]) and best["held_out_loss"] < told["held_out_loss"]:
        loss = f"{loss[:-1]}, lowest {best['held_out_loss']:.4f} at step {best['step']:,}."
    psnr = f" Held-out pictures are rebuilt at {told['held_out_psnr']:.1f} dB." if "held_out_psnr" in told else ""
    return f"{ended}, {told['minutes']:.1f} minutes.{loss}{psnr} The model is in {result.pipeline_path}."


def main(
    stage: Annotated[Stage, typer.Argument(help="which stage to train")],
    run: Annotated[Path, typer.Option(help="the run's folder; given again, it continues")],
    data: Annotated[str, typer.Option(help="data source, such as scenes, emoji:fluent-3d, folder:PATH, hub:ID, scenes+emoji")] = "scenes",
    preset: Annotated[str, typer.Option(help="nano, micro, tiny, small or base; left out: as the model of --init, else micro")] = "",
    init: Annotated[str, typer.Option(help="the previous stage's pipeline folder or a hub id")] = "",
    limit: Annotated[int, typer.Option(help="at most so many examples; 0 = all")] = 0,
    train_steps: int = 1000,
    minutes: Annotated[float, typer.Option(help="end by the clock, if train-steps are not reached before; 0 = never")] = 0.0,
    batch_size: Annotated[int | None, typer.Option(help="examples a step over all processes; that of the stage's notebook when left out")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="peak rate of AdamW, Muon takes three times that; likewise. Training a finished model on wants a third of it")] = None,
    decay_share: Annotated[float, typer.Option(help="the share of the steps over which the rate falls, at the end")] = 0.5,
    mirror: Annotated[str, typer.Option(help="a second folder to keep a copy of the run in; a new machine continues from it")] = "",
    start_over: Annotated[bool, typer.Option("--start-over", help="put aside what an earlier run left in its folder")] = False,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or fp64")] = "auto",
    optimizer: Annotated[str, typer.Option(help="muon (AdamW for what is no matrix) or adamw")] = "muon",
    compile_: Annotated[bool, typer.Option("--compile", help="compile the generator's blocks first, a minute or so: for long runs on a GPU")] = False,
    seed: int = 0,
    set_: Annotated[list[str], typer.Option("--set", metavar="PART.FIELD=VALUE", help="change a field of the preset, such as generator.mixer=attention; repeatable")] = [],  # noqa: B006
    exit_weight: Annotated[float | None, typer.Option(help="weight of the answer at a random earlier iteration; the stage's own when left out, 0 = none")] = None,
    warm_start: Annotated[float | None, typer.Option(help="share of the steps that start from the state of a noisier time; likewise")] = None,
    logit_mean: Annotated[float | None, typer.Option(help="where noise levels are drawn: the mean of ln(t / (1 - t)); higher = more noise, more about where things stand")] = None,
    coarse_until: Annotated[int | None, typer.Option(help="so many steps first at high noise and two iterations, for where things stand; likewise")] = None,
    grad_iterations: Annotated[int | None, typer.Option(min=1, help="so many iterations are differentiated, the last ones; with fewer, more pictures a second go by")] = None,
    weighting: Annotated[str | None, typer.Option(help="'specification' multiplies the loss by t / (1 - t), at most 20, as the specification writes it; none when left out")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="distill: the teacher's guidance, which goes into the student")] = None,
    teacher_steps: Annotated[int | None, typer.Option(min=1, help="distill: the steps of the teacher's paths; more draw better and take longer")] = None,
    student_init: Annotated[str, typer.Option(help="distill: an earlier student of the model in --init, to train on; left out, it starts as its teacher")] = "",
) -> None:
    """Train one stage; writes RUN/pipeline, RUN/metrics.jsonl and RUN/summary.json."""
    if stage is not Stage.autoencoder and not init:
        raise typer.BadParameter(f"stage {stage.value} needs --init, the model of an earlier stage, such as RUN/pipeline or demo/models/iris-scenes.")
    if student_init and stage is not Stage.distill:
        raise typer.BadParameter(f"stage {stage.value} has no student init.")
    loss_options = _loss_options(stage, exit_weight=exit_weight, warm_start=warm_start, logit_mean=logit_mean, coarse_until=coarse_until,
                                 grad_iterations=grad_iterations, weighting=weighting, guidance_scale=guidance_scale, teacher_steps=teacher_steps)
    config = configure(preset, changes=set_, init=init)
    batch_size, learning_rate = batch_size or BATCH_SIZES[stage], LEARNING_RATES[stage] if learning_rate is None else learning_rate
    train = plan_training(train_steps, minutes, batch_size, learning_rate, precision, seed, optimizer, compile_, decay_share)
    options = {name: folder for name, folder in (("init", init), ("student_init", student_init)) if folder} | loss_options
    first = join_processes().is_main_process
    folder = open_run(run, config, train, data, start_over, mirror, loss_options=loss_options) if first else _Follower(Path(os.path.expanduser(run)).resolve())
    join_processes().wait_for_everyone()  # the first one may have brought the run back from its mirror
    with contextlib.closing(folder):  # which has refused another recipe by now, before any picture is decoded
        pictures, held_out = load_pictures(data, config, limit)
        result = RECIPES[stage](config, pictures, held_out, train, folder, **options)
    if first:
        typer.echo(_told(result))
    if told_to_end():
        raise typer.Exit(130)  # a script does not go on to the next stage


if __name__ == "__main__":
    end_when_told()
    try:
        typer.run(main)
    except ValueError as error:  # ConfigError, DataError, CheckpointError, RunError: one sentence, no traceback
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
